"""Losses: Dice beside cross-entropy, on every resolution (method sections 7.3 to 7.5).

N batch, K outputs, then the spatial axes. Everything is computed in float32, whatever the network's precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from planners import LOSSES, Labels, Loss

SMOOTH = 1e-5
"""Keeps the Dice of an absent class that is not predicted at 1 (method section 7.3)."""
FOCAL_GAMMA = 2.0
WORST_SHARE = 0.1
LossFunction = Callable[[Tensor, Tensor], Tensor]


def soft_dice(
    probabilities: Tensor, targets: Tensor, valid: Tensor | None, *, batch_dice: bool, squared: bool = False
) -> Tensor:
    """Mean soft Dice, 0 ... 1, of ``probabilities`` and ``targets``, both (N, K, ...).

    ``valid`` (N, 1, ...) is 0 on voxels that do not count. With ``batch_dice`` sums run over the batch, else
    over each sample. ``squared`` squares the terms of the denominator (Milletari et al. 2016).
    """
    axes = tuple(range(2, probabilities.ndim))
    axes = (0, *axes) if batch_dice else axes
    if valid is not None:
        probabilities, targets = probabilities * valid, targets * valid
    both = (probabilities * targets).sum(axes)
    power = 2 if squared else 1
    sizes = probabilities.pow(power).sum(axes) + targets.sum(axes)
    return ((2 * both + SMOOTH) / (sizes + SMOOTH)).mean()


def make_loss(loss: Loss, labels: Labels) -> LossFunction:
    """The installed loss that the plan names, computed in float32: logits (N, K, ...), label map (N, ...) int64 -> scalar.

    Label maps hold internal values; the ignore value counts nowhere.
    """
    compute: LossFunction = LOSSES.get(loss.name)(loss, labels)

    def in_float32(logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return compute(logits.float(), target)

    return in_float32


def compound_loss(loss: Loss, labels: Labels) -> LossFunction:
    """The method's: region term and voxel term with equal weight.

    A batch without a single valid voxel gives 0 for the voxel term.
    """
    table = region_table(labels)

    def compute(logits: Tensor, target: Tensor) -> Tensor:
        valid = None if labels.ignore is None else (target != labels.ignore).unsqueeze(1)
        if labels.has_regions:
            truth = functional.embedding(target, table.to(target.device)).movedim(-1, 1)
            pair = logits.sigmoid(), truth
        else:
            clean = target if labels.ignore is None else target.masked_fill(target == labels.ignore, 0)
            one_hot = torch.zeros_like(logits).scatter_(1, clean.unsqueeze(1), 1.0)
            pair = logits.softmax(1)[:, 1:], one_hot[:, 1:]
        total = -soft_dice(*pair, valid, batch_dice=loss.batch_dice, squared=loss.region == "squared_dice")
        if loss.voxel is None:
            return total
        if not labels.has_regions:
            each = functional.cross_entropy(logits, clean, reduction="none").unsqueeze(1)
            return total + _voxel_mean(each, valid, loss.voxel)
        each = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        mean = _voxel_mean(each, valid, loss.voxel)
        # with an ignore label the reference sums over regions instead of taking their mean (method section 7.4)
        return total + (mean if valid is None else mean * logits.shape[1])

    return compute


def _voxel_mean(each: Tensor, valid: Tensor | None, term: str) -> Tensor:
    """Mean of the voxels' cross-entropies (N, K or 1, ...) over valid voxels; 0 where there is none.

    ``focal`` weights each by ``(1 - p) ** 2`` with p the probability of the right answer (Lin et al. 2017, gamma 2);
    ``top_k`` takes the mean of the worst tenth (Wu et al. 2016).
    """
    if term == "focal":
        each = (1 - torch.exp(-each)) ** FOCAL_GAMMA * each
    if term == "top_k":
        values = each.flatten() if valid is None else each[valid.expand_as(each)]
        if values.numel() == 0:
            return each.sum() * 0
        return values.topk(math.ceil(values.numel() * WORST_SHARE)).values.mean()
    if valid is None:
        return each.mean()
    return (each * valid).sum() / (valid.sum() * each.shape[1]).clamp_min(1)


def region_table(labels: Labels) -> Tensor:
    """float32 (values, regions): 1 where the region holds the internal value; the ignore value belongs to none."""
    table = torch.zeros(len(labels.values) + 2, len(labels.classes))
    for region, label in enumerate(labels.classes):
        table[list(label.values), region] = 1
    return table


def deep_supervision_weights(num_heads: int) -> list[float]:
    """Halving from head to head, none for the coarsest, sum 1 (method section 7.5); a single head gets all."""
    weights = [0.5**head for head in range(num_heads)]
    if num_heads > 1:
        weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights]


def supervise_deeply(loss: LossFunction, logits: Sequence[Tensor], target: Tensor) -> Tensor:
    """Weighted sum of the loss at every head; coarser targets are the label map's nearest voxels."""
    total = torch.zeros((), device=target.device)
    for weight, head in zip(deep_supervision_weights(len(logits)), logits, strict=True):
        if weight:
            total = total + weight * loss(head, shrink_labels(target, head.shape[2:]))
    return total


def shrink_labels(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Label map (N, ...) at another size, nearest voxel by exact centres."""
    for axis, (old, new) in enumerate(zip(target.shape[1:], shape, strict=True), start=1):
        if old != new:
            index = (2 * torch.arange(new, device=target.device) + 1) * old // (2 * new)  # whose cell holds the centre
            target = target.index_select(axis, index)
    return target

"""Losses: Dice beside cross-entropy, on every resolution (method sections 7.3 to 7.5).

N batch, K outputs, then the spatial axes. Everything is computed in float32, whatever the network's precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

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
    in_slabs = loss.name == "compound" and loss.voxel != "top_k"

    def in_float32(logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            if in_slabs and logits.device.type == "cuda" and logits.numel() > SLAB_VALUES:
                return sum_slabs(loss, labels, logits, target)
            return compute(logits.float(), target)

    return in_float32


def make_joint_loss(loss: Loss, labels: Labels, gather: Callable[[Tensor], Tensor]) -> LossFunction:
    """`make_loss` of a batch of which several processes each have a share of the samples, for each of them.

    ``gather`` gives the rows of all from those of this process, which stay differentiable. Of the method's losses sums travel, a few
    numbers for each sample; of others, logits and label maps.
    """
    compute: LossFunction = LOSSES.get(loss.name)(loss, labels)
    terms = _voxel_terms(loss, labels)
    sums_travel = loss.name == "compound" and loss.voxel != "top_k"

    def in_float32(logits: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            if sums_travel:
                both, sizes, *voxels = _sums_in_slabs(terms, loss, logits, target)
                once = torch.stack([*voxels, *([both.new_zeros(())] * (2 - len(voxels)))])[None]  # in the first row
                extra = torch.cat([once, once.new_zeros((len(both) - 1, 2))])
                rows = gather(torch.cat([both, sizes, extra], 1))
                both, sizes, extra = torch.split(rows, [both.shape[1], sizes.shape[1], 2], 1)
                found = [both, sizes, *extra.sum(0)] if voxels else [both, sizes]
                return _loss_of_sums(loss, labels, found, logits.shape[1])
            return compute(gather(logits.float()), gather(target))

    return in_float32


def _sums_in_slabs(terms: Terms, loss: Loss, logits: Tensor, target: Tensor) -> list[Tensor]:
    """`_slab_sums` of all of it; on a GPU as `sum_slabs` does, so that float32 copies of large logits exist for a slab at a time."""
    if logits.device.type != "cuda" or logits.numel() <= SLAB_VALUES:
        return _slab_sums(terms, loss, logits, target)
    slices = max(1, SLAB_VALUES * logits.shape[2] // logits.numel())
    slabs = zip(torch.split(logits, slices, 2), torch.split(target, slices, 1), strict=True)
    parts = [checkpoint(_slab_sums, terms, loss, *slab, use_reentrant=False) for slab in slabs]
    return [torch.stack(each).sum(0) for each in zip(*parts, strict=True)]


def compound_loss(loss: Loss, labels: Labels) -> LossFunction:
    """The method's: region term and voxel term with equal weight.

    A batch without a single valid voxel gives 0 for the voxel term.
    """
    terms = _voxel_terms(loss, labels)

    def compute(logits: Tensor, target: Tensor) -> Tensor:
        probabilities, truth, each, valid = terms(logits, target)
        squared = loss.region == "squared_dice"
        total = -soft_dice(probabilities, truth, valid, batch_dice=loss.batch_dice, squared=squared)
        if each is None:
            return total
        mean = _voxel_mean(each, valid, loss.voxel or "")
        # with an ignore label the reference sums over regions instead of taking their mean (method section 7.4)
        return total + (mean * logits.shape[1] if labels.has_regions and valid is not None else mean)

    return compute


Terms = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None, Tensor | None]]


def _voxel_terms(loss: Loss, labels: Labels) -> Terms:
    """Logits and label map -> probabilities and truth (N, classes or regions, ...), cross-entropies (N, K or 1, ...) if there is
    such a term, and which voxels count (N, 1, ...) if not all do.
    """
    table = region_table(labels)

    def compute(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        valid = None if labels.ignore is None else (target != labels.ignore).unsqueeze(1)
        each = None
        if labels.has_regions:
            truth = functional.embedding(target, table.to(target.device)).movedim(-1, 1)
            if loss.voxel is not None:
                each = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            return logits.sigmoid(), truth, each, valid
        clean = target if labels.ignore is None else target.masked_fill(target == labels.ignore, 0)
        one_hot = torch.zeros_like(logits).scatter_(1, clean.unsqueeze(1), 1.0)
        classes = logits.shape[1] - 1
        pair = [part.narrow(1, 1, classes) for part in (logits.softmax(1), one_hot)]
        if loss.voxel is not None:
            each = functional.cross_entropy(logits, clean, reduction="none").unsqueeze(1)
        return pair[0], pair[1], each, valid

    return compute


SLAB_VALUES = 2**24
"""Logits from which a GPU computes the loss in slabs: six float32 copies of so many take 0.4 GB."""


def sum_slabs(loss: Loss, labels: Labels, logits: Tensor, target: Tensor) -> Tensor:
    """`compound_loss` of logits in any format, whose float32 copies exist for a slab of the first spatial axis at a time.

    Its sums over voxels are taken slab by slab, and its gradient, too, from that of the sums: exact, for one more pass. Not for
    ``top_k``.
    """
    result: Tensor = _Slabs.apply(logits, target, loss, labels)  # type: ignore[no-untyped-call]
    return result


def _slab_sums(terms: Terms, loss: Loss, logits: Tensor, target: Tensor) -> list[Tensor]:
    """Of a slab: overlaps and sizes (N, classes or regions), cross-entropies, and how many of them count."""
    probabilities, truth, each, valid = terms(logits.float(), target)
    axes = tuple(range(2, logits.ndim))
    if valid is not None:
        probabilities, truth = probabilities * valid, truth * valid
    both = (probabilities * truth).sum(axes)
    sizes = probabilities.pow(2 if loss.region == "squared_dice" else 1).sum(axes) + truth.sum(axes)
    if each is None:
        return [both, sizes]
    each = (1 - torch.exp(-each)) ** FOCAL_GAMMA * each if loss.voxel == "focal" else each
    count = torch.full((), each.numel(), device=each.device) if valid is None else valid.sum() * each.shape[1]
    return [both, sizes, (each if valid is None else each * valid).sum(), count.float()]


def _loss_of_sums(loss: Loss, labels: Labels, sums: Sequence[Tensor], outputs: int) -> Tensor:
    both, sizes, *voxels = (each.sum(0) if loss.batch_dice and each.ndim else each for each in sums)
    total = -((2 * both + SMOOTH) / (sizes + SMOOTH)).mean()
    if not voxels:
        return total
    mean = voxels[0] / voxels[1].clamp_min(1)
    return total + (mean * outputs if labels.has_regions and labels.ignore is not None else mean)


class _Slabs(torch.autograd.Function):
    """See `sum_slabs`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, loss: Loss, labels: Labels) -> Tensor:
        terms = _voxel_terms(loss, labels)
        slices = max(1, SLAB_VALUES * logits.shape[2] // logits.numel())
        slabs = zip(torch.split(logits, slices, 2), torch.split(target, slices, 1), strict=True)
        parts = [_slab_sums(terms, loss, *slab) for slab in slabs]
        with torch.enable_grad():
            sums = [torch.stack(each).sum(0).requires_grad_() for each in zip(*parts, strict=True)]
            result = _loss_of_sums(loss, labels, sums, logits.shape[1])
        slopes = torch.autograd.grad(result, sums, allow_unused=True)
        ctx.save_for_backward(logits, target, *(s for s in slopes[:3] if s is not None))
        ctx.slices, ctx.loss, ctx.terms = slices, loss, terms
        return result.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, *slopes = ctx.saved_tensors
        result = torch.empty_like(logits)
        slabs = zip(
            *(torch.split(each, ctx.slices, axis) for each, axis in ((logits, 2), (target, 1), (result, 2))),
            strict=True,
        )
        for part, labels, out in slabs:
            with torch.enable_grad():
                given = part.detach().requires_grad_()
                sums = _slab_sums(ctx.terms, ctx.loss, given, labels)[: len(slopes)]
            (slope,) = torch.autograd.grad(sums, given, [gradients[0] * each for each in slopes])
            out.copy_(slope)
        return result, None, None, None


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

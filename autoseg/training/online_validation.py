"""A look at validation patches between epochs: pseudo-Dice and loss (method section 7.6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autoseg.training.batches import BatchSource, finish
from autoseg.training.loop import Parts, run_network
from autoseg.training.losses import region_table
from planners import Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What an epoch's validation patches tell."""

    pseudo_dice: dict[str, float | None]
    """Of each class; none where it neither occurs nor is predicted. Empty where a fold has no validation cases."""
    loss: float | None
    """Mean of the loss at full resolution."""


NO_LOOK = Look(pseudo_dice={}, loss=None)


def look(parts: Parts, source: BatchSource, labels: Labels, steps: range, *, micro_batch_size: int) -> Look:
    """Dice per class over the batches ``steps`` of ``source``, counts summed first, and the mean loss.

    ``micro_batch_size`` samples are computed at once.
    """
    totals = torch.zeros(3, len(labels.classes), dtype=torch.float64)
    losses = []
    parts.network.eval()
    with torch.inference_mode():
        for step in steps:
            batch = finish(source[step], source.recipe, parts.device)
            for images, target in zip(*(torch.split(part, micro_batch_size) for part in batch), strict=True):
                logits = run_network(parts.network, images, parts.training.precision)
                logits = logits[0] if isinstance(logits, list) else logits
                losses.append(float(parts.loss(logits, target)))
                totals += class_counts(logits.float().cpu(), target.cpu(), labels)
    parts.network.train()
    hits, predicted, present = totals.tolist()
    scores = {
        label.name: 2 * h / (p + r) if p + r else None
        for label, h, p, r in zip(labels.classes, hits, predicted, present, strict=True)
    }
    return Look(pseudo_dice=scores, loss=sum(losses) / len(losses) if losses else None)


def class_counts(logits: Tensor, target: Tensor, labels: Labels) -> Tensor:
    """Voxels hit, predicted and present per class, float64 (3, classes); ignored voxels left out.

    ``logits`` (N, K, ...), ``target`` int64 (N, ...).
    """
    table = region_table(labels).bool()
    truth = table[target].movedim(-1, 1)
    guess = logits > 0 if labels.has_regions else table[logits.argmax(1)].movedim(-1, 1)
    if labels.ignore is not None:
        valid = (target != labels.ignore).unsqueeze(1)
        truth, guess = truth & valid, guess & valid
    axes = (0, *range(2, logits.ndim))
    return torch.stack([(truth & guess).sum(axes), guess.sum(axes), truth.sum(axes)]).double()

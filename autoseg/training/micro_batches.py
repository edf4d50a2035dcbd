"""Micro-batches: the gradient of a batch that does not fit into memory at once (decision 0101)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from planners import Labels, Loss

Forward = Callable[[Tensor], list[Tensor]]
"""Images (N, C, patch...) -> logits at every head."""
Criterion = Callable[[Sequence[Tensor], Tensor], Tensor]
"""Logits at every head and a label map -> scalar."""
Backward = Callable[[Tensor], None]
"""Accumulates gradients of a scalar."""


def is_mean_over_samples(loss: Loss, labels: Labels) -> bool:
    """Whether the loss of a batch is the mean of its samples' losses, so that micro-batches can be taken one after the other.

    It is not where Dice sums run over the batch, where the mean goes over valid voxels only, whose number differs from
    sample to sample, and where it goes over the worst voxels of the batch. Of other losses than the method's nothing is known.
    """
    return loss.name == "compound" and not loss.batch_dice and labels.ignore is None and loss.voxel != "top_k"


def accumulate(
    forward: Forward,
    criterion: Criterion,
    backward: Backward,
    images: Tensor,
    labels: Tensor,
    *,
    size: int,
    separable: bool,
) -> Tensor:
    """Add the gradient of the whole batch's loss to the parameters, ``size`` samples at a time; returns the loss, detached.

    ``separable``: the loss is a mean over samples. Then each micro-batch is weighted by its share. Otherwise each is computed
    twice: first for its logits, from which the loss of the whole batch and its gradient are computed, then to propagate that
    gradient to the parameters. That costs one forward pass more, and is exact for every loss.
    """
    parts = list(zip(torch.split(images, size), torch.split(labels, size), strict=True))
    if separable:
        total = torch.zeros((), device=images.device)
        for image, label in parts:
            loss = criterion(forward(image), label) * (len(image) / len(images))
            backward(loss)
            total += loss.detach()
        return total
    with torch.no_grad():
        computed = [forward(image) for image, _ in parts]
    heads = [torch.cat(head).requires_grad_() for head in zip(*computed, strict=True)]
    loss = criterion(heads, labels)
    backward(loss)
    gradients = [None if head.grad is None else torch.split(head.grad, size) for head in heads]
    for i, (image, _) in enumerate(parts):
        logits = forward(image)
        used = [(logit, gradient[i]) for logit, gradient in zip(logits, gradients, strict=True) if gradient is not None]
        torch.autograd.backward([logit for logit, _ in used], [gradient for _, gradient in used])
    return loss.detach()

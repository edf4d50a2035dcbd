"""The training loop: batches in, step records out. It knows no files, no screens and no callbacks but one function."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from autoseg.compute.memory import is_out_of_memory, release_memory
from autoseg.tracking.callbacks import StepRecord
from autoseg.training.losses import LossFunction, supervise_deeply
from autoseg.training.sampling import Batch
from planners import Labels, Loss, Training

Forward = Callable[[Tensor], list[Tensor]]
"""Images (N, C, patch...) -> logits at every head."""
Criterion = Callable[[Sequence[Tensor], Tensor], Tensor]
"""Logits at every head and a label map -> scalar."""
Backward = Callable[[Tensor], None]
"""Accumulates gradients of a scalar."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


class Control(Protocol):
    """What may change from step to step."""

    new_batches: bool
    """The batches to come were drawn by rules that no longer hold, so `train` ends after this step."""

    @property
    def micro_batch_size(self) -> int:
        """Samples computed at once; the gradient is that of the whole batch."""

    def learning_rate(self, step: int) -> float:
        """Of a step (0-based)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a training is put together from."""

    network: nn.Module
    step_network: Callable[..., Tensor | list[Tensor]]
    """What training steps call: the network or its compiled form, which shares its weights."""
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: LossFunction
    training: Training
    device: torch.device
    separable: bool = False
    """The loss of a batch is the mean of its samples' losses."""


def make_parts(
    network: nn.Module, loss: LossFunction, training: Training, device: torch.device, *, separable: bool = False
) -> Parts:
    """The network on its device with optimiser and gradient scaler (which acts in float16 only).

    Compiling happens in the first step.
    """
    network = network.to(device)
    return Parts(
        network=network,
        step_network=torch.compile(network, dynamic=False) if training.compiled else network,
        optimiser=make_optimiser(network, training),
        scaler=torch.amp.GradScaler(device.type, enabled=training.precision == "float16"),
        loss=loss,
        training=training,
        device=device,
        separable=separable,
    )


def make_optimiser(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Nesterov SGD or AdamW on all parameters, with the schedule's decay (method section 7.1).

    Without momentum: plain SGD.
    """
    if training.optimiser == "adamw":
        return torch.optim.AdamW(
            network.parameters(), lr=training.peak_learning_rate, weight_decay=training.weight_decay
        )
    return torch.optim.SGD(
        network.parameters(),
        lr=training.peak_learning_rate,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        weight_decay=training.weight_decay,
    )


def train(
    parts: Parts,
    batches: Iterable[Batch],
    steps: Sequence[int],
    *,
    control: Control,
    on_step: Callable[[StepRecord], None],
    on_memory_error: Callable[[int], None],
) -> int:
    """Do ``steps`` with one batch each, and call ``on_step`` after each of them; returns the steps done in all.

    Ends early where new batches are wanted. A step that runs out of memory is done again after ``on_memory_error``, which is
    given its number and sets smaller micro-batches or raises.
    """
    parts.network.train()
    source = iter(batches)
    for step in steps:
        started = time.perf_counter()
        images, labels = next(source)
        waited = time.perf_counter() - started
        rate = control.learning_rate(step)
        while (outcome := _try_step(parts, images, labels, rate, control.micro_batch_size)) is None:
            on_memory_error(step)
        loss, applied = outcome
        spent = time.perf_counter() - started
        on_step(
            StepRecord(step=step, loss=loss, learning_rate=rate, wait_s=waited, duration_s=spent, skipped=not applied)
        )
        if control.new_batches:
            control.new_batches = False
            return step + 1
    return steps[-1] + 1 if steps else 0


def _try_step(parts: Parts, images: Tensor, labels: Tensor, rate: float, size: int) -> tuple[float, bool] | None:
    """A step; None where memory ran out, with all memory of the attempt released."""
    try:
        return train_step(parts, images, labels, rate, micro_batch_size=size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    parts.optimiser.zero_grad(set_to_none=True)
    if parts.scaler.is_enabled():  # the step may have ended between `unscale_` and `update`; the scale stays
        parts.scaler.scale(torch.zeros((), device=parts.device))  # before the first one it cannot be updated
        parts.scaler.update(parts.scaler.get_scale())
    release_memory(parts.device)
    return None


def train_step(
    parts: Parts, images: Tensor, labels: Tensor, rate: float, *, micro_batch_size: int | None = None
) -> tuple[float, bool]:
    """Forward, backward, clipped update at learning rate ``rate``. Returns the loss, and whether weights were updated.

    ``images`` float32 (N, C, patch...), ``labels`` int64 (N, patch...) with internal values. ``micro_batch_size``
    samples are computed at once (none: all), with the gradient of the whole batch. Where loss or gradient is not finite,
    nothing is updated; in float16 the scaler handles an overflow of the gradient, which counts as a normal step as long as
    its scale has not shrunk below 1.
    """
    for group in parts.optimiser.param_groups:
        group["lr"] = rate
    images = images.to(parts.device, non_blocking=True)
    labels = labels.to(parts.device, non_blocking=True)
    loss = compute_gradient(parts, images, labels, min(micro_batch_size or len(images), len(images)))
    parts.scaler.unscale_(parts.optimiser)
    norm = nn.utils.clip_grad_norm_(parts.network.parameters(), parts.training.gradient_clip)
    value = float(loss)
    overflown = parts.scaler.is_enabled() and parts.scaler.get_scale() >= 1  # a smaller scale would still help
    finite = math.isfinite(value) and (overflown or math.isfinite(float(norm)))
    if finite or parts.scaler.is_enabled():  # the scaler steps over what is not finite by itself
        parts.scaler.step(parts.optimiser)
        parts.scaler.update()
    return value, finite


def compute_gradient(parts: Parts, images: Tensor, labels: Tensor, size: int) -> Tensor:
    """Replace the gradients by those of one batch, ``size`` samples at a time; returns the loss, detached."""

    def forward(part: Tensor) -> list[Tensor]:
        logits = run_network(parts.step_network, part, parts.training.precision)
        return [logits] if isinstance(logits, Tensor) else logits

    def criterion(logits: Sequence[Tensor], target: Tensor) -> Tensor:
        return supervise_deeply(parts.loss, logits, target)

    def backward(loss: Tensor) -> None:
        parts.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    if size < len(images):
        parts.optimiser.zero_grad(set_to_none=True)
        return accumulate(forward, criterion, backward, images, labels, size=size, separable=parts.separable)
    loss = criterion(forward(images), labels)
    parts.optimiser.zero_grad(set_to_none=True)
    backward(loss)
    return loss.detach()


def run_network(network: Callable[..., Tensor | list[Tensor]], images: Tensor, precision: str) -> Tensor | list[Tensor]:
    """The network's logits, computed in the given precision."""
    dtype = DTYPES[precision]
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        result: Tensor | list[Tensor] = network(images)
    return result

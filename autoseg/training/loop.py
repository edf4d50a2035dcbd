"""The training loop: batches in, records out; whoever wants to know listens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from autoseg.compute.memory import is_out_of_memory, release_memory
from autoseg.training.accumulation import accumulate
from autoseg.training.batches import Batch
from autoseg.training.losses import LossFunction, supervise_deeply
from planners import Training, learning_rate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What happened in one step."""

    step: int
    """0-based."""
    loss: float
    learning_rate: float
    wait_s: float
    """Seconds spent waiting for the batch."""
    duration_s: float
    """Of the whole step, waiting included."""
    skipped: bool = False
    """Loss or gradient was no finite number; weights stayed as they were."""


@dataclass(slots=True, kw_only=True)
class Control:
    """What may change from step to step."""

    micro_batch_size: int
    """Samples that are computed at once; the gradient is that of the whole batch."""
    rate_factor: float = 1.0
    """Of the schedule's learning rate."""
    new_batches: bool = False
    """Set by a listener: the batches to come were drawn by rules that no longer hold, so `train` ends after this step."""


Listener = Callable[[StepRecord], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a training is put together from."""

    network: nn.Module
    step_network: Callable[..., Tensor | list[Tensor]]
    """What training steps call: the network, or its compiled form, which shares its weights."""
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: LossFunction
    training: Training
    device: torch.device
    separable: bool = False
    """The loss of a batch is the mean of its samples' losses."""


class StepOutcome(NamedTuple):
    """What a step did."""

    loss: float
    applied: bool
    """False: loss or gradient was no finite number, so weights stayed as they were."""


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

    Without momentum there is nothing for Nesterov to look ahead along: plain SGD.
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
    listeners: Sequence[Listener],
    relieve: Callable[[int], None],
) -> int:
    """Do ``steps`` with one batch each, and tell every listener after each of them; returns the steps done in all.

    Ends early where a listener asks for new batches. A step that runs out of memory is done again after ``relieve``,
    which is told its number and takes smaller pieces or raises.
    """
    parts.network.train()
    source = iter(batches)
    for step in steps:
        started = time.perf_counter()
        images, labels = next(source)
        waited = time.perf_counter() - started
        rate = learning_rate(parts.training, step) * control.rate_factor
        outcome = None
        while outcome is None:
            outcome = _try_step(parts, images, labels, rate, control.micro_batch_size)
            if outcome is None:
                relieve(step)
        record = StepRecord(
            step=step,
            loss=outcome.loss,
            learning_rate=rate,
            wait_s=waited,
            duration_s=time.perf_counter() - started,
            skipped=not outcome.applied,
        )
        for listen in listeners:
            listen(record)
        if control.new_batches:
            control.new_batches = False
            return step + 1
    return steps[-1] + 1 if steps else 0


def _try_step(parts: Parts, images: Tensor, labels: Tensor, rate: float, size: int) -> StepOutcome | None:
    """A step; None where memory was not enough, with all given back that the attempt took."""
    try:
        return train_step(parts, images, labels, rate, micro_batch_size=size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    parts.optimiser.zero_grad(set_to_none=True)
    _forget_unscaling(parts)
    release_memory(parts.device)
    return None


def _forget_unscaling(parts: Parts) -> None:
    """Let the scaler begin a step anew that ended between `unscale_` and `update`; its scale stays."""
    if parts.scaler.is_enabled():
        parts.scaler.scale(torch.zeros((), device=parts.device))  # before the first one it cannot be updated
        parts.scaler.update(parts.scaler.get_scale())


def train_step(
    parts: Parts, images: Tensor, labels: Tensor, rate: float, *, micro_batch_size: int | None = None
) -> StepOutcome:
    """Forward, backward, clipped update at learning rate ``rate``.

    ``images`` float32 (N, C, patch...), ``labels`` int64 (N, patch...) with internal values. ``micro_batch_size``
    samples are computed at once (none: all), with the gradient of the whole batch. Where loss or gradient is no finite
    number, nothing is updated; in float16 an overflow of the gradient is the scaler's business and no cause for alarm, as
    long as its scale has not shrunk to less than no scale at all.
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
    return StepOutcome(loss=value, applied=finite)


def compute_gradient(parts: Parts, images: Tensor, labels: Tensor, size: int) -> Tensor:
    """Replace the gradients by those of one batch, ``size`` samples at a time; returns the loss, detached."""

    def forward(piece: Tensor) -> list[Tensor]:
        logits = run_network(parts.step_network, piece, parts.training.precision)
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

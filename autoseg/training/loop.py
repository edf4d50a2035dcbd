"""The training loop: batches in, records out; whoever wants to know listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


Listener = Callable[[StepRecord], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a training is put together from."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: LossFunction
    training: Training
    device: torch.device


def make_parts(network: nn.Module, loss: LossFunction, training: Training, device: torch.device) -> Parts:
    """The network on its device with optimiser and gradient scaler (which acts in float16 only)."""
    network = network.to(device)
    if device.type == "cuda":
        in_3d = any(parameter.ndim == 5 for parameter in network.parameters())
        layout = torch.channels_last_3d if in_3d else torch.channels_last
        network = network.to(memory_format=layout)  # type: ignore[call-overload]
    return Parts(
        network=network,
        optimiser=make_optimiser(network, training),
        scaler=torch.amp.GradScaler(device.type, enabled=training.precision == "float16"),
        loss=loss,
        training=training,
        device=device,
    )


def make_optimiser(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Nesterov SGD or AdamW on all parameters, with the schedule's decay (method section 7.1)."""
    if training.optimiser == "adamw":
        return torch.optim.AdamW(
            network.parameters(), lr=training.peak_learning_rate, weight_decay=training.weight_decay
        )
    return torch.optim.SGD(
        network.parameters(),
        lr=training.peak_learning_rate,
        momentum=training.momentum,
        nesterov=True,
        weight_decay=training.weight_decay,
    )


def train(
    parts: Parts, batches: Iterable[Batch], steps: Sequence[int], *, listeners: Sequence[Listener]
) -> None:
    """Do ``steps`` with one batch each, and tell every listener after each of them."""
    parts.network.train()
    source = iter(batches)
    for step in steps:
        started = time.perf_counter()
        images, labels = next(source)
        waited = time.perf_counter() - started
        rate = learning_rate(parts.training, step)
        loss = train_step(parts, images, labels, rate)
        record = StepRecord(
            step=step,
            loss=loss,
            learning_rate=rate,
            wait_s=waited,
            duration_s=time.perf_counter() - started,
        )
        for listen in listeners:
            listen(record)


def train_step(parts: Parts, images: Tensor, labels: Tensor, rate: float) -> float:
    """Forward, backward, clipped update at learning rate ``rate``; returns the loss.

    ``images`` float32 (N, C, patch...), ``labels`` int64 (N, patch...) with internal values.
    """
    for group in parts.optimiser.param_groups:
        group["lr"] = rate
    images = images.to(parts.device, non_blocking=True)
    labels = labels.to(parts.device, non_blocking=True)
    logits = run_network(parts.network, images, parts.training.precision)
    if isinstance(logits, Tensor):
        logits = [logits]
    loss = supervise_deeply(parts.loss, logits, labels)
    parts.optimiser.zero_grad(set_to_none=True)
    parts.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    parts.scaler.unscale_(parts.optimiser)
    nn.utils.clip_grad_norm_(parts.network.parameters(), parts.training.gradient_clip)
    parts.scaler.step(parts.optimiser)
    parts.scaler.update()
    return float(loss.detach())


def run_network(network: nn.Module, images: Tensor, precision: str) -> Tensor | list[Tensor]:
    """The network's logits, computed in the given precision."""
    dtype = DTYPES[precision]
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        result: Tensor | list[Tensor] = network(images)
    return result

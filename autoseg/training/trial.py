"""A trial step before a training starts: how much of the batch fits into memory at once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from autoseg.compute.free_memory import free_memory_bytes
from autoseg.compute.heap import kept_heap
from autoseg.compute.memory import is_out_of_memory, micro_batch_sizes, release_memory
from autoseg.issues import AutosegError
from autoseg.training.loop import Parts, train_step
from planners import Configuration, Plan, Training, estimate_configuration_memory, with_width

logger = logging.getLogger(__name__)
GB = 1e9
TRIAL_STEPS = 2
"""The first one leaves the optimiser's state behind, beside which the second one must fit."""
MakeParts = Callable[[], Parts]
"""Builds the parts of the training anew."""


def find_micro_batch(
    configuration: Configuration,
    training: Training,
    device: torch.device,
    make: MakeParts,
    *,
    most: int | None = None,
) -> int | None:
    """The largest piece of the batch with which a training step fits into memory; None where not even one sample does.

    Steps are tried with parts of their own, which are thrown away. ``most``: no larger pieces.
    """
    sizes = plausible_sizes(configuration, training, device, most=most)
    return next((size for size in sizes if survives_step(configuration, training, device, make, size)), None)


def plausible_sizes(
    configuration: Configuration, training: Training, device: torch.device, *, most: int | None = None
) -> tuple[int, ...]:
    """Pieces of the batch that are worth trying, largest first; ``most``: no larger ones.

    On a CPU those that by the estimate fit into free memory: there a process that takes too much is killed, not told.
    """
    sizes = tuple(size for size in micro_batch_sizes(training.batch_size) if most is None or size <= most)
    if device.type != "cpu":
        return sizes
    free = free_memory_bytes()
    return tuple(size for size in sizes if needed_bytes(configuration, training, size) <= free)


def needed_bytes(configuration: Configuration, training: Training, size: int, *, keeps_freed: bool = False) -> int:
    """Main memory that a training takes on a CPU with pieces of ``size`` samples; see `kept_heap` for ``keeps_freed``."""
    return estimate_configuration_memory(
        configuration,
        dtype=training.precision,
        optimiser=training.optimiser,
        batch_size=size,
        network=with_width(configuration.network, training.base_features),
        keeps_freed=keeps_freed,
    ).training_bytes


def batch_bytes(configuration: Configuration, training: Training) -> int:
    """Memory of the images (float32) and labels (int64) of a batch, however small the pieces are that it is computed in."""
    return training.batch_size * math.prod(configuration.patch_shape) * (4 * configuration.network.num_inputs + 8)


def kept_heap_for(
    configuration: Configuration, training: Training, device: torch.device
) -> AbstractContextManager[None]:
    """`kept_heap`, where memory is enough for a training with whole batches."""
    size = training.batch_size
    return kept_heap(device, lambda: needed_bytes(configuration, training, size, keeps_freed=True))


def survives_step(
    configuration: Configuration, training: Training, device: torch.device, make: MakeParts, size: int
) -> bool:
    """Whether steps of an empty batch in pieces of ``size`` samples end without running out of memory."""
    try:
        parts = make()
        for _ in range(TRIAL_STEPS):
            try_step(configuration, training, device, parts, size)
        fits = True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.debug("%d samples at once do not fit: %s", size, error)
        fits = False
    release_memory(device)  # not before: the error holds on to what the step had taken
    return fits


def try_step(configuration: Configuration, training: Training, device: torch.device, parts: Parts, size: int) -> None:
    """A training step of an empty batch in pieces of ``size`` samples, at learning rate 0."""
    batch, patch = training.batch_size, configuration.patch_shape
    parts.network.train()
    images = torch.zeros((batch, configuration.network.num_inputs, *patch), device=device)
    train_step(
        parts, images, torch.zeros((batch, *patch), dtype=torch.int64, device=device), 0.0, micro_batch_size=size
    )


def refuse_for_memory(
    plan: Plan, configuration: Configuration, training: Training, device: torch.device
) -> AutosegError:
    """The error where not even one sample at a time fits; beside a large batch, which is there as a whole, none may."""
    needed, held = needed_bytes(configuration, training, 1), batch_bytes(configuration, training)
    what, mend = "a single sample", f"plan smaller patches with a --memory-gb below {plan.memory_target_gb:.3g}"
    if held > needed:
        needed += held
        what, mend = (
            f"a batch of {training.batch_size} samples",
            "train with smaller batches, by another --schedule or by none",
        )
    free = f" and does not fit on {device}"
    if device.type == "cpu":
        free_gb = f"{free_memory_bytes() / GB:.1f} GB are free"
        free = (
            f", but {free_gb}" if needed > free_memory_bytes() else f", which could not be had although {free_gb} now"
        )
    return AutosegError(
        f"training {configuration.name} with {training.base_features} features takes about {needed / GB:.1f} GB of memory for "
        f"{what}{free}; close other programs, or {mend}"
    )

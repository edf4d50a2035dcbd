"""What to train, and what it is put together from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from autoseg.networks.build import build_network
from autoseg.networks.transfer import Transfer
from autoseg.training.accumulation import is_mean_over_samples
from autoseg.training.augmentation_parameters import Recipe, make_recipe
from autoseg.training.batches import BatchSource
from autoseg.training.care import minding_scarce, seeking
from autoseg.training.loop import Parts, make_parts
from autoseg.training.losses import make_loss
from autoseg.training.patches import PatchSource
from planners import Configuration, Labels, Plan, Training, with_width

CHECKPOINT_INTERVAL_S = 45.0
"""Seconds between checkpoints. At most a minute of training may be lost; the rest of the minute is for writing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldTask:
    """What to train, from what, where to."""

    plan: Plan
    configuration: Configuration
    training: Training
    fold: int
    seed: int
    training_cases: Sequence[PatchSource]
    validation_cases: Sequence[PatchSource]
    folder: Path
    key: str
    """Hash of everything the result depends on."""
    device: torch.device
    num_workers: int = 0
    """Processes that make batches."""
    most_workers: int = 0
    """So many where the device has to wait for batches."""
    case_ids: Sequence[str] = ()
    """Names of the training cases, for messages."""
    start: Transfer | None = None
    """Weights to begin from; none: drawn from the seed."""
    require_cases: Callable[[], None] = lambda: None
    """Raises `AutosegError` where the cases are no longer those that the task is about; asked before anything is saved."""
    checkpoint_interval_s: float = CHECKPOINT_INTERVAL_S


def make_network(configuration: Configuration, training: Training, *, seed: int | None) -> nn.Module:
    """The configuration's network at the scheduled width."""
    network = with_width(configuration.network, training.base_features)
    return build_network(network, deep_supervision=training.deep_supervision, seed=seed)


def previous_values(configuration: Configuration, labels: Labels) -> tuple[int, ...]:
    """Values of a first stage that are channels of a cascade's input (labels, never regions); none for other networks."""
    return labels.values if configuration.previous_stage is not None else ()


def configuration_recipe(configuration: Configuration, training: Training) -> Recipe:
    """What may be done to samples of a configuration under a schedule."""
    return make_recipe(
        configuration.patch_shape,
        num_channels=len(configuration.normalization),
        mirror_axes=configuration.mirror_axes if training.mirroring else (),
        masked_channels=[i for i, n in enumerate(configuration.normalization) if n.use_mask],
        augment=training.augmentation,
    )


def batch_source(task: FoldTask, *, purpose: str, sought: Sequence[str] = ()) -> BatchSource:
    """The task's batches for ``training`` or ``validation``; in training more of them around classes that are ``sought``.

    For training every case is looked at once, for the classes that few show.
    """
    source = BatchSource(
        cases=task.training_cases if purpose == "training" else task.validation_cases,
        recipe=configuration_recipe(task.configuration, task.training),
        batch_size=task.training.batch_size,
        foreground_share=task.training.foreground_share,
        seed=task.seed,
        configuration=task.configuration.name,
        previous_values=previous_values(task.configuration, task.plan.labels),
        fold=task.fold,
        purpose=purpose,
    )
    return seeking(minding_scarce(source), sought) if purpose == "training" else source


def make_fold_parts(task: FoldTask) -> Parts:
    """The task's network as it begins, with loss and optimiser."""
    network = make_network(task.configuration, task.training, seed=task.seed + task.fold)
    if task.start is not None:
        network.load_state_dict(task.start.weights)
    loss, labels = task.configuration.loss, task.plan.labels
    separable = is_mean_over_samples(loss, labels)
    return make_parts(network, make_loss(loss, labels), task.training, task.device, separable=separable)

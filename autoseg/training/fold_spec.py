"""What to train: the spec of one fold, and the network, loss and batches that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from autoseg.networks.build import build_network
from autoseg.networks.weights import Transfer
from autoseg.training.augmentation import Recipe, make_recipe
from autoseg.training.loop import Parts, make_parts
from autoseg.training.losses import make_loss
from autoseg.training.micro_batches import is_mean_over_samples
from autoseg.training.sampling import BatchSource, PatchSource, with_scarce, with_sought
from planners import Configuration, Labels, Plan, Training, with_width

CHECKPOINT_INTERVAL_S = 45.0
"""Seconds between checkpoints. At most a minute of training may be lost; the rest of the minute is for writing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldSpec:
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
    """Processes that read patches."""
    most_workers: int = 0
    """Processes that may read patches where the device has to wait for batches."""
    case_ids: Sequence[str] = ()
    """Names of the training cases, for messages."""
    start: Transfer | None = None
    """Pretrained weights; none: drawn from the seed."""
    require_cases: Callable[[], None] = lambda: None
    """Raises `AutosegError` if the stored cases were replaced; called before anything is saved."""
    checkpoint_interval_s: float = CHECKPOINT_INTERVAL_S

    @property
    def where(self) -> str:
        """Name of the training in messages, e.g. ``3d_fullres, fold 2``."""
        return f"{self.configuration.name}, fold {self.fold}"

    @property
    def num_epochs(self) -> int:
        return -(-self.training.num_steps // self.training.steps_per_epoch)


def make_network(configuration: Configuration, training: Training, *, seed: int | None) -> nn.Module:
    """The configuration's network at the scheduled width."""
    network = with_width(configuration.network, training.base_features)
    return build_network(network, deep_supervision=training.deep_supervision, seed=seed)


def previous_values(configuration: Configuration, labels: Labels) -> tuple[int, ...]:
    """Values of a first stage that are channels of a cascade's input (labels, never regions); none for other networks."""
    return labels.values if configuration.previous_stage is not None else ()


def configuration_recipe(configuration: Configuration, training: Training) -> Recipe:
    """How samples of a configuration may be augmented under a schedule."""
    return make_recipe(
        configuration.patch_shape,
        num_channels=len(configuration.normalization),
        mirror_axes=configuration.mirror_axes if training.mirroring else (),
        masked_channels=[i for i, n in enumerate(configuration.normalization) if n.use_mask],
        augment=training.augmentation,
    )


def batch_source(spec: FoldSpec, *, purpose: str, sought: Sequence[str] = ()) -> BatchSource:
    """The batches for ``training`` or ``validation``; in training more of them around classes that are ``sought``.

    For training every case is opened once, to find the scarce classes.
    """
    source = BatchSource(
        cases=spec.training_cases if purpose == "training" else spec.validation_cases,
        recipe=configuration_recipe(spec.configuration, spec.training),
        batch_size=spec.training.batch_size,
        foreground_share=spec.training.foreground_share,
        seed=spec.seed,
        configuration=spec.configuration.name,
        previous_values=previous_values(spec.configuration, spec.plan.labels),
        fold=spec.fold,
        purpose=purpose,
    )
    return with_sought(with_scarce(source), sought) if purpose == "training" else source


def make_fold_parts(spec: FoldSpec) -> Parts:
    """The network as training starts, with loss and optimiser."""
    network = make_network(spec.configuration, spec.training, seed=spec.seed + spec.fold)
    if spec.start is not None:
        network.load_state_dict(spec.start.weights)
    loss, labels = spec.configuration.loss, spec.plan.labels
    separable = is_mean_over_samples(loss, labels)
    return make_parts(network, make_loss(loss, labels), spec.training, spec.device, separable=separable)

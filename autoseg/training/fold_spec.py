"""What to train: the spec of one fold, the network, loss and batches that follow from it, and the state while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from autoseg.compute.executor import Background
from autoseg.compute.ranks import Ranks
from autoseg.issues import Issue
from autoseg.networks.build import build_network
from autoseg.networks.weights import Transfer
from autoseg.tracking.callbacks import Callback, EpochRecord, notify
from autoseg.training.augmentation import Recipe, make_recipe
from autoseg.training.loop import Parts, is_mean_over_samples, make_parts
from autoseg.training.losses import make_joint_loss, make_loss
from autoseg.training.sampling import BatchSource, Crop, PackedBatch, PatchSource, with_scarce
from planners import Configuration, Labels, Plan, Revision, Training, learning_rate, planned_position, with_width

CHECKPOINT_INTERVAL_S = 45.0
"""Seconds between checkpoints, longer only where writing them takes long. At most a minute of training may be lost; the rest of the
minute is for writing."""


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
    """At least; 0: after every step, which waits for it."""
    revisions: Sequence[Revision] = ()
    """Of the number of steps, as they are known: each is applied when its step is done."""
    revise: Callable[[int], Revision | None] = lambda done: None
    """Called after each step with the steps done, once all known revisions are applied; may give another one."""

    ranks: Ranks | None = None
    """The place of this process among those that train the model together; none: it trains alone."""

    @property
    def where(self) -> str:
        """Name of the training in messages, e.g. ``3d_fullres, fold 2``."""
        return f"{self.configuration.name}, fold {self.fold}"


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


def batch_source(spec: FoldSpec, *, purpose: str) -> BatchSource:
    """The batches for ``training`` or ``validation``; `with_sought` draws more of them around some classes.

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
    if purpose != "training":
        return source
    if spec.ranks is not None:
        source = replace(source, share=spec.ranks.share(source.batch_size))
    return with_scarce(source)


def make_fold_parts(spec: FoldSpec) -> Parts:
    """The network as training starts, with loss and optimiser."""
    network = make_network(spec.configuration, spec.training, seed=spec.seed + spec.fold)
    if spec.start is not None:
        network.load_state_dict(spec.start.weights)
    loss, labels = spec.configuration.loss, spec.plan.labels
    separable, ranks, joint = is_mean_over_samples(loss, labels), spec.ranks, None
    if ranks is not None:
        joint = make_joint_loss(loss, labels, partial(ranks.gather, batch_size=spec.training.batch_size))
    return make_parts(
        network,
        make_loss(loss, labels),
        spec.training,
        spec.device,
        separable=separable,
        ranks=ranks,
        joint_loss=joint,
    )


@dataclass(slots=True, kw_only=True)
class FoldState:
    """What changes during a training besides weights and optimiser; checkpoints hold all of it."""

    micro_batch_size: int
    """Samples computed at once; smaller than the batch if not all fit into memory."""
    good: dict[str, Tensor]
    """Weights to go back to: of the last epoch that ended well, at first those of the start."""
    rate_factor: float = 1.0
    """Of the schedule's learning rate, halved with every restart."""
    restarts: int = 0
    restarted_at: int = 0
    """Steps done at the last restart."""
    skipped_steps: list[int] = field(default_factory=list)
    """0-based; their loss or gradient was not finite."""
    sought: dict[str, int] = field(default_factory=dict)
    """Classes around which more patches are drawn because they were not learned, with the steps done when that began."""
    issues: list[Issue] = field(default_factory=list)
    history: list[EpochRecord] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Of the steps of the present epoch, as are the next two."""
    waits: list[float] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    moving_average: float | None = None
    """Of the mean pseudo-Dice."""
    best_score: float = -math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights with the best moving average; empty before the first."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """Mean of the weights of the last steps; empty before they begin."""
    averaged: int = 0
    """Steps whose weights are in it."""
    earlier_s: float = 0.0
    """Seconds that earlier calls took; in a checkpoint those of the call that wrote it are among them."""
    ranks: int = 1
    """Processes that trained it together, lately."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBest:
    """The best weights that have a file of their own."""

    best: dict[str, Tensor] = field(default_factory=dict)
    step: int | None = None
    """Of the first checkpoint with them; none: there is no such file."""


@dataclass(slots=True, kw_only=True)
class ValidationReading:
    """Validation patches as they are read, epoch after epoch."""

    crops: Iterator[Sequence[Crop] | PackedBatch]
    recipe: Recipe
    next_step: int


@dataclass(slots=True, kw_only=True)
class FoldRun:
    """The training of one fold under way."""

    spec: FoldSpec
    parts: Parts
    state: FoldState
    listeners: Sequence[Callback] = ()
    num_workers: int = 0
    """Processes that read patches now."""
    steps_done: int = 0
    revisions: tuple[Revision, ...] = ()
    """Those of the spec that were applied, and later ones."""
    started: float = field(default_factory=time.monotonic)
    """By the monotonic clock."""
    new_batches: bool = False
    """Set by a callback: from the next step on, batches must be drawn by other rules, to another end or by more workers."""
    writer: Background = field(default_factory=Background)
    """Writes checkpoints."""
    saved: SavedBest = field(default_factory=SavedBest)
    validation: ValidationReading | None = None
    retried_size: int = 0
    """Size of micro-batches with which a step that ran out of memory was tried again after the device's memory was released."""

    @property
    def micro_batch_size(self) -> int:
        return self.state.micro_batch_size

    @property
    def num_steps(self) -> int:
        """Steps of the training in all, as far as is known now."""
        return self.revisions[-1].num_steps if self.revisions else self.spec.training.num_steps

    @property
    def num_epochs(self) -> int:
        return -(-self.num_steps // self.spec.training.steps_per_epoch)

    def stop_validation(self) -> None:
        """End the processes that read validation patches."""
        if self.validation is not None and isinstance(self.validation.crops, Generator):
            self.validation.crops.close()
        self.validation = None

    def averages(self, step: int) -> bool:
        """Whether the weights after a step are part of the average."""
        training = self.spec.training
        left = training.num_steps - planned_position(training, step, self.revisions)
        return left <= training.averaged_share * training.num_steps

    def reads_after(self, step: int) -> bool:
        """Whether an epoch or the training ends with a step, its weights are averaged, or a known revision follows it."""
        done = step + 1
        known = self.spec.revisions[len(self.revisions) :]
        ends = done % self.spec.training.steps_per_epoch == 0 or done == self.num_steps
        return ends or self.averages(step) or any(revision.step == done for revision in known)

    def learning_rate(self, step: int) -> float:
        """That of the schedule, lower after restarts."""
        return learning_rate(self.spec.training, step, self.revisions) * self.state.rate_factor


def add_issue(run: FoldRun, issue: Issue, *, repeat: bool = False) -> None:
    """Tell the callbacks of an issue and keep it in the fold's record; unless ``repeat``, once for each code and place."""
    if repeat or not any((known.code, known.where) == (issue.code, issue.where) for known in run.state.issues):
        run.state.issues.append(issue)
        notify(run.listeners, "on_issue", issue)


def copy_weights(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights in main memory."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}

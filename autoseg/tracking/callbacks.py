"""Callbacks: who wants to know what a run does implements some of these methods and is handed to it.

Nothing that trains knows them. They are composed, never subclassed, and called in the order in which they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from autoseg.issues import AutosegError, Issue
from autoseg.tracking.history import EpochRecord
from planners import Registry, UnknownPartError


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEvent:
    """A stage of a run begins, or ends."""

    name: str
    """As in `RUN/stages`, e.g. ``fingerprint`` or ``train-3d_fullres-fold_0``."""
    state: Literal["started", "finished", "failed", "up to date"]
    seconds: float = 0.0
    """Since it was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldStart:
    """The training of one fold begins, or is resumed."""

    configuration: str
    fold: int
    key: str
    """Hash of everything the training depends on."""
    steps_done: int
    """By earlier calls."""
    num_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What happened in one training step."""

    step: int
    """0-based."""
    loss: float
    learning_rate: float
    wait_s: float
    """Seconds spent waiting for the batch."""
    duration_s: float
    """Of the whole step, waiting included."""
    skipped: bool = False
    """Loss or gradient was not finite, so the weights were not updated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldEnd:
    """The training of one fold ends."""

    steps_done: int
    error: BaseException | None = None
    """What ended it early; none: it is finished."""


class Callback(Protocol):
    """What a callback may implement; each method does nothing by default."""

    def on_stage(self, stage: StageEvent) -> None:
        """A stage of the run began or ended."""
        return None

    def on_fold_start(self, fold: FoldStart) -> None:
        """The training of a fold begins."""
        return None

    def on_step(self, step: StepRecord) -> None:
        """A training step was done."""
        return None

    def on_epoch(self, epoch: EpochRecord) -> None:
        """An epoch was done, validation patches included."""
        return None

    def on_issue(self, issue: Issue) -> None:
        """A training went wrong in some way that does not end it."""
        return None

    def on_fold_end(self, end: FoldEnd) -> None:
        """The training of a fold ended, also by an error or an interruption."""
        return None


@dataclass(frozen=True, slots=True)
class Callbacks(Callback):
    """Several callbacks as one; more may be appended to ``members`` before it is used."""

    members: list[Callback]

    def on_stage(self, stage: StageEvent) -> None:
        for member in self.members:
            member.on_stage(stage)

    def on_fold_start(self, fold: FoldStart) -> None:
        for member in self.members:
            member.on_fold_start(fold)

    def on_step(self, step: StepRecord) -> None:
        for member in self.members:
            member.on_step(step)

    def on_epoch(self, epoch: EpochRecord) -> None:
        for member in self.members:
            member.on_epoch(epoch)

    def on_issue(self, issue: Issue) -> None:
        for member in self.members:
            member.on_issue(issue)

    def on_fold_end(self, end: FoldEnd) -> None:
        for member in self.members:
            member.on_fold_end(end)


CALLBACKS: Registry[Callable[[Path], Callback]] = Registry(
    group="autoseg.callbacks",
    noun="callback",
    own={"mlflow": "autoseg.tracking.mlflow:MLflow", "tensorboard": "autoseg.tracking.tensorboard:TensorBoard"},
)
"""Callbacks that `--track` names. Each is called with the run folder, into which it may write."""


def make_callbacks(names: Sequence[str], folder: Path) -> tuple[Callback, ...]:
    """The callbacks of these names for the run in ``folder``; raises `AutosegError` for those that cannot be had."""
    made, issues = [], []
    for name in names:
        try:
            made.append(CALLBACKS.get(name)(folder))
        except UnknownPartError:
            known = ", ".join(CALLBACKS.names())
            issues.append(
                Issue(
                    code="callback.unknown",
                    where="--track",
                    message=f"{name} is not installed",
                    fix=f"use one of {known}",
                )
            )
        except ModuleNotFoundError as error:
            message, fix = f"{name} needs the package {error.name}", f"install it: pip install 'autoseg[{name}]'"
            issues.append(Issue(code="callback.package_missing", where="--track", message=message, fix=fix))
    if issues:
        raise AutosegError(*issues)
    return tuple(made)

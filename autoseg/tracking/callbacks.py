"""Callbacks: objects with some of these methods, called while a run works.

Nothing that trains knows them. They are composed, never subclassed, and called in the order in which they are given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import load_document, save_document
from planners import Document, Registry, UnknownPartError

ISSUES_FILE = "issues.json"
HISTORY_FILE = "history.jsonl"
MOMENT_FILE = "progress.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One epoch of a training."""

    epoch: int
    """0-based."""
    step: int
    """Steps done when it ended."""
    loss: float | None
    """Mean over the steps that were not skipped; none if all were."""
    pseudo_dice: Mapping[str, float | None]
    """Of each class, on a few validation patches; none if it neither occurred nor was predicted."""
    moving_average: float | None
    """Of the mean pseudo-Dice."""
    learning_rate: float
    """Of the last step."""
    seconds: float
    """Of the steps, validation patches left out."""
    wait_share: float
    """Share of those seconds spent waiting for patches to be read."""
    validation_loss: float | None = None
    """On the same validation patches, at full resolution only."""
    skipped: int = 0
    """Steps whose loss or gradient was not finite."""

    @property
    def mean_dice(self) -> float | None:
        """Mean pseudo-Dice of the classes that have one."""
        known = [dice for dice in self.pseudo_dice.values() if dice is not None]
        return sum(known) / len(known) if known else None

    def values(self) -> dict[str, float]:
        """All numbers that are known, by name: ``loss``, ``mean_dice``, ``dice/liver`` …"""
        names = (
            "loss",
            "validation_loss",
            "mean_dice",
            "moving_average",
            "learning_rate",
            "seconds",
            "wait_share",
            "skipped",
        )
        numbers = {name: getattr(self, name) for name in names}
        numbers |= {f"dice/{name}": dice for name, dice in self.pseudo_dice.items()}
        return {name: float(number) for name, number in numbers.items() if number is not None}


class FoldIssues(Document):
    """``issues.json`` of a fold."""

    schema_version: Literal[1] = 1
    key: str
    """Hash of what the training was made from."""
    issues: tuple[Issue, ...] = ()
    """In the order in which they arose."""


def history_text(history: Sequence[EpochRecord]) -> str:
    """JSON lines, one per epoch."""
    return "".join(json.dumps(asdict(record)) + "\n" for record in history)


def read_history(path: Path) -> tuple[list[EpochRecord], Issue | None]:
    """All epochs; none if the file is missing.

    Of a damaged file the epochs before the first line that cannot be read, and an issue.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    records: list[EpochRecord] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(EpochRecord(**json.loads(line)))
        except (ValueError, TypeError):
            message = f"damaged from line {number} on; the history ends there"
            return records, Issue(code="history.damaged", severity="warning", where=str(path), message=message)
    return records, None


class Moment(Document):
    """``progress.json`` of a fold: how far its training is now."""

    schema_version: Literal[1] = 1
    key: str
    """Hash of what the training is made from."""
    step: int
    num_steps: int
    step_s: float | None = None
    """Seconds of a step lately."""


def save_issues(folder: Path, issues: Sequence[Issue], *, key: str) -> None:
    """Write ``issues.json`` of a fold."""
    save_document(folder / ISSUES_FILE, FoldIssues(key=key, issues=tuple(issues)))


def read_issues(folder: Path) -> tuple[Issue, ...]:
    """The issues of a fold; none if it has no ``issues.json``, and one that says so if that is damaged."""
    if not (folder / ISSUES_FILE).exists():
        return ()
    try:
        return load_document(FoldIssues, folder / ISSUES_FILE).issues
    except AutosegError as error:
        return error.issues


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
    earlier_s: float = 0.0
    """Seconds that earlier calls took, up to the checkpoint that is resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What happened in one training step."""

    step: int
    """0-based."""
    loss: float
    learning_rate: float
    wait_s: float
    """Seconds spent waiting for patches to be read, not for their augmentation."""
    duration_s: float
    """Of the whole step, waiting included."""
    skipped: bool = False
    """Loss or gradient was not finite, so the weights were not updated."""
    lag: int = 0
    """Steps that were done before this one's result was read: the weights are those after them."""


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


def notify(callbacks: Sequence[Callback], method: str, value: object) -> None:
    """Call a method such as ``on_step`` of all callbacks, in order."""
    for callback in callbacks:
        getattr(callback, method)(value)


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
            message, fix = f"{name} is not installed", f"use one of {', '.join(CALLBACKS.names())}"
            issues.append(Issue(code="callback.unknown", where="--track", message=message, fix=fix))
        except ModuleNotFoundError as error:
            message, fix = f"{name} needs the package {error.name}", f"install it: pip install 'autoseg[{name}]'"
            issues.append(Issue(code="callback.package_missing", where="--track", message=message, fix=fix))
    if issues:
        raise AutosegError(*issues)
    return tuple(made)

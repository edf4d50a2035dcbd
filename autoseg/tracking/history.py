"""What a training leaves for people to read: a line of ``history.jsonl`` per epoch, and the issues in ``issues.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import load_document, save_document
from planners import Document

ISSUES_FILE = "issues.json"
HISTORY_FILE = "history.jsonl"


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
    """Share of those seconds spent waiting for batches."""
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
        numbers = {
            "loss": self.loss,
            "validation_loss": self.validation_loss,
            "mean_dice": self.mean_dice,
            "moving_average": self.moving_average,
            "learning_rate": self.learning_rate,
            "seconds": self.seconds,
            "wait_share": self.wait_share,
            "skipped": self.skipped,
            **{f"dice/{name}": dice for name, dice in self.pseudo_dice.items()},
        }
        return {name: float(number) for name, number in numbers.items() if number is not None}


class FoldIssues(Document):
    """``issues.json`` of a fold."""

    schema_version: Literal[1] = 1
    key: str
    """Hash of what the training was made from."""
    issues: tuple[Issue, ...] = ()
    """In the order in which they came up."""


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

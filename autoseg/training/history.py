"""What an epoch brought: one line of ``history.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One epoch of a training."""

    epoch: int
    """0-based."""
    step: int
    """Steps done when it ended."""
    loss: float | None
    """Mean over the steps that were not skipped; none where all were."""
    pseudo_dice: Mapping[str, float | None]
    """Of each class, on a few validation patches; none where it neither occurred nor was predicted."""
    moving_average: float | None
    """Of the mean pseudo-Dice."""
    learning_rate: float
    """Of the last step."""
    seconds: float
    """Of the steps, validation patches left out."""
    wait_share: float
    """Of those seconds, waited for batches."""
    validation_loss: float | None = None
    """On the same validation patches, at full resolution only."""
    skipped: int = 0
    """Steps whose loss or gradient was no finite number."""

    @property
    def mean_dice(self) -> float | None:
        """Mean pseudo-Dice of the classes that have one."""
        known = [dice for dice in self.pseudo_dice.values() if dice is not None]
        return sum(known) / len(known) if known else None


def history_text(history: Sequence[EpochRecord]) -> str:
    """JSON lines, one an epoch."""
    return "".join(json.dumps(asdict(record)) + "\n" for record in history)


def read_history(path: Path) -> tuple[list[EpochRecord], str | None]:
    """All epochs; nothing where the file is missing.

    Of a damaged file the epochs before the first line that cannot be read, and a sentence that says so.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    records: list[EpochRecord] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(EpochRecord(**json.loads(line)))
        except (ValueError, TypeError):
            return records, f"{path} is damaged from line {number} on; its history ends there"
    return records, None

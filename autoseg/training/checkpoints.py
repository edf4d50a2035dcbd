"""Saving and loading the state of a training; loading never runs code from the file."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoseg.compute.memory import is_out_of_memory
from autoseg.issues import AutosegError
from autoseg.storage.atomic import atomic_write

PREVIOUS = "previous.pt"
"""Name of the checkpoint before the last one."""
DAMAGE = (RuntimeError, TypeError, KeyError, EOFError, ValueError, zipfile.BadZipFile, OSError)
"""What torch raises for files that are damaged or are no checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a training needs to go on; the batches follow from the step."""

    key: str
    """Hash of what the training was made from; a checkpoint with another key is of another training."""
    step: int
    """Steps done."""
    network: dict[str, Tensor]
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    best: dict[str, Tensor]
    """Weights with the best moving average of the pseudo-Dice; empty before the first."""
    best_score: float
    moving_average: float | None
    epoch_losses: list[float]
    """Losses of the epoch that is not finished yet."""
    good: dict[str, Tensor]
    """Weights that a restart goes back to."""
    learning: dict[str, Any]
    """The fold's `Learning` in plain values."""
    epoch_waits: list[float] = field(default_factory=list)
    """Seconds that each step of that epoch waited for its batch; older checkpoints do not know them."""
    epoch_durations: list[float] = field(default_factory=list)
    """Seconds that each of them took in all."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Epochs until then, each an `EpochRecord` in plain values: files that people read may be another training's by now."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically; the one before stays as ``previous.pt`` beside it."""
    if path.exists():
        os.replace(path, path.with_name(PREVIOUS))
    content = {name: getattr(checkpoint, name) for name in Checkpoint.__slots__}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_latest(path: Path, *, key: str) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """The newest readable checkpoint of the training with ``key``, and a line for each that cannot be used.

    ``path`` is that of the last one; the one before is tried where it is missing, damaged or another training's.
    """
    damage = []
    for candidate in (path, path.with_name(PREVIOUS)):
        try:
            checkpoint = load_checkpoint(candidate, key=key)
        except AutosegError as error:
            damage.append(str(error).replace("; delete it to train this fold again", ""))
            continue
        if checkpoint is not None:
            return checkpoint, tuple(damage)
        if candidate == path and path.exists():
            damage.append(f"{path} is of another training (its plan, data, folds, schedule or seed differ)")
    return None, tuple(damage)


def load_checkpoint(path: Path, *, key: str) -> Checkpoint | None:
    """The checkpoint of the training with ``key``; None where there is none, or it is another training's.

    Raises `AutosegError` for a file that is damaged or is no checkpoint; where memory is not enough, torch's own error.
    Nothing in it is executed.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**content)
    except Exception as error:  # torch raises pickle's own error for anything that is not plain data
        if is_out_of_memory(error):
            raise  # nothing is wrong with the file, and what was trained must not be begun anew
        cause = "holds more than weights and numbers and was not opened"
        if isinstance(error, DAMAGE):
            cause = f"is damaged or is no checkpoint ({type(error).__name__})"
        raise AutosegError(f"{path} {cause}; delete it to train this fold again") from error
    return checkpoint if checkpoint.key == key else None

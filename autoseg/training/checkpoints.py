"""Saving and loading the state of a training; loading never runs code from the file."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoseg.errors import AutosegError
from autoseg.run_folder import atomic_write


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


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically."""
    content = {name: getattr(checkpoint, name) for name in Checkpoint.__slots__}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path: Path, *, key: str) -> Checkpoint | None:
    """The checkpoint of the training with ``key``; None where there is none, or it is another training's.

    Raises `AutosegError` for a file that is damaged or is no checkpoint. Nothing in it is executed.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**content)
    except (RuntimeError, TypeError, KeyError, EOFError, ValueError, zipfile.BadZipFile, OSError) as error:
        raise AutosegError(
            f"{path} is damaged or is no checkpoint ({type(error).__name__}); delete it to train this fold again"
        ) from error
    except Exception as error:  # torch raises pickle's own error for anything that is not plain data
        raise AutosegError(
            f"{path} holds more than weights and numbers and was not opened; delete it to train this fold again"
        ) from error
    return checkpoint if checkpoint.key == key else None

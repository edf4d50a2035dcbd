"""Saving and loading weights and the state of a training; loading never runs code from the file."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

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


def save_weights(path: Path, weights: dict[str, Tensor], *, key: str) -> None:
    """Write weights as safetensors, atomically; ``key`` says what they were trained from."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with atomic_write(path) as file:
        file.write(save(contiguous, metadata={"key": key}))


def load_weights(path: Path, network: nn.Module) -> None:
    """Fill ``network`` with the weights of a safetensors file.

    Raises `AutosegError` where the file is missing, damaged, or made for another network.
    """
    try:
        weights = load_file(path)
    except FileNotFoundError as error:
        raise AutosegError(f"{path} is missing; the fold was not trained to its end: run it again") from error
    except (SafetensorError, OSError) as error:
        raise AutosegError(f"{path} holds no readable weights ({error}); train the fold again, or restore it") from error
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise AutosegError(
            f"{path} was made for another network: {len(wrong)} tensors differ, the first is {wrong[0]!r} "
            f"(plan {expected.get(wrong[0])}, file {found.get(wrong[0])}); use the plan it was trained with"
        )
    network.load_state_dict(weights)

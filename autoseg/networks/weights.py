"""Weights on disk as safetensors: plain numbers, never code."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from autoseg.errors import AutosegError
from autoseg.run_folder import atomic_write


def save_weights(path: Path, weights: dict[str, Tensor], *, key: str) -> None:
    """Write weights atomically; ``key`` says what they were trained from."""
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

"""Weights on disk as safetensors: plain numbers, never code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from autoseg.issues import AutosegError
from autoseg.storage.atomic import atomic_write

UNREADABLE = (SafetensorError, OSError, RuntimeError)
"""What reading a file of weights raises; torch's own where another process puts a new file in its place meanwhile, since
safetensors opens it first and torch then opens it again."""


def save_weights(path: Path, weights: Mapping[str, Tensor], *, key: str) -> None:
    """Write weights atomically; ``key`` says what they were trained from."""
    with atomic_write(path) as file:
        file.write(pack_weights(weights, key=key))


def pack_weights(weights: Mapping[str, Tensor], *, key: str) -> bytes:
    """The content of a safetensors file with these weights."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    return save(contiguous, metadata={"key": key})


def unpack_weights(content: bytes, *, where: str) -> dict[str, Tensor]:
    """The weights in the content of a safetensors file, which ``where`` names. Raises `AutosegError` for anything else."""
    try:
        return load(content)
    except SafetensorError as error:
        raise AutosegError(
            f"{where} holds no readable weights ({error}); fetch the file again, or make it anew"
        ) from error


def read_weights(path: Path, *, key: str | None = None) -> dict[str, Tensor]:
    """The weights in a safetensors file.

    Raises `AutosegError` where it is missing, damaged, or trained from something else than ``key`` stands for.
    """
    try:
        content = path.read_bytes()  # once: another process may put other weights there at any moment
        weights = load(content)
    except FileNotFoundError as error:
        raise AutosegError(f"{path} is missing; the fold was not trained to its end: run it again") from error
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if key not in (None, _key_within(content)):
        raise AutosegError(f"{path} was trained anew with other options by another process meanwhile; repeat the call")
    return weights


def _key_within(content: bytes) -> str:
    """What the weights in the content of a readable safetensors file were trained from: its header is JSON after 8 bytes."""
    end = 8 + int.from_bytes(content[:8], "little")
    return str(json.loads(content[8:end]).get("__metadata__", {}).get("key", ""))


def read_key(path: Path) -> str:
    """What the weights in a safetensors file were trained from; raises `AutosegError` as `read_weights` does."""
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("key", ""))
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> AutosegError:
    """What to say of damaged weights."""
    return AutosegError(f"{path} holds no readable weights ({error}); train the fold again, or restore it")


def load_weights(path: Path, network: nn.Module, *, key: str | None = None) -> None:
    """Fill ``network`` with the weights of a safetensors file, which were trained from what ``key`` stands for.

    Raises `AutosegError` where the file is missing, damaged, made for another network, or of another ``key``.
    """
    fill_network(network, read_weights(path, key=key), where=str(path))


def fill_network(network: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Give ``network`` weights that ``where`` holds. Raises `AutosegError` where they were made for another network."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise AutosegError(
            f"{where} was made for another network: {len(wrong)} tensors differ, the first is {wrong[0]!r} "
            f"(plan {expected.get(wrong[0])}, file {found.get(wrong[0])}); use the plan it was trained with"
        )
    network.load_state_dict(weights)

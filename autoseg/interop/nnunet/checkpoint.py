"""Checkpoints of the reference, read without running code (method section 7.7)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from autoseg.issues import AutosegError

NUMBER_KINDS = re.compile(r"[iuf][1248]|b1")
"""What numpy calls numbers; its other types may hold objects."""
FORBIDDEN = re.compile(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)")
"""How torch names what a file asked for."""
REASON = re.compile(r"(?:WeightsUnpickler error: )([^\n]+)")
"""Where torch says what is wrong; the rest of its message advises to run what is in the file."""
SETS_OF_AXES = [kept for count in range(4) for kept in combinations((0, 1, 2), count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceCheckpoint:
    """What prediction needs of a checkpoint."""

    weights: Mapping[str, Tensor]
    """By the reference's names; mapped from the file, read where they are touched."""
    configuration: str
    trainer: str
    epochs: int
    """Finished ones."""
    mirror_axes: tuple[int, ...]
    """Axes of the patch; none: training mirrored nothing."""


class _NumberKind:
    """Stands in for numpy's description of a number, so that reading a file calls nothing of numpy that the file chose."""

    def __init__(self, code: object, *_: object) -> None:
        if not (isinstance(code, str) and NUMBER_KINDS.fullmatch(code)):
            raise ValueError(f"a number of kind {code!r}")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.code = f">{self.code}"


def _number(kind: _NumberKind, content: bytes) -> float:
    """Stands in for numpy's way to make a number."""
    return float(np.frombuffer(content, kind.code)[0])


STAND_INS: list[Any] = [
    (_NumberKind, "numpy.dtype"),
    (_number, "numpy._core.multiarray.scalar"),
    (_number, "numpy.core.multiarray.scalar"),
]
"""Histories hold numpy's numbers: what a checkpoint may ask for besides what torch knows to be safe."""


def read_reference_checkpoint(path: Path) -> ReferenceCheckpoint:
    """The checkpoint in ``path``. Nothing in the file is run.

    Raises `AutosegError` for a file that is damaged, asks for code, or is no checkpoint of the reference.
    """
    content = _load(path)
    faults = _faults(content)
    if faults:
        raise AutosegError(
            f"{path} is no checkpoint of nnU-Net v2: {'; '.join(faults)}; give the folder of a trained model"
        )
    axes = content.get("inference_allowed_mirroring_axes")
    return ReferenceCheckpoint(
        weights=content["network_weights"],
        configuration=content["init_args"]["configuration"],
        trainer=content["trainer_name"],
        epochs=int(content["current_epoch"]),
        mirror_axes=tuple(axes or ()),
    )


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle may fail in any way
        asked, reason = FORBIDDEN.search(str(error)), REASON.search(str(error))
        if asked is not None:
            raise AutosegError(
                f"{path} asks for {asked[1]}, which no checkpoint of nnU-Net needs; reading it would run code: it was "
                "not read. Do not use this file"
            ) from error
        shown = reason[1] if reason is not None else (str(error).splitlines() or [repr(error)])[0]
        raise AutosegError(f"{path} could not be read ({shown}); fetch it again") from error


def _faults(content: Any) -> list[str]:
    if not isinstance(content, dict):
        return [f"it holds a {type(content).__name__}"]
    weights, arguments = content.get("network_weights"), content.get("init_args")
    faults = []
    if not _is_state(weights):
        faults.append("network_weights are no tensors by name")
    elif odd := [
        name for name, tensor in weights.items() if not _is_plain(tensor)
    ]:  # before anything is computed of them
        faults.append(f"{len(odd)} tensors are not stored as plain real numbers, the first is {odd[0]}")
    elif broken := [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]:
        faults.append(f"{len(broken)} tensors hold NaN or infinity, the first is {broken[0]}")
    if not isinstance(arguments, dict) or not isinstance(arguments.get("configuration"), str):
        faults.append("init_args name no configuration")
    if not isinstance(content.get("trainer_name"), str):
        faults.append("trainer_name is missing")
    if not _is_count(content.get("current_epoch")):
        faults.append(f"current_epoch is {content.get('current_epoch', 'missing')!r}")
    axes = content.get("inference_allowed_mirroring_axes")
    if axes is not None and not _are_axes(axes):
        faults.append(f"inference_allowed_mirroring_axes are {axes!r}")
    return faults


def _is_state(weights: Any) -> TypeGuard[dict[str, Tensor]]:
    return (
        isinstance(weights, dict)
        and bool(weights)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items())
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds a real number for each of its places, and its file the bytes of them all."""
    return (
        tensor.layout == torch.strided
        and not tensor.is_quantized
        and tensor.is_floating_point()
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _is_count(value: Any) -> TypeGuard[float]:
    """Numpy's numbers are read as floats."""
    return type(value) in (int, float) and value >= 0 and float(value).is_integer()


def _are_axes(axes: Any) -> bool:
    """Whether these are axes of a patch, each once and in order."""
    return isinstance(axes, tuple | list) and any(list(axes) == list(kept) for kept in SETS_OF_AXES)

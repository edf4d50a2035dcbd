"""Checkpoints of nnU-Net: read without running code (method section 7.7), and translated to our networks (section 5.5).

nnU-Net registers some tensors several times: the parts of a convolution block also in a list, ``all_modules``, and the
encoder also inside the decoder. Shapes and orders of axes are the same on both sides; only names differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoseg.issues import AutosegError, Issue
from autoseg.networks.build import build_network
from planners import Network

NUMBER_KINDS = re.compile(r"[iuf][1248]|b1")
"""What numpy calls numbers; its other types may hold objects."""
FORBIDDEN = re.compile(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)")
"""Torch's message for the code that a file asks for."""
REASON = re.compile(r"(?:WeightsUnpickler error: )([^\n]+)")
"""Torch's message for what is wrong; the rest of it recommends running the file's code."""
SETS_OF_AXES = [list(kept) for count in range(4) for kept in combinations((0, 1, 2), count)]

FAMILIES = ("unet", "residual_unet")
PARTS = {"conv": 0, "norm": 1}
"""Index of a convolution block's parts in its list."""
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
"""Prefixes of parallel training and compilation."""
CONVOLUTION = ("weight", "bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceCheckpoint:
    """The parts of a checkpoint that prediction needs."""

    weights: Mapping[str, Tensor]
    """By nnU-Net's names; memory-mapped."""
    configuration: str
    trainer: str
    epochs: int
    """Finished ones."""
    mirror_axes: tuple[int, ...]
    """Axes of the patch; none: training mirrored nothing."""


class _NumberKind:
    """Replaces numpy's description of a number, so that reading a file calls no numpy function that the file chose."""

    def __init__(self, code: object, *_: object) -> None:
        if not (isinstance(code, str) and NUMBER_KINDS.fullmatch(code)):
            raise ValueError(f"a number of kind {code!r}")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.code = f">{self.code}"


def _number(kind: _NumberKind, content: bytes) -> float:
    """Replaces numpy's constructor of numbers."""
    return float(np.frombuffer(content, kind.code)[0])


STAND_INS: list[Any] = [
    (_NumberKind, "numpy.dtype"),
    (_number, "numpy._core.multiarray.scalar"),
    (_number, "numpy.core.multiarray.scalar"),
]
"""Histories contain numpy numbers: what a checkpoint may ask for besides what torch considers safe."""


def read_reference_checkpoint(path: Path) -> ReferenceCheckpoint:
    """The checkpoint in ``path``. No code in the file is run.

    Raises `AutosegError` for a file that is damaged, asks for code, or is not a checkpoint of nnU-Net.
    """
    content = _load(path)
    faults = _faults(content)
    if faults:
        fix = "pass the folder of a trained nnU-Net v2 model"
        raise AutosegError(
            *[Issue(code="checkpoint.not_nnunet", where=str(path), message=fault, fix=fix) for fault in faults]
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
            message = f"asks for {asked[1]}, which no nnU-Net checkpoint needs: loading it would run code"
            fix = "do not use this file"
            raise AutosegError(Issue(code="checkpoint.runs_code", where=str(path), message=message, fix=fix)) from error
        shown = reason[1] if reason is not None else (str(error).splitlines() or [repr(error)])[0]
        message, fix = f"could not be read ({shown})", "copy or download it again"
        raise AutosegError(Issue(code="checkpoint.damaged", where=str(path), message=message, fix=fix)) from error


def _faults(content: Any) -> list[str]:
    if not isinstance(content, dict):
        return [f"it contains a {type(content).__name__}"]
    weights, arguments = content.get("network_weights"), content.get("init_args")
    faults = []
    if not (
        isinstance(weights, dict)
        and weights
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items())
    ):
        faults.append("network_weights is not a dict of tensors")
    elif odd := [name for name, tensor in weights.items() if not _is_plain(tensor)]:  # before they are computed with
        faults.append(f"{len(odd)} tensors are not plain real numbers, the first is {odd[0]}")
    elif broken := [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]:
        faults.append(f"{len(broken)} tensors contain NaN or infinity, the first is {broken[0]}")
    if not isinstance(arguments, dict) or not isinstance(arguments.get("configuration"), str):
        faults.append("init_args has no configuration")
    if not isinstance(content.get("trainer_name"), str):
        faults.append("trainer_name is missing")
    epochs = content.get("current_epoch", "missing")
    if type(epochs) not in (int, float) or epochs < 0 or not float(epochs).is_integer():  # numpy's are read as floats
        faults.append(f"current_epoch is {epochs!r}")
    axes = content.get("inference_allowed_mirroring_axes")
    if axes is not None and not (isinstance(axes, tuple | list) and list(axes) in SETS_OF_AXES):
        faults.append(f"inference_allowed_mirroring_axes is {axes!r}")
    return faults


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor stores a real number for each element, and its file has the bytes of all of them."""
    return (
        tensor.layout == torch.strided
        and not tensor.is_quantized
        and tensor.is_floating_point()
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def reference_names(network: Network) -> dict[str, tuple[str, ...]]:
    """For each of our parameters its names in a state dict of nnU-Net, the canonical one first.

    Raises `ValueError` for a topology that nnU-Net does not have (V-Net).
    """
    if network.family not in FAMILIES:
        raise ValueError(f"nnU-Net has no {network.family}")
    encoder = {ours: (*theirs, *(f"decoder.{name}" for name in theirs)) for ours, theirs in _encoder(network)}
    return encoder | dict(_decoder(network))


def translate_weights(weights: Mapping[str, Tensor], network: Network) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict of nnU-Net by our names, and what does not fit ``network``: one line for each kind of fault.

    Prefixes of parallel training and compilation are removed. Every canonical tensor must exist with its shape, aliases
    must have the same numbers if they exist, and nothing may be left over. If there are faults, the weights are
    incomplete.
    """
    found = {WRAPPERS.sub("", name): tensor for name, tensor in weights.items()}
    names = reference_names(network)
    with torch.device("meta"):
        module = build_network(network, seed=None)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    known = {name for aliases in names.values() for name in aliases}
    missing = [first for first, *_ in names.values() if first not in found]
    odd = [
        f"{first} {tuple(found[first].shape)} instead of {shapes[ours]}"
        for ours, (first, *_) in names.items()
        if first in found and tuple(found[first].shape) != shapes[ours]
    ]
    different = [
        f"{alias} and {first}"
        for first, *aliases in names.values()
        for alias in aliases
        if first in found and alias in found and not torch.equal(found[alias], found[first])
    ]
    faults = {
        "missing tensors": missing,
        "unknown tensors": [name for name in found if name not in known],
        "tensors of another shape": odd,
        "pairs of names of one tensor with different numbers": different,
    }
    problems = [f"{what}: {len(them)}, the first is {them[0]}" for what, them in faults.items() if them]
    return {ours: found[first] for ours, (first, *_) in names.items() if first in found}, problems


Names = tuple[str, tuple[str, ...]]


def _encoder(network: Network) -> Iterator[Names]:
    residual = network.family == "residual_unet"
    if residual:
        yield from _block("stem", "encoder.stem.convs.0")
    inputs = network.features[0] if residual else network.num_inputs
    for i, (features, count) in enumerate(zip(network.features, network.blocks, strict=True)):
        for j in range(count):
            ours = f"encoder.{i}.{j}"
            if not residual:
                yield from _block(ours, f"encoder.stages.{i}.0.convs.{j}")
                continue
            theirs = f"encoder.stages.{i}.blocks.{j}"
            for part in ("conv1", "conv2"):
                yield from _block(f"{ours}.{part}", f"{theirs}.{part}")
            if j == 0 and inputs != features:
                place = 1 if max(network.strides[i]) > 1 else 0  # a pooling comes before
                yield from _block(f"{ours}.project", f"{theirs}.skip.{place}", is_projection=True)
        inputs = features


def _decoder(network: Network) -> Iterator[Names]:
    """nnU-Net counts the decoder from the lowest resolution, we from the highest."""
    for i, count in enumerate(network.decoder_blocks):
        j = len(network.decoder_blocks) - 1 - i
        for ours, theirs in ((f"upsample.{i}", f"decoder.transpconvs.{j}"), (f"heads.{i}", f"decoder.seg_layers.{j}")):
            yield from ((f"{ours}.{end}", (f"{theirs}.{end}",)) for end in CONVOLUTION)
        for k in range(count):
            yield from _block(f"decoder.{i}.{k}", f"decoder.stages.{j}.convs.{k}")


def _block(ours: str, theirs: str, *, is_projection: bool = False) -> Iterator[Names]:
    """A convolution and its norm. The skip path's projection has no bias, and is a sequence in our networks."""
    for (part, number), end in product(PARTS.items(), CONVOLUTION):
        if not (is_projection and (part, end) == ("conv", "bias")):
            own = number if is_projection else part
            yield f"{ours}.{own}.{end}", (f"{theirs}.{part}.{end}", f"{theirs}.all_modules.{number}.{end}")

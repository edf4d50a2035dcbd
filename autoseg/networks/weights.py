"""Weights: on disk as safetensors, which are plain numbers and never code, and transferred to other inputs and outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from autoseg.issues import AutosegError, Issue
from autoseg.networks.build import build_network
from autoseg.storage.atomic import atomic_write
from planners import Network

BACKGROUND = "background"
UNREADABLE = (SafetensorError, OSError, RuntimeError)
"""What reading a file of weights raises; torch's own if another process replaces the file meanwhile, since safetensors opens it
first and torch then opens it again."""


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
        raise unreadable(where, error, fix="copy the file again, or recreate it") from error


def read_weights(path: Path, *, key: str | None = None) -> dict[str, Tensor]:
    """The weights in a safetensors file.

    Raises `AutosegError` where it is missing, damaged, or trained from something else than ``key`` stands for.
    """
    try:
        content = path.read_bytes()  # once: another process may replace it at any moment
        weights = load(content)
    except FileNotFoundError as error:
        fix = "finish training the fold"
        raise AutosegError(Issue(code="weights.missing", where=str(path), message="does not exist", fix=fix)) from error
    except UNREADABLE as error:
        raise unreadable(str(path), error) from error
    if key not in (None, key_within(content)):
        message = "another process has trained it with other options in the meantime"
        raise AutosegError(
            Issue(code="weights.replaced", where=str(path), message=message, fix="run the same command again")
        )
    return weights


def key_within(content: bytes) -> str:
    """What the weights in the content of a readable safetensors file were trained from: its header is JSON after 8 bytes."""
    end = 8 + int.from_bytes(content[:8], "little")
    return str(json.loads(content[8:end]).get("__metadata__", {}).get("key", ""))


def read_key(path: Path) -> str:
    """What the weights in a safetensors file were trained from; raises `AutosegError` as `read_weights` does."""
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("key", ""))
    except UNREADABLE as error:
        raise unreadable(str(path), error) from error


def unreadable(where: str, error: Exception, *, fix: str = "train the fold again, or restore the file") -> AutosegError:
    """The error for damaged weights."""
    return AutosegError(Issue(code="weights.damaged", where=where, message=f"no readable weights ({error})", fix=fix))


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
        message = (
            f"made for another network: {len(wrong)} tensors differ, the first is {wrong[0]!r} "
            f"(plan {expected.get(wrong[0])}, file {found.get(wrong[0])})"
        )
        fix = "use the plan it was trained with"
        raise AutosegError(Issue(code="weights.other_network", where=where, message=message, fix=fix))
    network.load_state_dict(weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What goes into a network and comes out of it, by names that differ from each other (`input_names`, `output_names`)."""

    inputs: Sequence[str]
    outputs: Sequence[str]
    """Begins with `BACKGROUND` where classes exclude each other; else they are regions, each with a sigmoid."""

    @property
    def has_regions(self) -> bool:
        return BACKGROUND not in self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Weights that fit, and what was done to make them fit."""

    weights: dict[str, Tensor]
    notes: tuple[str, ...]
    """Sentences for the user."""


def tensors_that_follow(network: Network, field: str) -> tuple[str, ...]:
    """Names of the tensors whose shape depends on the number of inputs (``num_inputs``) or outputs (``num_outputs``)."""
    more = network.model_copy(update={field: getattr(network, field) + 1})
    with torch.device("meta"):
        before, after = (build_network(each, deep_supervision=True, seed=None).state_dict() for each in (network, more))
    return tuple(name for name, tensor in before.items() if tensor.shape != after[name].shape)


def transfer_weights(
    weights: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    *,
    network: Network,
    before: Interface,
    after: Interface,
    where: str,
) -> Transfer:
    """``weights`` of a network with interface ``before`` for one with ``after``, whose random start is ``fresh``.

    An input of a known name gets its own filters, another one the mean of all filters. An output of a known name gets its own
    layer, another one stays fresh, as all do between regions and classes. All
    else must have equal shapes: `AutosegError` names every tensor (of ``where``) that does not.
    """
    (first,) = tensors_that_follow(network, "num_inputs")
    heads = tensors_that_follow(network, "num_outputs")
    issues = _misfits(weights, fresh, first=first, heads=heads, where=where)
    if issues:
        raise AutosegError(*issues, headline=f"the weights of {where} do not fit this plan")
    result = {name: weights[name].clone() for name in fresh}
    filters = dict(zip(before.inputs, weights[first].unbind(dim=1), strict=True))
    mean = weights[first].mean(dim=1)
    result[first] = torch.stack([filters.get(name, mean) for name in after.inputs], dim=1)
    for name in heads:
        result[name] = fresh[name].clone()
        for output in _known_outputs(before, after):
            result[name][after.outputs.index(output)] = weights[name][before.outputs.index(output)]
    return Transfer(weights=result, notes=describe_transfer(before, after))


def describe_transfer(before: Interface, after: Interface) -> tuple[str, ...]:
    """What `transfer_weights` does with inputs and with outputs, a sentence each."""
    known = ", ".join(name for name in after.inputs if name in before.inputs)
    new = ", ".join(name for name in after.inputs if name not in before.inputs)
    inputs = [f"{known} keep their filters"] * bool(known)
    inputs += [f"{new} start with the mean of those of {', '.join(before.inputs)}"] * bool(new)
    if before.has_regions != after.has_regions:
        kinds = ("regions", "mutually exclusive classes")
        there, here = kinds if before.has_regions else kinds[::-1]
        outputs = [f"all start from scratch, since they were {there} and are now {here}"]
    else:
        known = ", ".join(_known_outputs(before, after))
        new = ", ".join(name for name in after.outputs if name not in before.outputs)
        outputs = [f"{known} keep their layers"] * bool(known) + [f"{new} start from scratch"] * bool(new)
    return f"inputs: {', '.join(inputs)}", f"outputs: {', '.join(outputs)}"


def _known_outputs(before: Interface, after: Interface) -> list[str]:
    """Outputs that keep their layers."""
    return [] if before.has_regions != after.has_regions else [name for name in after.outputs if name in before.outputs]


def _misfits(
    weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor], *, first: str, heads: Sequence[str], where: str
) -> list[Issue]:
    fix = "use the plan that comes with --pretrained, or another model"
    issues = []
    for name in [*fresh, *(name for name in weights if name not in fresh)]:
        sizes = [tuple(each[name].shape) if name in each else None for each in (weights, fresh)]
        if name == first:
            sizes = [size and (size[0], *size[2:]) for size in sizes]
        elif name in heads:
            sizes = [size and size[1:] for size in sizes]
        if sizes[0] != sizes[1]:
            message = f"{name} is {sizes[0]}, but the plan needs {sizes[1]}"
            issues.append(Issue(code="pretrained.tensor_differs", where=where, message=message, fix=fix))
    return issues

"""Weights of one network for another of the same topology: other inputs, other outputs, each fitted by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoseg.issues import UNNAMED, AutosegError, Issue
from planners import Network

BACKGROUND = "background"


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
    """Sentences for a person."""


def input_convolution(network: Network) -> str:
    """Name of the only weights whose shape depends on the number of inputs."""
    if network.family == "residual_unet":
        return "stem.conv.weight"
    return "encoder.0.convolutions.0.weight" if network.family == "vnet" else "encoder.0.0.conv.weight"


def is_head(name: str) -> bool:
    """Whether a tensor belongs to an output layer, whose shape depends on the number of outputs."""
    return name.split(".")[0] in ("head", "heads")


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

    An input of a name that was there gets its own filters, another one the mean of all filters. An output of a name that was
    there gets its own layer, another one stays fresh, as all do where regions come to classes or the other way round. All
    else must have equal shapes: `AutosegError` names every tensor (of ``where``) that has not.
    """
    first = input_convolution(network)
    problems = _misfits(weights, fresh, first=first, where=where)
    if problems:
        raise AutosegError(*problems, headline=(f"the weights of {where} cannot be trained on with this plan"))
    result = {name: weights[name].clone() for name in fresh}
    result[first] = torch.stack([_filters(weights[first], name, before.inputs) for name in after.inputs], dim=1)
    for name in filter(is_head, fresh):
        result[name] = fresh[name].clone()
        for output in _known_outputs(before, after):
            result[name][after.outputs.index(output)] = weights[name][before.outputs.index(output)]
    return Transfer(weights=result, notes=describe_transfer(before, after))


def describe_transfer(before: Interface, after: Interface) -> tuple[str, ...]:
    """What `transfer_weights` does with inputs and with outputs, a sentence each."""
    return _describe_inputs(before, after), _describe_outputs(before, after)


def _known_outputs(before: Interface, after: Interface) -> list[str]:
    """Outputs that keep their layers."""
    return [] if before.has_regions != after.has_regions else [name for name in after.outputs if name in before.outputs]


def _filters(weight: Tensor, name: str, inputs: Sequence[str]) -> Tensor:
    return weight[:, list(inputs).index(name)] if name in inputs else weight.mean(dim=1)


def _misfits(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor], *, first: str, where: str) -> list[Issue]:
    mend = "take the plan that comes with --pretrained, or another model"
    problems = []
    for name in [*fresh, *(name for name in weights if name not in fresh)]:
        sizes = [tuple(each[name].shape) if name in each else None for each in (weights, fresh)]
        if name == first:
            sizes = [size and (size[0], *size[2:]) for size in sizes]
        elif is_head(name):
            sizes = [size and size[1:] for size in sizes]
        if sizes[0] != sizes[1]:
            problems.append(
                Issue(
                    code=UNNAMED, where=where, message=f"{name} is {sizes[0]}, but the plan needs {sizes[1]}", fix=mend
                )
            )
    return problems


def _describe_inputs(before: Interface, after: Interface) -> str:
    known, new = _parted(after.inputs, before.inputs)
    if not new:
        return f"inputs: {', '.join(known)} keep their filters"
    kept = f"{', '.join(known)} keep their filters, " if known else ""
    return f"inputs: {kept}{', '.join(new)} start with the mean of those of {', '.join(before.inputs)}"


def _describe_outputs(before: Interface, after: Interface) -> str:
    known = _known_outputs(before, after)
    new = [name for name in after.outputs if name not in known]
    if before.has_regions != after.has_regions:
        kinds = ("regions", "classes that exclude each other")
        there, here = kinds if before.has_regions else kinds[::-1]
        return f"outputs: all start fresh, for there they were {there}, and here they are {here}"
    parts = [f"{', '.join(known)} keep their layers"] * bool(known) + [f"{', '.join(new)} start fresh"] * bool(new)
    return f"outputs: {', '.join(parts)}"


def _parted(names: Sequence[str], known: Sequence[str]) -> tuple[list[str], list[str]]:
    return [name for name in names if name in known], [name for name in names if name not in known]

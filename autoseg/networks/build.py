"""From a plan's topology to an initialised torch module."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module

import torch
from torch import nn

from autoseg.issues import AutosegError, Issue
from autoseg.networks.blocks import arrange, initialise
from planners import TOPOLOGIES, Network


def build_network(network: Network, *, deep_supervision: bool = False, seed: int | None = 0) -> nn.Module:
    """The module of a topology, in float32 on torch's current default device.

    Weights are drawn from ``seed``; None leaves them as torch made them (for modules that are loaded, or that live on
    the meta device). Raises `AutosegError` for a topology that cannot be trained: a single stage has no decoder.
    """
    if len(network.features) < 2:
        message = f"the {network.family} has a single stage (features {list(network.features)}), so no decoder"
        fix = "plan without --strict-reference, or with a larger patch"
        raise AutosegError(Issue(code="network.single_stage", where="plan", message=message, fix=fix))
    module = find_module(network.family)(network, deep_supervision=deep_supervision)
    if seed is not None:
        initialise(module, generator=torch.Generator().manual_seed(seed))
    return arrange(module, len(network.kernels[0]))


def find_module(family: str) -> Callable[..., nn.Module]:
    """What makes the torch module of an installed topology, which names it as ``module:callable``."""
    module, _, name = TOPOLOGIES.get(family).module.partition(":")
    make: Callable[..., nn.Module] = getattr(import_module(module), name)
    return make


def head_scales(network: Network) -> list[tuple[int, ...]]:
    """How much smaller than the patch each head's logits are, per axis; the first is all ones."""
    scales = []
    scale = tuple(1 for _ in network.strides[0])
    for stride in network.strides[:-1]:
        scale = tuple(math.prod(pair) for pair in zip(scale, stride, strict=True))
        scales.append(scale)
    return scales

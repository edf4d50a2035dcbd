"""From a plan's topology to an initialised torch module."""

from __future__ import annotations

import math

import torch
from torch import nn

from autoseg.issues import AutosegError
from autoseg.networks.blocks import initialise
from autoseg.networks.layout import arrange
from autoseg.networks.unet import UNet
from autoseg.networks.vnet import VNet
from planners import Network


def build_network(network: Network, *, deep_supervision: bool = False, seed: int | None = 0) -> nn.Module:
    """The module of a topology, in float32 on torch's current default device.

    Weights are drawn from ``seed``; None leaves them as torch made them (for modules that are loaded, or that live on
    the meta device). Raises `AutosegError` for a topology that cannot be trained: a single stage has no decoder.
    """
    if len(network.features) < 2:
        raise AutosegError(
            f"the plan's {network.family} has a single stage (features {list(network.features)}), so it has no decoder "
            "and cannot be trained; plan without --strict-reference, or with a larger patch"
        )
    module = VNet(network) if network.family == "vnet" else UNet(network, deep_supervision=deep_supervision)
    if seed is not None:
        initialise(module, generator=torch.Generator().manual_seed(seed))
    return arrange(module, len(network.kernels[0]))


def head_scales(network: Network) -> list[tuple[int, ...]]:
    """How much smaller than the patch each head's logits are, per axis; the first is all ones."""
    scales = []
    scale = tuple(1 for _ in network.strides[0])
    for stride in network.strides[:-1]:
        scale = tuple(math.prod(pair) for pair in zip(scale, stride, strict=True))
        scales.append(scale)
    return scales

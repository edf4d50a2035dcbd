"""The pieces all networks are made of (method section 5.1, 5.3).

Shapes in comments: N batch, C channels, then the spatial axes of the patch, (Z, Y, X) or (Y, X).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoseg.networks.convolutions import CONVOLUTION
from autoseg.networks.layout import average_pool, instance_norm

NEGATIVE_SLOPE = 0.01
"""Of the leaky ReLU (method section 3.9)."""


def same_padding(kernel: Sequence[int]) -> tuple[int, ...]:
    """Padding that keeps the size under an odd kernel with stride 1."""
    return tuple((size - 1) // 2 for size in kernel)


class InstanceNorm(nn.Module):
    """Instance norm with learnable scale and shift, no running statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm(x, self.weight, self.bias)


class AveragePool(nn.Module):
    """Means over blocks of the stride."""

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        return average_pool(x, self.stride)


class ConvBlock(nn.Module):
    """Convolution, instance norm and, unless switched off, leaky ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], *, activate: bool = True
    ) -> None:
        super().__init__()
        convolution = CONVOLUTION[len(kernel)]
        self.conv = convolution(inputs, outputs, tuple(kernel), tuple(stride), same_padding(kernel))
        self.norm = InstanceNorm(outputs)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return functional.leaky_relu(x, NEGATIVE_SLOPE, inplace=True) if self.activate else x


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip path that pools and changes the width where needed (method section 5.3)."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.conv1 = ConvBlock(inputs, outputs, kernel, stride)
        self.conv2 = ConvBlock(outputs, outputs, kernel, ones, activate=False)
        self.pool = AveragePool(stride) if max(stride) > 1 else None
        self.project = None
        if inputs != outputs:
            self.project = nn.Sequential(
                CONVOLUTION[len(kernel)](inputs, outputs, ones, bias=False), InstanceNorm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.pool is None else self.pool(x)
        skip = skip if self.project is None else self.project(skip)
        return functional.leaky_relu(self.conv2(self.conv1(x)) + skip, NEGATIVE_SLOPE, inplace=True)


def conv_blocks(inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], count: int) -> nn.Sequential:
    """``count`` convolution blocks in a row; the first has the stride and changes the width."""
    ones = (1,) * len(kernel)
    first = ConvBlock(inputs, outputs, kernel, stride)
    return nn.Sequential(first, *(ConvBlock(outputs, outputs, kernel, ones) for _ in range(count - 1)))


def residual_blocks(
    inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], count: int
) -> nn.Sequential:
    """``count`` residual blocks in a row; the first has the stride and changes the width."""
    ones = (1,) * len(kernel)
    first = ResidualBlock(inputs, outputs, kernel, stride)
    return nn.Sequential(first, *(ResidualBlock(outputs, outputs, kernel, ones) for _ in range(count - 1)))


def initialise(network: nn.Module, *, generator: torch.Generator) -> None:
    """Kaiming normal weights (fan-in, leaky ReLU) and zero biases, drawn from ``generator`` (method section 5.4).

    The second norm of every residual block starts at zero, so that blocks start as their skip path.
    """
    convolutions = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for module in network.modules():
        if isinstance(module, convolutions):
            nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.norm.weight)
            nn.init.zeros_(module.conv2.norm.bias)

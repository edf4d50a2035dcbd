"""Building blocks of all networks (method sections 5.1, 5.3), in channels-last memory.

Matrix units take that layout as it is, and torch's own conversions are slow in 3D (decision 0111). Tensors keep their shape; only
the order of their numbers in memory changes. Shapes: N batch, C channels, then the spatial axes of the patch, (Z, Y, X) or (Y, X).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoseg.compute.workarounds import convolve_3d, convolve_transposed_3d

NEGATIVE_SLOPE = 0.01
"""Of the leaky ReLU (method section 3.9)."""
EPSILON = 1e-5
"""Added to the variance (method section 5.1)."""


def same_padding(kernel: Sequence[int]) -> tuple[int, ...]:
    """Padding that keeps the size under an odd kernel with stride 1."""
    return tuple((size - 1) // 2 for size in kernel)


class Convolution3d(nn.Conv3d):
    """`nn.Conv3d` without dilation, groups or padding modes, whose gradients do not hang on any processor."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve_3d(x, self.weight, self.bias, self.stride, [int(size) for size in self.padding])


class Transposed3d(nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` without padding, whose gradients do not hang on any processor."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return convolve_transposed_3d(x, self.weight, self.bias, self.stride)


CONVOLUTION: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: Convolution3d}
TRANSPOSED: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: Transposed3d}


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
    """Two convolutions and a skip path that pools and changes the width if needed (method section 5.3)."""

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


def memory_format(axes: int) -> torch.memory_format:
    """The layout of networks with so many spatial axes."""
    return torch.channels_last_3d if axes == 3 else torch.channels_last


def arrange(network: nn.Module, axes: int) -> nn.Module:
    """The network with its weights in the layout of its convolutions; shapes and values stay."""
    return network.to(memory_format=memory_format(axes))  # type: ignore[call-overload,no-any-return]  # torch's stub lacks it


def channels_last(x: Tensor) -> Tensor:
    """``x`` with its channels next to each other in memory; a single channel, too, carries the layout's strides."""
    result: Tensor = _Relayout.apply(x, True)  # type: ignore[no-untyped-call]
    return result


def channels_first(x: Tensor) -> Tensor:
    """``x`` with one channel after the other in memory, contiguous."""
    result: Tensor = _Relayout.apply(x, False)  # type: ignore[no-untyped-call]
    return result


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each channel of each sample brought to mean 0 and variance 1, then scaled and shifted; keeps ``x``'s type and layout.

    On a CPU torch's group norm with one channel a group is fast for contiguous input and slow for channels last (ten
    times, in 3D), and its instance norm copies to float32 rows and back; there, samples go through batch norm one by one.
    A compiler optimises group norm itself, and cannot see into the other.
    """
    if x.device.type == "cpu" and not x.is_contiguous() and not torch.compiler.is_compiling():
        result: Tensor = _NormBySample.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return functional.group_norm(x, x.shape[1], weight, bias, eps=EPSILON)


def average_pool(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Mean over blocks of ``stride``, which divides the spatial sizes; channels last, and the type stays.

    torch's pooling over three axes supports neither this layout nor bfloat16 on CPUs; over two axes it supports both.
    """
    if len(stride) == 2:
        return functional.avg_pool2d(x, tuple(stride))
    rows = x.movedim(1, -1)
    planes = rows.flatten(0, 1).movedim(-1, 1)
    pooled = functional.avg_pool2d(planes, tuple(stride[1:])).movedim(1, -1)
    blocks = pooled.reshape(rows.shape[0], -1, stride[0], *pooled.shape[1:])
    first, *others = blocks.unbind(2)
    result: Tensor = sum(others, first) / stride[0] if others else first
    return result.movedim(-1, 1)


def _convert(x: Tensor, last: bool) -> Tensor:
    """A copy as one transposition of two axes, which torch does 16 times as fast as that of five."""
    shape, spatial = x.shape, x.shape[2:].numel()
    if last:
        if not x.is_contiguous():
            return x.contiguous(memory_format=memory_format(x.ndim - 2))
        rows = x.new_empty(shape[0], spatial, shape[1])  # a plain copy would leave a single channel its old stride
        rows.copy_(x.view(shape[0], shape[1], spatial).transpose(1, 2))
        return rows.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    if not x.movedim(1, -1).is_contiguous():
        return x.contiguous()
    return x.movedim(1, -1).reshape(shape[0], spatial, shape[1]).transpose(1, 2).contiguous().view(shape)


class _Relayout(torch.autograd.Function):
    """Copies to a layout, and gradients back to the other, so that no convolution has to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, last: bool) -> Tensor:
        ctx.last = last
        return _convert(x, last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _convert(gradients[0], not ctx.last), None


class _NormBySample(torch.autograd.Function):
    """Instance norm of a channels-last batch: torch's batch norm, one sample at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        result = torch.empty_like(x)
        means, deviations = (weight.new_empty(x.shape[:2]) for _ in range(2))
        parts = zip(torch.split(x, 1), torch.split(result, 1), means, deviations, strict=True)
        for sample, *out in parts:
            torch.native_batch_norm(sample, weight, bias, None, None, True, 0.0, EPSILON, out=tuple(out))
        ctx.save_for_backward(x, weight, means, deviations)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, means, deviations = ctx.saved_tensors
        upstream = gradients[0].contiguous(memory_format=memory_format(x.ndim - 2))
        result = torch.empty_like(x)
        weights, biases = torch.zeros_like(weight), torch.zeros_like(weight)
        parts = zip(*(torch.split(each, 1) for each in (upstream, x, result)), means, deviations, strict=True)
        for given, sample, out, mean, deviation in parts:
            at_input, at_weight, at_bias = torch.ops.aten.native_batch_norm_backward(
                given, sample, weight, None, None, mean, deviation, True, EPSILON, [True, True, True]
            )
            out.copy_(at_input)
            weights += at_weight
            biases += at_bias
        return result, weights, biases

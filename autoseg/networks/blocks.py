"""Building blocks of all networks (method sections 5.1, 5.3), in channels-last memory but on GPUs that do not profit from it.

Matrix units take that layout as it is, and torch's own conversions are slow in 3D (decisions 0111, 0219). Tensors keep their shape; only
the order of their numbers in memory changes. Shapes: N batch, C channels, then the spatial axes of the patch, (Z, Y, X) or (Y, X).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoseg.compute.workarounds import convolve_3d, convolve_transposed_3d
from autoseg.networks.norms import NEGATIVE_SLOPE, is_channels_last, norm_activate, norm_convolved


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

    def forward(self, x: Tensor, skip: Tensor | None = None, slope: float = 1.0) -> Tensor:
        """See `norm_activate`."""
        return norm_activate(x, self.weight, self.bias, skip=skip, slope=slope)


class AveragePool(nn.Module):
    """Means over blocks of the stride."""

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        return average_pool(x, self.stride)


class ConvBlock(nn.Module):
    """Convolution, instance norm, the skip path that may be given, and leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        convolution = CONVOLUTION[len(kernel)]
        self.conv = convolution(inputs, outputs, tuple(kernel), tuple(stride), same_padding(kernel))
        self.norm = InstanceNorm(outputs)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y: Tensor = self.norm(before_norm(self.conv, x), skip, NEGATIVE_SLOPE)
        return y


class ResidualBlock(nn.Module):
    """Two convolutions and a skip path that pools and changes the width if needed (method section 5.3)."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.conv1 = ConvBlock(inputs, outputs, kernel, stride)
        self.conv2 = ConvBlock(outputs, outputs, kernel, ones)
        self.pool = AveragePool(stride) if max(stride) > 1 else None
        self.project = None
        if inputs != outputs:
            self.project = nn.Sequential(
                CONVOLUTION[len(kernel)](inputs, outputs, ones, bias=False), InstanceNorm(outputs)
            )

    def forward(self, x: Tensor, stem: ConvBlock | None = None) -> Tensor:
        """``stem`` comes first, where the block is the first one; it has no stride then."""
        if not may_recompute(x):
            x = x if stem is None else stem(x)
            y: Tensor = self.conv2(self.conv1(x), self._skip(x))
            return y
        first, second = self.conv1, self.conv2
        if stem is None:
            between = before_norm(first.conv, x)
        else:
            between, x = norm_convolve(before_norm(stem.conv, x), stem.norm, first.conv, gives_both=True)
        between = norm_convolve(between, first.norm, second.conv)
        z: Tensor = second.norm(between, self._skip(x), NEGATIVE_SLOPE)
        return z

    def _skip(self, x: Tensor) -> Tensor:
        skip = x if self.pool is None else self.pool(x)
        return skip if self.project is None else self.project(skip)


def norm_convolve(x: Tensor, norm: InstanceNorm, convolution: nn.Module, *, gives_both: bool = False) -> Any:
    """See `norm_convolved`; the convolution has no stride, and another norm follows."""
    given: Any = convolution
    return norm_convolved(x, norm.weight, norm.bias, given.weight, given.padding, gives_both=gives_both)


def may_recompute(x: Tensor) -> bool:
    """Whether a map may be computed again to save memory: with kernels for it, and where gradients are wanted.

    Networks with residual blocks do so, whose plans else take up to 10 % more than their target (decision 0220).
    """
    return x.device.type == "cuda" and is_channels_last(x) and torch.is_grad_enabled()


def before_norm(convolution: nn.Module, x: Tensor) -> Tensor:
    """``convolution(x)`` for a norm, which takes a bias away again: on CUDA without it (decision 0219).

    The parameter stays, so that files of weights are the same everywhere; it gets no gradient there.
    """
    if x.device.type != "cuda" or convolution.bias is None:
        y: Tensor = convolution(x)
        return y
    given: Any = convolution
    if isinstance(convolution, nn.ConvTranspose2d | nn.ConvTranspose3d):
        up = functional.conv_transpose3d if x.ndim == 5 else functional.conv_transpose2d
        return up(x, given.weight, None, given.stride)
    convolve = functional.conv3d if x.ndim == 5 else functional.conv2d
    return convolve(x, given.weight, None, given.stride, given.padding)


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


def memory_format(axes: int, *, channels_last: bool = True) -> torch.memory_format:
    """A layout of networks with so many spatial axes."""
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last_3d if axes == 3 else torch.channels_last


def arrange(network: nn.Module, axes: int, *, channels_last: bool = True) -> nn.Module:
    """The network with its weights in the layout of its convolutions; shapes and values stay."""
    layout = memory_format(axes, channels_last=channels_last)
    return network.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]  # torch's stub lacks it


def channels_last(x: Tensor) -> Tensor:
    """``x`` with its channels next to each other in memory; a single channel, too, carries the layout's strides. Graphs have no layouts."""
    if torch.onnx.is_in_onnx_export():
        return x
    if x.device.type == "cuda":
        if x.shape[1] == 1:  # nothing has to move
            return x.contiguous().view(x.shape[0], *x.shape[2:], 1).movedim(-1, 1)
        return x.contiguous(memory_format=memory_format(x.ndim - 2))
    result: Tensor = _Relayout.apply(x, True)  # type: ignore[no-untyped-call]
    return result


def channels_first(x: Tensor) -> Tensor:
    """``x`` with one channel after the other in memory, contiguous."""
    if torch.onnx.is_in_onnx_export():
        return x
    result: Tensor = _Relayout.apply(x, False)  # type: ignore[no-untyped-call]
    return result


def average_pool(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Mean over blocks of ``stride``, which divides the spatial sizes; layout and type stay.

    torch's pooling over three axes supports neither channels last nor bfloat16 on CPUs; over two axes it supports both.
    """
    if len(stride) == 2:
        return functional.avg_pool2d(x, tuple(stride))
    if torch.onnx.is_in_onnx_export() or (x.device.type == "cuda" and not is_channels_last(x)):
        return functional.avg_pool3d(x, tuple(stride))
    rows = x.movedim(1, -1)
    planes = rows.flatten(0, 1).movedim(-1, 1)
    pooled = functional.avg_pool2d(planes, tuple(stride[1:])).movedim(1, -1)
    blocks = pooled.reshape(rows.shape[0], -1, stride[0], *pooled.shape[1:])
    first, *others = blocks.unbind(2)
    result: Tensor = sum(others, first) / stride[0] if others else first
    return result.movedim(-1, 1)


def _convert(x: Tensor, last: bool) -> Tensor:
    """A copy as transpositions of two axes, which torch does 16 times as fast as that of five, and to channels first 5 times as fast as of three."""
    shape, spatial = x.shape, x.shape[2:].numel()
    if last:
        if not x.is_contiguous():
            return x.contiguous(memory_format=memory_format(x.ndim - 2))
        rows = x.new_empty(shape[0], spatial, shape[1])  # a plain copy would leave a single channel its old stride
        rows.copy_(x.view(shape[0], shape[1], spatial).transpose(1, 2))
        return rows.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    if not x.movedim(1, -1).is_contiguous():
        return x.contiguous()
    result = x.new_empty(shape)
    for target, source in zip(result, x.movedim(1, -1), strict=True):
        target.view(shape[1], spatial).copy_(source.reshape(spatial, shape[1]).t())
    return result


class _Relayout(torch.autograd.Function):
    """Copies to a layout, and gradients back to the other, so that no convolution has to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, last: bool) -> Tensor:
        ctx.last = last
        return _convert(x, last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _convert(gradients[0], not ctx.last), None

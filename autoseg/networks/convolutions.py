"""Convolutions for networks, with gradients that end on every processor.

On processors with matrix tiles (AMX), oneDNN's gradient of a 3D convolution's weights in 16-bit formats waits for ever where
several threads compute it and the volume has few, large slices (decision 0120). There, it is taken through 2D convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from autoseg.networks.layout import memory_format

FEW_SLICES = 12
"""Volumes with more slices were never seen to wait under kernels that overlap; the thickest that did had 8."""
LARGE_SLICE = 30_000
"""Channels of the source times voxels of a slice of the result; the smallest that waited had 36 864."""
SHORT_FORMATS = (torch.bfloat16, torch.float16)


class Convolution3d(nn.Conv3d):
    """`nn.Conv3d` without dilation, groups or padding modes; channels last. (N, C, Z, Y, X) -> (N, O, Z', Y', X')."""

    def forward(self, x: Tensor) -> Tensor:
        x, weight, bias = _in_compute_format(x, self.weight, self.bias)
        steps, padding = self.stride, tuple(int(size) for size in self.padding)
        shape = tuple(
            (size + 2 * pad - width) // step + 1
            for size, pad, width, step in zip(x.shape[2:], padding, self.kernel_size, steps, strict=True)
        )
        single = self.kernel_size[0] in (1, steps[0])
        if not may_wait_for_ever(x, x.shape[1], shape, single=single):
            return functional.conv3d(x, weight, bias, steps, padding)
        result: Tensor = _SliceGradient.apply(x, weight, bias, steps, padding, False)  # type: ignore[no-untyped-call]
        return result


class Transposed3d(nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` without padding; channels last. (N, C, Z, Y, X) -> (N, O, Z * stride, Y * stride, X * stride)."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        x, weight, bias = _in_compute_format(x, self.weight, self.bias)
        if not may_wait_for_ever(x, weight.shape[1], x.shape[2:], single=True):
            return functional.conv_transpose3d(x, weight, bias, self.stride)
        result: Tensor = _SliceGradient.apply(x, weight, bias, self.stride, (0, 0, 0), True)  # type: ignore[no-untyped-call]
        return result


CONVOLUTION: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: Convolution3d}
TRANSPOSED: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: Transposed3d}


def may_wait_for_ever(x: Tensor, channels: int, shape: Sequence[int], *, single: bool) -> bool:
    """Whether the gradient of the weights must not be left to the library.

    ``channels`` and ``shape`` are those of the source and of the result; for a transposed convolution, whose gradient is that
    of the convolution the other way round, of its output and of its input. ``single``: each slice of the source meets a
    single one of the kernel, which may wait at any number of slices, and costs nothing more as images.
    """
    short = x.device.type == "cpu" and x.dtype in SHORT_FORMATS and torch.is_grad_enabled()
    return short and (single or shape[0] <= FEW_SLICES) and channels * shape[1] * shape[2] > LARGE_SLICE


def weight_gradient(
    source: Tensor, at_result: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Gradient of a 3D convolution's weights, (O, C, kernel...), as one 2D convolution's for each slice of the kernel.

    ``source`` (N, C, Z, Y, X) is what was convolved, ``at_result`` (N, O, Z', Y', X') the gradient of what came out.
    """
    slices, depth, step = source.shape[2], at_result.shape[2], stride[0]
    size = (at_result.shape[1], source.shape[1], *kernel[1:])
    planes = []
    for k in range(kernel[0]):
        offset = k - padding[0]  # result slice d meets source slice d * step + offset
        first = max(0, -(offset // step))
        last = min(depth, (slices - 1 - offset) // step + 1)
        if first >= last:  # this part of the kernel meets nothing but padding
            planes.append(source.new_zeros(size))
            continue
        start = first * step + offset
        met = source[:, :, start : start + (last - first - 1) * step + 1 : step]
        images, gradients = _as_images(met), _as_images(at_result[:, :, first:last])
        planes.append(conv2d_weight(images, size, gradients, tuple(stride[1:]), tuple(padding[1:])))  # type: ignore[no-untyped-call]
    return torch.stack(planes, dim=2)


def _as_images(volumes: Tensor) -> Tensor:
    """(N, C, Z, Y, X) -> (N * Z, C, Y, X), channels last; no copy where whole volumes of that layout are given."""
    return volumes.movedim(2, 1).flatten(0, 1)


def _in_compute_format(*tensors: Tensor | None) -> tuple[Any, ...]:
    """All in the format that autocast, where it is on, would bring them to."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


class _SliceGradient(torch.autograd.Function):
    """A convolution or transposed convolution with `weight_gradient`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        up: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.up = stride, padding, up
        if up:
            return functional.conv_transpose3d(x, weight, bias, stride)
        return functional.conv3d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, kernel = ctx.stride, ctx.padding, weight.shape[2:]
        upstream = gradients[0].contiguous(memory_format=memory_format(3))
        at_input = at_weight = at_bias = None
        if ctx.needs_input_grad[0]:
            at_input = torch.ops.aten.convolution_backward(
                upstream, x, weight, None, stride, padding, (1, 1, 1), ctx.up, (0, 0, 0), 1, [True, False, False]
            )[0]
        if ctx.needs_input_grad[1]:
            source, result = (upstream, x) if ctx.up else (x, upstream)
            at_weight = weight_gradient(source, result, kernel, stride, padding)
        if ctx.needs_input_grad[2]:
            at_bias = upstream.sum((0, 2, 3, 4))
        return at_input, at_weight, at_bias, None, None, None

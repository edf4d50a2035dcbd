"""Instance norm with what follows it, a skip path and leaky ReLU, for each kind of processor.

N samples, C channels, then the spatial axes. All forms keep the type and the layout of the map, and sum in float32.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

logger = logging.getLogger(__name__)
NEGATIVE_SLOPE = 0.01
"""Of the leaky ReLU (method section 3.9)."""
EPSILON = 1e-5
"""Added to the variance (method section 5.1)."""
TENSOR_CORES_OF_BFLOAT16 = (8, 0)
"""Compute capability from which matrix units take bfloat16, and channels last in 3D without conversions (Ampere)."""
TOLERANCE = 2.0**-6
"""Largest relative error of kernels that work: bfloat16 has 8 bits, and both the map and its gradient are rounded to it."""


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each channel of each sample brought to mean 0 and variance 1, then scaled and shifted."""
    return norm_activate(x, weight, bias, slope=1.0)


def norm_activate(
    x: Tensor, weight: Tensor, bias: Tensor, *, skip: Tensor | None = None, slope: float = NEGATIVE_SLOPE
) -> Tensor:
    """`norm`, plus ``skip`` of the same shape, then leaky ReLU of ``slope`` (1: none).

    On CUDA maps in channels last go through one pair of kernels (decision 0219); contiguous ones, as on older cards, through
    torch's instance norm. A compiler calls the same kernels: its own from the formula move a third more.
    """
    if x.device.type == "cuda" and is_channels_last(x):
        result: Tensor = torch.ops.autoseg.norm(x, weight, bias, skip, slope)[0]
        return result
    result = instance_norm(x, weight, bias)
    if skip is not None:
        result = result + skip
    return result if slope == 1 else functional.leaky_relu(result, slope, inplace=True)


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a voxel lie side by side, and the voxels one after the other."""
    return x.movedim(1, -1).is_contiguous()


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`norm` by torch's own parts.

    On a CPU torch's group norm with one channel a group is fast for contiguous input and slow for channels last (ten
    times, in 3D), and its instance norm copies to float32 rows and back; there, samples go through batch norm one by one.
    A compiler optimises group norm itself, and cannot see into the other. On CUDA autocast makes group norm compute float32
    maps; instance norm keeps the type, and is one operator of a graph.
    """
    if x.device.type == "cuda" or torch.onnx.is_in_onnx_export():
        return functional.instance_norm(x, weight=weight, bias=bias, eps=EPSILON)
    if x.device.type == "cpu" and not x.is_contiguous() and not torch.compiler.is_compiling():
        result: Tensor = _NormBySample.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return functional.group_norm(x, x.shape[1], weight, bias, eps=EPSILON)


def formula(
    x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`norm_activate` written out, with mean and reciprocal standard deviation, (N, C); in float32, or float64 where ``x`` is."""
    variance, mean = torch.var_mean(_widened(x), tuple(range(2, x.ndim)), correction=0)
    scale = torch.rsqrt(variance + EPSILON)
    return _applied(x, mean, scale, weight, bias, skip, slope), mean, scale


def _applied(
    x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, slope: float
) -> Tensor:
    """The result of `formula` from its other two numbers."""
    result = (_widened(x) - _spread(mean, x)) * (_spread(scale, x) * _spread(weight, x)) + _spread(bias, x)
    if skip is not None:
        result = result + skip
    if slope != 1:
        result = torch.where(result > 0, result, result * slope)
    return result.to(x.dtype)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _spread(channels: Tensor, x: Tensor) -> Tensor:
    """(C,) or (N, C) -> (1 or N, C, 1, ...)."""
    return channels.view(*(channels.shape if channels.ndim == 2 else (1, -1)), *(1,) * (x.ndim - 2))


@torch.library.custom_op(
    "autoseg::norm",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor? skip, float slope) -> (Tensor, Tensor, Tensor)",
)
def fused_norm(
    x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`formula` as one operation with its own gradient; of the maps only ``x`` is kept for it, and the result beside a skip path."""
    result, mean, scale = formula(x, weight, bias, skip, slope)
    return result, mean.contiguous(), scale.contiguous()


@torch.library.custom_op(
    "autoseg::norm_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor x, Tensor? result, Tensor mean, Tensor scale, Tensor weight, Tensor bias, float slope)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def fused_norm_backward(
    gradient: Tensor,
    x: Tensor,
    result: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of map, weight, bias and skip path. ``result`` is given where there is such a path, else its gradient is empty."""
    axes = tuple(range(2, x.ndim))
    normed = (_widened(x) - _spread(mean, x)) * _spread(scale, x)
    side = normed * _spread(weight, x) + _spread(bias, x) if result is None else result
    upstream = _widened(gradient)
    slopes = torch.where(side > 0, upstream, upstream * slope)
    plain, along = slopes.mean(axes), (slopes * normed).mean(axes)
    at_x = (slopes - _spread(plain, x) - normed * _spread(along, x)) * _spread(scale, x) * _spread(weight, x)
    voxels = x.shape[2:].numel()
    at_weight, at_bias = along.sum(0) * voxels, plain.sum(0) * voxels
    at_skip = x.new_empty(0) if result is None else slopes.to(x.dtype)
    return at_x.to(x.dtype), at_weight.to(weight.dtype), at_bias.to(bias.dtype), at_skip


@torch.library.custom_op(
    "autoseg::norm_again",
    mutates_args=(),
    schema="(Tensor x, Tensor mean, Tensor scale, Tensor weight, Tensor bias, float slope) -> Tensor",
)
def fused_norm_again(x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    """The result of `fused_norm` once more, from the numbers that it gave."""
    return _applied(x, mean, scale, weight, bias, None, slope)


@fused_norm_again.register_kernel("cuda")
def _(x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    from autoseg.networks import kernels

    return kernels.apply(x, mean, scale, weight, bias, None, slope)


@fused_norm_again.register_fake
def _(x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    return torch.empty_like(x)


@fused_norm.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    from autoseg.networks import kernels  # where Triton is installed

    given = None if skip is None else _dense(skip)
    return kernels.forward(_dense(x), weight, bias, given, slope, EPSILON)


@fused_norm_backward.register_kernel("cuda")
def _(
    gradient: Tensor,
    x: Tensor,
    result: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from autoseg.networks import kernels

    return kernels.backward(_rows(gradient), x, result, mean, scale, weight, bias, slope)


@fused_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    numbers = [torch.empty(x.shape[:2], dtype=torch.float32, device=x.device) for _ in range(2)]
    return torch.empty_like(x), numbers[0], numbers[1]


@fused_norm_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    result: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    at_skip = x.new_empty(0) if result is None else torch.empty_like(x)
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias), at_skip


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, skip, ctx.slope = inputs
    result, mean, scale = output
    ctx.mark_non_differentiable(mean, scale)
    ctx.has_skip = skip is not None
    ctx.save_for_backward(x, mean, scale, weight, bias, *([result] if ctx.has_skip else []))


def _differentiate(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, mean, scale, weight, bias, *result = ctx.saved_tensors
    at_x, at_weight, at_bias, at_skip = torch.ops.autoseg.norm_backward(
        gradient, x, result[0] if result else None, mean, scale, weight, bias, ctx.slope
    )
    return at_x, at_weight, at_bias, at_skip if ctx.has_skip else None, None


fused_norm.register_autograd(_differentiate, setup_context=_keep)


def norm_convolved(
    x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, padding: Sequence[int], *, gives_both: bool
) -> Any:
    """What a convolution with ``kernel`` at stride 1 makes of `norm_activate`; with ``gives_both`` the latter itself, too.

    Of both only ``x`` waits for the backward pass, which computes the convolution's input again: one read and one write more, and
    a quarter of the maps of a residual block less.
    """
    return _NormConvolved.apply(x, weight, bias, kernel, tuple(padding), gives_both)  # type: ignore[no-untyped-call]


class _NormConvolved(torch.autograd.Function):
    """Convolution of a norm's result."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, padding: tuple[int, ...], gives_both: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        y, mean, scale = torch.ops.autoseg.norm(x, weight, bias, None, NEGATIVE_SLOPE)
        ctx.padding, ctx.gives_both = padding, gives_both
        ctx.save_for_backward(x, mean, scale, weight, bias, kernel)
        convolve = functional.conv3d if x.ndim == 5 else functional.conv2d
        convolved = convolve(y, kernel.to(x.dtype), None, 1, padding)
        return (convolved, y) if gives_both else convolved

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, weight, bias, kernel = ctx.saved_tensors
        y = torch.ops.autoseg.norm_again(x, mean, scale, weight, bias, NEGATIVE_SLOPE)
        ones = [1] * (x.ndim - 2)
        at_y, at_kernel, _ = torch.ops.aten.convolution_backward(
            gradients[0], y, kernel.to(x.dtype), None, ones, list(ctx.padding), ones, False, [0] * len(ones), 1,
            [True, True, False],
        )  # fmt: skip
        del y
        at_y = at_y + gradients[1] if ctx.gives_both else at_y
        at_x, at_weight, at_bias, _ = torch.ops.autoseg.norm_backward(
            at_y, x, None, mean, scale, weight, bias, NEGATIVE_SLOPE
        )
        return at_x, at_weight, at_bias, at_kernel.to(kernel.dtype), None, None


def _dense(x: Tensor) -> Tensor:
    """In channels last, copied only where it is not."""
    return x if is_channels_last(x) else x.movedim(1, -1).contiguous().movedim(-1, 1)


def _rows(x: Tensor) -> Tensor:
    """(N, C, ...) -> (N, V, C) with channels side by side; some of the channels of a larger map are not copied."""
    rows = x.movedim(1, -1).flatten(1, -2)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


@functools.cache
def why_not_fused(device: torch.device) -> str | None:
    """Why a CUDA device cannot run the fused norm; None where it does, in bfloat16, and what it computes is right."""
    capability = torch.cuda.get_device_capability(device)
    if capability < TENSOR_CORES_OF_BFLOAT16:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}"
    try:
        error = kernel_error(device)
    except Exception as failure:  # compilers fail in many ways, and none of them is a reason to end a run
        logger.debug("the fused norm fails", exc_info=True)
        return str(failure).strip().split("\n")[0] or type(failure).__name__
    return None if error <= TOLERANCE else f"its kernels are wrong by {error:.1%}"


def kernel_error(device: torch.device) -> float:
    """Largest relative error of the fused norm's result and gradients on ``device``, against float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for shape, slope, has_skip in (
        ((2, 40, 9, 14, 15), NEGATIVE_SLOPE, False),
        ((3, 80, 33, 65), NEGATIVE_SLOPE, True),
    ):
        drawn = [torch.randn(size, generator=generator) for size in (shape, shape, shape, shape[1:2], shape[1:2])]
        x, skip, upstream, weight, bias = [*(_dense(each.bfloat16()) for each in drawn[:3]), *drawn[3:]]
        outcomes = []
        for place, dtype in ((torch.device("cpu"), torch.float64), (device, None)):
            inputs = [
                each.to(place, dtype or each.dtype).requires_grad_() for each in (x, weight, bias, *[skip] * has_skip)
            ]
            norms = formula if dtype else torch.ops.autoseg.norm
            result = norms(inputs[0], inputs[1], inputs[2], inputs[3] if has_skip else None, slope)[0]
            result.backward(upstream.to(place, result.dtype))
            outcomes.append([result.detach(), *(each.grad for each in inputs)])
        for right, found in zip(*outcomes, strict=True):
            worst = max(worst, float((found.cpu().double() - right).norm() / right.norm()))
    return worst


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
        upstream = gradients[0].contiguous(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)
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

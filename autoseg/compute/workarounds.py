"""Workarounds: glibc's heap, 3D gradients of oneDNN on processors with AMX, few descriptors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

try:
    import resource
except ModuleNotFoundError:  # Windows, where there is no such limit
    resource = None  # type: ignore[assignment]

from autoseg.compute.memory import call_glibc, free_memory_bytes, resident_bytes, trim_heap

SHARE_OF_FREE = 2 / 3
"""What may be held of free memory; other processes and the page cache need some, too."""
MOST = 1.25
"""Times what was expected to be held; beyond that, freed memory is returned."""
WATCH_INTERVAL_S = 0.1
MMAP_THRESHOLD_BYTES = 32 * 1024**2
"""From here on glibc maps blocks on their own, once it has adapted itself to a process that frees large ones."""
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Names of glibc's settings (malloc.h)."""
KEEPING = ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1))
"""No block is mapped on its own, and the end of the heap stays."""
RETURNING = ((MMAP_MAX, 65536), (MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES), (TRIM_THRESHOLD, 2 * MMAP_THRESHOLD_BYTES))
"""Where glibc's own settings arrive by themselves."""
FEW_SLICES = 12
"""Volumes with more slices were never seen to hang under kernels that overlap; the thickest that did had 8."""
LARGE_SLICE = 30_000
"""Channels of the source times voxels of a slice of the result; the smallest that hung had 36 864."""
MOST_FILES = 65536
"""Descriptors are enough for anything here; some programs walk through all that they may have, which can be a billion."""
SHORT_FORMATS = (torch.bfloat16, torch.float16)


@contextmanager
def kept_heap(device: torch.device, held_bytes: Callable[[], float]) -> Iterator[None]:
    """Within, freed memory stays with the process, if the ``held_bytes`` that it may then hold more are free.

    By default glibc returns every block of 32 MiB and more to the system when it is freed. Each step of a large network
    then allocates all its maps again, which the system fills with zeros page by page: a quarter to a half of a step's time
    (decision 0112). Results do not depend on it. If gaps between blocks let the process grow much beyond ``held_bytes``, and
    at the end, all freed memory is returned. On other devices than a CPU, and without glibc, nothing changes. Not to be
    nested: the inner one ends the outer one.
    """
    held = held_bytes() if device.type == "cpu" else 0.0
    resident = resident_bytes()
    keeps = (
        device.type == "cpu" and resident is not None and held <= SHARE_OF_FREE * free_memory_bytes() and _set(KEEPING)
    )
    if not keeps or resident is None:
        yield
        return
    ended = threading.Event()
    watch = threading.Thread(target=_trim_beyond, args=(resident + MOST * held, ended), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()
        _set(RETURNING)
        trim_heap()


def _trim_beyond(limit_bytes: float, ended: threading.Event) -> None:
    """Gaps grow because glibc looks for an aligned block as if it were larger, so that one may not fit where its like was."""
    while not ended.wait(WATCH_INTERVAL_S):
        if (resident_bytes() or 0) > limit_bytes:
            trim_heap()


def _set(settings: Sequence[tuple[int, int]]) -> bool:
    return all([call_glibc("mallopt", name, value) for name, value in settings])


def convolve_3d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """`conv3d` whose gradients do not hang on any processor. (N, C, Z, Y, X) -> (N, O, Z', Y', X'), channels last."""
    x, weight, bias = _in_compute_format(x, weight, bias)
    kernel, steps, pads = weight.shape[2:], tuple(stride), tuple(padding)
    shape = tuple(
        (size + 2 * pad - width) // step + 1
        for size, pad, width, step in zip(x.shape[2:], pads, kernel, steps, strict=True)
    )
    if not may_hang(x, x.shape[1], shape, single=kernel[0] in (1, steps[0])):
        return functional.conv3d(x, weight, bias, steps, pads)
    result: Tensor = _SliceGradient.apply(x, weight, bias, steps, pads, False)  # type: ignore[no-untyped-call]
    return result


def convolve_transposed_3d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """`conv_transpose3d` without padding, likewise. (N, C, Z, Y, X) -> (N, O, Z * stride, Y * stride, X * stride)."""
    x, weight, bias = _in_compute_format(x, weight, bias)
    steps = tuple(stride)
    if not may_hang(x, weight.shape[1], x.shape[2:], single=True):
        return functional.conv_transpose3d(x, weight, bias, steps)
    result: Tensor = _SliceGradient.apply(x, weight, bias, steps, (0, 0, 0), True)  # type: ignore[no-untyped-call]
    return result


def may_hang(x: Tensor, channels: int, shape: Sequence[int], *, single: bool) -> bool:
    """Whether oneDNN's gradient of the weights may hang.

    On processors with matrix tiles (AMX) it does so in 16-bit formats where several threads compute it and the volume has few,
    large slices (decision 0120). There, it is computed through 2D convolutions.

    ``channels`` and ``shape`` are those of the source and of the result; for a transposed convolution, whose gradient is that
    of the convolution the other way round, of its output and of its input. ``single``: each slice of the source meets a
    single one of the kernel, which may hang at any number of slices, and costs nothing more as images.
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
        upstream = gradients[0].contiguous(memory_format=torch.channels_last_3d)
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


def raise_file_limit(most: int = MOST_FILES) -> None:
    """Let this process, and those that it starts, open as many files as the system allows it, up to ``most``.

    Tensors travel between processes as open files, and the usual limit is 1024.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

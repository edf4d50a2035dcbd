"""Triton kernels of the instance norm for channels-last maps on CUDA; imported where Triton is installed.

A map is read twice and written once forward; backward, gradient and map are read twice and the gradient is written once: as
often as any norm has to, in the map's own format and layout. Sums are float32: each program merges mean and squared
deviations of its tiles (Chan et al. 1979), so that a large mean costs no precision. Shapes: N samples, V voxels, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Values that a program holds at once: 16 a thread."""
WARPS = 8
WIDEST = 64
"""Most channels of a tile."""
PROGRAMS = 1024
"""Sums over voxels are shared out to at most about so many programs: several for each of a large GPU's 132 processors."""
PARTS = 32
"""Partial sums that are merged at once."""


@triton.jit
def _moments(x, means, squares, voxels, channels, chunk, tile_v: tl.constexpr, tile_c: tl.constexpr):  # type: ignore[no-untyped-def]
    """Mean and summed squared deviations of a chunk of voxels, (N, parts, C) each."""
    part, sample = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * tile_c + tl.arange(0, tile_c)
    base = x + sample.to(tl.int64) * voxels * channels
    count = 0.0
    mean = tl.zeros((tile_c,), tl.float32)
    square = tl.zeros((tile_c,), tl.float32)
    start = part * chunk
    end = tl.minimum(start + chunk, voxels)
    for first in range(start, end, tile_v):
        v = first + tl.arange(0, tile_v)
        inside = (v < end)[:, None] & (c < channels)[None, :]
        values = tl.load(base + v.to(tl.int64)[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        size = tl.minimum(tile_v, end - first).to(tl.float32)
        tile_mean = tl.sum(values, 0) / size
        apart = tl.where(inside, values - tile_mean[None, :], 0.0)
        shift = tile_mean - mean
        total = count + size
        square += tl.sum(apart * apart, 0) + shift * shift * (count * size / total)
        mean += shift * (size / total)
        count = total
    out = (sample * tl.num_programs(0) + part) * channels + c
    tl.store(means + out, mean, mask=c < channels)
    tl.store(squares + out, square, mask=c < channels)


@triton.jit
def _merge_moments(  # type: ignore[no-untyped-def]
    means, squares, mean, scale, voxels, channels, chunk, parts, epsilon, group: tl.constexpr, tile_c: tl.constexpr
):
    """Mean and reciprocal standard deviation of all voxels, (N, C), from those of the chunks."""
    sample = tl.program_id(1)
    c = tl.program_id(0) * tile_c + tl.arange(0, tile_c)
    base = sample * parts * channels
    center = tl.zeros((tile_c,), tl.float32)
    for first in range(0, parts, group):
        p = first + tl.arange(0, group)
        inside = (p < parts)[:, None] & (c < channels)[None, :]
        sizes = tl.minimum(chunk, voxels - p * chunk).to(tl.float32)
        each = tl.load(means + base + p[:, None] * channels + c[None, :], mask=inside, other=0.0)
        center += tl.sum(each * (sizes / voxels)[:, None], 0)
    square = tl.zeros((tile_c,), tl.float32)
    for first in range(0, parts, group):
        p = first + tl.arange(0, group)
        inside = (p < parts)[:, None] & (c < channels)[None, :]
        sizes = tl.minimum(chunk, voxels - p * chunk).to(tl.float32)
        at = base + p[:, None] * channels + c[None, :]
        apart = tl.load(means + at, mask=inside, other=0.0) - center[None, :]
        within = tl.load(squares + at, mask=inside, other=0.0)
        square += tl.sum(tl.where(inside, within + apart * apart * sizes[:, None], 0.0), 0)
    out = sample * channels + c
    tl.store(mean + out, center, mask=c < channels)
    tl.store(scale + out, 1.0 / tl.sqrt(square / voxels + epsilon), mask=c < channels)


@triton.jit
def _apply(  # type: ignore[no-untyped-def]
    x, skip, y, mean, scale, weight, bias, voxels, channels, slope,
    has_skip: tl.constexpr, tile_v: tl.constexpr, tile_c: tl.constexpr,
):  # fmt: skip
    """Norm, skip path and leaky ReLU of one tile."""
    v = tl.program_id(0) * tile_v + tl.arange(0, tile_v)
    c = tl.program_id(1) * tile_c + tl.arange(0, tile_c)
    sample = tl.program_id(2)
    known = c < channels
    inside = (v < voxels)[:, None] & known[None, :]
    at = sample.to(tl.int64) * voxels * channels + v.to(tl.int64)[:, None] * channels + c[None, :]
    gain = tl.load(scale + sample * channels + c, mask=known, other=0.0)
    gain *= tl.load(weight + c, mask=known, other=0.0).to(tl.float32)
    center = tl.load(mean + sample * channels + c, mask=known, other=0.0)
    shift = tl.load(bias + c, mask=known, other=0.0).to(tl.float32)
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    result = (values - center[None, :]) * gain[None, :] + shift[None, :]
    if has_skip:
        result += tl.load(skip + at, mask=inside, other=0.0).to(tl.float32)
    result = tl.where(result > 0, result, result * slope)
    tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _slopes(  # type: ignore[no-untyped-def]
    g, x, y, at, inside, gain, center, shift, slope, has_skip: tl.constexpr
):
    """Gradient before the activation, and the map less its mean, of one tile.

    Which side of the activation a value was on is computed again as `_apply` did, or, where a skip path came in between, read
    from the result.
    """
    apart = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - center[None, :]
    if has_skip:
        side = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    else:
        side = apart * gain[None, :] + shift[None, :]
    upstream = tl.load(g, mask=inside, other=0.0).to(tl.float32)
    return tl.where(side > 0, upstream, upstream * slope), apart


@triton.jit
def _sums(  # type: ignore[no-untyped-def]
    g, x, y, mean, scale, weight, bias, plain, along, voxels, channels, row, rows, chunk, slope,
    has_skip: tl.constexpr, tile_v: tl.constexpr, tile_c: tl.constexpr,
):  # fmt: skip
    """Sums of a chunk's gradients, alone and times the normed values: (N, parts, C) each. ``row``, ``rows``: steps in ``g`` from
    one voxel and one sample to the next, of which its channels may be a part.
    """
    part, sample = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * tile_c + tl.arange(0, tile_c)
    known = c < channels
    spread = tl.load(scale + sample * channels + c, mask=known, other=0.0)
    gain = spread * tl.load(weight + c, mask=known, other=0.0).to(tl.float32)
    center = tl.load(mean + sample * channels + c, mask=known, other=0.0)
    shift = tl.load(bias + c, mask=known, other=0.0).to(tl.float32)
    base = sample.to(tl.int64) * voxels * channels
    base_g = g + sample.to(tl.int64) * rows
    first_sum = tl.zeros((tile_c,), tl.float32)
    second_sum = tl.zeros((tile_c,), tl.float32)
    start = part * chunk
    end = tl.minimum(start + chunk, voxels)
    for first in range(start, end, tile_v):
        v = first + tl.arange(0, tile_v)
        inside = (v < end)[:, None] & known[None, :]
        at = base + v.to(tl.int64)[:, None] * channels + c[None, :]
        at_g = base_g + v.to(tl.int64)[:, None] * row + c[None, :]
        slopes, apart = _slopes(at_g, x, y, at, inside, gain, center, shift, slope, has_skip)
        first_sum += tl.sum(slopes, 0)
        second_sum += tl.sum(slopes * apart, 0)
    out = (sample * tl.num_programs(0) + part) * channels + c
    tl.store(plain + out, first_sum, mask=known)
    tl.store(along + out, second_sum * spread, mask=known)


@triton.jit
def _merge_sums(  # type: ignore[no-untyped-def]
    plain, along, plain_all, along_all, at_bias, at_weight, samples, channels, parts,
    group: tl.constexpr, tile_c: tl.constexpr,
):  # fmt: skip
    """Sums of each sample's chunks, (N, C), and those of the whole batch, (C,): gradients of bias and weight."""
    c = tl.program_id(0) * tile_c + tl.arange(0, tile_c)
    known = c < channels
    first_total = tl.zeros((tile_c,), tl.float32)
    second_total = tl.zeros((tile_c,), tl.float32)
    for sample in range(0, samples):
        first_sum = tl.zeros((tile_c,), tl.float32)
        second_sum = tl.zeros((tile_c,), tl.float32)
        base = sample * parts * channels
        for first in range(0, parts, group):
            p = first + tl.arange(0, group)
            inside = (p < parts)[:, None] & known[None, :]
            at = base + p[:, None] * channels + c[None, :]
            first_sum += tl.sum(tl.load(plain + at, mask=inside, other=0.0), 0)
            second_sum += tl.sum(tl.load(along + at, mask=inside, other=0.0), 0)
        tl.store(plain_all + sample * channels + c, first_sum, mask=known)
        tl.store(along_all + sample * channels + c, second_sum, mask=known)
        first_total += first_sum
        second_total += second_sum
    tl.store(at_bias + c, first_total, mask=known)
    tl.store(at_weight + c, second_total, mask=known)


@triton.jit
def _gradients(  # type: ignore[no-untyped-def]
    g, x, y, at_x, at_skip, mean, scale, weight, bias, plain, along, voxels, channels, row, rows, slope,
    has_skip: tl.constexpr, tile_v: tl.constexpr, tile_c: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of the map, and of the skip path."""
    v = tl.program_id(0) * tile_v + tl.arange(0, tile_v)
    c = tl.program_id(1) * tile_c + tl.arange(0, tile_c)
    sample = tl.program_id(2)
    known = c < channels
    inside = (v < voxels)[:, None] & known[None, :]
    at = sample.to(tl.int64) * voxels * channels + v.to(tl.int64)[:, None] * channels + c[None, :]
    at_g = g + sample.to(tl.int64) * rows + v.to(tl.int64)[:, None] * row + c[None, :]
    spread = tl.load(scale + sample * channels + c, mask=known, other=0.0)
    gain = spread * tl.load(weight + c, mask=known, other=0.0).to(tl.float32)
    center = tl.load(mean + sample * channels + c, mask=known, other=0.0)
    shift = tl.load(bias + c, mask=known, other=0.0).to(tl.float32)
    common = tl.load(plain + sample * channels + c, mask=known, other=0.0) / voxels
    aligned = tl.load(along + sample * channels + c, mask=known, other=0.0) / voxels * spread
    slopes, apart = _slopes(at_g, x, y, at, inside, gain, center, shift, slope, has_skip)
    if has_skip:
        tl.store(at_skip + at, slopes.to(at_skip.dtype.element_ty), mask=inside)
    result = (slopes - common[None, :] - apart * aligned[None, :]) * gain[None, :]
    tl.store(at_x + at, result.to(at_x.dtype.element_ty), mask=inside)


class _Grid:
    """How the programs share a map of (N, C, V)."""

    def __init__(self, x: Tensor) -> None:
        self.samples, self.channels, self.voxels = x.shape[0], x.shape[1], x.shape[2:].numel()
        self.tile_c = min(WIDEST, triton.next_power_of_2(self.channels))
        self.tile_v = TILE // self.tile_c
        self.across = triton.cdiv(self.channels, self.tile_c)
        wanted = max(1, PROGRAMS // (self.samples * self.across))
        self.chunk = triton.cdiv(triton.cdiv(self.voxels, wanted), self.tile_v) * self.tile_v
        self.parts = triton.cdiv(self.voxels, self.chunk)
        self.tiles: dict[str, Any] = {"tile_v": self.tile_v, "tile_c": self.tile_c, "num_warps": WARPS}
        self.merging: dict[str, Any] = {"group": PARTS, "tile_c": self.tile_c}
        self.sums = (self.parts, self.across, self.samples)
        self.maps = (triton.cdiv(self.voxels, self.tile_v), self.across, self.samples)

    def partial(self, x: Tensor) -> Tensor:
        return torch.empty((self.samples, self.parts, self.channels), dtype=torch.float32, device=x.device)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, slope: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `autoseg.networks.norms.fused_norm`; ``x`` and ``skip`` are dense in channels last."""
    grid = _Grid(x)
    means, squares = grid.partial(x), grid.partial(x)
    mean, scale = (torch.empty(x.shape[:2], dtype=torch.float32, device=x.device) for _ in range(2))
    sizes = grid.voxels, grid.channels
    _moments[grid.sums](x, means, squares, *sizes, grid.chunk, **grid.tiles)
    merge = (grid.across, grid.samples)
    _merge_moments[merge](means, squares, mean, scale, *sizes, grid.chunk, grid.parts, epsilon, **grid.merging)
    return apply(x, mean, scale, weight, bias, skip, slope), mean, scale


def apply(
    x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, slope: float
) -> Tensor:
    """The result alone, from mean and reciprocal standard deviation."""
    grid, y, has = _Grid(x), torch.empty_like(x), skip is not None
    numbers = (mean, scale, weight, bias)
    _apply[grid.maps](x, skip if has else x, y, *numbers, grid.voxels, grid.channels, slope, has_skip=has, **grid.tiles)
    return y


def backward(
    g: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `autoseg.networks.norms.fused_norm_backward`; ``g`` is (N, V, C), channels side by side."""
    grid = _Grid(x)
    sums, totals = (grid.partial(x), grid.partial(x)), (torch.empty_like(mean), torch.empty_like(mean))
    at_weight, at_bias = torch.empty_like(weight), torch.empty_like(bias)
    has = y is not None
    given = (g, x, y if has else x)
    numbers = (mean, scale, weight, bias)
    sizes = (grid.voxels, grid.channels, g.stride(1), g.stride(0))
    _sums[grid.sums](*given, *numbers, *sums, *sizes, grid.chunk, slope, has_skip=has, **grid.tiles)
    merge = (grid.across,)
    _merge_sums[merge](*sums, *totals, at_bias, at_weight, grid.samples, grid.channels, grid.parts, **grid.merging)
    at_x = torch.empty_like(x)
    at_skip = torch.empty_like(x) if has else x.new_empty(0)
    results = (at_x, at_skip if has else at_x)
    _gradients[grid.maps](*given, *results, *numbers, *totals, *sizes, slope, has_skip=has, **grid.tiles)
    return at_x, at_weight, at_bias, at_skip

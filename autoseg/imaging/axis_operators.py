"""Resampling of one axis as a small banded matrix: splines of order 1 and 3, or the nearest voxel.

Spline interpolation, its prefilter included, is linear and separable, so resizing an array is one matrix product per axis (method
section 4.4). The matrices are banded: cost grows with the number of voxels, however long an axis is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import spline_filter1d

Floats = NDArray[np.float32]

PREFILTER_REACH = 16
"""Neighbours on each side that the cubic prefilter reaches: weights beyond are below 0.268**16, or 1e-9."""
NEGLIGIBLE_WEIGHT = 1e-9
BLOCK_INPUTS = 48
"""Input voxels that one block of an operator advances: long enough for fast products, short enough to stay banded."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Output voxels [start, stop) as ``matrix`` (stop - start, last - first) times input voxels [first, last)."""

    start: int
    stop: int
    first: int
    last: int
    matrix: Floats


@dataclass(frozen=True, slots=True)
class AxisOperator:
    """How one axis is resampled: copied (no ``nearest``), by the nearest voxel (no ``blocks``), or by matrix blocks."""

    old: int
    new: int
    nearest: NDArray[np.intp] | None = None
    """Input voxel whose centre is nearest to each output voxel; halves go up."""
    blocks: tuple[_Block, ...] = ()

    @property
    def is_copied(self) -> bool:
        return self.nearest is None


def identity_operator(size: int) -> AxisOperator:
    """An axis of ``size`` voxels stays as it is."""
    return AxisOperator(size, size)


def axis_operator(old: int, new: int, order: int) -> AxisOperator:
    """The operator from ``old`` to ``new`` voxels: half-pixel centres, edges replicated, float64 until it is built."""
    if old == new:
        return identity_operator(old)
    positions = (np.arange(new, dtype=np.float64) + 0.5) * (old / new) - 0.5
    nearest = np.clip(np.floor(positions + 0.5).astype(np.intp), 0, old - 1)
    if order == 0:
        return AxisOperator(old, new, nearest)
    step = max(1, round(BLOCK_INPUTS * new / old))
    starts = range(0, new, step)
    return AxisOperator(old, new, nearest, tuple(_block(positions, i, min(i + step, new), old, order) for i in starts))


def _block(positions: NDArray[np.float64], start: int, stop: int, old: int, order: int) -> _Block:
    """Output voxels [start, stop) of an operator: basis functions at the positions, behind the prefilter."""
    here = positions[start:stop]
    reach = 1 if order == 1 else PREFILTER_REACH + 2
    lowest, highest = math.floor(here[0]) - reach, math.ceil(here[-1]) + reach
    distance = np.abs(here[:, None] - np.arange(lowest, highest + 1))
    if order == 1:
        matrix = np.maximum(1 - distance, 0.0)
    else:
        inner = 2 / 3 - distance**2 + distance**3 / 2
        outer = np.maximum(2 - distance, 0.0) ** 3 / 6
        prefilter = spline_filter1d(np.eye(highest - lowest + 1), order=3, axis=0, mode="mirror")
        matrix = np.where(distance < 1, inner, outer) @ prefilter
    # the edge voxel stands for all beyond the edge, and gets their weights
    columns = np.clip(np.arange(lowest, lowest + matrix.shape[1]), 0, old - 1)
    first, last = int(columns[0]), int(columns[-1]) + 1
    folded = np.zeros((stop - start, last - first))
    np.add.at(folded.T, columns - first, matrix.T)
    folded[np.abs(folded) < NEGLIGIBLE_WEIGHT] = 0
    folded /= folded.sum(axis=1, keepdims=True)  # constants stay constant to the last bit of the band's cut
    return _Block(start, stop, first, last, folded.astype(np.float32))


def restrict_outputs(axis: AxisOperator, start: int, stop: int) -> tuple[int, int, AxisOperator]:
    """The input range that outputs [start, stop) need, and the operator between the two."""
    if axis.nearest is None:
        return start, stop, identity_operator(stop - start)
    nearest = axis.nearest[start:stop]
    if not axis.blocks:
        first, last = int(nearest[0]), int(nearest[-1]) + 1
        return first, last, AxisOperator(last - first, stop - start, nearest - first)
    blocks = [_cut_rows(block, start, stop) for block in axis.blocks if block.stop > start and block.start < stop]
    first, last = min(block.first for block in blocks), max(block.last for block in blocks)
    moved = tuple(_Block(b.start - start, b.stop - start, b.first - first, b.last - first, b.matrix) for b in blocks)
    return first, last, AxisOperator(last - first, stop - start, nearest - first, moved)


def _cut_rows(block: _Block, start: int, stop: int) -> _Block:
    """The part of a block that gives outputs [start, stop), with the inputs that these need."""
    upper, lower = max(block.start, start), min(block.stop, stop)
    matrix = block.matrix[upper - block.start : lower - block.start]
    needed = np.flatnonzero(matrix.any(axis=0))
    left, right = int(needed[0]), int(needed[-1]) + 1
    return _Block(upper, lower, block.first + left, block.first + right, matrix[:, left:right])


def restrict_inputs(axis: AxisOperator, first: int, last: int) -> tuple[int, int, AxisOperator]:
    """The output range that inputs [first, last) reach, and the operator between the two."""
    if axis.nearest is None:
        return first, last, identity_operator(last - first)
    if not axis.blocks:
        start, stop = (int(i) for i in np.searchsorted(axis.nearest, (first, last)))
        return start, stop, AxisOperator(last - first, stop - start, axis.nearest[start:stop] - first)
    cut = [block for block in (_cut_columns(b, first, last) for b in axis.blocks) if block is not None]
    if not cut:  # shrinking steps over some voxels
        return 0, 0, AxisOperator(last - first, 0, axis.nearest[:0])
    start, stop = cut[0].start, cut[-1].stop
    blocks = tuple(_Block(b.start - start, b.stop - start, b.first, b.last, b.matrix) for b in cut)
    return start, stop, AxisOperator(last - first, stop - start, axis.nearest[start:stop] - first, blocks)


def _cut_columns(block: _Block, first: int, last: int) -> _Block | None:
    left, right = max(block.first, first), min(block.last, last)
    if left >= right:
        return None
    matrix = block.matrix[:, left - block.first : right - block.first]
    reached = np.flatnonzero(matrix.any(axis=1))
    if not len(reached):
        return None
    upper, lower = int(reached[0]), int(reached[-1]) + 1
    return _Block(block.start + upper, block.start + lower, left - first, right - first, matrix[upper:lower])


def apply_along(array: Floats, axis: int, operator: AxisOperator) -> Floats:
    """``operator`` along one axis of a 3D array."""
    if operator.nearest is None:
        return array
    if not operator.blocks:
        return np.take(array, operator.nearest, axis=axis)
    shape = (*array.shape[:axis], operator.new, *array.shape[axis + 1 :])
    outer, inner = math.prod(array.shape[:axis]), math.prod(array.shape[axis + 1 :])
    result = np.empty(shape, np.float32)
    source = np.ascontiguousarray(array).reshape(outer, operator.old, inner)
    target = result.reshape(outer, operator.new, inner)
    for block in operator.blocks:
        if inner == 1:
            np.matmul(
                source[:, block.first : block.last, 0], block.matrix.T, out=target[:, block.start : block.stop, 0]
            )
        else:
            np.matmul(block.matrix, source[:, block.first : block.last], out=target[:, block.start : block.stop])
    return result


def apply_all(array: Floats, axes: tuple[AxisOperator, ...]) -> Floats:
    """All operators, those that shrink first, so that fewer voxels meet the others; of equal ones the last axis, the slowest, meets fewer."""
    for axis in sorted(range(3), key=lambda i: (axes[i].new / axes[i].old, -i)):
        array = apply_along(array, axis, axes[axis])
    return array

"""Resampling of images, logits and label maps to another shape, by one operator per axis (method section 4.4).

Logits and label maps are processed slab by slab, one class at a time; no array with all classes at full size is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, find_objects

from autoseg.imaging.axis_operators import (
    AxisOperator,
    Floats,
    apply_all,
    apply_along,
    axis_operator,
    identity_operator,
    restrict_inputs,
    restrict_outputs,
)
from autoseg.imaging.image import Geometry
from autoseg.issues import AutosegError, Issue
from planners import Resampling

Shape = tuple[int, int, int]


class Scores(Protocol):
    """Scores (K, a0, a1, a2) of classes: in memory, on disk, or computed while they are read.

    Rows ``[:, first:last]`` of the first axis are read from the first to the last; again from the first where splines of a
    higher order than 1 need the range of values before.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, where: Any, /) -> NDArray[Any]: ...


MAX_ISOTROPIC_RATIO = 3.0
"""Largest spacing over smallest above which the coarse axis is resampled separately (method section 4.3)."""
SLAB_VOXELS = 2**20
"""Voxels of one class of one slab: 4 MB of scores, which stay in the caches while classes are compared."""
SLABS = 32
"""Least number of slabs of a large label map: the about 50 bytes per voxel of a slab then stay below the map itself."""
LEAST_SLAB_VOXELS = 2**14
MAX_CODES = 2**12
"""Label values that span less are used as they are; others are numbered first."""
TIE_TOLERANCE = 1e-6
"""Scores of label indicators closer than this are a tie: the rounding of float32 products must not decide."""


def decide_separate_axis(
    current_mm: tuple[float, ...], new_mm: tuple[float, ...], separate_z: bool | None
) -> int | None:
    """The axis that is resampled on its own, or none (method sections 4.3 and 4.4).

    Spacings are per axis of the array, in the same order. ``separate_z`` forces the decision; without it, anisotropy
    (largest over smallest spacing above 3) of the current, then of the new spacing decides. Where two or all axes
    share the largest spacing there is no such axis.
    """
    if separate_z is False:
        return None
    for spacing_mm in (current_mm, new_mm):
        if separate_z or max(spacing_mm) / min(spacing_mm) > MAX_ISOTROPIC_RATIO:
            axes = [axis for axis, spacing in enumerate(spacing_mm) if max(spacing_mm) / spacing == 1]
            return axes[0] if len(axes) == 1 else None
    return None


def resample_image(image: NDArray[Any], shape: Shape, *, resampling: Resampling, separate_axis: int | None) -> Floats:
    """``image`` (C, a0, a1, a2) on a grid of ``shape`` voxels, float32 (C, *shape).

    Splines of ``resampling.order`` with edge replication and half-pixel centres; each channel is clipped to its own
    range of values. With ``separate_axis``, in-plane first, each slice clipped to its own range, then along that axis
    with ``resampling.order_z`` (method section 4.4). An image that has this shape already comes back as it is.
    Values must be finite: one NaN would spread over the volume.
    """
    if tuple(image.shape[1:]) == tuple(shape):
        return image.astype(np.float32, copy=False)
    axes = _operators(image.shape[1:], shape, resampling, separate_axis)
    result = np.empty((len(image), *shape), np.float32)
    for channel, source in zip(result, image, strict=True):
        _resample_channel(source.astype(np.float32, copy=False), axes, resampling.order, separate_axis, channel)
    return result


def resample_onto(channel: NDArray[Any], source: Geometry, target: Geometry) -> Floats:
    """A channel (Z, Y, X) on another grid in the same world, linearly; beyond its image it has the value of the nearest voxel."""
    step = np.linalg.inv(source.affine) @ target.affine
    found: Floats = affine_transform(
        channel.astype(np.float32), step[:3, :3], step[:3, 3], target.shape, order=1, mode="nearest"
    )
    return found


def share_inside(grid: Geometry, other: Geometry, num_points: int = 9) -> float:
    """Share of ``grid`` that lies inside ``other``, from ``num_points`` places along each axis, from the first voxel to the last."""
    axes = [np.linspace(0, size - 1, num_points) for size in grid.shape]
    points = np.stack([each.ravel() for each in np.meshgrid(*axes, [1.0], indexing="ij")])
    places = np.linalg.inv(other.affine) @ grid.affine @ points
    last = np.array(other.shape)[:, None] - 1
    return float(((places[:3] >= -0.5) & (places[:3] <= last + 0.5)).all(axis=0).mean())


def resample_labels(
    labels: NDArray[Any], shape: Shape, *, resampling: Resampling, separate_axis: int | None
) -> NDArray[Any]:
    """``labels`` (a0, a1, a2), any integers, on a grid of ``shape`` voxels, same type (method section 4.4).

    Each output voxel gets the label whose resampled 0/1 indicator is largest there. Ties (closer than 1e-6) go to the
    nearest voxel's label if it is among the tied ones, otherwise to the smallest. With ``separate_axis`` this is done
    in-plane, then along the axis with ``resampling.order_z``. Labels that have this shape already come back as they are.
    """
    if tuple(labels.shape) == tuple(shape):
        return labels
    axes = _operators(labels.shape, shape, resampling, separate_axis)
    if separate_axis is None:
        return _vote(labels, axes, resampling.order)
    # whole slices are picked or voted on: along the shrinking axis first means fewer slices to vote in
    across = axes[separate_axis]
    if resampling.order_z == 0 and across.nearest is not None and across.new < across.old:
        labels = np.take(labels, across.nearest, axis=separate_axis)
        return _vote(labels, _in_plane(axes, separate_axis, size=across.new), resampling.order)
    labels = _vote(labels, _in_plane(axes, separate_axis, size=across.old), resampling.order)
    only_across = tuple(across if i == separate_axis else identity_operator(labels.shape[i]) for i in range(3))
    return _vote(labels, only_across, resampling.order_z)


def resample_argmax(
    logits: Scores, shape: Shape, *, resampling: Resampling, separate_axis: int | None
) -> NDArray[np.unsignedinteger[Any]]:
    """Index of the largest of the resampled ``logits`` (K, a0, a1, a2), unsigned (*shape) (method section 8.2).

    The first of equal logits wins. Slab by slab, one class at a time: memory stays a few slabs above the result.
    """
    result = np.zeros(shape, _unsigned_type(logits.shape[0] - 1))
    for rows, slab in _logit_slabs(logits, shape, resampling, separate_axis):
        write_largest(result[rows], slab)
    return result


def write_largest(labels: NDArray[Any], scores: Iterable[Floats]) -> None:
    """Write, over zeros, the index of the largest of the ``scores`` of each class; the first of equal ones wins."""
    best = above = None
    for k, each in enumerate(scores):
        if best is None or above is None:
            best, above = each.copy(), np.empty(each.shape, np.bool_)
            continue
        np.greater(each, best, out=above)
        raise_labels(labels, above, k)
        np.maximum(best, each, out=best)


def raise_labels(labels: NDArray[Any], where: NDArray[np.bool_], value: int) -> None:
    """Write a ``value`` that is larger than all before it; arithmetic is three times as fast as a choice of voxels."""
    np.maximum(labels, np.multiply(where, value, dtype=labels.dtype), out=labels)


def resample_regions(
    logits: Scores,
    shape: Shape,
    region_order: tuple[int, ...],
    *,
    resampling: Resampling,
    separate_axis: int | None,
    overlaps: Sequence[tuple[tuple[int, ...], int]] = (),
) -> NDArray[np.unsignedinteger[Any]]:
    """Label map (*shape), unsigned, from logits (R, a0, a1, a2) of overlapping regions (method section 8.2).

    Region i writes ``region_order[i]`` where its probability is above 0.5 (its logit above 0); later regions overwrite.
    Where exactly the regions of one of ``overlaps`` are, its value is written (`planners.Labels.overlaps`).
    """
    if len(region_order) != logits.shape[0]:
        raise ValueError(f"region_order has {len(region_order)} values for {logits.shape[0]} regions")
    result = np.zeros(shape, _unsigned_type(max((*region_order, *(value for _, value in overlaps)))))
    for rows, slab in _logit_slabs(logits, shape, resampling, separate_axis):
        write_regions(result[rows], slab, region_order, overlaps)
    return result


def write_regions(
    labels: NDArray[Any],
    scores: Iterable[Floats],
    region_order: Sequence[int],
    overlaps: Sequence[tuple[tuple[int, ...], int]],
) -> None:
    """Write, over zeros, the values of regions from their logits; see `resample_regions`."""
    masks = []
    for value, each in zip(region_order, scores, strict=True):
        mask = each > 0
        labels[mask] = value
        if overlaps:
            masks.append(mask)
    write_overlaps(labels, masks, overlaps)


def write_overlaps(
    labels: NDArray[Any], masks: Sequence[NDArray[np.bool_]], overlaps: Sequence[tuple[tuple[int, ...], int]]
) -> None:
    """Write, in place, each value of ``overlaps`` where exactly its regions are; ``masks`` has one for every region."""
    if not overlaps:
        return
    number = np.sum(masks, axis=0, dtype=np.int16)
    for regions, value in overlaps:
        inside = number == len(regions)
        for region in regions:
            inside &= masks[region]
        labels[inside] = value


def resample_slabs(
    logits: Scores, shape: Shape, *, resampling: Resampling, separate_axis: int | None
) -> Iterator[tuple[slice, list[Floats]]]:
    """The resampled logits, slab by slab along the first axis: rows, and for each class a fresh (rows, shape[1], shape[2])."""
    for rows, slab in _logit_slabs(logits, shape, resampling, separate_axis):
        yield rows, list(slab)


def to_probabilities(scores: Floats, *, has_regions: bool) -> None:
    """Make logits (K, ...) probabilities, in place: a softmax over all, or with ``has_regions`` a sigmoid for each."""
    if has_regions:  # a sigmoid through the hyperbolic tangent, which overflows nowhere
        scores *= 0.5
        np.tanh(scores, out=scores)
        scores *= 0.5
        scores += 0.5
    else:
        scores -= scores.max(axis=0)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=0)


def _unsigned_type(largest: int) -> type[np.uint8] | type[np.uint16]:
    if largest > np.iinfo(np.uint16).max:
        raise AutosegError(
            Issue(
                code="labels.value_too_large",
                where="",
                message=f"label value {largest} does not fit into 16 bits",
                fix="use smaller values",
            )
        )
    return np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16


# --- images and logits ---


def _operators(
    old: tuple[int, ...], new: tuple[int, ...], resampling: Resampling, separate_axis: int | None
) -> tuple[AxisOperator, ...]:
    orders = [resampling.order_z if axis == separate_axis else resampling.order for axis in range(3)]
    return tuple(axis_operator(n, m, order) for n, m, order in zip(old, new, orders, strict=True))


def _in_plane(axes: tuple[AxisOperator, ...], separate_axis: int, *, size: int) -> tuple[AxisOperator, ...]:
    """The operators with the separate axis, of ``size`` voxels, left as it is."""
    return (*axes[:separate_axis], identity_operator(size), *axes[separate_axis + 1 :])


def _resample_channel(
    source: Floats, axes: tuple[AxisOperator, ...], order: int, separate_axis: int | None, target: Floats
) -> None:
    """One channel into ``target``; slices (separate) or the whole are clipped to their own range."""
    over = None if separate_axis is None else tuple(i for i in range(3) if i != separate_axis)
    low, high = source.min(axis=over, keepdims=True), source.max(axis=over, keepdims=True)
    offset = np.float32(float(low.min()) / 2 + float(high.max()) / 2)
    # weights add up to one, so an offset passes through; without it, float32 products keep digits for small contrasts
    if abs(offset) > 4 * float(high.max() - low.min()):
        source, low, high = source - offset, low - offset, high - offset
    else:
        offset = np.float32(0)
    if separate_axis is None:
        result = apply_all(source, axes)
        np.clip(result, low, high, out=target) if order > 1 else np.copyto(target, result)
    else:
        in_plane = _in_plane(axes, separate_axis, size=axes[separate_axis].old)
        result = apply_all(source, in_plane)
        if order > 1:
            result = np.clip(result, low, high, out=None if result is source else result)
        np.copyto(target, apply_along(result, separate_axis, axes[separate_axis]))
    if offset:
        target += offset


def _slab_rows(shape: tuple[int, ...], axis: int = 0) -> Iterator[slice]:
    """Ranges of one axis with as many voxels as a slab should have."""
    thickness = slab_thickness(shape, axis)
    for start in range(0, shape[axis], thickness):
        yield slice(start, min(start + thickness, shape[axis]))


def slab_thickness(shape: Sequence[int], axis: int = 0) -> int:
    """Rows of an axis that are resampled and decided at once."""
    return max(1, _slab_voxels(shape) * shape[axis] // max(1, math.prod(shape)))


def _slab_voxels(shape: Sequence[int]) -> int:
    return min(SLAB_VOXELS, max(LEAST_SLAB_VOXELS, math.prod(shape) // SLABS))


def reads_twice(old: tuple[int, ...], new: Shape, resampling: Resampling) -> bool:
    """Whether scores on a grid of ``old`` voxels are read twice: cubic splines leave the range of values, which must be known before."""
    return resampling.order > 1 and tuple(old) != tuple(new)


def _logit_slabs(
    logits: Scores, shape: Shape, resampling: Resampling, separate_axis: int | None
) -> Iterator[tuple[slice, Iterator[Floats]]]:
    """For each slab its rows and, class by class, the resampled logits (rows, shape[1], shape[2]), fresh arrays."""
    axes = _operators(logits.shape[1:], shape, resampling, separate_axis)
    ranges = None
    if reads_twice(logits.shape[1:], shape, resampling):
        ranges = _ranges(logits, tuple(i + 1 for i in range(3) if i != separate_axis))
    for rows in _slab_rows(shape):
        first, last, operator = restrict_outputs(axes[0], rows.start, rows.stop)
        yield (
            rows,
            _class_slabs(logits[:, first:last], (operator, *axes[1:]), separate_axis, ranges, slice(first, last)),
        )


def _ranges(logits: Scores, over: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Smallest and largest logits of each class over some axes, which stay with size 1."""
    lows, highs = [], []
    for rows in _slab_rows(logits.shape[1:]):
        part = logits[:, rows]
        lows.append(part.min(axis=over, keepdims=True))
        highs.append(part.max(axis=over, keepdims=True))
    if 1 not in over:
        return np.concatenate(lows, axis=1), np.concatenate(highs, axis=1)
    return np.minimum.reduce(lows), np.maximum.reduce(highs)


def _class_slabs(
    logits: NDArray[Any],
    axes: tuple[AxisOperator, ...],
    separate_axis: int | None,
    ranges: tuple[NDArray[Any], NDArray[Any]] | None,
    rows: slice,
) -> Iterator[Floats]:
    for k in range(len(logits)):
        source = logits[k].astype(np.float32, copy=False)
        if ranges is None:
            yield apply_all(source, axes)
            continue
        low, high = (limit[k] if limit.shape[1] == 1 else limit[k, rows] for limit in ranges)
        if separate_axis is None:
            yield np.clip(apply_all(source, axes), low, high)
            continue
        in_plane = _in_plane(axes, separate_axis, size=axes[separate_axis].old)
        clipped = np.clip(apply_all(source, in_plane), low, high)
        yield apply_along(clipped, separate_axis, axes[separate_axis])


# --- label maps ---


def _vote(labels: NDArray[Any], axes: tuple[AxisOperator, ...], order: int) -> NDArray[Any]:
    """The label with the largest resampled indicator, slab by slab."""
    if order == 0 or all(axis.is_copied for axis in axes):
        return _nearest(labels, axes)
    # codes that lie close together, in the order of the labels, and the label of each code from the lowest on
    lowest, highest = int(labels.min()), int(labels.max())
    codes, values = labels, np.arange(lowest, min(highest, lowest + MAX_CODES) + 1).astype(labels.dtype)
    if highest - lowest >= MAX_CODES:  # else also where some in between are absent: no sorting of all voxels
        values, codes = np.unique(labels, return_inverse=True)
        codes, lowest = codes.reshape(labels.shape), 0
    result = np.empty(tuple(axis.new for axis in axes), labels.dtype)
    # slabs lie across the first axis; across the second where single slices are larger than a slab should be
    along = int(math.prod(result.shape[1:]) > _slab_voxels(result.shape) and result.shape[1] > result.shape[0])
    before = (slice(None),) * along
    for rows in _slab_rows(result.shape, along):
        first, last, operator = restrict_outputs(axes[along], rows.start, rows.stop)
        slab = codes[(*before, slice(first, last))].astype(np.int32, order="C") - lowest
        winner = _vote_in_slab(slab, (*axes[:along], operator, *axes[along + 1 :]), order)
        result[(*before, rows)] = values[winner]
    return result


def _nearest(labels: NDArray[Any], axes: tuple[AxisOperator, ...]) -> NDArray[Any]:
    for i, axis in enumerate(axes):
        if axis.nearest is not None:
            labels = np.take(labels, axis.nearest, axis=i)
    return labels


def _vote_in_slab(codes: NDArray[np.int32], axes: tuple[AxisOperator, ...], order: int) -> NDArray[np.int32]:
    """Winning codes of one slab. Each class is resampled only where its bounding box reaches.

    Linear indicators add up to one, so the most frequent class gets what the others leave.
    """
    boxes = find_objects(codes + 1)
    present = [code for code, box in enumerate(boxes) if box is not None]
    counts = np.bincount(codes.ravel())
    winner = np.full(tuple(axis.new for axis in axes), np.int32(counts.argmax()))
    if len(present) == 1:
        return winner
    rest = int(counts.argmax()) if order == 1 else None
    nearest = _nearest(codes, axes)
    best, total = np.zeros(winner.shape, np.float32), np.zeros(winner.shape, np.float32)
    for code in present:
        if code == rest:
            continue
        reached = [restrict_inputs(axis, side.start, side.stop) for axis, side in zip(axes, boxes[code], strict=True)]
        region = tuple(slice(start, stop) for start, stop, _ in reached)
        if not winner[region].size:
            continue
        indicator = (codes[boxes[code]] == code).astype(np.float32)
        scores = np.clip(apply_all(indicator, tuple(axis for _, _, axis in reached)), 0, 1)
        total[region] += scores
        scores += (nearest[region] == code) * np.float32(2 * TIE_TOLERANCE)
        better = scores > best[region] + TIE_TOLERANCE
        winner[region][better] = code
        np.copyto(best[region], scores, where=better)
    if rest is not None:
        # it comes last but may be a smaller label than the winner so far, and then wins a tie
        bonus = ((nearest == rest).astype(np.float32) + (winner > rest)) * np.float32(2 * TIE_TOLERANCE)
        winner[1 - total + bonus > best + TIE_TOLERANCE] = rest
    return winner

"""The non-zero box of an image (method section 2), and where a preprocessed array is in the image it came from."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from autoseg.imaging.image import Geometry
from autoseg.imaging.orientation import Orientation, from_canonical, to_canonical
from planners import Document

Triple = tuple[int, int, int]
Scalar = TypeVar("Scalar", bound=np.generic)
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


class Placement(Document):
    """The steps from source to preprocessed array, in order.

    1. canonical orientation: axis i of the canonical array is source axis ``permutation[i]``, then flipped where ``flips[i]``;
    2. plan axes: axis i is canonical axis ``transpose_forward[i]``;
    3. crop: the half-open ``box`` of plan-axis indices, one (start, end) per axis;
    4. resample to ``resampled_shape`` at ``resampled_spacing_mm``.
    """

    source: Geometry
    permutation: Triple
    flips: tuple[bool, bool, bool]
    transpose_forward: Triple
    shape_before_cropping: Triple
    """Plan axes."""
    box: Box
    spacing_mm: tuple[float, float, float]
    """Of the cropped array before resampling, plan axes."""
    resampled_shape: Triple
    resampled_spacing_mm: tuple[float, float, float]

    @property
    def shape_after_cropping(self) -> Triple:
        """Voxels inside the box, plan axes."""
        (a, b), (c, d), (e, f) = self.box
        return b - a, d - c, f - e

    @property
    def orientation(self) -> Orientation:
        """From source axes to canonical axes."""
        return Orientation(self.permutation, self.flips)


def to_plan_axes(array: NDArray[Scalar], placement: Placement) -> NDArray[Scalar]:
    """``array`` (..., Z, Y, X) in source axes, brought to plan axes; a view, not cropped."""
    lead = array.ndim - 3
    canonical = to_canonical(array, placement.orientation)
    return canonical.transpose(*range(lead), *(lead + axis for axis in placement.transpose_forward))


def to_source_axes(array: NDArray[Scalar], placement: Placement) -> NDArray[Scalar]:
    """The inverse of `to_plan_axes`: ``array`` (..., a0, a1, a2), not cropped, brought to source axes."""
    lead = array.ndim - 3
    backward = np.argsort(placement.transpose_forward)
    canonical = array.transpose(*range(lead), *(lead + int(axis) for axis in backward))
    return from_canonical(canonical, placement.orientation)


def restore_labels(labels: NDArray[Scalar], placement: Placement, *, fill: int = 0) -> NDArray[Scalar]:
    """A label map (a0, a1, a2) of the cropped box, plan axes, as (Z, Y, X) of the file; ``fill`` outside the box.

    Raises `ValueError` when ``labels`` has not the shape of the box.
    """
    _check_box(labels.shape, placement)
    whole = np.full(placement.shape_before_cropping, fill, labels.dtype)
    crop(whole, placement.box)[...] = labels
    return np.ascontiguousarray(to_source_axes(whole, placement))


def inside_box(array: NDArray[Scalar], placement: Placement) -> NDArray[Scalar]:
    """The part of ``array`` (..., Z, Y, X), axes of the file, that was preprocessed, in plan axes; a view to be filled."""
    return crop(to_plan_axes(array, placement), placement.box)


def _check_box(shape: tuple[int, ...], placement: Placement) -> None:
    if tuple(shape) != placement.shape_after_cropping:
        raise ValueError(
            f"the array has {tuple(shape)} voxels, but the box it came from {placement.shape_after_cropping}"
        )


def nonzero_mask(image: NDArray[Any]) -> NDArray[np.bool_]:
    """Voxels (Z, Y, X) that are not exactly zero in any channel of ``image`` (C, Z, Y, X), holes filled.

    A hole is a set of zero voxels, joined by faces, that does not touch the border of the array; so in one slice
    (Z = 1), where every voxel is at the border, nothing is filled.
    """
    mask: NDArray[np.bool_] = np.not_equal(image[0], 0)
    for channel in image[1:]:
        np.logical_or(mask, channel, out=mask)
    inside = crop(mask, bounding_box(mask))  # what lies outside is joined to the border
    if min(inside.shape) < 3 or inside.all():
        return mask
    components, number = label(~inside)
    is_hole = np.ones(number + 1, bool)
    is_hole[0] = False
    for axis in range(3):
        for side in (0, -1):
            is_hole[np.take(components, side, axis=axis)] = False
    if is_hole.any():
        inside |= is_hole[components]
    return mask


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """Tight half-open box around the true voxels of ``mask`` (Z, Y, X); of an empty mask, the whole array."""
    in_plane = np.any(mask, axis=0)
    lines = np.any(mask, axis=(1, 2)), np.any(in_plane, axis=1), np.any(in_plane, axis=0)
    z, y, x = (np.flatnonzero(line) for line in lines)
    if not len(z):
        return (0, mask.shape[0]), (0, mask.shape[1]), (0, mask.shape[2])
    return (int(z[0]), int(z[-1]) + 1), (int(y[0]), int(y[-1]) + 1), (int(x[0]), int(x[-1]) + 1)


def crop(array: NDArray[Any], box: Box) -> NDArray[Any]:
    """The part of ``array`` (..., Z, Y, X) inside the half-open ``box``; a view."""
    slices: tuple[Any, ...] = tuple(slice(start, stop) for start, stop in box)
    return array[(..., *slices)]

"""The part of an image that holds anything: the non-zero mask and its box (method section 2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def nonzero_mask(image: NDArray[Any]) -> NDArray[np.bool_]:
    """Voxels (Z, Y, X) that are not exactly zero in any channel of ``image`` (C, Z, Y, X), holes filled.

    A hole is a set of zero voxels, joined by faces, that does not touch the border of the array; so in one slice
    (Z = 1), where every voxel is at the border, nothing is filled.
    """
    mask: NDArray[np.bool_] = np.not_equal(image[0], 0)
    for channel in image[1:]:
        np.logical_or(mask, channel, out=mask)
    _fill_holes(mask[_slices(bounding_box(mask))])
    return mask


def _fill_holes(mask: NDArray[np.bool_]) -> None:
    """In place. What lies outside the box of a mask is joined to the border, so looking inside the box is enough."""
    if min(mask.shape) < 3 or mask.all():
        return
    components, number = label(~mask)
    if number == 0:
        return
    is_hole = np.ones(number + 1, bool)
    is_hole[0] = False
    for axis in range(3):
        for side in (0, -1):
            is_hole[np.take(components, side, axis=axis)] = False
    if is_hole.any():
        mask |= is_hole[components]


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """Tight half-open box around the true voxels of ``mask`` (Z, Y, X); of an empty mask, the whole array."""
    in_plane = np.any(mask, axis=0)
    lines = np.any(mask, axis=(1, 2)), np.any(in_plane, axis=1), np.any(in_plane, axis=0)
    z, y, x = (np.flatnonzero(line) for line in lines)
    if not len(z):
        return (0, mask.shape[0]), (0, mask.shape[1]), (0, mask.shape[2])
    return (int(z[0]), int(z[-1]) + 1), (int(y[0]), int(y[-1]) + 1), (int(x[0]), int(x[-1]) + 1)


def _slices(box: Box) -> tuple[slice, slice, slice]:
    z, y, x = (slice(start, stop) for start, stop in box)
    return z, y, x


def crop(array: NDArray[Any], box: Box) -> NDArray[Any]:
    """The part of ``array`` (..., Z, Y, X) inside the half-open ``box``; a view."""
    return array[(..., *_slices(box))]

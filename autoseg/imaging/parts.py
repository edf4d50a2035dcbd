"""A grid that is a part of another one: where its voxels lie in there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.volume import Geometry

OFF_GRID = 0.1
"""Voxels; no voxel moves to its neighbour by that."""
SAME_DIRECTION = 1e-3
"""A quarter of a voxel at the end of 256."""

Indices = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def part_indices(part: Geometry, whole: Geometry) -> Indices | None:
    """Index in ``whole`` of each index of ``part``, one array for each axis (z, y, x); None where it is no part.

    Both run along the same axes. Every voxel of the part lies on one of the whole, within a tenth of a voxel; an axis of
    the part may skip voxels (every second slice), and one of length 1 says nothing of its spacing.
    """
    direction = np.array(whole.direction)
    if np.abs(np.array(part.direction) - direction).max() > SAME_DIRECTION:
        return None
    offset = direction.T @ (np.array(part.origin_mm) - np.array(whole.origin_mm))
    axes = []
    for axis in range(3):
        places = offset[2 - axis] + np.arange(part.shape[axis]) * part.spacing_mm[axis]
        places = places / whole.spacing_mm[axis]
        index = np.rint(places)
        if np.abs(places - index).max() > OFF_GRID or index[0] < 0 or index[-1] >= whole.shape[axis]:
            return None
        axes.append(index.astype(np.int64))
    z, y, x = axes
    return z, y, x


def place_part(array: NDArray[Any], part: Geometry, whole: Geometry) -> NDArray[Any] | None:
    """``array`` (Z, Y, X) on the grid ``whole``, zero around it; None where ``part`` is no part of it."""
    indices = part_indices(part, whole)
    if indices is None:
        return None
    placed = np.zeros(whole.shape, array.dtype)
    placed[np.ix_(*indices)] = array
    return placed

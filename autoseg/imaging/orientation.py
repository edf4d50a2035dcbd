"""Bringing source axes to one canonical orientation and back, finding one grid inside another, and how two grids differ.

Canonical array axes (z, y, x) run towards Superior, Posterior and Left, as near as whole axes allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.image import Geometry, LabelMap
from autoseg.issues import AutosegError, Issue

Triple = tuple[int, int, int]
Flips = tuple[bool, bool, bool]
Scalar = TypeVar("Scalar", bound=np.generic)
OFF_GRID = 0.1
"""Voxels; no voxel moves to its neighbour by that."""
SAME_DIRECTION = 1e-3
"""A quarter of a voxel at the end of 256."""

Indices = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Orientation:
    """Axis i (z, y, x) of the canonical array is source axis ``permutation[i]``, reversed where ``flips[i]``."""

    permutation: Triple
    flips: Flips


IDENTITY = Orientation((0, 1, 2), (False, False, False))


def knows_directions(geometry: Geometry) -> bool:
    """Whether the axes of a file mean directions of the body: not those of photographs."""
    return geometry.dimensions == 3 and geometry.has_orientation


def canonical_orientation(geometry: Geometry) -> Orientation:
    """The orientation that brings the direction matrix closest to the identity.

    Of all permutations of axes, with the flips that make each axis point the canonical way, the one with the largest
    trace (smallest Frobenius distance to the identity). Where two are equally close (45 degrees), the first in
    lexical order. 2D images and formats that store no orientation keep their axes.
    """
    if not knows_directions(geometry):
        return IDENTITY
    # rows: world axes, columns: index axes, both in (z, y, x) order like arrays
    direction = np.array(geometry.direction)[::-1, ::-1]
    best, closest = IDENTITY.permutation, -1.0
    for order in permutations((0, 1, 2)):
        closeness = float(sum(abs(direction[i, axis]) for i, axis in enumerate(order)))
        if closeness > closest + 1e-6:  # rounding must not decide between equals
            best, closest = (order[0], order[1], order[2]), closeness
    z, y, x = (bool(direction[i, axis] < 0) for i, axis in enumerate(best))
    return Orientation(best, (z, y, x))


def acquisition_orientation(geometry: Geometry) -> Orientation:
    """Source axes in their own order, each flipped to run along the canonical direction that it is closest to."""
    canonical = canonical_orientation(geometry)
    z, y, x = (canonical.flips[canonical.permutation.index(axis)] for axis in range(3))
    return Orientation((0, 1, 2), (z, y, x))


def ras_orientation(geometry: Geometry) -> Orientation:
    """As `canonical_orientation`, but the axes (z, y, x) run towards Superior, Anterior and Right."""
    canonical = canonical_orientation(geometry)
    if not knows_directions(geometry):
        return canonical
    z, y, x = canonical.flips
    return Orientation(canonical.permutation, (z, not y, not x))


def to_canonical(array: NDArray[Scalar], orientation: Orientation) -> NDArray[Scalar]:
    """``array`` (..., Z, Y, X) in source axes, brought to canonical axes; a view where possible."""
    lead = array.ndim - 3
    permuted = array.transpose(*range(lead), *(lead + axis for axis in orientation.permutation))
    flipped: NDArray[Scalar] = permuted[_steps(orientation)]
    return flipped


def from_canonical(array: NDArray[Scalar], orientation: Orientation) -> NDArray[Scalar]:
    """The inverse of `to_canonical`: ``array`` (..., z, y, x) in canonical axes, brought back to source axes."""
    lead = array.ndim - 3
    backward = np.argsort(orientation.permutation)
    flipped: NDArray[Scalar] = array[_steps(orientation)]
    return flipped.transpose(*range(lead), *(lead + int(axis) for axis in backward))


def _steps(orientation: Orientation) -> tuple[Any, ...]:
    return (..., *(slice(None, None, -1) if flip else slice(None) for flip in orientation.flips))


def canonical_geometry(geometry: Geometry, orientation: Orientation) -> Geometry:
    """Geometry of the canonical array: every voxel keeps its place in the world."""
    direction = np.array(geometry.direction)
    origin = np.array(geometry.origin_mm)
    columns: list[Any] = [None, None, None]
    for i, (axis, flip) in enumerate(zip(orientation.permutation, orientation.flips, strict=True)):
        along = direction[:, 2 - axis]
        if flip:
            origin = origin + along * geometry.spacing_mm[axis] * (geometry.shape[axis] - 1)
        columns[2 - i] = -along if flip else along
    return geometry.model_copy(
        update={
            "shape": tuple(geometry.shape[axis] for axis in orientation.permutation),
            "spacing_mm": tuple(geometry.spacing_mm[axis] for axis in orientation.permutation),
            "origin_mm": tuple(origin.tolist()),
            "direction": tuple(map(tuple, np.stack(columns, axis=1).tolist())),
        }
    )


def align_label_map(label_map: LabelMap, geometry: Geometry) -> NDArray[np.integer[Any]]:
    """The label map's array (Z, Y, X) in the source axes of an image that stores the same grid in another orientation.

    One that may be a part of the image's grid is placed in it, background around. Raises `AutosegError` when the shapes
    differ even so, or when it is no part.
    """
    own, other = canonical_orientation(label_map.geometry), canonical_orientation(geometry)
    array = label_map.array
    if label_map.may_be_part:
        part, whole = canonical_geometry(label_map.geometry, own), canonical_geometry(geometry, other)
        placed = place_part(to_canonical(array, own), part, whole)
        if placed is not None:
            return from_canonical(placed, other)
        raise AutosegError(
            Issue(
                code="labels.outside_image",
                where="",
                message=f"the label map with {array.shape} voxels (z, y, x) from {label_map.geometry.origin_mm} mm "
                f"(x, y, z) is not on the grid of its image with {geometry.shape} from {geometry.origin_mm} mm",
                fix="resample it to the grid of the image",
            )
        )
    if own != other:
        array = from_canonical(to_canonical(array, own), other)
    if array.shape != geometry.shape:
        raise AutosegError(
            Issue(
                code="labels.shape_differs",
                where="",
                message=f"the label map has {label_map.array.shape} voxels (z, y, x), but its image has {geometry.shape}",
                fix="resample the label map to the grid of the image",
            )
        )
    return array


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
    if (indices := part_indices(part, whole)) is None:
        return None
    placed = np.zeros(whole.shape, array.dtype)
    placed[np.ix_(*indices)] = array
    return placed


@dataclass(frozen=True, slots=True, kw_only=True)
class GridTolerances:
    """How much two grids may differ and still count as the same."""

    spacing: float
    """Relative, on each axis."""
    origin: float
    """In voxels of the expected grid, on each axis of the world."""
    direction: float
    """Largest difference of an entry of the direction matrix."""


SAME_GRID = GridTolerances(spacing=1e-3, origin=0.1, direction=1e-3)
"""Label map against image. Headers that other programs wrote differ by rounding, to about 1e-5; a thousandth in spacing
or direction is a quarter of a voxel at the end of 256, a tenth of a voxel in origin moves no voxel to its neighbour."""


def oriented_differences(found: Geometry, expected: Geometry) -> tuple[str, ...]:
    """`grid_differences` with the tolerances `SAME_GRID`, with both grids in canonical axes."""
    return grid_differences(canonical_grid(found), canonical_grid(expected), SAME_GRID)


def canonical_grid(geometry: Geometry) -> Geometry:
    """The grid in canonical axes."""
    return canonical_geometry(geometry, canonical_orientation(geometry))


def grid_differences(found: Geometry, expected: Geometry, tolerances: GridTolerances) -> tuple[str, ...]:
    """Each difference as ``size A voxels instead of B``; empty if the grids are the same.

    Sizes are always compared; spacing, origin and direction only where both files store them. Sizes and spacings are
    given in the order z, y, x, origins in x, y, z as files store them.
    """
    differences = []
    if found.shape != expected.shape:
        own, other = ("x".join(map(str, grid.shape)) for grid in (found, expected))
        differences.append(f"size {own} voxels instead of {other} (z, y, x)")
    if not (found.has_orientation and expected.has_orientation):
        return tuple(differences)
    if not np.allclose(found.spacing_mm, expected.spacing_mm, rtol=tolerances.spacing, atol=0):
        differences.append(
            f"spacing {_numbers(found.spacing_mm)} mm instead of {_numbers(expected.spacing_mm)} mm (z, y, x)"
        )
    shift_mm = np.abs(np.subtract(found.origin_mm, expected.origin_mm)).max()
    if shift_mm > tolerances.origin * min(expected.spacing_mm):
        differences.append(
            f"origin {_numbers(found.origin_mm)} mm instead of {_numbers(expected.origin_mm)} mm (x, y, z)"
        )
    if np.abs(np.subtract(found.direction, expected.direction)).max() > tolerances.direction:
        own, other = (" ".join(map(_numbers, grid.direction)) for grid in (found, expected))
        differences.append(f"direction {own} instead of {other}")
    return tuple(differences)


def _numbers(values: Sequence[float]) -> str:
    """Numbers with enough digits to show a small difference."""
    return f"({', '.join(f'{value:.7g}' for value in values)})"

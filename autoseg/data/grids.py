"""Compares the grids of two images and describes their differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.imaging.image import Geometry
from autoseg.imaging.orientation import canonical_geometry, canonical_orientation, part_indices
from autoseg.imaging.readers import ImageHeader


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


def fits_grid(label: ImageHeader, image: Geometry) -> bool:
    """Whether a label map lies on the grid of an image in any orientation, or on a part of it where its format allows that."""
    if label.may_be_part:
        return part_indices(canonical_grid(label.geometry), canonical_grid(image)) is not None
    return not oriented_differences(label.geometry, image)


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
        differences.append(f"size {_product(found.shape)} voxels instead of {_product(expected.shape)} (z, y, x)")
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
        differences.append(f"direction {_rows(found)} instead of {_rows(expected)}")
    return tuple(differences)


def _product(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)


def _numbers(values: Sequence[float]) -> str:
    """Numbers with enough digits to show a small difference."""
    return "(" + ", ".join(f"{value:.7g}" for value in values) + ")"


def _rows(geometry: Geometry) -> str:
    return " ".join(_numbers(row) for row in geometry.direction)

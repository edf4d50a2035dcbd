"""Compares the grids of two image files and says in words how they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.imaging.volume import Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class GridTolerances:
    """How far two grids may be apart and still count as the same."""

    spacing: float
    """Relative, on each axis."""
    origin: float
    """In voxels of the expected grid, on each axis of the world."""
    direction: float
    """Largest difference of an entry of the direction matrix."""


def grid_differences(found: Geometry, expected: Geometry, tolerances: GridTolerances) -> tuple[str, ...]:
    """Each difference as ``what it is instead of what was expected``; empty where the grids are the same.

    Sizes are always compared; spacing, origin and direction only where both files store them. Sizes and spacings are
    said in the order z, y, x, origins in x, y, z as files store them.
    """
    differences = []
    if found.shape != expected.shape:
        differences.append(f"size {_product(found.shape)} voxels instead of {_product(expected.shape)} (z, y, x)")
    if not (found.has_orientation and expected.has_orientation):
        return tuple(differences)
    if not np.allclose(found.spacing_mm, expected.spacing_mm, rtol=tolerances.spacing, atol=0):
        differences.append(f"spacing {_numbers(found.spacing_mm)} mm instead of {_numbers(expected.spacing_mm)} mm (z, y, x)")
    shift_mm = np.abs(np.subtract(found.origin_mm, expected.origin_mm)).max()
    if shift_mm > tolerances.origin * min(expected.spacing_mm):
        differences.append(f"origin {_numbers(found.origin_mm)} mm instead of {_numbers(expected.origin_mm)} mm (x, y, z)")
    if np.abs(np.subtract(found.direction, expected.direction)).max() > tolerances.direction:
        differences.append(f"direction {_rows(found)} instead of {_rows(expected)}")
    return tuple(differences)


def _product(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)


def _numbers(values: Sequence[float]) -> str:
    """Numbers with as many digits as it takes to see a small difference."""
    return "(" + ", ".join(f"{value:.7g}" for value in values) + ")"


def _rows(geometry: Geometry) -> str:
    return " ".join(_numbers(row) for row in geometry.direction)

"""Grids that are the same are silent, others say how they differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.imaging.image import Geometry
from autoseg.imaging.orientation import GridTolerances, grid_differences

LOOSE = GridTolerances(spacing=1e-3, origin=0.1, direction=1e-3)
GRID = Geometry(shape=(4, 5, 6), spacing_mm=(3.0, 1.0, 0.5), origin_mm=(10.0, -20.0, 30.0))


def changed(**fields):
    return Geometry(**{**GRID.model_dump(), **fields})


def test_a_grid_is_the_same_as_itself():
    assert grid_differences(GRID, GRID, GridTolerances(spacing=0, origin=0, direction=0)) == ()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (changed(shape=(4, 5, 7)), "size 4x5x7 voxels instead of 4x5x6"),
        (changed(spacing_mm=(3.0, 1.0, 0.502)), "spacing (3, 1, 0.502) mm instead of (3, 1, 0.5) mm"),
        (changed(origin_mm=(10.06, -20.0, 30.0)), "origin (10.06, -20, 30) mm instead of (10, -20, 30) mm"),
        (changed(direction=((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))), "direction (-1, 0, 0) (0, 1, 0)"),
    ],
)
def test_one_difference_is_described_with_both_values(other, words):
    (said,) = grid_differences(other, GRID, LOOSE)
    assert words in said


def test_all_differences_are_described():
    other = changed(shape=(1, 1, 1), spacing_mm=(1.0, 1.0, 1.0), origin_mm=(0.0, 0.0, 0.0))
    assert len(grid_differences(other, GRID, LOOSE)) == 3


def test_formats_without_a_place_are_compared_by_size_only():
    other = changed(spacing_mm=(9.0, 9.0, 9.0), origin_mm=(0.0, 0.0, 0.0), has_orientation=False)
    assert grid_differences(other, GRID, LOOSE) == ()
    assert len(grid_differences(changed(shape=(1, 1, 1), has_orientation=False), GRID, LOOSE)) == 1


@given(factor=st.floats(0.9, 1.1), shift=st.floats(-0.2, 0.2))
def test_what_is_within_tolerance_moves_no_voxel_to_its_neighbour(factor, shift):
    other = changed(spacing_mm=(3.0 * factor, 1.0, 0.5), origin_mm=(10.0, -20.0, 30.0 + shift))
    if not grid_differences(other, GRID, LOOSE):
        last = np.array(GRID.shape) - 1
        apart = abs(shift) + last[0] * abs(factor - 1) * 3.0
        assert apart < min(GRID.spacing_mm) / 2

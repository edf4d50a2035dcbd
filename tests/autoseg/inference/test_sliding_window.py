"""Windows cover every voxel, and weights favour their centre."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from autoseg.inference.sliding_window import WindowGrid, count_windows, importance_map, window_starts


def test_window_starts_are_the_methods_example() -> None:
    assert window_starts(110, 64) == [0, 23, 46]


@given(size=st.integers(1, 500), patch=st.integers(4, 200))
def test_windows_cover_the_axis_in_steps_of_half_a_patch(size: int, patch: int) -> None:
    size = max(size, patch)
    starts = window_starts(size, patch)
    assert starts[0] == 0
    assert starts[-1] == size - patch
    # rounding of evenly spread starts may widen one step by a voxel
    assert all(0 < b - a <= patch / 2 + 1 for a, b in pairwise(starts))


def test_importance_is_the_filtered_impulse_of_the_method() -> None:
    patch = (12, 17, 8)
    impulse = np.zeros(patch)
    impulse[tuple(n // 2 for n in patch)] = 1
    expected = gaussian_filter(impulse, [n / 8 for n in patch], mode="constant")
    expected /= expected.max()
    got = importance_map(patch).numpy()
    inside = expected > 0
    np.testing.assert_allclose(got[inside], expected[inside], rtol=1e-5)  # float32
    assert (got > 0).all()
    assert got.max() == 1


def test_windows_are_counted_as_they_are_used() -> None:
    assert count_windows((110, 64, 30), (64, 64, 64)) == 3
    assert count_windows((10, 110, 64), (64, 64)) == 30


axes = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
patches = st.tuples(st.integers(4, 20), st.integers(8, 20), st.integers(8, 20))


@given(shape=axes, patch=patches, is_flat=st.booleans())
def test_rows_are_complete_when_no_later_window_reaches_them(shape, patch, is_flat: bool) -> None:
    """And windows are numbered in the order in which the last axis changes first."""
    grid = WindowGrid.of(shape, patch[1:] if is_flat else patch)
    places = [grid.place(index) for index in range(grid.number)]
    assert [grid.index(grid.steps(index)) for index in range(grid.number)] == list(range(grid.number))
    assert places == sorted(places, key=lambda place: tuple(side.start for side in place))
    rows = shape[0] + sum(grid.padding[0])
    for done in range(grid.number + 1):
        assert grid.complete_rows(done) == min([rows, *(place[0].start for place in places[done:])])


@given(size=st.integers(1, 60), patch=st.integers(4, 30))
def test_voxels_between_two_edges_are_in_the_same_windows(size: int, patch: int) -> None:
    grid = WindowGrid.of((size, 1, 1), (patch, 1, 1))
    starts = grid.starts[0]
    assert grid.edges(0)[-1] == max(size, patch)
    for low, high in pairwise(grid.edges(0)):
        first, last = grid.around(0, low, high)
        for voxel in (low, high - 1):
            reaching = [i for i, start in enumerate(starts) if start <= voxel < start + patch]
            assert reaching == list(range(first, last + 1))

"""A grid that is a part of another, found by where its voxels lie."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from autoseg.imaging.image import Geometry
from autoseg.imaging.orientation import part_indices, place_part

WHOLE = (6, 7, 8)


@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    start=st.tuples(*[st.integers(0, size - 1) for size in WHOLE]),
    step=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_a_part_comes_back_to_its_place(
    angles: tuple[float, float, float], start: tuple[int, int, int], step: tuple[int, int, int]
) -> None:
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    rows = tuple(tuple(float(v) for v in row) for row in direction)
    whole = Geometry(shape=WHOLE, spacing_mm=(2.5, 0.75, 0.5), origin_mm=(1.0, 2.0, 3.0), direction=rows)
    array = np.arange(1, 1 + np.prod(WHOLE)).reshape(WHOLE)
    cut = tuple(slice(a, None, b) for a, b in zip(start, step, strict=True))
    part = array[cut]
    offset = np.array(start[::-1]) * np.array(whole.spacing_mm[::-1])
    geometry = Geometry(
        shape=part.shape,
        spacing_mm=tuple(s * k for s, k in zip(whole.spacing_mm, step, strict=True)),
        origin_mm=tuple(float(v) for v in np.array(whole.origin_mm) + direction @ offset),
        direction=rows,
    )
    placed = place_part(part, geometry, whole)
    expected = np.zeros_like(array)
    expected[cut] = part
    assert placed is not None
    assert np.array_equal(placed, expected)


def test_what_lies_beside_between_or_turned_is_no_part() -> None:
    whole = Geometry(shape=WHOLE, spacing_mm=(1.0, 1.0, 1.0))
    for changes in (
        {"origin_mm": (0.5, 0.0, 0.0)},
        {"origin_mm": (-1.0, 0.0, 0.0)},
        {"shape": (7, 7, 8)},
        {"spacing_mm": (1.5, 1.0, 1.0)},
        {"direction": ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))},
    ):
        assert part_indices(whole.model_copy(update=changes), whole) is None

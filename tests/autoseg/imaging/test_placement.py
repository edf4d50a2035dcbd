"""What was done to a case can be undone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.imaging.image import Geometry
from autoseg.imaging.placement import (
    Placement,
    crop,
    inside_box,
    restore_labels,
    to_plan_axes,
    to_source_axes,
)

orders = st.permutations([0, 1, 2]).map(tuple)


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    permutation, transpose = draw(orders), draw(orders)
    before = tuple(shape[permutation[axis]] for axis in transpose)
    starts = [draw(st.integers(0, size - 1)) for size in before]
    box = tuple((start, draw(st.integers(start + 1, size))) for start, size in zip(starts, before, strict=True))
    return Placement(
        source=Geometry(shape=shape, spacing_mm=(1.0, 1.0, 1.0)),
        permutation=permutation,
        flips=draw(st.tuples(*[st.booleans()] * 3)),
        transpose_forward=transpose,
        shape_before_cropping=before,
        box=box,
        spacing_mm=(1.0, 1.0, 1.0),
        resampled_shape=tuple(stop - start for start, stop in box),
        resampled_spacing_mm=(1.0, 1.0, 1.0),
    )


@settings(deadline=None, max_examples=80)
@given(placement=placements())
def test_labels_return_to_where_they_were_cut_out(placement: Placement) -> None:
    source = np.arange(1, 1 + np.prod(placement.source.shape)).reshape(placement.source.shape)
    turned = to_plan_axes(source, placement)
    assert turned.shape == placement.shape_before_cropping
    assert np.array_equal(to_source_axes(turned, placement), source)
    restored = restore_labels(crop(turned, placement.box), placement)
    inside = restored != 0
    assert inside.sum() == np.prod(placement.shape_after_cropping)
    assert np.array_equal(restored[inside], source[inside])


@settings(deadline=None, max_examples=40)
@given(placement=placements())
def test_scores_and_labels_have_the_same_grid(placement: Placement) -> None:
    shape = placement.shape_after_cropping
    values = np.random.default_rng(0).uniform(0.1, 0.9, (3, *shape)).astype(np.float32)
    whole = np.full((3, *placement.source.shape), 9, np.float32)
    inside_box(whole, placement)[...] = values
    for own, expected in zip(whole, values, strict=True):
        assert np.array_equal(own, restore_labels(expected, placement, fill=9))


def test_an_array_that_is_not_the_box_is_refused() -> None:
    placement = Placement(
        source=Geometry(shape=(4, 4, 4), spacing_mm=(1.0, 1.0, 1.0)),
        permutation=(0, 1, 2),
        flips=(False, False, False),
        transpose_forward=(0, 1, 2),
        shape_before_cropping=(4, 4, 4),
        box=((0, 2), (0, 4), (0, 4)),
        spacing_mm=(1.0, 1.0, 1.0),
        resampled_shape=(2, 4, 4),
        resampled_spacing_mm=(1.0, 1.0, 1.0),
    )
    with pytest.raises(ValueError, match=r"\(4, 4, 4\) voxels.*\(2, 4, 4\)"):
        restore_labels(np.zeros((4, 4, 4), np.uint8), placement)
    assert restore_labels(np.zeros((2, 4, 4), np.uint8), placement, fill=9).sum() == 9 * 32

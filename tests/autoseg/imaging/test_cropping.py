"""The non-zero mask and its box."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_fill_holes

from autoseg.imaging.placement import bounding_box, crop, nonzero_mask


@settings(deadline=None, max_examples=80)
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_holes_are_filled_as_scipy_fills_them(shape: tuple[int, int, int], share: float, seed: int) -> None:
    image = np.random.default_rng(seed).uniform(size=(2, *shape)) > share
    assert np.array_equal(nonzero_mask(image.astype(np.float32)), binary_fill_holes(image.any(axis=0)))


@settings(deadline=None, max_examples=50)
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), seed=st.integers(0, 999))
def test_the_box_is_tight(shape: tuple[int, int, int], seed: int) -> None:
    mask = np.random.default_rng(seed).uniform(size=shape) > 0.97
    box = bounding_box(mask)
    if not mask.any():
        assert box == tuple((0, size) for size in shape)
        return
    assert crop(mask, box).sum() == mask.sum()
    for axis, (start, stop) in enumerate(box):
        assert np.take(mask, start, axis=axis).any()
        assert np.take(mask, stop - 1, axis=axis).any()


def test_a_single_slice_is_never_filled() -> None:
    ring = np.ones((1, 1, 5, 5), np.float32)
    ring[0, 0, 2, 2] = 0
    assert not nonzero_mask(ring)[0, 2, 2]


def test_a_hollow_cube_is_filled() -> None:
    cube = np.zeros((1, 7, 7, 7), np.float32)
    cube[0, 1:6, 1:6, 1:6] = -3
    cube[0, 2:5, 2:5, 2:5] = 0
    mask = nonzero_mask(cube)
    assert mask.sum() == 125
    assert bounding_box(mask) == ((1, 6), (1, 6), (1, 6))

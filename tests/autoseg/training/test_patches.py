"""Where patches come from, and how they are cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.training.sampling import ANNOTATED, crop_size, cut, draw_patch, generator, is_forced

SIZES = st.tuples(*[st.integers(1, 40)] * 3)


@pytest.mark.parametrize(
    ("patch", "degrees", "expected"),
    [
        ((128, 128, 128), 30, (205, 205, 205)),
        ((96, 160, 160), 30, (191, 257, 219)),
        ((512, 512), 180, (602, 602)),
        ((256, 128), 15, (329, 150)),
        ((40, 56, 40), 30, (73, 80, 64)),
    ],
)
def test_crop_sizes_are_the_methods(patch, degrees, expected) -> None:
    """The checks of method section 6.1."""
    assert crop_size(patch, rotation=math.radians(degrees), dummy_2d=False) == expected


def test_in_plane_rotation_leaves_the_first_axis() -> None:
    assert crop_size((10, 64, 64), rotation=math.pi, dummy_2d=True)[0] == 10


@given(shape=SIZES, patch=SIZES, seed=st.integers(0, 2**20))
def test_free_patches_lie_inside_or_around_the_image(shape, patch, seed) -> None:
    rng = np.random.default_rng(seed)
    start = draw_patch(rng, shape, patch=patch, crop=patch, locations={}, forced=False)
    for s, n, p in zip(start, shape, patch, strict=True):
        if p <= n:
            assert 0 <= s <= n - p
        else:  # the image lies inside the patch, half the missing voxels on either side, give or take one
            assert s <= 0
            assert s + p >= n


@given(shape=st.tuples(*[st.integers(8, 40)] * 3), seed=st.integers(0, 2**20))
def test_forced_patches_hold_the_drawn_voxel(shape, seed) -> None:
    rng = np.random.default_rng(seed)
    voxel = np.array([[rng.integers(n) for n in shape]], dtype=np.int32)
    start = draw_patch(rng, shape, patch=(8, 8, 8), crop=(8, 8, 8), locations={"a": voxel}, forced=True)
    assert all(s <= v < s + 8 for s, v in zip(start, voxel[0], strict=True))
    assert all(0 <= s <= n - 8 for s, n in zip(start, shape, strict=True))


def test_classes_are_equally_likely_whatever_their_size() -> None:
    many = np.zeros((1000, 3), np.int32)
    one = np.array([[30, 30, 30]], np.int32)
    rng = np.random.default_rng(0)
    starts = [
        draw_patch(rng, (32, 32, 32), patch=(4, 4, 4), crop=(4, 4, 4), locations={"a": many, "b": one}, forced=True)
        for _ in range(2000)
    ]
    share = np.mean([s[0] > 0 for s in starts])
    assert abs(share - 0.5) < 0.05  # four standard errors of 2000 draws


def test_unforced_samples_of_partly_annotated_data_are_centred_on_annotated_voxels() -> None:
    voxel = np.array([[20, 20, 20]], np.int32)
    rng = np.random.default_rng(0)
    start = draw_patch(rng, (32, 32, 32), patch=(4, 4, 4), crop=(4, 4, 4), locations={ANNOTATED: voxel}, forced=False)
    assert start == (18, 18, 18)


@pytest.mark.parametrize(("batch_size", "forced"), [(1, 0), (2, 1), (3, 1), (9, 3), (12, 4)])
def test_forced_share_of_a_batch_is_the_methods(batch_size: int, forced: int) -> None:
    """Method section 7.2: the last ones, from round(0.67 B) on."""
    assert sum(is_forced(i, batch_size=batch_size, foreground_share=0.33) for i in range(batch_size)) == forced


@given(shape=SIZES, size=SIZES, start=st.tuples(*[st.integers(-50, 50)] * 3))
def test_cutting_agrees_with_padding_first(shape, size, start) -> None:
    array = np.arange(2 * math.prod(shape), dtype=np.float32).reshape(2, *shape)
    padded = np.pad(array, ((0, 0), *[(100, 100)] * 3), constant_values=-7)
    expected = padded[(slice(None), *(slice(100 + s, 100 + s + k) for s, k in zip(start, size, strict=True)))]
    np.testing.assert_array_equal(cut(array, start, size, outside=-7), expected)


def test_draws_follow_from_what_they_are_for() -> None:
    base = {"seed": 1, "configuration": "2d", "fold": 0, "step": 3, "sample": 0, "purpose": "patch"}
    first = generator(**base).random(4)
    np.testing.assert_array_equal(first, generator(**base).random(4))
    for change in ({"seed": 2}, {"configuration": "3d"}, {"fold": 1}, {"step": 4}, {"sample": 1}, {"purpose": "noise"}):
        assert not np.array_equal(first, generator(**{**base, **change}).random(4))

"""Properties of resampling that hold whatever the arrays."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.imaging.resampling import (
    decide_separate_axis,
    resample_argmax,
    resample_image,
    resample_labels,
    resample_regions,
    resample_slabs,
    to_probabilities,
)
from autoseg.issues import AutosegError
from planners import Resampling

CUBIC = Resampling(order=3, order_z=0)
LINEAR = Resampling(order=1, order_z=0)

sizes = st.integers(1, 20)
shapes = st.tuples(sizes, sizes, sizes)
axes = st.sampled_from([None, 0, 1, 2])
orders = st.sampled_from([0, 1, 3])


@pytest.mark.parametrize(
    ("current", "new", "force", "axis"),
    [
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None, None),  # a ratio of exactly 3 is not anisotropic
        ((3.1, 1.0, 1.0), (1.0, 1.0, 1.0), None, 0),
        ((1.0, 1.0, 5.0), (1.0, 1.0, 1.0), None, 2),
        ((1.0, 1.0, 1.0), (1.0, 4.0, 1.0), None, 1),
        ((0.24, 1.25, 1.25), (1.0, 1.0, 1.0), None, None),  # two coarse axes: none is the coarse one
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), True, None),
        ((2.0, 1.0, 1.0), (1.0, 1.0, 1.0), True, 0),
        ((9.0, 1.0, 1.0), (1.0, 1.0, 1.0), False, None),
    ],
)
def test_the_separate_axis_follows_the_anisotropy(
    current: tuple[float, ...], new: tuple[float, ...], force: bool | None, axis: int | None
) -> None:
    assert decide_separate_axis(current, new, force) == axis


@settings(deadline=None, max_examples=40)
@given(old=shapes, new=shapes, order=orders, axis=axes, value=st.floats(-1e4, 1e4, width=32))
def test_constant_images_stay_constant(
    old: tuple[int, int, int], new: tuple[int, int, int], order: int, axis: int | None, value: float
) -> None:
    image = np.full((1, *old), value, np.float32)
    got = resample_image(image, new, resampling=Resampling(order=order, order_z=0), separate_axis=axis)
    assert got.shape == (1, *new)
    assert got.dtype == np.float32
    assert np.allclose(got, value, rtol=1e-6, atol=1e-30)  # a few roundings of single precision


@settings(deadline=None, max_examples=40)
@given(old=shapes, new=shapes, axis=axes, seed=st.integers(0, 99))
def test_values_stay_in_the_range_of_their_channel(
    old: tuple[int, int, int], new: tuple[int, int, int], axis: int | None, seed: int
) -> None:
    image = np.random.default_rng(seed).normal(size=(2, *old)).astype(np.float32)
    got = resample_image(image, new, resampling=CUBIC, separate_axis=axis)
    for channel, result in zip(image, got, strict=True):
        assert channel.min() <= result.min()
        assert result.max() <= channel.max()


@settings(deadline=None, max_examples=40)
@given(old=shapes, new=shapes, axis=st.sampled_from([0, 1, 2]), order=orders, seed=st.integers(0, 99))
def test_mirroring_before_or_after_is_the_same(
    old: tuple[int, int, int], new: tuple[int, int, int], axis: int, order: int, seed: int
) -> None:
    if order == 0:
        order = 1  # halves go up, so picking the nearest voxel knows a direction
    image = np.random.default_rng(seed).normal(size=(1, *old)).astype(np.float32)
    resampling = Resampling(order=order, order_z=0)
    one = resample_image(np.flip(image, axis + 1), new, resampling=resampling, separate_axis=None)
    other = np.flip(resample_image(image, new, resampling=resampling, separate_axis=None), axis + 1)
    assert np.abs(one - other).max() <= 1e-5 * max(float(np.ptp(image)), 1e-6)  # the agreement asked for


@settings(deadline=None, max_examples=40)
@given(old=shapes, new=shapes, axis=axes, seed=st.integers(0, 99))
def test_only_labels_that_were_there_come_out(
    old: tuple[int, int, int], new: tuple[int, int, int], axis: int | None, seed: int
) -> None:
    labels = np.random.default_rng(seed).choice(np.array([-1, 0, 7, 30000], np.int16), old)
    got = resample_labels(labels, new, resampling=LINEAR, separate_axis=axis)
    assert got.shape == new
    assert got.dtype == labels.dtype
    assert set(np.unique(got)) <= set(np.unique(labels))


def test_labels_enlarged_by_a_whole_number_and_back_are_the_same() -> None:
    labels = np.random.default_rng(0).integers(0, 5, (6, 7, 8)).astype(np.int16)
    large = resample_labels(labels, (18, 21, 24), resampling=Resampling(order=0, order_z=0), separate_axis=None)
    back = resample_labels(large, (6, 7, 8), resampling=Resampling(order=0, order_z=0), separate_axis=None)
    assert np.array_equal(back, labels)


def test_equal_shapes_come_back_untouched() -> None:
    image = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    assert resample_image(image, (2, 3, 4), resampling=CUBIC, separate_axis=None) is image
    assert resample_labels(image[0], (2, 3, 4), resampling=LINEAR, separate_axis=0) is not None


def test_every_other_slice_of_eight_is_taken_going_up_at_halves() -> None:
    labels = np.arange(8, dtype=np.int16).reshape(8, 1, 1) * np.ones((8, 2, 2), np.int16)
    got = resample_labels(labels, (4, 2, 2), resampling=LINEAR, separate_axis=0)
    assert got[:, 0, 0].tolist() == [1, 3, 5, 7]


def test_the_first_of_equal_logits_wins() -> None:
    logits = np.zeros((3, 2, 2, 2), np.float32)
    assert not resample_argmax(logits, (4, 4, 4), resampling=LINEAR, separate_axis=None).any()


def test_half_precision_logits_are_taken() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 4, 4, 4)).astype(np.float16)
    got = resample_argmax(logits, (4, 4, 4), resampling=LINEAR, separate_axis=None)
    assert np.array_equal(got, logits.argmax(axis=0))
    assert got.dtype == np.uint8


def test_later_regions_overwrite_earlier_ones() -> None:
    logits = np.full((3, 1, 1, 4), -1.0, np.float32)
    logits[0, ..., :3] = 1
    logits[1, ..., 1:3] = 1
    logits[2, ..., 2] = 1
    got = resample_regions(logits, (1, 1, 4), (1, 2, 3), resampling=LINEAR, separate_axis=None)
    assert got.ravel().tolist() == [1, 2, 3, 0]
    wide = resample_regions(logits, (1, 1, 4), (1, 2, 300), resampling=LINEAR, separate_axis=None)
    assert wide.dtype == np.uint16


def test_a_region_order_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 values for 3 regions"):
        resample_regions(np.zeros((3, 2, 2, 2), np.float32), (2, 2, 2), (1, 2), resampling=LINEAR, separate_axis=None)


def test_label_values_beyond_16_bits_are_refused() -> None:
    with pytest.raises(AutosegError) as caught:
        resample_regions(np.zeros((1, 2, 2, 2), np.float32), (2, 2, 2), (70000,), resampling=LINEAR, separate_axis=None)
    assert caught.value.codes == ("labels.value_too_large",)


def resample_probabilities(logits, shape, *, separate_axis: int | None, has_regions: bool) -> np.ndarray:
    slabs = [
        np.stack(scores) for _, scores in resample_slabs(logits, shape, resampling=LINEAR, separate_axis=separate_axis)
    ]
    result = np.concatenate(slabs, axis=1)
    to_probabilities(result, has_regions=has_regions)
    return result


@settings(deadline=None, max_examples=25)
@given(old=shapes, new=shapes, axis=axes, seed=st.integers(0, 99))
def test_probabilities_agree_with_the_label_map(
    old: tuple[int, int, int], new: tuple[int, int, int], axis: int | None, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(scale=5, size=(3, *old)).astype(np.float32)
    softmax = resample_probabilities(logits, new, separate_axis=axis, has_regions=False)
    labels = resample_argmax(logits, new, resampling=LINEAR, separate_axis=axis)
    assert np.allclose(softmax.sum(axis=0), 1, atol=1e-6)  # three roundings
    chosen = np.take_along_axis(softmax, labels[None].astype(np.intp), axis=0)
    assert (chosen == softmax.max(axis=0)).all()
    sigmoid = resample_probabilities(logits, new, separate_axis=axis, has_regions=True)
    regions = resample_regions(logits, new, (1, 1, 1), resampling=LINEAR, separate_axis=axis)
    # exactly one half is a matter of rounding
    clear = np.abs(sigmoid - 0.5).min(axis=0) > 1e-6
    assert np.array_equal(regions[clear] > 0, (sigmoid > 0.5).any(axis=0)[clear])


def test_extreme_logits_give_finite_probabilities() -> None:
    logits = np.array([-1e4, 0, 1e4], np.float32).reshape(3, 1, 1, 1)
    for has_regions in (False, True):
        got = resample_probabilities(logits, (2, 1, 1), separate_axis=None, has_regions=has_regions)
        assert np.isfinite(got).all()
        assert got[2].min() == 1


def test_many_classes_never_exist_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoseg.imaging.resampling.SLAB_VOXELS", 2**16)
    logits = np.random.default_rng(0).normal(size=(30, 20, 20, 20)).astype(np.float32)
    shape = (100, 100, 100)
    tracemalloc.start()
    resample_argmax(logits, shape, resampling=LINEAR, separate_axis=None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    all_classes = 30 * 4 * 100**3
    assert peak < all_classes / 20  # the result is a 120th, the rest a few slabs of one class


@pytest.mark.parametrize("old", [(40, 100, 120), (1, 900, 700), (3, 500, 600)])
@pytest.mark.parametrize("growth", [(1.0, 1.3, 1.3), (2.0, 1.0, 1.0), (1.0, 0.6, 0.6)])
@pytest.mark.parametrize("separate_axis", [None, 0])
def test_memory_stays_below_three_times_input_and_output(
    old: tuple[int, int, int], growth: tuple[float, float, float], separate_axis: int | None
) -> None:
    z, y, x = (max(1, round(n * factor)) for n, factor in zip(old, growth, strict=True))
    blocks = np.random.default_rng(0).integers(0, 6, [max(1, n // 10) for n in old])
    labels = blocks[np.ix_(*(np.arange(n) * few // n for n, few in zip(old, blocks.shape, strict=True)))].astype(
        np.int16
    )
    image = np.random.default_rng(0).normal(size=(1, *old)).astype(np.float32)

    def peak(array: np.ndarray, resample: Callable[..., np.ndarray], order: int) -> float:
        tracemalloc.start()
        result = resample(array, (z, y, x), resampling=Resampling(order=order, order_z=0), separate_axis=separate_axis)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return (most + array.nbytes) / (array.nbytes + result.nbytes)

    assert peak(labels, resample_labels, 1) < 3
    assert peak(image, resample_image, 3) < 3


def test_slabs_across_the_second_axis_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (3, 60, 50)).astype(np.int16)
    whole = resample_labels(labels, (4, 80, 70), resampling=LINEAR, separate_axis=None)
    monkeypatch.setattr("autoseg.imaging.resampling.LEAST_SLAB_VOXELS", 500)
    assert np.array_equal(resample_labels(labels, (4, 80, 70), resampling=LINEAR, separate_axis=None), whole)


def test_cost_of_an_operator_grows_linearly_with_its_axis() -> None:
    from autoseg.imaging.axis_operators import axis_operator

    def weights(n: int) -> int:
        return sum(block.matrix.size for block in axis_operator(n, 2 * n, 3).blocks)

    assert weights(4000) < 11 * weights(400)

"""Resampling by axis operators gives what scikit-image and scipy give."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage.transform import resize

from autoseg.imaging.resampling import resample_argmax, resample_image, resample_labels
from planners import Resampling

# single precision products over a band of at most 100 weights; the target of the design is the same
RANGE_TOLERANCE = 1e-5

SHAPES = [
    pytest.param((9, 20, 31), (17, 13, 31), id="up_down_same"),
    pytest.param((30, 7, 12), (5, 40, 3), id="strong"),
    pytest.param((1, 40, 50), (1, 64, 33), id="one_slice"),
    pytest.param((1, 1, 9), (4, 1, 5), id="one_voxel_axes"),
    pytest.param((3, 130, 170), (4, 200, 99), id="several_blocks"),
]


def reference(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    return resize(array.astype(np.float64), shape, order, mode="edge", anti_aliasing=False, clip=True)


def separate_reference(
    array: np.ndarray, shape: tuple[int, int, int], axis: int, order: int, order_z: int
) -> np.ndarray:
    """Slice by slice in plane, then along the axis by sampling at half-pixel positions."""
    stack = np.moveaxis(array.astype(np.float64), axis, 0)
    plane = tuple(n for i, n in enumerate(shape) if i != axis)
    slices = np.stack([reference(one, plane, order) for one in stack])
    if shape[axis] != len(slices):
        z = (np.arange(shape[axis]) + 0.5) * len(slices) / shape[axis] - 0.5
        positions = np.meshgrid(z, *(np.arange(n) for n in plane), indexing="ij")
        slices = map_coordinates(slices, positions, order=order_z, mode="nearest")
    return np.moveaxis(slices, 0, axis)


@pytest.mark.parametrize(("old", "new"), SHAPES)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_an_image_agrees_with_scikit_image(old: tuple[int, ...], new: tuple[int, int, int], order: int) -> None:
    image = np.random.default_rng(1).normal(size=(2, *old)).astype(np.float32)
    got = resample_image(image, new, resampling=Resampling(order=order, order_z=0), separate_axis=None)
    for channel, mine in zip(image, got, strict=True):
        assert np.abs(mine - reference(channel, new, order)).max() <= RANGE_TOLERANCE * np.ptp(channel)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("order", "order_z"), [(3, 0), (3, 1), (1, 3), (0, 0)])
@pytest.mark.parametrize("new", [(9, 30, 18), (20, 13, 25)])
def test_a_separate_axis_agrees_with_slices_and_sampling(
    axis: int, order: int, order_z: int, new: tuple[int, int, int]
) -> None:
    image = np.random.default_rng(2).normal(size=(1, 11, 23, 21)).astype(np.float32)
    got = resample_image(image, new, resampling=Resampling(order=order, order_z=order_z), separate_axis=axis)
    expected = separate_reference(image[0], new, axis, order, order_z)
    assert np.abs(got[0] - expected).max() <= RANGE_TOLERANCE * np.ptp(image)


def test_a_small_contrast_on_a_large_offset_keeps_its_digits() -> None:
    image = (1e4 + np.random.default_rng(3).uniform(size=(1, 20, 20, 20))).astype(np.float32)
    got = resample_image(image, (31, 14, 20), resampling=Resampling(order=3, order_z=0), separate_axis=None)
    # the values themselves are rounded to 1e-3 at this height; nothing may be added to that but one more rounding
    assert np.abs(got[0] - reference(image[0], (31, 14, 20), 3)).max() <= 1e-3


def test_a_real_volume_agrees(real_data) -> None:  # type: ignore[no-untyped-def]
    from autoseg.imaging.readers import read_image

    image = read_image([real_data / "Task04_Hippocampus" / "imagesTr" / "hippocampus_003.nii.gz"]).array
    got = resample_image(image, (50, 40, 47), resampling=Resampling(order=3, order_z=0), separate_axis=None)
    assert np.abs(got[0] - reference(image[0], (50, 40, 47), 3)).max() <= RANGE_TOLERANCE * np.ptp(image)


def indicator_scores(labels: np.ndarray, shape: tuple[int, ...], order: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.unique(labels)
    return values, np.stack([reference(labels == value, shape, order) for value in values])


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(
    ("old", "new"), [((7, 12, 9), (13, 12, 5)), ((4, 6, 5), (12, 18, 15)), ((60, 9, 9), (25, 11, 9))]
)
def test_a_label_map_gets_the_label_with_the_largest_indicator(
    old: tuple[int, ...], new: tuple[int, int, int], order: int
) -> None:
    labels = np.random.default_rng(4).integers(-1, 4, old).astype(np.int16)
    got = resample_labels(labels, new, resampling=Resampling(order=order, order_z=0), separate_axis=None)
    values, scores = indicator_scores(labels, new, order)
    ranked = np.sort(scores, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-5  # closer ones are a matter of rounding; ties have their own test
    assert clear.any()
    assert np.array_equal(got[clear], values[scores.argmax(axis=0)][clear])


@pytest.mark.parametrize(
    ("old", "new"), [((4, 6, 5), (8, 18, 5)), ((2, 3, 9), (4, 9, 9)), ((8, 8, 6), (4, 4, 6)), ((1, 8, 8), (1, 4, 12))]
)
def test_exact_ties_go_to_the_nearest_label_then_to_the_smallest(
    old: tuple[int, int, int], new: tuple[int, int, int]
) -> None:
    labels = np.random.default_rng(5).integers(-1, 4, old).astype(np.int16)
    got = resample_labels(labels, new, resampling=Resampling(order=1, order_z=0), separate_axis=None)
    values, scores = indicator_scores(labels, new, 1)
    nearest = reference(labels, new, 0)
    tied = scores >= scores.max(axis=0) - 1e-9  # float64 rounding of sums that are equal in exact arithmetic
    nearest_is_tied = (tied & (values[:, None, None, None] == nearest)).any(axis=0)
    expected = np.where(nearest_is_tied, nearest, values[tied.argmax(axis=0)])
    assert (tied.sum(axis=0) > 1).any()
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("new_z", [7, 3])
def test_separate_labels_are_voted_on_in_plane_and_picked_across(new_z: int) -> None:
    labels = np.random.default_rng(6).integers(0, 3, (5, 10, 8)).astype(np.int16)
    got = resample_labels(labels, (new_z, 15, 11), resampling=Resampling(order=1, order_z=0), separate_axis=0)
    slices = np.concatenate(
        [
            resample_labels(one[None], (1, 15, 11), resampling=Resampling(order=1, order_z=0), separate_axis=None)
            for one in labels
        ]
    )
    picked = np.floor((np.arange(new_z) + 0.5) * 5 / new_z).astype(int)
    assert np.array_equal(got, slices[picked])


@pytest.mark.parametrize("separate_axis", [None, 0, 2])
def test_slabs_of_logits_agree_with_whole_arrays(separate_axis: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoseg.imaging.resampling.SLAB_VOXELS", 500)
    logits = np.random.default_rng(7).normal(size=(4, 12, 14, 10)).astype(np.float32)
    for order in (1, 3):
        resampling = Resampling(order=order, order_z=0)
        got = resample_argmax(logits, (29, 10, 19), resampling=resampling, separate_axis=separate_axis)
        whole = resample_image(logits, (29, 10, 19), resampling=resampling, separate_axis=separate_axis)
        ranked = np.sort(whole, axis=0)
        clear = ranked[-1] - ranked[-2] > 1e-5 * np.ptp(logits)  # rounding differs with the shape of the products
        assert np.array_equal(got[clear], whole.argmax(axis=0)[clear])
        assert clear.mean() > 0.99

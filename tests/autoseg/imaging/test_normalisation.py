"""Normalisation, with answers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from autoseg.imaging.image import looks_like_ct
from autoseg.issues import AutosegError
from autoseg.preprocessing.prepare import normalise
from planners import ChannelNormalization, IntensityStatistics

STATISTICS = IntensityStatistics(
    mean=10, median=9, std=4, minimum=-50, maximum=90, percentile_00_5=-2, percentile_99_5=30
)


def run(
    image: np.ndarray,
    scheme: str,
    *,
    use_mask: bool = False,
    mask: np.ndarray | None = None,
    modality: tuple[str, ...] = (),
) -> np.ndarray:
    mask = np.ones(image.shape, bool) if mask is None else mask
    chosen = ChannelNormalization(scheme=scheme, use_mask=use_mask)  # type: ignore[arg-type]
    return normalise(image[None], (chosen,), (STATISTICS,), mask, modality=modality)[0]


def cube(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, 1, -1)


def test_ct_is_clipped_and_scaled_by_the_foreground() -> None:
    assert run(cube(-1000, -2, 10, 30, 3000), "ct").ravel().tolist() == [-3, -3, 0, 5, 5]


def test_zscore_has_mean_zero_and_unit_deviation() -> None:
    image = np.random.default_rng(0).normal(300, 20, (6, 50, 60)).astype(np.float32)
    got = run(image, "zscore")
    assert got.mean(dtype=np.float64) == pytest.approx(0, abs=1e-5)  # the mean is subtracted in single precision
    assert got.std(dtype=np.float64) == pytest.approx(1, abs=1e-5)
    assert np.allclose(got, (image - image.mean()) / image.std(), atol=1e-4)


def test_masked_zscore_leaves_the_outside_alone() -> None:
    image = cube(0, 0, 1, 3, 7)
    mask = image > 0
    mask[0, 0, 4] = False
    assert run(image, "zscore", use_mask=True, mask=mask).ravel().tolist() == [0, 0, -1, 1, 7]


def test_an_empty_mask_leaves_the_channel_alone() -> None:
    image = cube(1, 2)
    assert run(image, "zscore", use_mask=True, mask=np.zeros(image.shape, bool)).tolist() == image.tolist()


@pytest.mark.parametrize("scheme", ["zscore", "rescale_to_0_1"])
def test_constant_images_become_zero(scheme: str) -> None:
    assert run(cube(5, 5, 5), scheme).tolist() == cube(0, 0, 0).tolist()


def test_rescaling_runs_from_zero_to_one() -> None:
    assert run(cube(-2, 0, 2), "rescale_to_0_1").ravel().tolist() == [0, 0.5, 1]


def test_colours_are_divided_by_255() -> None:
    assert run(cube(0, 51, 255), "rgb_to_0_1").ravel().tolist() == pytest.approx([0, 0.2, 1])


def test_colours_beyond_255_are_refused() -> None:
    with pytest.raises(AutosegError) as caught:
        run(cube(0, 300), "rgb_to_0_1")
    assert caught.value.codes == ("image.colour_range",)


def test_none_keeps_values_and_the_input_is_never_changed() -> None:
    image = cube(1, 2, 3)
    got = run(image, "none")
    got += 1
    run(image, "zscore")
    assert image.ravel().tolist() == [1, 2, 3]


def test_channels_are_normalised_independently() -> None:
    image = np.stack([cube(0, 255), cube(14, 14)])
    schemes = (ChannelNormalization(scheme="rgb_to_0_1"), ChannelNormalization(scheme="ct"))
    got = normalise(image, schemes, (STATISTICS, STATISTICS), np.ones((1, 1, 2), bool))
    assert got.reshape(2, 2).tolist() == [[0, 1], [1, 1]]


def with_share(share: float, value: float, rest: float) -> np.ndarray:
    """A thousand voxels, ``share`` of which have ``value``."""
    image = np.full((1, 10, 100), rest, np.float32)
    image.flat[: round(share * 1000)] = value
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (with_share(0.01, -1000, 40), True),
        (with_share(0.009, -1000, 40), False),
        (with_share(0.5, -1024, 40.5), None),  # not in whole numbers
        (with_share(0.5, -899, 40), None),
        (with_share(0.5, -901, 40), True),
        (with_share(0.5, -1101, 40), None),
        (with_share(0.5, -51, 40), None),
        (with_share(0.5, -50, 40), False),
        (with_share(0.5, 24, 1064), False),  # CT without its intercept
    ],
)
def test_ct_is_told_by_air_in_whole_numbers(image: np.ndarray, expected: bool | None) -> None:
    assert looks_like_ct(image) is expected
    assert looks_like_ct(image, "OT") is expected, "a modality that tells nothing"
    assert [looks_like_ct(image, modality) for modality in ("CT", "MR")] == [True, False]


def test_mixed_channels_are_normalised_as_what_each_image_is() -> None:
    ct, mr = with_share(0.3, -1000, 40), np.random.default_rng(0).uniform(0, 900, (1, 10, 100)).astype(np.float32)
    for image, scheme in ((ct, "ct"), (with_share(0.3, -300.5, 40), "ct"), (mr, "zscore")):
        np.testing.assert_array_equal(run(image, "ct_or_zscore"), run(image, scheme))
    np.testing.assert_array_equal(run(ct, "ct_or_zscore", modality=("MR",)), run(ct, "zscore"))

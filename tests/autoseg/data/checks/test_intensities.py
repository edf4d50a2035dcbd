"""Images with intensities unlike the others are found, usual ones are not."""

from __future__ import annotations

import numpy as np
import pytest

from autoseg.data.checks.plausibility import unusual_intensities

SHAPE = (8, 8, 8)


def noise(seed, scale=1.0):
    return scale * np.random.default_rng(seed).normal(10, 1, (1, *SHAPE))


@pytest.mark.parametrize(("factor", "number", "expected"), [(15, 4, []), (30, 4, ["odd"]), (30, 3, [])])
def test_another_scale_is_reported_among_enough_others(measure, factor, number, expected):
    """More than 20 times the scale of the nearest of three others or more."""
    cases = [measure(f"c{seed}", noise(seed)) for seed in range(number - 1)]
    issues = unusual_intensities([*cases, measure("odd", noise(99, factor))], ("MRI",))
    assert [(issue.code, issue.case) for issue in issues] == [("image.scale", case) for case in expected]


@pytest.mark.parametrize(("channel", "severity"), [("MRI", "note"), ("noNorm", "warning")])
def test_another_scale_is_a_note_where_each_image_is_z_scored(measure, channel, severity):
    cases = [measure(f"c{seed}", noise(seed)) for seed in range(4)]
    (issue,) = unusual_intensities([*cases, measure("odd", noise(99, 30))], (channel,))
    assert (issue.code, issue.severity) == ("image.scale", severity)


@pytest.mark.parametrize(
    ("channel", "air", "low", "expected"),
    [
        ("CT", -1000, 0, ["odd"]),
        ("ct", -201, 0, ["odd"]),
        ("CT", -199, 0, []),
        ("CT", -1000, -1, []),
        ("MRI", -1000, 0, []),
    ],
)
def test_a_ct_without_air_among_others_is_not_in_hounsfield_units(measure, channel, air, low, expected):
    def image(seed, minimum):
        array = np.random.default_rng(seed).uniform(0, 1000, (1, *SHAPE))
        array[0, 0] = minimum
        return array

    cases = [measure(f"c{seed}", image(seed, air)) for seed in range(3)]
    issues = unusual_intensities([*cases, measure("odd", image(9, low))], (channel,))
    assert [(issue.code, issue.case) for issue in issues] == [("image.not_hounsfield", case) for case in expected]


@pytest.mark.parametrize(
    ("channel", "minimum", "number", "expected"),
    [
        ("CT", 0, 1, ["channel.not_ct"]),
        ("CT", -200, 1, ["channel.not_ct"]),
        ("CT", -201, 1, []),
        ("CT", -160, 8, []),  # clipped: air has the lowest value
        ("MRI", 0, 1, []),
    ],
)
def test_images_that_are_clearly_no_ct_under_its_name_are_said(measure, channel, minimum, number, expected):

    def image(seed):
        array = np.random.default_rng(seed).uniform(0, 300, (1, *SHAPE))
        array[0, 0, 0, :number] = minimum
        return array

    issues = unusual_intensities([measure(f"c{seed}", image(seed)) for seed in range(3)], (channel,))
    assert [issue.code for issue in issues] == expected
    assert all(issue.severity == "warning" for issue in issues)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_exchanged_channels_are_found(measure, order):
    z = np.linspace(0, 1, 8)[:, None, None] + np.zeros(SHAPE)

    def channels(seed):
        random = np.random.default_rng(seed)
        return np.stack([z**4, 1 - z, np.abs(z - 0.5)]) * 100 + random.normal(0, 1, (3, *SHAPE)) + 10

    cases = [measure(f"c{seed}", channels(seed)) for seed in range(5)]
    issues = unusual_intensities([*cases, measure("odd", channels(9)[list(order)])], ("T1", "T2", "PD"))
    expected = [] if order == (0, 1, 2) else [("image.channel_order", "odd")]
    assert [(issue.code, issue.case) for issue in issues] == expected


@pytest.mark.parametrize(
    ("channel", "num_other", "expected"),
    [
        ("image", 0, [("channel.looks_like_ct", "note")]),
        ("CT", 0, []),
        ("MRI", 0, []),
        ("CT or MR", 2, [("channel.ct_and_other", "note")]),
        ("CT", 2, [("channel.ct_and_other", "warning")]),
        ("MRI", 2, []),
    ],
)
def test_how_ct_will_be_planned_is_said_where_intensities_decide(measure, channel, num_other, expected):
    def image(seed, air):
        array = np.random.default_rng(seed).integers(0, 400, (1, *SHAPE)).astype(float)
        array[0, :3] = air
        return array

    cases = [measure(f"ct{seed}", image(seed, -1000)) for seed in range(4)]
    others = [measure(f"mr{seed}", image(seed, 0)) for seed in range(num_other)]
    issues = unusual_intensities([*cases, *others], (channel,))
    assert [(issue.code, issue.severity) for issue in issues] == expected
    assert all("mr0" in issue.message for issue in issues if num_other)


def test_tags_tell_ct_from_others_before_intensities(measure):
    arrays = [np.random.default_rng(seed).integers(-900, 400, (1, *SHAPE)).astype(float) for seed in range(4)]
    mr = [measure(f"mr{seed}", array, modality="MR") for seed, array in enumerate(arrays)]
    (issue,) = unusual_intensities(mr, ("CT",))
    assert (issue.code, issue.severity) == ("channel.not_ct", "warning")
    ct = [measure(f"ct{seed}", array, modality="CT") for seed, array in enumerate(arrays)]
    assert unusual_intensities(ct, ("CT",)) == []
    (issue,) = unusual_intensities([*ct, mr[0]], ("CT",))
    assert (issue.code, issue.severity) == ("channel.ct_and_other", "note"), "tags are certain, even of one case"
    assert "mr0" in issue.message

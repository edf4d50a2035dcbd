"""Cases that occur twice are found by their voxels, patients by the names of their cases."""

from __future__ import annotations

import numpy as np
import pytest

from autoseg.data.checks.duplicates import find_duplicates

SHAPE = (6, 8, 10)


def image(seed):
    return np.random.default_rng(seed).normal(100, 10, (1, *SHAPE))


def labels(count, seed=0):
    array = np.zeros(SHAPE, np.uint8)
    array.reshape(-1)[seed : seed + count] = 1
    return array


def codes(cases):
    return [(issue.severity, issue.code, issue.case) for issue in find_duplicates(cases)]


@pytest.mark.parametrize(("count", "expected"), [(19, []), (20, [("warning", "labels.duplicate", "b")])])
def test_small_label_maps_may_be_equal_by_chance(measure, count, expected):
    assert codes([measure("a", image(1), labels(count)), measure("b", image(2), labels(count))]) == expected


@pytest.mark.parametrize(("noise", "expected"), [(0.1, [("warning", "case.near_duplicate", "b")]), (2.0, [])])
def test_images_that_differ_by_scale_and_little_noise_are_nearly_the_same(measure, noise, expected):
    other = 2 * (image(1) + noise * np.random.default_rng(7).normal(0, 1, (1, *SHAPE)))
    assert codes([measure("a", image(1)), measure("b", other)]) == expected


def test_the_same_channel_twice_is_an_error_unless_most_cases_have_it(measure):
    def twice(seed):
        return np.concatenate([image(seed), image(seed)])

    usual = [measure(f"c{seed}", np.concatenate([image(seed), image(seed + 50)])) for seed in range(2)]
    assert codes([*usual, measure("odd", twice(9))]) == [("error", "image.repeated_channel", "odd")]
    assert codes([usual[0], measure("d", twice(8)), measure("odd", twice(9))]) == []
    assert codes([*usual, measure("one file for both", twice(9), num_files=2)]) == []


@pytest.mark.parametrize("is_training", [True, False])
def test_only_training_cases_come_into_folds(measure, is_training):
    (issue,) = find_duplicates([measure(name, image(1), is_training=is_training) for name in "ab"])
    assert (issue.code, "fold" in issue.fix) == ("case.duplicate", is_training)

"""Left and right forms are noticed by name and by place, and nothing else is taken for a pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.data.discovery import discover_dataset
from autoseg.data.labels import find_pairs, find_places, mirrored_pairs, paired_names
from autoseg.preprocessing.fingerprint import take_fingerprint
from autoseg.tracking.progress import SilentReporter
from planners import LabelClass, plan_dataset

WORDS = [("left", "right"), ("Left", "Right"), ("L", "R"), ("lt", "rt")]
CLASSES = (LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,)), LabelClass(name="c", values=(3,)))


@given(st.sampled_from(WORDS), st.sampled_from(["kidney", "Lung", "hip bone"]), st.sampled_from("_- "), st.booleans())
def test_names_that_differ_in_the_side_only_are_a_pair(words, organ, between, side_first):
    left, right = (between.join((word, organ) if side_first else (organ, word)) for word in words)
    assert paired_names([right, "spleen", left]) == ((left, right),)


@pytest.mark.parametrize(
    "names",
    [
        ("left atrium",),
        ("left kidney", "right lung"),
        ("liver", "spleen"),
        ("left", "right"),
        ("L1", "R2"),
        ("bright", "blight"),
    ],
)
def test_other_names_are_no_pair(names):
    assert paired_names(names) == ()


def labels(seed=0, *, third=True):
    """Two equal blobs left and right of the middle, and one in it; the patient lies a little askew."""
    rng = np.random.default_rng(seed)
    array = np.zeros((20, 24, 40), np.int16)
    z, y, x = (int(value) for value in rng.integers(-1, 2, 3))
    array[8 + z : 12 + z, 10 + y : 14 + y, 28 + x : 33 + x] = 1
    array[9 + z : 13 + z, 10 + y : 14 + y, 8 + x : 13 + x] = 2
    if third:
        array[4 + z : 16 + z, 3 + y : 6 + y, 17 + x : 24 + x] = 3
    return array


def places(arrays):
    return [find_places(array, (2.0, 1.0, 1.0), CLASSES) for array in arrays]


def test_places_are_centres_in_mm():
    array = np.zeros((4, 6, 8), np.int16)
    array[1:3, 2, 4:8] = 1
    (place,) = places([array])
    assert place.volumes.tolist() == [8, 0, 0, 8]
    assert place.centres_mm[0].tolist() == [3.0, 2.0, 5.5]
    assert np.isnan(place.centres_mm[1]).all()


def test_structures_beside_each_other_are_a_pair_the_left_one_first():
    assert mirrored_pairs("abc", places([labels(seed) for seed in range(4)])) == (("a", "b"),)


@pytest.mark.parametrize(
    "change",
    [
        lambda array, seed: array if seed % 2 else array[:, :, ::-1],  # not always the same side
        lambda array, seed: array.transpose(0, 2, 1),  # beside each other along another axis
        lambda array, seed: np.where((array == 2) & (np.arange(40) % 2 == 0), 0, array),  # of unlike volume
    ],
)
def test_other_structures_are_no_pair(change):
    assert mirrored_pairs("abc", places([change(labels(seed), seed) for seed in range(4)])) == ()


def test_two_cases_are_too_few_to_tell_by_place():
    assert mirrored_pairs("abc", places([labels(0), labels(1)])) == ()


@given(st.permutations(range(5)))
def test_order_of_cases_does_not_matter(order):
    known = places([labels(seed) for seed in range(5)])
    assert find_pairs(CLASSES, [known[index] for index in order]) == find_pairs(CLASSES, known)


def test_kidneys_of_real_scans_are_not_mirrored(real_data):
    dataset = discover_dataset(real_data / "ct_torso_partial")
    fingerprint = take_fingerprint(dataset, num_workers=1, reporter=SilentReporter())
    assert fingerprint.sided_pairs == (("kidney_left", "kidney_right"),)
    assert fingerprint.sided_axis == 2
    plan = plan_dataset(fingerprint)
    reasons = [decision.reason for decision in plan.decisions if decision.rule == "mirroring.sided_axis"]
    assert len(reasons) == len(plan.configurations)
    assert all("kidney_left" in reason and "kidney_right" in reason for reason in reasons)
    assert all(len(each.mirror_axes) == each.dimensions - 1 for each in plan.configurations)


def test_hippocampus_head_and_body_are_no_pair(real_data):
    fingerprint = take_fingerprint(
        discover_dataset(real_data / "Task04_Hippocampus"), num_workers=1, reporter=SilentReporter()
    )
    assert fingerprint.sided_axis is None

"""Label maps are compared with the others, by ratio and by spread, whatever their unit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.data.checks.plausibility import (
    LabelFacts,
    oddness,
    rare_classes,
    stray_values,
    unusual_issue,
    unusual_signs,
    wrong_units,
)
from autoseg.data.dataset import Case, DatasetDescription
from autoseg.imaging.image import Geometry
from planners import LabelClass, Labels

DATASET = DatasetDescription(
    name="Small",
    root="/data",
    layout="msd",
    channels=("MRI",),
    file_values=(0, 3, 8),
    file_ending=".nii.gz",
    labels=Labels(classes=(LabelClass(name="head", values=(1,)), LabelClass(name="tail", values=(2,)))),
    training=(Case(case_id="a", images=("/data/a",), label="/data/b"),),
)


def fact(name, *, shape=(20, 30, 40), spacing_mm=(2.0, 1.0, 1.0), head=500, tail=300, paired=True):
    return LabelFacts(
        case_id=name,
        path=f"/data/{name}",
        paired=paired,
        geometry=Geometry(shape=shape, spacing_mm=spacing_mm),
        counts={0: 1000, 3: head, 8: tail},
    )


def implausible_labels(facts, dataset):
    """Issues of all label maps that have a sign."""
    return [
        unusual_issue(fact, signs, num_others=len(facts) - 1)
        for fact, signs in zip(facts, unusual_signs(facts, dataset), strict=True)
        if signs
    ]


def usual(number):
    return [fact(f"c{index:03d}") for index in range(number)]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_spread_within_the_ratios_is_never_unusual(seed, number):
    random = np.random.default_rng(seed)
    facts = [
        fact(
            f"c{index:03d}",
            shape=tuple(int(size) for size in random.integers(20, 30, 3)),
            spacing_mm=tuple(float(mm) for mm in random.uniform(0.7, 1.6, 3)),
            head=int(random.integers(400, 900)),
            tail=int(random.integers(100, 300)),
        )
        for index in range(number)
    ]
    assert implausible_labels(facts, DATASET) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spacing_mm": (7.0, 1.0, 1.0)}, "spacing 7x1x1 mm, median 2x1x1"),
        ({"shape": (20, 300, 400)}, "size 20x300x400 voxels, median 20x30x40"),
        ({"head": 50_000}, "head of 100 ml, median 1"),
        ({"tail": 0}, "no voxel of tail, which 12 of them have"),
    ],
)
def test_each_sign_alone_is_a_warning(change, words):
    (issue,) = implausible_labels([*usual(12), fact("odd", **change)], DATASET)
    assert (issue.severity, issue.case) == ("warning", "odd")
    assert words in issue.message


def test_wide_spread_of_the_others_is_respected():
    volumes = [10**exponent for exponent in np.linspace(1, 5, 12)]  # tumours from a speck to a fist
    facts = [fact(f"c{index}", head=int(volume)) for index, volume in enumerate(volumes)]
    assert implausible_labels(facts, DATASET) == []


@pytest.mark.parametrize(("number", "expected"), [(5, 0), (6, 1)])
def test_nothing_is_called_unusual_among_few(number, expected):
    facts = [*usual(number - 1), fact("odd", spacing_mm=(9.0, 1.0, 1.0))]
    assert len(implausible_labels(facts, DATASET)) == expected


def test_label_map_without_image_is_judged_but_does_not_judge():
    orphans = [fact(f"orphan{index}", spacing_mm=(9.0, 1.0, 1.0), paired=False) for index in range(30)]
    issues = implausible_labels([*usual(6), *orphans], DATASET)
    assert {issue.case for issue in issues} == {orphan.case_id for orphan in orphans}


def test_empty_label_map_is_not_blamed_for_missing_classes():
    assert implausible_labels([*usual(12), fact("empty", head=0, tail=0)], DATASET) == []


@given(st.permutations(range(14)))
def test_order_of_cases_does_not_matter(order):
    facts = [*usual(13), fact("odd", tail=0)]
    assert implausible_labels([facts[index] for index in order], DATASET) == implausible_labels(facts, DATASET)


@pytest.mark.parametrize(
    ("tails", "severity"),
    [([0, 0, 0, 0], "warning"), ([1, 0, 0, 0], "note"), ([1, 1, 0], "note"), ([1, 1, 1, 0], None), ([1, 1], None)],
)
def test_rare_classes_are_reported_with_their_cases(tails, severity):
    issues = rare_classes([fact(f"c{index}", tail=tail) for index, tail in enumerate(tails)], DATASET)
    assert [issue.severity for issue in issues] == ([] if severity is None else [severity])


def test_without_readable_label_maps_nothing_is_reported():
    assert rare_classes([], DATASET) == []


@pytest.mark.parametrize(
    ("change", "is_unusual"),
    [
        ({"spacing_mm": (5.9, 1.0, 1.0), "head": 170, "tail": 102}, False),  # a ratio of 3
        ({"spacing_mm": (6.1, 1.0, 1.0), "head": 164, "tail": 98}, True),
        ({"shape": (20, 30, 390)}, False),  # of 10
        ({"shape": (20, 30, 410)}, True),
        ({"head": 690}, False),  # volumes: of 1.4 upwards, of 10 downwards
        ({"head": 710}, True),
        ({"head": 51}, False),
        ({"head": 49}, True),
    ],
)
def test_ratios_to_equal_others_decide(change, is_unusual):
    signs = unusual_signs([*usual(12), fact("odd", **change)], DATASET)[-1]
    assert bool(signs) == is_unusual


@pytest.mark.parametrize(("others", "having", "expected"), [(9, 9, 0), (10, 10, 1), (20, 19, 1), (20, 18, 0)])
def test_a_class_that_nearly_all_of_enough_others_have_is_expected(others, having, expected):
    facts = [fact(f"c{index}", tail=300 if index < having else 0) for index in range(others)]
    signs = unusual_signs([*facts, fact("odd", tail=0)], DATASET)[-1]
    assert sum("no voxel of tail" in sign for sign in signs) == expected


@pytest.mark.parametrize(("number", "severity"), [(2, "warning"), (3, "error")])
def test_three_signs_are_an_error(number, severity):
    assert unusual_issue(fact("odd"), ["sign"] * number, num_others=5).severity == severity


@pytest.mark.parametrize(
    ("others", "factor", "expected"), [(2, 7.9, []), (2, 8.1, ["odd"]), (2, 1 / 8.1, ["odd"]), (1, 1000, [])]
)
def test_spacings_in_another_unit_are_an_error(others, factor, expected):
    spacing = tuple(factor * mm for mm in (2.0, 1.0, 1.0))
    issues = wrong_units([*usual(others), fact("odd", spacing_mm=spacing)])
    assert [(issue.code, issue.case) for issue in issues] == [("case.spacing_unit", case) for case in expected]


@pytest.mark.parametrize(("number", "expected"), [(4, []), (5, ["odd"])])
def test_many_values_that_no_other_label_map_has_are_grey_values(number, expected):
    dataset = DATASET.model_copy(
        update={
            "labels": Labels(classes=tuple(LabelClass(name=f"label_{v}", values=(i,)) for i, v in ((1, 3), (2, 8))))
        }
    )
    odd = fact("odd")
    odd.counts.clear()
    odd.counts.update({0: 10, **{value: 1 for value in range(100, 100 + number)}})
    issues = stray_values([*usual(3), odd], dataset)
    assert [(issue.code, issue.case) for issue in issues] == [("labels.grey_values", case) for case in expected]
    assert stray_values([*usual(3), odd], DATASET) == []  # declared classes


def test_few_others_are_judged_by_their_range_and_many_by_their_spread():
    nine, ten = list(range(9)), list(range(10))
    assert oddness(8 + 8.5, nine, floor=0.1) < 1 < oddness(8 + 8.6, nine, floor=0.1)  # 0.4 + 6 / 9 of the range 8
    assert oddness(4.5 + 22.2, ten, floor=0.1) < 1 < oddness(4.5 + 22.3, ten, floor=0.1)  # 6 x 1.4826 x 2.5
    assert oddness(1.9, [1.0] * 3, floor=1.0) < 1 < oddness(2.1, [1.0] * 3, floor=1.0)

"""Label maps that agree much less with the model than all others, or much better in another arrangement, are reported."""

from __future__ import annotations

import numpy as np
import pytest

from autoseg.data.checks.label_fit import Misfit, _Judged, _misfit, find_misfits, misfit_issue
from autoseg.data.checks.label_model import Evidence, Fit, usual_masks
from autoseg.tracking.progress import SilentReporter

SHAPE = (10, 10, 10)


def judge(case, own, *, flipped=0.0, shifted=0.0, by_intensity=None, shifted_by_intensity=0.1):
    fit = Fit(
        own=own,
        flips=(0.0, 0.0, flipped),
        shift=(0, 0, 2),
        shifted=shifted,
        by_intensity=own / 2 if by_intensity is None else by_intensity,
        shifted_by_intensity=shifted_by_intensity,
    )
    return _Judged(case, fit, np.zeros((1, 2, 2, 2), np.float16))


def judged(found):
    return None if found is None else (found.is_certain, found.is_strange, found.is_sure)


@pytest.mark.parametrize(
    ("usual", "fit", "expected"),
    [
        (0.80, {"own": 0.72}, None),  # 0.1 below the others is usual
        (0.80, {"own": 0.61, "by_intensity": 0.31}, (False, True, True)),
        (0.80, {"own": 0.61, "by_intensity": 0.33}, None),  # of more than 0.8 of 0.4: another field of view
        (0.80, {"own": 0.75, "shifted": 0.12, "shifted_by_intensity": 0.02}, None),
        (0.80, {"own": 0.75, "shifted": 0.12, "shifted_by_intensity": 0.04}, (False, False, True)),
        (0.80, {"own": 0.65}, None),  # and by intensities alone 0.81 of theirs
        (0.80, {"own": 0.63}, (False, True, False)),  # 0.18 below five others needs other signs
        (0.80, {"own": 0.61}, (False, True, True)),
        (0.39, {"own": 0.10}, None),  # the model does not predict such labels
        (0.41, {"own": 0.10}, (False, True, True)),
        (0.80, {"own": 0.75, "flipped": 0.85}, None),  # a gain of 0.108 is usual among five others
        (0.80, {"own": 0.75, "flipped": 0.87}, (False, False, True)),
        (0.80, {"own": 0.75, "shifted": 0.10}, None),
        (0.80, {"own": 0.75, "shifted": 0.12}, (False, False, True)),
        (0.80, {"own": 0.41, "flipped": 0.70}, (False, True, True)),  # lost: less than half of the usual agreement
        (0.80, {"own": 0.39, "flipped": 0.63}, (False, True, True)),  # restored: more than 0.8 of it
        (0.80, {"own": 0.39, "flipped": 0.65}, (True, True, True)),
    ],
)
def test_misfits_are_judged_against_the_others(measure, usual, fit, expected):
    case = measure("odd", np.random.default_rng(0).normal(0, 1, (1, *SHAPE)))
    known = [judge(case, **fit), *(judge(case, usual) for _ in range(5))]
    assert judged(_misfit(known, 0, [(0.0, "")] * len(known))) == expected


def test_among_many_the_worst_tenth_tells_what_is_usual(measure):
    case = measure("odd", np.random.default_rng(0).normal(0, 1, (1, *SHAPE)))
    others = [judge(case, own) for own in (*np.linspace(0.79, 0.81, 16), 0.5, 0.5, 0.5)]
    for own, expected in ((0.3, None), (0.15, (False, True, True))):
        assert judged(_misfit([judge(case, own), *others], 0, [(0.0, "")] * 20)) == expected


@pytest.mark.parametrize(("number", "expected"), [(5, (False, True, False)), (40, (False, True, True))])
def test_few_cases_make_less_sure(measure, number, expected):
    """A drop of 0.17 is worth a word among 40 others, among 5 only with other signs."""
    case = measure("odd", np.random.default_rng(0).normal(0, 1, (1, *SHAPE)))
    known = [judge(case, 0.63), *(judge(case, 0.8) for _ in range(number))]
    assert judged(_misfit(known, 0, [(0.0, "")] * len(known))) == expected


@pytest.mark.parametrize(
    ("is_certain", "is_strange", "more", "severity"),
    [
        (True, True, (), "error"),
        (False, True, ("spacing",), "error"),
        (False, True, (), "warning"),
        (False, False, ("spacing",), "warning"),
    ],
)
def test_misfits_are_errors_if_certain_or_with_other_signs(is_certain, is_strange, more, severity):
    misfit = Misfit(case_id="c", message="m", is_certain=is_certain, is_strange=is_strange, is_sure=True)
    issue = misfit_issue(misfit, "/c", more=more)
    assert issue.severity == severity
    assert ("remove the case" in issue.fix) == (severity == "error")  # never on a guess


@pytest.mark.parametrize(("number", "expected"), [(3, []), (4, ["odd"])])
def test_a_flipped_label_map_is_found_among_three_others(measure, number, expected):
    def case(name, seed, flip=False):
        labels = np.zeros((16, 16, 16), np.uint8)
        labels[4:10, 5:11, 1 + seed % 2 : 6] = 1
        image = 50 * labels[None] + np.random.default_rng(seed).normal(100, 5, (1, *labels.shape))
        return measure(name, image, labels[:, :, ::-1].copy() if flip else labels)

    cases = [case(f"c{seed}", seed) for seed in range(number - 1)] + [case("odd", 9, flip=True)]
    found = find_misfits(cases, 1, num_workers=1, reporter=SilentReporter())
    assert [misfit.case_id for misfit in found if misfit.is_certain] == expected


@pytest.mark.parametrize(("having", "expected"), [(3, False), (4, True)])
def test_classes_of_most_cases_are_compared(having, expected):
    """Four of five cases are enough."""
    parts = [
        Evidence(moments=np.zeros((1, 1)), products=np.array([[float(number < having), 1.0]]), atlas=np.zeros(1))
        for number in range(5)
    ]
    assert usual_masks(parts).tolist() == [expected, True]

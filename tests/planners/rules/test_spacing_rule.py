"""Target spacing and median shape, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from planners import Fingerprint
from planners.geometry import SourceSpacing
from planners.rules.spacing import decide_median_shape, decide_target_spacing, median_shape

MakeFingerprint = Callable[..., Fingerprint]


def test_median_of_each_axis(fingerprint_of: MakeFingerprint) -> None:
    fingerprint = fingerprint_of([(90, 90, 90)] * 3, [(1, 2, 1), (2, 1, 3), (3, 1.5, 2)])
    assert decide_target_spacing(fingerprint.cases).value == (2.0, 1.5, 2.0)


def test_threefold_spacing_is_not_coarse_enough(fingerprint_of: MakeFingerprint) -> None:
    fingerprint = fingerprint_of([(20, 300, 300)] * 2, [(3, 1, 1)] * 2)
    decision = decide_target_spacing(fingerprint.cases)
    assert decision.value == (3, 1, 1)
    assert "median spacing of 2 training cases; the axes differ by a factor of 3," in decision.reason


def test_coarse_axis_takes_its_tenth_percentile(fingerprint_of: MakeFingerprint) -> None:
    thickness = [2.0, 4.0, 5.0, 6.0, 7.0]
    fingerprint = fingerprint_of([(20, 300, 300)] * 5, [(mm, 1, 1) for mm in thickness])
    # position 0.1 * 4 = 0.4 between 2 and 4
    assert decide_target_spacing(fingerprint.cases).value == pytest.approx((2.8, 1, 1), rel=1e-12)


def test_coarse_axis_stays_the_coarsest(fingerprint_of: MakeFingerprint) -> None:
    fingerprint = fingerprint_of([(20, 300, 300)] * 5, [(mm, 1, 1) for mm in [0.5, 0.5, 5, 5, 5]])
    assert decide_target_spacing(fingerprint.cases).value == (1 + 1e-5, 1, 1)


def test_many_slices_are_not_coarse(fingerprint_of: MakeFingerprint) -> None:
    fingerprint = fingerprint_of([(100, 300, 300)] * 5, [(mm, 1, 1) for mm in [0.5, 0.5, 5, 5, 5]])
    assert decide_target_spacing(fingerprint.cases).value == (5, 1, 1)


@pytest.mark.parametrize(("slices", "chosen"), [(19, 0.9), (20, 5.0)])
def test_few_slices_are_less_than_a_third_of_the_shorter_side(
    fingerprint_of: MakeFingerprint, slices: int, chosen: float
) -> None:
    thickness = [0.9, 0.9, 5, 5, 5]
    fingerprint = fingerprint_of([(slices, 60, 300)] * 5, [(mm, 0.5, 0.5) for mm in thickness])
    assert decide_target_spacing(fingerprint.cases).value[0] == chosen


def test_single_slices_are_told_as_such(fingerprint_of: MakeFingerprint) -> None:
    def reason(*spacings: tuple[float, float, float], depth: int = 1) -> str:
        decision = decide_target_spacing(fingerprint_of([(depth, 300, 300)] * len(spacings), spacings).cases)
        assert ("thinner slices" in decision.reason) == (depth > 1)
        return decision.reason

    unknown = reason((999, 1, 1), (999, 1, 1))
    assert "pixels of 1 x 1 mm, also assumed where files give no size" in unknown
    assert "999 mm across stand for an unknown thickness" in unknown
    assert "median pixels are 0.5 x 0.4 mm; the 499.5 mm across stand for" in reason((499.5, 0.5, 0.4))
    assert "median pixels are 0.5 x 0.4 mm; 5 mm is the 10th percentile of their thickness" in reason((5, 0.5, 0.4))
    assert "few slices" in reason((5, 0.5, 0.4), depth=20)


def test_one_case_is_told_as_one(fingerprint_of: MakeFingerprint) -> None:
    cases = fingerprint_of([(40, 50, 60)], [(1, 1, 1)]).cases
    assert "of 1 training case;" in decide_target_spacing(cases).reason


def test_median_shape_rounds_each_case_to_even_first(fingerprint_of: MakeFingerprint) -> None:
    fingerprint = fingerprint_of([(5, 7, 10), (6, 9, 11)], [(1, 1, 1), (1, 1, 1)])
    assert median_shape(fingerprint.cases, SourceSpacing((2.0, 2.0, 1.0))) == (2.5, 4.0, 10.5)


def test_the_median_is_told_as_such(fingerprint_of: MakeFingerprint) -> None:
    for cases in (1, 4):
        fingerprint = fingerprint_of([(40, 50, 60)] * cases, [(1, 1, 1)] * cases)
        reason = decide_median_shape(fingerprint.cases, SourceSpacing((1, 1, 1)), strict_reference=False).reason
        assert f"the median over {cases} case" in reason
        assert "40 x 50 x 60 voxels, taken along each axis" in reason
        assert "half of" not in reason

"""Intervals of means, medians and differences: as the textbook has them, by patient, and none of too few."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from autoseg.evaluation.intervals import (
    FEWEST_DIFFERENCES,
    MOST_EXACT,
    Difference,
    by_unit,
    estimate,
    mean_interval,
    median_interval,
    paired_difference,
    ranks_of,
    unit_codes,
    wilcoxon,
)

NAN = np.nan
SCORES = np.array([0.9, 0.85, 0.7, 0.95, 0.8, 0.6, 0.88])


def test_mean_of_single_cases_has_students_interval() -> None:
    mean, low, high, units = mean_interval(np.append(SCORES, NAN), np.arange(8))

    expected = stats.ttest_1samp(SCORES, 0).confidence_interval(0.95)
    assert (mean, units) == (pytest.approx(SCORES.mean()), 7)
    assert (low, high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("number", "given"), [(3, True), (2, False), (1, False)])
def test_fewer_than_three_units_have_no_interval(number: int, given: bool) -> None:
    found = estimate(SCORES[:number], np.arange(number))

    assert (found.low is not None, found.high is not None) == (given, given)
    assert (found.mean, found.cases) == (pytest.approx(SCORES[:number].mean()), number)


def test_copies_of_a_patients_cases_make_nothing_surer() -> None:
    patients = unit_codes(["p1", "p2", "p3", "p4", "p5", "p6", "p7"])
    once, thrice = estimate(SCORES, patients), estimate(np.tile(SCORES, 3), np.tile(patients, 3))

    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert (thrice.median_low, thrice.median_high) == pytest.approx((once.median_low, once.median_high))
    assert (thrice.cases, thrice.units) == (21, 7)
    assert estimate(np.tile(SCORES, 3), np.arange(21)).low > once.low  # type: ignore[operator]


def test_deviations_of_a_patient_are_added_before_they_are_squared() -> None:
    """Deviations from 0.6: patient 0 +0.2 and -0.4, patient 1 +0.1, patient 2 +0.1."""
    mean, low, _, units = mean_interval(np.array([0.8, 0.2, 0.7, 0.7]), np.array([0, 0, 1, 2]))

    variance = 3 / 2 * (0.2**2 + 0.1**2 + 0.1**2) / 4**2
    assert (mean, units) == (pytest.approx(0.6), 3)
    assert low == pytest.approx(0.6 - stats.t.ppf(0.975, 2) * np.sqrt(variance))


def test_mean_over_classes_counts_each_class_once_whatever_its_cases() -> None:
    scores = np.array([[0.9, NAN], [0.7, 0.5], [0.8, NAN], [NAN, NAN]])

    mean, low, _, units = mean_interval(scores, np.arange(4))

    influence = np.array([0.1 / 3, -0.1 / 3, 0.0]) / 2  # the second class has one case, its own mean
    assert (mean, units) == (pytest.approx((0.8 + 0.5) / 2), 3)
    assert low == pytest.approx(mean - stats.t.ppf(0.975, 2) * np.sqrt(3 / 2 * np.square(influence).sum()))
    assert mean_interval(np.full((4, 2), NAN), np.arange(4)) == (None, None, None, 0)


@pytest.mark.parametrize(
    ("number", "ranks"), [(0, None), (5, None), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (20, (6, 15)), (100, (40, 61))]
)
def test_median_lies_between_order_statistics(number: int, ranks: tuple[int, int] | None) -> None:
    """Ranks from tables of the sign test."""
    values = np.arange(1.0, number + 1)[::-1]

    assert median_interval(values) == (None if ranks is None else tuple(map(float, ranks)))


def test_intervals_of_skewed_scores_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(3)
    truth = stats.beta(8, 1)
    held = np.zeros(2)
    for values in truth.rvs((200, 60), random_state=random):
        found = estimate(values, np.arange(60))
        held += [found.low < truth.mean() < found.high, found.median_low < truth.median() < found.median_high]  # type: ignore[operator]

    assert np.all((held / 200 > 0.92) & (held / 200 < 0.99))


def test_paired_difference_is_over_cases_that_both_have() -> None:
    before, after = np.array([0.5, 0.6, 0.7, NAN, 0.8]), np.array([0.6, 0.65, 0.9, 0.9, NAN])

    found = paired_difference(before, after, np.arange(5))

    expected = stats.ttest_1samp([0.1, 0.05, 0.2], 0).confidence_interval(0.95)
    assert found is not None
    assert (found.mean, found.cases, found.units) == (pytest.approx(0.35 / 3), 3, 3)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.wilcoxon_p is None
    assert paired_difference(before[3:], after[3:], np.arange(2)) is None


@pytest.mark.parametrize(("number", "tested"), [(FEWEST_DIFFERENCES, True), (FEWEST_DIFFERENCES - 1, False)])
def test_wilcoxon_needs_differences_that_could_be_sure(number: int, tested: bool) -> None:
    differences = np.array([0.01, 0.03, 0.02, 0.05, 0.04, 0.06])[:number]

    p = wilcoxon(np.append(differences, [0.0, 0.0]))

    assert p == (pytest.approx(2 / 2**6) if tested else None)


@pytest.mark.parametrize(
    ("number", "method"), [(MOST_EXACT, "exact"), (MOST_EXACT + 1, "asymptotic"), (12, "exact"), (200, "asymptotic")]
)
def test_wilcoxon_is_exact_for_few_differences_and_normal_for_many(number: int, method: str) -> None:
    differences = np.random.default_rng(number).normal(0.2, 1, number)

    assert wilcoxon(differences) == pytest.approx(stats.wilcoxon(differences, method=method).pvalue, rel=1e-9)


def test_wilcoxon_corrects_for_ties() -> None:
    differences = np.array([0.1, 0.1, -0.1, 0.2, 0.2, 0.3, -0.2, 0.4, 0.1, 0.2])

    assert wilcoxon(differences) == pytest.approx(stats.wilcoxon(differences, method="asymptotic").pvalue, rel=1e-9)


def test_equals_have_their_mean_rank_or_the_lowest() -> None:
    values = np.array([0.5, 0.1, 0.5, 0.9])

    assert ranks_of(values).tolist() == [2.5, 1.0, 2.5, 4.0]
    assert ranks_of(values, lowest=True).tolist() == [2.0, 1.0, 2.0, 4.0]


@pytest.mark.parametrize(("low", "high", "sure"), [(0.001, 0.02, True), (-0.001, 0.02, False), (-0.02, -0.001, True), (None, None, False)])  # fmt: skip
def test_difference_says_whether_it_leaves_out_nothing(low: float | None, high: float | None, sure: bool) -> None:
    assert Difference(mean=0.01, low=low, high=high, wilcoxon_p=0.0004, cases=9, units=9).is_sure == sure


def test_units_are_averaged_in_order() -> None:
    assert by_unit(np.array([1.0, 3.0, NAN, 5.0]), unit_codes(["b", "b", "c", "a"])).tolist() == [5.0, 2.0]

"""Ranges of Dice without a truth: they hold as often as they say, are wide where it is hard, and are none for too few cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from autoseg.evaluation.expected_quality import (
    FEWEST_CASES,
    NOMINAL,
    ClassFeatures,
    allowed_by_chance,
    as_numbers,
    conformal_limit,
    covered,
    expect,
    fit_expected,
    fit_model,
    from_numbers,
    in_words,
    mean_features,
    range_of,
    worst_first,
)


def made(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three features, and a Dice that depends on the first, the more loosely the lower it is."""
    rng = np.random.default_rng(seed)
    rows = rng.uniform(0.5, 1, (number, 3))
    y = rows[:, 0] - np.abs(rng.standard_t(3, number)) * 0.2 * (1.05 - rows[:, 0])
    return rows, np.clip(y, 0, 1)


def test_ranges_hold_in_new_cases_as_often_as_they_say() -> None:
    """20 models of 60 cases, 500 new ones each: the mean share over models has a standard error of 0.008, four of which are 0.03."""
    shares = []
    for seed in range(20):
        model = fit_model(*made(60, seed))
        assert model is not None
        ranges = [(range_of(model, row), y) for row, y in zip(*made(500, 1000 + seed), strict=True)]
        shares.append(np.mean([found.low <= y <= found.high for found, y in ranges]))
    assert np.mean(shares) == pytest.approx(NOMINAL, abs=0.03)


def test_hard_cases_have_wider_ranges() -> None:
    model = fit_model(*made(200, 0))
    assert model is not None
    easy, hard = (range_of(model, (value, 0.75, 0.75)) for value in (0.98, 0.55))
    assert hard.high - hard.low > 2 * (easy.high - easy.low)


@pytest.mark.parametrize(("number", "there"), [(FEWEST_CASES, True), (FEWEST_CASES - 1, False)])
def test_too_few_cases_give_no_range(number: int, there: bool) -> None:
    assert (fit_model(*made(number, 0)) is not None) == there


@given(st.integers(FEWEST_CASES, 300))
def test_the_limit_is_that_of_conformal_prediction(number: int) -> None:
    """The k-th smallest of n has a further value below it with a probability of k / (n + 1); the one before does not suffice."""
    off = np.random.default_rng(number).permutation(number).astype(float)
    rank = conformal_limit(off) + 1
    assert rank / (number + 1) >= (1 + NOMINAL) / 2 - 1e-12
    assert (rank - 1) / (number + 1) < (1 + NOMINAL) / 2


@pytest.mark.parametrize("number", [19, 40, 60, 130])
def test_what_chance_allows_agrees_with_scipy(number: int) -> None:
    low, high = stats.binom.interval(0.95, number, NOMINAL)
    assert allowed_by_chance(number) == (int(low), int(high))


def test_coverage_is_counted_on_cases_left_out() -> None:
    inside, number = covered(*made(100, 3))
    low, high = allowed_by_chance(number)
    assert number == 100
    assert low <= inside <= high


def features(volume_ml: float, dice: float) -> dict[str, ClassFeatures]:
    return {"a": ClassFeatures(volume_ml=volume_ml, entropy=1 - dice, expected_dice=dice, likeness=(0.0, 1.0, 9.0))}


def test_cases_to_look_at_come_first_and_ranges_survive_storage() -> None:
    rng = np.random.default_rng(0)
    quality_of = rng.uniform(0.3, 0.95, 40)
    quality = fit_expected(
        [features(5.0, each) for each in quality_of],
        [{"a": float(np.clip(each + rng.normal(0, 0.02), 0, 1))} for each in quality_of],
        [{"a": 5.0 * np.exp(rng.normal(0, 0.1))} for _ in quality_of],
    )
    found = {
        "good": expect(quality, features(5.0, 0.9)),
        "bad": expect(quality, features(5.0, 0.4)),
        "none": expect(quality, features(0.0, 0.0)),
    }

    assert worst_first(found) == ["none", "bad", "good"]
    assert from_numbers(as_numbers(found["bad"])) == found["bad"]
    assert in_words(found["bad"]).endswith(": look at it")
    assert "look" not in in_words(found["good"])
    assert found["none"]["a"].dice is None
    volume = found["good"]["a"].volume_ml
    assert volume is not None
    assert volume.low < 5.0 < volume.high


def test_networks_are_averaged_one_by_one() -> None:
    found = mean_features([features(4.0, 0.8), features(6.0, 0.6)])["a"]
    assert (found.volume_ml, found.expected_dice, found.entropy) == pytest.approx((5.0, 0.7, 0.3))

"""Scores by group: intervals, tests that know chance and the number of looks, and what is said of few cases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.data.tables import Grouping
from autoseg.evaluation.groups import FOREGROUND, holm, in_words, scores_by_group
from autoseg.evaluation.intervals import estimate

KEYS = ["1", "2"]
NAMES = {"1": "head", "2": "tail"}
CASES = [f"c{i:02}" for i in range(24)]


def grouping(column: str, group_of: Callable[[int], str]) -> Grouping:
    of_case = {case: group_of(i) for i, case in enumerate(CASES)}
    return Grouping(column=column, groups=tuple(sorted(set(of_case.values()))), of_case=of_case)


SITE, NOISE = grouping("site", lambda i: "A" if i < 8 else "B"), grouping("hand", lambda i: "lr"[i % 2])


def dice(drop: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.uniform(0.8, 0.9, (24, 2))
    values[:8] -= drop
    return values


def test_a_group_that_is_worse_is_said_and_others_are_not() -> None:
    site, hand = scores_by_group([SITE, NOISE], CASES, np.arange(24), KEYS, dice(0.2))

    assert {test.key for test in site.differences if test.is_sure} == {FOREGROUND, "1", "2"}
    assert [test.group for test in site.differences] == ["A"] * 3  # B against A says the same
    assert not any(test.is_sure for test in hand.differences)
    first, *_ = in_words(site, NAMES)
    assert first.startswith("site A differs: mean Dice 0.6")
    assert "against 0.8" in first
    assert in_words(hand, NAMES) == ["hand: no group differs by more than chance"]


def test_rows_are_estimates_of_their_own_cases() -> None:
    values = dice(0.1)
    (site,) = scores_by_group([SITE], CASES, np.arange(24), KEYS, values, held_out="site")

    assert site.held_out
    assert [row.name for row in site.rows] == ["A", "B"]
    assert site.rows[0].estimates["2"] == estimate(values[:8, 1], np.arange(8))
    assert site.rows[1].estimates[FOREGROUND].mean == pytest.approx(values[8:].mean())


@pytest.mark.parametrize(("number", "compared"), [(3, True), (2, False)])
def test_groups_of_fewer_than_three_patients_are_not_compared_and_have_no_interval(number: int, compared: bool) -> None:
    few = grouping("site", lambda i: "A" if i < number else "B")
    (site,) = scores_by_group([few], CASES, np.arange(24), KEYS, dice(0.2))

    assert bool(site.differences) == compared
    assert (site.rows[0].estimates[FOREGROUND].low is not None) == compared
    assert compared or "too few cases" in in_words(site, NAMES)[0]


def test_copies_of_a_patient_make_no_difference_surer() -> None:
    many = np.concatenate([np.arange(8) // 4, np.arange(8, 24)])  # eight cases of two patients
    (site,) = scores_by_group([SITE], CASES, many, KEYS, dice(0.2))
    assert not site.differences


def test_undefined_scores_take_no_part() -> None:
    values = dice(0.2)
    values[:, 1] = np.nan
    values[0] = np.nan
    (site,) = scores_by_group([SITE], CASES, np.arange(24), KEYS, values)
    assert site.rows[0].estimates["2"].mean is None
    assert {test.key: test.units for test in site.differences} == {FOREGROUND: 7, "1": 7}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_closed_test_of_bonferroni(p: list[float]) -> None:
    """A hypothesis is refused exactly if every set that it is in is refused by Bonferroni, the largest of them first."""
    found = holm(p)
    for i, own in enumerate(p):
        ahead = [max(p[j] * sum(q >= p[j] for q in p), 0) for j in range(len(p)) if p[j] <= own]
        assert found[i] == pytest.approx(min(1.0, max(ahead)))
    assert all(a >= b for a, b in zip(found, p, strict=True))


def test_chance_alone_is_rarely_called_a_difference() -> None:
    """Of 200 tables of five columns without any difference at most 5 % have one: 10, or 17 at a binomial 1 %."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(200):
        columns = [grouping(str(k), dict(enumerate(rng.choice(["a", "b"], 24))).__getitem__) for k in range(5)]
        found = scores_by_group(columns, CASES, np.arange(24), ["1"], rng.uniform(0, 1, (24, 1)))
        wrong += any(test.is_sure for each in found for test in each.differences)
    assert wrong <= 17

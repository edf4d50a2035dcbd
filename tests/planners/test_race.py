"""A race is held where it can say something, compares candidates paired by case, and replaces the favourite only for good reason."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from scipy.stats import ttest_rel

from planners import (
    CaseSize,
    Conditions,
    Entry,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Measurement,
    Plan,
    Race,
    RacePlan,
    Result,
    Schedule,
    challengers,
    describe_round,
    explain_schedule,
    judge,
    plan_dataset,
    plan_race,
    plan_schedule,
    race_limit_s,
    race_s,
    read_document,
    survivors,
    why_no_race,
    write_document,
)
from planners.explanation import SCHEDULE_TITLES
from planners.schedule.race import round_sizes, share_of_round

STATISTICS = IntensityStatistics(
    mean=1.0, median=1.0, std=1.0, minimum=0.0, maximum=4.0, percentile_00_5=0.1, percentile_99_5=3.0
)


def plan_of(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Plan:
    return plan_dataset(
        Fingerprint(
            dataset_name="d",
            cases=tuple(CaseSize(case_id=f"c{i}", shape=shape, spacing_mm=spacing_mm) for i in range(60)),
            num_training_cases=60,
            channels=("MRI",),
            labels=Labels(classes=(LabelClass(name="a", values=(1,)),)),
            intensities=(STATISTICS,),
            median_relative_size_after_cropping=1.0,
        )
    )


PLAN = plan_of((36, 50, 35))
LARGE = plan_of((200, 512, 512), (2.0, 0.8, 0.8))


def measured(name: str, step_s: float, width: int = 16, **changes: Any) -> Measurement:
    return Measurement(
        configuration=name,
        base_features=width,
        batch_size=2,
        precision="bfloat16",
        step_s=step_s,
        **{"case_s": 0.001, **changes},
    )


def conditions(*measurements: Measurement, budget_s: float | None = 1000.0, **changes: Any) -> Conditions:
    known: dict[str, Any] = {
        "device": "cpu",
        "num_threads": 2,
        "budget_s": budget_s,
        "elapsed_s": 0.0,
        "num_folds": 5,
        "num_training_cases": 60,
        "num_test_cases": 0,
        "cross_validated": True,
        "measurements": measurements,
        "seed": 0,
    }
    return Conditions(**{**known, **changes})


FULL, FLAT, VNET = measured("3d_fullres", 0.1), measured("2d", 0.05), measured("3d_fullres_vnet", 0.2)


def planned(known: Conditions, *, num_cases: int = 12, left_s: float = 100.0, **changes: Any) -> RacePlan | str:
    schedule = plan_schedule(PLAN, known).model_copy(update=changes)
    return plan_race(PLAN, known, schedule, num_cases=num_cases, left_s=left_s)


def entry(name: str, step_s: float = 0.1, width: int = 16) -> Entry:
    return Entry(measured=measured(name, step_s, width), reason="for the test")


def result(name: str, *dice: float | None, steps: int = 300, width: int = 16) -> Result:
    difference, interval = None, None
    if dice not in (FAVOURITE, (None,) * len(dice)):
        paired = ttest_rel(dice, FAVOURITE[: len(dice)])
        difference = fmean(a - b for a, b in zip(dice, FAVOURITE, strict=False))
        interval = tuple(paired.confidence_interval(0.95)) if len(dice) > 1 else None
    return Result(
        entry=entry(name, width=width), steps=steps, seconds=30.0, dice=dice, difference=difference, interval=interval
    )


FAVOURITE = (0.80, 0.82, 0.84, 0.86, 0.88, 0.90)


def shifted(by: float, noise: float = 0.004) -> tuple[float, ...]:
    return tuple(dice + by + noise * (-1) ** i for i, dice in enumerate(FAVOURITE))


# --- whether, who and how long ---


@pytest.mark.parametrize(("num_cases", "held"), [(5, True), (4, False), (0, False)])
def test_a_race_needs_five_cases(num_cases: int, held: bool) -> None:
    known = conditions(FULL)
    note = why_no_race(PLAN, known, plan_schedule(PLAN, known), num_cases=num_cases)
    assert (note is None) is held
    assert held or "at least 5 are needed" in str(note)


@pytest.mark.parametrize(("step_s", "held"), [(0.385, True), (0.386, False)])
def test_a_race_needs_150_steps_of_the_favourite_in_a_round_of_two(step_s: float, held: bool) -> None:
    known = conditions(measured("3d_fullres", step_s))  # 12 % of 964 s, half of it for each
    assert race_s(known) == pytest.approx(0.12 * 964)
    assert (why_no_race(PLAN, known, plan_schedule(PLAN, known), num_cases=12) is None) is held


def test_a_race_is_ended_at_15_percent() -> None:
    assert race_limit_s(conditions(FULL)) == pytest.approx(0.15 * 964)
    assert race_s(conditions(FULL, budget_s=None, device="cuda")) == 1800


def test_candidates_have_reasons() -> None:
    assert challengers(PLAN, conditions(FULL), "3d_fullres").keys() == {
        "2d",
        "3d_fullres_vnet",
        "3d_fullres_residual_unet",
    }
    low = challengers(LARGE, conditions(FULL), "3d_fullres")
    assert "coarser voxels" in low["3d_lowres"]
    assert "3d_cascade_fullres" not in low
    flat = plan_of((1, 200, 200))
    assert challengers(flat, conditions(FLAT), "2d") == {}
    known = conditions(FLAT)
    alone = why_no_race(flat, known, plan_schedule(flat, known), num_cases=12)
    assert str(alone).startswith("the plan has nothing beside 2d")
    wide = conditions(measured("2d", 0.35, 32), measured("2d", 0.1))
    assert why_no_race(flat, wide, plan_schedule(flat, wide), num_cases=12) is None


def test_before_the_methods_schedule_only_other_networks_for_the_same_images_race() -> None:
    known = conditions(measured("3d_fullres", 0.1, 32), budget_s=None, device="cuda")
    assert challengers(LARGE, known, "3d_fullres").keys() == {"3d_fullres_residual_unet"}
    assert challengers(PLAN, known, "3d_fullres").keys() == {"3d_fullres_vnet", "3d_fullres_residual_unet"}


def test_all_have_the_same_time_and_rounds_double_it() -> None:
    race = planned(conditions(FULL, FLAT, measured("3d_fullres_vnet", 0.13)))
    assert isinstance(race, RacePlan)
    assert [each.name for each in race.entries] == ["3d_fullres", "2d", "3d_fullres_vnet"]
    assert round_sizes(3) == [3, 2]
    assert round_sizes(6) == [6, 3, 2]
    assert [share_of_round(number) for number in range(4)] == [1, 1, 2, 4]
    spent = 3 * race.round_s(0) + 2 * race.round_s(1) + 12 * 5 * 0.001
    assert spent == pytest.approx(100.0)
    assert [each.steps(race.first_s) for each in race.entries] == [199, 399, 153]
    assert race.expected_steps == 199 + 399 + 153 + 199 + 399


def test_candidates_too_slow_for_150_steps_in_the_first_round_are_left_out() -> None:
    # 100 s for three rounds of a first, two of a second: 20 s each, so 0.133 s a step are just enough
    fast, slow = measured("3d_fullres_vnet", 0.133), measured("3d_fullres_vnet", 0.134)
    for third, names in ((fast, ["3d_fullres", "2d", "3d_fullres_vnet"]), (slow, ["3d_fullres", "2d"])):
        race = planned(conditions(FULL, FLAT, third))
        assert isinstance(race, RacePlan)
        assert [each.name for each in race.entries] == names
        assert all(each.steps(race.first_s) >= 150 for each in race.entries)


def test_without_two_candidates_in_time_nobody_races() -> None:
    assert isinstance(planned(conditions(FULL, measured("2d", 0.33))), RacePlan)
    assert "not enough for 150 steps each" in str(planned(conditions(FULL, measured("2d", 0.34))))


def test_at_most_24_cases_and_as_many_as_a_third_of_the_time_allows_are_predicted() -> None:
    def cases(num_cases: int, case_s: float) -> int | str:
        race = planned(
            conditions(measured("3d_fullres", 0.05, case_s=case_s), measured("2d", 0.05, case_s=case_s)),
            num_cases=num_cases,
        )
        return race.num_cases if isinstance(race, RacePlan) else race

    assert (cases(23, 0.01), cases(25, 0.01)) == (23, 24)
    assert cases(25, 100 / 3 / 2 / 10.01) == 10
    assert cases(25, 100 / 3 / 2 / 5.01) == 5
    assert isinstance(cases(25, 100 / 3 / 2 / 4.9), str)


@pytest.mark.parametrize(("training_s", "held"), [(499.0 * 5, True), (501.0 * 5, False)])
def test_the_last_round_reaches_a_tenth_of_a_training(training_s: float, held: bool) -> None:
    race = planned(conditions(FULL, FLAT), left_s=100.0 + 12 * 2 * 0.001, expected_training_s=training_s)
    assert isinstance(race, RacePlan) is held


@pytest.mark.parametrize(("wide_step_s", "races"), [(0.35, True), (0.38, False), (0.15, False)])
def test_the_next_width_races_where_the_rule_could_almost_take_it(wide_step_s: float, races: bool) -> None:
    """Between half of the steps that a wider network needs, and all of them, which the rule takes without a race."""
    wide = measured("3d_fullres", wide_step_s, 32)
    race = planned(conditions(wide, measured("3d_fullres", 0.1), FLAT), left_s=300.0)
    assert isinstance(race, RacePlan)
    assert (("3d_fullres", 32) in [(e.name, e.measured.base_features) for e in race.entries]) is races


# --- what the rounds say ---


@pytest.mark.parametrize(("by", "verdict"), [(0.02, "won"), (0.003, "lost"), (-0.02, "lost")])
def test_a_challenger_wins_only_where_the_interval_lies_above_zero(by: float, verdict: str) -> None:
    held = judge("abcdef", [result("3d_fullres", *FAVOURITE), result("2d", *shifted(by))])
    assert [each.verdict for each in held.raced] == ["favourite", verdict]
    race = Race(rounds=(held,))
    assert (race.winner is not None) is (verdict == "won")
    low, high = held.raced[1].interval or (0, 0)
    assert (low > 0) is (verdict == "won")
    assert low < by < high or by == 0.003


def test_an_interval_that_begins_at_zero_does_not_win() -> None:
    level = replace(result("2d", *FAVOURITE), difference=0.0, interval=(0.0, 0.0))
    held = judge("abcdef", [result("3d_fullres", *FAVOURITE), level])
    assert held.raced[1].verdict == "lost"


def test_the_worse_half_is_dropped_and_the_favourite_stays() -> None:
    entrants = [result("3d_fullres", *FAVOURITE)]
    entrants += [result(name, *shifted(by, 0.05)) for name, by in (("2d", -0.01), ("x", 0.01), ("y", 0.02))]
    first = judge("abcdef", entrants)
    assert [each.verdict for each in first.raced] == ["favourite", "dropped", "dropped", "goes on"]
    left = survivors([each.entry for each in entrants], first)
    assert [each.name for each in left] == ["3d_fullres", "y"]
    assert Race(rounds=(first,)).winner is None
    last = judge("abcdef", [entrants[0], result("y", *shifted(0.02))])
    assert survivors(left, last) == ()
    assert Race(rounds=(first, last)).winner == last.raced[1]


def test_a_race_is_over_where_every_challenger_lost_for_certain() -> None:
    entrants = [result("3d_fullres", *FAVOURITE), result("2d", *shifted(-0.05)), result("x", *shifted(-0.06))]
    held = judge("abcdef", entrants)
    assert [each.verdict for each in held.raced] == ["favourite", "dropped", "dropped"]
    assert survivors([each.entry for each in entrants], held) == ()


def test_rounds_are_told_in_sentences() -> None:
    held = judge(
        "abcdef",
        [
            result("3d_fullres", *FAVOURITE),
            result("2d", *shifted(-0.012)),
            result("3d_fullres", *shifted(0.001), width=32, steps=150),
            result("x", *shifted(0.1)),
        ],
    )
    assert describe_round(held) == [
        "2d lost to 3d_fullres: -0.012 [-0.017, -0.007] over 6 cases after 300 steps",
        "3d_fullres with 32 features did not beat 3d_fullres: +0.001 [-0.004, 0.006] over 6 cases after 150 steps",
    ]
    dropped = held.raced[-1].model_copy(update={"verdict": "dropped"})
    told = describe_round(held.model_copy(update={"raced": (*held.raced[:-1], dropped)}))
    assert told[-1].startswith("x led 3d_fullres: +0.100 [")
    lone = judge("a", [result("3d_fullres", None), result("2d", None)])
    assert describe_round(lone) == ["2d has no case to compare with 3d_fullres"]


# --- what follows ---


def after_a_race(known: Conditions, winner: str, width: int = 16) -> Schedule:
    favourite = result("3d_fullres", *FAVOURITE)
    held = judge("abcdef", [favourite, result(winner, *shifted(0.02), width=width)])
    return plan_schedule(PLAN, known.model_copy(update={"race": Race(rounds=(held,))}))


def test_the_winner_is_trained_in_the_favourites_place() -> None:
    known = conditions(FULL, FLAT, VNET)
    schedule = after_a_race(known, "3d_fullres_vnet")
    assert [each.configuration for each in schedule.trainings] == ["3d_fullres_vnet"]
    (said,) = [each for each in schedule.decisions if each.rule == "schedule.race"]
    assert said.value == "3d_fullres_vnet"
    assert said.reason.startswith("3d_fullres_vnet beat 3d_fullres: +0.020 [")
    told = " ".join(explain_schedule(schedule).split())
    assert "* Race: 3d_fullres_vnet beat 3d_fullres: +0.020 [" in told
    assert "3d_fullres_vnet: 16 features, " in told
    assert read_document(Schedule, write_document(schedule), where="test") == schedule


def test_a_wider_winner_is_trained_as_wide() -> None:
    known = conditions(measured("3d_fullres", 0.35, 32), FULL, FLAT)
    assert plan_schedule(PLAN, known).trainings[0].base_features == 16
    assert after_a_race(known, "3d_fullres", 32).trainings[0].base_features == 32


def test_before_the_methods_schedule_the_winner_takes_one_place() -> None:
    known = conditions(*(measured(name, 0.1, 32) for name in ("3d_fullres", "2d")), VNET, budget_s=None, device="cuda")
    trained = [each.configuration for each in after_a_race(known, "3d_fullres_vnet").trainings]
    assert trained == ["3d_fullres_vnet", "2d"]


def test_without_a_winner_the_rule_decides_as_ever() -> None:
    known = conditions(FULL, FLAT, VNET)
    plain = plan_schedule(PLAN, known)
    held = judge("abcdef", [result("3d_fullres", *FAVOURITE), result("2d", *shifted(-0.02))])
    for race in (
        Race(rounds=(held,)),
        Race(note="the plan has nothing beside 3d_fullres"),
        Race(rounds=(held,), note="late"),
    ):
        schedule = plan_schedule(PLAN, known.model_copy(update={"race": race}))
        assert schedule.trainings == plain.trainings
        (said,) = [each for each in schedule.decisions if each.rule == "schedule.race"]
        assert said.value == ("3d_fullres" if race.rounds else None)
        assert said.reason.startswith("2d lost" if race.rounds else "no race was held: the plan")
    assert not any(each.rule == "schedule.race" for each in plain.decisions)


def test_every_rule_of_a_schedule_has_a_title() -> None:
    known = conditions(measured("3d_fullres", 0.1, compiled_step_s=0.01, compile_s=1.0), FLAT, budget_s=5000.0)
    schedules = [
        after_a_race(known, "2d"),
        plan_schedule(PLAN, known),
        plan_schedule(PLAN, known.model_copy(update={"configurations": ("2d",)})),
        plan_schedule(PLAN, conditions(measured("3d_fullres", 0.1, 32), budget_s=None, device="cuda")),
    ]
    taken = {decision.rule for schedule in schedules for decision in schedule.decisions}
    assert taken == set(SCHEDULE_TITLES) - {"schedule.single_slices", "schedule.asked_for"}

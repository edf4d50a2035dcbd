"""The schedule follows from measured times and the budget, and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planners import (
    FEWEST_STEPS,
    CaseSize,
    ClassSize,
    Conditions,
    Configuration,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Measurement,
    Network,
    Plan,
    Schedule,
    compiling_may_pay,
    describe_outlook,
    essence,
    find_short_budget,
    learning_rate,
    plan_dataset,
    plan_schedule,
    read_document,
    starves,
    wants_more_candidates,
    with_width,
    write_document,
)
from planners.schedule import cost
from planners.schedule.candidates import candidate_widths, short_batch_size
from planners.schedule.cost import (
    CARDS,
    Card,
    affordable_steps,
    decide_compiling,
    extrapolated,
    modelled_fold_h,
    queue_s,
    share_s_of,
    spread_h,
    usable_s,
)
from planners.schedule.planning import (
    decide_configurations,
    decide_folds,
    decide_width,
    extend_schedule,
    measured_configurations,
    option,
    rounded,
    spoken,
)
from planners.topology import Layer

GOLDEN = Path(__file__).parents[1] / "golden" / "schedules.json"

STATISTICS = IntensityStatistics(
    mean=1.0, median=1.0, std=1.0, minimum=0.0, maximum=4.0, percentile_00_5=0.1, percentile_99_5=3.0
)


def make_plan(*, z: int = 36, thickness_mm: tuple[float, ...] = (1.0,) * 60) -> Plan:
    return plan_dataset(
        Fingerprint(
            dataset_name="d",
            cases=tuple(
                CaseSize(case_id=f"c{i}", shape=(z, 50, 35), spacing_mm=(mm, 1.0, 1.0))
                for i, mm in enumerate(thickness_mm)
            ),
            num_training_cases=60,
            channels=("MRI",),
            labels=Labels(classes=(LabelClass(name="a", values=(1,)),)),
            intensities=(STATISTICS,),
            median_relative_size_after_cropping=1.0,
        )
    )


def conditions(
    *, budget_s: float | None, step_s: float = 0.2, device: str = "cpu", folds: int = 5, tests: int = 0
) -> Conditions:
    measurements = [
        Measurement(
            configuration=name,
            base_features=width,
            batch_size=2,
            precision="bfloat16",
            step_s=step_s * width / 16,
            case_s=0.3,
        )
        for name in ("3d_fullres", "2d")
        for width in (8, 16, 32)
    ]
    return Conditions(
        device=device,
        num_threads=2,
        budget_s=budget_s,
        elapsed_s=20.0,
        num_folds=folds,
        num_training_cases=60,
        num_test_cases=tests,
        cross_validated=True,
        measurements=tuple(measurements),
        seed=0,
    )


PLAN = make_plan()


def test_twenty_minutes_train_a_modest_network_on_all_folds() -> None:
    schedule = plan_schedule(PLAN, conditions(budget_s=1200))
    (training,) = schedule.trainings
    assert schedule.num_folds == 5
    assert training.configuration == "3d_fullres"
    assert training.base_features == 16
    assert 900 <= training.num_steps <= 1200  # what 1200 s, less start and reserve, hold of 0.2 s steps in five folds


@pytest.mark.parametrize("step_s", [0.1, 0.15, 0.25, 0.5])
def test_a_network_narrower_than_modest_is_only_for_want_of_time(step_s: float) -> None:
    assert plan_schedule(PLAN, conditions(budget_s=1200, step_s=step_s)).trainings[0].base_features >= 16
    assert plan_schedule(PLAN, conditions(budget_s=120, step_s=step_s * 20)).trainings[0].base_features == 8


def test_more_time_widens_the_network_and_then_adds_configurations() -> None:
    assert plan_schedule(PLAN, conditions(budget_s=7200)).trainings[0].base_features == 32
    names = [t.configuration for t in plan_schedule(PLAN, conditions(budget_s=100_000)).trainings]
    assert names == ["3d_fullres", "2d"]


@pytest.mark.parametrize(("budget_s", "device"), [(1200.0, "cpu"), (100_000.0, "cuda"), (None, "cuda")])
def test_single_slices_are_trained_in_2d_and_mirrored(budget_s: float | None, device: str) -> None:
    # resampled to one thickness the median slice becomes four, so the plan has 3D configurations as well
    plan = make_plan(z=1, thickness_mm=(5.0,) * 20 + (20.0,) * 40)
    assert "3d_fullres" in [c.name for c in plan.configurations]
    schedule = plan_schedule(plan, conditions(budget_s=budget_s, device=device))
    assert [t.configuration for t in schedule.trainings] == ["2d"]
    assert schedule.trainings[0].mirroring
    (said,) = (record for record in schedule.decisions if record.rule == "schedule.single_slices")
    assert "3d_fullres" in said.reason
    assert not any(
        record.rule == "schedule.single_slices" for record in plan_schedule(PLAN, schedule.conditions).decisions
    )


def test_little_time_trains_fewer_folds_down_to_a_hold_out() -> None:
    few = plan_schedule(PLAN, conditions(budget_s=180))
    assert 2 <= few.num_folds < 5
    assert plan_schedule(PLAN, conditions(budget_s=60)).num_folds == 1


@pytest.mark.parametrize(("share_s", "folds"), [(166 * 2, 2), (166 * 2 - 1, 1)])
def test_a_hold_out_needs_half_the_time_of_two_folds(share_s: float, folds: int) -> None:
    assert decide_folds([PLAN.configuration("3d_fullres")], measured_conditions(1.0, folds=3), share_s).value == folds


@pytest.mark.parametrize(("devices", "following"), [(1, 5), (2, 3), (3, 2), (4, 2), (5, 1), (8, 1)])
def test_folds_side_by_side_get_the_time_of_those_that_follow_each_other(devices: int, following: int) -> None:
    """On 3 devices two folds follow each other on one, as on 4."""
    known = measured_conditions(1.0, folds=5).model_copy(update={"num_devices": devices, "num_training_cases": 1})
    steps = affordable_steps(known.measurements[0], known, 3000.0, 5)
    alone = known.model_copy(update={"num_devices": 1})
    assert steps == affordable_steps(known.measurements[0], alone, 3000.0 * 5 / following, 5)
    assert queue_s([1.0] * 5, devices) == following


@pytest.mark.parametrize(("devices", "tests"), [(2, 0), (4, 20), (5, 0)])
def test_a_budget_on_several_devices_is_used_and_kept(devices: int, tests: int) -> None:
    one = plan_schedule(PLAN, conditions(budget_s=3600, tests=tests))
    several = conditions(budget_s=3600, tests=tests).model_copy(update={"num_devices": devices})
    schedule = plan_schedule(PLAN, several)
    assert schedule.num_folds == 5
    assert schedule.trainings[0].num_steps * schedule.trainings[0].base_features > (
        1.5 * one.trainings[0].num_steps * one.trainings[0].base_features
    )
    assert 0.9 * 3600 < several.elapsed_s + schedule.expected_s <= 3600
    jobs = [(schedule.expected_training_s + schedule.expected_validation_s) / 5] * 5
    assert schedule.expected_s == pytest.approx(queue_s(jobs, devices) + schedule.expected_rest_s)


def test_the_folds_of_two_configurations_share_a_queue() -> None:
    """Of ten trainings on four devices three follow each other, not two for each configuration."""
    asked = conditions(budget_s=3600).model_copy(update={"num_devices": 4, "configurations": ("3d_fullres", "2d")})
    schedule = plan_schedule(PLAN, asked)
    assert [training.configuration for training in schedule.trainings] == ["3d_fullres", "2d"]
    assert 0.9 * 3600 < asked.elapsed_s + schedule.expected_s <= 3600
    assert share_s_of(asked, 2, 5) == pytest.approx(usable_s(asked) * 2 / 3)


def test_one_device_is_no_news_to_a_schedule() -> None:
    known = conditions(budget_s=3600)
    assert "num_devices" not in essence(known)
    assert essence(known.model_copy(update={"num_devices": 2}))["num_devices"] == 2


def test_folds_that_were_asked_for_are_kept_however_short_the_time() -> None:
    asked = conditions(budget_s=60).model_copy(update={"folds_given": True})
    schedule = plan_schedule(PLAN, asked)
    assert schedule.num_folds == 5
    assert any("requested" in record.reason for record in schedule.decisions if record.rule == "schedule.folds")
    assert find_short_budget(PLAN, schedule) is not None


def test_a_cpu_takes_an_hour_and_a_gpu_the_methods_schedule() -> None:
    hour = plan_schedule(PLAN, conditions(budget_s=3600))
    unsaid = plan_schedule(PLAN, conditions(budget_s=None))
    assert unsaid.trainings == hour.trainings
    (first, _) = plan_schedule(PLAN, conditions(budget_s=None, device="cuda")).trainings
    assert first.num_steps == 250_000
    assert (first.optimiser, first.momentum, first.peak_learning_rate) == ("sgd", 0.99, 0.01)
    assert first.mirroring
    assert first.batch_size == PLAN.configuration("3d_fullres").batch_size


@given(budget=st.floats(60, 200_000), step_s=st.floats(0.01, 20), tests=st.integers(0, 100))
def test_any_budget_gives_a_schedule_that_keeps_it_or_trains_almost_nothing(budget, step_s, tests) -> None:
    schedule = plan_schedule(PLAN, conditions(budget_s=budget, step_s=step_s, tests=tests))
    expected = schedule.expected_s + schedule.conditions.elapsed_s
    least = all(t.num_steps == 1 for t in schedule.trainings)
    assert expected <= budget * 1.001 or least
    assert read_document(Schedule, write_document(schedule), where="test") == schedule


@given(step_s=st.floats(0.05, 5), budget=st.floats(100, 50_000), factor=st.floats(1, 10))
def test_more_time_never_makes_a_training_worth_less(step_s, budget, factor) -> None:
    """Worth: folds, then configurations, then work, width times steps."""

    def worth(schedule: Schedule) -> tuple[int, int, float]:
        work = sum(t.base_features * t.num_steps for t in schedule.trainings)
        return schedule.num_folds, len(schedule.trainings), work

    less = plan_schedule(PLAN, conditions(budget_s=budget, step_s=step_s))
    more = plan_schedule(PLAN, conditions(budget_s=budget * factor, step_s=step_s))
    assert worth(more)[:2] >= worth(less)[:2]
    if worth(more)[:2] == worth(less)[:2]:
        assert worth(more)[2] >= worth(less)[2] * 0.98  # whole steps are rounded down


def test_slices_without_a_common_orientation_are_mirrored() -> None:
    flat = make_plan(z=1)
    assert [c.name for c in flat.configurations] == ["2d"]
    assert plan_schedule(flat, conditions(budget_s=600)).trainings[0].mirroring
    assert not plan_schedule(PLAN, conditions(budget_s=600)).trainings[0].mirroring


def test_the_methods_learning_rate_falls_once_an_epoch() -> None:
    training = plan_schedule(PLAN, conditions(budget_s=None, device="cuda")).trainings[0]
    assert learning_rate(training, 0) == 0.01
    assert learning_rate(training, 249) == 0.01
    assert learning_rate(training, 250) == pytest.approx(0.01 * (1 - 1 / 1000) ** 0.9)
    assert learning_rate(training, 249_999) == pytest.approx(0.01 * (1 / 1000) ** 0.9)


def test_a_budgeted_rate_warms_up_and_decays_to_almost_nothing() -> None:
    training = plan_schedule(PLAN, conditions(budget_s=1200)).trainings[0]
    rates = [learning_rate(training, step) for step in range(training.num_steps)]
    assert max(rates) == training.peak_learning_rate
    assert rates.index(max(rates)) < training.num_steps * 0.2
    assert rates[0] < 0.2 * max(rates)
    assert 0 < rates[-1] < 0.01 * max(rates)


def test_another_configuration_is_measured_where_the_first_starves_or_is_saturated() -> None:
    def wants(step_s: float, budget_s: float) -> bool:
        measured = [
            m for m in conditions(budget_s=budget_s, step_s=step_s).measurements if m.configuration == "3d_fullres"
        ]
        return wants_more_candidates(measured, budget_s=budget_s, num_folds=5)

    assert not wants(0.2, 1200)
    assert wants(10.0, 1200)
    assert wants(0.2, 200_000)
    assert not wants(100.0, 200_000)


@pytest.mark.parametrize(("momentum", "by_epoch"), [(0.95, False), (0.96, True)])
def test_only_a_heavy_momentum_changes_the_rate_once_an_epoch(momentum: float, by_epoch: bool) -> None:
    training = plan_schedule(PLAN, conditions(budget_s=1200)).trainings[0]
    training = training.model_copy(update={"momentum": momentum, "warmup_steps": 0})
    assert (learning_rate(training, 1) == learning_rate(training, 0)) is by_epoch


def test_a_configuration_that_starves_gives_way() -> None:
    slow = conditions(budget_s=1200)
    measurements = tuple(
        m.model_copy(update={"step_s": m.step_s * 100}) if m.configuration == "3d_fullres" else m
        for m in slow.measurements
    )
    schedule = plan_schedule(PLAN, slow.model_copy(update={"measurements": measurements}))
    assert [t.configuration for t in schedule.trainings] == ["2d"]


def test_the_methods_schedule_trains_only_the_methods_networks() -> None:
    extra = conditions(budget_s=None, device="cuda")
    vnet = Measurement(
        configuration="3d_fullres_vnet", base_features=16, batch_size=2, precision="bfloat16", step_s=0.1, case_s=0.1
    )
    schedule = plan_schedule(PLAN, extra.model_copy(update={"measurements": (*extra.measurements, vnet)}))
    assert "3d_fullres_vnet" in [c.name for c in PLAN.configurations]
    assert [t.configuration for t in schedule.trainings] == ["3d_fullres", "2d"]


def test_width_changes_all_stages_in_proportion() -> None:
    network = PLAN.configuration("3d_fullres").network
    narrow = with_width(network, 8)
    assert narrow.features == tuple(width // 4 for width in network.features)
    assert narrow.strides == network.strides


def test_every_choice_has_a_reason() -> None:
    rules = {record.rule for record in plan_schedule(PLAN, conditions(budget_s=600)).decisions}
    assert rules == {
        "schedule.configurations",
        "schedule.folds",
        "schedule.width",
        "schedule.optimiser",
        "schedule.mirroring",
    }


def test_the_outlook_names_what_more_time_would_change() -> None:
    short = plan_schedule(PLAN, conditions(budget_s=600))
    outlook = describe_outlook(PLAN, short)
    assert outlook is not None
    budget, gain = outlook.removeprefix("with ").split(": ")
    assert "32 features" in gain
    seconds = {"min": 60, "h": 3600}[budget.split()[1]] * float(budget.split()[0])
    longer = plan_schedule(PLAN, conditions(budget_s=seconds))
    assert longer.trainings[0].base_features == 32
    assert describe_outlook(PLAN, plan_schedule(PLAN, conditions(budget_s=None, device="cuda"))) is None


def test_the_outlook_names_a_configuration_that_nobody_measured() -> None:
    wide = conditions(budget_s=7200)
    only = tuple(m for m in wide.measurements if m.configuration == "3d_fullres")
    schedule = plan_schedule(PLAN, wide.model_copy(update={"measurements": only}))
    assert schedule.trainings[0].base_features == 32
    assert "2d too" in (describe_outlook(PLAN, schedule) or "")


def test_a_budget_that_teaches_nothing_is_warned_of_with_one_that_does() -> None:
    assert find_short_budget(PLAN, plan_schedule(PLAN, conditions(budget_s=1200))) is None
    starved = plan_schedule(PLAN, conditions(budget_s=120, step_s=3.0))
    found = find_short_budget(PLAN, starved)
    assert found is not None
    what, advice = found
    assert f"enough for {starved.trainings[0].num_steps} training steps a fold" in what
    seconds = float(advice[:-1]) * {"m": 60, "h": 3600}[advice[-1]]
    assert find_short_budget(PLAN, plan_schedule(PLAN, conditions(budget_s=seconds, step_s=3.0))) is None


def test_a_budget_that_predictions_alone_exceed_is_said_to_be_too_short() -> None:
    slow = conditions(budget_s=300)
    measurements = tuple(m.model_copy(update={"export_s": 30.0}) for m in slow.measurements)
    warning = find_short_budget(PLAN, plan_schedule(PLAN, slow.model_copy(update={"measurements": measurements})))
    assert warning is not None
    assert "cannot be kept" in warning[0]


def test_photographs_pay_for_their_mirror_images_from_the_budget() -> None:
    photographs = make_plan(z=1)
    assert [c.mirror_axes for c in photographs.configurations] == [(0, 1)]
    known = Conditions(
        device="cpu",
        num_threads=2,
        budget_s=600,
        elapsed_s=20.0,
        num_folds=5,
        num_training_cases=500,
        num_test_cases=200,
        cross_validated=True,
        seed=0,
        measurements=tuple(
            Measurement(
                configuration="2d", base_features=width, batch_size=4, precision="float32", step_s=0.1, case_s=0.08
            )
            for width in (8, 16, 32)
        ),
    )
    schedule = plan_schedule(photographs, known)
    assert schedule.trainings[0].mirroring
    assert schedule.conditions == known
    folds = schedule.num_folds
    assert schedule.expected_validation_s == pytest.approx(500 * 4 * 0.08)
    assert schedule.expected_rest_s == pytest.approx(200 * 4 * 0.08 * folds + 6.0)
    assert schedule.expected_s + known.elapsed_s <= 600
    method = plan_schedule(photographs, known.model_copy(update={"device": "cuda", "budget_s": None}))
    assert method.expected_rest_s == pytest.approx(200 * 4 * 0.08 * 5)


def test_a_configuration_is_trained_once() -> None:
    schedule = plan_schedule(PLAN, conditions(budget_s=1200))
    twice = schedule.model_copy(update={"trainings": (*schedule.trainings, *schedule.trainings)})
    with pytest.raises(ValueError, match="trains 3d_fullres more than once"):
        read_document(Schedule, write_document(twice), where="test")


def test_a_short_schedule_made_by_hand_is_warned_of_without_advice() -> None:
    schedule = plan_schedule(PLAN, conditions(budget_s=120, step_s=3.0))
    by_hand = tuple(t.model_copy(update={"configuration": "3d_fullres_vnet"}) for t in schedule.trainings)
    warning = find_short_budget(PLAN, schedule.model_copy(update={"trainings": by_hand}))
    assert warning is not None
    assert "steps a fold" in warning[0]
    assert warning[1] == ""


def test_the_outlook_does_not_promise_what_would_only_be_measured() -> None:
    """Where the first configuration starves, another is measured to take its place, not to be trained too."""
    short = conditions(budget_s=120, step_s=60.0)
    only = tuple(m for m in short.measurements if m.configuration == "3d_fullres")
    schedule = plan_schedule(PLAN, short.model_copy(update={"measurements": only}))
    assert "2d too" not in (describe_outlook(PLAN, schedule) or "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (45, "45 s"),
        (60, "1 min"),
        (90, "90 s"),
        (119, "119 s"),
        (120, "2 min"),
        (300, "5 min"),
        (3600, "1 h"),
        (5400, "90 min"),
        (7200, "2 h"),
        (7200.4, "2 h"),
        (9000, "2.5 h"),
    ],
)
def test_durations_are_said_as_they_were_given(seconds, text) -> None:
    assert spoken(seconds) == text
    assert option(seconds) == text.replace(" min", "m").replace(" ", "")


@pytest.mark.parametrize(
    ("above", "duration"),
    [
        *((0, 60), (60, 120), (120, 300), (300, 600), (600, 900), (900, 1200), (1200, 1800), (1800, 2700)),
        *((2700, 3600), (3600, 7200), (7200, 10_800)),
    ],
)
def test_durations_are_rounded_up_to_those_that_people_give(above: int, duration: int) -> None:
    assert rounded(above + 1) == rounded(duration) == duration


seconds = st.floats(0.01, 2.0)


def with_compiled(known: Conditions, *, compiled_step_s: float, compile_s: float) -> Conditions:
    """Every width measured compiled, too."""
    update = {"compiled_step_s": compiled_step_s, "compile_s": compile_s}
    return known.model_copy(update={"measurements": tuple(m.model_copy(update=update) for m in known.measurements)})


def test_nothing_is_compiled_that_was_not_measured() -> None:
    schedule = plan_schedule(PLAN, conditions(budget_s=3600))
    assert not any(training.compiled for training in schedule.trainings)
    assert not any(record.rule == "schedule.compiling" for record in schedule.decisions)


def test_faster_steps_that_pay_for_compiling_make_more_of_them() -> None:
    known = conditions(budget_s=3600, step_s=0.2)
    plain, compiled = (
        plan_schedule(PLAN, known),
        plan_schedule(PLAN, with_compiled(known, compiled_step_s=0.1, compile_s=30)),
    )
    assert compiled.trainings[0].compiled
    assert compiled.trainings[0].num_steps > 1.5 * plain.trainings[0].num_steps
    assert any(record.rule == "schedule.compiling" and record.value is True for record in compiled.decisions)


def test_the_methods_schedule_keeps_its_steps() -> None:
    known = conditions(budget_s=None, device="cuda", step_s=0.2)
    plain, compiled = (
        plan_schedule(PLAN, known),
        plan_schedule(PLAN, with_compiled(known, compiled_step_s=0.2, compile_s=30)),
    )
    assert [t.num_steps for t in plain.trainings] == [t.num_steps for t in compiled.trainings]
    assert compiled.expected_training_s < plain.expected_training_s


@given(budget=st.floats(300, 20_000), plain=seconds, fast=seconds, compile_s=st.floats(0, 300))
def test_compiling_never_costs_more_than_it_saves(budget: float, plain: float, fast: float, compile_s: float) -> None:
    known = conditions(budget_s=budget, step_s=plain)
    without, schedule = (
        plan_schedule(PLAN, known),
        plan_schedule(PLAN, with_compiled(known, compiled_step_s=fast, compile_s=compile_s)),
    )
    for before, after in zip(without.trainings, schedule.trainings, strict=True):
        assert before.base_features == after.base_features  # compiling decides nothing else
        if after.compiled:
            step_s = plain * after.base_features / 16
            assert after.num_steps >= before.num_steps - 20  # looks at validation patches are rounded
            assert schedule.num_folds * before.num_steps * (step_s - fast) > compile_s
        else:
            assert after.num_steps == before.num_steps
    assert schedule.expected_s <= max(budget, without.expected_s) + 1


def test_compiling_may_pay_from_900_seconds_of_training() -> None:
    measured = measured_conditions(1.0).measurements[0]
    assert compiling_may_pay(measured, 901, 1)
    assert compiling_may_pay(measured, 181, 5)
    assert not compiling_may_pay(measured, 900, 1)


def measured_conditions(budget_s: float, *, folds: int = 1, widths: tuple[int, ...] = (32, 16, 8)) -> Conditions:
    """Steps of one second at every width, nothing to predict."""
    measurements = tuple(
        Measurement(
            configuration="3d_fullres", base_features=width, batch_size=2, precision="float32", step_s=1.0, case_s=1.0
        )
        for width in widths
    )
    changes = {"measurements": measurements, "cross_validated": False, "elapsed_s": 0.0, "num_folds": folds}
    return conditions(budget_s=budget_s).model_copy(update=changes)


@pytest.mark.parametrize(("share_s", "width"), [(1016, 32), (1015, 16), (166, 16), (165, 8)])
def test_widths_change_at_a_thousand_and_at_150_steps(share_s: float, width: int) -> None:
    decided = decide_width(PLAN.configuration("3d_fullres"), measured_conditions(1.0), share_s, 1)
    assert decided.value.base_features == width


@pytest.mark.parametrize(("share_s", "folds"), [(498, 3), (497, 2)])
def test_a_fold_is_left_out_below_150_steps(share_s: float, folds: int) -> None:
    decided = decide_folds([PLAN.configuration("3d_fullres")], measured_conditions(1.0, folds=3), share_s)
    assert decided.value == folds
    assert (decided.change is None) is (folds == 3)


def test_the_slowest_of_several_configurations_decides_on_folds() -> None:
    known = measured_conditions(1.0, folds=3)
    slow = [m.model_copy(update={"configuration": "2d", "step_s": 2.0}) for m in known.measurements]
    known = known.model_copy(update={"measurements": (*known.measurements, *slow)})
    both = [PLAN.configuration("3d_fullres"), PLAN.configuration("2d")]
    assert decide_folds(both[:1], known, 700).value == 3
    assert decide_folds(both, known, 700).value == 2


@pytest.mark.parametrize(("share_s", "name"), [(166, "3d_fullres"), (165, "2d")])
def test_the_first_configuration_gives_way_below_150_steps(share_s: float, name: str) -> None:
    known = measured_conditions(1.0, widths=(16,))
    flat = [m.model_copy(update={"configuration": "2d", "step_s": 0.5}) for m in known.measurements]
    known = known.model_copy(update={"measurements": (*known.measurements, *flat)})
    candidates = [PLAN.configuration("3d_fullres"), PLAN.configuration("2d")]
    assert [each.name for each in decide_configurations(candidates, known, share_s).value] == [name]


CUBES = plan_dataset(
    Fingerprint(
        dataset_name="d",
        cases=tuple(CaseSize(case_id=f"c{i}", shape=(160, 160, 160), spacing_mm=(1.0, 1.0, 1.0)) for i in range(20)),
        num_training_cases=20,
        channels=("MRI",),
        labels=Labels(classes=(LabelClass(name="a", values=(1,)),)),
        intensities=(STATISTICS,),
        median_relative_size_after_cropping=1.0,
        class_sizes=(
            ClassSize(name="a", num_cases=20, median_volume_ml=100.0, median_share=0.1, median_components=1.0),
        ),
    )
)
"""Large enough that coarser voxels and a smaller patch are planned for little time."""


def little_time_conditions(**step_s: float) -> Conditions:
    """One fold, nothing to predict; steps of one second, or as given, of a modest width of these configurations."""
    (first,) = measured_conditions(1.0, widths=(16,)).measurements
    names = {"full": "3d_fullres", "coarse": "3d_coarse", "small": "3d_fullres_small", "flat": "2d"}
    measured = [first.model_copy(update={"configuration": names[key], "step_s": s}) for key, s in step_s.items()]
    return measured_conditions(1.0).model_copy(update={"measurements": tuple(measured)})


@pytest.mark.parametrize(
    ("share_s", "step_s", "name"),
    [
        (FEWEST_STEPS + 16, {"coarse": 0.1, "small": 0.1}, "3d_fullres"),
        (FEWEST_STEPS + 15, {"coarse": 0.1, "small": 0.1}, "3d_coarse"),
        (FEWEST_STEPS + 15, {"small": 0.1}, "3d_fullres_small"),
        (FEWEST_STEPS + 15, {"coarse": 1.0, "small": 0.99}, "3d_fullres_small"),  # coarse ones starve, too
        (FEWEST_STEPS + 15, {"coarse": 1.0, "small": 1.0}, "3d_fullres"),
        (FEWEST_STEPS + 15, {"coarse": 0.9, "small": 0.1, "flat": 0.1}, "3d_coarse"),
        (FEWEST_STEPS + 15, {"coarse": 1.0, "small": 0.1, "flat": 0.9}, "2d"),
        (FEWEST_STEPS + 15, {"coarse": 1.0, "small": 0.9, "flat": 1.0}, "3d_fullres_small"),
        (FEWEST_STEPS + 15, {"coarse": 1.1, "small": 1.0, "flat": 1.0}, "3d_fullres"),  # all starve
        (
            FEWEST_STEPS - 50,
            {"coarse": 0.9, "small": 0.9, "flat": 0.95},
            "2d",
        ),  # most steps but for those of little time
    ],
)
def test_a_starving_patch_gives_way_to_coarser_voxels_or_a_smaller_one(
    share_s: float, step_s: dict[str, float], name: str
) -> None:
    known = little_time_conditions(full=1.0, **step_s)
    decided = decide_configurations(measured_configurations(CUBES, known), known, share_s)
    assert [each.name for each in decided.value] == [name]
    assert name in decided.reason


def test_candidates_for_little_time_are_measured_where_the_preferred_one_starves() -> None:
    def starving(budget_s: float, **changes: Any) -> bool:
        return starves(CUBES, little_time_conditions(full=1.0).model_copy(update={"budget_s": budget_s, **changes}))

    enough = (FEWEST_STEPS + 16 + 6) / 0.97
    assert starving(enough - 1)
    assert not starving(enough + 1)
    assert not starving(enough - 1, configurations=("3d_fullres",))
    assert not starves(CUBES, little_time_conditions(full=1.0).model_copy(update={"budget_s": None, "device": "cuda"}))
    assert not starves(PLAN, little_time_conditions(full=1.0))  # its patch is small


def test_candidates_for_little_time_are_no_further_configurations() -> None:
    known = little_time_conditions(full=0.01, coarse=0.001, small=0.001, flat=0.01)
    decided = decide_configurations(measured_configurations(CUBES, known), known, 200.0)
    assert [each.name for each in decided.value] == ["3d_fullres", "2d"]


def test_compiling_must_save_more_than_it_takes() -> None:
    (measured,) = measured_conditions(1.0, widths=(16,)).measurements
    for compile_s, pays in ((49.9, True), (50.0, False)):
        compiled = measured.model_copy(update={"compiled_step_s": 0.5, "compile_s": compile_s})
        decided = decide_compiling(compiled, 50, 2)
        assert decided is not None
        assert decided.value is pays


def test_narrower_networks_and_small_batches_are_measured_for_budgets() -> None:
    flat, volume = PLAN.configuration("2d"), PLAN.configuration("3d_fullres")
    assert candidate_widths(volume) == (32, 16, 8)
    narrow = volume.model_copy(update={"network": with_width(volume.network, 16)})
    assert candidate_widths(narrow) == (16, 8)
    wide = {"batch_size": 50}
    assert [short_batch_size(each.model_copy(update=wide), "cpu") for each in (flat, volume)] == [4, 2]
    assert short_batch_size(flat.model_copy(update={"batch_size": 3}), "cpu") == 3
    assert [short_batch_size(each.model_copy(update=wide), "cuda") for each in (flat, volume)] == [50, 50]


@pytest.mark.parametrize(("budget_s", "is_long"), [(51_578, True), (51_577, False)])
def test_from_50_000_steps_the_methods_recipe_is_followed_with_fewer_epochs(budget_s: float, is_long: bool) -> None:
    known = measured_conditions(budget_s, widths=(32,)).model_copy(
        update={"cross_validated": True, "num_training_cases": 1}
    )
    schedule = plan_schedule(PLAN, known)
    (training,) = schedule.trainings
    assert (training.optimiser, training.momentum) == (("sgd", 0.99) if is_long else ("adamw", 0.9))
    assert training.mirroring is is_long
    assert training.num_steps == 50_000 if is_long else 50_000 <= training.num_steps < 50_010  # eight images of a case
    assert schedule.expected_validation_s == (8 if is_long else 1)
    assert training.num_steps % 250 == 0 or not is_long
    assert not is_long or (training.curve, training.averaged_share, training.batch_size) == ("polynomial", 0.0, 2)


@dataclass(frozen=True)
class SimulatedGpu:
    """A GPU that takes, for a step of each configuration at the plan's own width, what `benchmarks/results/fake_gpu.md` tells."""

    step_s: Mapping[str, float]
    case_s: float

    def measured(self, plan: Plan, budget_s: float, cases: int) -> Conditions:
        """As trials on it would give them: a network half as wide takes 0.6 of the time."""
        measurements = tuple(
            Measurement(
                configuration=name, base_features=32 >> halvings, batch_size=plan.configuration(name).batch_size,
                precision="bfloat16", step_s=step_s * 0.6**halvings, case_s=self.case_s * 0.6**halvings, export_s=1.0,
            )
            for name, step_s in self.step_s.items()
            for halvings in range(3)
        )  # fmt: skip
        known = {"measurements": measurements, "num_training_cases": cases, "elapsed_s": 120.0}
        return conditions(budget_s=budget_s, device="cuda").model_copy(update=known)


def test_an_hour_on_a_simulated_gpu_gets_nearly_all_steps_that_fit() -> None:
    """The reference's case 046: a hundred CTs of 150 x 512 x 512 voxels, two classes."""
    sizes = tuple(CaseSize(case_id=f"c{i}", shape=(150, 512, 512), spacing_mm=(2.5, 0.8, 0.8)) for i in range(100))
    plan = plan_dataset(
        Fingerprint(
            dataset_name="d",
            cases=sizes,
            num_training_cases=100,
            channels=("CT",),
            labels=Labels(classes=tuple(LabelClass(name=f"c{value}", values=(value,)) for value in (1, 2))),
            intensities=(STATISTICS,),
            median_relative_size_after_cropping=1.0,
        )
    )
    assert (plan.configuration("3d_fullres").patch_shape, plan.configuration("2d").batch_size) == ((56, 192, 192), 12)
    gpu = SimulatedGpu(step_s={"3d_fullres": 0.0342, "3d_lowres": 0.0342, "2d": 0.0245}, case_s=4.0)
    known = gpu.measured(plan, 3600.0, len(sizes))
    schedule = plan_schedule(plan, known)
    (training,) = schedule.trainings
    assert (training.base_features, training.batch_size) == (32, plan.configuration(training.configuration).batch_size)
    validation_s = len(sizes) * (4.0 + 1.0)
    fitting = (3600 - known.elapsed_s - validation_s) / gpu.step_s[training.configuration] / schedule.num_folds
    assert 0.9 * fitting < training.num_steps <= fitting
    assert schedule.num_folds == 5


def test_an_hour_of_a_fast_gpu_is_used() -> None:
    """A GPU that takes 0.1 s for a step of 32 features, 2 s for a case of 100 and 8 s to export it."""
    shares = {32: 1.0, 16: 0.6, 8: 0.45}
    measurements = tuple(
        Measurement(
            configuration=name, base_features=width, batch_size=2, precision="bfloat16",
            step_s=step_s * share, case_s=2 * share, export_s=8.0,
        )
        for name, step_s in (("3d_fullres", 0.1), ("2d", 0.06))
        for width, share in shares.items()
    )  # fmt: skip
    known = conditions(budget_s=3600.0, device="cuda").model_copy(
        update={"measurements": measurements, "num_training_cases": 100, "elapsed_s": 600.0}
    )
    schedule = plan_schedule(PLAN, known)
    (training,) = schedule.trainings
    assert training.base_features == 32
    fitting = (3600 - 600 - (2 + 2 * 8) * 100) / 0.1 / 5
    assert 0.85 * fitting < training.num_steps < fitting  # 114 s are reserved, a tenth of what is left here
    half_day = plan_schedule(PLAN, known.model_copy(update={"budget_s": 43_200.0}))
    assert [each.optimiser for each in half_day.trainings] == ["adamw", "sgd"]  # 39 000 and 65 000 steps
    day = plan_schedule(PLAN, known.model_copy(update={"budget_s": 86_400.0}))
    assert {each.optimiser for each in day.trainings} == {"sgd"}


def test_six_seconds_and_three_hundredths_of_the_budget_are_kept_back() -> None:
    (training,) = plan_schedule(PLAN, measured_conditions(1000.0, folds=2, widths=(16,))).trainings
    assert training.num_steps == (1000 - 6 - 30) // 2 - 16


@pytest.mark.parametrize(("budget_s", "wanted"), [(16_000, True), (15_999, False)])
def test_another_configuration_is_measured_from_8000_steps_each(budget_s: float, wanted: bool) -> None:
    measured = measured_conditions(budget_s, widths=(16,)).measurements
    assert wants_more_candidates(measured, budget_s=budget_s, num_folds=1) is wanted


def test_a_hold_out_trains_one_network_and_validates_its_part_of_the_cases() -> None:
    plan, five = make_plan(), conditions(budget_s=3600.0)
    one = five.model_copy(update={"num_folds": 1, "folds_given": True, "num_validated_cases": 12})
    held_out, cross_validated = (
        plan_schedule(plan, each.model_copy(update={"folds_given": True})) for each in (one, five)
    )
    assert held_out.num_folds == 1
    one_s, five_s = (each.expected_validation_s / len(each.trainings) for each in (held_out, cross_validated))
    assert one_s == pytest.approx(12 / 60 * five_s)
    assert "1 fold was requested" in next(d.reason for d in held_out.decisions if d.rule == "schedule.folds")


@pytest.mark.parametrize(
    ("wide_step_s", "budget"),
    [(1.1, "20 min"), (2.5, "45 min"), (3.4, "1 h"), (6.8, "2 h"), (13.7, "4 h"), (27.4, "8 h")],
)
def test_the_outlook_tries_up_to_48_times_the_budget(wide_step_s: float, budget: str) -> None:
    """Of ten minutes, where steps of the modest network take a second; each needs 1016 steps of the wide one."""
    short = measured_conditions(600.0, widths=(32, 16))
    wide, modest = short.measurements
    slow = (wide.model_copy(update={"step_s": wide_step_s}), modest)
    schedule = plan_schedule(PLAN, short.model_copy(update={"measurements": slow}))
    assert describe_outlook(PLAN, schedule) == f"with {budget}: 32 features"


def test_the_outlook_without_a_budget_starts_from_an_hour() -> None:
    unsaid = measured_conditions(600.0, widths=(32, 16)).model_copy(update={"budget_s": None})
    wide, modest = unsaid.measurements
    slow = (wide.model_copy(update={"step_s": 6.8}), modest)
    schedule = plan_schedule(PLAN, unsaid.model_copy(update={"measurements": slow}))
    assert describe_outlook(PLAN, schedule) == "with 2 h: 32 features"


def two_trainings(num_steps: tuple[int, int], *, late_s: float = 0.0, **changes: Any) -> Schedule:
    """Of 3D and 2D, by hand, in a budget of 1000 s that is exceeded by ``late_s``; the narrowest network has the only fast steps."""
    known = measured_conditions(1000.0, folds=5, widths=(16, 8))
    steps = zip(known.measurements, (2.0, 1.0), strict=True)
    measured = [m.model_copy(update={"step_s": step_s}) for m, step_s in steps]
    flat = [m.model_copy(update={"configuration": "2d"}) for m in measured]
    known = known.model_copy(update={"measurements": (*measured, *flat), "elapsed_s": 204.0, **changes})
    schedule = plan_schedule(PLAN, known.model_copy(update={"configurations": ("3d_fullres", "2d")}))
    trainings = (
        each.model_copy(update={"num_steps": steps}) for each, steps in zip(schedule.trainings, num_steps, strict=True)
    )
    spent = {"expected_training_s": 700.0, "expected_validation_s": 50.0, "expected_rest_s": 46.0 + late_s}
    return schedule.model_copy(update={"trainings": tuple(trainings), **spent})


def test_a_budget_is_too_short_below_150_steps_or_when_it_is_exceeded_by_a_tenth() -> None:
    assert find_short_budget(PLAN, two_trainings((150, 150))) is None
    assert find_short_budget(PLAN, two_trainings((150, 150), late_s=100.0)) is None
    few = find_short_budget(PLAN, two_trainings((200, 149)))
    assert few is not None
    assert "enough for 149 training steps a fold" in few[0]
    late = find_short_budget(PLAN, two_trainings((150, 150), late_s=100.1))
    assert late is not None
    assert "takes about 20 min" in late[0]


@pytest.mark.parametrize(
    ("changes", "budget"),
    [
        # (245 s elapsed + 2 trainings x (150 + 16) steps of 1 s + 6 s) / 0.97 is one second over 10 minutes
        ({"elapsed_s": 245.0}, "15m"),
        ({"elapsed_s": 243.0}, "10m"),
        ({"num_folds": 1}, "10m"),
        ({"folds_given": True}, "45m"),
    ],
)
def test_the_advised_budget_gives_150_steps_in_a_hold_out(changes: dict[str, Any], budget: str) -> None:
    found = find_short_budget(PLAN, two_trainings((100, 100), **changes))
    assert found is not None
    assert found[1] == budget


def told() -> dict[str, Any]:
    """Folds, expected times and all fields of the trainings, over budgets, step times, kinds of images and options."""
    photographs = make_plan(z=1)
    cascade = plan_dataset(
        Fingerprint(
            dataset_name="d",
            cases=tuple(CaseSize(case_id=f"c{i}", shape=(300, 512, 512), spacing_mm=(0.8, 0.8, 0.8)) for i in range(5)),
            num_training_cases=60,
            channels=("CT",),
            labels=Labels(classes=(LabelClass(name="a", values=(1,)),)),
            intensities=(STATISTICS,),
            median_relative_size_after_cropping=1.0,
        )
    )
    costs = {"export_s": 0.2, "prepare_s": 0.1, "compiled_step_s": 0.04, "compile_s": 50.0}
    plain = {
        f"{budget_s} s, steps of {step_s} s": (PLAN, conditions(budget_s=budget_s, step_s=step_s, tests=7))
        for budget_s, step_s in product((60, 200, 600, 1200, 3600, 20_000, 100_000), (0.05, 0.2, 2.0))
    }
    hour = conditions(budget_s=3600, tests=7)
    costly = hour.model_copy(
        update={"measurements": tuple(m.model_copy(update=costs) for m in hour.measurements), "num_validated_cases": 11}
    )
    low = tuple(m.model_copy(update={"configuration": "3d_lowres"}) for m in hour.measurements[:3])
    after = tuple(
        m.model_copy(update={"configuration": "3d_cascade_fullres", "case_s": 0.7}) for m in hour.measurements[:3]
    )
    staged = hour.model_copy(update={"measurements": (*hour.measurements, *low, *after)})
    gpu = {"device": "cuda", "budget_s": None}
    asked = {"configurations": ("3d_cascade_fullres",)}
    others = {
        "no budget": (PLAN, conditions(budget_s=None, tests=7)),
        "photographs": (photographs, hour),
        "costly predictions, compiled": (PLAN, costly),
        "costly predictions, GPU": (PLAN, costly.model_copy(update=gpu)),
        "photographs, GPU": (photographs, hour.model_copy(update=gpu)),
        "cascade": (cascade, staged.model_copy(update=asked)),
        "cascade, GPU": (cascade, staged.model_copy(update=gpu)),
        "cascade alone, GPU": (cascade, staged.model_copy(update={**gpu, **asked})),
    }
    schedules = {name: plan_schedule(plan, known) for name, (plan, known) in {**plain, **others}.items()}
    for name, known in (("hour", hour), ("GPU", hour.model_copy(update=gpu))):
        extended = extend_schedule(
            cascade, plan_schedule(cascade, known), "3d_cascade_fullres", (*low, *after), elapsed_s=30.0
        )
        schedules[f"extended by a cascade, {name}"] = extended
    return {
        name: {
            "folds": schedule.num_folds,
            "seconds": [schedule.expected_training_s, schedule.expected_validation_s, schedule.expected_rest_s],
            "trainings": [list(training.model_dump(mode="json").values()) for training in schedule.trainings],
        }
        for name, schedule in schedules.items()
    }


def test_schedules_are_those_of_earlier_versions() -> None:
    """The same times and budget give the same trainings in later versions, too; see tests/golden/PROVENANCE.md."""
    golden = json.loads(GOLDEN.read_text())
    found = told()
    assert found.keys() == golden.keys()
    for name, each in found.items():
        assert each.pop("seconds") == pytest.approx(golden[name].pop("seconds"), rel=1e-9)
        assert each == golden[name]


# --- on paper ---


def cube_network(
    patch: tuple[int, ...], kernels: tuple[Any, ...], strides: tuple[Any, ...], inputs: int, outputs: int
) -> Configuration:
    """nnU-Net's U-Net for a patch, batch 2."""
    own = PLAN.configuration("3d_fullres")
    features = tuple(min(32 << stage, 320) for stage in range(len(strides)))
    network = Network(
        family="unet", num_inputs=inputs, num_outputs=outputs, features=features, kernels=kernels, strides=strides,
        blocks=(2,) * len(strides), decoder_blocks=(2,) * (len(strides) - 1),
    )  # fmt: skip
    return own.model_copy(update={"patch_shape": patch, "batch_size": 2, "network": network})


ONE, TWO, FLAT_STEP, FLAT_KERNEL, CUBE_KERNEL = (1, 1, 1), (2, 2, 2), (1, 2, 2), (1, 3, 3), (3, 3, 3)
EPOCHS_S = {
    "liver": (cube_network((128,) * 3, (CUBE_KERNEL,) * 6, (ONE, *[TWO] * 5), 1, 3), (41.1, 70.96, 101.54)),
    "heart": (cube_network((80, 192, 160), (CUBE_KERNEL,) * 6, (ONE, *[TWO] * 4, FLAT_STEP), 1, 2), (48.53, 79.0, 138.4)),
    "prostate": (
        cube_network(
            (20, 256, 320), (FLAT_KERNEL, FLAT_KERNEL, *[CUBE_KERNEL] * 5),
            (ONE, FLAT_STEP, FLAT_STEP, TWO, TWO, FLAT_STEP, FLAT_STEP), 2, 3,
        ),
        (43.87, 70.58, 124.73),
    ),
}  # fmt: skip
"""Networks of three MSD tasks, and nnU-Net's public epoch times on an A100, a V100 and an RTX 2080 Ti (docs/decisions/0229)."""


@pytest.mark.parametrize("task", EPOCHS_S)
def test_hours_on_paper_meet_public_epoch_times_within_twelve_percent(task: str) -> None:
    cards = (Card("A100", 1555e9, 312e12), Card("V100", 900e9, 125e12), Card("RTX 2080 Ti", 616e9, 57e12))
    configuration, measured = EPOCHS_S[task]
    for card, seconds in zip(cards, measured, strict=True):
        hours = modelled_fold_h(configuration, card)
        assert hours is not None
        assert hours * 3.6 == pytest.approx(seconds, rel=0.12)


def test_a_topology_that_tells_no_multiplications_has_no_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(name="x", parameters=1, inputs=1, outputs=1)
    monkeypatch.setattr(cost, "network_layers", lambda *of: (layer,))
    assert modelled_fold_h(PLAN.configuration("3d_fullres"), CARDS[0]) is None


TIMED_S = {
    ("3d_fullres", 8, 2): 0.226,
    ("3d_fullres", 16, 2): 0.306,
    ("3d_fullres", 32, 2): 0.500,
    ("3d_fullres_residual_unet", 16, 2): 0.365,
    ("3d_fullres_vnet", 16, 2): 0.659,
    ("2d", 16, 4): 0.054,
}
"""Seconds of trial steps in bfloat16 of the hippocampus's networks on two cores (docs/decisions/0253)."""


def timed_step(key: tuple[str, int, int], step_s: float) -> Measurement:
    name, width, batch = key
    return Measurement(
        configuration=name, base_features=width, batch_size=batch, precision="bfloat16",
        step_s=step_s, case_s=0.3, export_s=2.0, prepare_s=3.0,
    )  # fmt: skip


@pytest.mark.parametrize("timed", TIMED_S)
@pytest.mark.parametrize("other", TIMED_S)
def test_a_step_that_is_not_timed_follows_within_a_quarter(
    timed: tuple[str, int, int], other: tuple[str, int, int]
) -> None:
    name, width, batch = other
    known = timed_step(timed, TIMED_S[timed])
    plan = PLAN
    found = extrapolated(
        known,
        plan.configuration(timed[0]),
        plan.configuration(name),
        base_features=width,
        batch_size=batch,
        windows=1.0,
    )
    assert found.step_s == pytest.approx(TIMED_S[other], rel=0.25)
    assert found.extrapolated is True
    assert (found.configuration, found.base_features, found.batch_size) == other
    assert (found.precision, found.export_s, found.prepare_s) == ("bfloat16", 2.0, 3.0)


def test_windows_count_for_cases_and_float32_costs_more() -> None:
    plan = PLAN
    known, configuration = timed_step(("3d_fullres", 16, 2), 0.3), plan.configuration("3d_fullres")
    wide = {
        (precision, windows): extrapolated(
            known.model_copy(update={"precision": precision}), configuration, configuration,
            base_features=32, batch_size=2, windows=windows,
        )
        for precision in ("bfloat16", "float32")
        for windows in (1.0, 3.0)
    }  # fmt: skip
    assert wide["float32", 1.0].step_s > wide["bfloat16", 1.0].step_s
    assert wide["bfloat16", 3.0].case_s == pytest.approx(3 * wide["bfloat16", 1.0].case_s)


@given(st.lists(st.floats(0.1, 50), min_size=1, max_size=20), st.integers(1, 8))
def test_folds_are_spread_over_gpus(hours: list[float], gpus: int) -> None:
    spread = spread_h(hours, gpus)
    assert max(max(hours), sum(hours) / gpus) <= spread + 1e-9
    assert spread <= sum(hours) / gpus + max(hours) + 1e-9
    assert spread_h(hours, 1) == pytest.approx(sum(hours))
    assert spread_h([3.0, 3.0, 2.0, 2.0, 2.0], 2) == 7.0

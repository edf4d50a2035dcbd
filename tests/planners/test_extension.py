"""Configurations that are requested, at once or later, with the stages that come before them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from planners import (
    Conditions,
    Fingerprint,
    Measurement,
    Plan,
    Schedule,
    describe_outlook,
    estimate_volume_memory,
    extend_schedule,
    find_short_budget,
    method_configurations,
    plan_dataset,
    plan_schedule,
)

CASCADE = ("3d_lowres", "3d_cascade_fullres")


@pytest.fixture(scope="module")
def large(fingerprint_of: Callable[..., Fingerprint]) -> Fingerprint:
    """Cases of which a patch sees too little, so that a cascade is planned."""
    return fingerprint_of([(150, 512, 512)] * 20, [(2.5, 0.8, 0.8)] * 20, channels=("CT",))


@pytest.fixture(scope="module")
def cubes(fingerprint_of: Callable[..., Fingerprint]) -> Plan:
    """Near-isotropic cases, so that a V-Net is planned."""
    return plan_dataset(fingerprint_of([(64, 64, 64)] * 20, [(1.0, 1.0, 1.0)] * 20))


@pytest.fixture(scope="module")
def plan(large: Fingerprint) -> Plan:
    return plan_dataset(large)


def measurements(*names: str, widths: tuple[int, ...] = (8, 16, 32)) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(
            configuration=name, base_features=width, batch_size=2, precision="bfloat16", step_s=width / 80, case_s=2.0
        )
        for name in names
        for width in widths
    )


def conditions(
    measured: tuple[Measurement, ...], *, device: str = "cpu", budget_s: float | None = 3600.0
) -> Conditions:
    return Conditions(
        device=device,
        num_threads=2,
        budget_s=budget_s,
        elapsed_s=20.0,
        num_folds=5,
        num_training_cases=20,
        num_test_cases=4,
        cross_validated=True,
        measurements=measured,
        seed=0,
    )


def test_a_chain_begins_with_its_first_stage(plan: Plan) -> None:
    assert [stage.name for stage in plan.chain("3d_cascade_fullres")] == list(CASCADE)
    assert [stage.name for stage in plan.chain("3d_lowres")] == ["3d_lowres"]
    with pytest.raises(KeyError, match="it has: 2d"):
        plan.chain("4d")


def test_stages_that_lead_back_to_themselves_are_refused(plan: Plan) -> None:
    turned = plan.configuration("3d_lowres").model_copy(update={"previous_stage": "3d_cascade_fullres"})
    others = tuple(turned if each.name == turned.name else each for each in plan.configurations)
    with pytest.raises(ValueError, match="3d_lowres: its previous stages lead back to itself"):
        Plan.model_validate(plan.model_copy(update={"configurations": others}).model_dump())


def test_the_methods_schedule_trains_the_cascade_after_its_first_stage(plan: Plan) -> None:
    names = [configuration.name for configuration in method_configurations(plan)]
    assert names == ["3d_fullres", "2d", *CASCADE]
    schedule = plan_schedule(plan, conditions(measurements(*names, widths=(32,)), device="cuda", budget_s=None))
    assert [training.configuration for training in schedule.trainings] == names
    assert {training.num_steps for training in schedule.trainings} == {250_000}
    alone = plan_schedule(plan, conditions(measurements(*names[:2], widths=(32,)), device="cuda", budget_s=None))
    assert schedule.expected_training_s == 2 * alone.expected_training_s
    assert (
        schedule.expected_validation_s == alone.expected_validation_s + 3 * 20 * 8 * 2.0
    )  # all mirror images, once more for the next stage


def test_a_small_budget_leaves_the_cascade_out(plan: Plan) -> None:
    schedule = plan_schedule(plan, conditions(measurements("3d_fullres", "2d", *CASCADE)))
    assert not {training.configuration for training in schedule.trainings} & set(CASCADE)


def test_what_is_asked_for_is_added_with_its_stages_and_changes_nothing_else(plan: Plan) -> None:
    before = plan_schedule(plan, conditions(measurements("3d_fullres")))
    after = extend_schedule(plan, before, "3d_cascade_fullres", measurements(*CASCADE), elapsed_s=30.0)
    assert [training.configuration for training in after.trainings] == ["3d_fullres", *CASCADE]
    assert after.trainings[:1] == before.trainings
    assert after.num_folds == before.num_folds
    assert after.conditions.elapsed_s == before.conditions.elapsed_s
    added = after.expected_s - before.expected_s
    assert 0.8 * 3600 < added <= 3600 - 30  # the budget once more, for both together
    (reason,) = [record for record in after.decisions if record.rule == "schedule.asked_for"]
    assert reason.value == list(CASCADE)
    assert "after 3d_lowres" in reason.reason
    assert extend_schedule(plan, after, "3d_cascade_fullres", (), elapsed_s=0.0) == after


def test_a_stage_that_is_there_is_not_added_again(plan: Plan) -> None:
    before = plan_schedule(plan, conditions(measurements("3d_fullres")))
    low = extend_schedule(plan, before, "3d_lowres", measurements("3d_lowres"), elapsed_s=0.0)
    both = extend_schedule(plan, low, "3d_cascade_fullres", measurements("3d_cascade_fullres"), elapsed_s=0.0)
    assert both.trainings[:2] == low.trainings
    assert len(both.trainings) == 3


def test_without_a_budget_a_gpu_follows_the_method_here_too(plan: Plan) -> None:
    before = plan_schedule(plan, conditions(measurements("2d", widths=(32,)), device="cuda", budget_s=None))
    after = extend_schedule(plan, before, "3d_cascade_fullres", measurements(*CASCADE, widths=(32,)), elapsed_s=0.0)
    assert {training.num_steps for training in after.trainings} == {250_000}


def test_what_was_not_measured_cannot_be_scheduled(plan: Plan) -> None:
    before = plan_schedule(plan, conditions(measurements("3d_fullres")))
    with pytest.raises(ValueError, match="no step of 3d_lowres was measured"):
        extend_schedule(plan, before, "3d_cascade_fullres", measurements("3d_cascade_fullres"), elapsed_s=0.0)


def test_a_case_of_the_cascade_takes_the_channels_of_the_first_stage_too(plan: Plan) -> None:
    """Two classes: two float32 channels beside the image, in each of the three copies that prediction has of it."""
    full, cascade = (
        estimate_volume_memory(plan.configuration(name), 1000) for name in ("3d_fullres", "3d_cascade_fullres")
    )
    assert cascade - full == 3 * 2 * 4 * 1000


def requested(plan: Plan, *names: str, device: str = "cpu", budget_s: float | None = 3600.0) -> Schedule:
    """A schedule of these, though the ones that the rule prefers were measured too."""
    measured = measurements("3d_fullres", "2d", "3d_fullres_vnet", *CASCADE)
    known = conditions(measured, device=device, budget_s=budget_s)
    return plan_schedule(plan, known.model_copy(update={"configurations": names}))


@pytest.mark.parametrize(
    ("names", "trained"),
    [
        (("2d",), ["2d"]),
        (("3d_cascade_fullres",), list(CASCADE)),
        (("3d_cascade_fullres", "3d_lowres", "2d"), [*CASCADE, "2d"]),
        (("3d_lowres",), ["3d_lowres"]),
    ],
)
@pytest.mark.parametrize(("device", "budget_s"), [("cpu", 7200.0), ("cuda", 7200.0), ("cuda", None)])
def test_exactly_what_is_requested_is_trained(
    plan: Plan, names: tuple[str, ...], trained: list[str], device: str, budget_s: float | None
) -> None:
    schedule = requested(plan, *names, device=device, budget_s=budget_s)
    assert [training.configuration for training in schedule.trainings] == trained
    (reason,) = [each for each in schedule.decisions if each.rule == "schedule.configurations"]
    assert (reason.value, reason.source) == (trained, "user")
    if budget_s is None:
        assert {training.num_steps for training in schedule.trainings} == {250_000}
    assert describe_outlook(plan, schedule) is None or "too" not in str(describe_outlook(plan, schedule))


def test_a_vnet_alone_can_be_requested(cubes: Plan) -> None:
    measured = conditions(measurements("3d_fullres_vnet")).model_copy(update={"configurations": ("3d_fullres_vnet",)})
    (training,) = plan_schedule(cubes, measured).trainings
    assert training.configuration == "3d_fullres_vnet"


def test_requested_configurations_share_the_budget_evenly(plan: Plan) -> None:
    both, alone = requested(plan, "2d", "3d_fullres", budget_s=7200.0), requested(plan, "2d", budget_s=7200.0)
    first, second = (training.num_steps for training in both.trainings)
    assert first == second  # their steps take equally long here
    assert 0.4 < first / alone.trainings[0].num_steps < 0.6
    for schedule in (both, alone, requested(plan, "3d_cascade_fullres", budget_s=7200.0)):
        assert 0.9 * 7200 < schedule.expected_s + 20 <= 7200


def test_a_requested_configuration_that_was_not_measured_is_refused(plan: Plan) -> None:
    known = conditions(measurements("3d_lowres")).model_copy(update={"configurations": ("3d_cascade_fullres",)})
    with pytest.raises(ValueError, match="no step was measured of 3d_cascade_fullres"):
        plan_schedule(plan, known)


def test_the_advised_budget_counts_every_requested_configuration(plan: Plan) -> None:
    short = requested(plan, "2d", "3d_fullres", budget_s=90.0)
    found = find_short_budget(plan, short)
    assert found is not None
    advice = found[1]
    seconds = float(advice[:-1]) * {"m": 60, "h": 3600}[advice[-1]]
    assert find_short_budget(plan, requested(plan, "2d", "3d_fullres", budget_s=seconds)) is None


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("3d_fullres",), "3d_fullres was requested"),
        (("2d", "3d_fullres"), "2d, 3d_fullres were requested; each gets the same time"),
        (
            ("3d_cascade_fullres",),
            "3d_cascade_fullres was requested, with 3d_lowres before the cascade; each gets the same time",
        ),
    ],
)
def test_requests_are_told_with_the_stages_that_they_need(plan: Plan, names: tuple[str, ...], told: str) -> None:
    known = conditions(measurements("2d", "3d_fullres", *CASCADE)).model_copy(update={"configurations": names})
    reasons = {record.rule: record.reason for record in plan_schedule(plan, known).decisions}
    assert reasons["schedule.configurations"] == told

"""Other numbers of steps while a run trains: when, how many, and what becomes of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from planners import (
    CaseSize,
    Conditions,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Measurement,
    Revision,
    Schedule,
    Start,
    Training,
    continue_schedule,
    learning_rate,
    plan_dataset,
    revise,
    smoothed_slowdown,
    steps_left_s,
    with_revisions,
)
from planners.schedule.documents import planned_position
from planners.schedule.revising import CONTINUED_RATE, expected_step_s, planned_step_s

FOLDS = [("3d_fullres", 0), ("3d_fullres", 1)]


def training_of(num_steps: int = 100, **changes: Any) -> Training:
    values = {
        "configuration": "3d_fullres", "base_features": 16, "batch_size": 2, "num_steps": num_steps, "steps_per_epoch": 10,
        "precision": "float32", "optimiser": "adamw", "peak_learning_rate": 0.004, "momentum": 0.9, "weight_decay": 0.0,
        "warmup_steps": 10, "curve": "cosine", "gradient_clip": 12.0, "deep_supervision": True, "mirroring": False,
        "augmentation": True, "foreground_share": 0.33, "validation_batches": 4,
    }  # fmt: skip
    return Training.model_validate({**values, **changes})


def measured(name: str, step_s: float, **changes: Any) -> Measurement:
    values = {"configuration": name, "base_features": 16, "batch_size": 2, "precision": "float32", "case_s": 1.0}
    return Measurement.model_validate({**values, "step_s": step_s, **changes})


def schedule_of(*trainings: Training, measurements: tuple[Measurement, ...] = ()) -> Schedule:
    conditions = Conditions(
        device="cpu",
        num_threads=2,
        budget_s=600.0,
        elapsed_s=0.0,
        num_folds=2,
        num_training_cases=10,
        num_test_cases=0,
        cross_validated=True,
        measurements=measurements or (measured("3d_fullres", 0.5),),
        seed=0,
    )
    return Schedule(
        conditions=conditions,
        num_folds=2,
        trainings=trainings or (training_of(),),
        expected_training_s=120.0,
        expected_validation_s=10.0,
        expected_rest_s=6.0,
        decisions=(),
    )


def revision(step: int, num_steps: int, *, fold: int = 0, planned_steps: int = 100) -> Revision:
    return Revision(
        configuration="3d_fullres",
        fold=fold,
        step=step,
        num_steps=num_steps,
        planned_steps=planned_steps,
        step_s=0.7,
        reason="",
    )


def test_nothing_changes_at_the_planned_pace() -> None:
    assert revise(schedule_of(), FOLDS, done=20, step_s=0.5, left_s=0.5 * 180 + 16, rest_s=16) == ()


@pytest.mark.parametrize(("left_s", "is_revised"), [(109.9, False), (110.1, True), (90.1, False), (89.9, True)])
def test_a_departure_of_a_tenth_changes_the_steps(left_s: float, is_revised: bool) -> None:
    """Of two folds of 100 steps, 100 s in all."""
    found = revise(schedule_of(), FOLDS, done=0, step_s=0.5, left_s=left_s, rest_s=0.0)
    assert bool(found) == is_revised


def test_a_machine_that_is_half_as_fast_gives_all_folds_half_of_what_was_left() -> None:
    """240 and 400 steps were to take 320 s, predictions 16 s; now it would be twice that, and 352 s are left: 320 s for steps."""
    found = revise(schedule_of(training_of(400)), FOLDS, done=160, step_s=1.0, left_s=352.0, rest_s=16.0)
    assert [(r.fold, r.step, r.num_steps, r.planned_steps) for r in found] == [(0, 160, 280, 400), (1, 0, 200, 400)]
    assert [r.step_s for r in found] == [1.0, 1.0]
    assert found[0].reason == "a step takes 1 s instead of 0.5 s: 352 s are left for what takes 672 s"


def test_where_only_time_was_lost_the_reason_names_one_pace() -> None:
    found = revise(schedule_of(), FOLDS, done=0, step_s=0.5, left_s=80.0, rest_s=0.0)
    assert found[0].reason == "a step takes 0.5 s: 80 s are left for what takes 100 s"


def test_predictions_slow_down_as_much_as_was_measured() -> None:
    """As before: 32 s of the 352 s are for predictions, those of each fold among them, at half the pace of steps."""
    schedule = schedule_of(training_of(400))
    found = revise(schedule, FOLDS, done=160, step_s=1.0, left_s=352.0, rest_s=4.0, fold_s=14.0, caution=0.5)
    assert [(r.fold, r.num_steps) for r in found] == [(0, 280), (1, 200)]


def test_one_fold_keeps_a_step_where_no_time_is_left() -> None:
    found = revise(schedule_of(), FOLDS, done=40, step_s=1.0, left_s=-50.0, rest_s=16.0)
    assert [(r.step, r.num_steps) for r in found] == [(40, 41), (0, 0)]


def test_other_configurations_slow_down_alike() -> None:
    schedule = schedule_of(
        training_of(400),
        training_of(800, configuration="2d"),
        measurements=(measured("3d_fullres", 0.5), measured("2d", 0.1)),
    )
    jobs = [("3d_fullres", 1), ("2d", 0)]
    found = revise(schedule, jobs, done=0, step_s=1.0, left_s=280.0)  # 400 s and 160 s at half the speed
    assert [(r.configuration, r.num_steps, r.step_s) for r in found] == [("3d_fullres", 200, 1.0), ("2d", 400, 0.2)]


def applied(schedule: Schedule, jobs: Sequence[tuple[str, int]] = FOLDS, **changes: Any) -> dict[tuple[str, int], int]:
    """Steps of the folds after a revision at half a second a step, without predictions."""
    revised = with_revisions(schedule, revise(schedule, jobs, **{"done": 0, "step_s": 0.5, **changes}))
    return {job: revised.steps_of(*job) for job in jobs}


@pytest.mark.parametrize(
    ("planned", "left_s", "steps"),
    [
        (400, 150.0, [150, 150]),
        (400, 148.9, [298, 0]),  # 148.9 steps each
        (100, 120.0, [120, 120]),  # planned for fewer, it was asked for
        (100, 89.0, [178, 0]),
    ],
)
def test_a_fold_that_would_get_fewer_than_150_steps_is_left_out(planned: int, left_s: float, steps: list[int]) -> None:
    found = applied(schedule_of(training_of(planned)), left_s=left_s)
    assert list(found.values()) == steps


def test_the_fold_that_trains_is_given_up_where_another_one_is_trained() -> None:
    schedule = schedule_of(training_of(400))
    assert applied(schedule, FOLDS[1:], done=60, left_s=45.0) == {FOLDS[1]: 150}
    (found,) = revise(schedule, FOLDS[1:], done=60, step_s=0.5, left_s=44.0)
    assert (found.step, found.num_steps) == (60, 0)
    assert found.reason.endswith("44 s are left for what takes 170 s, too little for 150 steps")
    assert applied(schedule, done=60, left_s=44.0) == {FOLDS[0]: 148, FOLDS[1]: 0}, "one has to stay"


@pytest.mark.parametrize(("usual_step_s", "left_s", "steps"), [(0.25, 22.5, 105), (0.25, 22.3, 0), (0.6, 44.0, 0)])
def test_the_fold_that_trains_stays_where_150_steps_fit_at_the_usual_pace(
    usual_step_s: float, left_s: float, steps: int
) -> None:
    """A disturbance of a few seconds must not lose the steps that it has. A pace that was slower before changes nothing."""
    (found,) = revise(
        schedule_of(training_of(400)), FOLDS[1:], done=60, step_s=0.5, usual_step_s=usual_step_s, left_s=left_s
    )
    assert found.num_steps == steps


def test_a_fold_is_taken_in_again_when_the_machine_gets_faster() -> None:
    schedule = schedule_of(training_of(400))
    slow = with_revisions(schedule, revise(schedule, FOLDS, done=40, step_s=2.0, left_s=400.0))
    assert [slow.steps_of(*job) for job in FOLDS] == [240, 0]
    assert slow.folds == (0,)
    assert revise(slow, FOLDS, done=60, step_s=2.0, left_s=360.0) == ()
    fast = applied(slow, done=60, left_s=300.0)
    assert fast[FOLDS[0]] > 150
    assert fast[FOLDS[1]] > 150
    assert sum(fast.values()) == pytest.approx(60 + 600, abs=1)


def test_folds_that_are_needed_stay() -> None:
    """Those of a cascade's first stage, and those that go on from trained weights."""
    schedule = schedule_of(training_of(400))
    assert applied(schedule, left_s=100.0, whole=("3d_fullres",)) == {FOLDS[0]: 100, FOLDS[1]: 100}
    start = Start(configuration="3d_fullres", fold=1, key="", num_steps=400)
    continued = schedule.model_copy(update={"starts": (start,)})
    assert applied(continued, left_s=100.0) == {FOLDS[0]: 0, FOLDS[1]: 200}


def test_a_fold_is_left_out_of_all_configurations() -> None:
    schedule = schedule_of(
        training_of(400),
        training_of(400, configuration="2d"),
        measurements=(measured("3d_fullres", 0.5), measured("2d", 0.5)),
    )
    jobs = [*FOLDS, ("2d", 0), ("2d", 1)]
    assert list(applied(schedule, jobs, left_s=200.0).values()) == [200, 0, 200, 0]


def test_a_schedule_trains_a_fold() -> None:
    left_out = [revision(0, 0, fold=fold).model_dump() for fold in (0, 1)]
    assert Schedule.model_validate({**schedule_of().model_dump(), "revisions": tuple(left_out[:1])}).folds == (1,)
    with pytest.raises(ValidationError, match="leave out every fold"):
        Schedule.model_validate({**schedule_of().model_dump(), "revisions": tuple(left_out)})


def test_steps_that_were_revised_are_counted_from_then_on() -> None:
    schedule = with_revisions(schedule_of(), [revision(40, 70), revision(0, 50, fold=1)])
    assert [schedule.steps_of(*fold) for fold in FOLDS] == [70, 50]
    assert steps_left_s(schedule, FOLDS, done=40) == pytest.approx((30 + 50) * 0.7)
    assert expected_step_s(schedule, "3d_fullres") == 0.7
    assert revise(schedule, FOLDS, done=60, step_s=0.7, left_s=0.7 * 60 + 16 * 1.4, rest_s=16) == ()
    later = with_revisions(schedule, [revision(0, 80, fold=1)])
    assert [(r.fold, r.step, r.num_steps) for r in later.revisions] == [(0, 40, 70), (1, 0, 80)]
    assert with_revisions(later, [], all_of=FOLDS[1]).revisions == (revision(40, 70),)


def test_revisions_of_a_training_of_another_length_are_void() -> None:
    schedule = with_revisions(schedule_of(), [revision(40, 70, planned_steps=99)])
    assert schedule.revisions_of("3d_fullres", 0) == ()
    assert schedule.steps_of("3d_fullres", 0) == 100


def test_the_pace_is_that_of_compiled_steps_or_follows_from_the_expected_time() -> None:
    fast = measured("3d_fullres", 0.5, compiled_step_s=0.4)
    assert planned_step_s(schedule_of(training_of(compiled=True), measurements=(fast,)), "3d_fullres") == 0.4
    assert planned_step_s(schedule_of(training_of(), measurements=(fast,)), "3d_fullres") == 0.5
    assert planned_step_s(schedule_of(training_of(base_features=32)), "3d_fullres") == 120 / 200


@pytest.mark.parametrize(
    ("step", "num_steps", "is_valid"), [(40, 41, True), (40, 40, False), (0, 1, True), (40, 0, True)]
)
def test_a_revision_leaves_a_step(step: int, num_steps: int, is_valid: bool) -> None:
    if is_valid:
        assert revision(step, num_steps).num_steps == num_steps
    else:
        with pytest.raises(ValidationError, match="40 steps in all, but 40 were done"):
            revision(step, num_steps)


revised = st.lists(st.tuples(st.floats(0.05, 0.9), st.floats(0.3, 3.0)), min_size=1, max_size=4)


@given(changes=revised, curve=st.sampled_from(["cosine", "polynomial"]), warmup=st.integers(0, 30))
def test_the_learning_rate_bends_but_never_jumps(changes: list[tuple[float, float]], curve: str, warmup: int) -> None:
    training = training_of(300, curve=curve, warmup_steps=warmup)
    revisions: list[Revision] = []
    total = training.num_steps
    done = 0
    for share, factor in changes:
        done += max(1, round(share * (total - done)))
        if done >= total:
            break
        total = done + max(1, round(factor * (total - done)))
        revisions.append(revision(done, total, planned_steps=300))
    rates = [learning_rate(training, step, revisions) for step in range(total)]
    positions = [planned_position(training, step, revisions) for step in range(total + 1)]
    assert positions[0] == 0
    assert positions[-1] == pytest.approx(300)
    for step, later in enumerate(range(1, total)):
        passed = positions[later] - positions[step]
        assert passed > 0
        # the curve of the plan nowhere changes by more between two of its steps than warm-up or decay do
        steepest = max(1 / max(1, warmup), math.pi / 2 / (300 - warmup)) if curve == "cosine" else None
        if steepest is not None:
            assert abs(rates[later] - rates[step]) <= training.peak_learning_rate * steepest * passed * 1.001
    assert max(rates) <= training.peak_learning_rate
    assert min(rates) > 0


def test_without_revisions_the_curve_is_that_of_the_plan() -> None:
    training = training_of()
    assert [learning_rate(training, step, ()) for step in range(100)] == [
        learning_rate(training, s) for s in range(100)
    ]
    assert planned_position(training, 33, ()) == 33
    halved = (revision(20, 60),)  # the 80 steps that were left are done in 40
    assert planned_position(training, 20, halved) == 20
    assert planned_position(training, 21, halved) == 22
    assert learning_rate(training, 21, halved) == learning_rate(training, 22)


# --- more time

PLAN = plan_dataset(
    Fingerprint(
        dataset_name="d",
        cases=tuple(CaseSize(case_id=f"c{i}", shape=(36, 50, 35), spacing_mm=(1.0, 1.0, 1.0)) for i in range(10)),
        num_training_cases=10,
        channels=("MRI",),
        labels=Labels(classes=(LabelClass(name="a", values=(1,)),)),
        intensities=(
            IntensityStatistics(
                mean=1.0, median=1.0, std=1.0, minimum=0.0, maximum=4.0, percentile_00_5=0.1, percentile_99_5=3.0
            ),
        ),
        median_relative_size_after_cropping=1.0,
    )
)


def more(schedule: Schedule, added_s: float, *, step_s: float = 0.5, starts: tuple[int, ...] = (0, 1)) -> Schedule:
    """The schedule for so much more time, of which six seconds and three hundredths are kept back."""
    given = [Start(configuration="3d_fullres", fold=fold, key=f"key {fold}", num_steps=400) for fold in starts]
    pace = {"step_s": {"3d_fullres": step_s}, "elapsed_s": 0.0, "num_threads": 1}
    return continue_schedule(PLAN, schedule, given, added_s=added_s, **pace)


def test_more_time_is_planned_from_what_steps_took() -> None:
    """2 folds of 400 steps of half a second, 16 of them for the pseudo-Dice, and ten cases of a second."""
    longer = more(schedule_of(training_of(400)), (400 + 10 + 6) / 0.97, step_s=0.5)
    (training,) = longer.trainings
    assert (training.num_steps, training.steps_per_epoch, training.warmup_steps) == (384, 32, 19)
    assert training.peak_learning_rate == CONTINUED_RATE * 0.004
    assert training.base_features == 16
    assert more(schedule_of(training_of(400)), (400 + 10 + 6) / 0.97, step_s=1.0).trainings[0].num_steps == 184
    assert (longer.expected_training_s, longer.expected_validation_s, longer.expected_rest_s) == (400.0, 10.0, 6.0)
    assert (longer.conditions.budget_s, longer.conditions.num_threads) == (pytest.approx(416 / 0.97), 1)
    assert planned_step_s(longer, "3d_fullres") == 0.5
    assert [each.rule for each in longer.decisions] == ["schedule.continued"]
    assert Schedule.model_validate(longer.model_dump()) == longer


def test_a_second_addition_keeps_the_peak_rate() -> None:
    twice = more(more(schedule_of(training_of(400)), 400.0), 1200.0)
    assert twice.trainings[0].peak_learning_rate == CONTINUED_RATE * 0.004
    assert [each.rule for each in twice.decisions] == ["schedule.continued"]


@pytest.mark.parametrize(("steps", "warmup"), [(519, 25), (500, 25), (499, 24), (20, 1), (19, 0)])
def test_the_warm_up_is_25_steps_or_a_twentieth(steps: int, warmup: int) -> None:
    longer = more(schedule_of(training_of(400)), (steps + 16 + 10 + 6.001) / 0.97)
    assert (longer.trainings[0].num_steps, longer.trainings[0].warmup_steps) == (steps, warmup)
    without = more(schedule_of(training_of(400, warmup_steps=0)), 600.0)
    assert without.trainings[0].warmup_steps == 0


@pytest.mark.parametrize(("steps", "folds"), [(150, (0, 1)), (149, (0,))])
def test_a_fold_that_was_left_out_is_trained_if_all_get_150_steps(steps: int, folds: tuple[int, ...]) -> None:
    before = with_revisions(schedule_of(training_of(400)), [revision(0, 0, fold=1, planned_steps=400)])
    longer = more(before, (steps + 16 + 10 + 6.001) / 0.97, starts=(0,))
    assert longer.folds == folds
    assert longer.num_folds == 2
    assert longer.steps_of("3d_fullres", 0) > 150 or folds == (0, 1)
    assert longer.start_of("3d_fullres", 1) is None
    assert Schedule.model_validate(longer.model_dump()) == longer


@pytest.mark.parametrize(
    ("left_s", "slowdown"),
    [
        (0.0, 3.0),  # nothing is left: only the last stretch counts
        (50.0, 3.0),  # 10 s back
        (51.0, 20 / (10 / 3 + 10 / 2)),  # a little more takes in the stretch before
        (100.0, 20 / (10 / 3 + 10 / 2)),
        (200.0, 40 / (10 / 3 + 10 / 2 + 20 / 1.5)),  # earlier calls stand for what is missing
    ],
)
def test_the_longer_a_pace_must_hold_the_longer_it_is_measured(left_s: float, slowdown: float) -> None:
    stretches = [(10.0, 10.0 / 2), (10.0, 10.0 / 3)]
    assert smoothed_slowdown(stretches, left_s=left_s, before=1.5) == pytest.approx(slowdown)


@given(
    st.lists(st.tuples(st.floats(1, 100), st.floats(1, 100)), min_size=1, max_size=9),
    st.floats(0, 1e5),
    st.floats(0.1, 10),
)
def test_a_pace_lies_between_those_that_were_measured(stretches, left_s: float, before: float) -> None:
    paces = [seconds / planned_s for seconds, planned_s in stretches]
    found = smoothed_slowdown(stretches, left_s=left_s, before=before)
    assert min([*paces, before]) * (1 - 1e-9) <= found <= max([*paces, before]) * (1 + 1e-9)

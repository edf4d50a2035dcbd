"""New numbers of steps for a run that trains slower or faster than planned, and a schedule for one that gets more time."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from planners.decision import Decision, counted
from planners.plan import Plan
from planners.schedule.candidates import METHOD_STEPS_PER_EPOCH
from planners.schedule.cost import (
    FEWEST_STEPS,
    RESERVE_S,
    affordable_steps,
    measurement_of,
    measurements_of,
    passing_on_s,
    share_s_of,
    test_s,
    training_s,
    validation_s,
    with_mirroring,
)
from planners.schedule.documents import (
    Conditions,
    Measurement,
    Revision,
    Schedule,
    Start,
    Training,
    planned_position,
)

CONTINUED_RATE = 1.0
"""Peak rate of a training that goes on from trained weights, as a share of the first one's: half of it scored 0.002 to 0.003 less
(docs/decisions/0204)."""
CONTINUED_WARMUP, CONTINUED_WARMUP_SHARE = 25, 0.05
"""Its warm-up: at most so many steps, and this share of them."""
Job = tuple[str, int]
"""Configuration name and fold."""
MOST_DEPARTURE = 0.1
"""Steps are planned anew where what is left would end more than this share early or late."""


LOOK_BACK = 0.2
"""The pace is that of the last time as long as this share of what is left: the longer it must hold, the less a short disturbance
may count (docs/decisions/0254)."""


def smoothed_slowdown(stretches: Sequence[tuple[float, float]], *, left_s: float, before: float = 1.0) -> float:
    """How many times as long as planned a step takes, to tell what the next ``left_s`` seconds bring.

    ``stretches`` of training, the last one last: seconds, and seconds that their steps were planned to take. Where they are shorter than
    the time to look back, ``before`` stands for the rest of it.
    """
    back_s, took, planned = LOOK_BACK * left_s, 0.0, 0.0
    for seconds, planned_s in reversed(stretches):
        took, planned = took + seconds, planned + planned_s
        if took >= back_s:
            break
    missing = max(0.0, back_s - took)
    return (took + missing) / (planned + missing / before)


def expected_step_s(schedule: Schedule, configuration: str) -> float:
    """Seconds of a training step as it was last measured: when steps were planned anew, else by trial."""
    revised = [revision.step_s for revision in schedule.revisions if revision.configuration == configuration]
    return revised[-1] if revised else planned_step_s(schedule, configuration)


def planned_step_s(schedule: Schedule, configuration: str) -> float:
    """Seconds of a training step by trial; of a schedule without trials of it, its share of the expected time."""
    training = schedule.training(configuration)
    measured = measurement_of(schedule.conditions, configuration, training.base_features)
    if measured is None:
        steps = schedule.num_folds * sum(each.num_steps for each in schedule.trainings)
        return schedule.expected_training_s / steps
    return (measured.compiled_step_s if training.compiled else None) or measured.step_s


def steps_left_s(schedule: Schedule, jobs: Iterable[Job], *, done: int = 0) -> float:
    """Seconds that ``jobs`` take, of whose first one ``done`` steps are done, at the pace that was last measured."""
    seconds = 0.0
    for name, fold in jobs:
        seconds += max(0, schedule.steps_of(name, fold) - done) * expected_step_s(schedule, name)
        done = 0
    return seconds


def revise(
    schedule: Schedule,
    jobs: Sequence[Job],
    *,
    done: int,
    step_s: float,
    left_s: float,
    rest_s: float = 0.0,
    fold_s: float = 0.0,
    caution: float = 1.0,
    whole: Collection[str] = (),
    usual_step_s: float = math.inf,
    most_departure: float = MOST_DEPARTURE,
) -> tuple[Revision, ...]:
    """Other numbers of steps for ``jobs`` such that the run ends in time; empty where the present ones do.

    ``jobs`` are all that are not trained, in order, those that were left out before among them. ``done`` steps of the first
    one are done, at ``step_s`` seconds each now. ``left_s`` seconds are left for the whole run. Of these, at the planned pace,
    ``rest_s`` go to all that comes after training and ``fold_s`` to predictions of each job; they slow down ``caution`` times
    as much as steps. All jobs get the same share of what was planned for them.

    Where one would get fewer than `FEWEST_STEPS`, or fewer than planned if that is less, the last fold is left out for the
    others, as many times as needed; one fold stays, and so do all of configurations that are needed ``whole`` and those that go on
    from trained weights. A later revision may take a fold in again, but not the first one, whose steps are lost: it stays, too, where it
    would get enough at ``usual_step_s``, what a step took so far.
    """
    name = jobs[0][0]
    slowness = step_s / planned_step_s(schedule, name)
    paces = {each: planned_step_s(schedule, each) * slowness for each, _ in jobs}
    steps = {job: schedule.steps_of(*job) for job in jobs}
    walked = {job: done if job == jobs[0] else 0 for job in jobs}

    def time_for_steps(chosen: Sequence[Job]) -> float:
        return max(0.0, left_s - (rest_s + fold_s * len(chosen)) * slowness * caution)

    kept = [job for job in jobs if steps[job]]
    needed = sum((steps[job] - walked[job]) * paces[job[0]] for job in kept)
    if abs(time_for_steps(kept) / needed - 1) <= most_departure:
        return ()
    totals = _divided(schedule, walked, paces, time_for_steps, whole, quickest=min(1.0, usual_step_s / step_s))
    now, before = (f"{each:.2g} s" for each in (step_s, expected_step_s(schedule, name)))
    pace = f"a step takes {now}" + (f" instead of {before}" if now != before else "")
    takes = needed + max(0.0, left_s) - time_for_steps(kept)
    reason = f"{pace}: {max(0.0, left_s):.0f} s are left for what takes {takes:.0f} s"
    return tuple(
        Revision(
            configuration=job[0],
            fold=job[1],
            step=walked[job],
            num_steps=totals.get(job, 0),
            planned_steps=schedule.training(job[0]).num_steps,
            step_s=paces[job[0]],
            reason=reason if job in totals else f"{reason}, too little for {FEWEST_STEPS} steps",
        )
        for job in jobs
        if steps[job] or job in totals
    )


def _divided(
    schedule: Schedule,
    walked: Mapping[Job, int],
    paces: Mapping[str, float],
    time_for_steps: Callable[[Sequence[Job]], float],
    whole: Collection[str],
    quickest: float,
) -> dict[Job, int]:
    """Steps in all of the folds that are not left out of those that have ``walked`` so many; empty where all are.

    ``quickest``: what a step may take, in ``paces``, to tell whether the fold that trains is left out.
    """
    chosen = list(walked)
    hopeful = {name: step_s * quickest for name, step_s in paces.items()}

    def is_short(totals: Mapping[Job, int]) -> bool:
        return any(count < min(FEWEST_STEPS, schedule.training(job[0]).num_steps) for job, count in totals.items())

    while chosen:
        of_chosen, seconds = {job: walked[job] for job in chosen}, time_for_steps(chosen)
        totals = _shared(schedule, of_chosen, paces, seconds)
        fewer = _without_a_fold(schedule, list(walked), chosen, whole) if is_short(totals) else None
        gives_up = fewer is not None and chosen[0] not in fewer and walked[chosen[0]]
        if fewer is None or (gives_up and not is_short(_shared(schedule, of_chosen, hopeful, seconds))):
            return totals
        chosen = fewer
    return {}


def _shared(
    schedule: Schedule, walked: Mapping[Job, int], paces: Mapping[str, float], seconds: float
) -> dict[Job, int]:
    """Steps of each fold in all, of which so many are ``walked``: the same share of what is left of its plan, in ``seconds``."""
    undone = {}
    for job, done in walked.items():
        training = schedule.training(job[0])
        undone[job] = training.num_steps - planned_position(training, done, schedule.revisions_of(*job))
    share = seconds / sum(count * paces[name] for (name, _), count in undone.items())
    return {job: walked[job] + max(1, round(count * share)) for job, count in undone.items()}


def _without_a_fold(
    schedule: Schedule, jobs: Sequence[Job], chosen: Sequence[Job], whole: Collection[str]
) -> list[Job] | None:
    """``chosen`` without their last fold that may be left out of all configurations; None where none may.

    What is scheduled and not among ``jobs`` is trained.
    """
    trained = {each.configuration: schedule.num_folds for each in schedule.trainings}
    for name, _ in jobs:
        trained[name] -= 1
    for fold in sorted({fold for _, fold in chosen}, reverse=True):
        names = [name for name, each in chosen if each == fold]
        others = [job for job in chosen if job[1] != fold]
        stays = all(trained[name] or any(name == each for each, _ in others) for name in names)
        if stays and not any(name in whole or schedule.start_of(name, fold) for name in names):
            return others
    return None


def with_revisions(schedule: Schedule, revisions: Sequence[Revision], *, all_of: Job | None = None) -> Schedule:
    """``schedule`` with ``revisions``, which replace those of the same folds at the same step; ``all_of`` a fold: all of its."""
    replaced = {(r.configuration, r.fold, r.step) for r in revisions}
    kept = (
        r
        for r in schedule.revisions
        if (r.configuration, r.fold, r.step) not in replaced and (r.configuration, r.fold) != all_of
    )
    return schedule.model_copy(update={"revisions": (*kept, *revisions)})


def continue_schedule(
    plan: Plan,
    schedule: Schedule,
    starts: Sequence[Start],
    *,
    step_s: Mapping[str, float],
    added_s: float,
    elapsed_s: float,
    num_threads: int,
    num_devices: int = 1,
) -> Schedule:
    """``added_s`` seconds more for a finished run: a warm restart of its trainings from ``starts``, with the same networks.

    ``step_s``: what a step of each configuration took; ``elapsed_s`` of the added time are over. Folds that were left out are
    trained from random weights if all then get at least `FEWEST_STEPS`, else they stay left out.
    """
    known = schedule.conditions
    measured = {
        each.configuration: _as_trained(schedule, each, step_s[each.configuration]) for each in schedule.trainings
    }
    replaced = {(name, each.base_features) for name, each in measured.items()}
    others = [m for m in known.measurements if (m.configuration, m.base_features) not in replaced]
    update = {"budget_s": added_s, "elapsed_s": elapsed_s, "num_threads": num_threads}
    update |= {"num_devices": num_devices}
    conditions = known.model_copy(update={**update, "measurements": (*measured.values(), *others)})
    names = {each.configuration for each in starts}
    left_out = [fold for fold in range(schedule.num_folds) if fold not in {each.fold for each in starts}]
    longer = _longer(plan, schedule, conditions, measured, names)
    shortest = min(each.num_steps for each in longer.trainings)
    if left_out and shortest < FEWEST_STEPS:
        fewer = schedule.model_copy(update={"num_folds": schedule.num_folds - len(left_out)})
        longer = _longer(plan, fewer, conditions, measured, names).model_copy(update={"num_folds": schedule.num_folds})
    else:
        left_out = []
    before = max(each.num_steps for each in starts)
    decision = Decision(
        rule="schedule.continued",
        value=[each.num_steps for each in longer.trainings],
        reason=f"{added_s:.0f} s more: every fold goes on from its own weights, which were trained {counted(before, 'step')}, and "
        "the learning rate starts anew",
        source="docs/decisions/0204",
        change="with --redo all is trained anew for the whole budget",
    )
    return longer.model_copy(
        update={
            "starts": tuple(starts),
            "decisions": (*(d for d in schedule.decisions if d.rule != decision.rule), decision.record()),
            "revisions": tuple(_left_out(each, fold, step_s) for each in longer.trainings for fold in left_out),
        }
    )


def _left_out(training: Training, fold: int, step_s: Mapping[str, float]) -> Revision:
    """A fold that stays left out."""
    return Revision(
        configuration=training.configuration,
        fold=fold,
        step=0,
        num_steps=0,
        planned_steps=training.num_steps,
        step_s=step_s[training.configuration],
        reason=f"the added time is too little for {FEWEST_STEPS} steps of all folds",
    )


def _as_trained(schedule: Schedule, training: Training, step_s: float) -> Measurement:
    """What was measured of a training's network, with what a step took while it was trained."""
    name, width = training.configuration, training.base_features
    options = measurements_of(schedule.conditions, name)
    nearest = min(options, key=lambda m: abs(m.base_features - width), default=None)
    if nearest is None:  # a schedule made by hand
        case_s = schedule.expected_validation_s / schedule.conditions.num_training_cases or step_s
        nearest = Measurement(
            configuration=name, base_features=width, batch_size=training.batch_size, precision=training.precision,
            step_s=step_s, case_s=case_s,
        )  # fmt: skip
    compiled = {"compiled_step_s": step_s if training.compiled else None, "compile_s": 0.0}
    return nearest.model_copy(update={"base_features": width, "step_s": step_s, "extrapolated": False, **compiled})


def _longer(
    plan: Plan,
    schedule: Schedule,
    conditions: Conditions,
    measured: Mapping[str, Measurement],
    continued: Collection[str],
) -> Schedule:
    """``schedule`` with the steps that fit into the time of ``conditions``, shared evenly by its trainings."""
    mirrored = [plan.configuration(each.configuration) for each in schedule.trainings if each.mirroring]
    now = with_mirroring(conditions, mirrored)
    folds = schedule.num_folds
    share = share_s_of(conditions, len(schedule.trainings), folds)
    trainings, seconds = [], {"training": 0.0, "validation": 0.0, "rest": RESERVE_S}
    for before in schedule.trainings:
        name = before.configuration
        found = measurement_of(now, name, before.base_features) or measured[name]
        passing = passing_on_s(now, plan.configuration(name), found)
        steps = affordable_steps(found, now, share - passing, folds)
        rate = 1.0 if schedule.starts or name not in continued else CONTINUED_RATE
        trainings.append(_continued_training(before, steps, rate))
        seconds["training"] += training_s(found, steps, folds)
        seconds["validation"] += validation_s(now, found, folds) + passing
        seconds["rest"] += test_s(now, found, folds) / now.num_devices
    expected = {f"expected_{kind}_s": each for kind, each in seconds.items()}
    return schedule.model_copy(update={"conditions": conditions, "trainings": tuple(trainings), **expected})


def _continued_training(before: Training, num_steps: int, rate: float) -> Training:
    """A training of so many steps more: the same network and curve, a short warm-up, ``rate`` times the peak."""
    steps_per_epoch = max(1, min(METHOD_STEPS_PER_EPOCH, round(num_steps / 12)))
    warmup = min(CONTINUED_WARMUP, int(CONTINUED_WARMUP_SHARE * num_steps)) if before.warmup_steps else 0
    update = {
        "num_steps": num_steps,
        "steps_per_epoch": steps_per_epoch,
        "warmup_steps": warmup,
        "peak_learning_rate": before.peak_learning_rate * rate,
        "validation_batches": min(before.validation_batches, steps_per_epoch),
    }
    return before.model_copy(update=update)

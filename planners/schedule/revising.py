"""New numbers of steps for a run that trains slower or faster than planned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from planners.schedule.cost import measurement_of
from planners.schedule.documents import Revision, Schedule

Job = tuple[str, int]
"""Configuration name and fold."""
MOST_DEPARTURE = 0.1
"""Steps are planned anew where what is left would end more than this share early or late."""


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
    schedule: Schedule, jobs: Sequence[Job], *, done: int, step_s: float, left_s: float, rest_s: float
) -> tuple[Revision, ...]:
    """Other numbers of steps for ``jobs`` such that the run ends in time; empty where the present ones do.

    ``done`` steps of the first job are done, at ``step_s`` seconds each now. ``left_s`` seconds are left for the whole run;
    predictions and all else after training take ``rest_s`` of them at the planned pace, and at another one in proportion. All
    jobs get the same share of what was left to them. At least one step is left to each.
    """
    name = jobs[0][0]
    slowness = step_s / planned_step_s(schedule, name)
    paces = {each: planned_step_s(schedule, each) * slowness for each, _ in jobs}
    steps = [schedule.steps_of(*job) for job in jobs]
    undone = [steps[0] - done, *steps[1:]]
    needed = sum(count * paces[each] for count, (each, _) in zip(undone, jobs, strict=True))
    share = max(0.0, left_s - rest_s * slowness) / needed
    if abs(share - 1) <= MOST_DEPARTURE:
        return ()
    before = expected_step_s(schedule, name)
    pace = f"a step takes {step_s:.2g} s instead of {before:.2g} s"
    return tuple(
        Revision(
            configuration=each,
            fold=fold,
            step=total - count,
            num_steps=total - count + max(1, round(count * share)),
            planned_steps=schedule.training(each).num_steps,
            step_s=paces[each],
            reason=f"{pace}: {max(0.0, left_s):.0f} s are left for what takes {needed + rest_s * slowness:.0f} s",
        )
        for (each, fold), total, count in zip(jobs, steps, undone, strict=True)
    )


def with_revisions(schedule: Schedule, revisions: Sequence[Revision], *, all_of: Job | None = None) -> Schedule:
    """``schedule`` with ``revisions``, which replace those of the same folds at the same step; ``all_of`` a fold: all of its."""
    replaced = {(r.configuration, r.fold, r.step) for r in revisions}
    kept = (
        r
        for r in schedule.revisions
        if (r.configuration, r.fold, r.step) not in replaced and (r.configuration, r.fold) != all_of
    )
    return schedule.model_copy(update={"revisions": (*kept, *revisions)})

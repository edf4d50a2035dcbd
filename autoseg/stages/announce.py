"""What a schedule is about to do, said before it is done: how much is trained, for how long, and whether that is of use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autoseg.issues import Issue
from autoseg.settings import sets_steps
from autoseg.stages.plan import plan_edits
from autoseg.stages.run import Run
from autoseg.wording import count_noun, format_duration
from planners import FEWEST_STEPS, Plan, Schedule, Severity, Training, describe_outlook, find_short_budget


def announce(run: Run, plan: Plan, schedule: Schedule, *, is_given: bool = False) -> None:
    """Say what is about to be done, how long it will take, and what more time would give.

    A schedule that ``is_given`` takes the time that was measured where it was made, whatever the budget was there or is here.
    """
    from autoseg.compute.device import describe_device

    if schedule.starts:
        from autoseg.stages.more_time import describe_continuing

        run.say(describe_continuing(run, schedule))
    announce_trainings(run, schedule, schedule.trainings)
    device = describe_device(run.device, num_threads=run.num_threads)
    where = f"where the schedule was made; this machine: {device}" if is_given else f"on this machine ({device})"
    jobs = len(schedule.folds) * len(schedule.trainings)
    together = min(jobs, schedule.conditions.num_devices)
    networks = f"{jobs} networks, {f'{together} side by side' if together > 1 else 'one after the other'}"
    networks = "One network" if jobs == 1 else networks
    run.say(f"{networks}, about {format_duration(schedule.expected_s)} {where}")
    if is_given or schedule.starts:
        return
    if (short := short_budget_issue(run, plan, schedule)) is not None:
        run.show(short)
    elif outlook := describe_outlook(plan, schedule):
        run.say(f"More time would give, {outlook}")


def short_budget_issue(run: Run, plan: Plan, schedule: Schedule) -> Issue | None:
    """An issue where the budget is too short for any network to learn; None if it is not, or the user set the steps."""
    if sets_steps(run.settings) or (found := find_short_budget(plan, schedule)) is None:
        return None
    message, least = found
    where = "the default budget" if run.settings.budget is None else "--budget"
    fix = f"give --budget {least} or more for a useful model" if least else "give a larger --budget"
    severity: Severity = "warning" if run.settings.anyway else "error"
    more = "" if run.settings.anyway else ", or --anyway to train all the same"
    return Issue(code="schedule.budget_too_short", severity=severity, where=where, message=message, fix=fix + more)


def no_use_issues(schedule: Schedule) -> tuple[Issue, ...]:
    """That a model is of no use, where one of its networks trained too few steps to learn; else nothing."""
    jobs = [(each.configuration, fold) for each in schedule.trainings for fold in schedule.folds]
    before = {(each.configuration, each.fold): each.num_steps for each in schedule.starts}
    least = min(schedule.steps_of(*job) + before.get(job, 0) for job in jobs)
    if least >= FEWEST_STEPS:
        return ()
    message = f"a network was trained for only {count_noun(least, 'step')}; with fewer than {FEWEST_STEPS} a model is of no use"
    fix = "train for longer, with a larger --budget or more steps"
    return (Issue(code="model.of_no_use", severity="warning", where="model", message=message, fix=fix),)


def announce_trainings(run: Run, schedule: Schedule, trainings: Sequence[Training]) -> None:
    """One line for each configuration."""
    of, each = ("of", "") if len(schedule.folds) == 1 else ("x", " each")
    for training in trainings:
        compiled = ", compiled" if training.compiled else ""
        run.say(
            f"Schedule: {count_noun(len(schedule.folds), 'fold')} {of} {training.configuration} ({training.base_features} features, "
            f"batch {training.batch_size}, {training.precision}{compiled}), {training.num_steps} steps{each}"
        )
    for note in edits_not_followed(run, trainings):
        run.say(f"Note: {note}")


def edits_not_followed(run: Run, trainings: Sequence[Training]) -> Iterator[str]:
    """Batch sizes and widths that the user set in the plan, and that a schedule for little time departs from."""
    edited = {edit.path for edit in plan_edits(run)}
    for training in trainings:
        configuration = run.plan.configuration(training.configuration)
        pairs = {
            "batch_size": (configuration.batch_size, training.batch_size, "batch_size"),
            "features": (configuration.network.features[0], training.base_features, "base_features"),
        }
        for field, (own, used, name) in pairs.items():
            path = f"{training.configuration}.{field}"
            if path in edited and own != used:
                option = f"--set schedule.{training.configuration}.{name}={own}"
                yield f"{path} was edited in the plan, but this short schedule uses {name} {used}; set it with {option}"

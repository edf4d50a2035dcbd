"""The schedule that a run has: what it was made for, and whether it still holds."""

from __future__ import annotations

from dataclasses import replace

from autoseg.data.dataset import DatasetDescription
from autoseg.data.splits import Splits
from autoseg.inference.model_files import final_weights
from autoseg.issues import AutosegError
from autoseg.pipeline.contents import trained_on
from autoseg.pipeline.freshness import consumed_before, is_filled, what_changed
from autoseg.pipeline.options import Options
from autoseg.pipeline.splitting import split_inputs
from autoseg.storage.atomic import load_document
from autoseg.storage.cache import key_of
from autoseg.tracking.progress import format_duration
from planners import Plan, Schedule

GIVEN = "schedule file (--schedule)"
"""What a schedule depends on that was not measured here; without that file the machine is measured."""


def schedule_inputs(options: Options, dataset: DatasetDescription, plan: Plan) -> dict[str, str]:
    """What a schedule is made for. With more or fewer threads it is followed all the same.

    Where nothing is left to train, and nothing may be trained anew, it is followed on any device.
    """
    device = key_of(options.device.type)
    if not options.may_retrain and is_all_trained(options):
        device = consumed_before(options.run, "schedule").get("device", device)
    return {
        "dataset": trained_on(dataset),
        "plan": key_of(plan),
        "budget": key_of(options.budget_s),
        "device": device,
        "seed": key_of(options.seed),
        **split_inputs(options, dataset),
    }


def keep_budget(options: Options) -> Options:
    """The options with the budget that the run's own schedule was made for, where they name none.

    A table or a report of a run, asked for without ``--budget``, is not to train it for another time.
    """
    if options.budget_s is not None or options.schedule is not None:
        return options
    consumed, schedule = consumed_before(options.run, "schedule"), own_schedule(options)
    budget_s = None if schedule is None else schedule.conditions.budget_s
    if GIVEN in consumed or budget_s is None or consumed.get("budget") != key_of(budget_s):
        return options
    options.reporter.say(
        f"Budget: {format_duration(budget_s)}, as the run began; --budget takes another and trains anew"
    )
    return replace(options, budget_s=budget_s)


def followed_schedule(options: Options, dataset: DatasetDescription, plan: Plan) -> Schedule | None:
    """The schedule of the run, where it can be read and nothing that it was made for has changed; its folds may be lost."""
    if what_changed(options.run, "schedule", schedule_inputs(options, dataset, plan), ()):
        return None
    return own_schedule(options)


def own_schedule(options: Options) -> Schedule | None:
    """The run's ``schedule.json``; None where it cannot be read."""
    try:
        return load_document(Schedule, options.run.schedule)
    except AutosegError:
        return None


def read_scheduled(options: Options) -> tuple[Schedule, Splits] | None:
    """Schedule and folds of the run; None where they cannot be read or do not belong together."""
    try:
        schedule, splits = load_document(Schedule, options.run.schedule), load_document(Splits, options.run.splits)
    except AutosegError:
        return None
    return (schedule, splits) if len(splits.folds) == schedule.num_folds else None


def is_all_trained(options: Options) -> bool:
    """Whether all weights of the run's own schedule are there, whatever they were trained from."""
    schedule = own_schedule(options)
    return schedule is not None and all(
        is_filled(final_weights(options.run, training.configuration, fold))
        for training in schedule.trainings
        for fold in range(schedule.num_folds)
    )

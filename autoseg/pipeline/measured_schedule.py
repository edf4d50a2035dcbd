"""A schedule that is made here: a few steps are timed, the pure rule decides, and a person is told what comes of it."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.compute.device import describe_device
from autoseg.data.dataset import DatasetDescription
from autoseg.data.splits import Splits
from autoseg.pipeline.bench import make_bench
from autoseg.pipeline.cascading import always_trained_on
from autoseg.pipeline.measuring import measure_steps, refine, try_compiling
from autoseg.pipeline.options import Options
from autoseg.pipeline.splitting import folds_given
from autoseg.pipeline.stages import follows_method
from autoseg.tracking.progress import format_duration
from autoseg.wording import count_noun
from planners import (
    Conditions,
    Configuration,
    Plan,
    Schedule,
    Training,
    describe_outlook,
    method_configurations,
    plan_schedule,
    preferred_configurations,
    warn_of_starvation,
)


def rule_configurations(options: Options, plan: Plan) -> Sequence[Configuration]:
    """What the schedule's rule chooses from."""
    return method_configurations(plan) if follows_method(options) else preferred_configurations(plan)


def make_schedule(options: Options, dataset: DatasetDescription, plan: Plan, splits: Splits) -> Schedule:
    """Time a few steps, then apply the pure rule."""
    budgeted = not follows_method(options)
    bench = make_bench(options, dataset, plan)
    candidates = rule_configurations(options, plan)
    if always_trained_on(splits):  # no first stage could say anything new of these cases
        candidates = [configuration for configuration in candidates if configuration.previous_stage is None]
    conditions = Conditions(
        device=options.device.type,  # type: ignore[arg-type]  # choose_device knows no others
        num_threads=options.num_threads,
        budget_s=options.budget_s,
        num_folds=len(splits.folds),
        folds_given=folds_given(options),
        num_training_cases=len(dataset.training),
        num_test_cases=len(dataset.test),
        cross_validated=splits.cross_validated,
        measurements=measure_steps(bench, candidates, budgeted=budgeted, num_folds=len(splits.folds)),
        seed=options.seed,
        elapsed_s=options.elapsed_s,
    )
    first = plan_schedule(plan, conditions)
    for training in first.trainings:
        refined = try_compiling(bench, refine(bench, conditions.measurements, training), training, first.num_folds)
        conditions = conditions.model_copy(update={"measurements": refined, "elapsed_s": options.elapsed_s})
    return plan_schedule(plan, conditions)


def announce(options: Options, plan: Plan, schedule: Schedule) -> None:
    """Say what is about to be done, how long it will take, and what more time would give."""
    device = describe_device(options.device, num_threads=options.num_threads)
    announce_trainings(options, schedule, schedule.trainings)
    total = format_duration(schedule.expected_s)
    options.reporter.say(
        f"{count_noun(schedule.num_folds, 'fold')} x {count_noun(len(schedule.trainings), 'configuration')}, {schedule.trainings[0].num_steps} steps each, about {total} on this "
        f"machine ({device})"
    )
    outlook, warning = describe_outlook(plan, schedule), warn_of_starvation(plan, schedule)
    if warning:
        options.reporter.say(f"Warning: {warning}")
    elif outlook:
        options.reporter.say(f"More time would give, {outlook}")


def announce_trainings(options: Options, schedule: Schedule, trainings: Sequence[Training]) -> None:
    """One line for each configuration."""
    for training in trainings:
        options.reporter.say(
            f"Schedule: {count_noun(schedule.num_folds, 'fold')} x {training.configuration} ({training.base_features} features, batch "
            f"{training.batch_size}, {training.precision}{', compiled' if training.compiled else ''}), {training.num_steps} steps each"
        )

"""What is trained for how long: measured once on this machine, given by a file, or what is there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg.datasets.dataset import DatasetDescription
from autoseg.datasets.splits import Splits
from autoseg.errors import AutosegError
from autoseg.execution.device import describe_device
from autoseg.inference.model_files import ModelFiles
from autoseg.networks.transfer import describe_transfer
from autoseg.pipeline.bench import make_bench
from autoseg.pipeline.cascading import always_trained_on, require_unseen
from autoseg.pipeline.contents import trained_on
from autoseg.pipeline.finetuning import describe_overlap, interface, open_pretrained
from autoseg.pipeline.freshness import digest, open_stage
from autoseg.pipeline.measuring import measure_steps, refine, try_compiling
from autoseg.pipeline.options import Options
from autoseg.pipeline.splitting import find_splits, folds_given, save_splits, split_inputs, splits_stage
from autoseg.pipeline.stages import follows_method, preprocess_configurations, preprocess_stage
from autoseg.progress import format_duration
from autoseg.run_folder import load_document, save_document
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

GIVEN = "schedule file (--schedule)"
"""What a schedule depends on that was not measured here; without that file the machine is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that training starts from."""

    dataset: DatasetDescription
    plan: Plan
    schedule: Schedule
    splits: Splits
    pretrained: ModelFiles | None = None
    """The model that every fold begins from."""


def schedule_stage(options: Options, *, asked: str | None = None, fold: int | None = None) -> Prepared:
    """Measure this machine once and decide what is trained for how long; ``schedule.json`` is an input from then on.

    A configuration that was ``asked`` for and is not planned, and a ``fold`` that no schedule could have, are refused before
    anything is preprocessed.
    """
    prepared = find_schedule(options, asked, fold)
    pretrained = open_pretrained(options)
    if pretrained is None:
        return prepared
    for line in describe_start(prepared, pretrained):
        options.reporter.say(line)
    return replace(prepared, pretrained=pretrained)


def find_schedule(options: Options, asked: str | None, fold: int | None) -> Prepared:
    """The schedule that was given, that is there and fits, or that is made now; with all that comes before it."""

    def choose(dataset: DatasetDescription, plan: Plan) -> Sequence[Configuration]:
        require_planned(plan, asked)
        require_possible_fold(options, dataset, fold)
        return rule_configurations(options, plan)

    dataset, plan = preprocess_stage(options, choose=choose)
    if options.schedule is not None:
        return given_schedule(options, dataset, plan, options.schedule)
    consumed, outputs, say = schedule_inputs(options, dataset, plan), [options.run.schedule, options.run.splits], options.reporter.say

    def fits(_: Path) -> bool:
        return read_scheduled(options) is not None

    with open_stage(options.run, "schedule", consumed, outputs, what="the schedule", say=say, fits=fits) as to_do:
        if not to_do:
            schedule = load_document(Schedule, options.run.schedule)
            say_other_threads(options, schedule)
            preprocess_scheduled(options, dataset, plan, schedule)
            return Prepared(
                dataset=dataset, plan=plan, schedule=schedule, splits=load_document(Splits, options.run.splits)
            )
        splits = splits_stage(options, dataset)
        schedule = make_schedule(options, dataset, plan, splits)
        if schedule.num_folds < len(splits.folds):
            splits = splits_stage(options, dataset, schedule.num_folds)
        save_document(options.run.schedule, schedule)
    announce(options, plan, schedule)
    return Prepared(dataset=dataset, plan=plan, schedule=schedule, splits=splits)


def schedule_inputs(options: Options, dataset: DatasetDescription, plan: Plan) -> dict[str, str]:
    """What a schedule is made for. With more or fewer threads it is followed all the same."""
    return {
        "dataset": trained_on(dataset),
        "plan": digest(plan),
        "budget": digest(options.budget_s),
        "device": digest(options.device.type),
        "seed": digest(options.seed),
        **split_inputs(options, dataset),
    }


def read_scheduled(options: Options) -> tuple[Schedule, Splits] | None:
    """Schedule and folds of the run; None where they cannot be read or do not belong together."""
    try:
        schedule, splits = load_document(Schedule, options.run.schedule), load_document(Splits, options.run.splits)
    except AutosegError:
        return None
    return (schedule, splits) if len(splits.folds) == schedule.num_folds else None


def describe_start(prepared: Prepared, pretrained: ModelFiles) -> list[str]:
    """What a person should know of a training that begins from another model."""
    about = pretrained.description
    lines = [f"Training goes on from a model of {about.dataset.name}, with its plan: {', '.join(about.stages)}"]
    for training in prepared.schedule.trainings:
        before, after = (interface(plan, plan.configuration(training.configuration)) for plan in (about.plan, prepared.plan))
        lines += [f"  {training.configuration}, {note}" for note in describe_transfer(before, after)]
    overlap = describe_overlap(pretrained, prepared.dataset)
    return [*lines, *([] if overlap is None else [f"Warning: {overlap}"])]


def require_planned(plan: Plan, asked: str | None) -> None:
    """Refuse a configuration that the plan lacks."""
    planned = [configuration.name for configuration in plan.configurations]
    if asked not in (None, *planned):
        raise AutosegError(f"the plan has no configuration {asked!r}; it has {', '.join(planned)}")


def require_possible_fold(options: Options, dataset: DatasetDescription, fold: int | None) -> None:
    """Refuse a fold that there will not be; the schedule may leave some of these out, but adds none."""
    if fold is None:
        return
    wanted = None if options.schedule is None else load_document(Schedule, options.schedule).num_folds
    require_fold(options, fold, len(find_splits(options, dataset, wanted).folds))


def require_fold(options: Options, fold: int, num_folds: int) -> None:
    """Refuse a fold that is not one of 0 ... ``num_folds`` - 1."""
    if 0 <= fold < num_folds:
        return
    fixed = options.splits is not None or options.leave_one_group_out or options.schedule is not None
    more = "" if fixed else ", or ask for more with --folds"
    raise AutosegError(f"there is no fold {fold}; there are folds 0 to {num_folds - 1}: choose one of these{more}")


def rule_configurations(options: Options, plan: Plan) -> Sequence[Configuration]:
    """What the schedule's rule chooses from."""
    return method_configurations(plan) if follows_method(options) else preferred_configurations(plan)


def preprocess_scheduled(options: Options, dataset: DatasetDescription, plan: Plan, schedule: Schedule) -> None:
    """Preprocessed data of trainings that the rule would not choose: asked for, or scheduled for another machine."""
    there = {configuration.data for configuration in rule_configurations(options, plan)}
    scheduled = [plan.configuration(training.configuration) for training in schedule.trainings]
    missing = [configuration for configuration in scheduled if configuration.data not in there]
    if missing:
        preprocess_configurations(options, dataset, plan, missing)


def given_schedule(options: Options, dataset: DatasetDescription, plan: Plan, file: Path) -> Prepared:
    """Follow a schedule from a file, for instance another run's.

    Raises `AutosegError` where it does not fit plan or folds; the run's own schedule and folds then stay as they are.
    """
    schedule = load_document(Schedule, file)
    planned = [configuration.name for configuration in plan.configurations]
    unknown = [t.configuration for t in schedule.trainings if t.configuration not in planned]
    if unknown:
        raise AutosegError(
            f"{file} trains {', '.join(unknown)}, which the plan lacks; it has {', '.join(planned)}: take a schedule of the "
            "same preset, or none"
        )
    scheduled = [training.configuration for training in schedule.trainings]
    for name in scheduled:
        untrained = [stage.name for stage in plan.chain(name) if stage.name not in scheduled]
        if untrained:
            raise AutosegError(
                f"{file} trains {name} without {', '.join(untrained)}, from whose predictions it starts; take a schedule that "
                "trains both, or none"
            )
    splits = find_splits(options, dataset, schedule.num_folds)
    if len(splits.folds) != schedule.num_folds:
        raise AutosegError(
            f"{file} trains {schedule.num_folds} folds, but {len(dataset.training)} cases give {len(splits.folds)}; take a "
            "schedule that was made for this dataset, or none"
        )
    for name in scheduled:
        if plan.configuration(name).previous_stage is not None:
            require_unseen(splits, name)
    preprocess_scheduled(options, dataset, plan, schedule)
    consumed = schedule_inputs(options, dataset, plan) | {GIVEN: digest(schedule)}
    outputs, what, say = [options.run.schedule, options.run.splits], f"the schedule of {file}", options.reporter.say

    def fits(_: Path) -> bool:
        return read_scheduled(options) == (schedule, splits)

    with open_stage(options.run, "schedule", consumed, outputs, what=what, say=say, fits=fits) as to_do:
        if to_do:
            save_splits(options, dataset, splits)
            save_document(options.run.schedule, schedule)
    if options.budget_s is not None:
        say(f"Warning: --budget changes nothing here: the schedule of {file} is followed")
    say_other_threads(options, schedule)
    announce(options, plan, schedule)
    return Prepared(dataset=dataset, plan=plan, schedule=schedule, splits=splits)


def say_other_threads(options: Options, schedule: Schedule) -> None:
    """Say where results need not be those that the machine of the schedule would give."""
    if schedule.conditions.num_threads != options.num_threads:
        options.reporter.say(
            f"The schedule was made for {schedule.conditions.num_threads} threads, here are {options.num_threads}: results may "
            "differ in the last digits"
        )


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
        f"{schedule.num_folds} folds x {len(schedule.trainings)} configuration"
        f"{'s' if len(schedule.trainings) > 1 else ''}, {schedule.trainings[0].num_steps} steps each, about {total} on this "
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
            f"Schedule: {schedule.num_folds} folds x {training.configuration} ({training.base_features} features, batch "
            f"{training.batch_size}, {training.precision}{', compiled' if training.compiled else ''}), {training.num_steps} steps each"
        )

"""Schedules, trains and validates every configuration on every fold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from autoseg.datasets.dataset import DatasetDescription
from autoseg.datasets.splits import Split, Splits
from autoseg.errors import AutosegError
from autoseg.evaluation.summary import write_summary
from autoseg.execution.device import describe_device
from autoseg.execution.interruption import stop_requests
from autoseg.execution.jobs import available_cores
from autoseg.inference.model import Member, load_network
from autoseg.inference.validation import ValidationTask, prediction_path, validate_fold
from autoseg.pipeline.freshness import digest, open_stage
from autoseg.pipeline.measuring import make_bench, measure_steps, refine
from autoseg.pipeline.options import Options
from autoseg.pipeline.scoring import score_cases
from autoseg.pipeline.splitting import folds_given, split_inputs, splits_stage
from autoseg.pipeline.stages import preprocess_stage
from autoseg.preparation.storage import open_case
from autoseg.progress import Tracker, format_duration
from autoseg.run_folder import load_document, save_document
from autoseg.training.fold import FoldTask, train_fold
from planners import Conditions, Plan, Schedule, Training, describe_outlook, plan_schedule, warn_of_starvation


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that training starts from."""

    dataset: DatasetDescription
    plan: Plan
    schedule: Schedule
    splits: Splits


def schedule_stage(options: Options) -> Prepared:
    """Measure this machine once and decide what is trained for how long; ``schedule.json`` is an input from then on."""
    dataset, plan = preprocess_stage(options)
    if options.schedule is not None:
        return given_schedule(options, dataset, plan, options.schedule)
    consumed = {
        "dataset": digest(dataset),
        "plan": digest(plan),
        "budget": digest(options.budget_s),
        "device": digest(options.device.type),
        "number of threads": digest(options.num_threads),
        "seed": digest(options.seed),
        **split_inputs(options, dataset),
    }
    outputs = [options.run.schedule, options.run.splits]
    with open_stage(options.run, "schedule", consumed, outputs, what="the schedule", say=options.reporter.say) as to_do:
        if not to_do:
            schedule = load_document(Schedule, options.run.schedule)
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


def given_schedule(options: Options, dataset: DatasetDescription, plan: Plan, file: Path) -> Prepared:
    """Follow a schedule from a file, for instance another run's. Raises `AutosegError` where it does not fit the plan."""
    schedule = load_document(Schedule, file)
    planned = [configuration.name for configuration in plan.configurations]
    unknown = [t.configuration for t in schedule.trainings if t.configuration not in planned]
    if unknown:
        raise AutosegError(
            f"{file} trains {', '.join(unknown)}, which the plan lacks; it has {', '.join(planned)}: take a schedule of the "
            "same preset, or none"
        )
    splits = splits_stage(options, dataset, schedule.num_folds)
    if len(splits.folds) != schedule.num_folds:
        raise AutosegError(
            f"{file} trains {schedule.num_folds} folds, but {len(dataset.training)} cases give {len(splits.folds)}; take a "
            "schedule that was made for this dataset, or none"
        )
    save_document(options.run.schedule, schedule)
    if schedule.conditions.num_threads != options.num_threads:
        options.reporter.say(
            f"The schedule was made for {schedule.conditions.num_threads} threads, here are {options.num_threads}: results may "
            "differ in the last digits"
        )
    announce(options, plan, schedule)
    return Prepared(dataset=dataset, plan=plan, schedule=schedule, splits=splits)


def make_schedule(options: Options, dataset: DatasetDescription, plan: Plan, splits: Splits) -> Schedule:
    """Time a few steps, then apply the pure rule."""
    budgeted = options.budget_s is not None or options.device.type != "cuda"
    bench = make_bench(options, dataset, plan)
    conditions = Conditions(
        device=options.device.type,  # type: ignore[arg-type]  # choose_device knows no others
        num_threads=options.num_threads,
        budget_s=options.budget_s,
        num_folds=len(splits.folds),
        folds_given=folds_given(options),
        num_training_cases=len(dataset.training),
        num_test_cases=len(dataset.test),
        cross_validated=splits.cross_validated,
        measurements=measure_steps(bench, budgeted=budgeted, num_folds=len(splits.folds)),
        seed=options.seed,
        elapsed_s=options.elapsed_s,
    )
    for training in plan_schedule(plan, conditions).trainings:
        refined = refine(bench, conditions.measurements, training)
        conditions = conditions.model_copy(update={"measurements": refined, "elapsed_s": options.elapsed_s})
    return plan_schedule(plan, conditions)


def announce(options: Options, plan: Plan, schedule: Schedule) -> None:
    """Say what is about to be done, how long it will take, and what more time would give."""
    device = describe_device(options.device, num_threads=options.num_threads)
    for training in schedule.trainings:
        options.reporter.say(
            f"Schedule: {schedule.num_folds} folds x {training.configuration} ({training.base_features} features, batch "
            f"{training.batch_size}, {training.precision}), {training.num_steps} steps each"
        )
    total = format_duration(schedule.expected_s)
    options.reporter.say(
        f"{schedule.num_folds} folds x {len(schedule.trainings)} configuration"
        f"{'s' if len(schedule.trainings) > 1 else ''}, {schedule.trainings[0].num_steps} steps each, about {total} on this "
        f"machine ({device})"
    )
    outlook, warning = describe_outlook(plan, schedule), warn_of_starvation(schedule)
    if warning:
        options.reporter.say(f"Warning: {warning}")
    elif outlook:
        options.reporter.say(f"More time would give, {outlook}")


def train_stage(options: Options, *, configuration: str | None = None, fold: int | None = None) -> Prepared:
    """Train and validate what the schedule says, or one configuration or fold of it."""
    prepared = schedule_stage(options)
    schedule, splits = prepared.schedule, prepared.splits
    trainings = [t for t in schedule.trainings if configuration in (None, t.configuration)]
    folds = [k for k in range(schedule.num_folds) if fold in (None, k)]
    if not trainings:
        known = ", ".join(t.configuration for t in schedule.trainings)
        raise AutosegError(f"the schedule does not train {configuration!r}; it trains: {known}")
    if not folds:
        raise AutosegError(f"there is no fold {fold}; the schedule has folds 0 to {schedule.num_folds - 1}")
    steps = len(folds) * sum(training.num_steps for training in trainings)
    with options.reporter.track(f"Training {steps} steps", steps) as tracker:
        for training in trainings:
            for k in folds:
                options.reporter.expect(expected_s(options, prepared))
                train_one(options, prepared, training, k, tracker)
    for training in trainings:
        for k in folds:
            options.reporter.expect(expected_s(options, prepared))
            validate_one(options, prepared, training, k, splits.folds[k])
    options.reporter.expect(schedule.expected_rest_s)
    return prepared


def expected_s(options: Options, prepared: Prepared) -> float:
    """Seconds that the rest of the run will take, what is already there left out."""
    schedule = prepared.schedule
    names = [(t.configuration, k) for t in schedule.trainings for k in range(schedule.num_folds)]
    untrained = [pair for pair in names if not (options.run.fold(*pair) / "final.safetensors").exists()]
    unvalidated = [pair for pair in names if not (options.run.validation(*pair) / "summary.json").exists()]
    return (
        schedule.expected_training_s * len(untrained) / len(names)
        + schedule.expected_validation_s * len(unvalidated) / len(names)
        + schedule.expected_rest_s
    )


def fold_inputs(options: Options, prepared: Prepared, training: Training, fold: int) -> dict[str, str]:
    """All that the weights of a fold depend on; a schedule for other hardware gives other bits."""
    return {
        "dataset": digest(prepared.dataset),
        "plan": digest(prepared.plan.configuration(training.configuration), prepared.plan.labels),
        "schedule": digest(training, prepared.schedule.conditions.num_threads),
        "split": digest(prepared.splits.folds[fold]),
        "seed": digest(options.seed),
    }


def fold_key(options: Options, prepared: Prepared, training: Training, fold: int) -> str:
    """One hash for all of `fold_inputs`."""
    return digest(fold, sorted(fold_inputs(options, prepared, training, fold).items()))


def train_one(options: Options, prepared: Prepared, training: Training, fold: int, tracker: Tracker) -> None:
    """Train one configuration on one fold, unless that is done."""
    name = training.configuration
    folder = options.run.fold(name, fold)
    key = fold_key(options, prepared, training, fold)
    stage = f"train-{name}-fold_{fold}"
    consumed = fold_inputs(options, prepared, training, fold)
    outputs, what = [folder / "final.safetensors"], f"training of {name}, fold {fold},"
    with open_stage(options.run, stage, consumed, outputs, what=what, say=options.reporter.say, wait=False) as to_do:
        if not to_do:
            tracker.advance(training.num_steps)
            return
        configuration = prepared.plan.configuration(name)
        preprocessed = options.run.preprocessed(configuration.data)
        split = prepared.splits.folds[fold]
        task = FoldTask(
            plan=prepared.plan,
            configuration=configuration,
            training=training,
            fold=fold,
            seed=options.seed,
            training_cases=[open_case(preprocessed, case_id) for case_id in split.train],
            validation_cases=[open_case(preprocessed, case_id) for case_id in split.val],
            folder=folder,
            key=key,
            device=options.device,
            num_workers=loader_workers(options),
            most_workers=available_cores(),
            case_ids=split.train,
        )
        with stop_requests() as should_stop:
            train_fold(task, tracker, say=options.reporter.say, should_stop=should_stop)


def loader_workers(options: Options) -> int:
    """Processes that make batches: beside a GPU all cores but one, on a CPU none, for they would take its cores."""
    return max(1, options.num_workers - 1) if options.device.type == "cuda" else 0


def validate_one(options: Options, prepared: Prepared, training: Training, fold: int, split: Split) -> None:
    """Predict the validation cases of one fold and score them."""
    if not split.val:
        return
    name = training.configuration
    folder = options.run.validation(name, fold)
    key = fold_key(options, prepared, training, fold)
    stage = f"validate-{name}-fold_{fold}"
    keep = len(prepared.schedule.trainings) > 1
    consumed = {"model": key, "need of probabilities": digest(keep)}
    outputs, what = [folder / "summary.json"], f"validation of {name}, fold {fold},"
    with open_stage(options.run, stage, consumed, outputs, what=what, say=options.reporter.say) as to_do:
        if not to_do:
            return
        configuration = prepared.plan.configuration(name)
        weights = options.run.fold(name, fold) / "final.safetensors"
        network = load_network(weights, configuration, training, device=options.device)
        task = ValidationTask(
            dataset=prepared.dataset,
            labels=prepared.plan.labels,
            member=Member(configuration=configuration, training=training, networks=(network,)),
            preprocessed=options.run.preprocessed(configuration.data),
            case_ids=split.val,
            folder=folder,
            key=digest(key, keep),
            keep_probabilities=keep,
            device=options.device,
        )
        with options.reporter.track(f"Validating {name}, fold {fold}", len(split.val)) as tracker:
            validate_fold(task, tracker)
        paths = [(case_id, prediction_path(folder, case_id, prepared.dataset)) for case_id in split.val]
        write_summary(folder / "summary.json", score_cases(prepared.dataset, paths))


def set_threads(num_threads: int) -> None:
    """Let torch compute with so many threads; results on a CPU depend on their number."""
    torch.set_num_threads(num_threads)

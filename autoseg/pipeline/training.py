"""Trains and validates every scheduled configuration on every fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from autoseg.compute.executor import available_cores
from autoseg.compute.interruption import stop_requests
from autoseg.data.splits import Split
from autoseg.evaluation.scoring import score_cases
from autoseg.evaluation.table import write_summary
from autoseg.inference.model import Member, load_network
from autoseg.inference.model_files import final_weights
from autoseg.inference.validation import (
    WEIGHTS_KEY,
    ValidationTask,
    prediction_path,
    probabilities_path,
    validate_fold,
)
from autoseg.issues import AutosegError
from autoseg.networks.transfer import Transfer
from autoseg.networks.weights import read_key
from autoseg.pipeline.cascading import Handover, hand_over
from autoseg.pipeline.contents import trained_on
from autoseg.pipeline.extending import add_training
from autoseg.pipeline.finetuning import Start, fit_weights
from autoseg.pipeline.freshness import is_filled, open_stage
from autoseg.pipeline.measured_schedule import announce_trainings
from autoseg.pipeline.options import Options
from autoseg.pipeline.scheduling import Prepared, require_fold, schedule_stage
from autoseg.preprocessing.cascade import CascadeCase
from autoseg.preprocessing.preprocess import shared_inputs, stored_key
from autoseg.preprocessing.store import StoredCase, open_case, require_cases
from autoseg.run_folder import RunFolder
from autoseg.storage.cache import key_of
from autoseg.tracking.progress import Tracker
from autoseg.training.fold import train_fold
from autoseg.training.task import FoldTask
from autoseg.training.trial import kept_heap_for
from planners import Configuration, Schedule, Training


def train_stage(options: Options, *, configuration: str | None = None, fold: int | None = None) -> Prepared:
    """Train and validate what the schedule says, or one configuration or fold of it.

    A ``configuration`` that the plan has and the schedule lacks is added to the schedule. The stages that a cascade needs
    are trained before it, on all folds.
    """
    prepared = schedule_stage(options, asked=configuration, fold=fold)
    if fold is not None:
        require_fold(options, fold, prepared.schedule.num_folds)
    if configuration is not None and configuration not in [t.configuration for t in prepared.schedule.trainings]:
        schedule = add_training(options, prepared.dataset, prepared.plan, prepared.splits, configuration)
        announce_trainings(options, schedule, schedule.trainings[len(prepared.schedule.trainings) :])
        prepared = replace(prepared, schedule=schedule)
    schedule, splits = prepared.schedule, prepared.splits
    names = [t.configuration for t in schedule.trainings if configuration in (None, t.configuration)]
    folds = [k for k in range(schedule.num_folds) if fold in (None, k)]
    asked = [(schedule.training(name), k) for name in names for k in folds]
    jobs = with_stages_before(prepared, asked)
    keys = {
        (t.configuration, k): fold_key(options, prepared, t, k)
        for t in schedule.trainings
        for k in range(schedule.num_folds)
    }
    steps = sum(training.num_steps for training, _ in jobs)
    with options.reporter.track(f"Training {steps} steps", steps) as tracker:
        for training, k in jobs:
            options.reporter.expect(expected_s(options, schedule, keys))
            train_one(options, prepared, training, k, tracker, wait=(training, k) not in asked)
    for training, k in asked:
        options.reporter.expect(expected_s(options, schedule, keys))
        validate_one(options, prepared, training, k, splits.folds[k])
    options.reporter.expect(schedule.expected_rest_s)
    return prepared


def with_stages_before(prepared: Prepared, asked: Sequence[tuple[Training, int]]) -> list[tuple[Training, int]]:
    """Trainings with their folds, before each cascade all folds of its first stage: every case needs one that left it out."""
    jobs: list[tuple[Training, int]] = []
    for training, fold in asked:
        stages = prepared.plan.chain(training.configuration)[:-1]
        before = [prepared.schedule.training(stage.name) for stage in stages]
        jobs += [(first, k) for first in before for k in range(prepared.schedule.num_folds)]
        jobs.append((training, fold))
    return list(dict.fromkeys(jobs))


def expected_s(options: Options, schedule: Schedule, keys: Mapping[tuple[str, int], str]) -> float:
    """Seconds that the rest of the run will take, what is already there left out; ``keys`` of the weights of all folds."""
    trained = [pair for pair, key in keys.items() if is_trained(final_weights(options.run, *pair), key)]
    validated = [pair for pair in trained if (options.run.validation(*pair) / "summary.json").exists()]
    return (
        schedule.expected_training_s * (1 - len(trained) / len(keys))
        + schedule.expected_validation_s * (1 - len(validated) / len(keys))
        + schedule.expected_rest_s
    )


def fold_inputs(options: Options, prepared: Prepared, training: Training, fold: int) -> dict[str, str]:
    """All that the weights of a fold depend on; a schedule for other hardware gives other bits."""
    before = prepared.plan.configuration(training.configuration).previous_stage
    return {
        **({} if before is None else {"previous stage": key_of(stage_keys(options, prepared, before))}),
        "dataset": trained_on(prepared.dataset),
        "plan": key_of(prepared.plan.configuration(training.configuration), shared_inputs(prepared.plan)),
        "schedule": key_of(training, prepared.schedule.conditions.num_threads),
        "split": key_of(prepared.splits.folds[fold]),
        "seed": key_of(options.seed),
        **({} if prepared.pretrained is None else {"pretrained model": key_of(prepared.pretrained.key)}),
    }


def fold_key(options: Options, prepared: Prepared, training: Training, fold: int) -> str:
    """One hash for all of `fold_inputs`."""
    return key_of(fold, sorted(fold_inputs(options, prepared, training, fold).items()))


def stage_keys(options: Options, prepared: Prepared, name: str) -> list[str]:
    """`fold_key` of every fold of a configuration."""
    training = prepared.schedule.training(name)
    return [fold_key(options, prepared, training, fold) for fold in range(prepared.schedule.num_folds)]


def previous_labels(options: Options, prepared: Prepared, configuration: Configuration) -> Path | None:
    """Folder of the first stage's label maps, which are made where they are missing; none for what is no cascade."""
    before = configuration.previous_stage
    if before is None:
        return None
    return hand_over(
        options,
        Handover(
            plan=prepared.plan,
            training=prepared.schedule.training(before),
            keys=stage_keys(options, prepared, before),
            following=configuration,
            splits=prepared.splits,
        ),
    )


def train_one(
    options: Options, prepared: Prepared, training: Training, fold: int, tracker: Tracker, *, wait: bool = False
) -> None:
    """Train one configuration on one fold, unless that is done. ``wait``: for another process that is at it."""
    name = training.configuration
    folder = options.run.fold(name, fold)
    key = fold_key(options, prepared, training, fold)
    stage = f"train-{name}-fold_{fold}"
    consumed = fold_inputs(options, prepared, training, fold)
    final, what, say = final_weights(options.run, name, fold), f"training of {name}, fold {fold},", options.reporter.say

    def fits(path: Path) -> bool:
        return is_trained(path, key)

    redo = options.may_retrain
    with open_stage(
        options.run, stage, consumed, [final], what=what, say=say, wait=wait, fits=fits, may_redo=redo
    ) as to_do:
        if not to_do:
            tracker.found(training.num_steps)
            return
        final.unlink(missing_ok=True)  # at no moment may other weights pass as those that are trained now
        forget_validation(options.run, name, fold)  # on a GPU the same training gives other bits
        configuration = prepared.plan.configuration(name)
        preprocessed = options.run.preprocessed(configuration.data)
        split = prepared.splits.folds[fold]
        previous = previous_labels(options, prepared, configuration)
        case_ids = (*split.train, *split.val)
        task = FoldTask(
            plan=prepared.plan,
            configuration=configuration,
            training=training,
            fold=fold,
            seed=options.seed,
            training_cases=open_cases(preprocessed, split.train, previous),
            validation_cases=open_cases(preprocessed, split.val, previous),
            folder=folder,
            key=key,
            device=options.device,
            num_workers=loader_workers(options),
            most_workers=available_cores(),
            case_ids=split.train,
            start=start_weights(options, prepared, training, fold),
            require_cases=partial(require_cases, preprocessed, meant_cases(prepared, configuration, case_ids)),
        )
        with stop_requests(say) as should_stop, kept_heap_for(configuration, training, options.device):
            train_fold(task, tracker, say=say, should_stop=should_stop)


def forget_validation(run: RunFolder, name: str, fold: int) -> None:
    """Let a fold be validated again, whatever its weights are called."""
    run.stage(f"validate-{name}-fold_{fold}").unlink(missing_ok=True)
    (run.validation(name, fold) / WEIGHTS_KEY).unlink(missing_ok=True)


def is_trained(final: Path, key: str) -> bool:
    """Whether whole weights lie at ``final`` that were trained from what ``key`` stands for."""
    try:
        return read_key(final) == key
    except AutosegError:
        return False


def start_weights(options: Options, prepared: Prepared, training: Training, fold: int) -> Transfer | None:
    """What a fold begins from, where that is another model."""
    if prepared.pretrained is None:
        return None
    return fit_weights(
        Start(
            files=prepared.pretrained,
            plan=prepared.plan,
            configuration=prepared.plan.configuration(training.configuration),
            training=training,
            fold=fold,
            seed=options.seed + fold,
        )
    )


def meant_cases(prepared: Prepared, configuration: Configuration, case_ids: Sequence[str]) -> dict[str, str]:
    """What the stored arrays of a configuration's cases must have been made from, by case."""
    source = prepared.plan.configuration(configuration.data)
    cases = {case.case_id: case for case in prepared.dataset.training}
    return {case_id: stored_key(cases[case_id], prepared.dataset, prepared.plan, source) for case_id in case_ids}


def open_cases(
    preprocessed: Path, case_ids: Sequence[str], previous: Path | None
) -> list[StoredCase] | list[CascadeCase]:
    """Stored cases; with the folder ``previous`` also what the first stage of a cascade says of them."""
    cases = [open_case(preprocessed, case_id) for case_id in case_ids]
    return cases if previous is None else [CascadeCase(case, previous) for case in cases]


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
    consumed = {"model": key, "need of probabilities": key_of(keep)}
    predictions = [prediction_path(folder, case_id, prepared.dataset) for case_id in split.val]
    probabilities = [probabilities_path(folder, case_id) for case_id in split.val if keep]
    outputs, what = [folder / "summary.json", *predictions, *probabilities], f"validation of {name}, fold {fold},"
    with open_stage(
        options.run, stage, consumed, outputs, what=what, say=options.reporter.say, fits=is_filled
    ) as to_do:
        if not to_do:
            return
        configuration = prepared.plan.configuration(name)
        preprocessed = options.run.preprocessed(configuration.data)
        weights = final_weights(options.run, name, fold)
        network = load_network(weights, configuration, training, device=options.device, key=key)
        task = ValidationTask(
            dataset=prepared.dataset,
            labels=prepared.plan.labels,
            member=Member(configuration=configuration, training=training, networks=(network,)),
            preprocessed=preprocessed,
            case_ids=split.val,
            folder=folder,
            key=key_of(key, keep),
            keep_probabilities=keep,
            device=options.device,
            previous=previous_labels(options, prepared, configuration),
            made_from=meant_cases(prepared, configuration, split.val),
        )
        with options.reporter.track(f"Validating {name}, fold {fold}", len(split.val)) as tracker:
            validate_fold(task, tracker)
        paths = list(zip(split.val, predictions, strict=True))
        summary = score_cases(prepared.dataset, paths, num_workers=options.num_workers, keep_in=options.run.kept(stage))
        write_summary(folder / "summary.json", summary)

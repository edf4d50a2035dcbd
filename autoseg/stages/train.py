"""Train: every scheduled configuration on every fold, or those that a call asks for."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path

from autoseg.compute.executor import available_cores, stop_requests
from autoseg.inference.model import final_weights
from autoseg.inference.predictions import JOURNAL
from autoseg.issues import AutosegError
from autoseg.networks.weights import Transfer, read_key
from autoseg.preprocessing.prepare import CascadeCase
from autoseg.preprocessing.preprocess import stored_key
from autoseg.preprocessing.store import StoredCase, open_case, require_cases
from autoseg.run_folder import RunFolder
from autoseg.stages.cascade import Handover, hand_over
from autoseg.stages.check import trained_on
from autoseg.stages.plan import trained_by
from autoseg.stages.pretrained import Start, fit_weights
from autoseg.stages.run import Run, require_redo
from autoseg.stages.schedule import Prepared, read_prepared, require_fold
from autoseg.stages.work import Work, changed_inputs
from autoseg.storage.cache import key_of
from autoseg.tracking.progress import FoldProgress, Tracker
from autoseg.training.fold import train_fold
from autoseg.training.fold_spec import FoldSpec
from autoseg.training.preflight import kept_heap_for
from planners import Configuration, Schedule, Training

Job = tuple[Training, int]
"""A configuration and the fold that is trained."""


def train(run: Run) -> Generator[Work, None, None]:
    """Train what is asked for and not trained yet; the first stage of a cascade before it, on all folds."""
    prepared = read_prepared(run)
    asked = asked_jobs(run, prepared.schedule)
    jobs = with_stages_before(prepared, asked)
    refuse_trained_otherwise(run, prepared, jobs)
    keys = all_keys(run, prepared)
    steps = sum(training.num_steps for training, _ in jobs)
    with run.reporter.track(f"Training {steps} steps", steps) as tracker:
        for training, fold in jobs:
            run.reporter.expect(expected_s(run, prepared.schedule, keys))
            key = keys[training.configuration, fold]
            if is_trained(final_weights(run.folder, training.configuration, fold), key):
                tracker.found(training.num_steps)
            yield training_work(run, prepared, (training, fold), key, tracker, wait=(training, fold) not in asked)


def all_jobs(schedule: Schedule) -> list[Job]:
    """Every scheduled configuration with every fold."""
    return [(training, fold) for training in schedule.trainings for fold in range(schedule.num_folds)]


def all_keys(run: Run, prepared: Prepared) -> dict[tuple[str, int], str]:
    """`fold_key` of every configuration and fold."""
    return {
        (training.configuration, k): fold_key(run, prepared, training, k) for training, k in all_jobs(prepared.schedule)
    }


def asked_jobs(run: Run, schedule: Schedule) -> list[Job]:
    """What this call is about: all, or one configuration or fold. Raises `AutosegError` for a fold that does not exist."""
    if run.fold is not None:
        require_fold(run.fold, schedule.num_folds)
    return [
        (training, fold)
        for training, fold in all_jobs(schedule)
        if run.configuration in (None, training.configuration) and run.fold in (None, fold)
    ]


def with_stages_before(prepared: Prepared, asked: Sequence[Job]) -> list[Job]:
    """Jobs with, before each cascade, all folds of its first stage: every case needs a network that left it out."""
    jobs: list[Job] = []
    for training, fold in asked:
        stages = prepared.plan.chain(training.configuration)[:-1]
        before = [prepared.schedule.training(stage.name) for stage in stages]
        jobs += [(first, k) for first in before for k in range(prepared.schedule.num_folds)]
        jobs.append((training, fold))
    return list(dict.fromkeys(jobs))


def expected_s(run: Run, schedule: Schedule, keys: Mapping[tuple[str, int], str]) -> float:
    """Seconds that the rest of the run takes, without what is done; ``keys`` are of the weights of all folds."""
    trained = [pair for pair, key in keys.items() if is_trained(final_weights(run.folder, *pair), key)]
    validated = [pair for pair in trained if (run.folder.validation(*pair) / "summary.json").exists()]
    return (
        schedule.expected_training_s * (1 - len(trained) / len(keys))
        + schedule.expected_validation_s * (1 - len(validated) / len(keys))
        + schedule.expected_rest_s
    )


def fold_inputs(run: Run, prepared: Prepared, training: Training, fold: int) -> dict[str, str]:
    """All that the weights of a fold depend on; a schedule for other hardware gives other bits."""
    plan, pretrained = prepared.plan, prepared.pretrained
    before = plan.configuration(training.configuration).previous_stage
    return {
        **({} if before is None else {"previous stage": key_of(stage_keys(run, prepared, before))}),
        "dataset": trained_on(prepared.dataset),
        "plan": trained_by(plan, training.configuration),
        "schedule": key_of(training, prepared.schedule.conditions.num_threads),
        "split": key_of(prepared.splits.folds[fold]),
        "seed": key_of(run.settings.seed),
        **({} if pretrained is None else {"pretrained model": key_of(pretrained.key)}),
    }


def fold_key(run: Run, prepared: Prepared, training: Training, fold: int) -> str:
    """One key for all of `fold_inputs`."""
    return key_of(fold, sorted(fold_inputs(run, prepared, training, fold).items()))


def stage_keys(run: Run, prepared: Prepared, name: str) -> list[str]:
    """`fold_key` of every fold of a configuration."""
    training = prepared.schedule.training(name)
    return [fold_key(run, prepared, training, fold) for fold in range(prepared.schedule.num_folds)]


def is_trained(final: Path, key: str) -> bool:
    """Whether whole weights are at ``final`` that were trained from what ``key`` stands for."""
    try:
        return read_key(final) == key
    except AutosegError:
        return False


def training_work(run: Run, prepared: Prepared, job: Job, key: str, tracker: Tracker, *, wait: bool = False) -> Work:
    """The work of training one configuration on one fold; ``wait``: for another process that does the same."""
    training, fold = job
    name = training.configuration
    return Work(
        name=f"train-{name}-fold_{fold}",
        what=f"training of {name}, fold {fold}",
        inputs=partial(fold_inputs, run, prepared, training, fold),
        outputs=[final_weights(run.folder, name, fold)],
        is_whole=partial(is_trained, key=key),
        do=partial(train_one, run, prepared, job, key, tracker),
        wait=wait,
        keeps_record=True,
    )


def train_one(run: Run, prepared: Prepared, job: Job, key: str, tracker: Tracker) -> None:
    """Train one configuration on one fold, from its checkpoint where there is one.

    Patches are drawn in `autoseg.training.sampling`; the loss is that of the configuration in ``plan.json``.
    """
    training, fold = job
    name = training.configuration
    record = f"train-{name}-fold_{fold}"
    final = final_weights(run.folder, name, fold)
    refuse_trained_otherwise(run, prepared, [job])
    run.folder.stage(record).unlink(missing_ok=True)
    final.unlink(missing_ok=True)  # at no moment may other weights pass for those that are trained now
    forget_validation(run.folder, name, fold)  # on a GPU the same training gives other bits
    plan, split = prepared.plan, prepared.splits.folds[fold]
    configuration = plan.configuration(name)
    preprocessed = run.folder.preprocessed(configuration.data)
    previous = previous_labels(run, prepared, configuration)
    expected = expected_cases(prepared, configuration, (*split.train, *split.val))
    spec = FoldSpec(
        plan=plan,
        configuration=configuration,
        training=training,
        fold=fold,
        seed=run.settings.seed,
        training_cases=open_cases(preprocessed, split.train, previous),
        validation_cases=open_cases(preprocessed, split.val, previous),
        folder=run.folder.fold(name, fold),
        key=key,
        device=run.device,
        num_workers=loader_workers(run),
        most_workers=available_cores(),
        case_ids=split.train,
        start=start_weights(run, prepared, training, fold),
        require_cases=partial(require_cases, preprocessed, expected),
    )
    with stop_requests(run.say) as should_stop, kept_heap_for(configuration, training, run.device):
        train_fold(spec, (FoldProgress(tracker, run.say), *run.callbacks), should_stop=should_stop)


def refuse_trained_otherwise(run: Run, prepared: Prepared, jobs: Sequence[Job]) -> None:
    """Raise `AutosegError` where folds were trained from something else than now, unless they may be trained again."""
    changed = {
        (training.configuration, fold): changed_inputs(
            run.folder, f"train-{training.configuration}-fold_{fold}", fold_inputs(run, prepared, training, fold)
        )
        for training, fold in jobs
        if final_weights(run.folder, training.configuration, fold).is_file()
    }
    reasons = dict.fromkeys(f"the {each} changed" for names in changed.values() for each in names)
    folds = [job for job, names in changed.items() if names]
    require_redo(run, list(reasons), code="run.trained_from_other", folds=folds)


def forget_validation(folder: RunFolder, name: str, fold: int) -> None:
    """Let a fold be validated again, whatever its weights are called."""
    folder.stage(f"validate-{name}-fold_{fold}").unlink(missing_ok=True)
    (folder.validation(name, fold) / JOURNAL).unlink(missing_ok=True)


def previous_labels(run: Run, prepared: Prepared, configuration: Configuration) -> Path | None:
    """Folder of the first stage's label maps, made where they are missing; None for a configuration that is not a cascade."""
    before = configuration.previous_stage
    if before is None:
        return None
    handover = Handover(
        plan=prepared.plan,
        training=prepared.schedule.training(before),
        keys=stage_keys(run, prepared, before),
        following=configuration,
        splits=prepared.splits,
    )
    return hand_over(run, handover)


def start_weights(run: Run, prepared: Prepared, training: Training, fold: int) -> Transfer | None:
    """What a fold begins from, where that is another model."""
    if prepared.pretrained is None:
        return None
    plan = prepared.plan
    start = Start(
        files=prepared.pretrained,
        plan=plan,
        configuration=plan.configuration(training.configuration),
        training=training,
        fold=fold,
        seed=run.settings.seed + fold,
    )
    return fit_weights(start)


def expected_cases(prepared: Prepared, configuration: Configuration, case_ids: Sequence[str]) -> dict[str, str]:
    """What the stored arrays of a configuration's cases must have been made from, by case."""
    plan, dataset = prepared.plan, prepared.dataset
    source = plan.configuration(configuration.data)
    cases = {case.case_id: case for case in dataset.training}
    return {case_id: stored_key(cases[case_id], dataset, plan, source) for case_id in case_ids}


def open_cases(
    preprocessed: Path, case_ids: Sequence[str], previous: Path | None
) -> list[StoredCase] | list[CascadeCase]:
    """Stored cases; with the folder ``previous`` also what the first stage of a cascade says of them."""
    cases = [open_case(preprocessed, case_id) for case_id in case_ids]
    return cases if previous is None else [CascadeCase(case, previous) for case in cases]


def loader_workers(run: Run) -> int:
    """Processes that make batches: with a GPU all cores but one; on a CPU none, because they would take its cores."""
    return max(1, run.num_workers - 1) if run.device.type == "cuda" else 0

"""Validate: every fold predicts the cases that it did not train on, and is scored."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from statistics import fmean

from autoseg.evaluation.scoring import score_cases
from autoseg.evaluation.table import write_summary
from autoseg.inference.kept import kept_probabilities
from autoseg.inference.model import Member, Model, final_weights, load_network
from autoseg.inference.predict import predict_stored
from autoseg.inference.predictions import prediction_path
from autoseg.inference.predictor import StoredImage
from autoseg.issues import Issue
from autoseg.stages.folds import groups_of
from autoseg.stages.preprocess import existing_parent
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared
from autoseg.stages.train import FoldJob, all_keys, asked_jobs, expected_cases, expected_s, previous_labels
from autoseg.stages.work import Work, is_filled
from autoseg.storage.cache import key_of

GB = 1e9
FLOAT16_BYTES = 2
FULL_SHARE = 0.6
"""Of half precision, that kept probabilities take of networks that are sure of little: 0.26 of two on the hippocampus, which fills its
images."""


def validate(run: Run) -> Generator[Work, None, None]:
    """Predict and score the validation cases of the folds that this call is about."""
    prepared = read_prepared(run)
    keys = all_keys(run, prepared)
    for training, fold in asked_jobs(run, prepared.schedule):
        run.reporter.expect(expected_s(run, prepared.schedule, keys))
        if prepared.splits.folds[fold].val and prepared.schedule.steps_of(training.configuration, fold):
            yield validation_work(run, prepared, (training, fold), keys[training.configuration, fold])
    run.reporter.expect(prepared.schedule.expected_rest_s)


def validation_work(run: Run, prepared: Prepared, job: FoldJob, key: str) -> Work:
    """The work of validating one fold, whose weights have ``key``; probabilities are kept where ensembles are compared."""
    training, fold = job
    name, dataset, case_ids = training.configuration, prepared.dataset, prepared.splits.folds[fold].val
    folder, keeps = run.folder.validation(name, fold), len(prepared.schedule.trainings) > 1
    predictions = [prediction_path(folder, case_id, dataset) for case_id in case_ids]
    probabilities = [kept_probabilities(folder, case_id) for case_id in case_ids if keeps]
    return Work(
        name=f"validate-{name}-fold_{fold}",
        what=f"validation of {name}, fold {fold}",
        inputs=lambda: {"model": key, "need for probabilities": key_of(keeps)},
        outputs=[folder / "summary.json", *predictions, *probabilities],
        is_whole=is_filled,
        do=partial(validate_one, run, prepared, job, key=key, keeps=keeps),
    )


def validate_one(run: Run, prepared: Prepared, job: FoldJob, *, key: str, keeps: bool) -> None:
    """Predict the validation cases of one fold and score them."""
    training, fold = job
    name, dataset, plan = training.configuration, prepared.dataset, prepared.plan
    configuration, folder, case_ids = (
        plan.configuration(name),
        run.folder.validation(name, fold),
        prepared.splits.folds[fold].val,
    )
    if keeps:
        warn_of_space(run, prepared)
    weights = final_weights(run.folder, name, fold)
    network = load_network(weights, configuration, training, device=run.device, key=key)
    model = Model(
        dataset=dataset,
        plan=plan,
        members=(Member(configuration=configuration, training=training, networks=(network,)),),
        device=run.device,
        key=key,
    )
    stored, previous = run.folder.preprocessed(configuration.data), previous_labels(run, prepared, configuration)
    images = [
        StoredImage(folder=stored, case_id=case_id, made_from=made_from, previous=previous)
        for case_id, made_from in expected_cases(prepared, configuration, case_ids).items()
    ]
    with run.reporter.track(f"Validating {name}, fold {fold}", len(images)) as tracker:
        predict_stored(model, images, folder, keep_probabilities=keeps, tracker=tracker, say=run.say)
    paths = [(case_id, prediction_path(folder, case_id, dataset)) for case_id in case_ids]
    cache = run.folder.cache(f"validate-{name}-fold_{fold}")
    patients = groups_of(run.settings, dataset)
    summary = score_cases(dataset, paths, patients=patients, num_workers=run.num_workers, keep_in=cache)
    write_summary(folder / "summary.json", summary)


def warn_of_space(run: Run, prepared: Prepared) -> None:
    """Warn where the probabilities that are still to be kept, to compare ensembles, may not fit on their disk."""
    schedule, splits = prepared.schedule, prepared.splits
    places = [
        kept_probabilities(run.folder.validation(training.configuration, fold), case_id)
        for training in schedule.trainings
        for fold in schedule.folds
        for case_id in splits.folds[fold].val
    ]
    voxels = fmean(prod(case.shape) for case in run.fingerprint.cases)
    expected = FULL_SHARE * FLOAT16_BYTES * prepared.plan.labels.num_outputs * voxels
    free = shutil.disk_usage(existing_parent(run.folder.models)).free
    if (needed := space_needed(places, expected)) > free:
        names = ", ".join(training.configuration for training in schedule.trainings)
        issue = Issue(
            code="disk.too_small",
            severity="warning",
            where=str(run.folder.models),
            message=f"probabilities, to compare ensembles, may take {needed / GB:.1f} GB, but only {free / GB:.1f} GB is free",
            fix=f"free some space, or train only one of {names} (--configurations)",
        )
        run.show(issue)


def space_needed(places: Sequence[Path], expected: float) -> float:
    """Bytes of those files that are not there yet: each as large as the others on average, or ``expected`` where there are none."""
    known = [path.stat().st_size for path in places if path.is_file()]
    return (fmean(known) if known else expected) * (len(places) - len(known))

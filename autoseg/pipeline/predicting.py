"""Predicts the dataset's own unlabelled test images with the finished model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoseg.data.dataset import DatasetDescription
from autoseg.imaging.readers import image_ending
from autoseg.inference.folder import predict_cases
from autoseg.inference.input_cases import InputCase
from autoseg.inference.model import load_model
from autoseg.inference.prediction_record import RECORD_NAME, is_of_model
from autoseg.inference.predictor import Predictor
from autoseg.issues import AutosegError
from autoseg.pipeline.freshness import StageRecord
from autoseg.pipeline.options import Options
from autoseg.pipeline.selecting import Selected, select_stage
from autoseg.storage.atomic import load_document, save_document
from autoseg.storage.locks import hold_lock


def predict_stage(options: Options) -> tuple[Selected, list[Path]]:
    """Label maps of all test images, in the run's ``predictions`` folder; none where the dataset has no test images."""
    selected = select_stage(options)
    dataset = selected.prepared.dataset
    if not dataset.test:
        return selected, []
    cases = [InputCase(case_id=case.case_id, images=case.image_paths) for case in dataset.test]
    with hold_lock(options.run.lock("predict"), what=f"prediction in {options.run.root}"):
        predictor = Predictor(model=load_model(options.run.root, device=options.device))
        _clear_other_model(options, predictor)
        with _changed_images(options, dataset):
            paths = predict_cases(
                predictor, cases, options.run.predictions, probabilities=False, reporter=options.reporter, is_own=True
            )
    options.reporter.say(f"Predicted {len(paths)} test images into {options.run.predictions}")
    return selected, paths


@contextmanager
def _changed_images(options: Options, dataset: DatasetDescription) -> Iterator[None]:
    """Predictions of images that changed or went make way; then it is noted which images those of the block are of.

    It is noted before the first one, so that a call that is killed loses none that it made.
    """
    images = {case.case_id: case.content or "" for case in dataset.test}
    record = options.run.stage("predict")
    try:
        before = load_document(StageRecord, record).consumed
    except AutosegError:
        before = {}
    if before == images:
        yield
        return
    changed = {case_id for case_id in before.keys() | images.keys() if before.get(case_id) != images.get(case_id)}
    folder = options.run.predictions
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.removesuffix(image_ending(path)) in changed:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    started = time.monotonic()
    save_document(record, StageRecord(consumed=images, seconds=0.0))
    yield
    save_document(record, StageRecord(consumed=images, seconds=time.monotonic() - started))


def _clear_other_model(options: Options, predictor: Predictor) -> None:
    """The run's own predictions of an earlier model, or of nobody knows which, make way; a folder that a person chose would
    be refused instead.
    """
    folder = options.run.predictions
    if is_of_model(folder, predictor):
        return
    files = [
        file for file in folder.rglob("*") if file.is_file()
    ]  # classes may have files of their own, in a folder for each case
    for file in sorted(
        files, key=lambda file: file == folder / RECORD_NAME
    ):  # the record last: until then it tells whose they are
        file.unlink()

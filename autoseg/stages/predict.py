"""Predict: label maps of the dataset's own unlabelled test images with the finished model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial

from autoseg.data.dataset import DatasetDescription
from autoseg.imaging.readers import image_ending
from autoseg.inference.folder import predict_cases
from autoseg.inference.input_cases import InputCase
from autoseg.inference.model import load_model
from autoseg.inference.prediction_record import RECORD_NAME, is_of_model
from autoseg.inference.predictor import Predictor
from autoseg.issues import AutosegError
from autoseg.stages.run import Run, StageRecord
from autoseg.stages.work import Work
from autoseg.storage.atomic import load_document, save_document
from autoseg.storage.locks import hold_lock
from autoseg.wording import count_noun


def predict(run: Run) -> Generator[Work, None, None]:
    """Label maps of all test images, in the run's ``predictions`` folder; nothing where the dataset has no test images."""
    dataset = run.dataset
    if dataset.test:
        yield Work(
            name="predict",
            what="prediction of the test images",
            inputs=dict,
            outputs=[],
            do=partial(_predict_test_images, run, dataset),
            is_recorded=False,
        )


def _predict_test_images(run: Run, dataset: DatasetDescription) -> None:
    cases = [InputCase(case_id=case.case_id, images=case.image_paths) for case in dataset.test]
    with hold_lock(run.folder.lock("predict"), what=f"prediction in {run.folder.root}"):
        predictor = Predictor(model=load_model(run.folder.root, device=run.device))
        _clear_other_model(run, predictor)
        with _changed_images(run, dataset):
            paths = predict_cases(
                predictor, cases, run.folder.predictions, probabilities=False, reporter=run.reporter, is_own=True
            )
    run.say(f"Predicted {count_noun(len(paths), 'test image')} into {run.folder.predictions}")


@contextmanager
def _changed_images(run: Run, dataset: DatasetDescription) -> Iterator[None]:
    """Predictions of images that changed or went make way; then it is noted which images those of the block are of.

    It is noted before the first one, so that a call that is killed loses none that it made.
    """
    images = {case.case_id: case.content or "" for case in dataset.test}
    record = run.folder.stage("predict")
    try:
        before = load_document(StageRecord, record).inputs
    except AutosegError:
        before = {}
    if before == images:
        yield
        return
    changed = {case_id for case_id in before.keys() | images.keys() if before.get(case_id) != images.get(case_id)}
    folder = run.folder.predictions
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.removesuffix(image_ending(path)) in changed:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    started = time.monotonic()
    save_document(record, StageRecord(inputs=images, seconds=0.0))
    yield
    save_document(record, StageRecord(inputs=images, seconds=time.monotonic() - started))


def _clear_other_model(run: Run, predictor: Predictor) -> None:
    """The run's own predictions of an earlier model, or of nobody knows which, make way; a folder that a person chose would
    be refused instead.
    """
    folder = run.folder.predictions
    if is_of_model(folder, predictor):
        return
    files = [
        file for file in folder.rglob("*") if file.is_file()
    ]  # classes may have files of their own, in a folder for each case
    for file in sorted(
        files, key=lambda file: file == folder / RECORD_NAME
    ):  # the record last: until then it tells whose they are
        file.unlink()

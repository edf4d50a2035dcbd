"""Predict: label maps of the dataset's test images by the finished model."""

from __future__ import annotations

import time
from collections.abc import Generator
from functools import partial
from pathlib import Path

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery.inputs import InputCase, Inputs
from autoseg.inference.model import load_model
from autoseg.inference.predict import predict_cases
from autoseg.inference.predictor import Predictor
from autoseg.stages.run import Run, StageRecord
from autoseg.stages.work import Work, read_record
from autoseg.storage.atomic import save_document
from autoseg.storage.locks import hold_lock
from autoseg.wording import count_noun


def predict(run: Run) -> Generator[Work, None, None]:
    """Label maps of all test images, in the run's ``predictions`` folder; nothing where the dataset has no test images."""
    dataset = run.dataset
    if dataset.test:
        do = partial(_predict_test_images, run, dataset)
        yield Work(name="predict", what="prediction of the test images", do=do)


def _predict_test_images(run: Run, dataset: DatasetDescription) -> None:
    from autoseg.stages.side_by_side import predict_side_by_side

    images, started = {case.case_id: case.content or "" for case in dataset.test}, time.monotonic()
    predict_side_by_side(run, dataset)
    paths = predict_own(run, dataset)  # where others have done it, this only looks
    record = read_record(run.folder, "predict")
    if record is None or record.inputs != images:
        record = StageRecord(inputs=images, seconds=time.monotonic() - started)
        save_document(run.folder.stage("predict"), record)
    run.say(f"Predicted {count_noun(len(paths), 'test image')} into {run.folder.predictions}")


def predict_own(run: Run, dataset: DatasetDescription) -> list[Path]:
    """Predict the test images of a run; several processes at once share them."""
    cases = tuple(InputCase(case_id=case.case_id, images=case.image_paths) for case in dataset.test)
    what = f"prediction in {run.folder.root}"
    return predict_cases(
        Predictor(model=load_model(run.folder.root, device=run.device)),
        Inputs(cases=cases),
        run.folder.predictions,
        probabilities=False,
        reporter=run.reporter,
        is_own=True,
        beginning=hold_lock(run.folder.lock("predict"), what=what, wait=True, say=run.say),
    )

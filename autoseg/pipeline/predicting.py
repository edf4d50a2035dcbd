"""Predicts the dataset's own unlabelled test images with the finished model."""

from __future__ import annotations

from pathlib import Path

from autoseg.execution.locks import hold_lock
from autoseg.inference.folder import RECORD_NAME, is_of_model, predict_cases
from autoseg.inference.input_cases import InputCase
from autoseg.inference.model import load_model
from autoseg.inference.predictor import Predictor
from autoseg.pipeline.options import Options
from autoseg.pipeline.selecting import Selected, select_stage


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
        paths = predict_cases(
            predictor, cases, options.run.predictions, probabilities=False, reporter=options.reporter
        )
    options.reporter.say(f"Predicted {len(paths)} test images into {options.run.predictions}")
    return selected, paths


def _clear_other_model(options: Options, predictor: Predictor) -> None:
    """The run's own predictions of an earlier model, or of nobody knows which, make way; a folder that a person chose would
    be refused instead.
    """
    folder = options.run.predictions
    if is_of_model(folder, predictor):
        return
    files = [file for file in folder.rglob("*") if file.is_file()]  # classes may have files of their own, in a folder for each case
    for file in sorted(files, key=lambda file: file == folder / RECORD_NAME):  # the record last: until then it tells whose they are
        file.unlink()

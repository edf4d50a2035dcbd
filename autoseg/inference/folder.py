"""Predicts many images into a folder, one in memory at a time, and goes on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from zipfile import is_zipfile

import numpy as np

from autoseg.errors import AutosegError
from autoseg.evaluation.mask_folders import mask_stem
from autoseg.evaluation.metrics import EvaluatedClass, evaluated_classes
from autoseg.imaging.formats import image_ending, prediction_ending, read_header, write_label_map
from autoseg.inference.input_cases import InputCase
from autoseg.inference.predictor import Predictor
from autoseg.progress import Reporter
from autoseg.run_folder import atomic_write, load_document, save_document
from planners import Document, Labels


class PredictionRecord(Document):
    """``predictions.json``: which model made the label maps of a folder, and how."""

    schema_version: Literal[1] = 1
    model_key: str
    mirroring: bool
    labels: Labels | None = None
    """What the values of the label maps mean, once ``file_values`` has turned them into internal ones."""
    file_values: tuple[int, ...] = ()
    threshold: int | None = None
    """The dataset's masks hold greys: from this value on a voxel belongs to the structure."""


RECORD_NAME = "predictions.json"


def predict_cases(
    predictor: Predictor,
    cases: Sequence[InputCase],
    folder: Path,
    *,
    probabilities: bool,
    reporter: Reporter,
) -> list[Path]:
    """Write a label map for every case, ``CASE`` plus the ending of the dataset's own label files.

    Of datasets with a mask file for each class, a folder ``CASE`` with such files is written.
    Where those cannot hold the grid of the image, its own format is taken, or NIfTI (`prediction_ending`).

    Cases that are there already are skipped, unless their file cannot be opened. With ``probabilities`` also ``CASE.npz`` with an array ``probabilities``,
    float32 (K, Z, Y, X). A case that fails does not stop the others; all failures are reported together at the end.
    Raises `AutosegError` at once when the folder holds predictions of another model, or made in another way.
    """
    _check_record(predictor, folder)
    written, failures = [], []
    with reporter.track("Predicting", len(cases)) as tracker:
        for case in cases:
            scores = folder / f"{case.case_id}.npz"
            try:
                path = folder / f"{case.case_id}{_ending(predictor, case)}"
                _refuse_overwriting_input(case, path)
                files = _files(predictor, path)
                if not all(map(_is_image, files)) or (probabilities and not is_zipfile(scores)):
                    _predict_case(predictor, case, path, scores if probabilities else None)
                written.append(path if files == {path: ()} else path.parent / case.case_id)
            except AutosegError as error:
                failures.append(f"  - {case.case_id}: {error}")
            tracker.advance(note=case.case_id)
    if failures:
        raise AutosegError(
            f"{len(failures)} of {len(cases)} images could not be predicted, the others lie in {folder}:\n"
            + "\n".join(failures)
        )
    return written


def _is_image(path: Path) -> bool:
    """Whether an image lies there, as far as its header tells: voxels would take too long to read where much is done."""
    try:
        read_header(path)
    except AutosegError:
        return False
    return True


def _ending(predictor: Predictor, case: InputCase) -> str:
    image = case.images[0]
    return prediction_ending(image, read_header(image).geometry, predictor.model.dataset.file_ending)


def _predict_case(predictor: Predictor, case: InputCase, path: Path, scores: Path | None) -> None:
    prediction = predictor.predict_files(case.images, probabilities=scores is not None)
    if scores is not None and prediction.probabilities is not None:
        with atomic_write(scores) as file:
            np.savez_compressed(file, probabilities=prediction.probabilities)
    inside = predictor.model.dataset.mask_value
    for target, values in _files(predictor, path).items():
        array = np.where(np.isin(prediction.labels, values), inside, 0) if values else prediction.labels
        write_label_map(target, array, prediction.geometry)


def _files(predictor: Predictor, path: Path) -> dict[Path, tuple[int, ...]]:
    """Files of one prediction: its label map, or the masks of its classes in a folder, with the values inside each."""
    dataset = predictor.model.dataset
    if not dataset.classes_with_masks:
        return {path: ()}
    folder, ending = path.with_name(path.name.removesuffix(image_ending(path))), image_ending(path)
    return {folder / f"{mask_stem(label.name)}{ending}": label.values for label in dataset.labels.classes}


def is_of_model(folder: Path, predictor: Predictor) -> bool:
    """Whether ``folder`` says that its predictions were made by the model of ``predictor``, in the same way."""
    try:
        found = read_record(folder)
    except AutosegError:
        return False
    return found is not None and (found.model_key, found.mirroring) == (predictor.model.key, predictor.mirroring)


def _check_record(predictor: Predictor, folder: Path) -> None:
    dataset = predictor.model.dataset
    record = PredictionRecord(
        model_key=predictor.model.key, mirroring=predictor.mirroring, labels=dataset.labels, file_values=dataset.file_values,
        threshold=dataset.threshold,
    )
    path = folder / RECORD_NAME
    if path.exists():
        found = load_document(PredictionRecord, path)
        if (found.model_key, found.mirroring) != (record.model_key, record.mirroring):
            other = "another model" if found.model_key != record.model_key else "another use of mirroring"
            raise AutosegError(f"{folder} holds predictions made with {other}; give a new folder, or empty this one")
        return
    save_document(path, record)


def read_record(folder: Path) -> PredictionRecord | None:
    """How the predictions in ``folder`` were made; none where nobody recorded it."""
    path = folder / RECORD_NAME
    return load_document(PredictionRecord, path) if path.exists() else None


def recorded_classes(folder: Path) -> tuple[tuple[EvaluatedClass, ...], int | None] | None:
    """Classes of the label maps in ``folder`` with their file values, and the ignore value; none where nobody recorded them."""
    record = read_record(folder)
    if record is None or record.labels is None:
        return None
    ignore = None if record.labels.ignore is None else record.file_values[record.labels.ignore]
    return evaluated_classes(record.labels, record.file_values), ignore


def _refuse_overwriting_input(case: InputCase, path: Path) -> None:
    for image in case.images:
        if path.exists() and image.exists() and os.path.samefile(image, path):
            raise AutosegError(f"{path} is an input image and would be overwritten; give another output folder")

"""Which model made the label maps of a folder, and what their values mean."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from autoseg.evaluation.metrics import EvaluatedClass, evaluated_classes
from autoseg.inference.predictor import Predictor
from autoseg.issues import AutosegError
from autoseg.storage.atomic import load_document, save_document
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


def is_of_model(folder: Path, predictor: Predictor) -> bool:
    """Whether ``folder`` says that its predictions were made by the model of ``predictor``, in the same way."""
    try:
        found = read_record(folder)
    except AutosegError:
        return False
    return found is not None and (found.model_key, found.mirroring) == (predictor.model.key, predictor.mirroring)


def check_record(predictor: Predictor, folder: Path) -> None:
    """Write the record of predictions that begin. Raises `AutosegError` where the folder holds those of another model."""
    dataset = predictor.model.dataset
    record = PredictionRecord(
        model_key=predictor.model.key,
        mirroring=predictor.mirroring,
        labels=dataset.labels,
        file_values=dataset.file_values,
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

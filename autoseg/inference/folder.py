"""Predicts many images into a folder, one in memory at a time, and goes on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from autoseg.errors import AutosegError, Problem, ProblemsError
from autoseg.evaluation.mask_folders import mask_stem
from autoseg.evaluation.metrics import EvaluatedClass, evaluated_classes
from autoseg.imaging.formats import image_ending, prediction_ending, read_header, write_label_map
from autoseg.inference.input_cases import InputCase
from autoseg.inference.predicted import PredictedCase, contents, look_at, note_predicted, read_predicted
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One image and the files that its prediction consists of."""

    case: InputCase
    path: Path
    """Label map, or where one would lie if classes had no masks of their own."""
    masks: dict[Path, tuple[int, ...]]
    """Image files with the values inside each; none for a label map."""
    scores: Path | None
    """Probabilities, if wanted."""

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.masks, *([self.scores] if self.scores else ()))

    @property
    def shown(self) -> Path:
        """What a person opens: the label map, or the folder of masks."""
        return self.path if self.masks == {self.path: ()} else self.path.parent / self.case.case_id


def predict_cases(
    predictor: Predictor,
    cases: Sequence[InputCase],
    folder: Path,
    *,
    probabilities: bool,
    reporter: Reporter,
    is_own: bool = False,
) -> list[Path]:
    """Write a label map for every case, ``CASE`` plus the ending of the dataset's own label files.

    Of datasets with a mask file for each class, a folder ``CASE`` with such files is written.
    Where those cannot hold the grid of the image, its own format is taken, or NIfTI (`prediction_ending`).

    Cases that were predicted already are skipped, unless their image has changed since or a file is damaged or gone. With
    ``probabilities`` also ``CASE.npz`` with an array ``probabilities``, float32 (K, Z, Y, X). A case that fails does not stop
    the others; all failures are reported together at the end. Raises `AutosegError` at once when the folder holds predictions
    of another model, or made in another way, or files under the names of predictions that are none.

    Label maps that somebody has changed since are kept. In a folder ``is_own``, where nobody works but the product, whatever
    does not fit is made again.
    """
    predicted = read_predicted(folder)
    tasks, failures = _tasks(predictor, cases, folder, probabilities=probabilities)
    if not is_own:
        _refuse_foreign_files(folder, tasks, predicted)
    _check_record(predictor, folder)
    written = []
    with reporter.track("Predicting", len(cases)) as tracker:
        tracker.advance(len(failures))
        for task in tasks:
            try:
                _complete(predictor, task, predicted.get(task.case.case_id), reporter, is_own=is_own)
                written.append(task.shown)
            except AutosegError as error:
                failures.append(f"  - {task.case.case_id}: {error}")
            tracker.advance(note=task.case.case_id)
    if failures:
        raise AutosegError(
            f"{len(failures)} of {len(cases)} images could not be predicted, the others lie in {folder}:\n"
            + "\n".join(failures)
        )
    return written


def _tasks(
    predictor: Predictor, cases: Sequence[InputCase], folder: Path, *, probabilities: bool
) -> tuple[list[_Task], list[str]]:
    """What is to be written for each case, and the cases whose headers cannot be read."""
    tasks, failures = [], []
    for case in cases:
        try:
            path = folder / f"{case.case_id}{_ending(predictor, case)}"
        except AutosegError as error:
            failures.append(f"  - {case.case_id}: {error}")
            continue
        scores = folder / f"{case.case_id}.npz" if probabilities else None
        tasks.append(_Task(case=case, path=path, masks=_files(predictor, path), scores=scores))
    return tasks, failures


def _refuse_foreign_files(folder: Path, tasks: Sequence[_Task], predicted: Mapping[str, PredictedCase]) -> None:
    """Files that nobody noted are not the product's to overwrite, nor predictions of this model."""
    foreign = [path for task in tasks for path in task.files if path.exists() and not _is_noted(path, predicted.get(task.case.case_id))]
    if foreign:
        raise ProblemsError(
            f"{folder} holds files under the names of predictions, which were not predicted into it; give a new folder, or move "
            "them away",
            [Problem(where=str(path), found=_what_it_is(path, tasks), mend="give another output folder") for path in foreign],
        )


def _is_noted(path: Path, case: PredictedCase | None) -> bool:
    """Whether a file was predicted, or was being predicted when a call ended."""
    return case is not None and (not case.files or path.name in {entry.path for entry in case.files})


def _what_it_is(path: Path, tasks: Sequence[_Task]) -> str:
    images = (image for task in tasks for image in task.case.images)
    is_input = any(image.exists() and os.path.samefile(image, path) for image in images)
    return "is an input image and would be overwritten" if is_input else "would be overwritten"


def _complete(
    predictor: Predictor, task: _Task, before: PredictedCase | None, reporter: Reporter, *, is_own: bool
) -> None:
    """Predict what is not there yet, or no longer fits its image."""
    found = look_at(before, task.case.images, task.files)
    if found.is_done and (not found.changed or not is_own):
        for path in found.changed:
            reporter.say(f"{path} was changed since it was predicted; it is kept as it is")
        return
    if found.changed and not is_own:
        names = ", ".join(path.name for path in found.changed)
        raise AutosegError(f"{names} was changed since it was predicted, and would be overwritten; move it away, or give a new folder")
    folder, case_id = task.path.parent, task.case.case_id
    note_predicted(folder, PredictedCase(case_id=case_id, images=found.images))
    scores = f"{case_id}.npz"
    if before is not None and scores in {entry.path for entry in before.files}:
        (folder / scores).unlink(missing_ok=True)  # of another image, or to be made again
    _predict_case(predictor, task)
    note_predicted(folder, PredictedCase(case_id=case_id, images=found.images, files=contents(task.files)))


def _ending(predictor: Predictor, case: InputCase) -> str:
    image = case.images[0]
    return prediction_ending(image, read_header(image).geometry, predictor.model.dataset.file_ending)


def _predict_case(predictor: Predictor, task: _Task) -> None:
    prediction = predictor.predict_files(task.case.images, probabilities=task.scores is not None)
    if task.scores is not None and prediction.probabilities is not None:
        with atomic_write(task.scores) as file:
            np.savez_compressed(file, probabilities=prediction.probabilities)
    inside = predictor.model.dataset.mask_value
    for target, values in task.masks.items():
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

"""Predicts many images into a folder, one in memory at a time, and goes on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.evaluation.folders import mask_stem
from autoseg.imaging.readers import (
    files_of,
    image_ending,
    prediction_ending,
    read_header,
    require_text,
    write_label_map,
)
from autoseg.inference.input_cases import InputCase
from autoseg.inference.predicted import (
    Found,
    Lines,
    PredictedCase,
    PredictionNotes,
    contents,
    look_at,
    names,
    source_of,
)
from autoseg.inference.prediction_record import check_record
from autoseg.inference.predictor import Predictor
from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.storage.atomic import atomic_write, remove_orphans, sync_folder, temporary_folder, write_error
from autoseg.tracking.progress import Reporter


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
    of another model, or made in another way, or files under the names of predictions that are none, or has a name that is no text.

    Label maps that somebody has changed since are kept, and so is the prediction of another image of the same name in another
    folder. Several processes may predict into one folder; what one has finished the others skip. In a folder ``is_own``, where
    nobody works but the product, whatever does not fit is made again.
    """
    require_text([folder])
    if folder.exists() and not folder.is_dir():
        raise AutosegError(f"{folder} is a file; give a folder for the label maps")
    notes = PredictionNotes(folder)
    tasks, failures = _tasks(predictor, cases, folder, probabilities=probabilities)
    remove_orphans(folder, below=False)
    if not is_own:
        _refuse_foreign_files(folder, tasks, notes)
    check_record(predictor, folder)
    written = []
    with reporter.track("Predicting", len(cases)) as tracker:
        tracker.advance(len(failures))
        for task in tasks:
            check_record(predictor, folder)  # each time: somebody may have begun with another model meanwhile
            try:
                _complete(predictor, task, notes, reporter, is_own=is_own)
                written.append(task.shown)
            except AutosegError as error:
                failures.append(f"  - {task.case.case_id}: {error}")
            tracker.advance(note=task.case.case_id)
    if failures:
        raise AutosegError(
            f"{len(failures)} of {len(cases)} images could not be predicted{f', the others lie in {folder}' if written else ''}:\n"
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


def _refuse_foreign_files(folder: Path, tasks: Sequence[_Task], notes: PredictionNotes) -> None:
    """Files that nobody noted are not the product's to overwrite, nor predictions of this model."""
    foreign = [path for task in tasks for path in _foreign(task.files, notes.of(task.case.case_id))]
    if foreign:
        raise AutosegError(
            *[
                Issue(code=UNNAMED, where=str(path), message=_what_it_is(path, tasks), fix="give another output folder")
                for path in foreign
            ],
            headline=(
                f"{folder} holds files under the names of predictions, which were not predicted into it; give a new folder, or move "
                "them away"
            ),
        )


def _foreign(files: Sequence[Path], lines: Lines) -> list[Path]:
    return [path for path in files if path.exists() and path.name not in names(lines)]


def _what_it_is(path: Path, tasks: Sequence[_Task]) -> str:
    images = (image for task in tasks for image in task.case.images)
    is_input = any(image.exists() and os.path.samefile(image, path) for image in images)
    return "is an input image and would be overwritten" if is_input else "would be overwritten"


def _complete(predictor: Predictor, task: _Task, notes: PredictionNotes, reporter: Reporter, *, is_own: bool) -> None:
    """Predict what is not there yet, or no longer fits its image."""
    lines, source = notes.of(task.case.case_id), source_of(task.case.images)
    found = look_at(lines, task.case.images, task.files)
    if found.is_done and (not found.changed or not is_own):
        for path in found.changed:
            reporter.say(f"{path} was changed since it was predicted; it is kept as it is")
        return
    if not is_own:
        if lines and not found.same_images and any(path.exists() for path in task.files):
            if source != lines[-1].source:
                raise AutosegError(
                    f"{task.shown} was predicted of another image of that name, in another folder; give another output folder, or "
                    "move it away"
                )
            reporter.say(f"{task.shown} is predicted again: its image has changed since")
        _refuse_changed(found)
    try:
        with temporary_folder(task.path.parent / task.case.case_id) as staged:
            _predict_case(predictor, task, staged)
            made = [staged / path.relative_to(task.path.parent) for path in task.files]
            line = PredictedCase(case_id=task.case.case_id, source=source, images=found.images, files=contents(made))
            lines = notes.of(task.case.case_id)
            if not is_own:  # while it was predicted, somebody may have put files here
                _refuse_changed(look_at(lines, task.case.images, task.files))
                for path in _foreign([_place(file, staged, task) for each in made for file in files_of(each)], lines):
                    raise AutosegError(
                        f"{path} was not predicted into its folder, and would be overwritten; give another one"
                    )
            notes.add(line)
            _move(staged, made, task, lines)
    except OSError as error:
        raise write_error(task.path, error) from error


def _refuse_changed(found: Found) -> None:
    if found.changed:
        changed = ", ".join(path.name for path in found.changed)
        raise AutosegError(
            f"{changed} was changed since it was predicted, and would be overwritten; move it away, or give a new folder"
        )


def _place(file: Path, staged: Path, task: _Task) -> Path:
    return task.path.parent / file.relative_to(staged)


def _move(staged: Path, made: Sequence[Path], task: _Task, lines: Lines) -> None:
    """Give what was made its place, voxels before the header that names them; probabilities of another image go."""
    scores = f"{task.case.case_id}.npz"
    if task.scores is None and scores in names(lines):
        (task.path.parent / scores).unlink(missing_ok=True)
    for each in made:
        place = _place(each, staged, task)
        place.parent.mkdir(parents=True, exist_ok=True)
        for file in reversed(files_of(each)):
            os.replace(file, _place(file, staged, task))
        sync_folder(place.parent)


def _ending(predictor: Predictor, case: InputCase) -> str:
    image = case.images[0]
    return prediction_ending(image, read_header(image).geometry, predictor.model.dataset.file_ending)


def _predict_case(predictor: Predictor, task: _Task, staged: Path) -> None:
    """Write all files of a prediction into the folder ``staged``, under the names that they will have."""
    prediction = predictor.predict_files(task.case.images, probabilities=task.scores is not None)
    if task.scores is not None and prediction.probabilities is not None:
        with atomic_write(staged / task.scores.name) as file:
            np.savez_compressed(file, probabilities=prediction.probabilities)
    inside = predictor.model.dataset.mask_value
    for target, values in task.masks.items():
        array = np.where(np.isin(prediction.labels, values), inside, 0) if values else prediction.labels
        place = staged / target.relative_to(task.path.parent)
        place.parent.mkdir(exist_ok=True)
        write_label_map(place, array, prediction.geometry)


def _files(predictor: Predictor, path: Path) -> dict[Path, tuple[int, ...]]:
    """Files of one prediction: its label map, or the masks of its classes in a folder, with the values inside each."""
    dataset = predictor.model.dataset
    if not dataset.classes_with_masks:
        return {path: ()}
    folder, ending = path.with_name(path.name.removesuffix(image_ending(path))), image_ending(path)
    return {folder / f"{mask_stem(label.name)}{ending}": label.values for label in dataset.labels.classes}

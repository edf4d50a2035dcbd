"""Predicts cases one after another: a user's images, the validation cases of a fold, the first stage of a cascade."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.readers import prediction_ending, read_header, require_text
from autoseg.inference.cases import InputCase
from autoseg.inference.model import Model
from autoseg.inference.predictions import Job, prediction_folder
from autoseg.inference.predictor import Prediction, Predictor, StoredImage
from autoseg.issues import AutosegError, Issue
from autoseg.preprocessing.prepare import has_previous, store_previous
from autoseg.storage.atomic import remove_orphans
from autoseg.storage.cache import key_of
from autoseg.tracking.progress import Reporter, Tracker

Result = TypeVar("Result")


class Sink(Protocol[Result]):
    """Where predictions go."""

    def complete(self, job: Job[Result]) -> None:
        """Predict and store the case unless it was made from the same already."""


def complete_jobs(jobs: Sequence[Job[Result]], sink: Sink[Result], tracker: Tracker) -> dict[str, AutosegError]:
    """Complete all ``jobs``, one in memory at a time. A failing case does not stop the others: errors by case id."""
    errors = {}
    for job in jobs:
        try:
            sink.complete(job)
        except AutosegError as error:
            errors[job.case_id] = error
        tracker.advance(note=job.case_id)
    return errors


def raise_together(errors: dict[str, AutosegError], *, headline: str) -> None:
    """Raise one `AutosegError` with the issues of all ``errors``, by case id; nothing without any."""
    issues = [
        issue.model_copy(update={"case": case_id, "where": issue.where or case_id})
        for case_id, error in errors.items()
        for issue in error.issues
    ]
    if issues:
        raise AutosegError(*issues, headline=headline)


def predict_cases(
    predictor: Predictor,
    cases: Sequence[InputCase],
    folder: Path,
    *,
    probabilities: bool,
    reporter: Reporter,
    is_own: bool = False,
) -> list[Path]:
    """Write a label map for every case, ``CASE`` plus the ending of the dataset's label files; returns their paths.

    For datasets with a mask file per class, a folder ``CASE`` with such files is written. If the format cannot hold the
    grid of the image, the image's own format is used, or NIfTI (`prediction_ending`).

    Cases that are up to date are skipped (`PredictionFolder`). With ``probabilities``, ``CASE.npz`` is written too, with an
    array ``probabilities``, float32 (K, Z, Y, X). A failing case does not stop the others; all issues are raised together
    at the end. Raises `AutosegError` at once when ``folder`` has predictions of another model or made in another way, or
    other files under the names of predictions, or a name that is not text. In a folder that ``is_own``, which only autoseg
    writes to, whatever does not fit is made again.
    """
    require_text([folder])
    if folder.exists() and not folder.is_dir():
        fix = "give a folder for the label maps"
        raise AutosegError(Issue(code="predict.not_a_folder", where=str(folder), message="a file", fix=fix))
    sink = prediction_folder(
        folder,
        predictor.model.dataset,
        made_from=key_of(predictor.model.key, predictor.mirroring),
        say=reporter.say,
        scores="full" if probabilities else None,
        with_masks=True,
        is_own=is_own,
    )
    jobs, errors = _image_jobs(predictor, cases, probabilities=probabilities)
    remove_orphans(folder, below=False)
    sink.begin(jobs)
    with reporter.track("Predicting", len(cases)) as tracker:
        tracker.advance(len(errors))
        errors |= complete_jobs(jobs, sink, tracker)
    written = [sink.shown(job) for job in jobs if job.case_id not in errors]
    others = f"; the others are in {folder}" if written else ""
    raise_together(errors, headline=f"{len(errors)} of {len(cases)} images could not be predicted{others}")
    return written


def _image_jobs(
    predictor: Predictor, cases: Sequence[InputCase], *, probabilities: bool
) -> tuple[list[Job[Prediction]], dict[str, AutosegError]]:
    """Jobs, and the errors of cases whose header cannot be read."""
    jobs, errors = [], {}
    for case in cases:
        image = case.images[0]
        try:
            ending = prediction_ending(image, read_header(image).geometry, predictor.model.dataset.file_ending)
        except AutosegError as error:
            errors[case.case_id] = error
            continue
        predict = partial(predictor.predict_files, case.images, probabilities=probabilities)
        jobs.append(Job(case_id=case.case_id, predict=predict, inputs=case.images, ending=ending))
    return jobs, errors


def predict_stored(
    model: Model,
    cases: Sequence[StoredImage],
    folder: Path,
    *,
    keep_probabilities: bool,
    tracker: Tracker,
    say: Callable[[str], None],
) -> None:
    """Write a label map for every stored case into one of a run's own folders (method section 8.3).

    With ``keep_probabilities``, a half-precision array (K, Z, Y, X) is kept too, for ensembles of configurations. Cases that
    are up to date are skipped; predictions of another model, or of other cases, are removed. Raises `AutosegError` at the
    end with the issues of all cases that failed.
    """
    predictor = Predictor(model=model)
    sink = prediction_folder(
        folder,
        model.dataset,
        made_from=key_of(model.key, keep_probabilities),
        say=say,
        scores="half" if keep_probabilities else None,
        is_own=True,
    )
    jobs = [
        Job(
            case_id=case.case_id,
            predict=partial(predictor.predict_source, case, probabilities=keep_probabilities),
            made_from=case.made_from,
        )
        for case in cases
    ]
    remove_orphans(folder, below=False)
    sink.begin(jobs)
    errors = complete_jobs(jobs, sink, tracker)
    raise_together(errors, headline=f"{len(errors)} of {len(cases)} cases could not be predicted")


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStageFolder:
    """Stores label maps of a cascade's first stage, on the grid of the second, in a folder of the run."""

    folder: Path
    patch_shape: Sequence[int]
    """Of the second stage: shapes the chunks."""

    def is_complete(self, job: Job[NDArray[np.integer]]) -> bool:
        """Whether the label map was made from the same already."""
        return has_previous(self.folder, job.case_id, job.made_from)

    def complete(self, job: Job[NDArray[np.integer]]) -> None:
        """Predict and store a label map that is missing, damaged or was made from something else."""
        if not self.is_complete(job):
            labels = job.predict()
            store_previous(self.folder, job.case_id, labels, made_from=job.made_from, patch_shape=self.patch_shape)

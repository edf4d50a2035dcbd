"""Scores predictions of training cases against the user's own labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path

from autoseg.compute.executor import run_jobs, workers_worth_starting
from autoseg.data.case_labels import read_file_labels
from autoseg.data.dataset import Case, DatasetDescription, LabelCoding
from autoseg.evaluation.metrics import EvaluatedClass, evaluated_classes
from autoseg.evaluation.summary import CaseResult, EvaluatedPair, Summary, score_case, summarize
from autoseg.imaging.image import LabelMap
from autoseg.imaging.readers import file_states, files_of, read_header, read_label_map
from autoseg.issues import AutosegError
from autoseg.storage.cache import Cached, read_content
from autoseg.tracking.progress import Tracker

Predicted = tuple[str, Path]
"""A case id and the label map that was predicted for it."""
VOXEL_S = 4e-8
"""Processor time to score a voxel for one class, where the class fills much of the image (measured on CT of the torso)."""
VOXEL_BYTES = 24
"""Main memory to score a voxel: 9 were measured for label maps of one byte; files may hold eight."""


def score_cases(
    dataset: DatasetDescription,
    predictions: Sequence[Predicted],
    tracker: Tracker | None = None,
    *,
    num_workers: int = 1,
    keep_in: Path | None = None,
) -> Summary:
    """Summary of predictions, in that order; classes that a case is not annotated for have no score.

    Scores of cases lie in the folder ``keep_in`` for a call that goes on after this one was killed. Raises `AutosegError`
    that names each case whose files cannot be read or do not fit each other.
    """
    classes = evaluated_classes(dataset.labels, dataset.file_values)
    ignore = None if dataset.labels.ignore is None else dataset.file_values[dataset.labels.ignore]
    score = partial(_score, coding=dataset.coding, classes=tuple(classes), ignore=ignore)
    remembered = score if keep_in is None else Cached(function=score, kind=CaseResult, state=_state, folder=keep_in)
    voxels = [prod(read_header(path).geometry.shape) for _, path in predictions]
    results = run_jobs(
        remembered,
        [(labelled_case(dataset, case_id), path) for case_id, path in predictions],
        name=lambda scored: f"case {scored[0].case_id}",
        num_workers=workers_worth_starting(num_workers, VOXEL_S * len(classes) * sum(voxels)),
        need_bytes=VOXEL_BYTES * max(voxels, default=0),
        tracker=tracker,
    )
    return summarize(results, classes, ignore=ignore)


def _score(
    scored: tuple[Case, Path], *, coding: LabelCoding, classes: Sequence[EvaluatedClass], ignore: int | None
) -> CaseResult:
    case, path = scored
    pair = EvaluatedPair(case_id=case.case_id, prediction=path, reference=Path(case.label_files[0]))
    unknown = frozenset() if case.annotated is None else {each.name for each in classes} - set(case.annotated)
    return score_case(
        pair, read_label_map(path), _labels(case, coding), classes=classes, ignore=ignore, unscored=unknown
    )


def _state(scored: tuple[Case, Path]) -> object:
    """By what is in the prediction: a call that goes on writes it again, with another time."""
    case, path = scored
    predicted = [read_content(file, None).sha256 for file in files_of(path)]
    return scored, predicted, file_states(case.label_files)


def labelled_case(dataset: DatasetDescription, case_id: str) -> Case:
    """A training case. Raises `AutosegError` where there is none of that name."""
    for case in dataset.training:
        if case.case_id == case_id and case.is_labelled:
            return case
    raise AutosegError(f"case {case_id} has no label map in {dataset.root}; run autoseg check on that folder")


def reference_labels(dataset: DatasetDescription, case_id: str) -> LabelMap:
    """The user's labels of a training case, with the values of the files; masks of classes on the grid of their image."""
    return _labels(labelled_case(dataset, case_id), dataset.coding)


def _labels(case: Case, coding: LabelCoding) -> LabelMap:
    onto = read_header(case.image_paths[0]).geometry if case.masks else None
    return read_file_labels(case, coding, onto=onto)

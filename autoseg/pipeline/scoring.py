"""Scores predictions of training cases against the user's own labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoseg.datasets.case_labels import read_file_labels
from autoseg.datasets.dataset import Case, DatasetDescription
from autoseg.errors import AutosegError
from autoseg.evaluation.metrics import evaluated_classes
from autoseg.evaluation.summary import EvaluatedPair, Summary, score_case, summarize
from autoseg.imaging.formats import read_header, read_label_map
from autoseg.imaging.volume import LabelMap
from autoseg.progress import Tracker


def score_cases(
    dataset: DatasetDescription, predictions: Sequence[tuple[str, Path]], tracker: Tracker | None = None
) -> Summary:
    """Summary of (case id, label map file) pairs, in that order; classes that a case is not annotated for have no score."""
    classes = evaluated_classes(dataset.labels, dataset.file_values)
    ignore = None if dataset.labels.ignore is None else dataset.file_values[dataset.labels.ignore]
    results = []
    for case_id, path in predictions:
        case = labelled_case(dataset, case_id)
        pair = EvaluatedPair(case_id=case_id, prediction=path, reference=Path(case.label_files[0]))
        unknown = frozenset() if case.annotated is None else {each.name for each in classes} - set(case.annotated)
        results.append(score_case(
            pair, read_label_map(path), reference_labels(dataset, case_id), classes=classes, ignore=ignore, unscored=unknown
        ))
        if tracker is not None:
            tracker.advance()
    return summarize(results, classes, ignore=ignore)


def labelled_case(dataset: DatasetDescription, case_id: str) -> Case:
    """A training case. Raises `AutosegError` where there is none of that name."""
    for case in dataset.training:
        if case.case_id == case_id and case.is_labelled:
            return case
    raise AutosegError(f"case {case_id} has no label map in {dataset.root}; run autoseg check on that folder")


def reference_labels(dataset: DatasetDescription, case_id: str) -> LabelMap:
    """The user's labels of a training case, with the values of the files; masks of classes on the grid of their image."""
    case = labelled_case(dataset, case_id)
    onto = read_header(case.image_paths[0]).geometry if case.masks else None
    return read_file_labels(case, dataset.coding, onto=onto)

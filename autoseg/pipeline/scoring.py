"""Scores predictions of training cases against the user's own label maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoseg.datasets.dataset import DatasetDescription
from autoseg.errors import AutosegError
from autoseg.evaluation.metrics import evaluated_classes
from autoseg.evaluation.summary import EvaluatedPair, Summary, evaluate_case, summarize
from autoseg.progress import Tracker


def score_cases(
    dataset: DatasetDescription, predictions: Sequence[tuple[str, Path]], tracker: Tracker | None = None
) -> Summary:
    """Summary of (case id, label map file) pairs, in that order."""
    classes = evaluated_classes(dataset.labels, dataset.file_values)
    ignore = None if dataset.labels.ignore is None else dataset.file_values[dataset.labels.ignore]
    results = []
    for case_id, path in predictions:
        pair = EvaluatedPair(case_id=case_id, prediction=path, reference=reference_path(dataset, case_id))
        results.append(evaluate_case(pair, classes=classes, ignore=ignore))
        if tracker is not None:
            tracker.advance()
    return summarize(results, classes, ignore=ignore)


def reference_path(dataset: DatasetDescription, case_id: str) -> Path:
    """The user's label map of a training case."""
    for case in dataset.training:
        if case.case_id == case_id and case.label is not None:
            return Path(case.label)
    raise AutosegError(f"case {case_id} has no label map in {dataset.root}; run autoseg check on that folder")

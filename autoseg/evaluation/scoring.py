"""Scores single predictions: read label maps, and predictions of a dataset's own training cases."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from autoseg.compute.executor import run_jobs, workers_worth_starting
from autoseg.data.dataset import Case, DatasetDescription, LabelCoding
from autoseg.data.labels import read_file_labels
from autoseg.evaluation.detection import detections_in, probabilities_beside
from autoseg.evaluation.lesions import Detections, LesionRule
from autoseg.evaluation.measures import measure_classes
from autoseg.evaluation.metrics import (
    DEFAULT_TOLERANCE_MM,
    ClassMetrics,
    EvaluatedClass,
    compare,
    evaluated_classes,
    united_classes,
)
from autoseg.evaluation.table import CaseResult, Summary, summarize
from autoseg.imaging.image import Geometry, LabelMap
from autoseg.imaging.orientation import align_label_map, oriented_differences
from autoseg.imaging.readers import file_states, files_of, read_header, read_label_map
from autoseg.issues import AutosegError, Issue
from autoseg.storage.cache import Cached, read_content
from autoseg.tracking.progress import Tracker

Predicted = tuple[str, Path]
"""A case id and the label map that was predicted for it."""
VOXEL_S = 4e-8
"""Processor time to score a voxel for one class, where the class fills much of the image (measured on CT of the torso)."""
VOXEL_BYTES = 24
"""Main memory to score a voxel: 9 were measured for label maps of one byte; files may hold eight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedPair:
    """Files of one case."""

    case_id: str
    prediction: Path
    reference: Path


# --- one case ---


def score_case(
    pair: EvaluatedPair,
    prediction: LabelMap,
    reference: LabelMap,
    *,
    classes: Sequence[EvaluatedClass],
    ignore: int | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    lesions: LesionRule | None = None,
    unscored: Collection[str] = (),
    detected: Sequence[EvaluatedClass] = (),
) -> CaseResult:
    """Score label maps that were read from the files of ``pair``. Distances are in mm by the spacing of the reference.

    A prediction that stores the reference's grid in another orientation is brought to it. Classes named in ``unscored``
    count as empty in both: the case is not annotated for them, and no mean may hold them. Detections are those of the
    ``detected`` classes, which the probabilities beside the prediction have. Raises `AutosegError` where the two grids differ.
    """
    reference = on_whole_grid(reference, prediction.geometry)
    issues = grid_issues(pair.prediction, prediction.geometry, pair.reference, reference.geometry)
    if issues:
        raise AutosegError(*issues, headline=f"case {pair.case_id} cannot be scored")
    predicted = align_label_map(prediction, reference.geometry)
    metrics = compare(
        predicted,
        reference.array,
        classes=classes,
        ignore=ignore,
        spacing_mm=reference.geometry.spacing_mm,
        tolerance_mm=tolerance_mm,
        lesions=lesions,
    )
    return CaseResult(
        case_id=pair.case_id,
        metrics={
            each.key: _unscored(metrics[each.name]) if each.name in unscored else metrics[each.name] for each in classes
        },
        prediction_file=str(pair.prediction),
        reference_file=str(pair.reference),
        measures=measure_classes(
            predicted,
            reference.array,
            [each for each in classes if each.name not in unscored],
            reference.geometry.spacing_mm,
            ignore,
        ),
        detections=_detections(pair, prediction.geometry, reference, detected, ignore, unscored) if detected else {},
    )


def _detections(
    pair: EvaluatedPair,
    grid: Geometry,
    reference: LabelMap,
    classes: Sequence[EvaluatedClass],
    ignore: int | None,
    unscored: Collection[str],
) -> dict[str, Detections]:
    array = align_label_map(reference, grid)
    masks = {each.key: None if each.name in unscored else np.isin(array, each.values) for each in classes}
    ignored = None if ignore is None else array == ignore
    return detections_in(probabilities_beside(pair.prediction), masks, ignored=ignored)


def on_whole_grid(reference: LabelMap, grid: Geometry) -> LabelMap:
    """A reference that may be a part of its image's grid on the whole of it; `AutosegError` where it is no part."""
    return LabelMap(array=align_label_map(reference, grid), geometry=grid) if reference.may_be_part else reference


def grid_issues(
    prediction_file: Path, prediction: Geometry, reference_file: Path, reference: Geometry
) -> tuple[Issue, ...]:
    """One issue for each property in which the grids differ once both are in canonical axes.

    The tolerances are those of the dataset check: label maps that may be trained on can be scored.
    """
    fix = f"resample it to the grid of {reference_file}, or predict the case again from the image of that reference"
    return tuple(
        Issue(code="evaluation.grid_mismatch", where=str(prediction_file), message=f"has {each}", fix=fix)
        for each in oriented_differences(prediction, reference)
    )


def _unscored(metrics: ClassMetrics) -> ClassMetrics:
    """Scores of a class that counts as empty in both label maps."""
    scores: dict[str, object] = dict.fromkeys(("dice", "iou", "hausdorff95_mm", "surface_dice"))
    if metrics.lesions_found is not None:
        scores |= dict.fromkeys(("lesions_found", "lesions_missed", "lesions_false_positive"), 0)
    counts = dict.fromkeys(("tp", "fp", "fn", "n_pred", "n_ref", "volume_prediction_ml", "volume_reference_ml"), 0)
    total = metrics.tp + metrics.fp + metrics.fn + metrics.tn
    return ClassMetrics.model_validate(scores | counts | {"tn": total})


# --- training cases of a dataset ---


def score_cases(
    dataset: DatasetDescription,
    predictions: Sequence[Predicted],
    tracker: Tracker | None = None,
    *,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    classes: Sequence[EvaluatedClass] = (),
    lesions: LesionRule | None = None,
    patients: Mapping[str, str | None] | None = None,
    num_workers: int = 1,
    keep_in: Path | None = None,
    detection: bool = False,
) -> Summary:
    """Summary of predictions, in that order; classes that a case is not annotated for have no score.

    ``classes`` of the values in its files take the place of its own, and of unions. ``patients`` of cases are those of the
    dataset unless given. Scores of cases are cached in the folder ``keep_in``, so that an interrupted call can resume, but
    no detections. Raises `AutosegError`
    that names each case whose files cannot be read or do not fit each other.
    """
    own = evaluated_classes(dataset.labels, dataset.file_values)
    unions = () if classes else united_classes(dataset.unions, own)
    scored = (*(classes or own), *unions)
    ignore = None if dataset.labels.ignore is None else dataset.file_values[dataset.labels.ignore]
    score = partial(
        _score,
        coding=dataset.coding,
        classes=scored,
        ignore=ignore,
        tolerance_mm=tolerance_mm,
        lesions=lesions,
        detected=(classes or own) if detection else (),
    )
    cached = score if keep_in is None else Cached(function=score, kind=CaseResult, state=_state, folder=keep_in)
    voxels = [prod(read_header(path).geometry.shape) for _, path in predictions]
    results = run_jobs(
        cached,
        [(labelled_case(dataset, case_id), path) for case_id, path in predictions],
        name=lambda scored: f"case {scored[0].case_id}",
        num_workers=workers_worth_starting(num_workers, VOXEL_S * len(scored) * sum(voxels)),
        need_bytes=VOXEL_BYTES * max(voxels, default=0),
        tracker=tracker,
    )
    of = {case.case_id: case.group for case in dataset.training} if patients is None else patients
    results = [each.model_copy(update={"patient": of.get(each.case_id)}) for each in results]
    return summarize(results, classes or own, ignore=ignore, tolerance_mm=tolerance_mm, unions=unions, lesions=lesions)


def _score(
    scored: tuple[Case, Path],
    *,
    coding: LabelCoding,
    classes: Sequence[EvaluatedClass],
    ignore: int | None,
    tolerance_mm: float,
    lesions: LesionRule | None,
    detected: Sequence[EvaluatedClass],
) -> CaseResult:
    case, path = scored
    prediction, reference = read_label_map(path), _labels(case, coding)
    pair = EvaluatedPair(case_id=case.case_id, prediction=path, reference=Path(case.label_files[0]))
    return score_case(
        pair,
        prediction,
        reference,
        classes=classes,
        ignore=ignore,
        tolerance_mm=tolerance_mm,
        lesions=lesions,
        unscored=_not_annotated(case, classes, coding),
        detected=detected,
    )


def _not_annotated(case: Case, classes: Sequence[EvaluatedClass], coding: LabelCoding) -> frozenset[str]:
    """Classes, and unions, with a value of a class that the case is not annotated for."""
    if case.annotated is None:
        return frozenset()
    own = {each.name: each.values for each in evaluated_classes(coding.labels, coding.file_values)}
    known = {value for name, values in own.items() if name in case.annotated for value in values}
    return frozenset(
        each.name
        for each in classes
        if (each.name not in case.annotated if own.get(each.name) == each.values else not known >= {*each.values})
    )


def _state(scored: tuple[Case, Path]) -> object:
    """By the content of the prediction: a call that resumes writes it again, with another time."""
    case, path = scored
    predicted = [read_content(file, None).sha256 for file in files_of(path)]
    return scored, predicted, file_states(case.label_files)


def labelled_case(dataset: DatasetDescription, case_id: str) -> Case:
    """A training case. Raises `AutosegError` where there is none of that name."""
    for case in dataset.training:
        if case.case_id == case_id and case.is_labelled:
            return case
    message, fix = f"has no label map in {dataset.root}", "run autoseg check on that folder"
    raise AutosegError(
        Issue(code="evaluation.no_reference", where=f"case {case_id}", message=message, fix=fix, case=case_id)
    )


def reference_labels(dataset: DatasetDescription, case_id: str) -> LabelMap:
    """The user's labels of a training case, with the values of the files; masks of classes on the grid of their image."""
    return _labels(labelled_case(dataset, case_id), dataset.coding)


def _labels(case: Case, coding: LabelCoding) -> LabelMap:
    onto = read_header(case.image_paths[0]).geometry if case.masks else None
    return read_file_labels(case, coding, onto=onto)

"""The detection curve of a folder of predictions with probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from autoseg.compute.executor import run_jobs
from autoseg.evaluation.lesions import DetectionCurve, Detections, detection_curve, find_detections
from autoseg.evaluation.metrics import EvaluatedClass
from autoseg.evaluation.table import CaseResult, Summary
from autoseg.imaging.orientation import align_label_map
from autoseg.imaging.readers import image_stem, read_label_map
from autoseg.issues import AutosegError, Issue
from autoseg.tracking.progress import Reporter


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Detections of each class of one case."""

    of_class: tuple[Detections, ...]


def detection_curves(summary: Summary, *, num_workers: int, reporter: Reporter) -> dict[str, DetectionCurve]:
    """The curve of each class that has lesions, by `EvaluatedClass.key`.

    The probabilities of a case are those that ``autoseg predict --probabilities`` writes beside its label map, ``CASE.npz``. Raises
    `AutosegError` that names every case without them.
    """
    cases = summary.metric_per_case
    fix = "predict again with --probabilities"
    missing = [
        Issue(code="evaluation.no_probabilities", where=str(path), message="does not exist", fix=fix)
        for path in map(_probabilities, cases)
        if not path.is_file()
    ]
    if missing:
        raise AutosegError(*missing, headline="a detection curve needs the probabilities of every case")
    if stacks := [case.reference_file for case in cases if Path(case.reference_file).is_dir()]:
        message, fix = (
            "is a folder of pictures, and only the image tells their order",
            "pass a folder of label maps as references",
        )
        raise AutosegError(Issue(code="evaluation.stack", where=stacks[0], message=message, fix=fix))
    detect = partial(_detect, classes=summary.classes)
    with reporter.track("Detecting", len(cases)) as tracker:
        found = run_jobs(
            detect, cases, name=lambda case: f"case {case.case_id}", num_workers=num_workers, tracker=tracker
        )
    curves = {each.key: detection_curve([case.of_class[i] for case in found]) for i, each in enumerate(summary.classes)}
    return {key: curve for key, curve in curves.items() if curve is not None}


def _probabilities(case: CaseResult) -> Path:
    label_map = Path(case.prediction_file)
    return label_map.with_name(f"{image_stem(label_map)}.npz")


def _detect(case: CaseResult, *, classes: Sequence[EvaluatedClass]) -> _Found:
    path = _probabilities(case)
    with np.load(path) as stored:
        probabilities = stored["probabilities"]
    grid = read_label_map(Path(case.prediction_file)).geometry
    reference = align_label_map(read_label_map(Path(case.reference_file)), grid)
    first = len(probabilities) - len(classes)  # 1: the background
    if first not in (0, 1) or probabilities.shape[1:] != reference.shape:
        message = f"has shape {probabilities.shape}, which does not fit {len(classes)} classes on {reference.shape}"
        fix = "evaluate label maps and probabilities that were predicted together"
        raise AutosegError(Issue(code="evaluation.no_probabilities", where=str(path), message=message, fix=fix))
    return _Found(
        of_class=tuple(
            find_detections(probabilities[first + i], np.isin(reference, each.values)) for i, each in enumerate(classes)
        )
    )

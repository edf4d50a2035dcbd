"""The detection curve of a folder of predictions with probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from autoseg.evaluation.lesions import DetectionCurve, Detections, detection_curve, find_detections
from autoseg.evaluation.surfaces import BoolArray
from autoseg.evaluation.table import Summary
from autoseg.imaging.readers import image_stem
from autoseg.issues import AutosegError, Issue


def detection_curves(summary: Summary) -> dict[str, DetectionCurve]:
    """The curve of each class that has lesions, by `EvaluatedClass.key`, over the cases that are annotated for it.

    Cases must have been scored with their detections.
    """
    curves = {}
    for each in summary.classes:
        found = [case.detections[each.key] for case in summary.metric_per_case if each.key in case.detections]
        if (curve := detection_curve(found)) is not None:
            curves[each.key] = curve
    return curves


def probabilities_beside(label_map: Path) -> Path:
    """``CASE.npz``, which ``autoseg predict --probabilities`` writes beside the label map of a case."""
    return label_map.with_name(f"{image_stem(label_map)}.npz")


def require_probabilities(files: Iterable[Path]) -> None:
    """Raise `AutosegError` that names each of the files that is not there."""
    fix = "predict again with --probabilities"
    missing = [
        Issue(code="evaluation.no_probabilities", where=str(path), message="does not exist", fix=fix)
        for path in files
        if not path.is_file()
    ]
    if missing:
        raise AutosegError(*missing, headline="a detection curve needs the probabilities of every case")


def detections_in(
    path: Path, references: Mapping[str, BoolArray | None], *, ignored: BoolArray | None = None
) -> dict[str, Detections]:
    """Candidates in the probabilities (K, Z, Y, X) in ``path``, by the keys of ``references``.

    ``references`` has (Z, Y, X) for every class of the probabilities, in their order, on the grid of the prediction; None
    where the case is not annotated for the class, which then has no detections. Nothing is detected in ``ignored`` voxels (Z, Y, X).
    Raises `AutosegError` where shapes differ.
    """
    with np.load(path) as stored:
        probabilities = stored["probabilities"]
    first = len(probabilities) - len(references)  # 1: the background
    shapes = {each.shape for each in references.values() if each is not None}
    if first not in (0, 1) or shapes - {probabilities.shape[1:]}:
        shown = " or ".join(map(str, shapes)) or "any grid"
        message = f"has shape {probabilities.shape}, which does not fit {len(references)} classes on {shown}"
        fix = "evaluate label maps and probabilities that were predicted together"
        raise AutosegError(Issue(code="evaluation.no_probabilities", where=str(path), message=message, fix=fix))
    if ignored is not None:
        probabilities = np.where(ignored, 0, probabilities)
    return {
        key: find_detections(probabilities[first + i], reference)
        for i, (key, reference) in enumerate(references.items())
        if reference is not None
    }

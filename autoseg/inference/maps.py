"""Maps beside label maps: calibrated probabilities, entropy and disagreement of folds, as NIfTI files for the usual viewers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from autoseg.evaluation.calibration import CalibratedVolumes, Calibration
from autoseg.imaging.readers import write_shares
from autoseg.inference.predictor import Prediction
from autoseg.storage.atomic import write_text
from planners import Labels

FOLDER = "_maps"
"""In a folder of predictions: what looks for label maps passes by names that begin so."""
NAMES = "maps.json"
MapName = Literal["probabilities", "entropy", "disagreement"]


def map_name(case_id: str, kind: MapName) -> str:
    """File name of a map."""
    return f"{case_id}_{kind}.nii.gz"


def output_names(labels: Labels) -> tuple[str, ...]:
    """What the volumes of probabilities are, in their order."""
    return (*([] if labels.has_regions else ["background"]), *(each.name for each in labels.classes))


def write_names(folder: Path, labels: Labels, calibration: Calibration | None) -> None:
    """Write ``maps.json``: the order and names of the volumes, how they were calibrated, what the other maps are."""
    about = {
        "volumes": list(output_names(labels)),
        "axis": 3,
        "calibrated": calibration is not None,
        "temperatures": None if calibration is None else list(calibration.temperatures),
        "note": "label maps are decided by probabilities before calibration, which may change which class is the largest",
        "entropy": "0: sure, 1: nothing is known; of calibrated probabilities",
        "disagreement": "share of the networks of folds that decide otherwise than most of them",
    }
    path, text = folder / NAMES, json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def write_all_maps(
    folder: Path,
    case_id: str,
    prediction: Prediction,
    maps: Sequence[MapName],
    labels: Labels,
    calibration: Calibration | None,
    source: Path | None,
) -> None:
    """Write the ``maps`` of a prediction, each for itself: probabilities class by class along the fourth axis, calibrated if that is known."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in maps:
        path = folder / map_name(case_id, kind)
        if kind == "probabilities":
            volumes = prediction.probabilities
            if calibration is not None:
                volumes = CalibratedVolumes(volumes, calibration.temperatures, has_regions=labels.has_regions)
            number = volumes.shape[0]
            write_shares(path, (volumes[k] for k in range(number)), number, prediction.geometry, source)
        elif prediction.doubt is not None:
            write_shares(path, [getattr(prediction.doubt, kind)], 1, prediction.geometry, source)

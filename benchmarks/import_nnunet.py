"""A trained nnU-Net model, imported, beside nnU-Net's own predictions of the same images: Dice of every case and class.

    python benchmarks/import_nnunet.py MODEL_FOLDER IMAGES PREDICTIONS [--fold 0 --fold 1] [--device cpu] [--out FILE.json]

MODEL_FOLDER is the folder TRAINER__PLANS__CONFIGURATION, IMAGES what nnU-Net predicted from, PREDICTIONS the label maps that
it wrote with the same folds (``nnUNetv2_predict_from_modelfolder -i IMAGES -o PREDICTIONS -m MODEL_FOLDER -f 0 1``). A class
that is in neither label map of a case has no Dice there. Nothing of nnU-Net needs to be installed here.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from autoseg.evaluation.metrics import dice_coefficient, evaluated_classes
from autoseg.imaging.readers import image_stem, read_label_map
from autoseg.inference.input_cases import find_input_cases
from autoseg.inference.predictor import Predictor
from autoseg.interop.nnunet_model import import_nnunet

ASKED = 0.998


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--fold", type=int, action="append")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def compare(predictor: Predictor, images: Path, predictions: Path) -> dict[str, dict[str, float | int | None]]:
    """By case: voxels, how many of them differ, and the Dice of each class between the two label maps."""
    dataset = predictor.model.dataset
    classes = evaluated_classes(dataset.labels, dataset.file_values)
    theirs = {image_stem(path): path for path in predictions.iterdir() if path.name.endswith(dataset.file_ending)}
    cases = {}
    for case in find_input_cases(images, predictor.model.dataset).cases:
        if case.case_id not in theirs:
            continue
        ours, reference = predictor.predict_image(case.images).labels, read_label_map(theirs[case.case_id]).array
        scores: dict[str, float | int | None] = {"voxels": ours.size, "different": int((ours != reference).sum())}
        for each in classes:
            a, b = np.isin(ours, each.values), np.isin(reference, each.values)
            scores[each.name] = dice_coefficient(int((a & b).sum()), int(a.sum()), int(b.sum()))
        cases[case.case_id] = scores
        print(
            f"{case.case_id:<24}"
            + "".join(f"{name} {value if value is None else round(value, 5)}  " for name, value in scores.items())
        )
    return cases


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        bundle = import_nnunet(arguments.model, Path(folder) / "model.zip", folds=arguments.fold, say=print)
        predictor = Predictor.load(bundle, device=arguments.device)
    start = time.monotonic()
    cases = compare(predictor, arguments.images, arguments.predictions)
    dices = [
        value
        for scores in cases.values()
        for name, value in scores.items()
        if name not in ("voxels", "different") and value is not None
    ]
    result = {
        "model": arguments.model.name,
        "dataset": predictor.model.dataset.name,
        "labels": [label.name for label in predictor.model.plan.labels.classes],
        "cases": len(cases),
        "dices": len(dices),
        "mean_dice": float(np.mean(dices)) if dices else None,
        "lowest_dice": min(dices, default=None),
        "voxels": sum(int(scores["voxels"] or 0) for scores in cases.values()),
        "different_voxels": sum(int(scores["different"] or 0) for scores in cases.values()),
        "seconds": round(time.monotonic() - start, 1),
        "date": date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "device": arguments.device,
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps({**result, "by_case": cases}, indent=1) + "\n")
    if not dices or np.mean(dices) < ASKED:
        raise SystemExit(f"mean Dice below {ASKED}")


if __name__ == "__main__":
    main()

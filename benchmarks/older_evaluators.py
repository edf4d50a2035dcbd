"""Answers of official evaluators that need older packages, for ``metric_agreement.py``.

    PYTHON-WITH-OLDER-PACKAGES benchmarks/older_evaluators.py FOLDER --official DIR

between its steps ``describe`` and ``compare``. Needs numpy below 2, pandas below 2, scipy, nibabel, connected-components-3d, medpy,
SimpleITK and scikit-image, and checkouts in DIR: ``BraTS-2024-Metrics`` (rachitsaluja/BraTS-2024-Metrics, 9a0ab9c),
``TopCoW_Eval_Metrics`` (CoWBenchmark/TopCoW_Eval_Metrics) and ``ToothFairy`` (AImageLab-zip/ToothFairy). CrossMoDA's script calls medpy, and so does this.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from medpy.metric import binary
from metric_agreement import FOLDERS, prepare_pandas

BRATS_2024 = {
    "brats2024-gli": ("metrics_GLI", "BraTS-GLI"),
    "brats2024-men-rt": ("metrics_MEN_RT", "BraTS-MEN-RT"),
    "brats2024-met": ("metrics_MET", "BraTS-MET"),
    "brats2024-ped": ("metrics_PED", "BraTS-PED"),
    "brats2024-ssa": ("metrics_SSA", "BraTS-SSA"),
}
CROSSMODA = {"schwannoma": 1, "cochlea": 2}
PACKAGES = ("numpy", "pandas", "scipy", "scikit-image", "medpy", "connected-components-3d")


def pairs_in(folder: Path) -> list[tuple[str, Path, Path]]:
    names = sorted(path.name for path in (folder / "reference").glob("*.nii.gz"))
    return [
        (name, (folder / "prediction" / name).absolute(), (folder / "reference" / name).absolute()) for name in names
    ]


def brats(folder: Path, checkout: Path, module: str, challenge: str) -> dict[str, Any]:
    sys.path.insert(0, str(checkout.absolute()))
    evaluate = importlib.import_module(module).get_LesionWiseResults
    found: dict[str, Any] = {}
    for name, prediction, reference in pairs_in(folder):
        with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
            rows, _ = evaluate(str(prediction), str(reference), challenge)
        found[name] = {
            row["Labels"].lower(): {
                "lesion_dice": float(row["LesionWise_Score_Dice"]),
                "lesion_hausdorff95_mm": float(row["LesionWise_Score_HD95"]),
                "counts": [int(row["Num_TP"]), int(row["Num_FN"]), int(row["Num_FP"])],
            }
            for _, row in rows.iterrows()
        }
    return found


def topcow(folder: Path, checkout: Path) -> dict[str, Any]:
    sys.path.insert(0, str(checkout.absolute()))
    seg = "topcow24_eval.metrics.seg_metrics"
    line = importlib.import_module(f"{seg}.clDice").clDice
    dice = importlib.import_module(f"{seg}.cls_avg_dice").dice_coefficient_all_classes
    betti = importlib.import_module(f"{seg}.cls_avg_b0").betti_number_error_all_classes
    distance = importlib.import_module(f"{seg}.cls_avg_hd95").hd95_all_classes
    found: dict[str, Any] = {}
    for name, *paths in pairs_in(folder):
        prediction, reference = (sitk.ReadImage(str(path), sitk.sitkUInt8) for path in paths)
        arrays = [sitk.GetArrayFromImage(image) for image in (prediction, reference)]
        with contextlib.redirect_stdout(io.StringIO()):
            tables = [of(gt=reference, pred=prediction) for of in (dice, betti, distance)]
            merged = line(v_p_pred=arrays[0], v_l_gt=arrays[1])
        found[name] = {
            value: {
                "dice": float(tables[0][value]["Dice"]),
                "absolute_lesion_count_error": float(tables[1][value]["B0err"]),
                "contour_hausdorff95_mm": float(tables[2][value]["HD95"]),
            }
            for value in tables[0]
            if value.isdecimal()
        }
        if any(array.any() for array in arrays):
            found[name]["merged"] = {"centreline_dice": float(merged)}
    return found


def toothfairy(folder: Path, checkout: Path) -> dict[str, Any]:
    """Its functions alone: the module imports a loader that is not needed."""
    tree = ast.parse((checkout / "ToothFairy2" / "evaluation" / "evaluation.py").read_text())
    wanted = [
        part
        for part in tree.body
        if getattr(part, "name", "") in ("compute_binary_dice", "compute_binary_hd95")
        or (isinstance(part, ast.Assign) and getattr(part.targets[0], "id", "") == "LABELS")
    ]
    space: dict[str, Any] = {"np": np, "binary": binary}
    exec(compile(ast.Module(wanted, []), "evaluation.py", "exec"), space)
    found: dict[str, Any] = {}
    for name, *paths in pairs_in(folder):
        prediction, reference = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths)
        found[name] = {
            str(value): {
                "dice": float(space["compute_binary_dice"](prediction == value, reference == value)),
                "border_hausdorff95_voxels": float(
                    space["compute_binary_hd95"](prediction == value, reference == value)
                ),
            }
            for value in space["LABELS"].values()
        }
    return found


def crossmoda(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, *paths in pairs_in(folder):
        images = [sitk.ReadImage(str(path)) for path in paths]
        prediction, reference = (sitk.GetArrayFromImage(image) for image in images)
        found[name] = {}
        for each, value in CROSSMODA.items():
            masks = prediction == value, reference == value
            if masks[0].any() and masks[1].any():
                spacing = images[1].GetSpacing()[::-1]
                ways = [binary.asd(*of, voxelspacing=spacing) for of in (masks, masks[::-1])]  # assd until medpy 0.4
                found[name][each] = {"dice": float(binary.dc(*masks)), "assd_mm": float(np.mean(ways))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--official", type=Path, default=Path("official"))
    given = parser.parse_args()
    prepare_pandas()
    checkouts, place = given.official, given.folder
    answers = {
        **{n: brats(place / FOLDERS[n], checkouts / "BraTS-2024-Metrics", *of) for n, of in BRATS_2024.items()},
        "topcow24": topcow(place / FOLDERS["topcow24"], checkouts / "TopCoW_Eval_Metrics"),
        "toothfairy2": toothfairy(place / FOLDERS["toothfairy2"], checkouts / "ToothFairy"),
        "crossmoda22": crossmoda(place / FOLDERS["crossmoda22"]),
    }
    (place / "answers_older.json").write_text(json.dumps(answers, indent=1))
    (place / "versions_older.json").write_text(json.dumps({name: version(name) for name in PACKAGES}))


if __name__ == "__main__":
    main()

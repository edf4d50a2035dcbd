"""Plans of random datasets beside the reference planner's: how many are equal in every field.

    python benchmarks/planner_agreement.py describe FOLDER [--datasets 260] [--seed 7]
    PYTHON-WITH-NNUNETV2 benchmarks/planner_agreement.py answer FOLDER
    python benchmarks/planner_agreement.py compare FOLDER

``describe`` draws fingerprints of many kinds, ``answer`` has the reference's own planner plan them and needs nnunetv2, torch
and SimpleITK only, ``compare`` plans them with ``strict_reference`` and ends with an error if one differs. What is compared
is everything in the reference's plans file but its name; spacings to a relative 1e-9, because numpy may order the
additions inside a percentile differently.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

NAME = "Dataset001_Random"
CASES = (1, 2, 3, 5, 8, 20, 40, 100, 260, 1000)
CHANNELS = (
    ("MRI",),
    ("CT",),
    ("ct",),
    ("CT", "PET"),
    ("R", "G", "B"),
    ("T1", "T2", "FLAIR", "T1ce"),
    ("noNorm", "MRI"),
    ("rescale_to_0_1",),
    ("zscore", "rgb_to_0_1"),
)
PLANNERS = (
    "ExperimentPlanner",
    "ExperimentPlanner",
    "nnUNetPlannerResEncM",
    "nnUNetPlannerResEncL",
    "nnUNetPlannerResEncXL",
)
MEMORY_GB = (None, None, None, 1, 2, 4, 6, 11, 16, 24, 48, 80)
RELATIVE_SIZES = (1.0, 0.9, 0.75, 0.7499, 0.3)


def describe(folder: Path, datasets: int, seed: int) -> None:
    """Write ``datasets`` descriptions: ``dataset.json``, ``fingerprint.json`` and ``options.json``, a folder each."""
    draw = random.Random(seed)
    for index in range(datasets):
        kind = list(KINDS)[index % len(KINDS)]
        target = folder / f"{index:04d}_{kind}"
        target.mkdir(parents=True, exist_ok=True)
        for name, document in zip(("dataset", "fingerprint", "options"), _random_dataset(draw, kind), strict=True):
            (target / f"{name}.json").write_text(json.dumps(document))


def _between(draw: random.Random, low: float, high: float) -> float:
    """A number that is as likely to lie between 1 and 2 as between 10 and 20."""
    return math.exp(draw.uniform(math.log(low), math.log(high)))


def _isotropic(draw: random.Random) -> tuple[list[float], list[float]]:
    spacing = _between(draw, 0.3, 3)
    return [spacing * _between(draw, 0.9, 1.1) for _ in range(3)], [_between(draw, 20, 500) for _ in range(3)]


def _thick_slices(draw: random.Random) -> tuple[list[float], list[float]]:
    spacing = _between(draw, 0.3, 2)
    shape = [_between(draw, 4, 120), _between(draw, 80, 600), _between(draw, 80, 600)]
    return [spacing * _between(draw, 2, 12), spacing, spacing * _between(draw, 0.9, 1.1)], shape


def _thin_slices(draw: random.Random) -> tuple[list[float], list[float]]:
    spacing = _between(draw, 0.3, 2)
    return [spacing * _between(draw, 0.1, 0.5), spacing, spacing], [
        _between(draw, low, 10 * low) for low in (60, 30, 30)
    ]


def _two_coarse_axes(draw: random.Random) -> tuple[list[float], list[float]]:
    fine = _between(draw, 0.3, 1)
    spacing = [fine * _between(draw, 2, 8), fine * _between(draw, 2, 8), fine]
    return spacing, [_between(draw, 20, 150), _between(draw, 20, 150), _between(draw, 100, 600)]


def _photographs(draw: random.Random) -> tuple[list[float], list[float]]:
    return [999.0, 1.0, 1.0], [1, _between(draw, 16, 3000), _between(draw, 16, 3000)]


def _scaled_2d(draw: random.Random) -> tuple[list[float], list[float]]:
    spacing = [999.0, _between(draw, 0.1, 2), _between(draw, 0.1, 2)]
    return spacing, [1, _between(draw, 30, 1200), _between(draw, 30, 1200)]


def _few_slices(draw: random.Random) -> tuple[list[float], list[float]]:
    return [draw.choice([1.0, 3.0, 5.0]), 1.0, 1.0], [
        draw.choice([1, 2, 3]),
        _between(draw, 30, 400),
        _between(draw, 30, 400),
    ]


def _tiny(draw: random.Random) -> tuple[list[float], list[float]]:
    return [_between(draw, 0.5, 2) for _ in range(3)], [_between(draw, 4, 24) for _ in range(3)]


def _huge(draw: random.Random) -> tuple[list[float], list[float]]:
    return [_between(draw, 0.2, 1) for _ in range(3)], [_between(draw, 400, 1600) for _ in range(3)]


def _any_order(draw: random.Random) -> tuple[list[float], list[float]]:
    fine = _between(draw, 0.3, 2)
    spacing = [fine, fine * _between(draw, 2.5, 30), fine]
    draw.shuffle(spacing)
    return spacing, [_between(draw, 20, 400) for _ in range(3)]


def _ties(draw: random.Random) -> tuple[list[float], list[float]]:
    spacing = [draw.choice([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]) for _ in range(3)]
    return spacing, [draw.choice([8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 512]) for _ in range(3)]


def _anything(draw: random.Random) -> tuple[list[float], list[float]]:
    return [_between(draw, 0.05, 20) for _ in range(3)], [_between(draw, 3, 900) for _ in range(3)]


KINDS = {
    "isotropic": _isotropic,
    "thick_slices": _thick_slices,
    "thin_slices": _thin_slices,
    "two_coarse_axes": _two_coarse_axes,
    "photographs": _photographs,
    "scaled_2d": _scaled_2d,
    "few_slices": _few_slices,
    "tiny": _tiny,
    "huge": _huge,
    "any_order": _any_order,
    "ties": _ties,
    "anything": _anything,
}


def _random_dataset(draw: random.Random, kind: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    spacing, shape = KINDS[kind](draw)
    cases, spread, channels = draw.choice(CASES), 1 + draw.choice([0, 0, 0.02, 0.3, 1]), draw.choice(CHANNELS)
    varies = [not (length == 1 or mm == 999) for length, mm in zip(shape, spacing, strict=True)]

    def vary(value: float, axis: int) -> float:
        return value * _between(draw, 1 / spread, spread) if varies[axis] else value

    classes = draw.choice([1, 2, 3, 13, 50])
    labels: dict[str, Any] = {"background": 0} | {f"class{value}": value for value in range(1, classes + 1)}
    dataset: dict[str, Any] = {"numTraining": cases, "file_ending": ".nii.gz"}
    if classes > 1 and draw.random() < 0.15:
        labels = {"background": 0, "whole": list(range(1, classes + 1)), "part": [classes]}
        dataset["regions_class_order"] = [1, classes]
    elif draw.random() < 0.1:
        labels["ignore"] = classes + 1
    dataset |= {"labels": labels, "channel_names": {str(index): name for index, name in enumerate(channels)}}
    statistics = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")
    fingerprint = {
        "spacings": [[round(vary(mm, axis), 6) for axis, mm in enumerate(spacing)] for _ in range(cases)],
        "shapes_after_crop": [
            [max(1, int(vary(length, axis))) for axis, length in enumerate(shape)] for _ in range(cases)
        ],
        "foreground_intensity_properties_per_channel": {
            str(index): {name: draw.uniform(0, 100) for name in statistics} for index in range(len(channels))
        },
        "median_relative_size_after_cropping": draw.choice(RELATIVE_SIZES),
    }
    options = {
        "planner": draw.choice(PLANNERS),
        "memory_gb": draw.choice(MEMORY_GB),
        "target_spacing_mm": [round(mm * _between(draw, 0.5, 2), 4) for mm in spacing]
        if draw.random() < 0.15
        else None,
    }
    return dataset, fingerprint, options


def answer(folder: Path) -> None:
    """Have the reference planner plan what has no ``answer.json`` yet; one that cannot be planned keeps its error."""
    with tempfile.TemporaryDirectory() as work:
        planners = _reference_planners(Path(work))
        for target in sorted(path for path in folder.iterdir() if not (path / "answer.json").exists()):
            try:
                found = _reference_plan(planners, Path(work), target)
            except Exception as error:
                found = {"error": f"{type(error).__name__}: {error}"}
            (target / "answer.json").write_text(json.dumps(found))
            print(target.name, found.get("error", "planned"), flush=True)


def _reference_planners(work: Path) -> dict[str, Any]:
    """By name, the planners of nnunetv2, which takes its folders from the environment when it is imported."""
    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir()
        os.environ[f"nnUNet_{name}"] = str(work / name)
    import torch
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as default
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
        residual_encoder_unet_planners as residual,
    )

    found = {name: getattr(residual, name, None) or getattr(default, name) for name in set(PLANNERS)}
    # The reference builds each network that it considers only to count its feature maps: no memory for its weights.
    torch.set_default_device("meta")
    return found


def _reference_plan(planners: dict[str, Any], work: Path, target: Path) -> dict[str, Any]:
    import numpy as np
    import SimpleITK

    for folder in (work / "raw" / NAME, work / "preprocessed" / NAME):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    images, labels = (work / "raw" / NAME / name for name in ("imagesTr", "labelsTr"))
    images.mkdir()
    labels.mkdir()
    shutil.copy(target / "dataset.json", work / "raw" / NAME / "dataset.json")
    shutil.copy(target / "fingerprint.json", work / "preprocessed" / NAME / "dataset_fingerprint.json")
    # It asks a reader whether it can read one image, and looks at nothing in it.
    voxels = SimpleITK.GetImageFromArray(np.zeros((4, 4, 4), np.float32))
    for channel in range(len(json.loads((target / "dataset.json").read_text())["channel_names"])):
        SimpleITK.WriteImage(voxels, images / f"case_{channel:04d}.nii.gz")
    SimpleITK.WriteImage(voxels, labels / "case.nii.gz")
    options = json.loads((target / "options.json").read_text())
    arguments = {
        "gpu_memory_target_in_gb": options["memory_gb"],
        "overwrite_target_spacing": options["target_spacing_mm"],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        planner = planners[options["planner"]](NAME, **{name: value for name, value in arguments.items() if value})
        planner.plan_experiment()
    return json.loads((work / "preprocessed" / NAME / f"{planner.plans_identifier}.json").read_text())


def compare(folder: Path) -> int:
    """Print what differs, and how many plans are equal of those the reference could make; 1 if one differs."""
    results: Counter[str] = Counter()
    for target in sorted(path for path in folder.iterdir() if (path / "answer.json").exists()):
        reference = json.loads((target / "answer.json").read_text())
        if "error" in reference:
            results["not planned by the reference"] += 1
            print(
                f"{target.name}: the reference failed with {reference['error']}; here: {_plan_or_error(target)!s:.200}"
            )
            continue
        differences = list(_differences("", _plan_or_error(target), reference))
        results["different" if differences else "equal"] += 1
        for each in differences[:5]:
            print(f"{target.name}: {each}")
    print(", ".join(f"{count} {name}" for name, count in sorted(results.items())))
    return int(results["different"] > 0)


def _plan_or_error(target: Path) -> Any:
    from planners import PlanningError, nnunet_plans, plan_dataset, read_nnunet_dataset
    from planners.interop.nnunet_plans import PLANNERS as NAMES

    options = json.loads((target / "options.json").read_text())
    dataset = read_nnunet_dataset((target / "fingerprint.json").read_bytes(), (target / "dataset.json").read_bytes())
    spacing = options["target_spacing_mm"]
    try:
        plan = plan_dataset(
            dataset.fingerprint,
            preset=next(preset for preset, (planner, _) in NAMES.items() if planner == options["planner"]),
            memory_gb=options["memory_gb"],
            target_spacing_mm=None if spacing is None else tuple(spacing),
            strict_reference=True,
        )
    except PlanningError as error:
        return str(error)
    return json.loads(json.dumps(nnunet_plans(plan, file_ending=dataset.file_ending, reader=dataset.reader)))


def _differences(where: str, ours: Any, reference: Any) -> list[str]:
    if isinstance(reference, dict) and isinstance(ours, dict):
        keys = (ours.keys() | reference.keys()) - ({"dataset_name", "plans_name"} if not where else set())
        return [
            each for key in sorted(keys) for each in _differences(f"{where}/{key}", ours.get(key), reference.get(key))
        ]
    same = ours == reference
    if "spacing" in where and isinstance(reference, list) and isinstance(ours, list) and len(ours) == len(reference):
        same = all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(ours, reference, strict=True))
    return [] if same else [f"{where}: {ours!s:.200}, by the reference {reference!s:.200}"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("describe", "answer", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--datasets", type=int, default=260)
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.step == "describe":
        describe(arguments.folder, arguments.datasets, arguments.seed)
    elif arguments.step == "answer":
        answer(arguments.folder)
    else:
        return compare(arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

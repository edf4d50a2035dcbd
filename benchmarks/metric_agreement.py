"""Challenge metrics beside the challenges' own code, on random label maps.

    python benchmarks/metric_agreement.py describe FOLDER [--cases 40] [--seed 7]
    PYTHON-WITH-PANOPTICA benchmarks/metric_agreement.py answer FOLDER --official DIR
    python benchmarks/metric_agreement.py compare FOLDER
    python benchmarks/metric_agreement.py keep FOLDER --golden tests/golden/challenge_metrics

``describe`` writes pairs of label maps with few and many lesions, empty and half empty ones. ``answer`` needs brats-evaluation (which
brings panoptica and cc3d), batchgenerators, surface-distance, SimpleITK, nibabel and pandas, and checkouts of the official
evaluators in DIR: ``kits23`` (neheller/kits23), ``FLARE`` (JunMa11/FLARE) and ``BraTS-2023-Metrics`` (rachitsaluja/BraTS-2023-Metrics).
``older_evaluators.py`` gives the answers of evaluators that need older packages: BraTS 2024, TopCoW, ToothFairy2, CrossMoDA.
``compare`` scores the same files with ``autoseg evaluate --as`` and ends with an error where a figure differs. ``keep`` writes label
maps, answers and versions as golden files, with which tests compare.
"""

from __future__ import annotations

import argparse
import json
import math
import runpy
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (40, 36, 20)
SPACING = (1.0, 1.0, 1.0)
"""BraTS' grid; KiTS and FLARE have another one."""
OTHER_SPACING = (0.8, 0.8, 2.5)
CLOSE = 1e-6
ROUNDED = 5.1e-5
"""FLARE rounds to four digits."""
SINGLE = 1e-5
"""TopCoW's distances are single precision."""
BRATS = {"brats2023-gli": "BraTS-GLI", "brats2023-men": "BraTS-MEN", "brats2023-met": "BraTS-MET"}
BRATS_2025 = {"brats2025-goat": "GoAT", "brats2025-gli": "gli", "brats2025-ped": "ped", "brats2025-men-rt": "MenRT"}
METASTASES = "brats2025-met"
KINDS = {
    "kits": (3, OTHER_SPACING),
    "flare": (14, OTHER_SPACING),
    "brats3": (3, SPACING),
    "brats4": (4, SPACING),
    "brats1": (1, SPACING),
    "vessels": (13, OTHER_SPACING),
}
"""Folder -> highest value and spacing."""
PARTS = ("prediction", "reference")
FOLDERS = {
    "kits23": "kits",
    "flare23": "flare",
    **dict.fromkeys([*BRATS, "brats2025-goat"], "brats3"),
    **dict.fromkeys(["brats2025-gli", "brats2025-ped", METASTASES], "brats4"),
    "brats2025-men-rt": "brats1",
    "brats2024-gli": "brats4",
    "brats2024-ped": "brats4",
    "brats2024-met": "brats3",
    "brats2024-ssa": "brats3",
    "brats2024-men-rt": "brats1",
    **dict.fromkeys(["topcow24", "toothfairy2", "crossmoda22"], "vessels"),
}


# --- label maps ---


def describe(folder: Path, cases: int, seed: int) -> None:
    """Pairs of each of `KINDS`."""
    import nibabel as nib

    for kind, (values, spacing) in KINDS.items():
        for number in range(cases):
            random = np.random.default_rng((seed, values, number))
            reference = _label_map(random, values)
            prediction = _predicted(random, reference, values)
            for name, array in (("reference", reference), ("prediction", prediction)):
                array[array == 13] = 15 if kind == "vessels" else 13  # TopCoW has no 13
                place = folder / kind / name
                place.mkdir(parents=True, exist_ok=True)
                affine = np.diag([*spacing, 1.0])
                nib.save(nib.Nifti1Image(array.astype(np.uint8), affine), place / f"case_{number:05d}.nii.gz")


def _label_map(random: np.random.Generator, values: int) -> np.ndarray:
    """Balls of random sizes; now and then empty."""
    array = np.zeros(SHAPE, np.uint8)
    grid = np.indices(SHAPE)
    for _ in range(int(random.choice([0, 1, 3, 6, 10]))):
        center = [random.uniform(2, size - 2) for size in SHAPE]
        radius = random.uniform(1, 6)
        ball = sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True)) < radius**2
        array[ball] = random.integers(1, values + 1)
    return array


def _predicted(random: np.random.Generator, reference: np.ndarray, values: int) -> np.ndarray:
    """The reference shifted by a voxel, some values lost, some false positive lesions added; now and then nothing."""
    kind = random.integers(8)
    if kind == 0:
        return np.zeros_like(reference)
    prediction = np.roll(reference, int(random.integers(0, 3)), axis=int(random.integers(3)))
    prediction[prediction == random.integers(1, values + 1)] = random.integers(0, values + 1)
    extra = _label_map(random, values) if kind in (1, 2) else np.zeros_like(reference)
    return np.where(extra > 0, extra, prediction).astype(np.uint8)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "reference").glob("*.nii.gz"))


# --- the official evaluators ---


def answer(folder: Path, official: Path) -> None:
    """``answers.json`` in ``folder``: challenge -> case -> class -> metric, as the official code gives it."""
    answers = {
        "kits23": _kits(folder / "kits", official / "kits23"),
        "flare23": _flare(folder / "flare", official / "FLARE"),
        **{n: _brats(folder / FOLDERS[n], official / "BraTS-2023-Metrics", own) for n, own in BRATS.items()},
        **{n: _panoptica(folder / FOLDERS[n], own) for n, own in BRATS_2025.items()},
        METASTASES: _metastases(folder / FOLDERS[METASTASES]),
    }
    (folder / "answers.json").write_text(json.dumps(answers, indent=1))
    packages = ("panoptica", "brats-evaluation", "surface-distance", "numpy", "scipy")
    (folder / "versions.json").write_text(json.dumps({name: version(name) for name in packages}))


def _kits(folder: Path, checkout: Path) -> dict[str, Any]:
    sys.path.insert(0, str(checkout))
    from kits23.evaluation.metrics import compute_metrics_for_case

    titles = ("kidney and masses", "masses", "tumour")
    found = {}
    for name in _names(folder):
        scores = compute_metrics_for_case(str(folder / "prediction" / name), str(folder / "reference" / name))
        rows = zip(titles, scores.tolist(), strict=True)
        found[name] = {title: {"dice": dice, "surface_dice": surface} for title, (dice, surface) in rows}
    return found


def _flare(folder: Path, checkout: Path) -> dict[str, Any]:
    """FLARE's online scorer, one case a call: it writes means only. ``t`` is a clock that the published file does not define."""

    class Clock:
        total_elapsed = staticmethod(lambda: 0.0)

        def __call__(self) -> float:
            return 0.0

    sys.path.insert(0, str(checkout / "FLARE23"))
    short = [
        "Liver",
        "RK",
        "Spleen",
        "Pancreas",
        "Aorta",
        "IVC",
        "RAG",
        "LAG",
        "Gallbladder",
        "Esophagus",
        "Stomach",
        "Duodenum",
        "LK",
        "Lesion",
    ]
    found = {}
    for name in _names(folder):
        work = folder / "one"
        for part, place in (("res", "prediction"), ("ref", "reference")):
            (work / part).mkdir(parents=True, exist_ok=True)
            (work / part / name).write_bytes((folder / place / name).read_bytes())
        arguments, sys.argv = sys.argv, ["score", str(work), str(work / "out")]
        try:
            runpy.run_path(str(checkout / "FLARE23" / "FLARE23_DSC_NSD_Eval.py"), init_globals={"t": Clock()})
        finally:
            sys.argv = arguments
            for part in ("res", "ref"):
                (work / part / name).unlink()
        lines = dict(line.split(": ") for line in (work / "out" / "scores.txt").read_text().splitlines())
        found[name] = {
            str(value): {"dice": float(lines[f"{each}_DSC"]), "surface_dice": float(lines[f"{each}_NSD"])}
            for value, each in enumerate(short, 1)
        }
    return found


def prepare_pandas() -> None:
    """What the evaluators of BraTS use of numpy 1 and of an old pandas 1, where it is gone."""
    import pandas as pd

    if not hasattr(np, "Inf"):
        np.Inf = np.inf
    if not hasattr(pd.DataFrame, "append"):
        pd.DataFrame.append = lambda self, other: pd.concat([self, other])
    replace = pd.DataFrame.replace

    def replace_numbers(self: Any, *arguments: Any, **options: Any) -> Any:
        lists = [each for each in self.columns if self[each].map(lambda cell: isinstance(cell, np.ndarray)).any()]
        found = replace(self if options else self.drop(columns=lists), *arguments, **options)
        return found if options else found.join(self[lists])

    pd.DataFrame.replace = replace_numbers  # lists may not be in cells


def _brats(folder: Path, checkout: Path, challenge: str) -> dict[str, Any]:
    sys.path.insert(0, str(checkout))
    prepare_pandas()
    for module in [each for each in sys.modules if each.split(".")[0] == "surface_distance"]:
        del sys.modules[module]  # it brings an older one of its own
    from metrics import get_LesionWiseResults

    titles = {"WT": "whole tumour", "TC": "tumour core", "ET": "enhancing tumour"}
    found = {}
    for name in _names(folder):
        rows = get_LesionWiseResults(str(folder / "prediction" / name), str(folder / "reference" / name), challenge)
        found[name] = {
            titles[row["Labels"]]: {
                "lesion_dice": float(row["LesionWise_Score_Dice"]),
                "lesion_hausdorff95_mm": float(row["LesionWise_Score_HD95"]),
                "dice": float(row["Legacy_Dice"]),
                "hausdorff95_mm": float(row["Legacy_HD95"]),
                "counts": [int(row["Num_TP"]), int(row["Num_FN"]), int(row["Num_FP"])],
            }
            for _, row in rows.iterrows()
        }
    return found


def _panoptica(folder: Path, name_of_config: str) -> dict[str, Any]:
    from brats_evaluation import config_path
    from panoptica import Panoptica_Evaluator

    evaluator = Panoptica_Evaluator.load_from_config(str(config_path(name_of_config)))
    found = {}
    for name in _names(folder):
        groups = evaluator.evaluate(str(folder / "prediction" / name), str(folder / "reference" / name))
        found[name] = {}
        for group, result in groups.items():
            scores = result.to_dict(True)
            found[name][group] = {
                "lesion_dice": _finite(scores.get("sq_dsc")),
                "lesion_hausdorff95_mm": _finite(scores.get("sq_hd95")),
                "lesion_f1": _finite(scores.get("rq")),
                "dice": _finite(scores.get("global_bin_dsc")),
                "counts": [int(scores[each]) for each in ("tp", "fn", "fp")],
            }
    return found


def _metastases(folder: Path) -> dict[str, Any]:
    """Large lesions of the metastases task: at least 27 mm³, found from a Dice of 0.2 on."""
    import pandas as pd
    from brats_evaluation import config_path, evaluate_single_exam, parse_mets_results
    from panoptica import Panoptica_Evaluator

    evaluator = Panoptica_Evaluator.load_from_config(str(config_path("mets")))
    names = _names(folder)
    exams = [
        evaluate_single_exam(str(folder / "prediction" / name), str(folder / "reference" / name), name, evaluator)
        for name in names
    ]
    raw, table = folder / "mets.json", folder / "mets.csv"
    raw.write_text(json.dumps({"metrics": exams, "missings": []}))
    parse_mets_results(str(raw), 27, 0.2, str(table))
    rows = pd.read_csv(table).set_index("subject_id")
    return {
        name: {
            group: {
                "lesion_dice": _finite(rows.loc[name, f"lesionwise_dsc_mean_{group}"]),
                "lesion_hausdorff95_mm": _finite(rows.loc[name, f"lesionwise_hd95_mean_{group}"]),
                "lesion_f1": _finite(rows.loc[name, f"large_instance_f1_{group}"]),
            }
            for group in ("et", "rc", "tc", "wt")
        }
        for name in names
        if name in rows.index
    }


def _finite(value: float | None) -> float | None:
    """A number, ``inf`` as the largest distance of BraTS 2025, not a number as none."""
    if value is None or math.isnan(value):
        return None
    return 373.0 if math.isinf(value) else float(value)


# --- ours ---


def compare(folder: Path) -> int:
    """Print the largest difference of each challenge and metric; the number of those that differ."""
    answers: dict[str, Any] = {}
    for kind in ("", "_older"):
        if (folder / f"answers{kind}.json").is_file():
            answers |= json.loads((folder / f"answers{kind}.json").read_text())
            print("official:", json.loads((folder / f"versions{kind}.json").read_text()))
    failures = 0
    for name, cases in answers.items():
        largest, values = differences(name, cases, folder / FOLDERS[name])
        failures += sum(difference > limit_of(name) for difference in largest.values())
        listed = ", ".join(f"{metric} {difference:.1e}" for metric, difference in largest.items())
        print(f"{name}: {len(cases)} cases, {values} values, largest difference {listed}")
    return failures


def limit_of(challenge: str) -> float:
    """Difference from which on scores are others than those of the challenge."""
    return {"flare23": ROUNDED, "topcow24": SINGLE}.get(challenge, CLOSE)


def differences(name: str, cases: dict[str, Any], place: Path) -> tuple[dict[str, float], int]:
    """Largest difference of each metric from the official answers for the label maps in ``place``, and the number of values."""
    import autoseg
    from autoseg.evaluation.challenge import challenge_scores, find_challenge

    record = find_challenge(name)
    summary = autoseg.evaluate(place / "prediction", place / "reference", challenge=name, workers=1)
    scores = challenge_scores(summary, record).per_case
    keys = {each.name: each.key for each in summary.classes}
    metrics = {case.case_id: case.metrics for case in summary.metric_per_case}
    largest: dict[str, float] = {}
    values = 0
    for case, classes in cases.items():
        case_id = case.removesuffix(".nii.gz")
        for each, own in _named(record, classes).items():
            counted = metrics[case_id][keys[each]]
            ours: dict[str, Any] = dict(scores[case_id][each])
            ours["counts"] = [counted.lesions_found, counted.lesions_missed, counted.lesions_false_positive]
            for metric, value in own.items():
                if metric in ours:
                    largest[metric] = max(largest.get(metric, 0.0), _difference(ours[metric], value))
                    values += 1
    return largest, values


# --- golden files ---


def keep(folder: Path, golden: Path) -> None:
    """``label_maps.npz`` (kind -> (cases, 2, Z, Y, X), predictions first) and ``answers.json`` in ``golden``."""
    import nibabel as nib

    golden.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for kind in KINDS:
        files = [[folder / kind / part / name for part in PARTS] for name in _names(folder / kind)]
        arrays[kind] = np.array([[np.asarray(nib.load(file).dataobj, np.uint8).T for file in pair] for pair in files])
    np.savez_compressed(golden / "label_maps.npz", **arrays)
    made = [
        json.loads((folder / f"{what}{kind}.json").read_text())
        for what in ("versions", "answers")
        for kind in ("", "_older")
    ]
    text = json.dumps({"versions": made[:2], "answers": made[2] | made[3]}, separators=(",", ":"))
    (golden / "answers.json").write_text(text.replace('},"case_', '},\n"case_').replace('}},"', '}},\n"') + "\n")


def lay_out(golden: Path, kind: str, folder: Path) -> Path:
    """Write the kept label maps of one of `KINDS` as ``describe`` does; returns their folder."""
    import nibabel as nib

    affine = np.diag([*KINDS[kind][1], 1.0])
    with np.load(golden / "label_maps.npz") as stored:
        arrays = stored[kind]
    for number, pair in enumerate(arrays):
        for part, array in zip(PARTS, pair, strict=True):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array.T, affine), folder / kind / part / f"case_{number:05d}.nii.gz")
    return folder / kind


def _named(record: Any, classes: dict[str, Any]) -> dict[str, Any]:
    """By the record's names: official ones, or values, or short names in its order."""
    own = record.scoring.classes
    by_value = {str(values[0]): name for name, values in own.items() if len(values) == 1}
    return {
        each if each in own else by_value.get(each, SHORT.get(each, each)): value for each, value in classes.items()
    }


SHORT = {
    "et": "enhancing tumour",
    "tc": "tumour core",
    "wt": "whole tumour",
    "snfh": "oedema",
    "netc": "non-enhancing core",
    "rc": "resection cavity",
    "cc": "cystic component",
    "ed": "oedema",
    "gtv": "gross tumour volume",
}
"""Groups of brats-evaluation."""


def _difference(ours: Any, theirs: Any) -> float:
    if isinstance(theirs, list):
        return float(max(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else math.inf
    return float(abs(ours - theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("describe", "answer", "compare", "keep"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--official", type=Path, default=Path("official"))
    parser.add_argument("--golden", type=Path, default=Path("tests/golden/challenge_metrics"))
    options = parser.parse_args()
    if options.step == "describe":
        describe(options.folder, options.cases, options.seed)
    elif options.step == "answer":
        answer(options.folder, options.official)
    elif options.step == "keep":
        keep(options.folder, options.golden)
    else:
        raise SystemExit(1 if compare(options.folder) else 0)


if __name__ == "__main__":
    main()

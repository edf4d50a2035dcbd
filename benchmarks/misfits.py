"""How often the check of label maps against their images is wrong among few cases, and how often it is right.

    python benchmarks/misfits.py DATASET [--correct 60] [--damaged 12] [--sizes 5 6 8] [--seed 0] [--out FILE.md]

Draws random sets of cases and runs the whole check on each, as `autoseg check` does: first with their own label maps, where every
`labels.misfit` is a false alarm, then with the label map of one case damaged in one of several ways, where the issue about
that case is a hit. Nothing is written into the dataset; damaged label maps lie in a temporary folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.compute.executor import available_cores
from autoseg.data.checks import check_dataset
from autoseg.data.dataset import Case, DatasetDescription
from autoseg.data.discovery import discover_dataset
from autoseg.imaging.readers import read_label_map, write_label_map
from autoseg.storage.atomic import write_text
from autoseg.tracking.progress import SilentReporter

Labelled = NDArray[np.integer]


def moved(labels: Labelled, _: Labelled) -> Labelled:
    """A quarter of the image forward, with background behind it."""
    step = labels.shape[1] // 4
    return np.pad(labels, [(0, 0), (step, 0), (0, 0)])[:, : labels.shape[1]]


def emptied(labels: Labelled, _: Labelled) -> Labelled:
    """Without what lies in the upper half of its own extent."""
    rows = np.flatnonzero(labels.any((1, 2)))
    return np.where(np.arange(len(labels))[:, None, None] > rows.mean(), 0, labels)


def exchanged(labels: Labelled, other: Labelled) -> Labelled:
    """That of another case, scaled to this one's grid."""
    picked = [
        np.linspace(0, old - 1, new).round().astype(int) for old, new in zip(other.shape, labels.shape, strict=True)
    ]
    scaled: Labelled = other[np.ix_(*picked)]
    return scaled


DAMAGES: dict[str, Callable[[Labelled, Labelled], Labelled]] = {
    "flipped along z": lambda labels, _: labels[::-1],
    "flipped along y": lambda labels, _: labels[:, ::-1],
    "moved": moved,
    "upper half emptied": emptied,
    "label map of another case": exchanged,
}


def alarms(dataset: DatasetDescription, cases: list[Case], cache: Path) -> set[str]:
    """Cases whose label map the check says not to fit, among ``cases`` alone."""
    chosen = dataset.model_copy(update={"training": tuple(cases)})
    issues = check_dataset(chosen, num_workers=available_cores(), reporter=SilentReporter(), keep_in=cache)
    return {issue.case for issue in issues if issue.code == "labels.misfit" and issue.case is not None}


def damage(case: Case, other: Case, how: Callable[[Labelled, Labelled], Labelled], folder: Path) -> Case:
    """``case`` with a damaged copy of its label map in ``folder``."""
    folder.mkdir(parents=True)
    own, foreign = (read_label_map(Path(each.label or "")) for each in (case, other))
    path = folder / f"{case.case_id}.nii.gz"
    write_label_map(path, np.ascontiguousarray(how(own.array, foreign.array)), own.geometry)
    return case.model_copy(update={"label": str(path)})


def measure(dataset: DatasetDescription, size: int, correct: int, damaged: int, seed: int) -> list[str]:
    """One cell for each kind of sets of ``size`` cases: how many of them got the issue."""
    rng = np.random.default_rng([seed, size])

    def draw() -> list[Case]:
        return [dataset.training[k] for k in rng.choice(len(dataset.training), size, replace=False)]

    with tempfile.TemporaryDirectory() as name:
        cache = Path(name) / "cache"
        false = sum(bool(alarms(dataset, draw(), cache)) for _ in range(correct))
        cells = [f"{false} of {correct}"]
        for kind, how in DAMAGES.items():
            hits = 0
            for turn in range(damaged):
                first, *rest = draw()
                wrong = damage(first, rest[0], how, Path(name) / kind / str(turn))
                hits += first.case_id in alarms(dataset, [wrong, *rest], cache)
            cells.append(f"{hits} of {damaged}")
    return cells


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--correct", type=int, default=60, help="sets of each size with their own label maps")
    parser.add_argument("--damaged", type=int, default=12, help="sets of each size and damage")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 6, 8], help="cases of a set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    dataset = discover_dataset(options.dataset)
    titles = ["cases", "alarms, label maps correct", *(f"found: {kind}" for kind in DAMAGES)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for size in options.sizes:
        cells = measure(dataset, size, options.correct, options.damaged, options.seed)
        lines.append(f"| {size} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if options.out is not None:
        write_text(options.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

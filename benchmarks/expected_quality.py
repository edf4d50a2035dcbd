"""Ranges of Dice that are expected of unseen cases, and calibration, of finished runs: do they hold where their truth is known?

    python benchmarks/expected_quality.py RUN [RUN ...]

Of each run: for each class the cases whose out-of-fold Dice is in the range that models and limits of other cases give (a tenth of them left out at
a time, and one fold at a time, whose network is another one), beside what chance allows at the nominal share; how wide the ranges are; how much of the order of the cases they tell
(Spearman's correlation of middle and Dice); the calibration error before and after. The table goes to ``results/expected_quality.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from autoseg.evaluation.expected_quality import NOMINAL, PARTS, allowed_by_chance, fit_model, range_of
from autoseg.inference.kept import load_sample
from autoseg.inference.model import open_model
from autoseg.stages.run import Run
from autoseg.stages.schedule import read_prepared
from autoseg.stages.select import validated_cases
from autoseg.storage.atomic import write_text

RESULTS = Path(__file__).resolve().parent / "results" / "expected_quality.md"
Values = NDArray[np.float64]


def tables(run: Run) -> Iterator[tuple[str, Values, Values, Values]]:
    """Of each class: features (n, F), Dice (n,) and fold (n,) of the cases in which it is predicted."""
    prepared, summary = read_prepared(run), run.summary
    if summary is None:
        raise SystemExit(f"{run.folder.root}: nothing was cross-validated")
    (name,) = run.selection.members
    cases = validated_cases(run, prepared, [name])
    fold_of = {case: fold for fold in prepared.schedule.folds for case in prepared.splits.folds[fold].val}
    dice = summary.dice_by_case()
    features = {case: load_sample(each.folders[name], case)[2] for case, each in cases.items()}
    for each in summary.classes:
        own = [c for c in cases if features[c][each.name].volume_ml > 0 and dice[c][each.name] is not None]
        rows = np.array([features[c][each.name].row for c in own], np.float64)
        yield each.name, rows, np.array([dice[c][each.name] for c in own], float), np.array([fold_of[c] for c in own])


def held(rows: Values, y: Values, part: Values) -> tuple[int, int, float, Values]:
    """Cases in their range and all, the median width of ranges, and their middles; ``part`` is left out of what gives its ranges."""
    inside, widths, middles = 0, [], np.full(len(y), np.nan)
    for k in np.unique(part):
        model = fit_model(rows[part != k], y[part != k])
        if model is None:
            continue
        for i in np.flatnonzero(part == k):
            found = range_of(model, rows[i])
            low, high = max(0.0, found.low), min(1.0, found.high)
            inside += int(low <= y[i] <= high)
            widths.append(high - low)
            middles[i] = found.middle
    return inside, len(widths), float(np.median(widths)) if widths else float("nan"), middles


def describe(path: Path) -> Iterator[str]:
    """Rows of the tables of a run."""
    run = Run.open(path)
    calibration = open_model(run.folder.model).description.calibration
    for name, rows, y, folds in tables(run):
        parts = (np.arange(len(y)) * 7 + 3) % PARTS
        found = []
        for part in (parts, folds):
            inside, number, width, middles = held(rows, y, part)
            low, high = allowed_by_chance(number)
            share = f"{inside}/{number} ({100 * inside / max(1, number):.0f} %)"
            found += [f"{share}, {low} to {high}: {'holds' if low <= inside <= high else '**does not hold**'}"]
        known = np.isfinite(middles)
        order = spearmanr(middles[known], y[known]).statistic if known.sum() > 2 else float("nan")
        errors = (
            ""
            if calibration is None
            else f"{calibration.before[name].average:.3f} → {calibration.after[name].average:.3f}"
        )
        yield f"| {run.dataset.name} | {name} | {y.mean():.3f} | {' | '.join(found)} | {width:.3f} | {order:.2f} | {errors} |"


def main() -> None:
    """Write the table of the runs that are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    commands = [f"- `autoseg run {path.name}: {' '.join(words(path))}`" for path in arguments.runs]
    lines = [
        "# Expected quality and calibration",
        "",
        f"`python benchmarks/expected_quality.py {' '.join(path.name for path in arguments.runs)}`, {date.today().isoformat()}, two shared cores (x86-64). Nominal: "
        f"{100 * NOMINAL:g} % of the cases in their range. After each count, what chance allows with 95 %. Short trainings, with a fixed number of steps:",
        "",
        *commands,
        "",
        "| dataset | class | mean Dice | in their range, a tenth left out at a time | a fold left out at a time | median width | order (Spearman) | calibration error (ACE) |",
        "|---|---|---|---|---|---|---|---|",
        *(line for path in arguments.runs for line in describe(path)),
    ]
    write_text(RESULTS, "\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


def words(path: Path) -> list[str]:
    """The options of a run."""
    from autoseg.settings import as_arguments

    return list(as_arguments(Run.open(path).settings, deciding=True))


if __name__ == "__main__":
    main()

"""How much of what a long budget gives a short one gives: the same fold, trained as each budget's schedule says.

    python benchmarks/budgets.py WORK DATASET [DATASET …] [--budgets 10m 1h] [--fold 0] [--seed 0]

Each is an `autoseg train` with that budget for a whole run, of which one fold is trained and validated, so the long budget
costs a fifth of its time. Its cases are the same for all budgets. Trainings in WORK that are finished are not done again; a
whole run of the same budget may lie there. The table goes to ``results/budgets.md``.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

from autoseg.data.dataset import DatasetDescription
from autoseg.data.splits import Splits
from autoseg.evaluation.scoring import score_cases
from autoseg.inference.predictions import prediction_path
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, write_text
from planners import Schedule, Training

RESULTS = Path(__file__).resolve().parent / "results" / "budgets.md"


def train(dataset: Path, folder: Path, budget: str, arguments: argparse.Namespace) -> Schedule:
    """One fold, by the schedule of that budget."""
    command = [
        sys.executable,
        "-c",
        "from autoseg.cli import main; main()",
        "train",
        str(dataset),
        "--out",
        str(folder),
    ]
    wishes = ["--budget", budget, "--fold", str(arguments.fold), "--seed", str(arguments.seed), "--device", "cpu"]
    subprocess.run([*command, *wishes], check=True)
    return load_document(Schedule, RunFolder(folder).schedule)


def dice(folder: Path, training: Training, fold: int) -> tuple[int, float]:
    """Number of cases of the fold, and the mean over classes of their mean Dice."""
    run = RunFolder(folder)
    dataset = load_document(DatasetDescription, run.dataset)
    cases = load_document(Splits, run.splits).folds[fold].val
    validation = run.validation(training.configuration, fold)
    summary = score_cases(dataset, [(case_id, prediction_path(validation, case_id, dataset)) for case_id in cases])
    return len(cases), summary.mean_dice or 0.0


def main() -> None:
    """Train what is missing and keep the table, which grows line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--budgets", nargs="+", default=["10m", "1h"])
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lines = [
        "# Budgets compared",
        "",
        f"`python benchmarks/budgets.py WORK {' '.join(each.name for each in arguments.datasets)} --budgets "
        f"{' '.join(arguments.budgets)} --fold {arguments.fold} --seed {arguments.seed}`, {date.today().isoformat()}, "
        f"{platform.machine()}, CPU. One fold of five, the same cases for every budget; the share is that of the Dice of the "
        "longest budget.",
        "",
        "| dataset | budget of the whole run | configuration | features | steps a fold | cases | mean foreground Dice | share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dataset in arguments.datasets:
        rows: list[tuple[str, float]] = []
        for budget in arguments.budgets:
            folder = arguments.work / f"{dataset.name}_{budget}"
            for trained in train(dataset, folder, budget, arguments).trainings:
                cases, found = dice(folder, trained, arguments.fold)
                told = f"{trained.configuration} | {trained.base_features} | {trained.num_steps} | {cases}"
                rows.append((f"| {dataset.name} | {budget} | {told} | {found:.3f}", found))
        lines += [f"{row} | {found / rows[-1][1]:.1%} |" for row, found in rows]
        write_text(RESULTS, "\n".join(lines) + "\n")
        sys.stdout.write("\n".join(lines[-len(rows) :]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Plain U-Net, residual U-Net and V-Net on the same datasets, for the same time: Dice, steps, seconds.

    python benchmarks/topologies.py WORK DATASET [DATASET …] [--budget 150s] [--folds 2] [--seed 0]

Each is a whole `autoseg run` with that preset, so width, batch and rate are those that the schedule's rule gives for the
time. Runs in WORK that are finished are not done again. The table goes to ``results/topologies.md``.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from autoseg.evaluation.table import read_summary
from autoseg.pipeline import RunRecord
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, write_text
from planners import Schedule

RESULTS = Path(__file__).resolve().parent / "results" / "topologies.md"
PRESETS = {"default": "plain U-Net", "resenc_m": "residual U-Net", "vnet": "V-Net"}


def run(dataset: Path, preset: str, folder: Path, arguments: argparse.Namespace) -> str:
    """One line of the table."""
    command = [sys.executable, "-c", "from autoseg.cli import main; main()", "run", str(dataset), "--out", str(folder)]
    wishes = ["--preset", preset, "--budget", arguments.budget, "--seed", str(arguments.seed), "--device", "cpu"]
    if arguments.folds:
        wishes += ["--folds", str(arguments.folds)]
    subprocess.run([*command, *wishes], check=True)
    finished = RunFolder(folder)
    schedule, record = load_document(Schedule, finished.schedule), load_document(RunRecord, finished.record)
    summary = read_summary(finished.cross_validation / "summary.json")
    trained = schedule.trainings[0]
    return (
        f"| {dataset.name} | {PRESETS[preset]} | {trained.configuration} | {trained.base_features} | {trained.batch_size} "
        f"| {schedule.num_folds} x {trained.num_steps} | {record.seconds:.0f} | {summary.mean_dice:.3f} |"
    )


def main() -> None:
    """Run what is missing and keep the table, which grows line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--budget", default="150s")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lines = [
        "# Topologies compared",
        "",
        f"`python benchmarks/topologies.py WORK {' '.join(each.name for each in arguments.datasets)} --budget {arguments.budget} "
        f"--folds {arguments.folds} --seed {arguments.seed}`, {date.today().isoformat()}, {platform.machine()}, CPU. "
        "Every case is predicted by a network that did not see it; one seed.",
        "",
        "| dataset | network | configuration | features | batch | steps | seconds, whole run | mean foreground Dice |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dataset in arguments.datasets:
        for preset in PRESETS:
            started = time.monotonic()
            lines.append(run(dataset, preset, arguments.work / f"{dataset.name}_{preset}", arguments))
            write_text(RESULTS, "\n".join(lines) + "\n")
            sys.stdout.write(f"{lines[-1]} ({time.monotonic() - started:.0f} s)\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

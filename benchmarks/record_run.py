"""Keep what a finished run reached: wall time, steps, cross-validated Dice, hardware, as one JSON file.

    autoseg run DATASET --out RUN --budget 20m --device cpu --seed 0
    python benchmarks/record_run.py RUN benchmarks/results/NAME.json [--unseen SUMMARY.json]

``--unseen`` adds the scores that ``autoseg evaluate`` gave for cases that the run never saw.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from autoseg.evaluation.table import class_statistics, read_summary
from autoseg.pipeline import RunRecord
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, write_text
from planners import Schedule


def scores(path: Path) -> dict[str, object]:
    """Mean, standard deviation and worst Dice of every class, and their mean."""
    summary = read_summary(path)
    table: dict[str, object] = {"cases": len(summary.metric_per_case), "mean_dice": summary.mean_dice}
    statistics = class_statistics(summary)[["mean", "sd", "worst"]].astype(object)
    return table | statistics.where(statistics.notna(), None).to_dict("index")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--unseen", type=Path)
    arguments = parser.parse_args()
    run = RunFolder(arguments.run)
    record, schedule = load_document(RunRecord, run.record), load_document(Schedule, run.schedule)
    result = {
        "command": f"autoseg run {Path(record.dataset).name} --budget {record.budget_s:.0f}s --device {schedule.conditions.device} --seed {record.seed}",
        "date": record.started[:10],
        "hardware": f"{record.device}, {record.processor}",
        "torch": record.packages["torch"],
        "wall_s": record.seconds,
        "state": record.state,
        "folds": schedule.num_folds,
        "trainings": [
            {
                key: getattr(t, key)
                for key in ("configuration", "base_features", "batch_size", "num_steps", "precision", "compiled")
            }
            for t in schedule.trainings
        ],
        "cross_validated": scores(run.cross_validation / "summary.json"),
    }
    if arguments.unseen is not None:
        result["unseen"] = scores(arguments.unseen)
    write_text(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

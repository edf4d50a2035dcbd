"""What chance does: one schedule with several seeds, and one of them twice.

    python benchmarks/seeds.py WORK DATASET [--budget 5m] [--seeds 0 1 2]

The first run measures the machine and makes the schedule, the others follow it, so that all train the same steps. The last
one repeats the first, and is compared with it byte for byte: weights, predictions, selection and tables. Runs in WORK that are
finished are not done again. The table goes to ``results/seeds.md``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

from crash import contents, differences

from autoseg.evaluation.table import Summary, read_summary
from autoseg.pipeline import RunRecord
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, write_text
from planners import Schedule

RESULTS = Path(__file__).resolve().parent / "results" / "seeds.md"


def run(dataset: Path, folder: Path, seed: int, *wishes: str) -> Summary:
    """A whole run, and the scores of all cases."""
    command = [sys.executable, "-c", "from autoseg.cli import main; main()", "run", str(dataset), "--out", str(folder)]
    subprocess.run([*command, "--device", "cpu", "--seed", str(seed), *wishes], check=True)
    return read_summary(RunFolder(folder).cross_validation / "summary.json")


def dices(summary: Summary) -> list[float]:
    """Mean over the foreground, then of each class."""
    found = [summary.mean_dice, *(summary.mean[each.key]["Dice"] for each in summary.classes)]
    return [float("nan") if value is None else value for value in found]


def line(name: str, values: list[float], rest: str) -> str:
    """A row of the table."""
    return f"| {name} | {' | '.join(f'{value:.4f}' for value in values)} | {rest} |"


def main() -> None:
    """Run what is missing and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--budget", default="5m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    first, *others = arguments.seeds
    folders = {seed: arguments.work / f"seed_{seed}" for seed in arguments.seeds}
    summaries = {first: run(arguments.dataset, folders[first], first, "--budget", arguments.budget)}
    given = ("--schedule", str(RunFolder(folders[first]).schedule))
    for seed in others:
        summaries[seed] = run(arguments.dataset, folders[seed], seed, *given)
    again = arguments.work / f"seed_{first}_again"
    run(arguments.dataset, again, first, *given)
    expected = contents(folders[first])
    different = differences(again, expected)

    schedule = load_document(Schedule, RunFolder(folders[first]).schedule)
    (training, *_) = schedule.trainings
    rows = [
        line(str(seed), dices(summary), f"{load_document(RunRecord, RunFolder(folders[seed]).record).seconds:.0f}")
        for seed, summary in summaries.items()
    ]
    columns = list(zip(*(dices(summary) for summary in summaries.values()), strict=True))
    rows.append(line("mean", [statistics.fmean(column) for column in columns], ""))
    rows.append(line("standard deviation", [statistics.stdev(column) for column in columns], ""))
    names = [each.name for each in summaries[first].classes]
    same = f"all {len(expected)} files are the same" if not different else f"**these differ: {', '.join(different)}**"
    page = [
        "# Seeds",
        "",
        f"`python benchmarks/seeds.py WORK {arguments.dataset.name} --budget {arguments.budget} --seeds "
        f"{' '.join(map(str, arguments.seeds))}`, {date.today().isoformat()}, {platform.machine()}, CPU: {schedule.num_folds} folds x "
        f"{training.num_steps} steps of {training.configuration} with {training.base_features} features, every case validated once.",
        "",
        f"Seed {first} twice, byte for byte (weights, predictions, preprocessed data, selection, splits, plan and tables): {same}.",
        "",
        f"| seed | mean foreground Dice | {' | '.join(names)} | seconds |",
        f"|---|{'---|' * (len(names) + 2)}",
        *rows,
    ]
    write_text(RESULTS, "\n".join(page) + "\n")
    sys.stdout.write("\n".join(page) + "\n")


if __name__ == "__main__":
    main()

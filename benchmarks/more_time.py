"""Whether more time for a finished run (``--budget +1h``) gives what the same total in one go does, in equal steps.

    python benchmarks/more_time.py WORK DATASET --steps 400 [--rates 0.25 0.5 1] [--folds 2] [--features 8]
        [--configuration 3d_fullres] [--seeds 0]

For each seed: a run of so many steps; for each rate a copy of it that goes on for as many steps, with that share of the first
peak rate; and a run of twice the steps in one go. Steps are set, so the machine's speed changes nothing; ``--budget +1h`` only
asks to go on. A run in WORK that is finished is not done again. The table goes to ``results/more_time.md``.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
from datetime import date
from pathlib import Path
from unittest import mock

import autoseg
from autoseg.storage.atomic import write_text
from planners.schedule import revising

RESULTS = Path(__file__).resolve().parent / "results" / "more_time.md"


def options(arguments: argparse.Namespace, seed: int, steps: int) -> dict[str, object]:
    """Options of a run of so many steps a fold."""
    changes = {"schedule.num_steps": steps, "schedule.base_features": arguments.features}
    given = {
        "configurations": arguments.configuration,
        "folds": arguments.folds,
        "seed": seed,
        "device": arguments.device,
    }
    given |= {"threads": arguments.threads, "work": arguments.work / "work"}
    return {**given, "set": {name: str(value) for name, value in changes.items()}, "budget": "1h", "anyway": True}


def dice(run: Path) -> float:
    """Mean foreground Dice of a finished run over all cases, before postprocessing."""
    return autoseg.Run.open(run).selection.dice_before_postprocessing or 0.0


def more(first: Path, run: Path, rate: float) -> None:
    """A copy of the run ``first`` that went on, with that share of its peak rate."""
    if not (run / "done").exists():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(first, run)
        with mock.patch.object(revising, "CONTINUED_RATE", rate):
            autoseg.train(run, budget="+1h")
        autoseg.select(run)
        (run / "done").touch()


def main() -> None:
    """Train what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rates", type=float, nargs="+", default=[revising.CONTINUED_RATE])
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    steps, name = arguments.steps, arguments.dataset.name
    rates = " ".join(f"{rate:g}" for rate in arguments.rates)
    lines = [
        "# More time for a run",
        "",
        f"{date.today().isoformat()}, {platform.machine()}, {arguments.device}. `python benchmarks/more_time.py WORK {name} --steps {steps} "
        f"--rates {rates} --folds {arguments.folds} --features {arguments.features} --configuration {arguments.configuration} --seeds {' '.join(map(str, arguments.seeds))}`. Mean "
        "foreground Dice in cross-validation; the difference is to twice the steps in one go.",
        "",
        "| seed | training | steps of a fold | Dice | difference |",
        "|---|---|---|---|---|",
    ]
    for seed in arguments.seeds:
        first, whole = (
            arguments.work / f"{name}_{arguments.configuration}_{count}_seed{seed}" for count in (steps, 2 * steps)
        )
        for run, count in ((first, steps), (whole, 2 * steps)):
            autoseg.select(arguments.dataset, run, **options(arguments, seed, count))
        goal = dice(whole)
        rows = [("once", f"{steps}", first), ("in one go", f"{2 * steps}", whole)]
        for rate in arguments.rates:
            run = first.with_name(f"{first.name}_more_{rate:g}")
            more(first, run, rate)
            rows.append((f"continued with {rate:g} of the peak rate", f"{steps} + {steps}", run))
        for told, count, run in rows:
            lines.append(f"| {seed} | {told} | {count} | {dice(run):.4f} | {dice(run) - goal:+.4f} |")
            sys.stdout.write(lines[-1] + "\n")
            sys.stdout.flush()
        write_text(RESULTS, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""Training steps in bfloat16 and float32 by turns, at several widths: which precision is faster on this processor.

Usage: ``python benchmarks/precisions.py DATASET --work DIR [--features 8 16 32] [--rounds 3] [--threads 2]``. The dataset is
prepared in DIR, unless that is done. Each entry is the mean of the settled steps of one turn, data included; turns alternate, since the
machine's speed changes. The table is kept in ``results/precisions.md``.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch

from autoseg.compute.device import fast_precision
from autoseg.pipeline import run_stages
from autoseg.stages.begin import begin_run
from autoseg.stages.trials import WARM_UP_STEPS, make_bench, settled_mean, time_steps
from autoseg.storage.atomic import write_text
from autoseg.training.preflight import kept_heap_for
from planners import Precision, trial_training

RESULTS = Path(__file__).resolve().parent / "results" / "precisions.md"
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float32")
LONGEST_S = 120.0
"""Most seconds of one turn; a longer one is cut short."""


def rows(arguments: argparse.Namespace) -> Iterator[str]:
    """A line of the table for each width."""
    run = run_stages(begin_run(arguments.dataset, arguments.work, {"device": "cpu"}), "preprocess")
    bench = make_bench(run, run.dataset, run.plan)
    configuration = run.plan.configurations[0]
    for features in arguments.features:
        found: dict[Precision, list[float]] = {each: [] for each in PRECISIONS}
        for _ in range(arguments.rounds):
            for precision, seconds in found.items():
                training = trial_training(
                    configuration, base_features=features, batch_size=arguments.batch_size, precision=precision
                )
                most = WARM_UP_STEPS + arguments.steps
                with kept_heap_for(configuration, training, run.device):
                    durations = time_steps(bench, configuration, training, longest_s=LONGEST_S, most=most)
                seconds.append(settled_mean(durations))
        texts = [", ".join(f"{value:.2f}" for value in seconds) for seconds in found.values()]
        ratio = sum(found["float32"]) / sum(found["bfloat16"])
        yield f"| {features} | {texts[0]} | {texts[1]} | {ratio:.2f} |"


def main() -> None:
    """Measure, print, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder of the prepared dataset")
    parser.add_argument("--features", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a turn, after the warm-up")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = [
        f"# Steps in bfloat16 and float32, {platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, {date.today().isoformat()}",
        "",
        f"`python benchmarks/precisions.py {arguments.dataset.name} --work DIR --features {' '.join(map(str, arguments.features))} "
        f"--rounds {arguments.rounds} --steps {arguments.steps}`: batch {arguments.batch_size}, seconds a step of each turn. This processor's short precision is {fast_precision(torch.device('cpu'))}.",
        "",
        "| features | bfloat16 | float32 | float32 / bfloat16 |",
        "|---|---|---|---|",
    ]
    for row in rows(arguments):
        lines.append(row)
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
        write_text(RESULTS, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

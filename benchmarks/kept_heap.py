"""Training steps on a CPU with freed memory kept, beside the same steps with glibc's own rule.

Usage: ``python benchmarks/kept_heap.py PLANS [--threads 2] [--rounds 2] [--sizes-gb 1.5 5]``; PLANS as in `memory.py`. Of each kind of
network the training
in bfloat16 whose estimate is nearest to each of some sizes takes turns with itself, each time in a process of its own that
does a few steps; compared are its last ones. The table is kept in ``results/kept_heap.md``.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from memory import HERE, Job, find_jobs, wait_for_memory

from planners import estimate_configuration_memory

SIZES_GB = (1.5, 5.0)
STEPS, SETTLED = 6, 3
"""Steps of a process, and how many of the last ones are timed: the first ones fill the heap."""
ROOM = 1.5
"""Half as much again as twice the estimate must be free: kept memory is at most 1.6 times, and two thirds may be taken."""


def choose(jobs: Sequence[Job], sizes_gb: Sequence[float]) -> list[Job]:
    """One of each kind of network and size, without those that stand for two sizes."""
    chosen = {}
    for kind in sorted({(job.configuration.network.family, job.configuration.dimensions) for job in jobs}):
        alike = [job for job in jobs if (job.configuration.network.family, job.configuration.dimensions) == kind]
        for size in sizes_gb:
            nearest = min(alike, key=lambda job: abs(job.estimate_bytes - size * 1e9))
            chosen[nearest.key] = nearest
    return list(chosen.values())


def held_bytes(job: Job) -> int:
    """What the product says this training takes where nothing freed is given back."""
    return estimate_configuration_memory(job.configuration, dtype=job.dtype, keeps_freed=True).training_bytes


def compare(job: Job, rounds: int) -> dict[str, Any]:
    """Medians over rounds of the settled seconds a step, and the highest peak, of both ways."""
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for _ in range(rounds):
        for keeps in found:
            wait_for_memory(ROOM * held_bytes(job) + 1e9)
            found[keeps].append(job.run(steps=STEPS, keeps_freed=keeps))
    seconds = {
        keeps: median(s for run in runs for s in run["step_seconds"][-SETTLED:]) for keeps, runs in found.items()
    }
    peaks = {keeps: max(max(run["peaks"]) for run in runs) / 1e9 for keeps, runs in found.items()}
    return {"seconds": seconds, "peaks": peaks}


def main() -> None:
    """Measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sizes-gb", type=float, nargs="+", default=SIZES_GB, help="estimates that are looked for")
    options = parser.parse_args()
    jobs = [
        job for job in find_jobs(options.plans, "cpu") if job.dtype == "bfloat16" and job.threads == options.threads
    ]
    lines = [
        f"# Steps with freed memory kept, {platform.machine()}, {options.threads} threads, torch {torch.__version__}, {date.today()}",
        "",
        "| training | network | s a step, given back | kept | times as fast | peak GB, given back | kept | kept, estimate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for job in choose(jobs, options.sizes_gb):
        found = compare(job, options.rounds)
        seconds, peaks = found["seconds"], found["peaks"]
        lines.append(
            f"| {job.name} | {job.configuration.network.family} | {seconds[False]:.2f} | {seconds[True]:.2f} "
            f"| {seconds[False] / seconds[True]:.2f} | {peaks[False]:.2f} | {peaks[True]:.2f} | {held_bytes(job) / 1e9:.2f} |"
        )
        print(lines[-1], flush=True)
        (HERE / "results" / "kept_heap.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

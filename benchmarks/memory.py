"""How much memory training steps really take, beside what `estimate_configuration_memory` says of them.

Usage: ``python benchmarks/memory.py PLANS [--limit-gb 12] [--device cuda] [--only WORD …] [--table-only]``. PLANS holds
one folder for each dataset, with the reference's ``fingerprint.json``, ``dataset.json``, ``options.json`` and
``plans_*.json``. Every network with its patch, batch and loss is measured once for each number format and thread count,
in a process of its own (`memory_step.py`), one at a time and only while the machine has the memory free. Results go
line by line into ``results/memory.jsonl``; what is there is not measured again. The table is kept in
``results/memory_DEVICE.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planners import (
    Configuration,
    Plan,
    estimate_configuration_memory,
    plan_dataset,
    read_nnunet_dataset,
    read_nnunet_plans,
)

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "memory.jsonl"
STEPS = 3
SHARE, LEAST_BYTES = 0.2, 300e6
"""An estimate holds where it is off by no more than the larger of this share of it and these bytes."""
RESERVE_BYTES = 1.5e9
"""Left free for the rest of the machine, beside half as much again as the estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training to be measured."""

    name: str
    """Dataset, plan and configuration that it stands for; others may share it."""
    plan: Plan
    configuration: Configuration
    dtype: Any
    threads: int
    device: Any

    @property
    def estimate_bytes(self) -> int:
        """What the product says this training takes."""
        return estimate_configuration_memory(self.configuration, dtype=self.dtype, device=self.device).training_bytes

    @property
    def key(self) -> str:
        """The same for trainings that take the same memory: names of configurations and datasets play no part."""
        chosen, labels = self.configuration, self.plan.labels
        parts = (
            chosen.network.model_dump_json(), chosen.patch_shape, chosen.batch_size, chosen.loss.model_dump_json(),
            chosen.deep_supervision, len(labels.values), labels.has_regions, labels.ignore is not None,
            self.dtype, self.threads, self.device,
        )  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def run(self, **settings: Any) -> dict[str, Any]:
        """Measure in a fresh process; ``settings`` are further ones of `memory_step.py`."""
        job = {
            "configuration": self.configuration.model_dump_json(),
            "labels": self.plan.labels.model_dump_json(),
            "dtype": self.dtype,
            "threads": self.threads,
            "device": self.device,
            "optimiser": "sgd",
            "steps": STEPS,
            **settings,
        }
        command = [sys.executable, str(HERE / "memory_step.py")]
        started = time.perf_counter()
        done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
        found = {"key": self.key, "name": self.name, "seconds": round(time.perf_counter() - started, 1)}
        if done.returncode:
            return {**found, "failed": done.returncode, "error": done.stderr[-500:]}
        return {**found, **json.loads(done.stdout)}


def find_jobs(folder: Path, device: str) -> list[Job]:
    """Every distinct training of the plans in a folder; kinds of network take turns, small ones of each first."""
    kinds: dict[tuple[Any, ...], list[Job]] = defaultdict(list)
    seen = set()
    for name, plan in _plans(folder):
        for chosen in plan.configurations:
            if len(chosen.network.features) < 2:
                continue  # refused by the product: no decoder
            formats = (("bfloat16", 2), ("float32", 2), ("bfloat16", 1), ("float32", 1))
            for dtype, threads in formats if device == "cpu" else formats[:2]:
                job = Job(
                    name=f"{name} {chosen.name}",
                    plan=plan,
                    configuration=chosen,
                    dtype=dtype,
                    threads=threads,
                    device=device,
                )
                if job.key not in seen:
                    seen.add(job.key)
                    kinds[chosen.network.family, chosen.dimensions, name[:3], dtype, threads].append(job)
    turns = (sorted(jobs, key=lambda job: job.estimate_bytes) for jobs in kinds.values())
    return [job for turn in itertools.zip_longest(*turns) for job in turn if job is not None]


def _plans(folder: Path) -> Iterator[tuple[str, Plan]]:
    for each in sorted(path for path in folder.iterdir() if (path / "fingerprint.json").exists()):
        dataset = read_nnunet_dataset((each / "fingerprint.json").read_bytes(), (each / "dataset.json").read_bytes())
        for name in json.loads((each / "options.json").read_text()):
            yield f"{each.name} {name}", read_nnunet_plans((each / f"plans_{name}.json").read_bytes(), dataset)
        yield f"{each.name} vnet", plan_dataset(dataset.fingerprint, preset="vnet")  # the reference knows none


def wait_for_memory(need: float) -> None:
    """Return once so many bytes are free: a machine that swaps measures nothing, and others need theirs."""
    while _available_bytes() < need:
        time.sleep(5)


def _available_bytes() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def read_results() -> dict[str, dict[str, Any]]:
    """All kept results by key; what failed, most likely for want of memory, is tried again."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {row["key"]: row for row in map(json.loads, lines) if "peaks" in row}


def table(jobs: Iterable[Job], results: dict[str, dict[str, Any]]) -> list[str]:
    """Estimate beside measurement, as a table in Markdown, with a summary before it."""
    rows, off = [], []
    for job in jobs:
        row = results.get(job.key)
        if row is None or "peaks" not in row:
            continue
        found, told = row["peaks"][-1], job.estimate_bytes
        error = told - found
        holds = abs(error) <= max(SHARE * told, LEAST_BYTES)
        off.append((abs(error) / max(SHARE * told, LEAST_BYTES), holds))
        rows.append(
            f"| {job.name} | {job.configuration.network.family} | {job.dtype} | {job.threads} | {told / 1e9:.2f} "
            f"| {found / 1e9:.2f} | {error / 1e9:+.2f} | {error / found:+.0%} | {'yes' if holds else '**no**'} |"
        )
    held = sum(holds for _, holds in off)
    worst = max((share for share, _ in off), default=0)
    head = [
        f"{held} of {len(rows)} measured trainings lie within {SHARE:.0%} or {LEAST_BYTES / 1e6:.0f} MB of their estimate, "
        f"whichever is larger; the worst takes {worst:.0%} of what is allowed.",
        "",
        "| training | network | format | threads | estimate GB | measured GB | difference GB | share | holds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return head + sorted(rows)


def main() -> int:
    """Measure what is missing, then write and print the table; 1 where an estimate does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", type=Path)
    parser.add_argument("--limit-gb", type=float, default=12.0, help="leave out trainings estimated above this")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--only", nargs="*", default=[], help="only trainings whose name and format hold all of these words"
    )
    parser.add_argument("--table-only", action="store_true", help="measure nothing")
    options = parser.parse_args()
    jobs = [job for job in find_jobs(options.plans, options.device) if job.estimate_bytes <= options.limit_gb * 1e9]
    results = read_results()
    for job in jobs:
        words = f"{job.name} {job.configuration.network.family} {job.dtype} {job.threads}".split()
        if options.table_only or job.key in results or not set(options.only) <= set(words):
            continue
        if options.device == "cpu":
            wait_for_memory(1.5 * job.estimate_bytes + RESERVE_BYTES)
        results[job.key] = job.run()
        with RESULTS.open("a") as file:
            file.write(json.dumps(results[job.key]) + "\n")
        print(" ".join(words), json.dumps(results[job.key]), flush=True)
    lines = table(jobs, results)
    page = [f"# Memory of training steps, {options.device}, {platform.machine()}", "", *lines, ""]
    (HERE / "results" / f"memory_{options.device}.md").write_text("\n".join(page))
    print(lines[0])
    return int("**no**" in "".join(lines))


if __name__ == "__main__":
    sys.exit(main())

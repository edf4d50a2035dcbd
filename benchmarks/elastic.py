"""Whether a run keeps its budget while other programs take the processor, and uses it when they go.

    python benchmarks/elastic.py --work DIR [--budget 4m] [--dataset DATASET] [--hogs none half three-quarters leaves] [--options …]

Runs `autoseg run` on a phantom dataset (or DATASET) with a budget, once for each kind of hog: programs that do nothing but
count. `half`: as many as there are cores, from the middle of the training on, so that half of the machine is left;
`three-quarters`: half, then three times as many; `leaves`: as many as cores from the first trial step on until a third of the
budget is over. What a run took and how its trainings changed is printed as a table; a fold that was left out has 0 steps. A run may take its budget, 5 % and 20 s;
where the hog leaves early it must use 90 % of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autoseg.data.phantom import make_phantom_dataset
from autoseg.settings import parse_duration
from planners import Schedule, read_document

COUNT = "while True: pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """From when on how many programs count."""

    share: float
    """Of the budget."""
    per_core: float


HOGS: dict[str, tuple[Moment, ...]] = {
    "none": (),
    "half": (Moment(share=0.4, per_core=1),),
    "three-quarters": (Moment(share=0.4, per_core=1), Moment(share=0.6, per_core=3)),
    "leaves": (Moment(share=0.0, per_core=1), Moment(share=0.33, per_core=0)),
}


def count(hogs: list[subprocess.Popen[bytes]], number: int) -> None:
    """Have so many programs count, from now on."""
    while len(hogs) > number:
        hogs.pop().kill()
    while len(hogs) < number:
        hogs.append(subprocess.Popen([sys.executable, "-c", COUNT]))


def run_beside(call: Sequence[str], log: Path, budget_s: float, moments: Sequence[Moment]) -> tuple[float, int]:
    """Seconds and exit code of ``call`` while hogs come and go."""
    hogs: list[subprocess.Popen[bytes]] = []
    waiting = list(moments)
    started = time.monotonic()
    with open(log, "wb") as file:
        process = subprocess.Popen(call, stdout=file, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                while waiting and time.monotonic() - started >= waiting[0].share * budget_s:
                    count(hogs, round(waiting.pop(0).per_core * (os.cpu_count() or 1)))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        finally:
            count(hogs, 0)
    return time.monotonic() - started, process.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--budget", default="4m")
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--hogs", nargs="+", choices=HOGS, default=list(HOGS))
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="Options of autoseg run, last")
    arguments = parser.parse_args()
    budget_s = float(str(parse_duration(arguments.budget)))
    dataset = arguments.dataset or arguments.work / "Task99_Phantom"
    if not dataset.exists():
        make_phantom_dataset(dataset)
    rows = [
        "| hog | seconds | of the budget | kept | steps of the folds | revisions | mean Dice |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in arguments.hogs:
        run = arguments.work / name
        call = [sys.executable, "-m", "autoseg", "run", str(dataset), "--out", str(run), "--budget", arguments.budget]
        seconds, code = run_beside(
            [*call, "--device", "cpu", *arguments.options], arguments.work / f"{name}.log", budget_s, HOGS[name]
        )
        if code:
            sys.exit(f"{name}: exit code {code}; see {arguments.work / f'{name}.log'}")
        schedule = read_document(Schedule, (run / "schedule.json").read_text(), where="schedule.json")
        steps = [schedule.steps_of(t.configuration, k) for t in schedule.trainings for k in range(schedule.num_folds)]
        kept = seconds <= 1.05 * budget_s + 20 and (name != "leaves" or seconds >= 0.9 * budget_s)
        summary = json.loads((run / "cross_validation" / "summary.json").read_text())
        planned = ", ".join(f"{t.num_steps} of {t.configuration}" for t in schedule.trainings)
        rows.append(
            f"| {name} | {seconds:.0f} | {seconds / budget_s:.0%} | {'yes' if kept else 'no'} | {', '.join(map(str, steps))} "
            f"(planned: {planned}) | {len(schedule.revisions)} | {summary['foreground_mean']['Dice']:.3f} |"
        )
        print(rows[-1], flush=True)
    text = "\n".join(rows) + "\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()

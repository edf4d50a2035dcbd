"""What a race chooses and costs, beside the truth: every candidate trained with the whole budget.

    python benchmarks/race.py --work DIR --budget 20m DATASET [DATASET ...] [--out race.md]

Each dataset is run once as it is by default, with a race, on a quiet machine. Then each candidate of that race, the rule's choice among them,
is trained by the schedule that it would have got without a race: as many steps as fit into the budget at the pace that was measured for the race. These
runs count steps, so other work may go on beside them. The table has the cross-validated mean foreground Dice of each, the difference that
the race saw, and what it chose. Runs that are finished are not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from planners import Plan, Race, Raced, Schedule, plan_schedule, read_document, write_document


def run(dataset: Path, out: Path, *options: str) -> tuple[Schedule, float]:
    """The schedule of a finished run and its cross-validated Dice."""
    scores = out / "cross_validation" / "summary.json"
    if not scores.exists():
        call = [sys.executable, "-m", "autoseg", "run", str(dataset), "--out", str(out), "--device", "cpu"]
        with open(out.with_suffix(".log"), "wb") as log:
            done = subprocess.run([*call, *options], stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            sys.exit(f"{out.name}: exit code {done.returncode}; see {out.with_suffix('.log')}")
    schedule = read_document(Schedule, (out / "schedule.json").read_text(), where=str(out))
    return schedule, json.loads(scores.read_text())["foreground_mean"]["Dice"]


def last_results(race: Race) -> Iterator[tuple[Raced, int]]:
    """Each candidate as it was last seen, and in which round."""
    seen: dict[tuple[str, int], tuple[Raced, int]] = {}
    for number, held in enumerate(race.rounds, start=1):
        seen |= {(each.configuration, each.base_features): (each, number) for each in held.raced}
    yield from seen.values()


def whole_budget(plan: Plan, schedule: Schedule, configuration: str, width: int) -> Schedule:
    """What one candidate gets where there is no race: all of the time, at the pace that was measured."""
    known = schedule.conditions
    raced_s = sum(each.seconds for each, _ in last_results(known.race)) if known.race else 0.0
    update = {
        "configurations": (configuration,),
        "race": None,
        "elapsed_s": max(0.0, known.elapsed_s - raced_s),
        "measurements": tuple(
            m for m in known.measurements if (m.configuration, m.base_features) == (configuration, width)
        ),
    }
    return plan_schedule(plan, known.model_copy(update=update))


def rows(dataset: Path, work: Path, budget: str) -> Iterator[str]:
    """Lines of the table for one dataset."""
    name = dataset.name
    raced = work / f"{name}_{budget}_race"
    schedule, dice = run(dataset, raced, "--budget", budget)
    plan = read_document(Plan, (raced / "plan.json").read_text(), where=str(raced))
    trained = ", ".join(f"{t.configuration} with {t.base_features}" for t in schedule.trainings)
    race, steps = schedule.conditions.race, schedule.trainings[0].num_steps
    if race is None or not race.rounds:
        note = "" if race is None else race.note
        yield f"| {name} | as chosen: {trained} | {steps} | {dice:.4f} | no race: {note} |"
        return
    took = sum(each.seconds for each, _ in last_results(race))
    truth = {}
    for each, number in last_results(race):
        own, width = each.configuration, each.base_features
        out = work / f"{name}_{budget}_{own}_{width}"
        given = out.with_suffix(".json")
        given.write_text(write_document(whole_budget(plan, schedule, own, width)))
        whole, found = run(dataset, out, "--schedule", str(given))
        truth[own, width] = found
        seen = "the rule's choice"
        if each.difference is not None and each.interval is not None:
            low, high = each.interval
            seen = (
                f"{each.difference:+.3f} [{low:.3f}, {high:.3f}] in round {number}, {each.steps} steps: {each.verdict}"
            )
        yield f"| {name} | {own} with {width} | {whole.trainings[0].num_steps} | {found:.4f} | {seen} |"
    best = max(truth.values())
    yield (
        f"| {name} | **as chosen: {trained}** | {steps} | {dice:.4f} ({dice - best:+.4f} from the best) | the race trained for "
        f"{took:.0f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    lines = [f"| dataset, {arguments.budget} | trained | steps a fold | Dice | in the race |", "|---|---|---|---|---|"]
    for dataset in arguments.datasets:
        for line in rows(dataset, arguments.work, arguments.budget):
            lines.append(line)
            print(line, flush=True)
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

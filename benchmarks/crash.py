"""Kill a real run at random moments, again and again, and compare what it ends with with an undisturbed run.

    python benchmarks/crash.py --kills 40 --work DIR            # kill -9 at random moments of all stages
    python benchmarks/crash.py --full-disk --work DIR           # a filesystem that fills up (needs root, for a tmpfs)
    python benchmarks/crash.py --compiled --work DIR            # kill -9, with training steps through torch.compile
    python benchmarks/crash.py --together 20 --work DIR         # several processes at once in one run folder, 20 times

A small phantom dataset and a schedule of a few dozen steps. The same `autoseg run` command is killed in one stage after
another, each at a random moment of the time that the stage takes, and then ends; that is repeated in new run folders. What
comes after the last stage that has a lock, predictions of test images and the report, counts for that stage. Processes at
once are a whole run and a training of each fold, two of each, begun at random moments, and every other one killed; what one of
them has in its hands, another waits for or refuses.
Compared byte for byte: weights, validation and test predictions, preprocessed data, selection, splits and score tables.
Left out are files that hold times: logs, histories, run and stage records, the report, and checkpoints, which are only a
means.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile

from autoseg.data.phantom import make_phantom_dataset
from autoseg.pipeline import run_stages
from autoseg.stages.begin import begin_run
from autoseg.storage.atomic import save_document

COMPARED = (
    "*.safetensors",
    "*.nii.gz",
    "*.b2nd",
    "*.npz",
    "selection.json",
    "splits.json",
    "plan.json",
    "summary.json",
)
STEPS = 24
SPACING_MM = "2,2,2"
"""Twice that of the phantoms: stages are short then, and there are as many of them."""
POLL_S = 0.002


def command(dataset: Path, out: Path, *extra: str, verb: str = "run") -> list[str]:
    call = "from autoseg.cli import main; main()"
    return [
        sys.executable,
        "-c",
        call,
        verb,
        str(dataset),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--threads",
        "1",
        "--target-spacing",
        SPACING_MM,
        *extra,
    ]


def make_schedule(dataset: Path, work: Path, *, compiled: bool = False, steps: int = STEPS) -> Path:
    """A short schedule for the dataset, so that every run does the same steps."""
    probe = begin_run(
        dataset,
        work / "probe",
        {
            "budget": "10s",
            "anyway": True,
            "folds": 2,
            "device": "cpu",
            "threads": 1,
            "target_spacing": SPACING_MM,
        },
        needs_device=True,
    )
    schedule = run_stages(probe, "schedule").schedule
    short = {"num_steps": steps, "steps_per_epoch": 8, "warmup_steps": 2, "compiled": compiled}
    trainings = tuple(t.model_copy(update=short) for t in schedule.trainings)
    path = work / "schedule.json"
    save_document(path, schedule.model_copy(update={"trainings": trainings}))
    shutil.rmtree(probe.folder.root)
    return path


def contents(run: Path) -> dict[str, bytes]:
    """What is compared, by path inside the run folder; where files name the run folder itself, its name is taken out."""
    files = {path for pattern in COMPARED for path in run.rglob(pattern) if not {"report", "stages"} & set(path.parts)}
    name = str(run).encode()
    return {path.relative_to(run).as_posix(): path.read_bytes().replace(name, b"RUN") for path in sorted(files)}


def differences(run: Path, expected: dict[str, bytes]) -> list[str]:
    """Paths that are missing, surplus or different, and files that a kill left half-written."""
    found = contents(run)
    wrong = [path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)]
    return sorted(wrong) + [f"left behind: {path.name}" for path in run.rglob("*.part")]


def seconds_of_stages(run: Path, ended: float) -> dict[str, float]:
    """By the name of its lock, how long each stage of an undisturbed run had it, in their order; ``ended``: Unix time."""
    locks = sorted((run / "locks").iterdir(), key=lambda path: path.stat().st_mtime)
    times = [*(path.stat().st_mtime for path in locks), ended]
    return {path.stem: after - before for path, (before, after) in zip(locks, pairwise(times), strict=True)}


def stage_of(run: Path, process: subprocess.Popen[bytes]) -> str | None:
    """The stage that a process is in, by the lock that it took last."""
    found = []
    for path in (run / "locks").glob("*.lock"):
        with suppress(ValueError, KeyError):  # a lock is empty for a moment when it changes hands
            if json.loads(path.read_text())["pid"] == process.pid:
                found.append((path.stat().st_mtime, path.stem))
    return max(found)[1] if found else None


def kill_after(call: list[str], run: Path, before: Sequence[str], delay_s: float) -> str | None:
    """Start the run, kill it ``delay_s`` after it has passed the stages ``before``; the stage it was in, None: it had ended."""
    # Into a file: a pipe would stay open while worker processes of a killed run are still there.
    with (run.parent / "messages.txt").open("wb") as messages:
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=messages)
    while process.poll() is None and stage_of(run, process) in (None, *before):
        time.sleep(POLL_S)
    try:
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        found = stage_of(run, process)
        process.kill()
        process.wait()
        return found
    if process.returncode != 0:
        sys.exit(f"a run that was not killed ended with exit code {process.returncode}, see {messages.name}")
    return None


def crash(work: Path, *, kills: int, seed: int, compiled: bool = False, steps: int = STEPS) -> None:
    dataset = work / "Task99_Phantom"
    make_phantom_dataset(dataset, num_training=4, num_test=1, seed=3)
    schedule = make_schedule(dataset, work, compiled=compiled, steps=steps)
    started = time.time()
    subprocess.run(command(dataset, work / "undisturbed", "--schedule", str(schedule)), check=True, capture_output=True)
    whole = time.time() - started
    seconds = seconds_of_stages(work / "undisturbed", started + whole)
    stages = list(seconds)
    expected = contents(work / "undisturbed")
    rng, total, rounds = random.Random(seed), Counter[str](), 0
    while total.total() < kills:
        run = work / f"killed_{rounds}"
        call = command(dataset, run, "--schedule", str(schedule))
        for index in sorted(rng.sample(range(len(stages)), min(len(stages), kills - total.total()))):
            killed_in = kill_after(call, run, stages[:index], rng.uniform(0, seconds[stages[index]]))
            if killed_in is not None:
                total[killed_in] += 1
        subprocess.run(call, check=True, capture_output=True)
        rounds += 1
        wrong = differences(run, expected)
        if wrong:
            sys.exit(f"round {rounds}: {len(wrong)} of {len(expected)} files differ: {', '.join(wrong[:10])}")
        shutil.rmtree(run)
    table = ", ".join(f"{total[stage]} in {stage}" for stage in stages if total[stage])
    sys.stdout.write(
        f"{total.total()} kills in {rounds} runs ({table}); {len(expected)} files equal byte for byte each time; "
        f"undisturbed run {whole:.0f} s\n"
    )


def work_together(work: Path, *, rounds: int, seed: int) -> None:
    """Several processes at once in one run folder, some of them killed; then the whole run, which must end like another."""
    dataset = work / "Task99_Phantom"
    make_phantom_dataset(dataset, num_training=4, num_test=1, seed=3)
    schedule = ("--schedule", str(make_schedule(dataset, work)))
    started = time.monotonic()
    subprocess.run(command(dataset, work / "undisturbed", *schedule), check=True, capture_output=True)
    whole = time.monotonic() - started
    expected = contents(work / "undisturbed")
    rng, ends = random.Random(seed), Counter[str]()
    for number in range(rounds):
        run = work / f"together_{number}"
        folds = [command(dataset, run, *schedule, "--fold", str(fold), verb="train") for fold in (0, 1)]
        calls = 2 * [command(dataset, run, *schedule), *folds]
        with ThreadPoolExecutor(len(calls)) as pool:
            after = [
                (rng.uniform(0, whole / 2), rng.uniform(0, whole) if rng.random() < 1 / 2 else None) for _ in calls
            ]
            ends.update(pool.map(end_of, calls, *zip(*after, strict=True)))
        subprocess.run(command(dataset, run, *schedule), check=True, capture_output=True)
        wrong = differences(run, expected)
        if wrong:
            sys.exit(f"round {number}: {len(wrong)} of {len(expected)} files differ: {', '.join(wrong[:10])}")
        shutil.rmtree(run)
    table = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    sys.stdout.write(
        f"{ends.total()} processes in {rounds} runs ({table}); {len(expected)} files equal byte for byte each time\n"
    )


def end_of(call: list[str], delay_s: float, kill_after_s: float | None) -> str:
    """Start a process after ``delay_s``, perhaps kill it; how it ended. Raises `RuntimeError` for an end that none may have."""
    time.sleep(delay_s)
    with TemporaryFile() as messages:  # a pipe would stay open while worker processes of a killed run are still there
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=messages)
        try:
            process.wait(kill_after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return "killed"
        messages.seek(0)
        errors = messages.read().decode()
    if process.returncode == 0:
        return "ended"
    if process.returncode == 1 and "Traceback" not in errors and "is being worked on by" in errors:
        return "refused"
    raise RuntimeError(f"exit code {process.returncode}: {errors}")


def fill_disk(work: Path) -> None:
    """Run on a filesystem that is too small, then make it larger: the run must say so, and then end like the others."""
    dataset = work / "Task99_Phantom"
    make_phantom_dataset(dataset, num_training=4, num_test=1, seed=3)
    schedule = make_schedule(dataset, work)
    subprocess.run(command(dataset, work / "undisturbed", "--schedule", str(schedule)), check=True, capture_output=True)
    expected = contents(work / "undisturbed")
    disk = work / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], check=True)
    failures = 0
    try:
        for size in (200, 1000, 3000, 5000, 8000, 12000, 20000, 100_000):
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
            done = subprocess.run(
                command(dataset, disk / "run", "--schedule", str(schedule)), capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                break
            message = done.stderr.strip().splitlines()
            if done.returncode != 1 or "Traceback" in done.stderr or "free some space" not in done.stderr:
                sys.exit(f"{size} kB: exit code {done.returncode}: {message[-3:]}")
            failures += 1
        wrong = differences(disk / "run", expected)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    if wrong or not failures:
        sys.exit(f"{failures} full disks; {len(wrong)} files differ: {', '.join(wrong[:10])}")
    sys.stdout.write(f"{failures} full disks were said; with room again {len(expected)} files equal byte for byte\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="empty folder for everything")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full-disk", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--together", type=int, metavar="ROUNDS", default=0)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.full_disk:
        fill_disk(arguments.work)
    elif arguments.together:
        work_together(arguments.work, rounds=arguments.together, seed=arguments.seed)
    else:
        crash(arguments.work, kills=arguments.kills, seed=arguments.seed, compiled=arguments.compiled)


if __name__ == "__main__":
    main()

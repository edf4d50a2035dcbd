"""Different folds of one run folder train at once in several processes; the same fold only in one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autoseg.data.phantom import make_phantom_dataset
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, save_document
from planners import Schedule


def start(dataset: Path, run: Path, schedule: Path, fold: int) -> subprocess.Popen[str]:
    call = [
        sys.executable,
        "-c",
        "from autoseg.cli import main; main()",
        "train",
        str(dataset),
        "--out",
        str(run),
        "--schedule",
        str(schedule),
        "--device",
        "cpu",
        "--threads",
        "1",
        "--fold",
        str(fold),
    ]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A dataset, a run folder whose data are preprocessed, and a short schedule."""
    folder = tmp_path_factory.mktemp("folds")
    dataset, run = folder / "Task99_Phantom", folder / "run"
    make_phantom_dataset(dataset, num_training=4, num_test=0, seed=5)
    call = "from autoseg.cli import main; main()"
    settings = ["--out", str(run), "--device", "cpu", "--threads", "1"]
    subprocess.run(
        [sys.executable, "-c", call, "train", str(dataset), "--budget", "5s", *settings],
        check=True,
        capture_output=True,
    )
    schedule = load_document(Schedule, RunFolder(run).schedule)
    changes = {"num_steps": 30, "steps_per_epoch": 10, "warmup_steps": 2}
    short = schedule.model_copy(update={"trainings": tuple(t.model_copy(update=changes) for t in schedule.trainings)})
    save_document(folder / "schedule.json", short)
    return dataset, run, folder / "schedule.json"


def test_two_folds_train_at_once(prepared) -> None:
    dataset, run, schedule = prepared
    processes = [start(dataset, run, schedule, fold) for fold in (0, 1)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    for fold in (0, 1):
        (folder,) = (run / "models").glob(f"*/fold_{fold}")
        assert (folder / "final.safetensors").exists()
        assert (folder / "validation" / "summary.json").exists()
        last = json.loads((folder / "history.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 30


def test_the_same_fold_is_refused_with_its_owner(prepared) -> None:
    dataset, run, schedule = prepared
    for record in (run / "stages").glob("train-*-fold_1.json"):
        record.unlink()
    for weights in (run / "models").glob("*/fold_1/*.pt"):
        weights.unlink()
    first = start(dataset, run, schedule, 1)
    locks = run / "locks"
    deadline = time.monotonic() + 120
    while not any(str(first.pid) in path.read_text() for path in locks.glob("train-*-fold_1.lock")):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(19)  # SIGSTOP: it holds its fold for as long as we look
    try:
        second = start(dataset, run, schedule, 1)
        _, errors = second.communicate(timeout=120)
    finally:
        first.send_signal(18)  # SIGCONT
        first.communicate(timeout=300)
    assert second.returncode == 1
    assert f"process {first.pid} on" in errors
    assert first.returncode == 0


def test_a_training_that_is_asked_to_stop_says_so_and_how_to_go_on(prepared, tmp_path) -> None:
    dataset, done, schedule = prepared
    run, given = tmp_path / "run", load_document(Schedule, schedule)
    shutil.copytree(done, run, ignore=shutil.ignore_patterns("models"))
    endless = tuple(t.model_copy(update={"num_steps": 1_000_000}) for t in given.trainings)
    save_document(tmp_path / "schedule.json", given.model_copy(update={"trainings": endless}))
    damaged = RunFolder(run).fold(given.trainings[0].configuration, 0) / "checkpoint.pt"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("of which the training tells as soon as it has begun")
    process = start(dataset, run, tmp_path / "schedule.json", 0)
    assert process.stderr is not None
    watchdog = threading.Timer(120, process.kill)  # its standard error would be waited for without an end
    watchdog.start()
    begun = next((line for line in process.stderr if "starts anew" in line), None)
    watchdog.cancel()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert begun is not None, errors
    assert process.returncode == 130
    assert "Traceback" not in errors
    for text in (errors, (run / "log.txt").read_text()):
        assert text.count("Interrupted: ending after this training step. Press Ctrl-C again to end at once.") == 1
        assert text.count("stopped; the same command goes on where this one was") == 1

"""Different folds of one run folder train at once in several processes; the same fold only in one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from builders import CPU, Job

import autoseg
from autoseg.issues import AutosegError
from autoseg.storage.atomic import load_document, save_document
from planners import Schedule


def start(run: Path, schedule: Path, fold: int) -> subprocess.Popen[str]:
    """Train one fold of a run that is already there, in a process of its own."""
    call = [sys.executable, "-c", "from autoseg.cli import main; main()", "train", str(run)]
    words = ["--schedule", str(schedule), "--fold", str(fold), "--redo"]
    return subprocess.Popen([*call, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def prepared(job: Job, tmp_path: Path) -> Job:
    """A run whose data are preprocessed and of which nothing is trained, and a schedule of 10 steps."""
    shutil.rmtree(job.folder.models)
    for record in job.root.glob("stages/*-2d-*.json"):
        record.unlink()
    return replace(job, schedule=write_schedule(tmp_path, job, steps=10))


def write_schedule(folder: Path, job: Job, *, steps: int) -> Path:
    """The job's schedule with so many steps, written to a file of its own."""
    given = load_document(Schedule, job.schedule)
    changes = {"num_steps": steps, "steps_per_epoch": 10, "warmup_steps": 2}
    trainings = tuple(training.model_copy(update=changes) for training in given.trainings)
    save_document(folder / f"{steps}.json", given.model_copy(update={"trainings": trainings}))
    return folder / f"{steps}.json"


def test_two_folds_train_at_once(prepared: Job) -> None:
    processes = [start(prepared.root, prepared.schedule, fold) for fold in (0, 1)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    for fold in (0, 1):
        folder = prepared.folder.fold("2d", fold)
        assert (folder / "final.safetensors").exists()
        assert (folder / "validation" / "summary.json").exists()
        assert json.loads((folder / "history.jsonl").read_text().splitlines()[-1])["step"] == 10


def test_two_processes_train_one_fold_started_here_or_by_torchrun(
    prepared: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits either way. What torchrun does beside starting processes is to set these variables."""
    stored, given = json.loads(prepared.folder.settings.read_text()), {"schedule": prepared.schedule, "redo": True}
    with pytest.raises(AutosegError) as caught:
        prepared.call("train", **given, fold=0, ddp=3)
    assert caught.value.codes == ("ddp.batch_too_small",)
    prepared.call("train", **given, fold=0, ddp=2)
    expected = (prepared.folder.fold("2d", 0) / "final.safetensors").read_bytes()
    assert (prepared.folder.cluster / "ddp-2d-fold_0.log").exists()
    assert json.loads(prepared.folder.settings.read_text())["ddp"] == stored["ddp"] is None
    shutil.rmtree(prepared.folder.fold("2d", 0))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    common = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    second = {**os.environ, **common, "RANK": "1", "LOCAL_RANK": "1"}
    call = [sys.executable, "-m", "autoseg", "train", str(prepared.root), "--fold", "0"]
    other = subprocess.Popen(call, env=second, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for name, value in {**common, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    autoseg.train(prepared.root, fold=0, **given, **CPU)
    out, errors = other.communicate(timeout=120)
    assert (other.returncode, out) == (0, ""), errors
    assert (prepared.folder.fold("2d", 0) / "final.safetensors").read_bytes() == expected


def test_the_same_fold_is_refused_with_its_owner(prepared: Job) -> None:
    first = start(prepared.root, prepared.schedule, 1)
    lock, deadline = prepared.folder.lock("train-2d-fold_1"), time.monotonic() + 120
    while not (lock.exists() and str(first.pid) in lock.read_text()):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # it holds its fold for as long as we look
    try:
        second = start(prepared.root, prepared.schedule, 1)
        _, errors = second.communicate(timeout=120)
    finally:
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=300)
    assert second.returncode == 1
    assert f"process {first.pid} on" in errors
    assert first.returncode == 0


def test_an_interrupted_training_says_how_to_resume(prepared: Job, tmp_path: Path) -> None:
    damaged = prepared.folder.fold("2d", 0) / "checkpoint.pt"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("of which the training tells as soon as it has begun")
    process = start(prepared.root, write_schedule(tmp_path, prepared, steps=1_000_000), 0)
    assert process.stderr is not None
    watchdog = threading.Timer(120, process.kill)  # its standard error would be waited for without an end
    watchdog.start()
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "checkpoint.pt" in line:
            break
    watchdog.cancel()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, (lines, errors)
    assert "Traceback" not in errors
    for text in (errors, prepared.folder.log.read_text()):
        assert text.count("Press Ctrl-C again to stop immediately") == 1
        assert text.count("Interrupted. Run the same command to resume.") == 1

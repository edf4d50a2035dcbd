"""Trainings on Dask workers and in Slurm's queue end with the weights of one machine, whatever is killed meanwhile.

The test with Slurm runs where a node answers `sinfo`; it is skipped, and counted, elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import Job, Listening

import autoseg
from autoseg import api
from autoseg.compute.cluster import DaskCluster, Task
from autoseg.compute.executor import run_jobs, spread_over
from autoseg.issues import AutosegError
from autoseg.stages.cluster import evaluating
from autoseg.stages.run import Run
from autoseg.storage.atomic import load_document, save_document
from planners import Revision, Schedule

STEPS = 120


@pytest.fixture(scope="module")
def whole(finished: Job, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run of which only the first fold is trained, on this machine."""
    root = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(finished.root, root)
    shutil.rmtree(root / "models")
    for record in root.glob("stages/*-2d-*.json"):
        record.unlink()
    changes = {"num_steps": STEPS, "steps_per_epoch": STEPS // 2, "warmup_steps": 2}
    given = load_document(Schedule, finished.schedule)
    trainings = tuple(training.model_copy(update=changes) for training in given.trainings)
    revised = {"trainings": trainings, "revisions": (revision(0), revision(1))}
    save_document(root.with_name("schedule.json"), given.model_copy(update=revised))
    job = Job(dataset=finished.dataset, schedule=root.with_name("schedule.json"), root=root)
    job.call("train", schedule=job.schedule, redo=True, fold=0)
    last = json.loads((job.folder.fold("2d", 0) / "history.jsonl").read_text().splitlines()[-1])
    assert last["step"] == STEPS - 10  # the revision was followed, as it is where folds train side by side
    return job


def revision(fold: int) -> Revision:
    """As the pace of a run may have written it into the schedule file that is given."""
    return Revision(
        configuration="2d",
        fold=fold,
        step=20 + 20 * fold,
        num_steps=STEPS - 10 - 10 * fold,
        planned_steps=STEPS,
        step_s=1.0,
        reason="the test",
    )


@pytest.fixture
def prepared(whole: Job, tmp_path: Path) -> Job:
    """The same run, of which nothing is trained; a training of its first fold tells as soon as it has begun."""
    shutil.copytree(whole.root, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "models")
    for record in (tmp_path / "run").glob("stages/*-2d-*.json"):
        record.unlink()
    job = replace(whole, root=tmp_path / "run")
    damaged = job.folder.fold("2d", 0) / "checkpoint.pt"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("is named in the log when the training begins")
    return job


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return found


def begun(job: Job) -> bool:
    """Whether the training of the first fold has begun on a cluster."""
    log = job.folder.cluster / "train-2d-fold_0.log"
    return log.is_file() and "checkpoint.pt" in log.read_text()


def weights(job: Job) -> bytes:
    return (job.folder.fold("2d", 0) / "final.safetensors").read_bytes()


def resumed(job: Job) -> bool:
    """Whether the first fold was stopped after a step, and not begun anew."""
    log = (job.folder.cluster / "train-2d-fold_0.log").read_text()
    return (
        log.count("Interrupted: stopping after this training step") == 1 and log.count("starts from the beginning") == 1
    )


@pytest.fixture(scope="module")
def local() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as local:
        yield local


def test_cases_of_a_lost_worker_are_done_by_another(local: Any, tmp_path: Path) -> None:
    def square(x: int) -> tuple[int, int]:
        if x == 5 or (x == 1 and not (tmp_path / "tried").exists()):
            (tmp_path / "tried").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if x == 3:
            raise ValueError("three")
        return x * x, os.getpid()

    with local.get_client() as client, spread_over(DaskCluster(client)):
        found = run_jobs(square, [0, 1, 2], name=str)
        assert [result for result, _ in found] == [0, 1, 4]
        assert os.getpid() not in {process for _, process in found}
        before, local.scheduler.allowed_failures = local.scheduler.allowed_failures, 0
        with pytest.raises(AutosegError) as caught:
            run_jobs(square, [3, 4, 5], name=lambda x: f"case {x}")
        local.scheduler.allowed_failures = before
    expected = [("job.failed", "case 3"), ("job.worker_killed", "case 5")]
    assert [(issue.code, issue.where) for issue in caught.value.issues] == expected


def test_a_training_goes_on_where_its_worker_was_killed(local: Any, whole: Job, prepared: Job) -> None:
    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: begun(prepared), "the training has not begun")
        training = json.loads(prepared.folder.lock("train-2d-fold_0").read_text())["pid"]
        killed.append(int(Path(f"/proc/{training}/stat").read_text().rpartition(")")[2].split()[1]))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    autoseg.train(prepared.root, fold=0, cluster=local.scheduler_address.replace("tcp", "dask"))
    killer.join()
    assert len(killed) == 1
    assert resumed(prepared)
    assert weights(prepared) == weights(whole)
    states = {unit.name: unit.state for unit in autoseg.status(prepared.root)}
    assert states["train-2d-fold_0"] == "done"
    assert states["train-2d-fold_1"] == "not begun"


def test_a_fold_whose_process_was_killed_goes_back_into_the_queue(whole: Job, prepared: Job) -> None:
    stored = prepared.folder.settings.read_bytes()

    def kill() -> None:
        wait_for(lambda: begun(prepared), "the training has not begun")
        os.kill(json.loads(prepared.folder.lock("train-2d-fold_0").read_text())["pid"], signal.SIGKILL)

    killer, listening = threading.Thread(target=kill), Listening()
    killer.start()
    autoseg.train(prepared.root, device="cpu,cpu", threads=1, reporter=listening)
    killer.join()
    assert "train-2d-fold_0: its process on cpu was killed by signal 9; back in the queue" in listening.lines
    assert {f"2d, fold {fold}: trained and validated on cpu" for fold in (0, 1)} <= {
        line.partition(", 0")[0] for line in listening.lines
    }
    assert weights(prepared) == weights(whole)
    assert {unit.state for unit in autoseg.status(prepared.root)} >= {"done"}
    assert json.loads(prepared.folder.settings.read_bytes()) == {**json.loads(stored), "device": "cpu,cpu"}


def test_a_task_that_fails_is_named_with_its_log_after_the_others(local: Any, tmp_path: Path) -> None:
    words = {"good": ("--version",), "bad": ("bundle", "no-run", "x.zip"), "done": ("bundle", "no-run", "y.zip")}
    tasks = [Task(name=name, command=each, folder=tmp_path, is_done=lambda: False) for name, each in words.items()]
    tasks[2] = replace(tasks[2], is_done=lambda: True)
    done: list[Task] = []
    with local.get_client() as client:
        (issue,) = DaskCluster(client).run("test", tasks, say=lambda text: None, done=done.append)
    assert sorted(task.name for task in done) == ["done", "good"]
    assert (issue.code, issue.where) == ("cluster.task_failed", "bad")
    assert "no-run: does not exist" in issue.message
    assert str(tasks[1].log) in issue.fix
    record = tasks[1].read_record()
    assert record is not None
    assert record.state == "failed"


def test_new_images_are_predicted_in_parts(local: Any, finished: Job, tmp_path: Path) -> None:
    address = local.scheduler_address.replace("tcp", "dask")
    options = {"device": "cpu", "threads": 1, "skip_bad": True}
    found = api.predict_parts(
        finished.root, finished.dataset / "imagesTs", tmp_path / "out", cluster=address, **options
    )
    assert [path.name for path in found] == sorted(path.name for path in found)
    assert len(found) == 2
    assert [path.read_bytes() for path in found] == [
        (finished.folder.predictions / path.name).read_bytes() for path in found
    ]
    for number in (1, 2):
        assert "1 predicted" in (tmp_path / "out" / ".cluster" / f"part-{number}.log").read_text()
    with pytest.raises(AutosegError) as caught:
        api.predict_parts(finished.root, finished.dataset, tmp_path / "out", cluster=address, part="1/2")
    assert caught.value.codes == ("settings.contradiction",)


def test_selection_and_test_images_are_divided_among_workers(local: Any, finished: Job, tmp_path: Path) -> None:
    """The same selection and label maps as on one machine; the report is left to the last task."""
    shutil.copytree(finished.root, tmp_path / "run")
    job = replace(finished, root=tmp_path / "run")
    shutil.rmtree(job.folder.predictions)
    for lost in (job.folder.selection, job.folder.stage("select"), job.folder.stage("predict"), job.folder.model):
        lost.unlink()
    address = local.scheduler_address.replace("tcp", "dask")
    with local.get_client() as client:
        waves = evaluating(Run.open(job.root), DaskCluster(client))
    commands = [[task.command for task in tasks] for _, tasks, _ in waves]
    assert commands == [[("select", str(job.root), "--cluster", address)], [("predict", str(job.root))] * 2]
    autoseg.select(job.root, cluster=address)
    assert job.folder.selection.read_bytes() == finished.folder.selection.read_bytes()
    found = autoseg.predict(job.root, device="cpu", threads=1)
    assert len(found) == 2
    assert [path.read_bytes() for path in found] == [
        (finished.folder.predictions / path.name).read_bytes() for path in found
    ]


def test_scores_of_a_folder_are_counted_by_workers(local: Any, finished: Job) -> None:
    given = finished.folder.predictions, finished.dataset / "labelsTs"
    address = local.scheduler_address.replace("tcp", "dask")
    assert autoseg.evaluate(*given, cluster=address) == autoseg.evaluate(*given)


def slurm(*call: str) -> str:
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def slurm_node() -> None:
    """A node of Slurm that takes jobs from this machine."""
    try:
        found = subprocess.run(["sinfo", "-h"], capture_output=True, text=True, check=False, timeout=4).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        found = ""
    if "up" not in found:
        pytest.skip("no Slurm here: no partition answers sinfo")


def release(task: str) -> None:
    """Start a task that was queued again at once: Slurm lets two minutes pass."""
    wait_for(lambda: slurm("squeue", "-h", "-t", "PENDING", "-j", task), f"{task} is not queued again")
    slurm("scontrol", "update", f"jobid={task}", "StartTime=now")


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm_node")
def test_tasks_in_slurm_outlive_time_limits_cancelling_and_the_killed_call(whole: Job, prepared: Job) -> None:
    words = ["train", str(prepared.root), "--cluster", "slurm:2", "--slurm-options", "mem=1500M,time=00:10:00"]
    driver = subprocess.Popen([sys.executable, "-m", "autoseg", *words], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: begun(prepared), "the training has not begun")
    units = {unit.name: unit for unit in autoseg.status(prepared.root)}
    job = units["train-2d-fold_0"].where.split()[-1].partition("_")[0]
    slurm("scancel", "--signal=USR1", "--batch", f"{job}_0")  # what --signal=B:USR1@60 asks for before a time limit
    driver.kill()
    driver.communicate()
    assert units["train-2d-fold_0"].state == "running"
    assert f"slurm job {job}_0" in units["train-2d-fold_0"].where
    slurm("scancel", f"{job}_1")
    wait_for(lambda: not slurm("squeue", "-h", "-r", "-j", f"{job}_1"), "fold 1 is not cancelled")
    states = {unit.name: unit.state for unit in autoseg.status(prepared.root)}
    assert states["train-2d-fold_1"] == "failed"
    release(f"{job}_0")
    listening = Listening()
    autoseg.train(prepared.root, cluster="slurm", reporter=listening)
    assert "1 task of an earlier call in Slurm's queue" in listening.text
    assert "Submitted 1 task (train)" in listening.text
    assert resumed(prepared)
    assert weights(prepared) == weights(whole)
    assert {unit.state for unit in autoseg.status(prepared.root) if unit.name.startswith("train")} == {"done"}

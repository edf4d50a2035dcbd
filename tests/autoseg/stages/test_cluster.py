"""What is sent to a cluster, and what is told of it."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
from builders import Job

import autoseg
from autoseg import api
from autoseg.compute.cluster import Slurm, Task, parse_slurm_options
from autoseg.issues import AutosegError
from autoseg.settings import make_settings
from autoseg.stages.cluster import call_words, evaluating
from autoseg.stages.run import Run
from autoseg.storage.locks import hold_lock

SLURM = {"cluster": "slurm", "slurm_options": "partition=gpu"}


def test_options_travel_as_words_that_mean_the_same_in_another_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "spec": "s.toml", "skip_bad": True, "race": False, "exclude": ["a", "b"], "set": ["schedule.epochs=2", "plan.2d.patch_shape=8,8"],
        "target_spacing": (2.5, 1, 1), "budget": "1h30m", "groups": "none", "workers": None,
    }  # fmt: skip
    settings = make_settings({"dataset": tmp_path, **{k: v for k, v in given.items() if v != "none"}})
    assert call_words(given, settings) == [
        "--spec", str(tmp_path / "s.toml"), "--skip-bad", "--no-race", "--exclude", "a,b", "--set", "schedule.epochs=2",
        "--set", "plan.2d.patch_shape=8,8", "--target-spacing", "2.5,1,1", "--budget", "1h30m", "--groups", "none",
    ]  # fmt: skip


def lost(job: Job, fold: int) -> None:
    """Of a fold nothing is left."""
    shutil.rmtree(job.folder.fold("2d", fold))
    for stage in ("train", "validate"):
        job.folder.stage(f"{stage}-2d-fold_{fold}").unlink()


def test_a_dry_run_writes_the_scripts_of_what_is_left(job: Job, tmp_path: Path) -> None:
    new = api.job_scripts(job.dataset, tmp_path / "new", device="cpu", **SLURM)
    assert [script.name for script in new] == ["prepare.sh", "finish.sh"]
    assert f"schedule {job.dataset} --out {tmp_path / 'new'} --device cpu" in new[0].read_text()
    lost(job, 1)
    train, finish = api.job_scripts(job.root, **SLURM)
    text = train.read_text()
    assert "#SBATCH --partition=gpu" in text
    assert "--array=0-0" in text
    assert f"train {job.root} --configuration 2d --fold 1 --wait" in text
    assert f"run {job.root} ;;" in finish.read_text()
    assert [script.name for script in api.job_scripts(job.root, redo=True, **SLURM)] == ["prepare.sh", "finish.sh"]


def test_slurm_shares_the_test_images_where_there_are_several_tasks(finished: Job) -> None:
    run, root = Run.open(finished.root), str(finished.root)
    select, predict = evaluating(run, Slurm(options=parse_slurm_options("mem=1G"), most=3))
    assert [task.command for task in select[1]] == [("select", root)]
    assert [(task.name, task.command) for task in predict[1]] == [
        (f"predict-{number}", ("predict", root))
        for number in (1, 2)  # as many as there are images
    ]
    assert evaluating(run, Slurm(options=parse_slurm_options("mem=1G"), most=1)) == []


def test_what_a_cluster_cannot_do_is_refused(job: Job) -> None:
    calls = (
        lambda: autoseg.run(job.root, cluster="slurm", callbacks=[object()]),
        lambda: autoseg.preprocess(job.root, cluster="slurm"),
        lambda: api.job_scripts(job.root, cluster="dask-local:2"),
    )
    for call in calls:
        with pytest.raises(AutosegError) as caught:
            call()
        assert caught.value.codes == ("settings.contradiction",)


def test_status_tells_what_is_done_runs_waits_failed_or_stopped(job: Job) -> None:
    def state(name: str) -> tuple[str, str, str]:
        return next((u.state, u.where, u.note) for u in autoseg.status(job.root) if u.name == name)

    assert {unit.state for unit in autoseg.status(job.root)} == {"done"}
    name = "train-2d-fold_1"
    (job.folder.fold("2d", 1) / "final.safetensors").unlink()
    assert state(name) == ("stopped", "", "step 2 of 2")
    lost(job, 1)
    assert state(name) == ("not begun", "", "")
    job.folder.cluster.mkdir()
    task = Task(name=name, command=(), folder=job.folder.cluster)
    task.save(place="dask worker tcp://a:1 on a", state="running")
    assert state(name) == ("not begun", "", "")  # whoever sent it is gone
    with hold_lock(job.folder.lock("cluster"), what="the run"):
        assert state(name) == ("running", "dask worker tcp://a:1 on a", "")
    with hold_lock(job.folder.lock(name), what="the fold"):
        here = f"process {os.getpid()} on {socket.gethostname()}"
        assert state(name) == ("running", here, "")
    task.log.write_text("begun\nautoseg: no space\nsee above\n")
    task.save(place="dask worker tcp://a:1 on a", state="failed")
    assert state(name) == ("failed", "dask worker tcp://a:1 on a", f"{task.log}: autoseg: no space")

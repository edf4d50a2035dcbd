"""Addresses of clusters, job scripts, and what is said of clusters that cannot be used."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from autoseg.compute import cluster as clusters
from autoseg.compute.cluster import (
    Address,
    DaskCluster,
    Slurm,
    Task,
    open_dask,
    parse_cluster,
    parse_slurm_options,
    read_code,
    read_queue,
)
from autoseg.issues import AutosegError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dask://node1:8786", Address(kind="dask", place="node1:8786")),
        ("dask-local:4", Address(kind="dask-local", number=4)),
        ("slurm", Address(kind="slurm")),
        ("slurm:8", Address(kind="slurm", number=8)),
    ],
)
def test_a_cluster_is_named_in_one_word(text: str, expected: Address) -> None:
    assert parse_cluster(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["dask://node1", "dask-local:0", "dask-local", "slurm:0", "slurm:", "pbs", ""])
def test_other_words_are_no_clusters(text: str) -> None:
    with pytest.raises(AutosegError) as caught:
        parse_cluster(text)
    assert caught.value.codes == ("settings.cluster",)


def test_slurm_options_are_long_options_of_sbatch() -> None:
    found = parse_slurm_options("partition=gpu, gres=gpu:1,time=08:00:00,--exclusive,")
    assert found == ("--partition=gpu", "--gres=gpu:1", "--time=08:00:00", "--exclusive")
    for text in ("array=0-3", "output=x", "signal=USR2", "p gpu", "time=", "x;y=1"):
        with pytest.raises(AutosegError) as caught:
            parse_slurm_options(text)
        assert caught.value.codes == ("settings.slurm_options",)


def make_task(folder: Path, name: str = "train-2d-fold_0") -> Task:
    return Task(name=name, command=("--version",), folder=folder)


def test_a_job_script_does_the_task_of_its_index_and_notes_how_it_ended(tmp_path: Path) -> None:
    folder = tmp_path / "a run's cluster"
    tasks = [make_task(folder), Task(name="bad", command=("no-such-command", "x y"), folder=folder)]
    script = Slurm(options=("--time=5",), most=1).write_script("train", tasks)
    lines = script.read_text().splitlines()
    assert "#SBATCH --array=0-1%1" in lines
    assert "#SBATCH --time=5" in lines
    for index in ("0", "1"):
        subprocess.run(["bash", script], env={"SLURM_ARRAY_TASK_ID": index, "PATH": "/usr/bin:/bin"}, check=False)
    assert [read_code(task) for task in tasks] == [0, 2]
    assert tasks[0].last_line.startswith("autoseg 0.")
    assert "no-such-command" in tasks[1].failure.message
    assert read_code(make_task(folder, "never sent")) is None


def test_tasks_that_were_never_in_slurm_are_not_looked_for(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    assert read_queue([task]) == {}
    task.save(place="dask worker tcp://a:1 on a")
    assert read_queue([task]) == {}


def test_without_slurm_it_is_said_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AutosegError) as caught:
        Slurm().submit("train", [make_task(tmp_path)])
    assert caught.value.codes == ("slurm.not_found",)


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(clusters, "CONNECT_S", 0.2)
    with pytest.raises(AutosegError) as caught, open_dask(parse_cluster("dask://127.0.0.1:1"), folder=tmp_path):
        pass
    assert caught.value.codes == ("cluster.unreachable",)
    assert caught.value.issues[0].where == "--cluster dask://127.0.0.1:1"


class Elsewhere:
    """Workers of another version that see another disk."""

    class scheduler:  # noqa: N801  # as Dask calls it
        address = "tcp://node1:8786"

    def run(self, function: object, folder: str) -> dict[str, tuple[str, bool]]:
        return {"tcp://a:1": ("0.0.1", True), "tcp://b:1": (clusters.__version__, False)}


def test_workers_need_the_same_version_and_the_same_folder(tmp_path: Path) -> None:
    with pytest.raises(AutosegError) as caught:
        DaskCluster(Elsewhere()).require_ready(tmp_path)
    assert caught.value.codes == ("cluster.other_version", "cluster.not_shared")
    assert [issue.message.partition(" ")[0] for issue in caught.value.issues] == ["tcp://a:1", "tcp://b:1"]

"""A queue of tasks on devices of this machine: real processes that are short, killed, or asked to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from autoseg.compute import slots
from autoseg.compute.cluster import Task
from autoseg.compute.slots import MOST_DEATHS, Running, Slots

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
name, device = sys.argv[1], sys.argv[sys.argv.index("--device") + 1]
folder = Path({folder!r})
times = len(list(folder.glob(f"{{name}}-began-*")))
(folder / f"{{name}}-began-{{times}}-on-{{device}}").touch()
{body}
"""
TOGETHER = """
deadline = time.monotonic() + 60
while len(list(folder.glob("*-began-*"))) < 2:
    assert time.monotonic() < deadline
    time.sleep(0.01)
"""
KILLED = "if name == 'bad' or (name == 'once' and not times): os.kill(os.getpid(), signal.SIGKILL)"
UNTIL_ASKED = "os.read(0, 1); sys.exit(130)"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What is run in the place of autoseg."""
    return lambda body: monkeypatch.setattr(slots, "TIED", PROGRAM.format(folder=str(tmp_path), body=body))


def make_tasks(folder: Path, *names: str) -> list[Task]:
    return [Task(name=name, command=(name,), folder=folder) for name in names]


def began(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*-began-*"))


def test_each_device_takes_one_task_and_then_the_next(tmp_path: Path, program: Callable[[str], None]) -> None:
    program(TOGETHER)  # each of the first two waits for the other one
    seen: list[Running] = []
    done: list[str] = []
    queue = Slots(devices=("cuda:0", "cuda:2"), look=seen.append)
    tasks = make_tasks(tmp_path, "a", "b", "c")
    assert queue.run("test", tasks, say=print, done=lambda task: done.append(task.name)) == []
    assert sorted(done) == ["a", "b", "c"]
    assert began(tmp_path)[:2] == ["a-began-0-on-cuda:0", "b-began-0-on-cuda:2"]
    assert max(len(running) for running in seen) == 2
    assert [record.state for task in tasks if (record := task.read_record())] == ["finished"] * 3


def test_a_killed_task_is_done_again_but_not_for_ever(tmp_path: Path, program: Callable[[str], None]) -> None:
    program(KILLED)
    done: list[str] = []
    said: list[str] = []
    tasks = make_tasks(tmp_path, "once", "bad", "good")
    (issue,) = Slots(devices=("cpu",)).run("test", tasks, say=said.append, done=lambda task: done.append(task.name))
    assert (issue.code, issue.where) == ("job.worker_killed", "bad")
    assert done == ["once", "good"]
    assert len([name for name in began(tmp_path) if name.startswith("bad")]) == MOST_DEATHS
    assert len([line for line in said if "back in the queue" in line]) == 1 + MOST_DEATHS - 1
    record = tasks[1].read_record()
    assert record is not None
    assert (record.state, record.place) == ("failed", "cpu")


def test_tasks_under_way_are_asked_to_end_and_no_other_begins(tmp_path: Path, program: Callable[[str], None]) -> None:
    program(UNTIL_ASKED)
    queue = Slots(devices=("cpu",), should_stop=lambda: bool(began(tmp_path)))
    tasks = make_tasks(tmp_path, "a", "b")
    assert queue.run("test", tasks, say=print, done=lambda task: pytest.fail(task.name)) == []
    assert began(tmp_path) == ["a-began-0-on-cpu"]
    record = tasks[0].read_record()
    assert record is not None
    assert record.state == "waiting"

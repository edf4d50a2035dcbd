"""Which devices take trainings side by side, and what is shown of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from builders import Job, Listening

from autoseg.compute.cluster import Task
from autoseg.compute.executor import USABLE_SHARE, WORKER_BYTES
from autoseg.data.splits import Splits
from autoseg.issues import AutosegError
from autoseg.stages import side_by_side
from autoseg.stages.begin import _devices_of_one_model
from autoseg.stages.cluster import training_task
from autoseg.stages.pace import fold_s
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared
from autoseg.stages.side_by_side import Clock, View, devices_that_fit
from autoseg.stages.train import all_keys
from autoseg.storage.atomic import load_document, save_document
from autoseg.tracking.callbacks import MOMENT_FILE, Moment
from autoseg.tracking.progress import Tracker
from autoseg.training.preflight import needed_bytes
from planners import Schedule, expected_step_s


@dataclass
class Watched(Listening):
    """Keeps notes and what is expected, too."""

    lines: list[str] = field(default_factory=list)
    notes: list[tuple[float, str]] = field(default_factory=list)
    expected_s: float = 0.0

    def expect(self, seconds: float) -> None:
        self.expected_s = seconds

    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        self.notes.append((amount, note))

    def found(self, amount: float) -> None:
        self.notes.append((amount, "found"))

    def extend(self, amount: float) -> None:
        self.notes.append((amount, "more"))

    @contextmanager
    def track(self, title: str, total: float) -> Iterator[Tracker]:
        yield self


@dataclass
class Timer:
    """A clock that stands still until it is set."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def job_schedule(job: Job) -> Schedule:
    return load_document(Schedule, job.folder.schedule)


def opened(job: Job, *devices: str) -> tuple[Run, Prepared, Watched]:
    watched = Watched()
    run = replace(Run.open(job.root), device_names=devices, reporter=watched)
    return run, read_prepared(run), watched


def test_as_many_trainings_share_a_cpu_as_memory_has_room_for(finished: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    run, prepared, watched = opened(finished, "cpu", "cuda:1", "cpu")
    (training,) = prepared.schedule.trainings
    need = needed_bytes(prepared.plan.configuration("2d"), training, training.batch_size) + WORKER_BYTES
    for free, expected in ((2 * need + 10, ["cuda:1", "cpu", "cpu"]), (2 * need - 10, ["cuda:1", "cpu"])):
        monkeypatch.setattr(side_by_side, "free_memory_bytes", lambda free=free: int(free / USABLE_SHARE))
        assert devices_that_fit(run, prepared) == expected
    assert len(watched.lines) == 1
    assert watched.lines[0].startswith("1 instead of 2 trainings side by side on the CPU")


def test_one_view_shows_all_trainings_and_the_time_of_the_whole_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    run, prepared, watched = opened(job, "cuda:0", "cuda:2")
    monkeypatch.setattr(side_by_side, "VIEW_S", 0.0)
    keys, schedule = all_keys(run, prepared), prepared.schedule
    tasks = [training_task(run, prepared, ("2d", fold), keys["2d", fold]) for fold in (0, 1)]

    def at(fold: int, step: int, step_s: float | None, key: str | None = None) -> None:
        moment = Moment(key=key or keys["2d", fold], step=step, num_steps=2, step_s=step_s)
        save_document(job.folder.fold("2d", fold) / MOMENT_FILE, moment)

    at(0, 1, None)  # by an earlier call
    at(1, 2, 5.0, key="of another training")
    view = View(run=run, prepared=prepared, tracker=watched, devices=run.device_names, tasks=tasks)
    assert watched.notes == [(1, "found"), (0, "found")]
    at(1, 1, 8.0)
    view.look({0: tasks[0], 1: tasks[1]})
    assert watched.notes[2:] == [(1, "2d fold 0 on cuda:0 1/2, 2d fold 1 on cuda:2 1/2")]
    rest = fold_s(schedule) + schedule.expected_rest_s
    assert watched.expected_s == pytest.approx(max(8.0, expected_step_s(schedule, "2d")) + rest)
    at(0, 0, None)  # killed, and begun again
    at(1, 2, 8.0)
    view.look({1: tasks[1]})
    assert watched.notes[3:] == [(1, "2d fold 1 on cuda:2 validating")]
    tasks[1].folder.mkdir()
    tasks[1].save(place="cuda:2", state="finished")
    view.done(tasks[1])
    assert watched.lines[-1] == "2d, fold 1: trained and validated on cuda:2, 8 s a step"


def seconds(words: Sequence[str] | None) -> float:
    """Of ``--within 12s``."""
    assert words is not None
    assert words[0] == "--within"
    return float(words[1].removesuffix("s"))


@pytest.fixture
def three(job: Job, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Clock, list[Task], Timer]:
    """Three folds of 1000 steps of a second on two devices, 100 s for predictions of each and 50 s for all after them."""
    known = job_schedule(job)
    (measured,) = known.conditions.measurements
    measured = measured.model_copy(update={"step_s": 1.0, "base_features": known.trainings[0].base_features})
    changed = {
        "conditions": known.conditions.model_copy(update={"measurements": (measured,)}),
        "num_folds": 3,
        "trainings": tuple(t.model_copy(update={"num_steps": 1000, "compiled": False}) for t in known.trainings),
        "expected_validation_s": 300.0,
        "expected_rest_s": 50.0,
    }
    save_document(job.folder.schedule, known.model_copy(update=changed))
    splits = load_document(Splits, job.folder.splits)
    save_document(job.folder.splits, splits.model_copy(update={"folds": (*splits.folds, splits.folds[0])}))
    shutil.rmtree(job.folder.models)
    job.folder.cluster.mkdir()
    timer = Timer()
    monkeypatch.setattr(side_by_side, "time", SimpleNamespace(monotonic=timer))  # other threads keep the real one
    run, prepared, _ = opened(job, "cuda:0", "cuda:1")
    keys = all_keys(run, prepared)
    tasks = [training_task(run, prepared, ("2d", fold), keys["2d", fold]) for fold in (0, 1, 2)]
    return run, Clock(run=run, prepared=prepared, devices=2, tasks=tasks), tasks, timer


def test_each_fold_gets_its_share_of_the_time_of_all_devices(three: tuple[Run, Clock, list[Task], Timer]) -> None:
    """Two folds follow each other on one of two devices: 2200 s and 50 s for the rest."""
    run, clock, tasks, timer = three
    assert clock.ends == 2250
    assert seconds(clock.words(tasks[0], {}, tasks[1:])) == 1100
    assert seconds(clock.words(tasks[1], {0: tasks[0]}, tasks[2:])) == 1100
    assert run.schedule.revisions == ()
    timer.now = 1500.0  # the first one took 400 s more than it had
    (words := clock.words(tasks[2], {1: tasks[1]}, []))
    assert seconds(words) == pytest.approx(700, abs=1)
    (revision,) = run.schedule.revisions
    assert (revision.fold, revision.step, revision.num_steps) == (2, 0, 600)


def test_what_would_get_too_few_steps_is_left_out_and_what_was_begun_goes_on(
    three: tuple[Run, Clock, list[Task], Timer],
) -> None:
    run, clock, tasks, timer = three
    for task, running in ((tasks[0], {}), (tasks[1], {0: tasks[0]})):
        clock.words(task, running, [each for each in tasks if each not in (task, *running.values())])
    moment = Moment(key=clock.keys["2d", 1], step=400, num_steps=1000, step_s=1.0)
    save_document(run.folder.fold("2d", 1) / MOMENT_FILE, moment)
    timer.now = 1900.0
    assert seconds(clock.words(tasks[1], {0: tasks[0]}, [tasks[2]])) >= 150  # its process was killed; 300 s are left
    assert run.schedule.steps_of("2d", 1) == 1000
    timer.now = 2060.0
    assert clock.words(tasks[2], {1: tasks[1]}, []) is None
    assert run.schedule.steps_of("2d", 2) == 0


def test_one_model_needs_a_gpu_for_each_process() -> None:
    gpus = tuple(torch.device("cuda", i) for i in (0, 2, 3))
    assert _devices_of_one_model(gpus, 2) == gpus[:2]
    assert _devices_of_one_model((torch.device("cpu"),), 3) == (torch.device("cpu"),) * 3
    with pytest.raises(AutosegError) as caught:
        _devices_of_one_model(gpus, 4)
    assert caught.value.codes == ("ddp.too_few_devices",)

"""Which devices take trainings side by side, and what is shown of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import torch
from builders import Job, Listening

from autoseg.compute.executor import USABLE_SHARE, WORKER_BYTES
from autoseg.issues import AutosegError
from autoseg.stages import side_by_side
from autoseg.stages.begin import _devices_of_one_model
from autoseg.stages.cluster import training_task
from autoseg.stages.pace import fold_s
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared
from autoseg.stages.side_by_side import View, devices_that_fit
from autoseg.stages.train import all_keys
from autoseg.storage.atomic import save_document
from autoseg.tracking.callbacks import MOMENT_FILE, Moment
from autoseg.tracking.progress import Tracker
from autoseg.training.preflight import needed_bytes
from planners import expected_step_s


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
        raise AssertionError(amount)

    @contextmanager
    def track(self, title: str, total: float) -> Iterator[Tracker]:
        yield self


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


def test_one_model_needs_a_gpu_for_each_process() -> None:
    gpus = tuple(torch.device("cuda", i) for i in (0, 2, 3))
    assert _devices_of_one_model(gpus, 2) == gpus[:2]
    assert _devices_of_one_model((torch.device("cpu"),), 3) == (torch.device("cpu"),) * 3
    with pytest.raises(AutosegError) as caught:
        _devices_of_one_model(gpus, 4)
    assert caught.value.codes == ("ddp.too_few_devices",)

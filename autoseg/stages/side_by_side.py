"""Trainings side by side on the devices of this machine: one queue, a process for each training, one view of all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autoseg.compute.cluster import Task
from autoseg.compute.executor import stop_requests, workers_that_fit
from autoseg.compute.memory import free_memory_bytes
from autoseg.compute.slots import Running, Slots
from autoseg.data.dataset import DatasetDescription
from autoseg.issues import AutosegError
from autoseg.stages.cluster import own_predictions, send_tasks, training_pairs, training_waves
from autoseg.stages.pace import fold_s
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared
from autoseg.stages.train import all_keys
from autoseg.stages.work import read_record
from autoseg.storage.atomic import load_or_none
from autoseg.storage.locks import hold_lock
from autoseg.tracking.callbacks import MOMENT_FILE, Moment, read_issues
from autoseg.tracking.progress import Tracker
from autoseg.training.preflight import needed_bytes
from autoseg.wording import count_noun
from planners import expected_step_s, queue_s

GB = 1e9
VIEW_S = 1.0
"""Between two looks at what the trainings wrote."""
Pair = tuple[str, int]
"""Configuration and fold."""


def train_side_by_side(run: Run) -> None:
    """Train and validate all folds that are left, on as many devices as there are. Raises `AutosegError` with those that failed."""
    prepared = read_prepared(run)
    devices, issues, number = devices_that_fit(run, prepared), [], 0
    run.folder.cluster.mkdir(parents=True, exist_ok=True)
    with (
        hold_lock(run.folder.lock("devices"), what=f"the training in {run.folder.root} on several devices"),
        stop_requests(run.say) as should_stop,
    ):
        for name, tasks in training_waves(run):
            pairs = training_pairs(prepared.schedule)
            steps = sum(prepared.schedule.steps_of(*pairs[task.name]) for task in tasks)
            with run.reporter.track("Training", steps) as tracker:
                view = View(run=run, prepared=prepared, tracker=tracker, devices=devices, tasks=tasks)
                slots = Slots(
                    devices=devices,
                    options=("--threads", str(run.num_threads)),
                    should_stop=should_stop,
                    look=view.look,
                )
                issues += slots.run(name, tasks, say=run.say, done=view.done)
                number += len(tasks)
            if issues or should_stop():
                break
    if issues:
        raise AutosegError(*issues, headline=f"{len(issues)} of {count_noun(number, 'training')} failed")


def predict_side_by_side(run: Run, dataset: DatasetDescription) -> None:
    """Predict the test images of a run by a process on each of its devices; nothing where there is one of either.

    Raises `AutosegError` with the processes that failed.
    """
    number = min(run.num_devices, len(dataset.test))
    done = read_record(run.folder, "predict") is not None and len(run.predictions) == len(dataset.test)
    if number < 2 or done:
        return
    folder = run.folder.cluster.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with stop_requests(run.say) as should_stop:
        tasks = own_predictions(run, number)
        slots = Slots(
            devices=run.device_names[:number], options=("--threads", str(run.num_threads)), should_stop=should_stop
        )
        send_tasks(slots, "predict", tasks, title="Predicting the test images", reporter=run.reporter)


def devices_that_fit(run: Run, prepared: Prepared) -> Sequence[str]:
    """The run's devices; fewer where they are this machine's processors and memory is not enough for that many trainings."""
    on_cpu = [device for device in run.device_names if device.startswith("cpu")]
    others = [device for device in run.device_names if not device.startswith("cpu")]
    needs = [
        needed_bytes(prepared.plan.configuration(each.configuration), each, each.batch_size)
        for each in prepared.schedule.trainings
    ]
    free = free_memory_bytes()
    fitting = workers_that_fit(len(on_cpu), max(needs), free_bytes=free) if on_cpu else 0
    if fitting < len(on_cpu):
        needed = f"one may need {max(needs) / GB:.1f} GB of memory, and {free / GB:.1f} GB is free"
        run.say(f"{fitting} instead of {count_noun(len(on_cpu), 'training')} side by side on the CPU: {needed}")
    return [*others, *on_cpu[:fitting]]


@dataclass(slots=True, kw_only=True)
class View:
    """What the trainings of a queue are doing, on one tracker, and how long the whole run will take."""

    run: Run
    prepared: Prepared
    tracker: Tracker
    devices: Sequence[str]
    tasks: Sequence[Task]
    steps: dict[Pair, int] = field(default_factory=dict)
    """That the tracker knows of."""
    keys: Mapping[Pair, str] = field(init=False)
    pairs: Mapping[str, Pair] = field(init=False)
    looked_at: float = field(default=0.0, init=False)
    finished: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.keys, self.pairs = all_keys(self.run, self.prepared), training_pairs(self.prepared.schedule)
        for task in self.tasks:
            pair = self.pairs[task.name]
            moment = self.moment(pair)
            self.steps[pair] = 0 if moment is None else moment.step
            self.tracker.found(self.steps[pair])

    def moment(self, pair: Pair) -> Moment | None:
        """What the training of a fold last wrote; None before its first word."""
        found = load_or_none(Moment, self.run.folder.fold(*pair) / MOMENT_FILE)
        return found if found is not None and found.key == self.keys[pair] else None

    def look(self, running: Running) -> None:
        """Tell what has changed: ``2d fold 0 on cuda:0 120/500``."""
        now = time.monotonic()
        if now - self.looked_at < VIEW_S:
            return
        self.looked_at = now
        notes, done = [], 0
        for slot, task in sorted(running.items()):
            name, fold = pair = self.pairs[task.name]
            moment, total = self.moment(pair), self.prepared.schedule.steps_of(*pair)
            step = self.steps[pair] if moment is None else moment.step
            what = "validating" if step == total else f"{step}/{total}"
            notes.append(f"{name} fold {fold} on {self.devices[slot]} {what}")
            done += step - self.steps[pair]
            self.steps[pair] = step
        self.tracker.advance(done, note=", ".join(notes))
        self.run.reporter.expect(self.left_s(running))

    def left_s(self, running: Running) -> float:
        """Seconds until the whole run is done, at the pace that was last measured."""
        begun = [task.name for _, task in sorted(running.items())]
        waiting = [task.name for task in self.tasks if task.name not in (*begun, *self.finished)]
        schedule = self.prepared.schedule
        seconds = [self._fold_left_s(self.pairs[name]) for name in (*begun, *waiting)]
        return queue_s(seconds, len(self.devices)) + schedule.expected_rest_s

    def _fold_left_s(self, pair: Pair) -> float:
        schedule, moment = self.prepared.schedule, self.moment(pair)
        step_s = expected_step_s(schedule, pair[0])
        if moment is not None and moment.step_s is not None:
            step_s = moment.step_s
        return (schedule.steps_of(*pair) - self.steps[pair]) * step_s + fold_s(schedule)

    def done(self, task: Task) -> None:
        """Say where and how a fold was trained, and what went wrong in it."""
        name, fold = pair = self.pairs[task.name]
        self.finished.add(task.name)
        total = self.prepared.schedule.steps_of(*pair)
        self.tracker.advance(total - self.steps[pair])
        self.steps[pair] = total
        record, moment = task.read_record(), self.moment(pair)
        where = "" if record is None else f" on {record.place}"
        pace = "" if moment is None or moment.step_s is None else f", {moment.step_s:.2g} s a step"
        self.run.say(f"{name}, fold {fold}: trained and validated{where}{pace}")
        for issue in read_issues(self.run.folder.fold(*pair)):
            self.run.show(issue)

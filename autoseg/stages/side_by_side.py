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
from autoseg.stages.pace import fold_s, say_left_out
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared, save_revisions
from autoseg.stages.train import all_keys, first_stages
from autoseg.stages.work import read_record
from autoseg.storage.atomic import load_or_none
from autoseg.storage.locks import hold_lock
from autoseg.tracking.callbacks import MOMENT_FILE, Moment, read_issues
from autoseg.tracking.progress import Tracker
from autoseg.training.preflight import needed_bytes
from autoseg.wording import count_noun
from planners import Schedule, expected_step_s, planned_step_s, queue_s, revise, steps_left_s, stretch_to_fit

GB = 1e9
VIEW_S = 1.0
"""Between two looks at what the trainings wrote."""
Pair = tuple[str, int]
"""Configuration and fold."""


def train_side_by_side(run: Run, keeps_time: bool = False) -> None:
    """Train and validate all folds that are left, on as many devices as there are. Raises `AutosegError` with those that failed.

    ``keeps_time``: the steps follow the pace, so that the run ends when its schedule said.
    """
    prepared = read_prepared(run)
    devices, issues, number = devices_that_fit(run, prepared), [], 0
    run.folder.cluster.mkdir(parents=True, exist_ok=True)
    with (
        hold_lock(run.folder.lock("devices"), what=f"the training in {run.folder.root} on several devices"),
        stop_requests(run.say) as should_stop,
    ):
        waves, pairs = training_waves(run), training_pairs(prepared.schedule)
        every = [task for _, tasks in waves for task in tasks]
        clock = Clock(run=run, prepared=prepared, devices=len(devices), tasks=every)
        for name, tasks in waves:
            steps = sum(run.schedule.steps_of(*pairs[task.name]) for task in tasks)
            with run.reporter.track("Training", steps) as tracker:
                view = View(run=run, prepared=prepared, tracker=tracker, devices=devices, tasks=tasks)
                slots = Slots(
                    devices=devices,
                    options=("--threads", str(run.num_threads)),
                    should_stop=should_stop,
                    look=view.look,
                    words=clock.words if keeps_time else lambda *given: (),
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


def moment_of(run: Run, pair: Pair, key: str) -> Moment | None:
    """What the training of a fold by ``key`` last wrote; None before its first word."""
    found = load_or_none(Moment, run.folder.fold(*pair) / MOMENT_FILE)
    return found if found is not None and found.key == key else None


def _slowness(schedule: Schedule, configuration: str) -> float:
    """How much longer a step of it takes than in trials; predictions are assumed to slow down alike."""
    return expected_step_s(schedule, configuration) / planned_step_s(schedule, configuration)


@dataclass(slots=True, kw_only=True)
class Clock:
    """The time of a run whose folds train side by side: each gets its share of it when it begins, and follows its own pace then.

    The run ends when its schedule said as the call began. What has not begun gets other numbers of steps, or is left out, by the rules
    of a run on one device (docs/decisions/0262).
    """

    run: Run
    prepared: Prepared
    devices: int
    tasks: Sequence[Task]
    """All that were not trained when the call began, in order."""
    keys: Mapping[Pair, str] = field(init=False)
    pairs: Mapping[str, Pair] = field(init=False)
    ends: float = field(init=False)
    """When the run should end, by the monotonic clock."""
    until: dict[str, float] = field(default_factory=dict, init=False)
    """When each task that was begun should end."""

    def __post_init__(self) -> None:
        self.keys, self.pairs = all_keys(self.run, self.prepared), training_pairs(self.prepared.schedule)
        schedule = self.run.schedule
        needs = self._needs(schedule, self.tasks)
        self.ends = time.monotonic() + queue_s(needs.values(), self.devices) + self._rest_s(schedule)

    def words(self, task: Task, running: Running, waiting: Sequence[Task]) -> Sequence[str] | None:
        """``--within`` the time that a task has from now on, after what has not begun was planned anew; None where it is left out."""
        now, schedule, (name, fold) = time.monotonic(), self.run.schedule, self.pairs[task.name]
        queued = {each.name for each in waiting}
        later = [each for each in self.tasks if each.name not in (*self.until, *queued, task.name)]
        pending = [task, *waiting, *later]
        busy = [max(0.0, self.until[each.name] - now) for each in running.values()]

        def stretch(needs: Mapping[Pair, float]) -> float:
            left_s = self.ends - now - self._rest_s(schedule)
            return stretch_to_fit([*needs.values()], self.devices, left_s=left_s, busy_s=busy)

        fresh = [pair for each in pending if not self._done(pair := self.pairs[each.name])]
        needs = self._needs(schedule, pending)
        if counted := [needs[pair] for pair in fresh if pair in needs]:
            schedule = self._revised(schedule, fresh, left_s=stretch(needs) * sum(counted))
        needs = self._needs(schedule, pending)
        within_s = stretch(needs) * needs.get((name, fold), 0.0) if needs else 0.0
        self.until[task.name] = now + within_s
        return ("--within", f"{max(1.0, within_s):.0f}s") if (name, fold) in needs else None

    def _revised(self, schedule: Schedule, jobs: Sequence[Pair], *, left_s: float) -> Schedule:
        """With other numbers of steps for ``jobs``, of which none has begun, where they are too many or too few for ``left_s``."""
        revisions = revise(
            schedule,
            jobs,
            done=0,
            step_s=expected_step_s(schedule, jobs[0][0]),
            left_s=left_s,
            fold_s=fold_s(schedule),
            whole=first_stages(self.prepared),
        )
        if not revisions:
            return schedule
        say_left_out(self.run, revisions, {job: schedule.steps_of(*job) for job in jobs})
        return save_revisions(self.run, revisions)

    def _done(self, pair: Pair) -> int:
        moment = moment_of(self.run, pair, self.keys[pair])
        return 0 if moment is None else moment.step

    def _needs(self, schedule: Schedule, tasks: Sequence[Task]) -> dict[Pair, float]:
        """Seconds of steps and predictions of each that is not left out, at the pace that was last measured."""
        pairs = [pair for each in tasks if schedule.steps_of(*(pair := self.pairs[each.name]))]
        return {
            pair: steps_left_s(schedule, [pair], done=self._done(pair))
            + fold_s(schedule) * _slowness(schedule, pair[0])
            for pair in pairs
        }

    def _rest_s(self, schedule: Schedule) -> float:
        """All that comes after the trainings."""
        return schedule.expected_rest_s * _slowness(schedule, schedule.trainings[0].configuration)


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
    schedule: Schedule = field(init=False)
    totals: dict[Pair, int] = field(default_factory=dict, init=False)
    """Steps of each."""
    looked_at: float = field(default=0.0, init=False)
    finished: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.keys, self.pairs = all_keys(self.run, self.prepared), training_pairs(self.prepared.schedule)
        self.schedule = self.run.schedule
        for task in self.tasks:
            pair = self.pairs[task.name]
            moment, self.totals[pair] = self.moment(pair), self.schedule.steps_of(*pair)
            self.steps[pair] = 0 if moment is None else moment.step
            self.tracker.found(self.steps[pair])

    def moment(self, pair: Pair) -> Moment | None:
        """What the training of a fold last wrote; None before its first word."""
        return moment_of(self.run, pair, self.keys[pair])

    def _follow_revisions(self) -> None:
        """Trainings change their own lengths, and what has not begun is planned anew."""
        self.schedule = self.run.schedule
        before = sum(self.totals.values())
        self.totals = {pair: self.schedule.steps_of(*pair) for pair in self.totals}
        if more := sum(self.totals.values()) - before:
            self.tracker.extend(more)

    def look(self, running: Running) -> None:
        """Tell what has changed: ``2d fold 0 on cuda:0 120/500``."""
        now = time.monotonic()
        if now - self.looked_at < VIEW_S:
            return
        self.looked_at = now
        self._follow_revisions()
        notes, done = [], 0
        for slot, task in sorted(running.items()):
            name, fold = pair = self.pairs[task.name]
            moment, total = self.moment(pair), self.totals[pair]
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
        seconds = [self._fold_left_s(self.pairs[name]) for name in (*begun, *waiting)]
        return queue_s(seconds, len(self.devices)) + self.schedule.expected_rest_s

    def _fold_left_s(self, pair: Pair) -> float:
        moment, total = self.moment(pair), self.totals[pair]
        step_s = expected_step_s(self.schedule, pair[0])
        if moment is not None and moment.step_s is not None:
            step_s = moment.step_s
        return (total - self.steps[pair]) * step_s + fold_s(self.schedule) if total else 0.0

    def done(self, task: Task) -> None:
        """Say where and how a fold was trained, and what went wrong in it."""
        name, fold = pair = self.pairs[task.name]
        self.finished.add(task.name)
        self._follow_revisions()
        total = self.totals[pair]
        self.tracker.advance(total - self.steps[pair])
        self.steps[pair] = total
        record, moment = task.read_record(), self.moment(pair)
        where = "" if record is None else f" on {record.place}"
        pace = "" if moment is None or moment.step_s is None else f", {moment.step_s:.2g} s a step"
        self.run.say(f"{name}, fold {fold}: trained and validated{where}{pace}")
        for issue in read_issues(self.run.folder.fold(*pair)):
            self.run.show(issue)

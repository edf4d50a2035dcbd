"""Progress: lines of text, and bars with the time left."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, Task
from rich.spinner import Spinner
from rich.table import Column
from rich.text import Text

from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import save_document
from autoseg.tracking.callbacks import Callback, EpochRecord, FoldEnd, FoldStart, Moment, StepRecord
from autoseg.wording import format_duration, grouped

logger = logging.getLogger(__name__)
BAR_WIDTH = 20
LEAST_PART = 1e-9
"""Of a unit: less is rounding."""


class Tracker(Protocol):
    """One stage's progress."""

    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        """``amount`` more units are done; ``note`` is a short state such as ``loss 0.31``."""

    def found(self, amount: float) -> None:
        """``amount`` more units were done by an earlier call; they do not count for the speed of this one."""

    def extend(self, amount: float) -> None:
        """``amount`` more units are to be done than was said, or fewer."""


class Reporter(Protocol):
    """What stages report to. They know no terminal; they are given one of these."""

    def say(self, text: str) -> None:
        """One line for the user: what was decided, and why."""

    def warn(self, text: str) -> None:
        """A warning for the user: a result may be wrong."""

    def expect(self, seconds: float) -> None:
        """Announce how long the rest of the whole run will take."""

    def track(self, title: str, total: float) -> AbstractContextManager[Tracker]:
        """A context manager that yields the `Tracker` of a stage with ``total`` units of work."""

    def phase(self, title: str, at_most_s: float | None = None) -> AbstractContextManager[None]:
        """A context manager for work without units, such as ``Planning``, and how long it takes at most, if known."""


class RunClock:
    """Time left for a whole run: a budget that was announced, minus what has gone by."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.expected_end: float | None = None

    def expect(self, seconds_from_now: float) -> None:
        """Announce how long the rest of the run will take."""
        self.expected_end = time.monotonic() + seconds_from_now

    def left(self, stage_s: float = 0.0) -> str:
        """``, whole run 12 min 00 s left``, or how late it is; nothing while it is unknown.

        ``stage_s`` is what the present stage still needs at its pace: the run takes no less, planned or not.
        """
        if self.expected_end is None:
            return ""
        left = self.expected_end - time.monotonic()
        if stage_s:
            left = max(left, stage_s)
        if left < 0:
            return f", whole run {format_duration(-left)} later than expected"
        return f", whole run {format_duration(left)} left"


@dataclass(slots=True)
class _LogTracker:
    title: str
    total: float
    clock: RunClock
    interval_s: float
    started: float
    last: float
    done: float = 0.0
    done_before: float = 0.0
    unit_started: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.unit_started = self.started

    def found(self, amount: float) -> None:
        self.done_before += amount

    def extend(self, amount: float) -> None:
        self.total += amount

    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        now, before = time.monotonic(), self.done
        self.done += amount
        if int(self.done) != int(before):
            self.unit_started = now
        if now - self.last < self.interval_s:
            return
        self.last = now
        finished = self.done_before + self.done
        left = (now - self.started) / self.done * (self.total - finished) if self.done else 0.0
        if (part := self.done % 1) > LEAST_PART:  # of a long unit, which may take longer than all others
            left = max(left, (now - self.unit_started) * (1 / part - 1))
        detail = f", {note}" if note else ""
        stage = f", {format_duration(left)} left" if self.done else ""
        logger.info("%s: %.0f of %.0f%s%s%s", self.title, finished, self.total, detail, stage, self.clock.left(left))


class SilentReporter:
    """Shows nothing, and gives warnings to Python (`warnings`); for library use and tests."""

    def say(self, text: str) -> None:
        logger.debug(text)

    def warn(self, text: str) -> None:
        warnings.warn(text, stacklevel=2)

    def expect(self, seconds: float) -> None:
        logger.debug("about %s left", format_duration(seconds))

    @contextmanager
    def phase(self, title: str, at_most_s: float | None = None) -> Iterator[None]:
        yield

    @contextmanager
    def track(self, title: str, total: float) -> Iterator[Tracker]:
        yield _LogTracker(title, total, RunClock(), float("inf"), time.monotonic(), time.monotonic())


class LogReporter:
    """Plain log lines, for output that is no terminal: one every ``interval_s`` seconds at most."""

    def __init__(self, clock: RunClock, *, interval_s: float = 15.0) -> None:
        self.clock = clock
        self.interval_s = interval_s

    def say(self, text: str) -> None:
        logger.info(text)

    def warn(self, text: str) -> None:
        self.say(f"Warning: {text}")

    def expect(self, seconds: float) -> None:
        self.clock.expect(seconds)

    @contextmanager
    def phase(self, title: str, at_most_s: float | None = None) -> Iterator[None]:
        if at_most_s is not None:
            logger.info("%s, up to %s", title, format_duration(at_most_s))
        yield

    @contextmanager
    def track(self, title: str, total: float) -> Iterator[Tracker]:
        now = time.monotonic()
        yield _LogTracker(title, total, self.clock, self.interval_s, now, now)


class _Line(ProgressColumn):
    """A whole line of progress that fits into the terminal: what there is no room for is left out, least important first."""

    def __init__(self, clock: RunClock, console: Console) -> None:
        self.clock = clock
        self.console = console
        self.spinner, self.bar = (
            (Spinner("dots"), "━─") if console.encoding.startswith("utf") else (Spinner("line"), "#-")
        )
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))

    def render(self, task: Task) -> RenderableType:
        spinner = self.spinner.render(task.get_time())
        beginning = f"{spinner.plain if isinstance(spinner, Text) else ''} {task.description}"
        elapsed = format_duration(task.elapsed or 0)
        if task.total is None:
            limit = task.fields["at_most_s"]
            return Text(f"{beginning}, {elapsed}" + (f" of up to {format_duration(limit)}" if limit else ""))
        left, share = task.time_remaining, task.completed / task.total if task.total else 1.0
        filled = round(BAR_WIDTH * min(share, 1.0))
        parts = {
            "bar": f" {self.bar[0] * filled}{self.bar[1] * (BAR_WIDTH - filled)}",
            "count": f" {task.completed:.0f}/{task.total:.0f}",
            "left": f", {elapsed}" if left is None else f", {format_duration(left)} left",
            "run": self.clock.left(left or 0.0),
            "note": f", {task.fields['note']}" if task.fields["note"] else "",
        }
        room = self.console.width - 1
        for name in ("bar", "note", "run", "left"):
            if len(beginning) + sum(map(len, parts.values())) > room:
                parts[name] = ""
        return Text(beginning + "".join(parts.values()))


@dataclass(slots=True)
class _BarTracker:
    bar: Progress
    task: Task

    def found(self, amount: float) -> None:
        self.task.completed += amount  # an update of the bar would make it a sample of the speed

    def extend(self, amount: float) -> None:
        self.bar.update(self.task.id, total=(self.task.total or 0.0) + amount)

    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        self.bar.update(self.task.id, advance=amount, note=note)


class TerminalReporter:
    """Lines of text, and below them one live line on what is being done, on a terminal."""

    def __init__(self, console: Console, clock: RunClock) -> None:
        self.console = console
        self.clock = clock
        self.bar = Progress(_Line(clock, console), console=console, transient=True)

    def say(self, text: str) -> None:
        logger.debug(text)
        self.console.print(text, highlight=False, markup=False)

    def warn(self, text: str) -> None:
        self.say(f"Warning: {text}")

    def expect(self, seconds: float) -> None:
        self.clock.expect(seconds)

    @contextmanager
    def phase(self, title: str, at_most_s: float | None = None) -> Iterator[None]:
        with self._shown(title, None, at_most_s):
            yield

    @contextmanager
    def track(self, title: str, total: float) -> Iterator[Tracker]:
        with self._shown(title, total) as task:
            yield _BarTracker(self.bar, task)

    @contextmanager
    def _shown(self, title: str, total: float | None, at_most_s: float | None = None) -> Iterator[Task]:
        """A line while the block runs; what is inside of it replaces it meanwhile."""
        outer = [task for task in self.bar.tasks if task.visible]
        for task in outer:
            task.visible = False
        number = self.bar.add_task(title, total=total, note="", at_most_s=at_most_s)
        if not outer:
            self.bar.start()
        try:
            yield next(task for task in self.bar.tasks if task.id == number)
        finally:
            self.bar.remove_task(number)
            for task in outer:
                task.visible = True
            if not outer:
                self.bar.stop()


@dataclass(slots=True)
class FoldProgress(Callback):
    """Shows a training's steps on a tracker, and says its issues: those of one moment and kind together."""

    tracker: Tracker
    say: Callable[[str], None]
    score: str = field(default="", init=False)
    waiting: list[Issue] = field(default_factory=list, init=False)

    def on_fold_start(self, fold: FoldStart) -> None:
        self.tracker.found(fold.steps_done)

    def on_step(self, step: StepRecord) -> None:
        self._say_issues()
        self.tracker.advance(note=f"loss {step.loss:.2f}{self.score}")

    def on_epoch(self, epoch: EpochRecord) -> None:
        self.score = "" if epoch.mean_dice is None else f", Dice about {epoch.mean_dice:.2f}"

    def on_issue(self, issue: Issue) -> None:
        self.waiting.append(issue)

    def on_fold_end(self, end: FoldEnd) -> None:
        self._say_issues()

    def _say_issues(self) -> None:
        for issue in grouped(self.waiting):
            self.say(f"{issue.severity.capitalize()}: {issue}")
        self.waiting.clear()


MOMENT_S = 2.0
"""Between two writings of a fold's ``progress.json``."""


@dataclass(slots=True)
class MomentFile(Callback):
    """Writes how far a training is into a file, for other processes."""

    path: Path
    moment: Moment | None = field(default=None, init=False)
    written_at: float = field(default=0.0, init=False)

    def on_fold_start(self, fold: FoldStart) -> None:
        self._write(Moment(key=fold.key, step=fold.steps_done, num_steps=fold.num_steps))

    def on_step(self, step: StepRecord) -> None:
        if self.moment is not None and time.monotonic() - self.written_at >= MOMENT_S:
            self._write_step(step.step + 1)

    def on_fold_end(self, end: FoldEnd) -> None:
        if self.moment is not None and end.steps_done > self.moment.step:
            self._write_step(end.steps_done)

    def _write_step(self, done: int) -> None:
        if self.moment is not None and done > self.moment.step:
            pace = (time.monotonic() - self.written_at) / (done - self.moment.step)
            self._write(self.moment.model_copy(update={"step": done, "step_s": pace}))

    def _write(self, moment: Moment) -> None:
        self.moment, self.written_at = moment, time.monotonic()
        with suppress(AutosegError):  # on a full disk the next checkpoint says so
            save_document(self.path, moment)

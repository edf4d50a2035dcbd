"""Progress: lines of text, and bars with the time left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from autoseg.issues import Issue
from autoseg.tracking.callbacks import Callback, EpochRecord, FoldStart, StepRecord

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """One stage's progress."""

    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        """``amount`` more units are done; ``note`` is a short state such as ``loss 0.31``."""

    def found(self, amount: float) -> None:
        """``amount`` more units were done by an earlier call; they do not count for the speed of this one."""


class Reporter(Protocol):
    """What stages report to. They know no terminal; they are given one of these."""

    def say(self, text: str) -> None:
        """One line for the user: what was decided, and why."""

    def expect(self, seconds: float) -> None:
        """Announce how long the rest of the whole run will take."""

    def track(self, title: str, total: float) -> AbstractTracking:
        """A context manager that yields the `Tracker` of a stage with ``total`` units of work."""


AbstractTracking = AbstractContextManager[Tracker]
"""What `Reporter.track` returns."""


def format_duration(seconds: float) -> str:
    """A duration as text: ``8 s``, ``3 min 20 s``, ``1 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


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

    def found(self, amount: float) -> None:
        self.done_before += amount

    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.last < self.interval_s:
            return
        self.last = now
        finished = self.done_before + self.done
        left = (now - self.started) / self.done * (self.total - finished) if self.done else 0.0
        detail = f", {note}" if note else ""
        stage = f", {format_duration(left)} left" if self.done else ""
        logger.info("%s: %.0f of %.0f%s%s%s", self.title, finished, self.total, detail, stage, self.clock.left(left))


class SilentReporter:
    """Shows nothing; for library use and tests."""

    def say(self, text: str) -> None:
        logger.debug(text)

    def expect(self, seconds: float) -> None:
        logger.debug("about %s left", format_duration(seconds))

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

    def expect(self, seconds: float) -> None:
        self.clock.expect(seconds)

    @contextmanager
    def track(self, title: str, total: float) -> Iterator[Tracker]:
        now = time.monotonic()
        yield _LogTracker(title, total, self.clock, self.interval_s, now, now)


class _TimeLeftColumn(ProgressColumn):
    """Time left for the stage, and for the whole run where that is known."""

    def __init__(self, clock: RunClock) -> None:
        self.clock = clock
        super().__init__()

    def render(self, task: Task) -> Text:
        remaining = task.time_remaining
        stage = "" if remaining is None else f"{format_duration(remaining)} left"
        return Text(f"{stage}{self.clock.left(remaining or 0.0)}", style="cyan")


@dataclass(slots=True)
class _BarTracker:
    bar: Progress
    task: int

    def found(self, amount: float) -> None:
        (task,) = self.bar.tasks
        task.completed += amount  # an update of the bar would make it a sample of the speed

    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        self.bar.update(self.task, advance=amount, note=note)  # type: ignore[arg-type]


class TerminalReporter:
    """Lines and live bars on a terminal."""

    def __init__(self, console: Console, clock: RunClock) -> None:
        self.console = console
        self.clock = clock

    def say(self, text: str) -> None:
        logger.debug(text)
        self.console.print(text, highlight=False, markup=False)

    def expect(self, seconds: float) -> None:
        self.clock.expect(seconds)

    @contextmanager
    def track(self, title: str, total: float) -> Iterator[Tracker]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            _TimeLeftColumn(self.clock),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            yield _BarTracker(bar, bar.add_task(title, total=total, note=""))


@dataclass(slots=True)
class FoldProgress(Callback):
    """Shows a training's steps on a tracker, and says its issues."""

    tracker: Tracker
    say: Callable[[str], None]
    score: str = field(default="", init=False)

    def on_fold_start(self, fold: FoldStart) -> None:
        self.tracker.found(fold.steps_done)

    def on_step(self, step: StepRecord) -> None:
        self.tracker.advance(note=f"loss {step.loss:.2f}{self.score}")

    def on_epoch(self, epoch: EpochRecord) -> None:
        self.score = "" if epoch.mean_dice is None else f", validation Dice about {epoch.mean_dice:.2f}"

    def on_issue(self, issue: Issue) -> None:
        self.say(str(issue))

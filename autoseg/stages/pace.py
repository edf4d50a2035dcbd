"""The pace of training steps: what is left of a run follows it, so that the run ends in its time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autoseg.settings import sets_steps
from autoseg.stages.run import Run
from autoseg.stages.schedule import save_revisions, schedule_edits
from autoseg.tracking.callbacks import Callback, FoldEnd, FoldStart
from autoseg.tracking.progress import Tracker
from planners import (
    Revision,
    Schedule,
    expected_step_s,
    planned_step_s,
    revise,
    smoothed_slowdown,
    steps_left_s,
)

logger = logging.getLogger(__name__)


def follows_clock(run: Run) -> bool:
    """Whether a time decides on the number of steps, not the user or the method."""
    edited = any(edit.path.endswith(".num_steps") for edit in schedule_edits(run))
    return not (run.follows_method or edited or sets_steps(run.settings))


WARM_UP_STEPS = 4
"""Of each training of a process: cases are opened, the network is compiled."""
PACE_STEPS, PACE_S, PACE_SHARE = 3, 8.0, 0.015
"""The pace is that of so many steps at least, over so many seconds and this share of what is left of the run."""
WORTH_SAYING = 0.25
"""Share by which the number of steps must change to be said; all changes are in ``schedule.json``."""


@dataclass(slots=True, kw_only=True)
class Pacer(Callback):
    """Keeps a run within its time: follows the pace of training steps, and plans anew what is left where it departs.

    The time is what the schedule expected when this call began to train, however long earlier calls took.
    """

    run: Run
    schedule: Schedule
    tracker: Tracker
    left: list[tuple[str, int]]
    """Folds that are not trained yet, in order, those that were left out among them; the first one trains."""
    whole: tuple[str, ...] = ()
    """Configurations of which no fold may be left out."""
    is_active: bool = False
    ends: float | None = None
    """When the run should end, by the monotonic clock; none before the first fold starts."""
    window_s: float = PACE_S
    skip: int = 0
    """Steps that are still left out of the pace."""
    since: tuple[int, float] | None = None
    """Steps done and time when the pace began to be measured."""
    said: int = 0
    """The number of steps that the user knows."""
    stretches: list[tuple[float, float]] = field(default_factory=list)
    """Measured stretches of steps, of any fold: seconds, and what was planned for them."""
    before: float = 1.0
    """How much longer than planned a step took before this call."""
    step_s: float | None = None
    """What a step takes, as far as the stretches tell for what is left."""
    caution: float = 1.0
    """How much more than steps predictions slow down."""
    is_unpredicted: bool = False
    """Whether a fold was trained, and not yet validated."""
    earlier_s: float = 0.0
    """What earlier calls spent on the fold that trains."""
    gives_up: bool = False
    """Whether the fold that trains is left out: it would get too few steps."""

    @property
    def fold_s(self) -> float:
        """Predicting and scoring the validation cases of one fold, at the planned pace."""
        return fold_s(self.schedule)

    @property
    def slowdown(self) -> float:
        """How much longer a step takes than planned; 1 before one was timed."""
        return 1.0 if self.step_s is None else self.step_s / planned_step_s(self.schedule, self.left[0][0])

    def expected_s(self, done: int) -> float:
        """What is left of the run after so many steps of the first fold, at the planned pace."""
        kept = sum(self.schedule.steps_of(*job) > 0 for job in self.left)
        return steps_left_s(self.schedule, self.left, done=done) + kept * self.fold_s + self.rest_s

    @property
    def rest_s(self) -> float:
        """All that comes after the trainings, at the planned pace; none of a call that trains one fold."""
        return self.schedule.expected_rest_s if self.run.within_s is None else 0.0

    def predicted(self, seconds: float) -> None:
        """Predicting and scoring the validation cases of the last fold took so long."""
        if self.fold_s and self.is_unpredicted:
            self.caution = seconds / self.fold_s / self.slowdown
        self.is_unpredicted = False

    def on_fold_end(self, end: FoldEnd) -> None:
        self.is_unpredicted = end.error is None

    def on_fold_start(self, fold: FoldStart) -> None:
        while self.left and self.left[0] != (fold.configuration, fold.fold):  # trained by another process
            self.left = self.left[1:]
        if self.ends is None:
            expected_s, within_s = self.expected_s(fold.steps_done), self.run.within_s
            self.ends = time.monotonic() + expected_s if within_s is None else self.run.started + within_s
            self.window_s = max(PACE_S, PACE_SHARE * expected_s)
            name = fold.configuration
            self.before = expected_step_s(self.schedule, name) / planned_step_s(self.schedule, name)
        self.earlier_s = fold.earlier_s
        self.skip, self.since, self.said, self.gives_up = WARM_UP_STEPS, None, fold.num_steps, False

    def revise(self, done: int) -> Revision | None:
        """Called after each step with the steps done. Another number of steps for the fold that trains, or None to keep it.

        Where the number of steps is set, the pace tells how long the rest of the run takes.
        """
        if self.ends is None:
            return None
        now, self.skip = time.monotonic(), self.skip - 1
        if self.since is None:
            self.since = (done, now) if self.skip <= 0 else None
            return None
        steps, seconds = done - self.since[0], now - self.since[1]
        if steps < PACE_STEPS or seconds < self.window_s:
            return None
        planned_s, expected_s = planned_step_s(self.schedule, self.left[0][0]), self.expected_s(done)
        self.stretches.append((seconds, steps * planned_s))
        self.since = (done, now)
        self.step_s = planned_s * smoothed_slowdown(self.stretches, left_s=expected_s, before=self.before)
        if not self.is_active:
            self.run.reporter.expect(self.slowdown * expected_s)
            return None
        revisions = revise(
            self.schedule,
            self.left,
            done=done,
            step_s=self.step_s,
            left_s=self.ends - now,
            rest_s=self.rest_s,
            fold_s=self.fold_s,
            caution=self.caution,
            whole=self.whole,
            usual_step_s=planned_s * sum(took for took, _ in self.stretches) / sum(each for _, each in self.stretches),
        )
        return self._save(revisions) if revisions else None

    def _save(self, revisions: Sequence[Revision]) -> Revision | None:
        """Keep the revisions of all folds that are left; returns that of the fold that trains, the first one, unless it is left out."""
        before = {job: self.schedule.steps_of(*job) for job in self.left}
        planned = before[self.left[0]]
        self.schedule = save_revisions(self.run, revisions)
        now = {job: self.schedule.steps_of(*job) for job in self.left}
        self.tracker.extend(sum(now.values()) - sum(before.values()))
        say_left_out(self.run, revisions, before)
        (name, fold), first = self.left[0], revisions[0]
        if not first.num_steps:
            self.gives_up = True
            return None
        logger.debug("%s, fold %d: %d steps from now on; %s", name, fold, first.num_steps, first.reason)
        if abs(first.num_steps - self.said) > WORTH_SAYING * self.said:
            self.said = first.num_steps
            self.run.say(f"{name}, fold {fold}: {first.num_steps} steps instead of {planned}: {first.reason}")
        return first


def say_left_out(run: Run, revisions: Sequence[Revision], before: Mapping[tuple[str, int], int]) -> None:
    """Say which folds are left out from now on, and which no longer are; they had ``before`` so many steps."""
    for each in revisions:
        if bool(before[each.configuration, each.fold]) != bool(each.num_steps):
            verb = "is trained after all" if each.num_steps else "is left out"
            run.say(f"{each.configuration}, fold {each.fold}, {verb}: {each.reason}")


def fold_s(schedule: Schedule) -> float:
    """Seconds of predicting and scoring the validation cases of one fold, at the planned pace."""
    return schedule.expected_validation_s / (schedule.num_folds * len(schedule.trainings))

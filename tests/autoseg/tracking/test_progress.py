"""Messages about the time left."""

from __future__ import annotations

import io
import logging
import re
import time

import pytest
from rich.console import Console
from rich.progress import Task, TaskID

from autoseg.issues import Issue
from autoseg.tracking.callbacks import StepRecord
from autoseg.tracking.progress import (
    FoldProgress,
    LogReporter,
    RunClock,
    SilentReporter,
    TerminalReporter,
    _Line,
    format_duration,
)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.4, "59 min 59 s"), (3900, "1 h 05 min")],
)
def test_durations_are_readable(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said


def test_a_run_never_ends_before_its_present_stage() -> None:
    """Planned for a minute, but the stage needs an hour at its pace."""
    clock = RunClock()
    clock.expect(60)
    assert clock.left(3600) == ", whole run 1 h 00 min left"
    assert clock.left(5).startswith((", whole run 1 min", ", whole run 59 s", ", whole run 58 s"))


def test_time_left_is_shown_only_if_known_and_lateness_too() -> None:
    clock = RunClock()
    assert clock.left(10) == ""
    clock.expect(-30)
    assert "later than expected" in clock.left()
    assert clock.left(10) == ", whole run 10 s left"


def test_what_was_found_done_does_not_make_the_rest_seem_short(caplog) -> None:
    caplog.set_level(logging.INFO, logger="autoseg.tracking.progress")
    with LogReporter(RunClock(), interval_s=0.0).track("Training", 1000) as tracker:
        tracker.found(900)
        tracker.advance(0)
        time.sleep(0.2)
        tracker.advance()
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "Training: 900 of 1000"
    assert second.startswith("Training: 901 of 1000, ")
    assert not second.endswith(", 0 s left")


def test_a_long_unit_of_work_needs_at_least_its_own_time(caplog: pytest.LogCaptureFixture) -> None:
    """One image of many windows after short ones."""
    caplog.set_level("INFO")
    with LogReporter(RunClock(), interval_s=0.0).track("Predicting", 100) as tracker:
        tracker.advance(99)
        time.sleep(0.2)
        tracker.advance(0.001)
    (minutes,) = re.findall(r"(\d+) min .* left", caplog.records[-1].getMessage())
    assert int(minutes) >= 3  # 0.2 s are a thousandth


def test_a_bar_takes_no_speed_from_what_was_found_done() -> None:
    with TerminalReporter(Console(file=io.StringIO()), RunClock()).track("Training", 1000) as tracker:
        tracker.advance()
        time.sleep(0.05)
        tracker.found(900)
        tracker.advance()
        assert tracker.task.completed == 902  # type: ignore[attr-defined]
        assert tracker.task.speed < 50  # type: ignore[attr-defined]


def test_a_line_of_progress_fits_into_80_columns_and_shows_what_matters_most() -> None:
    screen = io.StringIO()
    clock = RunClock()
    clock.expect(3600)
    reporter = TerminalReporter(Console(file=screen, force_terminal=True, width=80, legacy_windows=False), clock)
    with reporter.phase("Preparing the training"):
        reporter.bar.refresh()
        with reporter.track("Training 9300 steps of 3d_cascade_fullres", 9300) as tracker:
            for _ in range(3):
                tracker.advance(note="loss -0.82, Dice about 0.87")
            reporter.bar.refresh()
        reporter.say("a decision")
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", screen.getvalue())]
    assert max(map(len, lines)) < 80
    assert any("Training 9300 steps of 3d_cascade_fullres 3/9300" in line for line in lines)
    assert any("Preparing the training" in line for line in lines)
    assert "a decision" in lines


def test_a_short_line_shows_bar_time_left_and_note() -> None:
    column = _Line(RunClock(), Console(file=io.StringIO(), width=80))
    task = Task(
        TaskID(0), "Training", 100, 40, _get_time=time.monotonic, fields={"note": "loss 0.31", "at_most_s": None}
    )
    assert re.fullmatch(r"\S+ Training \S{20} 40/100, 0 s, loss 0\.31", column.render(task).plain)


def test_issues_of_one_moment_and_kind_are_said_together() -> None:
    said: list[str] = []
    with SilentReporter().track("Training", 10) as tracker:
        progress = FoldProgress(tracker, said.append)
        for name in ("liver", "spleen", "aorta"):
            where = f"2d, fold 0, class {name}"
            progress.on_issue(Issue(code="training.x", severity="warning", where=where, message="not found"))
        progress.on_issue(Issue(code="training.y", severity="note", where="2d, fold 0", message="restarted"))
        assert said == []
        progress.on_step(StepRecord(step=0, loss=1.0, learning_rate=0.1, wait_s=0.0, duration_s=1.0))
    assert said == [
        "Warning: 2d, fold 0, class liver, class spleen, class aorta: not found",
        "Note: 2d, fold 0: restarted",
    ]


def test_without_a_terminal_phases_of_a_known_length_are_lines(caplog) -> None:
    caplog.set_level(logging.INFO, logger="autoseg.tracking.progress")
    reporter = LogReporter(RunClock())
    with reporter.phase("Planning"), reporter.phase("Timing 2d", 20.0):
        pass
    assert [record.getMessage() for record in caplog.records] == ["Timing 2d, up to 20 s"]

"""Messages about the time left."""

from __future__ import annotations

import io
import logging
import time

import pytest
from rich.console import Console

from autoseg.tracking.progress import LogReporter, RunClock, TerminalReporter, format_duration


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


def test_a_bar_takes_no_speed_from_what_was_found_done() -> None:
    with TerminalReporter(Console(file=io.StringIO()), RunClock()).track("Training", 1000) as tracker:
        tracker.advance()
        time.sleep(0.05)
        tracker.found(900)
        tracker.advance()
        (task,) = tracker.bar.tasks  # type: ignore[attr-defined]
        assert task.completed == 902
        assert task.speed < 50

"""What people are told of time left."""

from __future__ import annotations

import pytest

from autoseg.progress import RunClock, format_duration


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.4, "59 min 59 s"), (3900, "1 h 05 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said


def test_a_run_never_ends_before_its_present_stage() -> None:
    """Planned for a minute, but the stage needs an hour at its pace."""
    clock = RunClock()
    clock.expect(60)
    assert clock.left(3600) == ", whole run 1 h 00 min left"
    assert clock.left(5).startswith((", whole run 1 min", ", whole run 59 s", ", whole run 58 s"))


def test_nothing_is_said_of_a_run_of_unknown_length_and_lateness_is_said() -> None:
    clock = RunClock()
    assert clock.left(10) == ""
    clock.expect(-30)
    assert "later than expected" in clock.left()
    assert clock.left(10) == ", whole run 10 s left"

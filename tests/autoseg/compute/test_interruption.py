"""The first signal stops after the step, the second immediately; none is lost."""

from __future__ import annotations

import os
import signal

import pytest

from autoseg.compute.executor import SIGNALS, stop_requests


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_answered_at_once_and_the_second_insists(number: signal.Signals) -> None:
    said: list[str] = []
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        insist(number, said)
    assert len(said) == 1
    assert signal.getsignal(number) == before


def insist(number: signal.Signals, said: list[str]) -> None:
    with stop_requests(said.append) as should_stop:
        assert not should_stop()
        signal.raise_signal(number)
        assert should_stop()
        assert len(said) == 1
        assert "Press Ctrl-C again to stop immediately" in said[0]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def leave_unheeded(done: list[str]) -> None:
    with stop_requests(lambda text: None):
        signal.raise_signal(signal.SIGINT)
        done.append("the last step")


def test_a_request_that_came_after_the_last_step_ends_the_block() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        leave_unheeded(done)
    assert done


def test_a_forked_worker_that_gets_the_signal_too_says_nothing(capfd) -> None:
    with stop_requests(lambda text: print(text, flush=True)):
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGINT)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert capfd.readouterr().out == ""

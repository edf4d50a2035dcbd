"""Interruption without losing work: the first signal asks for an end after the step, the second ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requests(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """While the block runs, the first Ctrl-C or SIGTERM is only recorded; the yielded function says whether there was one.

    ``say`` is called at once. A second one raises `KeyboardInterrupt` at once, and so does the end of a block that did
    not heed the first. Outside the main thread, where Python delivers no signals, nothing changes and the answer is always false.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested, process = threading.Event(), os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        if os.getpid() == process:  # Ctrl-C reaches forked workers, too, which have this handler
            # Said here: the next step may be far away. Python calls handlers between its own instructions, and
            # the locks of logging and of rich may be taken again by the thread that holds them.
            say("Interrupted: ending after this training step. Press Ctrl-C again to end at once.")

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if requested.is_set():
        raise KeyboardInterrupt


def treat_termination_as_interrupt() -> None:
    """Let SIGTERM end the program the way Ctrl-C does, so that what is open is closed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)

"""A service that answers on a port of this machine, as tests see it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import httpx

from autoseg.serving.rules import Limits
from autoseg.serving.server import Running

LIMITS = Limits(queue=4, upload_bytes=2_000_000, timeout_s=120.0)
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Live:
    """A running service and a client of it."""

    running: Running
    client: httpx.Client
    state: Path

    @property
    def files(self) -> list[str]:
        """Everything in the state folder but its lock."""
        return sorted(p.relative_to(self.state).as_posix() for p in self.state.rglob("*") if p.name != "lock")

    def rests(self) -> bool:
        """Wait until nothing is being uploaded."""
        deadline = time.monotonic() + PATIENCE_S
        while self.client.get("/health").json()["uploading"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return True


@contextmanager
def answering(running: Running) -> Iterator[httpx.Client]:
    """A client of a service that answers until the block ends."""
    thread = Thread(target=running.run)
    thread.start()
    try:
        with httpx.Client(base_url=running.address, timeout=PATIENCE_S) as client:
            yield client
    finally:
        running.server.should_exit = True
        thread.join()

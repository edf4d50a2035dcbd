"""Locks between processes that the kernel frees when their owner dies."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoseg.errors import AutosegError
from autoseg.run_folder import write_error

try:
    import fcntl
except ImportError:  # Windows has no flock; a byte of the file is locked instead
    fcntl = None  # type: ignore[assignment]
    import msvcrt


@contextmanager
def hold_lock(path: Path, *, what: str) -> Iterator[None]:
    """Own the lock file ``path`` while the block runs.

    Raises `AutosegError` that names pid and host of the owner when another process has it. The file stays behind; what
    counts is the operating system's lock on it, which ends with its owner, however that died.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        if not _take(handle):
            raise AutosegError(f"{what} is being worked on by {_owner(handle)}; wait for it, or stop that process")
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(handle, 0)
        os.pwrite(handle, owner.encode(), 0)
        yield
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True


def _owner(handle: int) -> str:
    try:
        found = json.loads(os.pread(handle, 1000, 0))
        return f"process {found['pid']} on {found['host']}"
    except (ValueError, KeyError, TypeError, OSError):
        return "another process"

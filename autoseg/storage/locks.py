"""Locks between processes that the kernel frees when their owner dies."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import write_error

try:
    import fcntl
except ImportError:  # Windows has no flock; a byte of the file is locked instead
    fcntl = None  # type: ignore[assignment]
    import msvcrt


logger = logging.getLogger(__name__)
WAIT_S = 0.2
"""Between two checks of a lock that another process holds."""
OUTLIVED_S = 10.0
"""So long a lock may outlive its owner, in processes that it started: those of torch look for their parent every 5 s."""
HELD = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
"""What the system answers where another process has a lock."""


@contextmanager
def hold_lock(path: Path, *, what: str, wait: bool = False, say: Callable[[str], None] = logger.info) -> Iterator[None]:
    """Own the lock file ``path`` while the block runs.

    When another process has it: with ``wait`` that is said and waited for, else `AutosegError` is raised; both name pid and
    host of the owner. The file stays behind; what counts is the operating system's lock on it, which ends with its owner,
    however that died, and with the processes that it started, for which `OUTLIVED_S` is waited. Raises `AutosegError` where
    the file system knows no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        taken, started = _take(handle, path), time.monotonic()
        while not taken and _owner_is_dead(handle) and time.monotonic() - started < OUTLIVED_S:
            time.sleep(WAIT_S)
            taken = _take(handle, path)
        if not taken and wait:
            say(f"Waiting: {what} is being worked on by {_owner(handle)}")
        elif not taken:  # perhaps it is only `owner_of` who has it
            time.sleep(WAIT_S)
            taken = _take(handle, path)
        while not taken and wait:
            time.sleep(WAIT_S)
            taken = _take(handle, path)
        if not taken:
            raise AutosegError(
                Issue(
                    code="lock.held",
                    where=what,
                    message=f"is being worked on by {_owner(handle)}",
                    fix="wait for it, or stop that process",
                )
            )
        _note_owner(handle)
        yield
    finally:
        os.close(handle)


def owner_of(path: Path) -> str | None:
    """Who holds the lock file ``path`` now, such as ``process 17 on node3``; None where nobody does."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _take(handle, path) else _owner(handle)
    finally:
        os.close(handle)


def _take(handle: int, path: Path) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in HELD:
            return False
        message = f"cannot be locked ({error.strerror or error}): its file system has no locks"
        fix = "choose a folder on another file system with --out"
        raise AutosegError(Issue(code="lock.unsupported", where=str(path), message=message, fix=fix)) from error
    return True


def _note_owner(handle: int) -> None:
    """Note this process for the messages of others; what counts is the lock, so a full disk is no reason to refuse it."""
    owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, owner.encode(), 0)


def _owner(handle: int) -> str:
    noted = _noted_owner(handle)
    return "another process" if noted is None else f"process {noted[0]} on {noted[1]}"


def _noted_owner(handle: int) -> tuple[int, str] | None:
    """Pid and host of the last owner that noted them; None where there is nothing to read."""
    try:
        found = json.loads(os.pread(handle, 1000, 0))
        return int(found["pid"]), str(found["host"])
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _owner_is_dead(handle: int) -> bool:
    """Whether the noted owner was a process of this machine that no longer lives."""
    noted = _noted_owner(handle)
    if fcntl is None or noted is None or noted[1] != socket.gethostname():  # on Windows signal 0 is Ctrl-C
        return False
    return not _is_alive(noted[0])


def _is_alive(pid: int) -> bool:
    """A living process of another user also counts."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


def owners_here(paths: Iterable[Path]) -> frozenset[int]:
    """Living processes of this machine that have, or last had, one of these locks."""
    owners = set()
    for path in paths:
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                noted = _noted_owner(handle)
            finally:
                os.close(handle)
            if fcntl is not None and noted is not None and noted[1] == socket.gethostname() and _is_alive(noted[0]):
                owners.add(noted[0])
    return frozenset(owners)

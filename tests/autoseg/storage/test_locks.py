"""Locks end with their owner, and say who it is."""

from __future__ import annotations

import errno
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from autoseg.issues import AutosegError
from autoseg.storage import locks
from autoseg.storage.locks import hold_lock, owner_of, owners_here


def test_a_lock_names_its_owner_and_ends_with_it(tmp_path, monkeypatch) -> None:
    path = tmp_path / "locks" / "x.lock"
    call = (
        "import sys, time, pathlib; from autoseg.storage.locks import hold_lock\n"
        f"with hold_lock(pathlib.Path({str(path)!r}), what='it'):\n    print('held', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        naps: list[float] = []
        monkeypatch.setattr(locks.time, "sleep", naps.append)
        with (
            pytest.raises(AutosegError, match=rf"the fold: is being worked on by process {owner.pid} on"),
            hold_lock(path, what="the fold"),
        ):
            pass
        assert naps == [locks.WAIT_S]  # no longer than somebody may look who has the lock
        assert owner_of(path) == f"process {owner.pid} on {socket.gethostname()}"
        assert owner.poll() is None
        assert owners_here([path, tmp_path / "missing.lock"]) == {owner.pid}
    finally:
        owner.kill()
        owner.communicate()
    assert owners_here([path]) == frozenset()
    with hold_lock(path, what="the fold"):
        assert Path(path).exists()
    assert owner_of(path) is None
    assert owner_of(path.with_name("other.lock")) is None


FORKING_OWNER = """
import os, pathlib, sys, time
from autoseg.storage.locks import hold_lock
with hold_lock(pathlib.Path(sys.argv[1]), what="it"):
    if os.fork() == 0:
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def kill_owner(path: Path, *, outlived_s: float) -> int:
    """Kill the owner of a lock, which a process that it started has for so much longer; returns its pid."""
    command = [sys.executable, "-c", FORKING_OWNER, str(path), str(outlived_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        owner.kill()
        return owner.pid


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
@pytest.mark.parametrize("wait", [False, True])
def test_a_lock_that_outlives_its_owner_for_a_moment_is_taken_silently(tmp_path: Path, wait: bool) -> None:
    said: list[str] = []
    kill_owner(tmp_path / "x.lock", outlived_s=2.0)
    with hold_lock(tmp_path / "x.lock", what="the fold", wait=wait, say=said.append):
        assert said == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_lock_that_outlives_its_owner_for_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "OUTLIVED_S", 0.3)
    pid = kill_owner(tmp_path / "x.lock", outlived_s=3.0)
    with (
        pytest.raises(AutosegError, match=f"worked on by process {pid} on"),
        hold_lock(tmp_path / "x.lock", what="the fold"),
    ):
        pass


DISK_FULL = """
import pathlib, resource, signal, sys
from autoseg.storage.locks import hold_lock
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
with hold_lock(pathlib.Path(sys.argv[1]), what="it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit on file size to be had")
def test_a_lock_is_held_on_a_full_disk_too(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path / "x.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with (
            pytest.raises(AutosegError, match="worked on by another process"),
            hold_lock(tmp_path / "x.lock", what="the fold"),
        ):
            pass
        owner.communicate("")
    assert owner.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_file_system_without_locks_is_distinguished_from_a_held_lock(tmp_path, monkeypatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "fcntl", SimpleNamespace(flock=refuse, LOCK_EX=2, LOCK_NB=4))
    with (
        pytest.raises(
            AutosegError, match=r"x\.lock: cannot be locked \(No locks available\): its file system has no locks"
        ),
        hold_lock(tmp_path / "x.lock", what="it", wait=True),
    ):
        pass

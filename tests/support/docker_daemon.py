"""A Docker daemon of its own, where this machine lets one be started: as root, from Debian's docker.io, containerd and runc."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("dockerd", "docker", "containerd", "runc")
OPTIONS = ("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--storage-driver=overlay2")
START_S = 120.0


@contextmanager
def own_daemon(folder: Path) -> Iterator[str]:
    """Starts a daemon with all its files in ``folder``, which `docker` then uses; yields its version, empty where it does not start."""
    if os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)):
        yield ""
        return
    folder.mkdir(parents=True)
    socket = f"unix://{folder / 'docker.sock'}"
    places = [f"--data-root={folder / 'data'}", f"--exec-root={folder / 'exec'}", f"--pidfile={folder / 'pid'}"]
    with (folder / "log").open("wb") as log:
        started = subprocess.Popen(["dockerd", f"--host={socket}", *places, *OPTIONS], stdout=log, stderr=log)
    os.environ["DOCKER_HOST"] = socket
    try:
        yield _version(started)
    finally:
        del os.environ["DOCKER_HOST"]
        started.terminate()
        started.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _version(started: subprocess.Popen[bytes]) -> str:
    """Of a daemon that answers; empty where it ended or does not answer in time."""
    ask = ["docker", "version", "--format", "{{.Server.Version}}"]
    end = time.monotonic() + START_S
    while started.poll() is None and time.monotonic() < end:
        done = subprocess.run(ask, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
        time.sleep(0.2)
    return ""

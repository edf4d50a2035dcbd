"""Containers of a Docker daemon, with the limits of a platform."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.delivery.container.boxes import (
    ASK,
    GRACE_S,
    MOST_PROCESSES,
    SCRATCH,
    TAIL,
    Limits,
    Meter,
    Places,
    ask_inside,
    group_of,
    status_of,
)
from autoseg.delivery.container.context import MODEL_FOLDER, ImageConfig
from autoseg.delivery.container.program import PORT
from autoseg.issues import AutosegError, Issue
from autoseg.wording import first_line


def docker(*words: str, check: bool = True) -> str:
    """What ``docker`` answers. Raises `AutosegError` with its reason where it fails."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        message = f"docker {words[0]} failed: {first_line(OSError(done.stderr.strip()))}"
        raise AutosegError(Issue(code="container.docker", where="docker", message=message, fix="see its message"))
    return done.stdout.strip()


def has_docker() -> bool:
    """Whether a Docker daemon answers."""
    return shutil.which("docker") is not None and bool(
        docker("version", "--format", "{{.Server.Version}}", check=False)
    )


def load_image(image: Path) -> str:
    """Load an image file into Docker; returns its id or name."""
    said = docker("load", "--input", str(image))
    return said.splitlines()[-1].partition(": ")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerBox:
    """An image that a Docker daemon has."""

    image: str
    config: ImageConfig
    table_input: str
    table_output: str
    way: str = "Docker"

    def start(self, places: Places, limits: Limits) -> DockerProcess:
        """Start a new container."""
        scratch = Path(tempfile.mkdtemp(prefix="autoseg-"))
        (scratch / "tmp").mkdir()
        (scratch / "tmp").chmod(0o1777)
        mounts = [
            f"{places.input}:{self.table_input}:ro",
            f"{places.output}:{self.table_output}",
            f"{scratch / 'tmp'}:/tmp",
        ]
        if places.model is not None:
            mounts.append(f"{places.model}:{MODEL_FOLDER}:ro")
        memory, shm = str(limits.memory_bytes), str(limits.shm_bytes)
        flags = ["--network", "none", "--memory", memory, "--memory-swap", memory, "--shm-size", shm]
        flags += ["--pids-limit", str(MOST_PROCESSES), "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        volumes = [word for mount in mounts for word in ("--volume", mount)]
        number = docker("run", "--detach", *flags, *volumes, self.image)
        return DockerProcess(number=number, scratch=scratch, mounts=tuple(mount.split(":")[1] for mount in mounts))


@dataclass(slots=True, kw_only=True)
class DockerProcess:
    """A container of a Docker daemon."""

    number: str
    scratch: Path
    mounts: tuple[str, ...]
    """Where it sees folders of this machine."""
    pid: int = field(init=False)
    meter: Meter = field(init=False)
    _waiting: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        self.pid = int(docker("inspect", "--format", "{{.State.Pid}}", self.number))
        self.meter = Meter(group_of(self.pid))
        self._waiting = subprocess.Popen(["docker", "wait", self.number], stdout=subprocess.PIPE, text=True)

    def poll(self) -> int | None:
        """The exit code, once it has ended."""
        if self._waiting.poll() is None:
            return None
        return int(docker("inspect", "--format", "{{.State.ExitCode}}", self.number))

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has killed a process of it at the memory limit."""
        return docker("inspect", "--format", "{{.State.OOMKilled}}", self.number) == "true"

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after some seconds."""
        docker("stop", "--time", f"{GRACE_S:.0f}", self.number)

    def ask(self, method: str, path: str, seconds: float) -> int | None:
        """The status that its server answers with, asked from inside its network; by its own Python for ordinary users."""
        if self.poll() is not None:
            return None
        if os.geteuid() == 0:
            return ask_inside(self.pid, method, path, seconds)
        words = ["docker", "exec", self.number, "python3", "-c", ASK, str(PORT), method, path, str(seconds)]
        return status_of(words, seconds)

    def said(self) -> tuple[str, str]:
        """The end of its standard output, and of its standard error."""
        done = subprocess.run(["docker", "logs", self.number], capture_output=True, text=True, check=False)
        return done.stdout[-TAIL:], done.stderr[-TAIL:]

    def close(self) -> list[str]:
        """End and remove it; what it changed in its file system is named."""
        self.meter.end()
        changed = [line.partition(" ")[2] for line in docker("diff", self.number, check=False).splitlines()]
        docker("rm", "--force", self.number)
        self._waiting.communicate()
        shutil.rmtree(self.scratch, ignore_errors=True)
        above = {parent for path in (*changed, *self.mounts) for parent in _parents(path)} | {*self.mounts}
        return [path[1:] for path in changed if path not in above and path.split("/")[1] not in SCRATCH]


def _parents(path: str) -> Iterator[str]:
    while path.count("/") > 1:
        path = path.rpartition("/")[0]
        yield path

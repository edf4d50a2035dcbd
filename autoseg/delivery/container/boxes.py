"""Where a container is rehearsed: a Docker daemon, or namespaces of this machine's kernel where there is none."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from autoseg.compute.memory import memory_groups
from autoseg.delivery.container import confine
from autoseg.delivery.container.context import APP, BUNDLE, MODEL_FOLDER, ImageConfig, image_config
from autoseg.delivery.container.image import unpack_image
from autoseg.delivery.container.program import PORT, ContainerProgram
from autoseg.issues import AutosegError, Issue
from autoseg.wording import first_line

GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL."""
POLL_S = 0.05
MOST_PROCESSES = 256
KILLED = 137
CALL_S = 10.0
TAIL = 4000
"""Characters that are kept of what a container said."""
CGROUPS = Path("/sys/fs/cgroup")
ASK = """
import http.client, sys
call = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=float(sys.argv[4]))
call.request(sys.argv[2], sys.argv[3])
print(call.getresponse().status)
"""
SCRATCH = frozenset({"proc", "dev", "tmp", "sys"})
"""Folders at the root that a container may write to, or that are none of its files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a container may use."""

    memory_bytes: int
    shm_bytes: int
    seconds: float
    """Time limit for one case."""
    start_seconds: float = 300.0
    """Time limit for starting, up to the first health check that succeeds."""


@dataclass(frozen=True, slots=True)
class Places:
    """Folders of the machine that a container sees as its own."""

    input: Path
    output: Path
    model: Path | None


class Meter:
    """Memory of a control group: sampled, since what the kernel counts itself includes files that were read."""

    def __init__(self, group: Path | None) -> None:
        self.group = group
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if group is not None:
            self._thread.start()

    def reset(self) -> int | None:
        """The peak since the last call, this moment included; None where nothing can be measured."""
        if self.group is None:
            return None
        self._sample(self.group)
        peak, self.peak = self.peak, 0
        return peak

    def num_kills(self) -> int:
        """How many processes were killed because the memory limit was reached."""
        for name in ("memory.oom_control", "memory.events"):
            with suppress(OSError, ValueError, TypeError):
                return _numbers((self.group or Path("/nowhere")) / name)["oom_kill"]
        return 0

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        if self.group is not None:
            self._thread.join()

    def _watch(self) -> None:
        assert self.group is not None
        while not self._ended.wait(POLL_S):
            self._sample(self.group)

    def _sample(self, group: Path) -> None:
        with suppress(OSError, ValueError):
            found = _numbers(group / "memory.stat")
            used = found.get("anon", found.get("rss", 0)) + found.get("shmem", 0)
            self.peak = max(self.peak, used)


def _numbers(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in pairs if len(words) == 2}


class Process(Protocol):
    """A container that runs."""

    @property
    def meter(self) -> Meter:
        """The meter of its memory."""

    def poll(self) -> int | None:
        """The exit code, once it has ended."""

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has killed a process of it at the memory limit."""

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after some seconds."""

    def ask(self, method: str, path: str, seconds: float) -> int | None:
        """The status that its server answers with; None where it does not answer in time."""

    def said(self) -> tuple[str, str]:
        """The end of its standard output, and of its standard error."""

    def close(self) -> list[str]:
        """Free everything; returns the files that it wrote outside of the folders for that."""


class Box(Protocol):
    """An image that can be started any number of times."""

    @property
    def way(self) -> str:
        """How it is run, for the report."""

    @property
    def config(self) -> ImageConfig:
        """How the image is started."""

    def start(self, places: Places, limits: Limits) -> Process:
        """Start a new container."""


# --- namespaces ---


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceBox:
    """A root file system in a folder, run in namespaces of its own by ``unshare``."""

    root: Path
    config: ImageConfig
    table_input: str
    table_output: str
    shared: tuple[tuple[Path, str], ...] = ()
    """Folders of this machine that are seen read-only, each with its place there."""
    way: str = ""

    def start(self, places: Places, limits: Limits) -> NamespaceProcess:
        """Start a new container; the root file system is the same as before."""
        scratch = Path(tempfile.mkdtemp(prefix="autoseg-"))
        scratch.chmod(0o755)
        (scratch / "tmp").mkdir()
        (scratch / "tmp").chmod(0o1777)
        binds: list[tuple[str, str, bool]] = [(str(source), target, True) for source, target in self.shared]
        binds += [(str(places.input), self.table_input, True), (str(places.output), self.table_output, False)]
        binds += [(str(scratch / "tmp"), "/tmp", False)]
        if places.model is not None:
            binds.append((str(places.model), MODEL_FOLDER, True))
        for _, target, _ in binds:
            (self.root / target[1:]).mkdir(parents=True, exist_ok=True)
        for name in confine.DEVICES:
            (self.root / "dev" / "shm").mkdir(parents=True, exist_ok=True)
            (self.root / "dev" / name).touch()
        for name in ("proc", self.config.workdir.strip("/")):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        group = _new_group(limits) if os.geteuid() == 0 else None
        told = {
            "root": str(self.root),
            "binds": binds,
            "shm_bytes": limits.shm_bytes,
            "cgroups": [] if group is None else [str(path / "cgroup.procs") for path in group],
            "data_bytes": limits.memory_bytes if group is None else 0,
            "user": list(_user(self.config.user, self.root)) if os.geteuid() == 0 else None,
            "workdir": self.config.workdir,
            "command": [*self.config.entrypoint, *self.config.cmd],
            "env": {"HOME": _home(self.config.user, self.root), **dict(self.config.env)},
        }
        (scratch / "told.json").write_text(json.dumps(told))
        return NamespaceProcess(box=self, scratch=scratch, groups=group or [], before=_files(self.root))


@dataclass(slots=True, kw_only=True)
class NamespaceProcess:
    """A container in namespaces."""

    box: NamespaceBox
    scratch: Path
    groups: list[Path]
    before: dict[str, tuple[int, int]]
    meter: Meter = field(init=False)
    _started: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        words = [*_unshare(), sys.executable, "-P", confine.__file__, str(self.scratch / "told.json")]
        with (self.scratch / "out").open("wb") as out, (self.scratch / "err").open("wb") as err:
            self._started = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        self.meter = Meter(self.groups[0] if self.groups else None)

    def poll(self) -> int | None:
        """The exit code, once it has ended."""
        return self._started.poll()

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has killed a process of it at the memory limit."""
        return self.meter.num_kills() > 0

    def stop(self) -> None:
        """Send SIGTERM to the first process in the namespaces, which passes it on; then end all."""
        inside = self._inside()
        if inside is not None:
            with suppress(ProcessLookupError):
                os.kill(inside, 15)
        try:
            self._started.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            if inside is not None:
                with suppress(ProcessLookupError):
                    os.kill(inside, 9)
            self._started.kill()
            self._started.wait()

    def ask(self, method: str, path: str, seconds: float) -> int | None:
        """The status that its server answers with, asked from inside its network."""
        inside = self._inside()
        return None if inside is None else ask_inside(inside, method, path, seconds)

    def said(self) -> tuple[str, str]:
        """The end of its standard output, and of its standard error."""
        return _tail(self.scratch / "out"), _tail(self.scratch / "err")

    def close(self) -> list[str]:
        """End it, remove its control groups; what it left in its root file system is named and removed."""
        if self.poll() is None:
            self.stop()
        self.meter.end()
        for group in self.groups:
            _remove_group(group)
        strays = sorted(path for path, state in _files(self.box.root).items() if self.before.get(path) != state)
        for path in strays:
            with suppress(OSError):
                if path not in self.before:
                    (self.box.root / path).unlink()
        shutil.rmtree(self.scratch, ignore_errors=True)
        return strays

    def _inside(self) -> int | None:
        """The number here of the first process in the namespaces."""
        pid = self._started.pid
        with suppress(OSError):
            found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return int(found[0]) if found else None
        return None


def _unshare() -> list[str]:
    """Namespaces for mounts, processes, network, and names; for an ordinary user also one for users."""
    own = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    return ["unshare", *own, "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]


def _user(name: str, root: Path) -> tuple[int, int]:
    """Numbers of ``1000:1000``, ``user`` or ``user:group``; names are those of the container."""
    user, _, group = (name or "0").partition(":")
    known = {line[0]: line for line in _lines(root / "etc/passwd")}
    groups = {line[0]: line for line in _lines(root / "etc/group")}
    if not user.isdigit() and user not in known:
        message = f"runs as {user}, which is not in its /etc/passwd"
        raise AutosegError(Issue(code="container.image_refused", where="image", message=message, fix="create the user"))
    own = known.get(user) or next((line for line in known.values() if line[2] == user), None)
    number = int(user) if user.isdigit() else int(known[user][2])
    if group:
        return number, int(group) if group.isdigit() else int(groups[group][2])
    return number, int(own[3]) if own else 0


def _home(name: str, root: Path) -> str:
    """Folder of a user, by the container's passwd."""
    user = (name or "0").partition(":")[0]
    homes = [line[5] for line in _lines(root / "etc/passwd") if user in (line[0], line[2]) and len(line) > 5]
    return homes[0] if homes else "/"


def _lines(path: Path) -> list[list[str]]:
    try:
        return [words for line in path.read_text().splitlines() if len(words := line.split(":")) > 2]
    except OSError:
        return []


def _files(root: Path) -> dict[str, tuple[int, int]]:
    """Time and size of each file of a root file system; those that lie on mounts of the machine are elsewhere."""
    found = {}
    for folder, folders, files in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in SCRATCH]
        for name in files:
            path = Path(folder, name)
            with suppress(OSError):
                status = path.lstat()
                found[path.relative_to(root).as_posix()] = (status.st_mtime_ns, status.st_size)
    return found


def _new_group(limits: Limits) -> list[Path] | None:
    """Control groups with the limits of memory and processes, the one for memory first; None where they cannot be made."""
    name = f"autoseg-{secrets.token_hex(4)}"
    settings: list[tuple[Path, Mapping[str, str]]]
    memory, tasks = str(limits.memory_bytes), str(MOST_PROCESSES)
    if (CGROUPS / "memory").is_dir():
        limit = {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory}
        settings = [(CGROUPS / "memory" / name, limit), (CGROUPS / "pids" / name, {"pids.max": tasks})]
    else:
        both = {"memory.max": memory, "memory.swap.max": "0", "pids.max": tasks}
        settings = [(CGROUPS / name, both)]
        with suppress(OSError):
            (CGROUPS / "cgroup.subtree_control").write_text("+memory +pids")
    made = []
    try:
        for group, values in settings:
            group.mkdir()
            made.append(group)
            for file, value in values.items():
                if "memsw" in file or "swap" in file:
                    with suppress(OSError):
                        (group / file).write_text(value)
                else:
                    (group / file).write_text(value)
    except OSError:
        for group in made:
            _remove_group(group)
        return None
    return made


def group_of(pid: int) -> Path | None:
    """The control group for memory of a process, as this machine sees it."""
    return next((group for group in memory_groups(pid) if (group / "memory.stat").is_file()), None)


def _remove_group(group: Path) -> None:
    for _ in range(20):
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(POLL_S)


def ask_inside(pid: int, method: str, path: str, seconds: float) -> int | None:
    """Call the server in the network of process ``pid``."""
    own = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    words = ["nsenter", "--target", str(pid), *own, "--net"]
    words += [sys.executable, "-I", "-c", ASK, str(PORT), method, path, str(seconds)]
    return status_of(words, seconds)


def status_of(words: Sequence[str], seconds: float) -> int | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + CALL_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else None


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-TAIL:].decode(errors="replace")
    except OSError:
        return ""


def namespaces_fault() -> str | None:
    """Why this machine lets nobody make namespaces; None where it does."""
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    done = subprocess.run([*_unshare(), "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else first_line(OSError(done.stderr.strip() or "unshare failed"))


@contextmanager
def context_box(context: Path, program: ContainerProgram, method: str) -> Iterator[NamespaceBox]:
    """The program of a build context with the Python and the packages of this machine, as if they were its image."""
    config = image_config(program.table.kind, method)
    own, shared = _own_python()
    env = dict(config.env) | {"PATH": f"{own}/bin:/usr/bin:/bin"}
    shared = [(Path("/usr"), "/usr"), (context / "app", APP), *shared]
    with tempfile.TemporaryDirectory(prefix="autoseg-root-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        root.chmod(0o755)
        for name in ("bin", "sbin", "lib", "lib64"):
            here = Path("/") / name
            if here.is_symlink():
                (root / name).symlink_to(os.readlink(here))
            elif here.is_dir():
                shared.append((here, f"/{name}"))
        (root / "home/user").mkdir(parents=True)
        (root / "etc").mkdir()
        (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
        if Path("/etc/ld.so.cache").exists():
            shutil.copyfile("/etc/ld.so.cache", root / "etc/ld.so.cache")
        if os.geteuid() == 0:
            os.chown(root / "home/user", 1000, 1000)
        if (context / "predict.sh").exists():
            (root / "workspace").mkdir()
            shutil.copy(context / "predict.sh", root / "workspace")
        given = ImageConfig(
            user=config.user,
            env=tuple(env.items()),
            entrypoint=config.entrypoint,
            cmd=config.cmd,
            workdir=config.workdir,
            labels=config.labels,
            ports=config.ports,
        )
        yield NamespaceBox(
            root=root,
            config=given,
            table_input=program.table.input,
            table_output=program.table.output,
            shared=tuple(shared),
            way="namespaces, with the Python packages of this machine instead of the image",
        )


def _own_python() -> tuple[str, list[tuple[Path, str]]]:
    """Where the Python of this process is in a box, the same place as here: it may have been built for that.

    Besides, what must be seen for it, with its packages in their usual place.
    """
    python, packages = Path(sys.base_prefix), Path(sysconfig.get_paths()["purelib"])
    shared = [] if python.is_relative_to("/usr") else [(python, str(python))]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not packages.is_relative_to(python):  # a virtual environment
        places = (f"lib/{version}/site-packages", f"local/lib/{version}/dist-packages")
        inside = next((place for place in places if (python / place).is_dir()), places[0])
        shared.append((packages, f"{python}/{inside}"))
    return str(python), shared


@contextmanager
def image_box(image: Path, program: ContainerProgram) -> Iterator[NamespaceBox]:
    """An image file, unpacked."""
    with tempfile.TemporaryDirectory(prefix="autoseg-root-", ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "root"
        Path(folder).chmod(0o755)
        config = unpack_image(image, root)
        yield NamespaceBox(
            root=root,
            config=config,
            table_input=program.table.input,
            table_output=program.table.output,
            way="namespaces",
        )


def model_of(context: Path) -> Path | None:
    """The folder of the model beside the program of a build context."""
    folder = context / "model"
    return folder if (folder / BUNDLE).is_file() else None

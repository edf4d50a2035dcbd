"""Clusters: commands of autoseg as tasks on Dask workers or in Slurm's queue, and single cases on Dask workers.

What a task does, and how far it is, is in the folders that it writes: any task may be lost at any time and is sent again.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import uuid4

from threadpoolctl import threadpool_limits

from autoseg import __version__
from autoseg.compute.executor import Job, Outcome, killed_alone
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import load_or_none, save_document, write_text
from autoseg.wording import count_noun
from planners import Document

FORMS = "dask://HOST:PORT, dask-local:N, slurm or slurm:N"
OWN_OPTIONS = frozenset({"array", "error", "open-mode", "output", "requeue", "no-requeue", "signal", "wrap"})
"""Of sbatch, which the job scripts set themselves."""
CONNECT_S = 20.0
"""To the scheduler of Dask, and for its first worker to appear."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 15.0
"""Between two looks at Slurm's queue."""
ERROR_LINES = 10
"""At the end of a log, in which an error message is looked for."""
SHARED_S = 10.0
"""Until a file that another machine wrote is seen on a shared file system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A cluster as users name it."""

    kind: Literal["dask", "dask-local", "slurm"]
    place: str = ""
    """``HOST:PORT`` of a scheduler."""
    number: int | None = None
    """Of local workers, or the most tasks that run in Slurm at once."""

    def __str__(self) -> str:
        return (
            f"dask://{self.place}" if self.kind == "dask" else f"{self.kind}{f':{self.number}' if self.number else ''}"
        )


def parse_cluster(text: str) -> Address:
    """``dask://HOST:PORT``, ``dask-local:4``, ``slurm`` or ``slurm:8``. Raises `AutosegError` for other text."""
    if match := re.fullmatch(r"dask://(\S+:\d+)", text):
        return Address(kind="dask", place=match[1])
    if match := re.fullmatch(r"dask-local:([1-9]\d*)", text):
        return Address(kind="dask-local", number=int(match[1]))
    if match := re.fullmatch(r"slurm(?::([1-9]\d*))?", text):
        return Address(kind="slurm", number=int(match[1]) if match[1] else None)
    message, fix = f"{text!r} is no cluster", f"write {FORMS}"
    raise AutosegError(Issue(code="settings.cluster", where="--cluster", message=message, fix=fix))


def parse_slurm_options(text: str) -> tuple[str, ...]:
    """``partition=gpu,time=08:00:00,exclusive`` as options of sbatch. Raises `AutosegError` for what cannot be given."""
    words = [word.strip().removeprefix("--") for word in text.split(",") if word.strip()]
    for word in words:
        name = word.partition("=")[0]
        if not re.fullmatch(r"[a-z][a-z-]*(=\S+)?", word) or name in OWN_OPTIONS:
            message = f"{name} is set by autoseg" if name in OWN_OPTIONS else f"{word!r} is no option of sbatch"
            fix = "write long options of sbatch, such as partition=gpu,gres=gpu:1,time=08:00:00"
            raise AutosegError(Issue(code="settings.slurm_options", where="--slurm-options", message=message, fix=fix))
    return tuple(f"--{word}" for word in words)


class TaskRecord(Document):
    """``cluster/TASK.json``: where a task was sent."""

    command: tuple[str, ...]
    place: str
    """``slurm job 17_3``, or a Dask worker and its host."""
    state: Literal["waiting", "running", "finished", "failed"] = "waiting"
    """As far as it is known; that of a task in Slurm's queue is asked there."""
    job: str | None = None
    """``17_3`` in Slurm's queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A command of autoseg that is sent to a cluster."""

    name: str
    """Of its log and its record: ``train-2d-fold_0``."""
    command: tuple[str, ...]
    """What follows ``autoseg``."""
    folder: Path
    """For log, record and exit code; on the file system that all machines share."""
    is_done: Callable[[], bool] = lambda: False
    """Whether its result is there, however it ended."""

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def code(self) -> Path:
        """Holds the exit code of a task in Slurm's queue that has ended."""
        return self.folder / f"{self.name}.code"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.name}.json"

    def read_record(self) -> TaskRecord | None:
        """Where the task was sent; None where it was not."""
        return load_or_none(TaskRecord, self.record)

    def save(self, **fields: Any) -> None:
        """Write the record."""
        save_document(self.record, TaskRecord(command=self.command, **fields))

    @property
    def is_as_sent(self) -> bool:
        """Whether it was sent with this command."""
        record = self.read_record()
        return record is not None and record.command == self.command

    @property
    def last_line(self) -> str:
        """Of its log, or the error shortly before; empty where there is none."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        last = [line.strip() for line in lines if line.strip()][-ERROR_LINES:]
        return next((line for line in reversed(last) if line.startswith("autoseg: ")), last[-1] if last else "")

    @property
    def failure(self) -> Issue:
        """What is said of a task that ended without its result."""
        message = f"failed: {self.last_line.removeprefix('autoseg: ') or 'nothing in its log'}"
        fix = f"read {self.log}, and run the same command to resume"
        return Issue(code="cluster.task_failed", where=self.name, message=message, fix=fix)


class Cluster(Protocol):
    """Something that tasks are sent to."""

    def run(
        self, name: str, tasks: Sequence[Task], *, say: Callable[[str], None], done: Callable[[Task], None]
    ) -> list[Issue]:
        """Do all tasks, in any order, as a job called ``name``; ``done`` is called after each. Returns an issue for each that failed."""


@contextmanager
def open_dask(address: Address, *, folder: Path) -> Iterator[DaskCluster]:
    """The workers at ``address``, which share ``folder``; local ones live as long as the block.

    Raises `AutosegError` where they cannot be reached, or lack autoseg or ``folder``.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        fix = "install it: pip install autoseg[cluster]"
        issue = Issue(code="cluster.not_installed", where=f"--cluster {address}", message="needs Dask", fix=fix)
        raise AutosegError(issue) from error
    local = None
    if address.kind == "dask-local":
        # each worker is a process with one thread: a slot for one case or one training
        local = LocalCluster(
            n_workers=address.number, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.ERROR
        )
    try:
        client = Client(local or f"tcp://{address.place}", timeout=CONNECT_S, set_as_default=False)
        try:
            client.wait_for_workers(1, timeout=CONNECT_S)
            cluster = DaskCluster(client)
            cluster.require_ready(folder)
            yield cluster
        finally:
            client.close(timeout=2)
    except (OSError, TimeoutError) as error:
        message, fix = (
            f"cannot be reached, or has no workers ({error})",
            "start dask scheduler and dask worker, or check the address",
        )
        raise AutosegError(
            Issue(code="cluster.unreachable", where=f"--cluster {address}", message=message, fix=fix)
        ) from error
    finally:
        if local is not None:
            local.close(timeout=10)


class DaskCluster:
    """Workers of Dask: an `Executor` of single cases, and a `Cluster` of commands, one at a time on each worker."""

    def __init__(self, client: Any) -> None:
        self.client = client

    @property
    def address(self) -> Address:
        """Of the scheduler, for commands that spread their cases themselves."""
        return Address(kind="dask", place=self.client.scheduler.address.partition("://")[2])

    @property
    def num_workers(self) -> int:
        """As many as there are now: they come and go."""
        return max(1, len(self.client.nthreads()))

    def require_ready(self, folder: Path) -> None:
        """Raise `AutosegError` for workers without this version of autoseg, and for those that do not see ``folder``."""
        where, issues = f"--cluster {self.address}", []
        try:
            found: Mapping[str, tuple[str, bool]] = self.client.run(_look, str(folder))
        except Exception as error:  # whatever keeps workers from importing this module
            message, fix = f"its workers cannot load autoseg ({error})", "install the same version in their environment"
            raise AutosegError(Issue(code="cluster.no_autoseg", where=where, message=message, fix=fix)) from error
        for worker, (version, sees) in found.items():
            if version != __version__:
                message = f"{worker} has autoseg {version}, and this is {__version__}"
                issues.append(
                    Issue(code="cluster.other_version", where=where, message=message, fix="install the same version")
                )
            if not sees:
                message, fix = (
                    f"{worker} does not see {folder}",
                    "use a folder on a file system that all machines share",
                )
                issues.append(Issue(code="cluster.not_shared", where=where, message=message, fix=fix))
        if issues:
            raise AutosegError(*issues)

    def __call__(
        self,
        job: Job[Any, Any],
        items: Sequence[Any],
        *,
        num_workers: int,
        say: Callable[[str], None],
        done: Callable[[], None],
    ) -> list[Outcome[Any]]:
        """Outcomes in the order of ``items``. Dask does those of a lost worker again; what lost several is retried alone."""
        finished: dict[int, Outcome[Any]] = {}
        for alone in (False, True):
            left = [i for i in range(len(items)) if i not in finished]
            if alone and left:
                say(f"Workers died with {count_noun(len(left), 'item')}: retrying each alone")
            for i, outcome in self._each(_do_item, [(job, items[i]) for i in left], most=1 if alone else None):
                if outcome is None and alone:
                    outcome = killed_alone(
                        job.name(items[left[i]]), fix="leave it out, or use workers with more memory"
                    )
                if outcome is not None:
                    finished[left[i]] = outcome
                    done()
        return [finished[i] for i in range(len(items))]

    def run(
        self, name: str, tasks: Sequence[Task], *, say: Callable[[str], None], done: Callable[[Task], None]
    ) -> list[Issue]:
        """Each task in a process of its own on a worker. On another worker it resumes what a lost one began."""
        for task in tasks:
            task.save(place=str(self.address))
        issues = []
        for i, code in self._each(_run_command, [replace(task, is_done=_unknown) for task in tasks]):
            task = tasks[i]
            if code == 0 or task.is_done():
                done(task)
                continue
            if (record := task.read_record()) is not None:
                task.save(place=record.place, state="failed")
            issues.append(task.failure)
            say(f"{task.name} failed: {task.log}")
        return issues

    def _each(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, most: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Index and result of each item as they come, None where too many workers died with it.

        As many are under way as there are workers, or ``most``: an idle worker gets the next one, however many threads it has.
        """
        from distributed import KilledWorker, as_completed

        waiting, futures, finished = deque(range(len(items))), dict[Any, int](), as_completed(loop=self.client.loop)
        while waiting or futures:
            room = (most or self.num_workers) - len(futures)
            for _ in range(min(room, len(waiting))):
                i = waiting.popleft()
                future = self.client.submit(function, items[i], key=f"autoseg-{uuid4().hex}", pure=False)
                futures[future] = i
                finished.add(future)
            future = next(finished)
            i = futures.pop(future)
            try:
                yield i, future.result()
            except KilledWorker:
                yield i, None


def _look(folder: str) -> tuple[str, bool]:
    """On a worker: its version, and whether it sees ``folder``."""
    return __version__, Path(folder).is_dir()


def _do_item(pair: tuple[Job[Any, Any], Any]) -> Outcome[Any]:
    """On a worker: one item, with one thread for linear algebra as everywhere: other sums have other last digits."""
    job, item = pair
    with threadpool_limits(limits=1):
        return job(item)


TIED = "from autoseg.compute.cluster import end_with_parent; end_with_parent(); from autoseg.cli import main; main()"


def _unknown() -> bool:
    """Workers look at nothing but the exit code."""
    return False


def _run_command(task: Task) -> int:
    """On a worker: a command of autoseg in a process of its own, which stops at its next step when the worker dies."""
    from distributed import get_worker, secede

    place = f"dask worker {get_worker().address} on {socket.gethostname()}"
    task.save(place=place, state="running")
    if "--cluster" in task.command:
        secede()  # it hands its cases to the workers, and this may be the only one
    with task.log.open("ab") as file:
        call = [sys.executable, "-c", TIED, *task.command]
        code = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT).wait()
    task.save(place=place, state="finished" if code == 0 else "failed")
    return code


def end_with_parent() -> None:
    """Send this process SIGTERM when its standard input ends, a pipe from the process that started it."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """Slurm's queue: the tasks of one call are an array job."""

    options: tuple[str, ...] = ()
    most: int | None = None
    """Tasks that run at once."""

    def run(
        self, name: str, tasks: Sequence[Task], *, say: Callable[[str], None], done: Callable[[Task], None]
    ) -> list[Issue]:
        """Submit what is not in the queue yet, perhaps since an earlier call, and wait until all has left it."""
        queued = read_queue(tasks)
        left = [task for task in tasks if task.name not in queued or not task.is_as_sent]
        if len(left) < len(tasks):
            say(f"{count_noun(len(tasks) - len(left), 'task')} of an earlier call in Slurm's queue")
        if left:
            say(f"Submitted {count_noun(len(left), 'task')} ({name}) as Slurm job {self.submit(name, left)}")
        waiting, issues, wait_s, gone = list(tasks), list[Issue](), FIRST_WAIT_S, dict[str, float]()
        while waiting:
            time.sleep(wait_s)
            wait_s = min(LONGEST_WAIT_S, 1.2 * wait_s)
            queued = read_queue(waiting)
            for task in [each for each in waiting if each.name not in queued]:
                code = read_code(task)
                if code == 0 or task.is_done():
                    done(task)
                elif code is None and time.monotonic() - gone.setdefault(task.name, time.monotonic()) < SHARED_S:
                    continue
                else:
                    issues.append(task.failure)
                    say(f"{task.name} failed: {task.log}")
                waiting.remove(task)
        return issues

    def submit(self, name: str, tasks: Sequence[Task]) -> str:
        """Send the tasks as one array job; returns its number."""
        script = self.write_script(name, tasks)
        for task in tasks:
            task.code.unlink(missing_ok=True)
        number = _slurm("sbatch", "--parsable", str(script)).strip().partition(";")[0]
        for index, task in enumerate(tasks):
            job = f"{number}_{index}"
            task.save(place=f"slurm job {job}", job=job)
        return number

    def write_script(self, name: str, tasks: Sequence[Task]) -> Path:
        """Write the script of an array job.

        Near its time limit a task saves its last step and is queued again; so it is where it gives way to others.
        """
        folder = tasks[0].folder
        folder.mkdir(parents=True, exist_ok=True)
        options = (
            f"--job-name=autoseg-{name}",
            f"--array=0-{len(tasks) - 1}{f'%{self.most}' if self.most else ''}",
            f"--output={shlex.quote(str(folder / 'slurm-%A_%a.out'))}",
            "--open-mode=append",
            "--requeue",
            "--signal=B:USR1@60",
            *self.options,
        )
        files = ((shlex.quote(str(task.log)), shlex.quote(str(task.code)), shlex.join(task.command)) for task in tasks)
        cases = (f"  {i}) log={log} result={code}; set -- {words} ;;" for i, (log, code, words) in enumerate(files))
        script = SCRIPT.format(
            options="\n".join(f"#SBATCH {each}" for each in options),
            cases="\n".join(cases),
            python=shlex.quote(sys.executable),
        )
        write_text(folder / f"{name}.sh", script)
        return folder / f"{name}.sh"


SCRIPT = """#!/bin/bash
{options}
case $SLURM_ARRAY_TASK_ID in
{cases}
esac
rm -f "$result"
exec >>"$log" 2>&1
{python} -m autoseg "$@" &
child=$!
# USR1: the time limit is near. TERM: cancelled, or others go first. The command saves its last step and ends.
trap 'near_limit=1; kill -TERM $child' USR1
trap 'kill -TERM $child' TERM
while true; do
  wait $child; code=$?
  kill -0 $child 2>/dev/null || break
done
if [ -n "$near_limit" ] && [ $code -ne 0 ]; then
  echo "Time limit: queued again"
  scontrol requeue "$SLURM_JOB_ID"
else
  echo $code >"$result"
fi
exit $code
"""


def read_code(task: Task) -> int | None:
    """Exit code of a task that ran in Slurm's queue; None where it has not ended, or was killed with its machine."""
    with suppress(OSError, ValueError):
        os.listdir(task.folder)  # a network file system may otherwise remember that there was no such file
        return int(task.code.read_text())
    return None


def read_queue(tasks: Sequence[Task]) -> dict[str, tuple[str, str]]:
    """By name, state and reason or node of those ``tasks`` that wait or run in Slurm: ``("PENDING", "(Resources)")``."""
    jobs = {record.job: task.name for task in tasks if (record := task.read_record()) is not None and record.job}
    found = {}
    for number in sorted({job.partition("_")[0] for job in jobs}):
        try:
            text = _slurm("squeue", "--noheader", "--array", "--format=%i|%T|%R", f"--jobs={number}")
        except AutosegError as error:
            if "Invalid job id" not in error.issues[0].message:
                raise
            continue  # it left the queue long ago
        for line in text.splitlines():
            job, state, reason = line.split("|", 2)
            if job in jobs:
                found[jobs[job]] = (state, reason)
    return found


def _slurm(*call: str) -> str:
    """The answer of a command of Slurm; one that does not answer now is asked again. Raises `AutosegError` with its error."""
    for wait_s in (1, 5, 20, 60, None):
        try:
            found = subprocess.run(call, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            message, fix = "is not on this machine", "run this on a machine from which jobs are submitted"
            raise AutosegError(Issue(code="slurm.not_found", where=call[0], message=message, fix=fix)) from error
        if found.returncode == 0:
            return found.stdout
        is_busy = re.search("Unable to contact|timed out|Connection refused|temporarily", found.stderr)
        if wait_s is None or not is_busy:
            break
        time.sleep(wait_s)
    message, fix = found.stderr.strip() or f"exit code {found.returncode}", "check --slurm-options, and try it by hand"
    raise AutosegError(Issue(code="slurm.failed", where=shlex.join(call), message=message, fix=fix))

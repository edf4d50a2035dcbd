"""Devices of this machine as slots of one queue: each does one command of autoseg at a time, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from autoseg.compute.cluster import TIED, Task
from autoseg.issues import Issue

LOOK_S = 0.2
"""Seconds between two looks at the processes."""
MOST_DEATHS = 3
"""Processes of one task that may be killed; what kills so many is no accident."""
Running = Mapping[int, Task]
"""Tasks that are being done, by number of their slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """A `Cluster` of the devices of this machine."""

    devices: Sequence[str]
    """Each takes one task at a time; the same device twice takes two."""
    options: Sequence[str] = ()
    """Options that every command is given, besides its device."""
    should_stop: Callable[[], bool] = lambda: False
    """Whether to stop: no further task is begun, and those under way save their last step and end."""
    look: Callable[[Running], None] = lambda running: None
    """Called again and again while tasks are done."""
    words: Callable[[Task, Running, Sequence[Task]], Sequence[str] | None] = lambda task, running, waiting: ()
    """More options of the command of a task that is about to begin, beside those under way and before those that wait; None: it is left
    out."""

    def run(
        self, name: str, tasks: Sequence[Task], *, say: Callable[[str], None], done: Callable[[Task], None]
    ) -> list[Issue]:
        """Do the tasks in order. One whose process is killed goes back into the queue, to resume from its last checkpoint."""
        queue = _Queue(waiting=deque(tasks))
        for task in tasks:
            task.save(place=f"one of {', '.join(self.devices)}")
        try:
            while queue.running or (queue.waiting and not self.should_stop()):
                self._begin(queue)
                self.look(queue.tasks)
                time.sleep(LOOK_S)
                for slot, (task, process) in list(queue.running.items()):
                    if (code := process.poll()) is not None:
                        del queue.running[slot]
                        _close_pipe(process)
                        self._end(queue, task, self.devices[slot], code, say=say, done=done)
        finally:
            for _, process in queue.running.values():
                process.kill()
                process.wait()
                _close_pipe(process)
        return queue.issues

    def _begin(self, queue: _Queue) -> None:
        """Give free slots what waits; or ask all processes to end."""
        if self.should_stop():
            for _, process in queue.running.values():
                _close_pipe(process)
            return
        for slot in [each for each in range(len(self.devices)) if each not in queue.running]:
            while queue.waiting and slot not in queue.running:
                task = queue.waiting.popleft()
                if (words := self.words(task, queue.tasks, queue.waiting)) is not None:
                    queue.running[slot] = (task, self._start(task, self.devices[slot], words))

    def _start(self, task: Task, device: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
        task.save(place=device, state="running")
        call = [sys.executable, "-c", TIED, *task.command, "--device", device, *self.options, *words]
        with task.log.open("ab") as file:
            # a session of its own: Ctrl-C reaches this process alone, which then asks each once
            return subprocess.Popen(
                call, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _end(
        self,
        queue: _Queue,
        task: Task,
        device: str,
        code: int,
        *,
        say: Callable[[str], None],
        done: Callable[[Task], None],
    ) -> None:
        if code == 0 or task.is_done():
            task.save(place=device, state="finished")
            done(task)
        elif self.should_stop():
            task.save(place=device)
        elif code < 0 and queue.deaths[task.name] < MOST_DEATHS - 1:  # by a signal, perhaps because memory ran out
            queue.deaths[task.name] += 1
            task.save(place=device)
            queue.waiting.appendleft(task)
            say(f"{task.name}: its process on {device} was killed by signal {-code}; back in the queue")
        else:
            task.save(place=device, state="failed")
            queue.issues.append(_killed(task, -code) if code < 0 else task.failure)
            say(f"{task.name} failed: {task.log}")


@dataclass(slots=True, kw_only=True)
class _Queue:
    waiting: deque[Task]
    running: dict[int, tuple[Task, subprocess.Popen[bytes]]] = field(default_factory=dict)
    """Tasks that are being done, with their processes, by number of the slot."""
    deaths: Counter[str] = field(default_factory=Counter)
    issues: list[Issue] = field(default_factory=list)

    @property
    def tasks(self) -> Running:
        return {slot: task for slot, (task, _) in self.running.items()}


def _close_pipe(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe that a process is tied to, which asks it to end."""
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()


def _killed(task: Task, number: int) -> Issue:
    message = f"its process was killed {MOST_DEATHS} times, the last time by signal {number}, most likely because memory ran out"
    fix = f"use fewer devices (--devices) or close other programs, and run the same command to resume; its log is {task.log}"
    return Issue(code="job.worker_killed", where=task.name, message=message, fix=fix)

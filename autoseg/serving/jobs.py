"""The jobs of the service: a bounded queue in memory, and a folder for each in the state folder, which outlives the process.

A job's folder appears whole, with its upload and `request.json`; `answer.json` appears after the files that it names. So whatever kills the
process, a job is not there, waits, or is answered.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Event

import autoseg
from autoseg.issues import AutosegError, Issue
from autoseg.serving.documents import Ask, JobStatus, State, Wish
from autoseg.serving.rules import MOST_STARTS, Kept, Limits, expired, retry_after
from autoseg.storage.atomic import TEMPORARY, load_document, load_or_none, save_document, sync_folder

logger = logging.getLogger(__name__)
REQUEST, ANSWER, UPLOAD = "request.json", "answer.json", "upload"
"""Names in the folder of a job; the last is the folder of what was sent, removed when it is answered."""
FIRST_MEAN_S = 10.0
"""Of a job, before one was done."""


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A job that is not answered yet."""

    id: str
    folder: Path
    ask: Ask
    ended: Future[JobStatus] = field(default_factory=Future)
    cancelled: Event = field(default_factory=Event)
    started: float | None = None
    """By the monotonic clock."""
    progress: float = 0.0

    @property
    def upload(self) -> Path:
        """Folder of what was sent."""
        return self.folder / UPLOAD

    def status(self, *, ahead: int = 0) -> JobStatus:
        """As it is now."""
        state: State = "waiting" if self.started is None else "running"
        seconds = 0.0 if self.started is None else time.monotonic() - self.started
        left = seconds / self.progress - seconds if self.progress else None
        return self.ended_as(state, ahead=ahead, progress=self.progress, seconds=seconds, seconds_left=left)

    def ended_as(self, state: State, **values: object) -> JobStatus:
        """A status of this job."""
        about = {"id": self.id, "state": state, "model": self.ask.model, "wishes": self.ask.wishes}
        return JobStatus.model_validate({**about, "version": autoseg.__version__, **values})


class Jobs:
    """All jobs of a state folder, which this process alone may use."""

    def __init__(self, root: Path, limits: Limits, devices: int = 1) -> None:
        self.root, self.limits, self.devices = root, limits, devices
        self.uploading = 0
        self.stopping = False
        self.mean_s = FIRST_MEAN_S
        self._waiting: deque[Job] = deque()
        self._active: dict[str, Job] = {}
        self._kept: dict[str, Kept] = {}
        self._changed = Condition()
        root.mkdir(parents=True, exist_ok=True)
        self._take_up()

    def _take_up(self) -> None:
        """What an earlier process left: answers are kept, jobs wait again, uploads that were under way are removed."""
        left: list[tuple[float, Job]] = []
        for folder in self.root.iterdir():
            if TEMPORARY.fullmatch(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
            elif not is_id(folder.name):
                continue
            elif (folder / ANSWER).is_file():
                self._keep(folder)
            elif (ask := load_or_none(Ask, folder / REQUEST)) is not None:
                left.append((folder.stat().st_mtime, Job(id=folder.name, folder=folder, ask=ask)))
        for _, job in sorted(left, key=lambda item: item[0]):
            self._active[job.id] = job
            if job.ask.starts >= MOST_STARTS:
                message, fix = f"the service died {job.ask.starts} times while it ran", "send another image"
                issue = Issue(code="serve.crashed", where="upload", message=message, fix=fix)
                self.finish(job, job.ended_as("failed", issues=(issue,)))
            else:
                self._waiting.append(job)

    def counts(self) -> tuple[int, int, int]:
        """Jobs that are being uploaded, that wait, and that run."""
        with self._changed:
            return self.uploading, len(self._waiting), len(self._active) - len(self._waiting)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue for an upload, from before its first byte. Raises `AutosegError` where there is none."""
        with self._changed:
            if self.stopping:
                raise AutosegError(Issue(code="serve.stopping", where="", message="the service stops", fix="try again"))
            if self.uploading + len(self._waiting) >= self.limits.queue:
                message = f"{self.limits.queue} jobs wait already"
                raise AutosegError(Issue(code="serve.queue_full", where="", message=message, fix="try again later"))
            self.uploading += 1
        try:
            yield
        finally:
            with self._changed:
                self.uploading -= 1

    @property
    def retry_after(self) -> int:
        """Seconds after which a client that found no place should come again."""
        _, waiting, running = self.counts()
        return retry_after(waiting, running, self.devices, self.mean_s)

    def add(self, job_id: str, staged: Path, ask: Ask) -> Job:
        """Let an upload that is complete in the folder ``staged`` wait; the folder is moved."""
        save_document(staged / REQUEST, ask)
        job = Job(id=job_id, folder=self.root / job_id, ask=ask)
        os.rename(staged, job.folder)
        sync_folder(self.root)
        with self._changed:
            self._active[job.id] = job
            self._waiting.append(job)
            self._changed.notify()
        return job

    def next(self) -> Job | None:
        """The next job, begun; waits for one. None when the service stops."""
        with self._changed:
            while not self.stopping:
                if self._waiting:
                    job = self._waiting.popleft()
                    job.started = time.monotonic()
                    break
                self._changed.wait()
            else:
                return None
        job.ask = job.ask.model_copy(update={"starts": job.ask.starts + 1})
        try:
            save_document(job.folder / REQUEST, job.ask)
        except AutosegError as error:  # a full disk: the job itself may need less, or says so
            logger.warning("%s", error)
        return job

    def finish(self, job: Job, status: JobStatus) -> None:
        """Store how a job ended, and forget what was sent; of a cancelled one nothing stays.

        Where not even that can be written, those who wait for the job are told, and it is forgotten.
        """
        if status.state == "failed":  # the disk may be full
            shutil.rmtree(job.upload, ignore_errors=True)
        try:
            if not job.cancelled.is_set():
                save_document(job.folder / ANSWER, status)
                self._keep(job.folder)
        except AutosegError as error:
            logger.exception("the answer of a job cannot be written")
            status = job.ended_as("failed", issues=error.issues)
        if job.cancelled.is_set() or not (job.folder / ANSWER).is_file():
            shutil.rmtree(job.folder, ignore_errors=True)
        with self._changed:
            self._active.pop(job.id, None)
            if status.state == "done":
                self.mean_s += (status.seconds - self.mean_s) / 8
        job.ended.set_result(status)
        self.sweep()

    def hand_back(self, job: Job) -> None:
        """Leave a job that was stopped with the service for the next one, as if it had not begun."""
        ask = job.ask.model_copy(update={"starts": job.ask.starts - 1})
        save_document(job.folder / REQUEST, ask)
        with self._changed:
            self._active.pop(job.id, None)
        job.ended.set_result(job.ended_as("waiting"))

    def find(self, job_id: str) -> Job | JobStatus:
        """A job that is not answered, or how it ended. Raises `AutosegError` where there is none."""
        with self._changed:
            active = self._active.get(job_id)
        path = self.root / job_id / ANSWER
        if active is not None:
            return active
        if not is_id(job_id) or not path.is_file():
            message, fix = "no such job, or its answer was removed", "send the image again"
            raise AutosegError(Issue(code="serve.unknown_job", where="job", message=message, fix=fix))
        return load_document(JobStatus, path)

    def status(self, job_id: str) -> JobStatus:
        """How far a job is. Raises `AutosegError` where there is none."""
        found = self.find(job_id)
        if isinstance(found, JobStatus):
            return found
        with self._changed:
            ahead = self._waiting.index(found) if found in self._waiting else 0
        return found.ended.result() if found.ended.done() else found.status(ahead=ahead)

    def remove(self, job_id: str) -> None:
        """Remove a job with its answer; one that runs is stopped at its next window. Raises `AutosegError` where there is none."""
        found = self.find(job_id)
        if isinstance(found, Job):
            found.cancelled.set()
            with self._changed:
                is_waiting = found in self._waiting
                if is_waiting:
                    self._waiting.remove(found)
            if is_waiting:
                self.finish(found, found.ended_as("failed"))
            return
        with self._changed:
            self._kept.pop(job_id, None)
        shutil.rmtree(self.root / job_id, ignore_errors=True)

    def sweep(self) -> None:
        """Remove answers that are too old, or too large together."""
        with self._changed:
            gone = expired(self._kept, time.time(), self.limits)
            for job_id in gone:
                del self._kept[job_id]
        for job_id in gone:
            shutil.rmtree(self.root / job_id, ignore_errors=True)

    def stop(self) -> None:
        """Let no more jobs begin."""
        with self._changed:
            self.stopping = True
            self._changed.notify_all()

    def _keep(self, folder: Path) -> None:
        """Remove all of an answered job but its answer, and note its age and size."""
        shutil.rmtree(folder / UPLOAD, ignore_errors=True)
        (folder / REQUEST).unlink(missing_ok=True)
        num_bytes = sum(file.stat().st_size for file in folder.iterdir())
        with self._changed:
            self._kept[folder.name] = Kept((folder / ANSWER).stat().st_mtime, num_bytes)


def new_id() -> str:
    """An id that nobody can guess."""
    return secrets.token_hex(16)


def is_id(text: str) -> bool:
    """Whether a text has the form of an id: nothing else is looked for on the disk."""
    return len(text) == 32 and set(text) <= set("0123456789abcdef")


def wishes_of(given: list[Wish]) -> tuple[Wish, ...]:
    """What was asked for, each once, in order."""
    return tuple(dict.fromkeys(given))

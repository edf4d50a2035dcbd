"""Executors: the same function on many items, in order, on several workers. The one door to joblib.

An executor is found by name among those installed; ``local`` starts processes on this machine. Signals are recorded here too, so that no work is lost.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import threadpool_limits

from autoseg.compute.memory import free_memory_bytes
from autoseg.issues import AutosegError, Issue
from autoseg.tracking.progress import Tracker
from autoseg.wording import count_noun
from planners import Registry

logger = logging.getLogger(__name__)
WORKER_BYTES = 350_000_000
"""Of a worker process with its libraries loaded."""
USABLE_SHARE = 0.8
"""Of the free memory; the rest is for what other programs start meanwhile."""
MOST_READERS, MOST_AHEAD = 12, 4
"""Processes that read patches for one training, which have as many batches in flight together, and batches of each of them."""
START_S = 2.0
"""Processor time that a worker takes to load its libraries."""
Item = TypeVar("Item")
Result = TypeVar("Result")
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
"""Slurm sends SIGUSR1 before the time limit of a job, where its script asks for it."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Result]):
    """What a function returned for an item, or what it raised, in a form that travels between processes."""

    value: Result | None = None
    issues: tuple[Issue, ...] = ()
    """None where the function returned."""


@dataclass(frozen=True, slots=True)
class Job(Generic[Item, Result]):
    """A function that never raises: it returns an `Outcome` for an item, whatever happens."""

    function: Callable[[Item], Result]
    name: Callable[[Item], str]
    """How issues name an item, e.g. ``case la_003``."""

    def __call__(self, item: Item) -> Outcome[Result]:
        try:
            return Outcome(self.function(item))
        except AutosegError as error:
            named = (i if i.where else i.model_copy(update={"where": self.name(item)}) for i in error.issues)
            return Outcome(issues=tuple(named))
        except Exception as error:  # every cause is reported with its item, after all items were tried
            message = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            return Outcome(issues=(Issue(code="job.failed", where=self.name(item), message=message),))


class Executor(Protocol):
    """Runs a job on items on workers."""

    def __call__(
        self,
        job: Job[Any, Any],
        items: Sequence[Any],
        *,
        num_workers: int,
        say: Callable[[str], None],
        done: Callable[[], None],
    ) -> Sequence[Outcome[Any]]:
        """Outcomes in the order of ``items``. ``done`` is called after each item; a worker that dies is an issue of its item."""


EXECUTORS: Registry[Executor] = Registry(
    group="autoseg.executors", noun="executor", own={"local": "autoseg.compute.executor:run_locally"}
)
_SPREAD: ContextVar[Executor | None] = ContextVar("executor", default=None)


@contextmanager
def spread_over(executor: Executor) -> Iterator[None]:
    """While the block runs, all items of `run_jobs` are done by ``executor``, such as the workers of a cluster."""
    token = _SPREAD.set(executor)
    try:
        yield
    finally:
        _SPREAD.reset(token)


def available_cores() -> int:
    """Cores this process may use; affinity and control groups can make them fewer than the machine has."""
    return int(joblib.cpu_count())


def workers_that_fit(num_workers: int, need_bytes: int, *, free_bytes: int) -> int:
    """As many of ``num_workers`` as fit into memory together, each with an item of ``need_bytes``; one at least."""
    return max(1, min(num_workers, int(free_bytes * USABLE_SHARE) // (need_bytes + WORKER_BYTES)))


def readers_that_fit(cores: int, batch_bytes: int, *, free_bytes: int, shared_bytes: int, trainings: int = 1) -> int:
    """Processes that read patches for one of several ``trainings`` on this machine, of which each leaves itself a core.

    `MOST_READERS` at most, and as many as fit into this training's share of free memory with the batches that are in flight, each of
    ``batch_bytes``; these are in shared memory. One at least, or none where not even that one's batches fit there: then the training
    reads its patches itself.
    """
    free, shared = int(free_bytes * USABLE_SHARE) // trainings, shared_bytes // trainings

    most = max(1, min(MOST_READERS, cores // trainings - 1))
    for readers in range(most, 0, -1):
        parts = [readers - validation_readers(readers), validation_readers(readers)]
        held = sum(part * batches_ahead(part) for part in parts if part) * batch_bytes
        if held <= shared and (readers == 1 or readers * WORKER_BYTES + held <= free):
            return readers
    return 0


def batches_ahead(readers: int) -> int:
    """Batches that each of so many processes may have in flight."""
    return max(1, min(MOST_AHEAD, MOST_READERS // readers))


def validation_readers(readers: int) -> int:
    """How many of so many processes read the patches of validation, which are a sixth; the rest those of training."""
    return 0 if readers < 2 else max(1, readers // 6)


def workers_worth_starting(num_workers: int, seconds: float) -> int:
    """``num_workers``, or 1 for work that takes about ``seconds`` in one process and would be done before they have started."""
    return num_workers if seconds > 2 * START_S else 1


def run_jobs(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    name: Callable[[Item], str],
    num_workers: int = 1,
    need_bytes: int = 0,
    executor: str = "local",
    say: Callable[[str], None] = logger.info,
    tracker: Tracker | None = None,
) -> list[Result]:
    """``[function(item) for item in items]``, on ``num_workers`` processes of an executor (1: in this process), or where `spread_over` says.

    ``name`` gives the words for an item in issues, e.g. ``case la_003``. If the largest item needs ``need_bytes`` of memory,
    fewer processes are used if that many do not fit into free memory; ``say`` gets a message. All items are tried; what they
    raised is then one `AutosegError` that names each item with its cause. When a worker is killed (usually for memory), what may
    have killed it is tried again, each item alone, so ``function`` may be called again for an item.
    """

    def done() -> None:
        if tracker is not None:
            tracker.advance()

    job: Job[Item, Result] = Job(function, name)
    num_workers = min(num_workers, len(items))
    if (elsewhere := _SPREAD.get()) is not None and len(items) > 1:
        outcomes: Sequence[Outcome[Result]] = elsewhere(job, items, num_workers=num_workers, say=say, done=done)
    elif num_workers <= 1:
        here: list[Outcome[Result]] = []
        # One thread for linear algebra, as in workers: sums in another order give other last digits, and which items a worker
        # gets depends on what an earlier, interrupted call has finished.
        with threadpool_limits(limits=1):
            for item in items:
                here.append(job(item))
                done()
        outcomes = here
    else:
        free = free_memory_bytes()
        fitting = workers_that_fit(num_workers, need_bytes, free_bytes=free) if need_bytes else num_workers
        if fitting < num_workers:
            needed = f"one item may need {need_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB is free"
            say(f"{fitting} instead of {num_workers} workers: {needed}")
        outcomes = EXECUTORS.get(executor)(job, items, num_workers=fitting, say=say, done=done)
    issues = [issue for outcome in outcomes for issue in outcome.issues]
    if issues:
        raise AutosegError(*issues, headline=f"{count_noun(len(issues), 'issue')} found" if len(issues) > 1 else None)
    return [outcome.value for outcome in outcomes]  # type: ignore[misc]


def run_locally(
    job: Job[Item, Result],
    items: Sequence[Item],
    *,
    num_workers: int,
    say: Callable[[str], None],
    done: Callable[[], None],
) -> list[Outcome[Result]]:
    """In processes on this machine; items that kill their worker are retried alone (decision 0082)."""
    finished: dict[int, Outcome[Result]] = {}
    waiting = list(range(len(items)))
    while waiting and num_workers > 1:
        broken = _run_together(job, items, waiting, num_workers, finished, done)
        waiting = [i for i in waiting if i not in finished]
        if broken:  # items are handed out in order, so the first unfinished ones were at work
            for i in waiting[:num_workers]:
                say(f"A worker was killed, perhaps by {job.name(items[i])}: retrying it alone")
                finished[i] = _run_alone(job, items[i])
                done()
            waiting = waiting[num_workers:]
    for i in waiting:  # a single worker is not this process, which must survive a lack of memory
        finished[i] = _run_alone(job, items[i])
        done()
    return [finished[i] for i in range(len(items))]


def _run_together(
    job: Job[Item, Result],
    items: Sequence[Item],
    waiting: Sequence[int],
    num_workers: int,
    finished: dict[int, Outcome[Result]],
    done: Callable[[], None],
) -> bool:
    """Do the ``waiting`` items, filling ``finished`` by index; whether a worker was killed."""
    parallel = _workers(num_workers, return_as="generator_unordered")
    try:
        for i, outcome in parallel(joblib.delayed(_numbered)(i, job, items[i]) for i in waiting):
            finished[i] = outcome
            done()
    except TerminatedWorkerError:
        return True
    return False


def _workers(number: int, **options: Any) -> joblib.Parallel:
    return joblib.Parallel(n_jobs=number, inner_max_num_threads=1, backend="loky", batch_size=1, **options)


def _numbered(i: int, job: Job[Item, Result], item: Item) -> tuple[int, Outcome[Result]]:
    return i, job(item)


def _run_alone(job: Job[Item, Result], item: Item) -> Outcome[Result]:
    """One item in a worker while no other runs."""
    try:
        outcome: Outcome[Result] = _workers(2)([joblib.delayed(job)(item)])[0]  # 1 would be this process
    except TerminatedWorkerError:
        outcome = killed_alone(
            job.name(item), fix="close other programs, leave it out, or use a machine with more memory"
        )
    return outcome


def killed_alone(where: str, *, fix: str) -> Outcome[Any]:
    """What is said of an item whose worker was killed while no other ran."""
    message = "its worker was killed although it ran alone, most likely because memory ran out"
    return Outcome(issues=(Issue(code="job.worker_killed", where=where, message=message, fix=fix),))


@dataclass(slots=True)
class Background:
    """Works beside this thread, one at a time. What a work raises is raised by the next call of a method."""

    seconds: float = 0.0
    """What the last one took."""
    _thread: threading.Thread | None = None
    _error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a work has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        """Begin once the one before has ended. The process does not end before it."""
        self.finish()
        self._thread = threading.Thread(target=self._do, args=(work,))
        self._thread.start()

    def finish(self) -> None:
        """Wait until it has ended."""
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is not None:
            raise error

    def _do(self, work: Callable[[], None]) -> None:
        started = time.perf_counter()
        try:
            work()
        except BaseException as error:
            self._error = error
        self.seconds = time.perf_counter() - started


@contextmanager
def stop_requests(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """While the block runs, the first Ctrl-C, SIGTERM or SIGUSR1 is only recorded; the yielded function says whether there was one.

    ``say`` is called at once. A second one raises `KeyboardInterrupt` at once, and so does the end of a block that did
    not heed the first. Outside the main thread, where Python delivers no signals, nothing changes and the answer is always false.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested, process = threading.Event(), os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        if os.getpid() == process:  # Ctrl-C reaches forked workers, too, which have this handler
            # Said here: the next step may be far away. Python calls handlers between its own instructions, and
            # the locks of logging and of rich may be taken again by the thread that holds them.
            say("Interrupted: stopping after this training step. Press Ctrl-C again to stop immediately.")

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if requested.is_set():
        raise KeyboardInterrupt

"""The one door to joblib: the same function on many items, in order, in parallel."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import threadpool_limits

from autoseg.compute.memory import free_memory_bytes
from autoseg.issues import AutosegError, Issue
from autoseg.tracking.progress import Tracker
from autoseg.wording import count_noun

logger = logging.getLogger(__name__)
WORKER_BYTES = 350_000_000
"""Of a worker process with its libraries loaded."""
USABLE_SHARE = 0.8
"""Of the free memory; the rest is for what others start meanwhile."""
START_S = 2.0
"""Processor time that a worker process takes to load its libraries."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Failure:
    """What an item's function raised, in a form that travels between processes."""

    item: str
    error: Exception
    trace: str


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[Result]):
    value: Result | None
    failure: Failure | None


def available_cores() -> int:
    """Cores this process may use, which affinity and control groups can make fewer than the machine has."""
    return int(joblib.cpu_count())


def workers_that_fit(num_workers: int, need_bytes: int, *, free_bytes: int) -> int:
    """As many of ``num_workers`` as find room in memory together, each with an item of ``need_bytes``; one at least."""
    return max(1, min(num_workers, int(free_bytes * USABLE_SHARE) // (need_bytes + WORKER_BYTES)))


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
    say: Callable[[str], None] = logger.info,
    tracker: Tracker | None = None,
) -> list[Result]:
    """``[function(item) for item in items]``, on ``num_workers`` processes (1: in this one).

    The order of ``items`` is kept. ``name`` gives the words for an item in errors, e.g. ``case la_003``. Where the largest
    item takes ``need_bytes`` of memory, fewer processes are used if so many do not fit into what is free; ``say`` is told.
    All items are tried; what they raised is then reported together as one `AutosegError` that names each item
    with its cause. When a worker is killed (usually for memory), what may have killed it is tried again, each item alone;
    one that is killed then as well is an error like others. So ``function`` may be called again for an item.
    """
    fitting = num_workers
    if num_workers > 1 and len(items) > 1 and need_bytes:
        fitting = workers_that_fit(min(num_workers, len(items)), need_bytes, free_bytes=free_memory_bytes())
        if fitting < min(num_workers, len(items)):
            say(
                f"{fitting} instead of {num_workers} processes: one item may take {need_bytes / 1e9:.1f} GB, and "
                f"{free_memory_bytes() / 1e9:.1f} GB of memory are free"
            )
    if num_workers <= 1 or len(items) <= 1:
        # One thread for linear algebra, here as in worker processes: sums in another order give other last digits, and
        # which items a worker gets depends on what an earlier, interrupted call has finished.
        with threadpool_limits(limits=1):
            outcomes = [_attempt(function, item, name(item), tracker) for item in items]
    else:
        outcomes = _Pool(function, name, say, tracker).run(items, fitting)
    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    if failures:
        raise failure_error(failures)
    return [outcome.value for outcome in outcomes]  # type: ignore[misc]


def _attempt(
    function: Callable[[Item], Result], item: Item, title: str, tracker: Tracker | None = None
) -> _Outcome[Result]:
    try:
        outcome = _Outcome(function(item), None)
    except Exception as error:  # every cause is reported with its item, after all items were tried
        outcome = _Outcome(None, Failure(title, error, traceback.format_exc()))
    if tracker is not None:
        tracker.advance()
    return outcome


@dataclass(frozen=True, slots=True)
class _Pool(Generic[Item, Result]):
    """How items are done in worker processes."""

    function: Callable[[Item], Result]
    name: Callable[[Item], str]
    say: Callable[[str], None]
    tracker: Tracker | None

    def run(self, items: Sequence[Item], num_workers: int) -> list[_Outcome[Result]]:
        """Outcomes in the order of ``items``; those of items that kill their worker say so."""
        if num_workers == 1:  # not in this process, which a lack of memory must not end
            return [self.run_alone(item) for item in items]
        done: dict[int, _Outcome[Result]] = {}
        waiting = list(range(len(items)))
        while waiting:
            broken = self._run_together(items, waiting, num_workers, done)
            waiting = [i for i in waiting if i not in done]
            if broken:  # items are handed out in order, so the first unfinished ones were at work
                for i in waiting[:num_workers]:
                    self.say(f"A worker process was killed, perhaps by {self.name(items[i])}: trying that again, alone")
                    done[i] = self.run_alone(items[i])
                waiting = waiting[num_workers:]
        return [done[i] for i in range(len(items))]

    def _run_together(
        self, items: Sequence[Item], waiting: Sequence[int], num_workers: int, done: dict[int, _Outcome[Result]]
    ) -> bool:
        """Do items, filling ``done`` by index; whether a worker was killed."""
        parallel = joblib.Parallel(
            n_jobs=num_workers, return_as="generator_unordered", inner_max_num_threads=1, backend="loky", batch_size=1
        )
        tasks = (joblib.delayed(_numbered)(i, self.function, items[i], self.name(items[i])) for i in waiting)
        try:
            for i, outcome in parallel(tasks):
                done[i] = outcome
                self._advance()
        except TerminatedWorkerError:
            return True
        return False

    def run_alone(self, item: Item) -> _Outcome[Result]:
        """One item in a worker process while no other works."""
        title = self.name(item)
        parallel = joblib.Parallel(
            n_jobs=2, inner_max_num_threads=1, backend="loky", batch_size=1
        )  # one would be this process
        try:
            outcome: _Outcome[Result] = parallel([joblib.delayed(_attempt)(self.function, item, title)])[0]
        except TerminatedWorkerError:
            error = AutosegError(
                "its worker process was killed by the system although it worked alone, most often for lack of memory; "
                "close other programs, leave it out, or use a machine with more memory"
            )
            outcome = _Outcome(None, Failure(title, error, ""))
        self._advance()
        return outcome

    def _advance(self) -> None:
        if self.tracker is not None:
            self.tracker.advance()


def _numbered(i: int, function: Callable[[Item], Result], item: Item, title: str) -> tuple[int, _Outcome[Result]]:
    return i, _attempt(function, item, title)


def failure_error(failures: Sequence[Failure]) -> AutosegError:
    """One error for all that went wrong; what was not meant for the user comes with its type and where it was raised."""
    issues = [issue for failure in failures for issue in _issues(failure)]
    return AutosegError(*issues, headline=f"{count_noun(len(issues), 'problem')} found")


def _issues(failure: Failure) -> Sequence[Issue]:
    error = failure.error
    if isinstance(error, AutosegError):
        return [i if i.where else i.model_copy(update={"where": failure.item}) for i in error.issues]
    message = f"{type(error).__name__}: {error}\n{failure.trace}"
    return [Issue(code="job.failed", where=failure.item, message=message)]

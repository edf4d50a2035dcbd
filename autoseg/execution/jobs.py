"""The one door to joblib: the same function on many items, in order, in parallel."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import threadpool_limits

from autoseg.errors import AutosegError, ProblemsError
from autoseg.progress import Tracker

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
    """Cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    name: Callable[[Item], str],
    num_workers: int = 1,
    tracker: Tracker | None = None,
) -> list[Result]:
    """``[function(item) for item in items]``, on ``num_workers`` processes (1: in this one).

    The order of ``items`` is kept. ``name`` gives the words for an item in errors, e.g. ``case la_003``.
    All items are tried; what they raised is then reported together as one `AutosegError` that names each item
    with its cause. A worker that is killed (usually for memory) ends the jobs with an error that says so and names
    the items that were not finished.
    """
    if num_workers <= 1 or len(items) <= 1:
        outcomes = [_attempt(function, item, name(item), tracker) for item in items]
    else:
        outcomes = _run_in_workers(function, items, name, num_workers, tracker)
    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    if failures:
        raise failure_error(failures)
    return [outcome.value for outcome in outcomes]  # type: ignore[misc]


def _attempt(
    function: Callable[[Item], Result], item: Item, title: str, tracker: Tracker | None = None
) -> _Outcome[Result]:
    try:
        # One thread for linear algebra, here as in worker processes: sums in another order give other last digits, and
        # which items a worker gets depends on what an earlier, interrupted call has finished.
        with threadpool_limits(limits=1):
            outcome = _Outcome(function(item), None)
    except Exception as error:  # every cause is reported with its item, after all items were tried
        outcome = _Outcome(None, Failure(title, error, traceback.format_exc()))
    if tracker is not None:
        tracker.advance()
    return outcome


def _run_in_workers(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    name: Callable[[Item], str],
    num_workers: int,
    tracker: Tracker | None,
) -> list[_Outcome[Result]]:
    finished: list[_Outcome[Result]] = []
    parallel = joblib.Parallel(
        n_jobs=min(num_workers, len(items)), return_as="generator", inner_max_num_threads=1, backend="loky"
    )
    try:
        for outcome in parallel(joblib.delayed(_attempt)(function, item, name(item)) for item in items):
            finished.append(outcome)
            if tracker is not None:
                tracker.advance()
    except TerminatedWorkerError as error:
        waiting = ", ".join(name(item) for item in items[len(finished) : len(finished) + num_workers])
        raise AutosegError(
            f"a worker process was killed by the system, most often for lack of memory, near {waiting}; "
            "close other programs, or use fewer workers with --workers"
        ) from error
    return finished


def failure_error(failures: Sequence[Failure]) -> AutosegError:
    """One error for all that went wrong; messages meant for the user stay whole, others get their type."""
    problems = [problem for f in failures if isinstance(f.error, ProblemsError) for problem in f.error.problems]
    lines = [
        f"{f.item}: {f.error}" if isinstance(f.error, AutosegError) else f"{f.item}: {type(f.error).__name__}: {f.error}\n{f.trace}"
        for f in failures
        if not isinstance(f.error, ProblemsError)
    ]
    if problems and not lines:
        return ProblemsError(f"{len(problems)} problems were found", problems)
    return AutosegError("\n".join([*lines, *map(str, problems)]))

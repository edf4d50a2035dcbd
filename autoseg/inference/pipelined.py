"""Cases of a folder side by side: the next one is read and the last one written while one is computed.

Reading and writing have a thread each, and hold one case at most: numpy, zlib and file systems leave Python to others meanwhile, and nothing
need be copied to another process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from autoseg.inference.predictions import Begun, Job, Outcome, PredictionFolder
from autoseg.issues import AutosegError, Issue
from autoseg.wording import first_line

logger = logging.getLogger(__name__)
T = TypeVar("T")
Done = tuple[Job, Outcome | AutosegError]


def one_by_one(jobs: Sequence[Job], complete: Callable[[Job], Outcome | None]) -> Iterator[Done]:
    """What ``complete`` makes of each job, or why it failed."""
    for job in jobs:
        try:
            yield job, complete(job) or "predicted"
        except AutosegError as error:
            yield job, error


def side_by_side(jobs: Sequence[Job], folder: PredictionFolder, *, reads_ahead: bool = True) -> Iterator[Done]:
    """Predict ``jobs`` into ``folder``, in order; whatever goes wrong with one of them ends no other.

    ``reads_ahead``: the next case is read while one is computed, which takes memory for both.
    """
    reading: Future[Begun | Outcome] | None = None
    writing: tuple[Job, Future[Outcome]] | None = None
    begun: Begun | Outcome | AutosegError | None = None
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        try:
            for i, job in enumerate(jobs):
                begun = _result(job, (reading or reader.submit(folder.start, job)).result)
                more = reads_ahead and i + 1 < len(jobs)
                reading = reader.submit(folder.start, jobs[i + 1]) if more else None
                computed = _result(job, begun.compute) if isinstance(begun, Begun) else None
                if writing is not None:
                    yield writing[0], _result(writing[0], writing[1].result)
                    writing = None
                if isinstance(begun, Begun) and not isinstance(computed, AutosegError):
                    writing, begun = (job, writer.submit(folder.finish, begun, computed)), None
                    continue
                if isinstance(begun, Begun):
                    begun.claim.close()
                yield job, computed if isinstance(computed, AutosegError) else begun  # type: ignore[misc]
            if writing is not None:
                yield writing[0], _result(writing[0], writing[1].result)
        finally:
            if isinstance(begun, Begun):
                begun.claim.close()
            if reading is not None and not reading.cancel():
                with suppress(Exception):
                    left = reading.result()
                    if isinstance(left, Begun):
                        left.claim.close()


def _result(job: Job, step: Callable[[], T]) -> T | AutosegError:
    """What a step of a job returns, or why it failed: an error that nobody foresaw is told as an issue, too."""
    try:
        return step()
    except AutosegError as error:
        return error
    except Exception as error:
        logger.exception("%s failed", job.case_id)
        message = f"failed unexpectedly: {type(error).__name__}: {first_line(error)}"
        fix = "report it as a bug, with the log"
        return AutosegError(Issue(code="predict.failed", where=job.case_id, message=message, fix=fix, case=job.case_id))

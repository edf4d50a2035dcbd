"""Jobs keep their order, and say which item failed and why.

Nothing here loads torch: workers load this file, and many are started.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from autoseg.compute.executor import (
    Background,
    available_cores,
    batches_ahead,
    readers_that_fit,
    run_jobs,
    validation_readers,
    workers_that_fit,
    workers_worth_starting,
)
from autoseg.issues import AutosegError, Issue
from autoseg.tracking.progress import SilentReporter


def process_id(x: int) -> int:
    return os.getpid()


def slow_square(x: int) -> int:
    time.sleep(0.05 * (3 - x % 3))
    return x * x


def picky(x: int) -> int:
    if x == 2:
        raise AutosegError(Issue(code="test.picky", where="", message="two is not liked", fix="take three"))
    if x == 4:
        raise AutosegError(*[Issue(code="test.issue", where="w", message="f", fix="m")], headline=("bad"))
    if x == 5:
        return 1 // 0
    return x


def die(x: int) -> int:
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return x


def die_in_company(task: tuple[int, Path]) -> int:
    """The second item kills its worker when it is tried for the first time."""
    x, marks = task
    mark = marks / str(x)
    tried = mark.exists()
    mark.touch()
    if x == 1 and not tried:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_items(workers: int) -> None:
    with SilentReporter().track("squares", 6) as tracker:
        assert run_jobs(slow_square, range(6), name=str, num_workers=workers, tracker=tracker) == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize("workers", [1, 2])
def test_all_failures_are_reported_with_their_items(workers: int) -> None:
    with pytest.raises(AutosegError) as caught:
        run_jobs(picky, range(6), name=lambda x: f"case {x}", num_workers=workers)
    text = str(caught.value)
    assert "case 2: two is not liked" in text
    assert "w: f; m" in text
    assert "case 5: ZeroDivisionError" in text


def product(seed: int) -> bytes:
    """A matrix product whose last digits depend on how many threads share its sums."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 900, 900)).astype(np.float32)
    return (a @ b).tobytes()


def test_results_do_not_depend_on_who_does_an_item() -> None:
    here = run_jobs(product, range(3), name=str, num_workers=1)
    assert run_jobs(product, range(3), name=str, num_workers=2) == here


def test_issues_of_an_error_stay_issues() -> None:
    with pytest.raises(AutosegError) as caught:
        run_jobs(picky, [1, 4], name=str)
    assert len(caught.value.issues) == 1


def test_an_item_that_kills_its_worker_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    with SilentReporter().track("items", 8) as tracker, pytest.raises(AutosegError) as raised:
        run_jobs(die, range(8), name=lambda x: f"case {x}", num_workers=2, tracker=tracker)
    assert [(issue.code, issue.where) for issue in raised.value.issues] == [("job.worker_killed", "case 1")]


def test_an_item_that_kills_its_worker_once_is_tried_again_alone(tmp_path: Path) -> None:
    said: list[str] = []
    tasks = [(x, tmp_path) for x in range(8)]
    assert run_jobs(die_in_company, tasks, name=lambda task: f"case {task[0]}", num_workers=2, say=said.append) == list(
        range(8)
    )
    assert any("perhaps by case 1" in text for text in said)


def test_workers_are_as_many_as_fit_into_memory() -> None:
    gb = 10**9
    assert workers_that_fit(8, 2 * gb, free_bytes=100 * gb) == 8
    assert workers_that_fit(8, 2 * gb, free_bytes=int(11.76 * gb)) == 4  # four fifths for 2.35 GB each
    assert workers_that_fit(8, 2 * gb, free_bytes=int(11.74 * gb)) == 3
    assert workers_that_fit(8, 2 * gb, free_bytes=gb) == 1


PLENTY = 10**13


@pytest.mark.parametrize(
    ("cores", "trainings", "readers"), [(1, 1, 1), (4, 1, 3), (13, 1, 12), (64, 1, 12), (16, 4, 3), (16, 16, 1)]
)
def test_patches_are_read_by_all_cores_but_those_that_train(cores: int, trainings: int, readers: int) -> None:
    found = readers_that_fit(cores, 10**6, free_bytes=PLENTY, shared_bytes=PLENTY, trainings=trainings)
    assert found == readers


def test_at_most_twelve_batches_are_in_flight() -> None:
    ahead = [batches_ahead(readers) for readers in range(1, 13)]
    assert ahead == [4, 4, 4, 3, 2, 2, 1, 1, 1, 1, 1, 1]
    assert max(readers * each for readers, each in enumerate(ahead, 1)) == 12


def test_a_sixth_of_the_readers_reads_for_validation() -> None:
    assert [validation_readers(readers) for readers in (0, 1, 2, 11, 12)] == [0, 0, 1, 1, 2]


def test_readers_and_their_batches_share_free_memory() -> None:
    """Three readers have 8 + 4 batches of 1 GB and three times 0.35 GB, two have 4 + 4: four fifths of free memory, for each training."""
    gb = 10**9

    def found(free_gb: float, trainings: int = 1) -> int:
        free = int(free_gb * gb)
        return readers_that_fit(4 * trainings, gb, free_bytes=free, shared_bytes=PLENTY, trainings=trainings)

    assert [found(16.32), found(16.31)] == [3, 2]
    assert [found(10.88), found(10.87), found(0.1)] == [2, 1, 1]
    assert [found(32.64, 2), found(32.62, 2)] == [3, 2]


def test_batches_in_flight_must_fit_into_shared_memory() -> None:
    """Eight readers have 7 + 4 batches, seven have 12 + 4, two and a single one 4 + 4 and 4; the others more than ten."""
    gb = 10**9
    found = [readers_that_fit(9, gb, free_bytes=PLENTY, shared_bytes=shared * gb) for shared in (11, 10, 8, 7, 4, 3)]
    assert found == [8, 2, 2, 1, 1, 0], "none: the training reads its patches itself"


def test_work_in_the_background_is_done_in_order_and_its_errors_are_raised_by_the_next_call() -> None:
    beside, may_go, done = Background(), Event(), []
    beside.finish()
    beside.start(lambda: done.append(may_go.wait(60)))
    assert beside.is_busy
    may_go.set()
    beside.start(lambda: done.append(1 / 0))
    assert done == [True]
    with pytest.raises(ZeroDivisionError):
        beside.start(lambda: done.append("never"))
    assert not beside.is_busy
    beside.start(lambda: done.append("after"))
    beside.finish()
    assert done == [True, "after"]


def test_little_work_starts_no_processes() -> None:
    assert [workers_worth_starting(8, seconds) for seconds in (0.0, 4.0, 4.1, 60.0)] == [1, 1, 8, 8]


def test_where_two_do_not_fit_one_process_works_outside_of_this_one() -> None:
    said: list[str] = []
    pids = run_jobs(process_id, range(3), name=str, num_workers=2, need_bytes=10**13, say=said.append)
    assert os.getpid() not in pids
    assert said[0].startswith("1 instead of 2 workers")


def test_at_least_one_core_is_there() -> None:
    assert available_cores() >= 1

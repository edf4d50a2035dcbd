"""One model on several devices: processes that compute a share of each batch, started here or by torchrun.

Only rank 0 runs the stages and writes; the others wait until it trains, and compute their samples (decision 0236).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autoseg.compute import torchrun_place
from autoseg.compute.device import set_threads, use_device
from autoseg.compute.ranks import Ranks, joined, leading, leave, store_at
from autoseg.issues import AutosegError, Issue
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared
from autoseg.stages.train import fold_key, fold_spec
from autoseg.training.together import follow_fold

CALL = "from autoseg.compute.cluster import end_with_parent; end_with_parent(); import sys; from autoseg.stages.together import be_led; be_led(*sys.argv[1:])"


@contextmanager
def training_ranks(run: Run, name: str, fold: int) -> Iterator[Ranks | None]:
    """While the block runs, the other processes that train this fold with this one; None where it trains alone."""
    job = {
        "root": str(run.folder.root.absolute()),
        "configuration": name,
        "fold": fold,
        "num_threads": run.num_threads,
        "device": run.device.type,
    }
    if run.ranks is not None:
        ranks = joined(run.device, rank=run.ranks.rank, count=run.ranks.count)
        ranks.tell(job)
        yield ranks
    elif len(run.ddp) > 1:
        log = run.folder.cluster / f"ddp-{name}-fold_{fold}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with leading(run.ddp, _call, log=log, say=run.say) as ranks:
            ranks.tell(job)
            yield ranks
            ranks.tell(None)
    else:
        yield None


def _call(rank: int, device: str, port: int, count: int) -> list[str]:
    return [sys.executable, "-c", CALL, str(rank), device, str(port), str(count)]


def require_shares(run: Run, prepared: Prepared) -> None:
    """Raise `AutosegError` where a batch has fewer samples than there are processes."""
    count = run.ranks.count if run.ranks is not None else max(1, len(run.ddp))
    issues = []
    for training in prepared.schedule.trainings:
        if training.batch_size < count:
            message = f"{training.configuration} has batch size {training.batch_size}, less than one sample for each of {count} processes"
            fix = f"use --ddp {training.batch_size} at most, or train folds side by side (--devices)"
            issues.append(Issue(code="ddp.batch_too_small", where="--ddp", message=message, fix=fix))
    if issues:
        raise AutosegError(*issues)


def be_led(rank: str, device: str, port: str, count: str) -> None:
    """A process that `training_ranks` has started, for one fold."""
    found = torch.device(device)
    ranks = joined(found, rank=int(rank), count=int(count), store=store_at(int(port), int(count)))
    _follow(ranks, found)


def _follow(ranks: Ranks, device: torch.device) -> None:
    """Take part in one training after the other, until rank 0 ends all."""
    use_device(device)
    while (job := ranks.hear()) is not None:
        _follow_job(ranks, device, job)
    leave()


def _follow_job(ranks: Ranks, device: torch.device, job: dict[str, Any]) -> None:
    run = replace(Run.open(Path(job["root"])), device_name=str(device), num_threads=job["num_threads"])
    set_threads(run.num_threads)
    prepared = read_prepared(run)
    training = prepared.schedule.training(job["configuration"])
    key = fold_key(run, prepared, training, job["fold"])
    spec = fold_spec(run, prepared, (training, job["fold"]), key, ranks)
    follow_fold(replace(spec, start=None), ranks)  # weights come from rank 0


@contextmanager
def under_torchrun() -> Iterator[Ranks | None]:
    """The place that torchrun gave this process, if any. Rank 0 lets the others end after the block; an error ends them by itself."""
    place = torchrun_place()
    if place is None:
        yield None
        return
    rank, count, local = place
    ranks = Ranks(rank=rank, count=count)
    if rank:
        for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 saves its step and tells; its end breaks the connection
            with suppress(ValueError):  # not in the main thread
                signal.signal(number, signal.SIG_IGN)
        device = torch.device(f"cuda:{local}") if torch.cuda.is_available() else torch.device("cpu")
        _follow(joined(device, rank=rank, count=count), device)
        yield ranks
        return
    yield ranks
    joined(torch.device("cuda" if torch.cuda.is_available() else "cpu"), rank=0, count=count).tell(None)
    leave()

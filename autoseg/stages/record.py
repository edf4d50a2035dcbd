"""What a run was made with: versions, hardware, options, durations, and how it ended."""

from __future__ import annotations

import platform
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from autoseg import __version__
from autoseg.compute.device import describe_device
from autoseg.data.dataset import DatasetDescription
from autoseg.issues import AutosegError
from autoseg.stages.run import Run, StageRecord
from autoseg.storage.atomic import load_document, save_document
from planners import Document

PACKAGES = ("torch", "numpy", "SimpleITK", "scikit-image", "batchgenerators", "blosc2", "pydantic")


class RunRecord(Document):
    """``run.json``."""

    schema_version: Literal[1] = 1
    autoseg: str
    python: str
    platform: str
    packages: dict[str, str]
    device: str
    processor: str
    num_threads: int
    seed: int
    budget_s: float | None
    dataset: str
    started: str
    """Of the last call; UTC, ISO 8601."""
    seconds: float
    """Of the last call."""
    left_out: tuple[str, ...] = ()
    """Cases and files that were left out of the dataset because of errors (``--skip-bad``)."""
    stages_s: dict[str, float]
    """Seconds of each stage when it was last done."""
    state: Literal["running", "finished", "failed", "interrupted"]
    error: str | None


def write_record(
    run: Run,
    state: Literal["running", "finished", "failed", "interrupted"],
    error: str | None = None,
) -> RunRecord:
    """Write ``run.json`` with the present state."""
    started = datetime.now(UTC) - timedelta(seconds=run.elapsed_s)
    stages = sorted((run.folder.root / "stages").glob("*.json"))
    record = RunRecord(
        autoseg=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: version(name) for name in PACKAGES},
        device=describe_device(run.device, num_threads=run.num_threads),
        processor=processor_name(),
        num_threads=run.num_threads,
        seed=run.settings.seed,
        budget_s=run.settings.budget,
        dataset=str(run.settings.dataset),
        started=started.isoformat(timespec="seconds"),
        left_out=_left_out(run),
        seconds=round(run.elapsed_s, 2),
        stages_s={path.stem: round(seconds, 2) for path in stages if (seconds := _seconds(path)) is not None},
        state=state,
        error=error,
    )
    save_document(run.folder.record, record)
    return record


def what_differs(run: Run) -> str | None:
    """What the last call in the run folder was made with, where the last digits of results depend on it and it is otherwise now.

    None where nothing is otherwise, or no call was before. Threads are compared with those of the schedule instead.
    """
    try:
        before = load_document(RunRecord, run.folder.record)
    except AutosegError:
        return None
    pairs = {
        "autoseg": (before.autoseg, __version__),
        "torch": (before.packages.get("torch", "unknown"), version("torch")),
        "the processor": (before.processor, processor_name()),
    }
    changes = [f"{name} was {old} and is {new}" for name, (old, new) in pairs.items() if old != new]
    return "; ".join(changes) or None


def _seconds(stage: Path) -> float | None:
    """What a stage took; None where its record cannot be read, so that it will be done again."""
    try:
        return load_document(StageRecord, stage).seconds
    except AutosegError:
        return None


def _left_out(run: Run) -> tuple[str, ...]:
    """What the last finished check left out; nothing before there was one."""
    try:
        return load_document(DatasetDescription, run.folder.dataset).left_out
    except AutosegError:
        return ()


def processor_name() -> str:
    """The processor's capabilities as torch reports them."""
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"

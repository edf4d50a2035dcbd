"""What a person may ask of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.run_folder import RunFolder
from autoseg.tracking.progress import Reporter
from planners import Preset

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One run: where from, where to, and with what."""

    dataset: Path
    run: RunFolder
    device_name: str
    """Of the processor that trains and predicts, e.g. ``cuda:1``."""
    num_threads: int
    num_workers: int
    """Processes for reading and preprocessing."""
    reporter: Reporter
    budget_s: float | None = None
    schedule: Path | None = None
    """A schedule to follow instead of measuring this machine."""
    seed: int = 0
    preset: Preset = "default"
    memory_gb: float | None = None
    target_spacing_mm: tuple[float, float, float] | None = None
    """Of full resolution, source axes (z, y, x); none: planned."""
    strict_reference: bool = False
    layout: str | None = None
    """Name of the layout to take where several fit; none: the one that finds most cases."""
    spec: Path | None = None
    """File that describes the layout of the dataset."""
    skip_bad: bool = False
    """Leave out cases that the check finds an error in, instead of stopping."""
    pretrained: Path | None = None
    """Run folder or bundle to train on from, with its plan."""
    splits: Path | None = None
    """File with the folds to take."""
    folds: int | None = None
    """Number of folds, two at least; none: the method's five, fewer where time is short."""
    groups: Path | None = None
    """CSV file that says which cases stay together; none: as the dataset tells."""
    leave_one_group_out: bool = False
    """One fold for each group."""
    may_retrain: bool = True
    """Whether what was trained is trained anew where its inputs changed; else that is an error, and only what is missing is done."""
    started: float = field(default_factory=time.monotonic)
    """When the budget began to run."""

    @property
    def device(self) -> torch.device:
        """The processor that trains and predicts; loads torch, which stages before training go without."""
        import torch

        return torch.device(self.device_name)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

"""TensorBoard: losses, scores and issues as event files in the run folder. Needs ``autoseg[tensorboard]``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorboard  # noqa: F401  # torch's writer would name a missing package only at the first event
from torch.utils.tensorboard import SummaryWriter

from autoseg.issues import Issue
from autoseg.tracking.callbacks import Callback, EpochRecord, FoldEnd, FoldStart, StepRecord

FOLDER = "tensorboard"


@dataclass(slots=True)
class TensorBoard(Callback):
    """Writes to ``tensorboard/CONFIGURATION/fold_K`` of the run folder; read it with ``tensorboard --logdir``."""

    folder: Path
    """Of the run."""
    writer: Any = field(default=None, init=False)
    step: int = field(default=0, init=False)

    def on_fold_start(self, fold: FoldStart) -> None:
        """Events of an earlier call after the checkpoint that is resumed from are hidden."""
        where = self.folder / FOLDER / fold.configuration / f"fold_{fold.fold}"
        self.step = fold.steps_done
        make: Any = SummaryWriter
        self.writer = make(str(where), purge_step=fold.steps_done)

    def on_step(self, step: StepRecord) -> None:
        self.step = step.step
        self._add("step/loss", step.loss, step.step)
        self._add("step/learning_rate", step.learning_rate, step.step)

    def on_epoch(self, epoch: EpochRecord) -> None:
        for name, value in epoch.values().items():
            self._add(f"epoch/{name}", value, epoch.step - 1)

    def on_issue(self, issue: Issue) -> None:
        if self.writer is not None:
            self.writer.add_text(f"issues/{issue.code}", str(issue), self.step)

    def on_fold_end(self, end: FoldEnd) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _add(self, name: str, value: float, step: int) -> None:
        if self.writer is not None:
            self.writer.add_scalar(name, value, step)

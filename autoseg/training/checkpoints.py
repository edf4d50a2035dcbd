"""Checkpoints: the state of a training to disk, and back. Loading never runs code from the file."""

from __future__ import annotations

import io
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoseg.compute.memory import is_out_of_memory
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import atomic_write, write_text
from autoseg.tracking.callbacks import (
    HISTORY_FILE,
    Callback,
    EpochRecord,
    FoldEnd,
    StepRecord,
    history_text,
    save_issues,
)
from autoseg.training.fold_spec import FoldRun, FoldState

CHECKPOINT_FILE, PREVIOUS_FILE = "checkpoint.pt", "previous.pt"
DAMAGE = (RuntimeError, TypeError, KeyError, AttributeError, EOFError, ValueError, zipfile.BadZipFile, OSError)
"""What torch raises for files that are damaged or are no checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that is needed to resume a training; the batches follow from the step."""

    key: str
    """Hash of what the training was made from; a checkpoint with another key is of another training."""
    step: int
    """Steps done."""
    network: dict[str, Tensor]
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    state: dict[str, Any]
    """The `FoldState` in plain values."""


def save(run: FoldRun, step: int) -> None:
    """Write the training's state after ``step`` steps, unless its stored cases were replaced meanwhile."""
    run.spec.require_cases()
    state: dict[str, Any] = {each.name: getattr(run.state, each.name) for each in fields(FoldState)}
    state["earlier_s"] += time.monotonic() - run.started
    state["issues"] = [issue.model_dump() for issue in run.state.issues]
    state["history"] = [asdict(epoch) for epoch in run.state.history]
    checkpoint = Checkpoint(
        key=run.spec.key,
        step=step,
        network=run.parts.network.state_dict(),
        optimiser=run.parts.optimiser.state_dict(),
        scaler=run.parts.scaler.state_dict(),
        state=state,
    )
    write_text(run.spec.folder / HISTORY_FILE, history_text(run.state.history))
    save_issues(run.spec.folder, run.state.issues, key=run.spec.key)
    save_checkpoint(run.spec.folder / CHECKPOINT_FILE, checkpoint)


def read_state(checkpoint: Checkpoint) -> FoldState:
    """The state that a checkpoint holds."""
    values = dict(checkpoint.state)
    values["issues"] = [Issue(**issue) for issue in values["issues"]]
    values["history"] = [EpochRecord(**epoch) for epoch in values["history"]]
    return FoldState(**values)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically; the one before stays as ``previous.pt`` next to it."""
    if path.exists():
        os.replace(path, path.with_name(PREVIOUS_FILE))
    content = {name: getattr(checkpoint, name) for name in Checkpoint.__slots__}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_latest(path: Path, *, key: str) -> tuple[Checkpoint | None, tuple[Issue, ...]]:
    """The newest readable checkpoint of the training with ``key``, and an issue for each that cannot be used.

    ``path`` is that of the last one; the one before is tried if it is missing, damaged or another training's.
    """
    issues: list[Issue] = []
    found = None
    for candidate in (path, path.with_name(PREVIOUS_FILE)):
        try:
            found = load_checkpoint(candidate, key=key)
        except AutosegError as error:
            issues += error.issues
            continue
        if found is not None:
            break
        if candidate == path and path.exists():
            message = "belongs to another training (plan, data, folds, schedule or seed differ)"
            issues.append(Issue(code="checkpoint.other_training", where=str(path), message=message))
    fallback = f"the checkpoint of step {found.step} is used" if found else "the fold starts from the beginning"
    changes = {"severity": "warning", "fix": ""}
    return found, tuple(i.model_copy(update={**changes, "message": f"{i.message}; {fallback}"}) for i in issues)


def load_checkpoint(path: Path, *, key: str) -> Checkpoint | None:
    """The checkpoint of the training with ``key``; None if there is none, or it is another training's.

    Raises `AutosegError` for a file that is damaged or is no checkpoint; if memory runs out, torch's own error.
    Nothing in it is executed.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return Checkpoint(**content) if content["key"] == key else None
    except Exception as error:  # torch raises pickle's own error for anything that is not plain data
        if is_out_of_memory(error):
            raise  # nothing is wrong with the file, and the training must not start over
        where, fix = str(path), "delete it to train this fold again"
        message = "contains more than weights and numbers and was not opened"
        issue = Issue(code="checkpoint.not_plain", where=where, message=message, fix=fix)
        if isinstance(error, DAMAGE):
            message = f"damaged, or not a checkpoint ({type(error).__name__})"
            issue = Issue(code="checkpoint.damaged", where=where, message=message, fix=fix)
        raise AutosegError(issue) from error


@dataclass(slots=True)
class Checkpoints(Callback):
    """Saves the training every so often, at its end and when it is interrupted, and writes its history and issues."""

    run: FoldRun
    should_stop: Callable[[], bool]
    last_saved: float = field(default_factory=time.monotonic)

    def on_step(self, step: StepRecord) -> None:
        """Raises `KeyboardInterrupt` after saving if the training should stop."""
        if step.lag:  # the weights are not those after this step
            return
        spec, done = self.run.spec, step.step + 1
        stopping = self.should_stop()
        due = time.monotonic() - self.last_saved > spec.checkpoint_interval_s
        if stopping or due or done == self.run.num_steps:
            save(self.run, done)
            self.last_saved = time.monotonic()
        if stopping:
            raise KeyboardInterrupt

    def on_fold_end(self, end: FoldEnd) -> None:
        """Epochs after the last checkpoint do not bind it; they are for the user, and errors refer to them."""
        if isinstance(end.error, AutosegError):
            write_text(self.run.spec.folder / HISTORY_FILE, history_text(self.run.state.history))
            save_issues(self.run.spec.folder, self.run.state.issues, key=self.run.spec.key)


def save_steps(run: FoldRun, done: int) -> None:
    """Save the steps done, if there are any, before an error ends the training between two of them."""
    if done > 0:
        save(run, done)

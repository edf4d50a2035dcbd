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
from autoseg.training.fold_spec import FoldRun, FoldState, SavedBest

CHECKPOINT_FILE, PREVIOUS_FILE = "checkpoint.pt", "previous.pt"
BEST_NAME = "best-{}.pt"
BEST_STEP = "best_step"
"""In the state of a checkpoint: names the file of its best weights."""
COST_SHARE = 0.02
"""Of the time, for checkpoints."""
LONGEST_PAUSE_S = 600.0
"""Seconds that may be lost on a disk that is very slow."""
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
    """The `FoldState` in plain values, and the step of its best weights where these have their own file."""


def save(run: FoldRun, step: int, *, wait: bool = True) -> float:
    """Write the training's state after ``step`` steps, unless its stored cases were replaced; returns the seconds that training waits.

    The state is taken at once. Without ``wait`` a thread writes it while training goes on, and what that meets is raised by the next
    call. The best weights have a file of their own, which is written when they changed.
    """
    started = time.perf_counter()
    run.writer.finish()
    run.spec.require_cases()
    state: dict[str, Any] = {each.name: getattr(run.state, each.name) for each in fields(FoldState)}
    state["earlier_s"] += time.monotonic() - run.started
    state["issues"] = [issue.model_dump() for issue in run.state.issues]
    state["history"] = [asdict(epoch) for epoch in run.state.history]
    before, best = run.saved, run.state.best
    is_own = bool(best) and best is not run.state.good  # a file with both has their numbers once
    if is_own:
        state["best"] = {}
        run.saved = before if best is before.best else SavedBest(best=best, step=step)
    else:
        run.saved = SavedBest()
    checkpoint = Checkpoint(
        key=run.spec.key,
        step=step,
        network=run.parts.network.state_dict(),
        optimiser=run.parts.optimiser.state_dict(),
        scaler=run.parts.scaler.state_dict(),
        state={**state, BEST_STEP: run.saved.step},
    )
    files = _Files(
        folder=run.spec.folder,
        key=run.spec.key,
        checkpoint=_packed({name: getattr(checkpoint, name) for name in Checkpoint.__slots__}),
        best=_packed({"key": run.spec.key, "best": best}) if is_own and run.saved is not before else None,
        best_steps=(before.step, run.saved.step),
        history=history_text(run.state.history),
        issues=tuple(run.state.issues),
    )
    run.writer.start(files.write)
    if wait:
        run.writer.finish()
    return time.perf_counter() - started


def _packed(content: dict[str, Any]) -> memoryview:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def best_path(folder: Path, step: int) -> Path:
    """The best weights that checkpoints from ``step`` on refer to."""
    return folder / BEST_NAME.format(step)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """What is written for a checkpoint."""

    folder: Path
    key: str
    checkpoint: memoryview
    best: memoryview | None
    """None: they are there already, or in the checkpoint."""
    best_steps: tuple[int | None, int | None]
    """Of the best weights of the checkpoint before, and of this one; none: those are in it."""
    history: str
    issues: tuple[Issue, ...]

    def write(self) -> None:
        """Each file is atomic, and what a checkpoint refers to is there before it; the one before stays as ``previous.pt``."""
        folder, path = self.folder, self.folder / CHECKPOINT_FILE
        write_text(folder / HISTORY_FILE, self.history)
        save_issues(folder, self.issues, key=self.key)
        if self.best is not None and self.best_steps[1] is not None:
            with atomic_write(best_path(folder, self.best_steps[1])) as file:
                file.write(self.best)
        if path.exists():
            os.replace(path, path.with_name(PREVIOUS_FILE))
        with atomic_write(path) as file:
            file.write(self.checkpoint)
        needed = {best_path(folder, step) for step in self.best_steps if step is not None}
        for other in set(folder.glob(BEST_NAME.format("*"))) - needed:
            other.unlink(missing_ok=True)


def read_state(checkpoint: Checkpoint) -> FoldState:
    """The state that a checkpoint holds."""
    values = {name: value for name, value in checkpoint.state.items() if name != BEST_STEP}
    values["issues"] = [Issue(**issue) for issue in values["issues"]]
    values["history"] = [EpochRecord(**epoch) for epoch in values["history"]]
    return FoldState(**values)


def saved_best(checkpoint: Checkpoint, state: FoldState) -> SavedBest:
    """Where the best weights of the ``state`` of a checkpoint are."""
    step = checkpoint.state.get(BEST_STEP)
    return SavedBest() if step is None else SavedBest(best=state.best, step=step)


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
        if content["key"] != key:
            return None
        if (step := content["state"].get(BEST_STEP)) is not None:
            best = torch.load(best_path(path.parent, step), map_location="cpu", weights_only=True)
            content["state"]["best"] = best["best"]
        return Checkpoint(**content)
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


def pause_s(least_s: float, cost_s: float) -> float:
    """Seconds from one checkpoint to the next, of which ``cost_s`` are for taking and writing it."""
    return max(least_s, min(cost_s / COST_SHARE, LONGEST_PAUSE_S))


@dataclass(slots=True)
class Checkpoints(Callback):
    """Saves the training every so often, at its end and when it is interrupted, and writes its history and issues."""

    run: FoldRun
    should_stop: Callable[[], bool]
    last_saved: float = field(default_factory=time.monotonic)
    taken_s: float = 0.0
    """What the training waited for the last checkpoint."""

    def on_step(self, step: StepRecord) -> None:
        """Raises `KeyboardInterrupt` after saving if the training should stop."""
        if step.lag:  # the weights are not those after this step
            return
        run, done = self.run, step.step + 1
        stopping = self.should_stop()
        is_last = stopping or done == run.num_steps
        if is_last or self._is_due():
            self.taken_s = save(run, done, wait=is_last or not run.spec.checkpoint_interval_s)
            self.last_saved = time.monotonic()
        if stopping:
            raise KeyboardInterrupt

    def _is_due(self) -> bool:
        writer, least_s = self.run.writer, self.run.spec.checkpoint_interval_s
        pause = pause_s(least_s, self.taken_s + writer.seconds)
        return not least_s or (time.monotonic() - self.last_saved > pause and not writer.is_busy)

    def on_fold_end(self, end: FoldEnd) -> None:
        """Epochs after the last checkpoint do not bind it; they are for the user, and errors refer to them."""
        try:
            self.run.writer.finish()
        except AutosegError:
            if end.error is None:
                raise
        if isinstance(end.error, AutosegError):
            write_text(self.run.spec.folder / HISTORY_FILE, history_text(self.run.state.history))
            save_issues(self.run.spec.folder, self.run.state.issues, key=self.run.spec.key)


def save_steps(run: FoldRun, done: int) -> None:
    """Save the steps done, if there are any, before an error ends the training between two of them."""
    if done > 0:
        save(run, done)

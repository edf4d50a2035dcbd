"""A training that was stopped goes on where it was: its state to disk, and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from autoseg.storage.atomic import save_document, write_text
from autoseg.training.batches import Batch
from autoseg.training.care import FoldState
from autoseg.training.checkpoints import Checkpoint, load_latest, save_checkpoint
from autoseg.training.history import EpochRecord, history_text
from autoseg.training.loop import Parts
from autoseg.training.task import FoldTask


def latest_checkpoint(task: FoldTask, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest readable checkpoint of this very training; damaged ones and those of other trainings are said."""
    checkpoint, damage = load_latest(task.folder / "checkpoint.pt", key=task.key)
    for line in damage:
        fallback = f"the one of step {checkpoint.step} is used" if checkpoint else "the fold starts anew"
        say(f"{line}; {fallback}")
    return checkpoint


def restore(parts: Parts, state: FoldState, checkpoint: Checkpoint) -> None:
    parts.network.load_state_dict(checkpoint.network)
    parts.optimiser.load_state_dict(checkpoint.optimiser)
    parts.scaler.load_state_dict(checkpoint.scaler)
    state.good, state.best, state.best_score = checkpoint.good, checkpoint.best, checkpoint.best_score
    state.moving_average = checkpoint.moving_average
    state.losses = list(checkpoint.epoch_losses)
    state.waits, state.durations = list(checkpoint.epoch_waits), list(checkpoint.epoch_durations)
    state.control.rate_factor = state.learning.rate_factor
    state.history = [EpochRecord(**record) for record in checkpoint.history]


def save(task: FoldTask, parts: Parts, state: FoldState, step: int) -> None:
    """Write the training's state after ``step`` steps, unless its cases became others meanwhile."""
    task.require_cases()
    checkpoint = Checkpoint(
        key=task.key,
        step=step,
        network=parts.network.state_dict(),
        optimiser=parts.optimiser.state_dict(),
        scaler=parts.scaler.state_dict(),
        best=state.best,
        best_score=state.best_score,
        moving_average=state.moving_average,
        epoch_losses=list(state.losses),
        good=state.good,
        learning=state.learning.model_dump(),
        epoch_waits=list(state.waits),
        epoch_durations=list(state.durations),
        history=[asdict(record) for record in state.history],
    )
    write_text(task.folder / "history.jsonl", history_text(state.history))
    save_checkpoint(task.folder / "checkpoint.pt", checkpoint)
    state.last_saved = time.monotonic()


def saved_at_failure(
    batches: Iterator[Batch], steps: Sequence[int], task: FoldTask, parts: Parts, state: FoldState
) -> Iterator[Batch]:
    """The batches of ``steps``; where one cannot be made, the steps before it are saved first.

    No step is half done there, as it may be where other errors come from.
    """
    for step in steps:
        try:
            batch = next(batches)
        except Exception:
            if step > 0:
                save(task, parts, state, step)
            raise
        yield batch


def keep_record(task: FoldTask, state: FoldState) -> None:
    """Write what people read of a training: its epochs, and what went wrong. Epochs after a checkpoint do not bind it."""
    write_text(task.folder / "history.jsonl", history_text(state.history))
    save_document(task.folder / "learning.json", state.learning)

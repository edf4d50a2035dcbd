"""Training of one configuration on one fold, from its preprocessed cases to its weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from autoseg.issues import AutosegError
from autoseg.networks.weights import save_weights
from autoseg.tracking.progress import Tracker
from autoseg.training.batches import load_batches
from autoseg.training.care import Care, FoldState, after_epoch, after_skip, note, require_steps, seeking
from autoseg.training.compiling import without_failing_compiler
from autoseg.training.fitting import require_fit
from autoseg.training.health import is_good, never_found, never_shown
from autoseg.training.history import EpochRecord
from autoseg.training.learning import Learning
from autoseg.training.loop import Control, Parts, StepRecord, train
from autoseg.training.online_validation import NO_LOOK, Look, look
from autoseg.training.pieces import fit_into_memory, readable_errors, relieve
from autoseg.training.resuming import keep_record, latest_checkpoint, restore, save, saved_at_failure
from autoseg.training.task import FoldTask, batch_source, make_fold_parts

logger = logging.getLogger(__name__)
MOVING_AVERAGE_SHARE = 0.9
"""Of the previous value (method section 7.6)."""


def train_fold(
    task: FoldTask,
    tracker: Tracker,
    *,
    say: Callable[[str], None] = logger.info,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train to the schedule's last step, or go on from the checkpoint in the task's folder.

    Leaves ``final.safetensors``, ``best.safetensors`` (best moving average of the pseudo-Dice), ``history.jsonl``,
    ``learning.json`` and ``checkpoint.pt``. ``say`` is told of damaged checkpoints, and once of each thing that goes wrong.
    Where ``should_stop`` says so after a step, that step is saved and `KeyboardInterrupt` raised. Raises `AutosegError`
    before the first step where plan, schedule and cases do not go together, and `AutosegError` where memory is not enough
    for a single sample, and where the loss stops being a number and nothing mends it; ``history.jsonl`` and ``learning.json``
    then tell all that was done, and a later call goes on from the last checkpoint.
    """
    require_fit(
        task.plan.labels,
        task.configuration,
        task.training,
        training_cases=task.training_cases,
        validation_cases=task.validation_cases,
        names=task.case_ids,
        where=f"{task.configuration.name}, fold {task.fold}",
    )
    care = _make_care(task, say)
    task, parts, state, done = _begin(task, care)
    tracker.found(done)

    def after_step(record: StepRecord) -> None:
        if record.skipped:
            after_skip(care, parts, state, record)
        else:
            state.losses.append(record.loss)
        state.waits.append(record.wait_s)
        state.durations.append(record.duration_s)
        finished = record.step + 1
        if finished % task.training.steps_per_epoch == 0 or finished == task.training.num_steps:
            _finish_epoch(task, care, parts, state, record)
        stopping = should_stop()
        if stopping or time.monotonic() - state.last_saved > task.checkpoint_interval_s:
            save(task, parts, state, finished)
        if stopping:
            raise KeyboardInterrupt
        tracker.advance(note=f"loss {record.loss:.2f}{_describe_score(state)}")

    try:
        _take_steps(task, care, parts, state, done, after_step)
        require_steps(care, state, task.training.num_steps)
    except AutosegError:
        keep_record(task, state)  # it says what went wrong, and the error asks for it
        raise
    for remark in (*never_found(state.history), *never_shown(state.history)):
        note(care, state, remark)
    save(task, parts, state, task.training.num_steps)
    keep_record(task, state)
    weights = parts.network.state_dict()
    save_weights(task.folder / "best.safetensors", state.best or weights, key=task.key)
    save_weights(task.folder / "final.safetensors", weights, key=task.key)


def _take_steps(
    task: FoldTask, care: Care, parts: Parts, state: FoldState, done: int, after_step: Callable[[StepRecord], None]
) -> None:
    """All steps from ``done`` on; the loop ends early, and batches are read anew, where classes are sought or readers added."""
    while done < task.training.num_steps:
        steps = range(done, task.training.num_steps)
        source = seeking(care.source, state.learning.sought)
        batches = load_batches(source, steps, num_workers=state.num_workers, device=task.device)
        with readable_errors(care):
            done = train(
                parts,
                saved_at_failure(batches, steps, task, parts, state),
                steps,
                control=state.control,
                listeners=(after_step,),
                relieve=lambda step: relieve(task, care, parts, state, step),
            )


def _begin(task: FoldTask, care: Care) -> tuple[FoldTask, Parts, FoldState, int]:
    """The task as this machine can do it, its parts and state, from a checkpoint where there is one, and the steps done."""
    checkpoint = latest_checkpoint(task, care.say)
    state = FoldState(
        learning=_first_learning(task) if checkpoint is None else Learning.model_validate(checkpoint.learning),
        control=Control(micro_batch_size=task.training.batch_size),
        good={},
        num_workers=task.num_workers,
    )
    task = without_failing_compiler(task, care, state)
    fit_into_memory(task, care, state, step=0 if checkpoint is None else checkpoint.step)
    parts = make_fold_parts(task)
    if checkpoint is None:
        state.good = copy_weights(parts.network)
        return task, parts, state, 0
    restore(parts, state, checkpoint)
    return task, parts, state, checkpoint.step


def copy_weights(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights in main memory."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _make_care(task: FoldTask, say: Callable[[str], None]) -> Care:
    return Care(
        where=f"{task.configuration.name}, fold {task.fold}",
        num_epochs=-(-task.training.num_steps // task.training.steps_per_epoch),
        steps_per_epoch=task.training.steps_per_epoch,
        source=batch_source(task, purpose="training"),
        case_ids=task.case_ids,
        most_workers=task.most_workers,
        say=say,
    )


def _first_learning(task: FoldTask) -> Learning:
    batch, notes = task.training.batch_size, () if task.start is None else task.start.notes
    return Learning(key=task.key, batch_size=batch, micro_batch_size=batch, adaptations=notes)


def _finish_epoch(task: FoldTask, care: Care, parts: Parts, state: FoldState, record: StepRecord) -> None:
    """One line of history with the pseudo-Dice, the best and the last good weights, and what went wrong."""
    epoch = record.step // task.training.steps_per_epoch
    seen = _look(task, parts, epoch, state.control.micro_batch_size)
    duration = sum(state.durations)
    start = record.step - record.step % task.training.steps_per_epoch
    line = EpochRecord(
        epoch=epoch,
        step=record.step + 1,
        loss=sum(state.losses) / len(state.losses) if state.losses else None,
        pseudo_dice=seen.pseudo_dice,
        moving_average=state.moving_average,
        learning_rate=record.learning_rate,
        seconds=duration,
        wait_share=sum(state.waits) / duration if duration else 0.0,
        validation_loss=seen.loss,
        skipped=sum(step >= start for step in state.learning.skipped_steps),
    )
    weights = copy_weights(parts.network)
    if line.mean_dice is not None:
        before, share = state.moving_average, MOVING_AVERAGE_SHARE
        average = line.mean_dice if before is None else share * before + (1 - share) * line.mean_dice
        state.moving_average, line = average, replace(line, moving_average=average)
        if average > state.best_score:
            state.best_score, state.best = average, weights
    state.history.append(line)
    if is_good(state.history):
        state.good = weights
    for measured in (state.losses, state.waits, state.durations):
        measured.clear()
    after_epoch(care, parts, state, record)


def _look(task: FoldTask, parts: Parts, epoch: int, micro_batch_size: int) -> Look:
    """What the validation patches of an epoch tell."""
    count = task.training.validation_batches
    if not task.validation_cases or not count:
        return NO_LOOK
    steps = range(epoch * count, (epoch + 1) * count)
    source = batch_source(task, purpose="validation")
    return look(parts, source, task.plan.labels, steps, micro_batch_size=micro_batch_size)


def _describe_score(state: FoldState) -> str:
    dice = state.history[-1].mean_dice if state.history else None
    return "" if dice is None else f", validation Dice about {dice:.2f}"

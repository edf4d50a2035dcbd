"""Training of one configuration on one fold, from its preprocessed cases to its weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from autoseg.errors import AutosegError
from autoseg.networks.build import build_network
from autoseg.networks.transfer import Transfer
from autoseg.networks.weights import save_weights
from autoseg.progress import Tracker
from autoseg.run_folder import save_document, write_text
from autoseg.training.accumulation import is_mean_over_samples
from autoseg.training.augmentation_parameters import Recipe, make_recipe
from autoseg.training.batches import BatchSource, load_batches
from autoseg.training.care import Care, FoldState, after_epoch, after_skip, cases_showing, note
from autoseg.training.checkpoints import Checkpoint, load_latest, save_checkpoint
from autoseg.training.fitting import require_fit
from autoseg.training.health import is_good, never_found
from autoseg.training.history import EpochRecord, history_text, read_history
from autoseg.training.learning import Learning, Remark
from autoseg.training.loop import Control, Parts, StepRecord, make_parts, train
from autoseg.training.losses import make_loss
from autoseg.training.memory import is_out_of_memory
from autoseg.training.online_validation import NO_LOOK, Look, look
from autoseg.training.patches import PatchSource
from autoseg.training.trial import find_micro_batch, refuse_for_memory
from planners import Configuration, Labels, Plan, Training, with_width

logger = logging.getLogger(__name__)
CHECKPOINT_INTERVAL_S = 45.0
"""Seconds between checkpoints. At most a minute of training may be lost; the rest of the minute is for writing."""
MOVING_AVERAGE_SHARE = 0.9
"""Of the previous value (method section 7.6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldTask:
    """What to train, from what, where to."""

    plan: Plan
    configuration: Configuration
    training: Training
    fold: int
    seed: int
    training_cases: Sequence[PatchSource]
    validation_cases: Sequence[PatchSource]
    folder: Path
    key: str
    """Hash of everything the result depends on."""
    device: torch.device
    num_workers: int = 0
    """Processes that make batches."""
    most_workers: int = 0
    """So many where the device has to wait for batches."""
    case_ids: Sequence[str] = ()
    """Names of the training cases, for messages."""
    start: Transfer | None = None
    """Weights to begin from; none: drawn from the seed."""
    checkpoint_interval_s: float = CHECKPOINT_INTERVAL_S


def make_network(configuration: Configuration, training: Training, *, seed: int | None) -> nn.Module:
    """The configuration's network at the scheduled width."""
    network = with_width(configuration.network, training.base_features)
    return build_network(network, deep_supervision=training.deep_supervision, seed=seed)


def previous_values(configuration: Configuration, labels: Labels) -> tuple[int, ...]:
    """Values of a first stage that are channels of a cascade's input (labels, never regions); none for other networks."""
    return labels.values if configuration.previous_stage is not None else ()


def configuration_recipe(configuration: Configuration, training: Training) -> Recipe:
    """What may be done to samples of a configuration under a schedule."""
    return make_recipe(
        configuration.patch_shape,
        num_channels=len(configuration.normalization),
        mirror_axes=configuration.mirror_axes if training.mirroring else (),
        masked_channels=[i for i, n in enumerate(configuration.normalization) if n.use_mask],
        augment=training.augmentation,
    )


def batch_source(task: FoldTask, *, purpose: str, sought: Sequence[str] = ()) -> BatchSource:
    """The task's batches for ``training`` or ``validation``; in training more of them around classes that are ``sought``."""
    source = BatchSource(
        cases=task.training_cases if purpose == "training" else task.validation_cases,
        recipe=configuration_recipe(task.configuration, task.training),
        batch_size=task.training.batch_size,
        foreground_share=task.training.foreground_share,
        seed=task.seed,
        configuration=task.configuration.name,
        previous_values=previous_values(task.configuration, task.plan.labels),
        fold=task.fold,
        purpose=purpose,
    )
    return replace(source, sought=cases_showing(source, sought)) if sought else source


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
    Where ``should_stop`` says so after a step, that step is saved and `KeyboardInterrupt` raised. Raises `ProblemsError`
    before the first step where plan, schedule and cases do not go together, and `AutosegError` where memory is not enough
    for a single sample, and where the loss stops being a number and nothing mends it.
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
    checkpoint = _latest_checkpoint(task, say)
    state = FoldState(
        learning=_first_learning(task) if checkpoint is None else Learning.model_validate(checkpoint.learning),
        control=Control(micro_batch_size=task.training.batch_size),
        good={},
        num_workers=task.num_workers,
    )
    care = _make_care(task, say)
    _fit_into_memory(task, care, state, step=0 if checkpoint is None else checkpoint.step)
    parts = make_fold_parts(task)
    if checkpoint is None:
        state.good = copy_weights(parts.network)
    else:
        _restore(task, parts, state, checkpoint)
    done = 0 if checkpoint is None else checkpoint.step
    tracker.advance(done)

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
            _save(task, parts, state, finished)
        if stopping:
            raise KeyboardInterrupt
        tracker.advance(note=f"loss {record.loss:.2f}{_describe_score(state)}")

    while done < task.training.num_steps:
        steps = range(done, task.training.num_steps)
        source = batch_source(task, purpose="training", sought=state.learning.sought)
        batches = load_batches(source, steps, num_workers=state.num_workers, device=task.device)
        with _memory_errors(care):
            done = train(
                parts,
                batches,
                steps,
                control=state.control,
                listeners=(after_step,),
                relieve=lambda step: _relieve(task, care, parts, state, step),
            )
    for remark in never_found(state.history):
        note(care, state, remark)
    _save(task, parts, state, task.training.num_steps)
    save_document(task.folder / "learning.json", state.learning)
    weights = parts.network.state_dict()
    save_weights(task.folder / "best.safetensors", state.best or weights, key=task.key)
    save_weights(task.folder / "final.safetensors", weights, key=task.key)


@contextmanager
def _memory_errors(care: Care) -> Iterator[None]:
    """Memory that runs out beside a step, where smaller pieces are no answer, becomes an error for a person."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise AutosegError(
            f"{care.where}: memory ran out while patches were prepared or looked at ({error}); close what else uses it, then "
            "run again: the training goes on from its last checkpoint"
        ) from error


def make_fold_parts(task: FoldTask) -> Parts:
    """The task's network as it begins, with loss and optimiser."""
    network = make_network(task.configuration, task.training, seed=task.seed + task.fold)
    if task.start is not None:
        network.load_state_dict(task.start.weights)
    loss, labels = task.configuration.loss, task.plan.labels
    separable = is_mean_over_samples(loss, labels)
    return make_parts(network, make_loss(loss, labels), task.training, task.device, separable=separable)


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


def _latest_checkpoint(task: FoldTask, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest readable checkpoint of this very training; damaged ones and those of other trainings are said."""
    checkpoint, damage = load_latest(task.folder / "checkpoint.pt", key=task.key)
    for line in damage:
        fallback = f"the one of step {checkpoint.step} is used" if checkpoint else "the fold starts anew"
        say(f"{line}; {fallback}")
    return checkpoint


def _restore(task: FoldTask, parts: Parts, state: FoldState, checkpoint: Checkpoint) -> None:
    parts.network.load_state_dict(checkpoint.network)
    parts.optimiser.load_state_dict(checkpoint.optimiser)
    parts.scaler.load_state_dict(checkpoint.scaler)
    state.good, state.best, state.best_score = checkpoint.good, checkpoint.best, checkpoint.best_score
    state.moving_average = checkpoint.moving_average
    state.losses = list(checkpoint.epoch_losses)
    state.control.rate_factor = state.learning.rate_factor
    state.history = read_history(task.folder / "history.jsonl", until_step=checkpoint.step)


def _save(task: FoldTask, parts: Parts, state: FoldState, step: int) -> None:
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
    )
    write_text(task.folder / "history.jsonl", history_text(state.history))
    save_checkpoint(task.folder / "checkpoint.pt", checkpoint)
    state.last_saved = time.monotonic()


def _fit_into_memory(task: FoldTask, care: Care, state: FoldState, *, step: int) -> None:
    """Try a step before the first one, and take as much of the batch at once as memory allows."""
    before = state.learning.micro_batch_size
    size = find_micro_batch(
        task.plan, task.configuration, task.training, task.device, lambda: make_fold_parts(task), most=before
    )
    if size is None:
        raise refuse_for_memory(task.plan, task.configuration, task.training, task.device)
    _take_pieces(task, care, state, step, size)


def _relieve(task: FoldTask, care: Care, parts: Parts, state: FoldState, step: int) -> None:
    """A step ran out of memory that was there when the training began: smaller pieces, or a saved end."""
    if state.control.micro_batch_size == 1:
        _save(task, parts, state, step)
        raise refuse_for_memory(task.plan, task.configuration, task.training, task.device)
    _take_pieces(task, care, state, step, -(-state.control.micro_batch_size // 2))


def _take_pieces(task: FoldTask, care: Care, state: FoldState, step: int, size: int) -> None:
    state.control.micro_batch_size = size
    if size == state.learning.micro_batch_size:
        return
    state.learning = state.learning.model_copy(update={"micro_batch_size": size})
    batch = task.training.batch_size
    separable = is_mean_over_samples(task.configuration.loss, task.plan.labels)
    price = "" if separable else ", each twice, since the loss is one of the whole batch"
    measure = f"{size} at a time are computed{price}; the gradient stays that of the whole batch, and steps take longer"
    found = f"memory is not enough for a batch of {batch} samples at once"
    note(care, state, Remark(kind="memory", step=step, about=f"{size} at a time", found=found, measure=measure))


def _finish_epoch(task: FoldTask, care: Care, parts: Parts, state: FoldState, record: StepRecord) -> None:
    """One line of history with the pseudo-Dice, the best and the last good weights, and what went wrong."""
    epoch = len(state.history)
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

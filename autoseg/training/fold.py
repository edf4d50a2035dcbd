"""Training of one configuration on one fold, from its preprocessed cases to its weights."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from autoseg.errors import AutosegError
from autoseg.networks.build import build_network
from autoseg.networks.weights import save_weights
from autoseg.progress import Tracker
from autoseg.run_folder import write_text
from autoseg.training.augmentation_parameters import Recipe, make_recipe
from autoseg.training.batches import BatchSource, finish, load_batches
from autoseg.training.checkpoints import Checkpoint, load_latest, save_checkpoint
from autoseg.training.loop import Parts, StepRecord, make_parts, run_network, train
from autoseg.training.losses import make_loss, region_table
from autoseg.training.patches import PatchSource
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
    checkpoint_interval_s: float = CHECKPOINT_INTERVAL_S


@dataclass(slots=True)
class FoldState:
    """What changes during a training besides weights."""

    history: list[dict[str, object]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    pseudo_dice: float | None = None
    """Of the last epoch, mean over classes."""
    moving_average: float | None = None
    best_score: float = -math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    last_saved: float = field(default_factory=time.monotonic)


def make_network(configuration: Configuration, training: Training, *, seed: int | None) -> nn.Module:
    """The configuration's network at the scheduled width."""
    network = with_width(configuration.network, training.base_features)
    return build_network(network, deep_supervision=training.deep_supervision, seed=seed)


def configuration_recipe(configuration: Configuration, training: Training) -> Recipe:
    """What may be done to samples of a configuration under a schedule."""
    return make_recipe(
        configuration.patch_shape,
        num_channels=len(configuration.normalization),
        mirror_axes=configuration.mirror_axes if training.mirroring else (),
        masked_channels=[i for i, n in enumerate(configuration.normalization) if n.use_mask],
        augment=training.augmentation,
    )


def batch_source(task: FoldTask, *, purpose: str) -> BatchSource:
    """The task's batches for ``training`` or ``validation``."""
    return BatchSource(
        cases=task.training_cases if purpose == "training" else task.validation_cases,
        recipe=configuration_recipe(task.configuration, task.training),
        batch_size=task.training.batch_size,
        foreground_share=task.training.foreground_share,
        seed=task.seed,
        configuration=task.configuration.name,
        fold=task.fold,
        purpose=purpose,
    )


def train_fold(
    task: FoldTask,
    tracker: Tracker,
    *,
    say: Callable[[str], None] = logger.info,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train to the schedule's last step, or go on from the checkpoint in the task's folder.

    Leaves ``final.safetensors``, ``best.safetensors`` (best moving average of the pseudo-Dice), ``history.jsonl``
    and ``checkpoint.pt``. ``say`` is told of damaged checkpoints. Where ``should_stop`` says so after a step, that step is
    saved and `KeyboardInterrupt` raised. Raises `AutosegError` when the loss stops being a number.
    """
    network = make_network(task.configuration, task.training, seed=task.seed + task.fold)
    loss = make_loss(task.configuration.loss, task.plan.labels)
    parts = make_parts(network, loss, task.training, task.device)
    state = FoldState()
    first = _resume(task, parts, state, say)
    tracker.advance(first)
    steps = range(first, task.training.num_steps)
    batches = load_batches(
        batch_source(task, purpose="training"),
        steps,
        num_workers=task.num_workers,
        device=task.device,
    )

    def after_step(record: StepRecord) -> None:
        _refuse_nan(task, record)
        state.losses.append(record.loss)
        state.waits.append(record.wait_s)
        state.durations.append(record.duration_s)
        done = record.step + 1
        if done % task.training.steps_per_epoch == 0 or done == task.training.num_steps:
            _finish_epoch(task, parts, state, record)
        stopping = should_stop()
        if stopping or time.monotonic() - state.last_saved > task.checkpoint_interval_s:
            _save(task, parts, state, done)
        if stopping:
            raise KeyboardInterrupt
        tracker.advance(note=f"loss {record.loss:.2f}{_describe_score(state)}")

    train(parts, batches, steps, listeners=(after_step,))
    _save(task, parts, state, task.training.num_steps)
    weights = parts.network.state_dict()
    save_weights(task.folder / "best.safetensors", state.best or weights, key=task.key)
    save_weights(task.folder / "final.safetensors", weights, key=task.key)


def _resume(task: FoldTask, parts: Parts, state: FoldState, say: Callable[[str], None]) -> int:
    """Restore the newest readable checkpoint of this very training; returns the steps done."""
    checkpoint, damage = load_latest(task.folder / "checkpoint.pt", key=task.key)
    for line in damage:
        fallback = f"the one of step {checkpoint.step} is used" if checkpoint else "the fold starts anew"
        say(f"{line}; {fallback}")
    if checkpoint is None:
        return 0
    parts.network.load_state_dict(checkpoint.network)
    parts.optimiser.load_state_dict(checkpoint.optimiser)
    parts.scaler.load_state_dict(checkpoint.scaler)
    state.best, state.best_score = checkpoint.best, checkpoint.best_score
    state.moving_average = checkpoint.moving_average
    state.losses = list(checkpoint.epoch_losses)
    history = task.folder / "history.jsonl"
    if history.exists():
        lines = [json.loads(line) for line in history.read_text().splitlines()]
        state.history = [line for line in lines if line["step"] <= checkpoint.step]
    return checkpoint.step


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
    )
    write_text(task.folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in state.history))
    save_checkpoint(task.folder / "checkpoint.pt", checkpoint)
    state.last_saved = time.monotonic()


def _refuse_nan(task: FoldTask, record: StepRecord) -> None:
    if not math.isfinite(record.loss):
        raise AutosegError(
            f"{task.configuration.name}, fold {task.fold}: the loss became {record.loss} at step {record.step + 1}; "
            f"the last good state is {task.folder / 'checkpoint.pt'}. Look for extreme intensities "
            "with autoseg check, then run again; it goes on from there"
        )


def _finish_epoch(task: FoldTask, parts: Parts, state: FoldState, record: StepRecord) -> None:
    """Pseudo-Dice, its moving average, the best weights, and one line of history."""
    epoch = len(state.history)
    scores = pseudo_dice(task, parts, epoch)
    known = [score for score in scores.values() if score is not None]
    if known:
        current = state.pseudo_dice = sum(known) / len(known)
        before = state.moving_average
        state.moving_average = (
            current if before is None else MOVING_AVERAGE_SHARE * before + (1 - MOVING_AVERAGE_SHARE) * current
        )
        if state.moving_average > state.best_score:
            state.best_score = state.moving_average
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in parts.network.state_dict().items()}
    duration = sum(state.durations)
    state.history.append(
        {
            "epoch": epoch,
            "step": record.step + 1,
            "loss": sum(state.losses) / len(state.losses) if state.losses else None,
            "pseudo_dice": scores,
            "moving_average": state.moving_average,
            "learning_rate": record.learning_rate,
            "seconds": duration,
            "wait_share": sum(state.waits) / duration if duration else 0.0,
        }
    )
    state.losses.clear()
    state.waits.clear()
    state.durations.clear()


def pseudo_dice(task: FoldTask, parts: Parts, epoch: int) -> dict[str, float | None]:
    """Dice per class over some patches of the validation cases, counts summed first (method section 7.6).

    None for a class that neither occurs nor is predicted; empty where the fold has no validation cases.
    """
    if not task.validation_cases or not task.training.validation_batches:
        return {}
    source = batch_source(task, purpose="validation")
    count = task.training.validation_batches
    labels = task.plan.labels
    totals = torch.zeros(3, len(labels.classes), dtype=torch.float64)
    parts.network.eval()
    with torch.inference_mode():
        for step in range(epoch * count, (epoch + 1) * count):
            images, target = finish(source[step], source.recipe, task.device)
            logits = run_network(parts.network, images, task.training.precision)
            if isinstance(logits, list):
                logits = logits[0]
            totals += class_counts(logits.float().cpu(), target.cpu(), labels)
    parts.network.train()
    hits, predicted, present = totals.tolist()
    return {
        label.name: 2 * h / (p + r) if p + r else None
        for label, h, p, r in zip(labels.classes, hits, predicted, present, strict=True)
    }


def class_counts(logits: Tensor, target: Tensor, labels: Labels) -> Tensor:
    """Voxels hit, predicted and present per class, float64 (3, classes); ignored voxels left out.

    ``logits`` (N, K, ...), ``target`` int64 (N, ...).
    """
    table = region_table(labels).bool()
    truth = table[target].movedim(-1, 1)
    guess = logits > 0 if labels.has_regions else table[logits.argmax(1)].movedim(-1, 1)
    if labels.ignore is not None:
        valid = (target != labels.ignore).unsqueeze(1)
        truth, guess = truth & valid, guess & valid
    axes = (0, *range(2, logits.ndim))
    return torch.stack([(truth & guess).sum(axes), guess.sum(axes), truth.sum(axes)]).double()


def _describe_score(state: FoldState) -> str:
    return "" if state.pseudo_dice is None else f", validation Dice about {state.pseudo_dice:.2f}"

"""Validation patches after every epoch: pseudo-Dice and loss (method section 7.6), and the line of history with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autoseg.tracking.callbacks import Callback, EpochRecord, StepRecord
from autoseg.training.fold_spec import FoldRun, batch_source, copy_weights
from autoseg.training.guards import is_good
from autoseg.training.loop import Parts, run_network
from autoseg.training.losses import region_table
from autoseg.training.sampling import BatchSource, finish
from planners import Labels

MOVING_AVERAGE_SHARE = 0.9
"""Of the previous value (method section 7.6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """Scores on an epoch's validation patches."""

    pseudo_dice: dict[str, float | None]
    """Of each class; none if it neither occurs nor is predicted. Empty if a fold has no validation cases."""
    loss: float | None
    """Mean of the loss at full resolution."""


@dataclass(frozen=True, slots=True)
class EpochHistory(Callback):
    """At the end of an epoch scores validation patches, keeps the best and the last good weights, and calls ``on_epoch``."""

    run: FoldRun

    def on_step(self, step: StepRecord) -> None:
        state, training = self.run.state, self.run.spec.training
        if not step.skipped:
            state.losses.append(step.loss)
        state.waits.append(step.wait_s)
        state.durations.append(step.duration_s)
        done = step.step + 1
        if done % training.steps_per_epoch == 0 or done == training.num_steps:
            epoch = finish_epoch(self.run, step)
            self.run.listeners.on_epoch(epoch)


def finish_epoch(run: FoldRun, step: StepRecord) -> EpochRecord:
    """Append the line of history of the epoch that ends with ``step``, and keep weights that may be needed later."""
    state, steps_per_epoch = run.state, run.spec.training.steps_per_epoch
    number = step.step // steps_per_epoch
    scores = validate_epoch(run, number)
    duration = sum(state.durations)
    epoch = EpochRecord(
        epoch=number,
        step=step.step + 1,
        loss=sum(state.losses) / len(state.losses) if state.losses else None,
        pseudo_dice=scores.pseudo_dice,
        moving_average=state.moving_average,
        learning_rate=step.learning_rate,
        seconds=duration,
        wait_share=sum(state.waits) / duration if duration else 0.0,
        validation_loss=scores.loss,
        skipped=sum(skipped >= number * steps_per_epoch for skipped in state.skipped_steps),
    )
    weights = copy_weights(run.parts.network)
    if epoch.mean_dice is not None:
        before, share = state.moving_average, MOVING_AVERAGE_SHARE
        average = epoch.mean_dice if before is None else share * before + (1 - share) * epoch.mean_dice
        state.moving_average, epoch = average, replace(epoch, moving_average=average)
        if average > state.best_score:
            state.best_score, state.best = average, weights
    state.history.append(epoch)
    if is_good(state.history):
        state.good = weights
    for measured in (state.losses, state.waits, state.durations):
        measured.clear()
    return epoch


def validate_epoch(run: FoldRun, epoch: int) -> Validated:
    """Scores on the validation patches of an epoch."""
    count = run.spec.training.validation_batches
    if not run.spec.validation_cases or not count:
        return Validated(pseudo_dice={}, loss=None)
    source, steps = batch_source(run.spec, purpose="validation"), range(epoch * count, (epoch + 1) * count)
    return score_patches(run.parts, source, run.spec.plan.labels, steps, micro_batch_size=run.micro_batch_size)


def score_patches(
    parts: Parts, source: BatchSource, labels: Labels, steps: range, *, micro_batch_size: int
) -> Validated:
    """Dice per class over the batches ``steps`` of ``source``, counts summed first, and the mean loss.

    ``micro_batch_size`` samples are computed at once.
    """
    totals = torch.zeros(3, len(labels.classes), dtype=torch.float64)
    losses = []
    parts.network.eval()
    with torch.inference_mode():
        for step in steps:
            batch = finish(source[step], source.recipe, parts.device)
            for images, target in zip(*(torch.split(part, micro_batch_size) for part in batch), strict=True):
                logits = run_network(parts.network, images, parts.training.precision)
                logits = logits[0] if isinstance(logits, list) else logits
                losses.append(float(parts.loss(logits, target)))
                totals += class_counts(logits.float().cpu(), target.cpu(), labels)
    parts.network.train()
    hits, predicted, present = totals.tolist()
    scores = {
        label.name: 2 * h / (p + r) if p + r else None
        for label, h, p, r in zip(labels.classes, hits, predicted, present, strict=True)
    }
    return Validated(pseudo_dice=scores, loss=sum(losses) / len(losses) if losses else None)


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

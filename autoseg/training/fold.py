"""Training of one configuration on one fold, from its cases to its weights, with the pseudo-Dice after every epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from autoseg.compute.device import use_device
from autoseg.compute.executor import validation_readers
from autoseg.compute.ranks import LOST
from autoseg.issues import AutosegError, Issue
from autoseg.networks.weights import save_weights
from autoseg.tracking.callbacks import Callback, EpochRecord, FoldEnd, FoldStart, StepRecord, notify
from autoseg.training.checkpoints import (
    CHECKPOINT_FILE,
    Checkpoints,
    load_latest,
    read_state,
    save_steps,
    saved_best,
)
from autoseg.training.fold_spec import (
    FoldRun,
    FoldSpec,
    FoldState,
    SavedBest,
    ValidationReading,
    add_issue,
    batch_source,
    copy_weights,
    make_fold_parts,
)
from autoseg.training.guards import Guards, is_good, readable_errors, shrink_micro_batch
from autoseg.training.loop import load_optimiser, run_network, train
from autoseg.training.losses import region_table
from autoseg.training.preflight import clear_fold, require_fit
from autoseg.training.sampling import Batch, finish, load_crops, with_sought
from autoseg.training.together import announce, end_segment
from planners import Labels, Revision

MOVING_AVERAGE_SHARE = 0.9
"""Of the previous value (method section 7.6)."""
BEST_FILE, FINAL_FILE = "best.safetensors", "final.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """Scores on an epoch's validation patches."""

    pseudo_dice: dict[str, float | None]
    """Of each class; none if it neither occurs nor is predicted. Empty if a fold has no validation cases."""
    loss: float | None
    """Mean of the loss at full resolution."""


@dataclass(frozen=True, slots=True)
class Length(Callback):
    """Applies the revisions of the number of steps: known ones at their step, then those that the spec's ``revise`` gives."""

    run: FoldRun

    def on_step(self, step: StepRecord) -> None:
        run, done = self.run, step.step + 1
        if done == run.num_steps or step.lag:
            return
        known = run.spec.revisions[len(run.revisions) :]
        revision = known[0] if known else run.spec.revise(done)
        if revision is not None and revision.step == done:
            run.revisions, run.new_batches = (*run.revisions, revision), True


@dataclass(frozen=True, slots=True)
class WeightAverage(Callback):
    """Averages the weights of the last steps, over the share of the training that the schedule says."""

    run: FoldRun

    def on_step(self, step: StepRecord) -> None:
        run, state = self.run, self.run.state
        if not run.averages(step.step) or step.skipped:
            return
        state.averaged += 1
        for name, weights in run.parts.network.state_dict().items():
            if state.averaged == 1:
                state.average[name] = weights.detach().clone()
            else:
                state.average[name].lerp_(weights.detach(), 1 / state.averaged)


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
        if done % training.steps_per_epoch == 0 or done == self.run.num_steps:
            notify(self.run.listeners, "on_epoch", finish_epoch(self.run, step))


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
    """Dice per class over the validation patches of an epoch, counts summed first, and the mean loss.

    Losses stay on the device until the end, so that no step waits for one.
    """
    parts, labels, count = run.parts, run.spec.plan.labels, run.spec.training.validation_batches
    if not run.spec.validation_cases or not count:
        return Validated(pseudo_dice={}, loss=None)
    totals = torch.zeros(3, len(labels.classes), dtype=torch.float64)
    losses = []
    parts.network.eval()
    with torch.inference_mode():
        for batch in _validation_batches(run, range(epoch * count, (epoch + 1) * count)):
            for images, target in zip(*(torch.split(part, run.micro_batch_size) for part in batch), strict=True):
                logits = run_network(parts.network, images, parts.training.precision)
                logits = logits[0] if isinstance(logits, list) else logits
                losses.append(parts.loss(logits, target))
                totals += class_counts(logits, target, labels)
    parts.network.train()
    hits, predicted, present = totals.tolist()
    scores = {
        label.name: 2 * h / (p + r) if p + r else None
        for label, h, p, r in zip(labels.classes, hits, predicted, present, strict=True)
    }
    known = torch.stack(losses).tolist() if losses else []
    return Validated(pseudo_dice=scores, loss=sum(known) / len(known) if known else None)


def _validation_batches(run: FoldRun, steps: range) -> Iterator[Batch]:
    """The validation batches of ``steps``; where processes read patches, they go on to read those of the next epoch."""
    if run.validation is None or run.validation.next_step != steps.start:
        run.stop_validation()
        readers = validation_readers(run.num_workers)
        source = batch_source(run.spec, purpose="validation")
        onwards = range(steps.start, sys.maxsize)
        crops = load_crops(source, onwards, num_workers=readers, device=run.spec.device, say=partial(_say, run))
        run.validation = ValidationReading(crops=crops, recipe=source.recipe, next_step=steps.start)
    for _ in steps:
        run.validation.next_step += 1
        yield finish(next(run.validation.crops), run.validation.recipe, run.spec.device)


def _say(run: FoldRun, issue: Issue) -> None:
    add_issue(run, issue.model_copy(update={"where": run.spec.where}))


def class_counts(logits: Tensor, target: Tensor, labels: Labels) -> Tensor:
    """Voxels hit, predicted and present per class, float64 (3, classes), in main memory; ignored voxels left out.

    ``logits`` (N, K, ...), ``target`` int64 (N, ...), on any device, where they are counted.
    """
    table = region_table(labels).bool()
    valid = slice(None) if labels.ignore is None else (target != labels.ignore).flatten()
    if not labels.has_regions:
        pairs = (target * len(table) + logits.argmax(1)).flatten()[valid]
        found = torch.bincount(pairs, minlength=len(table) ** 2).cpu().reshape(len(table), -1).double()
        of = table.double()  # of each pair of a true and a predicted value, whether a class has the values
        return torch.stack([((of.T @ found) * of.T).sum(1), of.T @ found.sum(0), of.T @ found.sum(1)])
    counts = []
    for k, of_class in enumerate(table.to(target.device).T):  # one by one: all at once take gigabytes
        truth, guess = of_class[target].flatten()[valid], (logits[:, k] > 0).flatten()[valid]
        counts.append(torch.stack([(truth & guess).sum(), guess.sum(), truth.sum()]))
    return torch.stack(counts, dim=1).cpu().double()


def train_fold(
    spec: FoldSpec, callbacks: Sequence[Callback] = (), *, should_stop: Callable[[], bool] = lambda: False
) -> tuple[Revision, ...]:
    """Train to the schedule's last step, or resume from the checkpoint in the spec's folder. Returns the revisions applied.

    Leaves ``final.safetensors``, ``best.safetensors`` (best moving average of the pseudo-Dice), ``history.jsonl``,
    ``issues.json`` and ``checkpoint.pt``. If ``should_stop`` says so after a step, that step is saved and `KeyboardInterrupt`
    raised. Raises `AutosegError` before the first step if plan, schedule and cases do not fit or there is too little memory for a
    single sample, and later if the loss stays not finite; ``history.jsonl`` and ``issues.json`` then record the training up to
    there, and a later call resumes from the last checkpoint.
    """
    require_fit(spec)
    use_device(spec.device)
    run, issues = _begin(spec, callbacks, should_stop)
    error: BaseException | None = None
    start = FoldStart(
        configuration=spec.configuration.name,
        fold=spec.fold,
        key=spec.key,
        steps_done=run.steps_done,
        num_steps=run.num_steps,
        earlier_s=run.state.earlier_s,
    )
    notify(run.listeners, "on_fold_start", start)
    try:
        for issue in issues:
            add_issue(run, issue, repeat=True)
        _take_steps(run)
        weights = run.state.average or run.parts.network.state_dict()
        save_weights(spec.folder / BEST_FILE, run.state.best or weights, key=spec.key)
        save_weights(spec.folder / FINAL_FILE, weights, key=spec.key)
    except BaseException as raised:
        error = raised
        raise
    finally:
        run.stop_validation()
        notify(run.listeners, "on_fold_end", FoldEnd(steps_done=run.steps_done, error=error))
    return run.revisions


def _take_steps(run: FoldRun) -> None:
    """All steps that are left; batches are drawn again whenever a callback wants that."""
    source, ranks = batch_source(run.spec, purpose="training"), run.spec.ranks

    def on_step(record: StepRecord) -> None:
        try:
            notify(run.listeners, "on_step", record)
        except BaseException:
            if ranks is not None:  # all are between two steps
                end_segment(ranks)
                ranks.tell(None)
            raise
        run.steps_done = record.step + 1

    while run.steps_done < run.num_steps:
        steps = range(run.steps_done, run.num_steps)
        sought = with_sought(source, tuple(run.state.sought))
        crops = load_crops(
            sought,
            steps,
            num_workers=run.num_workers - validation_readers(run.num_workers),
            device=run.spec.device,
            say=partial(_say, run),
        )
        if ranks is not None:
            announce(run, ranks, steps)
        with readable_errors(run.spec.where), _saved_if_others_end(run):
            done = train(
                run.parts,
                crops,
                steps,
                make_batch=lambda crops: finish(crops, source.recipe, run.spec.device),
                control=run,
                on_step=on_step,
                on_memory_error=lambda step: shrink_micro_batch(run, step),
                on_batch_error=lambda done: save_steps(run, done),
            )
        if ranks is not None and done < steps.stop:
            end_segment(ranks)
    if ranks is not None:
        ranks.tell(None)


@contextmanager
def _saved_if_others_end(run: FoldRun) -> Iterator[None]:
    """Save the last step where a process that computes a share of each batch has gone: the one under way is not begun for the weights."""
    try:
        yield
    except AutosegError as error:
        if LOST in error.codes and not run.parts.reads_late:
            save_steps(run, run.steps_done)
        raise


def _begin(
    spec: FoldSpec, callbacks: Sequence[Callback], should_stop: Callable[[], bool]
) -> tuple[FoldRun, tuple[Issue, ...]]:
    """The training as this machine can do it, from the newest checkpoint if there is one, with notes on what was adapted."""
    checkpoint, damage = load_latest(spec.folder / CHECKPOINT_FILE, key=spec.key)
    batch_size = spec.training.batch_size
    share, count = (batch_size, 1) if spec.ranks is None else (len(spec.ranks.share(batch_size)), spec.ranks.count)
    most = share if checkpoint is None else min(share, checkpoint.state["micro_batch_size"])
    cleared = clear_fold(spec, most=most)
    spec = cleared.spec
    parts, saved = make_fold_parts(spec), SavedBest()
    if checkpoint is None:
        state = FoldState(micro_batch_size=batch_size, good=copy_weights(parts.network))
    else:
        parts.network.load_state_dict(checkpoint.network)
        load_optimiser(parts.optimiser, checkpoint.optimiser)
        parts.scaler.load_state_dict(checkpoint.scaler)
        state = read_state(checkpoint)
        saved = saved_best(checkpoint, state)
        state.average = {name: weights.to(spec.device) for name, weights in state.average.items()}
    if (
        cleared.micro_batch_size < share
    ):  # else another number of processes, each with another share, needs no micro-batches either
        state.micro_batch_size = cleared.micro_batch_size
    others = (
        []
        if state.ranks == count or checkpoint is None
        else [other_ranks_issue(spec, checkpoint.step, state.ranks, count)]
    )
    state.ranks = count
    steps_done = 0 if checkpoint is None else checkpoint.step
    applied = tuple(revision for revision in spec.revisions if revision.step <= steps_done)
    run = FoldRun(
        spec=spec,
        parts=parts,
        state=state,
        saved=saved,
        num_workers=spec.num_workers,
        steps_done=steps_done,
        revisions=applied,
    )
    # in this order: what ends an epoch depends on the length, a skipped step belongs to its epoch, and a checkpoint holds the
    # epoch that ends with its step
    run.listeners = (
        Length(run),
        Guards(run),
        WeightAverage(run),
        EpochHistory(run),
        Checkpoints(run, should_stop),
        *callbacks,
    )
    notes = spec.start.notes if spec.start is not None and checkpoint is None else ()
    adapted = (
        Issue(code="training.weights_adapted", severity="note", where=spec.where, message=note) for note in notes
    )
    return run, (*damage, *adapted, *others, *cleared.issues)


def other_ranks_issue(spec: FoldSpec, step: int, before: int, now: int) -> Issue:
    """Says that another number of processes goes on with a training."""
    message = (
        f"trained by {before} {'process' if before == 1 else 'processes'} up to step {step}, and by {now} from here on: batches are the "
        "same, gradients too but for rounding, whose effect grows from step to step"
    )
    return Issue(code="training.other_ranks", severity="note", where=spec.where, message=message)

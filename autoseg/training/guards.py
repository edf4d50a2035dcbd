"""Guards: callbacks that notice when a training goes wrong, tell it as an issue, and do what can be done.

The rules are functions of what was recorded, each limit with its reason (decision 0100). A healthy training meets none of them, and
none changes what it computes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean, variance
from typing import Literal

from scipy.special import stdtrit

from autoseg.compute.memory import is_out_of_memory
from autoseg.issues import AutosegError, Issue
from autoseg.tracking.callbacks import HISTORY_FILE, ISSUES_FILE, Callback, EpochRecord, StepRecord
from autoseg.training.checkpoints import save
from autoseg.training.fold_spec import FoldRun, FoldState, add_issue, batch_source
from autoseg.training.preflight import memory_issue, micro_batch_issue
from autoseg.training.sampling import BatchSource, cases_by_class, worker_died

SKIPS_IN_ROW = 3
"""One bad patch may happen to meet an overflow; three batches in a row do not."""
SKIPPED_SHARE = 0.1
"""Of the steps of an epoch; what is skipped more often is not an accident."""
MOST_RESTARTS = 3
"""The rate is then an eighth; if that diverges the data is to blame."""
FOUND_DICE = 0.01
"""A class that scores less on all validation patches of an epoch was not found."""
LEARNED_DICE = 0.2
"""A training that once scored this much can collapse; below it, it has not begun to learn."""
COLLAPSED_SHARE = 0.1
"""Of the best score; a drop this deep from one epoch to the next is no noise of a few patches."""
COLLAPSED_LOSS = 0.2
"""By which the training loss must have risen too: Dice and cross-entropy of a lost foreground are far above that."""
LEAST_STEPS = 150
"""Of 131 classes in 71 trainings, 127 were found at the end, and all of those by step 132 (decision 0100)."""
LEAST_SHARE = 0.2
"""Of the training that must be over before a class counts as not learned."""
PATIENCE_SHARE = 0.1
"""Of the epochs, two at least, in which something must hold before it counts."""
STARVED_SHARE, STARVED_SHARE_CPU = 0.2, 0.5
"""Of the time. A CPU reads and cuts its patches itself: healthy small trainings spend up to 0.4 on it."""
OVERFIT_RISE, OVERFIT_FALL = 0.1, 0.05
"""The validation loss rises by this from its best while the training loss falls by that."""
OVERFIT_RISK = 0.05
"""That noise alone raises the last mean so far above the lowest of all means (decision 0250)."""
OVERFIT_PATCHES = 32
"""Validation patches in each mean that is compared, at least: with half of them a healthy training of 216 steps was warned of."""

Verdict = Literal["skip", "restart", "fail"]


def patience(num_epochs: int) -> int:
    """Epochs in which something must hold before it counts."""
    return max(2, round(PATIENCE_SHARE * num_epochs))


def judge_skip(
    skipped: Sequence[int], *, restarts: int, restarted_at: int, epoch_start: int, steps_per_epoch: int
) -> Verdict:
    """What follows from the last of the ``skipped`` steps: nothing more, a restart, or the end.

    Restarts help if weights were driven too far. If no step was good since the last restart, or since the start, the weights
    are what they were then, and a lower rate changes nothing. A row of skips counts across the ends of epochs: those of short
    trainings are shorter than a row.
    """
    last = skipped[-1]
    row = range(last - SKIPS_IN_ROW + 1, last + 1)
    in_row = row.start >= restarted_at and set(row) <= set(skipped)
    since = [step for step in skipped if step >= max(epoch_start, restarted_at)]
    if not in_row and len(since) <= max(SKIPS_IN_ROW, SKIPPED_SHARE * steps_per_epoch):
        return "skip"
    good = last + 1 - restarted_at - sum(step >= restarted_at for step in skipped)
    return "restart" if good > 0 and restarts < MOST_RESTARTS else "fail"


def find_collapse(history: Sequence[EpochRecord]) -> str | None:
    """What the last epoch lost of what the ones before it had learned, as text; None: nothing."""
    *before, last = history
    dice, loss = last.mean_dice, last.loss
    if dice is None or loss is None:
        return None
    best = max((known for record in before if (known := record.mean_dice) is not None), default=dice)
    lowest = min((record.loss for record in before if record.loss is not None), default=loss)
    if best < LEARNED_DICE or dice > COLLAPSED_SHARE * best or loss < lowest + COLLAPSED_LOSS:
        return None
    return (
        f"the training collapsed: the pseudo-Dice fell from {best:.2f} to {dice:.2f}, the loss rose from {lowest:.2f} to "
        f"{loss:.2f}"
    )


def is_good(history: Sequence[EpochRecord]) -> bool:
    """Whether restarts may go back to the state at the end of the last epoch."""
    return history[-1].loss is not None and find_collapse(history) is None


def unlearned_classes(history: Sequence[EpochRecord], num_epochs: int) -> tuple[str, ...]:
    """Classes that none of the last epochs found although validation patches contain them."""
    last, width = history[-1], patience(num_epochs)
    if last.step < LEAST_STEPS or len(history) < LEAST_SHARE * num_epochs:
        return ()
    recent = {name: _known_dice(history, name)[-width:] for name in last.pseudo_dice}
    return tuple(name for name, dice in recent.items() if len(dice) == width and max(dice) < FOUND_DICE)


def never_found(history: Sequence[EpochRecord]) -> list[str]:
    """Classes that validation patches contain and that no epoch of a finished training found."""
    return [name for name, dice in _finished_dice(history).items() if dice and max(dice) < FOUND_DICE]


def never_seen(history: Sequence[EpochRecord]) -> list[str]:
    """Classes that no validation patch of a finished training contained, and that were predicted in none."""
    return [name for name, dice in _finished_dice(history).items() if not dice]


def _finished_dice(history: Sequence[EpochRecord]) -> dict[str, list[float]]:
    """By class, the Dice of all epochs that know it; empty for a training too short to judge."""
    if not history or history[-1].step < LEAST_STEPS:
        return {}
    return {name: _known_dice(history, name) for name in history[-1].pseudo_dice}


def _known_dice(history: Sequence[EpochRecord], name: str) -> list[float]:
    return [dice for record in history if (dice := record.pseudo_dice.get(name)) is not None]


def waiting_share(history: Sequence[EpochRecord], *, on_cpu: bool) -> float | None:
    """Share of time that the last two epochs waited for batches, if it is too much; the very first, which starts workers, is left out."""
    recent = history[1:][-2:]
    limit = STARVED_SHARE_CPU if on_cpu else STARVED_SHARE
    if len(recent) < 2 or min(record.wait_share for record in recent) < limit:
        return None
    return fmean(record.wait_share for record in recent)


def find_overfitting(history: Sequence[EpochRecord], num_epochs: int, patches: int) -> str | None:
    """How the validation loss has risen from its best while the training loss went on falling, and scores with it; None: not so.

    Each epoch validates so many ``patches``.
    """
    known = [
        (record.step, trained, validated, average)
        for record in history
        if (trained := record.loss) is not None
        and (validated := record.validation_loss) is not None
        and (average := record.moving_average) is not None
    ]
    width = max(patience(num_epochs), -(-OVERFIT_PATCHES // max(1, patches)))
    if len(known) < 2 * width:
        return None
    ends = range(width, len(known) + 1)
    training = [fmean(loss for _, loss, _, _ in known[end - width : end]) for end in ends]
    validation = [fmean(loss for _, _, loss, _ in known[end - width : end]) for end in ends]
    averages = [average for _, _, _, average in known]
    best = validation.index(min(validation))
    rise, fall = validation[-1] - validation[best], training[best] - training[-1]
    if rise < OVERFIT_RISE or fall < OVERFIT_FALL or averages[-1] == max(averages):
        return None
    losses = [loss for _, _, loss, _ in known]
    if rise < noise_of_means((losses[best : best + width], losses[-width:]), num_means=len(validation)):
        return None
    step = known[best + width - 1][0]
    return f"overfitting: since step {step} the training loss fell by {fall:.2f} and the validation loss rose by {rise:.2f}"


def noise_of_means(windows: tuple[Sequence[float], Sequence[float]], *, num_means: int) -> float:
    """How far noise raises the mean of the last of two windows above that of the first, which is the lowest of ``num_means``.

    By Student's t with the variance inside the windows, of the same length; `OVERFIT_RISK` is shared by all means (Bonferroni).
    """
    width = len(windows[0])
    error = math.sqrt(fmean(variance(window) for window in windows) * 2 / width)
    return error * float(stdtrit(2 * (width - 1), 1 - OVERFIT_RISK / num_means))


@dataclass(frozen=True, slots=True)
class Guards(Callback):
    """Skips steps that are not finite, and looks at every epoch. Raises `AutosegError` where nothing helps any more."""

    run: FoldRun

    def on_step(self, step: StepRecord) -> None:
        if step.skipped:
            check_skipped(self.run, step)

    def on_epoch(self, epoch: EpochRecord) -> None:
        for check in (check_finite, check_collapse, check_classes, check_waiting, check_overfitting):
            check(self.run, epoch)


def check_skipped(run: FoldRun, step: StepRecord) -> None:
    """Loss or gradient of a step were not finite: repeated, the weights go back at half the rate."""
    state, steps_per_epoch = run.state, run.spec.training.steps_per_epoch
    state.skipped_steps.append(step.step)
    what = f"the loss became {step.loss}" if not math.isfinite(step.loss) else "the gradient became infinite"
    verdict = judge_skip(
        state.skipped_steps,
        restarts=state.restarts,
        restarted_at=state.restarted_at,
        epoch_start=step.step - step.step % steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
    )
    if verdict == "fail":
        raise AutosegError(failure_issue(run, what, code="training.loss_not_finite"))
    message = f"{what} at step {step.step + 1}; such steps are skipped"
    _warn(run, code="training.loss_not_finite", message=message)
    if verdict == "restart":
        found = f"{what} repeatedly, last at step {step.step + 1}"
        restart(run, found, step.step + step.lag + 1, code="training.loss_not_finite")


def check_finite(run: FoldRun, epoch: EpochRecord) -> None:
    """Ends a training whose steps were all skipped: only those shorter than a row of skips come so far."""
    if epoch.step == len(run.state.skipped_steps) == run.num_steps:
        raise AutosegError(failure_issue(run, "loss or gradient was never finite", code="training.loss_not_finite"))


def check_collapse(run: FoldRun, epoch: EpochRecord) -> None:
    """Restores the last good weights when the foreground is lost."""
    if (found := find_collapse(run.state.history)) is not None:
        restart(run, found, epoch.step, code="training.collapsed")


def check_classes(run: FoldRun, epoch: EpochRecord) -> None:
    """Draws more patches around classes that are not learned, and reports at the end which were not."""
    state, where = run.state, f"{run.spec.where}, class "
    known = {issue.where for issue in state.issues if issue.code == "training.class_not_found"}
    names = [n for n in unlearned_classes(state.history, run.num_epochs) if where + n not in known]
    containing = cases_by_class(run.spec.training_cases) if names else {}
    for name in names:
        message, fix = f"not found in any validation patch after {epoch.step} steps", ""
        if count := len(containing.get(name, ())):
            cases = f"{count} training case{'s' if count > 1 else ''}"
            message += f"; more patches are drawn around it from now on, from {cases}"
            state.sought[name] = epoch.step
            run.new_batches = True
        else:
            message += "; no training case of this fold contains it, so it cannot be learned"
            fix = "add cases, or use other folds (--splits)"
        _warn(run, code="training.class_not_found", where=where + name, message=message, fix=fix)
    if epoch.step == run.num_steps:
        fix = "do not rely on these predictions; a longer --budget or more cases with it may help"
        for name in never_found(state.history):
            message = "not found in any validation patch"
            _warn(run, code="training.class_not_learned", where=where + name, message=message, fix=fix)
        for name in never_seen(state.history):
            message = "no validation patch of this fold contains it"
            _warn(run, code="training.class_not_validated", where=where + name, message=message)


def check_waiting(run: FoldRun, epoch: EpochRecord) -> None:
    """Starts more workers when the device waits for batches, or reports what helps."""
    on_cpu = run.spec.device.type == "cpu"
    if (share := waiting_share(run.state.history, on_cpu=on_cpu)) is None:
        return
    message = f"{share:.0%} of the training time is spent waiting for patches"
    fix = "put preprocessed data on a faster disk (--work)"
    more = 0 if on_cpu else max(0, run.spec.most_workers - run.num_workers)
    if more:
        message += f"; {more} more workers read patches from now on"
        run.num_workers, run.new_batches, fix = run.spec.most_workers, True, ""
    _warn(run, code="training.data_starved", message=message, fix=fix)


def check_overfitting(run: FoldRun, epoch: EpochRecord) -> None:
    """Reports when the validation loss rises while the training loss falls."""
    patches = run.spec.training.validation_batches * run.spec.training.batch_size
    if (found := find_overfitting(run.state.history, run.num_epochs, patches)) is not None:
        fix = "add cases, or use a shorter --budget; the final weights are still used, and best.safetensors keeps the best"
        _warn(run, code="training.overfitting", message=found, fix=fix)


def _warn(run: FoldRun, *, code: str, message: str, where: str = "", fix: str = "") -> None:
    add_issue(run, Issue(code=code, severity="warning", where=where or run.spec.where, message=message, fix=fix))


def restart(run: FoldRun, found: str, steps_done: int, *, code: str) -> None:
    """Restore the last good weights at half the rate with a fresh optimiser; steps go on.

    Raises `AutosegError` after the third time.
    """
    state = run.state
    if state.restarts >= MOST_RESTARTS:
        raise AutosegError(failure_issue(run, found, code=code))
    run.parts.network.load_state_dict(state.good)
    run.parts.optimiser.state.clear()
    state.average, state.averaged = {}, 0
    state.restarts, state.restarted_at = state.restarts + 1, steps_done
    state.rate_factor /= 2
    run.new_batches = run.new_batches or run.spec.ranks is not None  # the others get the weights with what comes next
    message = f"{found}; restored the last good weights, with {state.rate_factor:g} of the planned learning rate"
    issue = Issue(code="training.restarted", severity="warning", where=run.spec.where, message=message)
    add_issue(run, issue, repeat=True)


def failure_issue(run: FoldRun, found: str, *, code: str) -> Issue:
    """What ends a training, with the cases that all bad batches have in common."""
    bad, restarts, message = run.state.skipped_steps, run.state.restarts, found
    if bad:
        message += f" at step {bad[0] + 1}"
    if len(bad) > 1:
        message += f", and in {len(bad)} steps up to step {bad[-1] + 1}"
        source = source_by_step(batch_source(run.spec, purpose="training"), run.state)
        samples = range(run.spec.training.batch_size)
        counts = Counter(number for step in bad for number in {source(step).choose(step, i)[1] for i in samples})
        names = dict(enumerate(run.spec.case_ids))
        always = [names.get(n, f"number {n}") for n, count in sorted(counts.items()) if count == len(bad)]
        message += f"; case {', '.join(always)} was in each of these batches" if always else ""
    if restarts:
        message += f", and {restarts} restart{'s' if restarts > 1 else ''} with lower learning rates did not help"
    fix = (
        "look for extreme intensities with autoseg check, and correct or remove these cases; if the data is fine, report this "
        f"with the fold's {ISSUES_FILE} and {HISTORY_FILE}"
    )
    return Issue(code=code, where=run.spec.where, message=message, fix=fix)


def source_by_step(source: BatchSource, state: FoldState) -> Callable[[int], BatchSource]:
    """What the batch of a step was drawn from: more patches around classes from the step on at which that began."""
    containing = cases_by_class(source.cases)  # once: it opens every case
    return lambda step: replace(source, sought={n: containing[n] for n, since in state.sought.items() if since <= step})


def shrink_micro_batch(run: FoldRun, step: int) -> None:
    """A step ran out of memory that was free when training began: smaller micro-batches, or an end that is saved.

    Memory of a GPU may only have been in pieces, or held for sizes that are gone: once for each size of micro-batches the step is
    tried again as it is, now that it was released.
    """
    spec, state = run.spec, run.state
    if spec.device.type != "cpu" and run.retried_size != state.micro_batch_size:
        run.retried_size = state.micro_batch_size
        return
    if state.micro_batch_size == 1:
        save(run, step)
        raise AutosegError(memory_issue(spec.plan, spec.configuration, spec.training, spec.device))
    state.micro_batch_size = -(-state.micro_batch_size // 2)
    add_issue(run, micro_batch_issue(spec, state.micro_batch_size), repeat=True)


@contextmanager
def readable_errors(where: str) -> Iterator[None]:
    """Turns running out of memory outside the steps, and the death of a worker, into an `AutosegError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if worker_died(error):
            message = f"a worker that reads patches was killed ({error})"
            fix = (
                "provide more memory or shared memory (/dev/shm, in containers often small), or use fewer workers "
                "(--workers 1), and run the same command to resume"
            )
            raise AutosegError(Issue(code="training.worker_killed", where=where, message=message, fix=fix)) from error
        if not is_out_of_memory(error):
            raise
        message = f"memory ran out while patches were prepared or validated ({error})"
        fix = "close other programs and run the same command to resume"
        raise AutosegError(Issue(code="memory.too_small", where=where, message=message, fix=fix)) from error

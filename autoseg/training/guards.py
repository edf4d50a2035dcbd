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
from statistics import fmean
from typing import Literal

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
"""The validation loss rises by this from its best while the training loss falls by that: both beyond the noise of epochs."""

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
    if len(history) < 2 or history[-1].mean_dice is None or history[-1].loss is None:
        return None
    *before, last = history
    best = max((record.mean_dice or 0.0 for record in before), default=0.0)
    dice, loss = last.mean_dice or 0.0, last.loss or 0.0
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
    last = history[-1]
    if last.step < LEAST_STEPS or len(history) < LEAST_SHARE * num_epochs:
        return ()
    lost = []
    for name in last.pseudo_dice:
        known = _known_dice(history, name)
        recent = known[-patience(num_epochs) :]
        if len(recent) == patience(num_epochs) and max(recent) < FOUND_DICE:
            lost.append(name)
    return tuple(lost)


def never_found(history: Sequence[EpochRecord]) -> list[str]:
    """Classes that validation patches contain and that no epoch of a finished training found."""
    if not history or history[-1].step < LEAST_STEPS:
        return []
    known = {name: _known_dice(history, name) for name in history[-1].pseudo_dice}
    return [name for name, dice in known.items() if dice and max(dice) < FOUND_DICE]


def never_seen(history: Sequence[EpochRecord]) -> list[str]:
    """Classes that no validation patch of a finished training contained, and that were predicted in none."""
    if not history or history[-1].step < LEAST_STEPS:
        return []
    return [name for name in history[-1].pseudo_dice if not _known_dice(history, name)]


def _known_dice(history: Sequence[EpochRecord], name: str) -> list[float]:
    return [dice for record in history if (dice := record.pseudo_dice.get(name)) is not None]


def waiting_share(history: Sequence[EpochRecord], *, on_cpu: bool) -> float | None:
    """Share of time that the last two epochs waited for batches, if it is too much; the very first, which starts workers, is left out."""
    recent = history[1:][-2:]
    limit = STARVED_SHARE_CPU if on_cpu else STARVED_SHARE
    if len(recent) < 2 or min(record.wait_share for record in recent) < limit:
        return None
    return fmean(record.wait_share for record in recent)


def find_overfitting(history: Sequence[EpochRecord], num_epochs: int) -> str | None:
    """How the validation loss has risen from its best while the training loss went on falling, and scores with it; None: not so."""
    known = [
        r for r in history if r.loss is not None and r.validation_loss is not None and r.moving_average is not None
    ]
    width = patience(num_epochs)
    if len(known) < 2 * width:
        return None
    ends = range(width, len(known) + 1)
    validation = [fmean(r.validation_loss or 0.0 for r in known[end - width : end]) for end in ends]
    training = [fmean(r.loss or 0.0 for r in known[end - width : end]) for end in ends]
    best = validation.index(min(validation))
    rise, fall = validation[-1] - validation[best], training[best] - training[-1]
    highest = max(r.moving_average or 0.0 for r in known)
    if rise < OVERFIT_RISE or fall < OVERFIT_FALL or (known[-1].moving_average or 0.0) >= highest:
        return None
    step = known[best + width - 1].step
    return f"overfitting: since step {step} the training loss fell by {fall:.2f} and the validation loss rose by {rise:.2f}"


@dataclass(frozen=True, slots=True)
class FiniteGuard(Callback):
    """Skips steps whose loss or gradient is not finite; repeated, the weights go back at half the rate."""

    run: FoldRun

    def on_step(self, step: StepRecord) -> None:
        """Raises `AutosegError` if a restart cannot help, or has not helped three times."""
        if not step.skipped:
            return
        state, steps_per_epoch = self.run.state, self.run.spec.training.steps_per_epoch
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
            raise AutosegError(failure_issue(self.run, what, code="training.loss_not_finite"))
        message = f"{what} at step {step.step + 1}; such steps are skipped"
        issue = Issue(code="training.loss_not_finite", severity="warning", where=self.run.spec.where, message=message)
        add_issue(self.run, issue)
        if verdict == "restart":
            found = f"{what} repeatedly, last at step {step.step + 1}"
            restart(self.run, found, step.step + 1, code="training.loss_not_finite")

    def on_epoch(self, epoch: EpochRecord) -> None:
        """Raises `AutosegError` if all steps of a training were skipped: only those shorter than a row of skips end so."""
        if epoch.step == len(self.run.state.skipped_steps) == self.run.spec.training.num_steps:
            raise AutosegError(
                failure_issue(self.run, "loss or gradient was never finite", code="training.loss_not_finite")
            )


@dataclass(frozen=True, slots=True)
class CollapseGuard(Callback):
    """Restores the last good weights when the foreground is lost."""

    run: FoldRun

    def on_epoch(self, epoch: EpochRecord) -> None:
        """Raises `AutosegError` after the third time."""
        found = find_collapse(self.run.state.history)
        if found is not None:
            restart(self.run, found, epoch.step, code="training.collapsed")


@dataclass(frozen=True, slots=True)
class ClassGuard(Callback):
    """Draws more patches around classes that are not learned, and reports at the end which were not."""

    run: FoldRun

    def on_epoch(self, epoch: EpochRecord) -> None:
        run, state = self.run, self.run.state
        told = {issue.where for issue in state.issues if issue.code == "training.class_not_found"}
        names = [n for n in unlearned_classes(state.history, run.spec.num_epochs) if self._where(n) not in told]
        containing = cases_by_class(run.spec.training_cases) if names else {}
        for name in names:
            found = f"not found in any validation patch after {epoch.step} steps"
            count = len(containing.get(name, ()))
            if count:
                found += f"; more patches are drawn around it from now on, from {count} training case{'s' if count > 1 else ''}"
                state.sought[name] = epoch.step
                run.new_batches = True
                fix = ""
            else:
                found += "; no training case of this fold contains it, so it cannot be learned"
                fix = "add cases, or use other folds (--splits)"
            self._tell(name, code="training.class_not_found", message=found, fix=fix)
        if epoch.step == run.spec.training.num_steps:
            for name in never_found(state.history):
                fix = "do not rely on its predictions; a longer --budget or more cases with it may help"
                self._tell(
                    name, code="training.class_not_learned", message="not found in any validation patch", fix=fix
                )
            for name in never_seen(state.history):
                message = "no validation patch of this fold contains it"
                self._tell(name, code="training.class_not_validated", message=message)

    def _where(self, name: str) -> str:
        return f"{self.run.spec.where}, class {name}"

    def _tell(self, name: str, *, code: str, message: str, fix: str = "") -> None:
        issue = Issue(code=code, severity="warning", where=self._where(name), message=message, fix=fix)
        add_issue(self.run, issue)


@dataclass(frozen=True, slots=True)
class DataGuard(Callback):
    """Starts more workers when the device waits for batches, or reports what helps."""

    run: FoldRun

    def on_epoch(self, epoch: EpochRecord) -> None:
        run = self.run
        on_cpu = run.spec.device.type == "cpu"
        share = waiting_share(run.state.history, on_cpu=on_cpu)
        if share is None:
            return
        more = 0 if on_cpu else max(0, run.spec.most_workers - run.num_workers)
        message = f"{share:.0%} of the training time is spent waiting for patches"
        fix = "put preprocessed data on a faster disk (--work)"
        if more:
            message += f"; {more} more workers read patches from now on"
            run.num_workers, run.new_batches, fix = run.spec.most_workers, True, ""
        issue = Issue(code="training.data_starved", severity="warning", where=run.spec.where, message=message, fix=fix)
        add_issue(run, issue)


@dataclass(frozen=True, slots=True)
class OverfittingGuard(Callback):
    """Tells when the validation loss rises while the training loss falls."""

    run: FoldRun

    def on_epoch(self, epoch: EpochRecord) -> None:
        found = find_overfitting(self.run.state.history, self.run.spec.num_epochs)
        if found is not None:
            fix = "add cases, or use a shorter --budget; the final weights are still used, and best.safetensors keeps the best"
            where = self.run.spec.where
            add_issue(
                self.run, Issue(code="training.overfitting", severity="warning", where=where, message=found, fix=fix)
            )


def restart(run: FoldRun, found: str, steps_done: int, *, code: str) -> None:
    """Restore the last good weights at half the rate with a fresh optimiser; steps go on.

    Raises `AutosegError` after the third time.
    """
    state = run.state
    if state.restarts >= MOST_RESTARTS:
        raise AutosegError(failure_issue(run, found, code=code))
    run.parts.network.load_state_dict(state.good)
    run.parts.optimiser.state.clear()
    state.restarts, state.restarted_at = state.restarts + 1, steps_done
    state.rate_factor /= 2
    message = f"{found}; restored the last good weights, with {state.rate_factor:g} of the planned learning rate"
    issue = Issue(code="training.restarted", severity="warning", where=run.spec.where, message=message)
    add_issue(run, issue, repeat=True)


def failure_issue(run: FoldRun, found: str, *, code: str) -> Issue:
    """What ends a training, with the cases that all bad batches have in common."""
    bad, message = run.state.skipped_steps, found
    if bad:
        message += f" at step {bad[0] + 1}"
        message += f", and in {len(bad)} steps up to step {bad[-1] + 1}" if len(bad) > 1 else ""
        always = _cases_of_all(run, bad)
        named = ", ".join(
            run.spec.case_ids[number] if number < len(run.spec.case_ids) else f"number {number}" for number in always
        )
        message += f"; case {named} was in each of these batches" if len(bad) > 1 and always else ""
    restarts = run.state.restarts
    message += (
        f", and {restarts} restart{'s' if restarts > 1 else ''} with lower learning rates did not help"
        if restarts
        else ""
    )
    return Issue(
        code=code,
        where=run.spec.where,
        message=message,
        fix="look for extreme intensities with autoseg check, and correct or remove these cases; if the data is fine, report this "
        f"with the fold's {ISSUES_FILE} and {HISTORY_FILE}",
    )


def _cases_of_all(run: FoldRun, steps: Sequence[int]) -> list[int]:
    """Numbers of the cases that were in the batches of all these steps."""
    source = source_by_step(batch_source(run.spec, purpose="training"), run.state)
    samples = range(run.spec.training.batch_size)
    counts = Counter(number for step in steps for number in {source(step).choose(step, i)[1] for i in samples})
    return sorted(number for number, count in counts.items() if count == len(steps))


def source_by_step(source: BatchSource, state: FoldState) -> Callable[[int], BatchSource]:
    """What the batch of a step was drawn from: more patches around classes from the step on at which that began."""
    containing = cases_by_class(source.cases)  # once: it opens every case
    return lambda step: replace(source, sought={n: containing[n] for n, since in state.sought.items() if since <= step})


def shrink_micro_batch(run: FoldRun, step: int) -> None:
    """A step ran out of memory that was free when training began: smaller micro-batches, or an end that is saved."""
    spec, state = run.spec, run.state
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
            message, fix = (
                f"a worker that reads patches was killed ({error})",
                "provide more memory or shared memory (/dev/shm, in containers often small), or use fewer workers (--workers 1), and "
                "run the same command to resume",
            )
            raise AutosegError(Issue(code="training.worker_killed", where=where, message=message, fix=fix)) from error
        if not is_out_of_memory(error):
            raise
        message = f"memory ran out while patches were prepared or validated ({error})"
        fix = "close other programs and run the same command to resume"
        raise AutosegError(Issue(code="memory.too_small", where=where, message=message, fix=fix)) from error

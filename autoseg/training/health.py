"""Rules that notice when a training goes wrong: records in, findings out, no effects.

Each limit stands beside its reason. A healthy training meets none of them, and none changes what it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from autoseg.training.history import EpochRecord
from autoseg.training.learning import Learning, Remark

SKIPS_IN_ROW = 3
"""One bad patch may happen to meet an overflow; three batches in a row do not."""
SKIPPED_SHARE = 0.1
"""Of the steps of an epoch; what is skipped more often is no accident."""
MOST_RESTARTS = 3
"""The rate is then an eighth; where that diverges the data is to blame."""
FOUND_DICE = 0.01
"""A class that scores less on all validation patches of an epoch was not found."""
LEARNT_DICE = 0.2
"""A training that once scored this much can collapse; below it, it has not begun to learn."""
COLLAPSED_SHARE = 0.1
"""Of the best score; what falls so deep from one epoch to the next is no noise of a few patches."""
COLLAPSED_LOSS = 0.2
"""By which the training loss must have risen too: Dice and cross-entropy of a lost foreground are far above that."""
LEAST_STEPS = 150
"""Of 131 classes in 71 trainings, 127 were found at the end, and all of those by step 132 (docs/decisions/0100)."""
LEAST_SHARE = 0.2
"""Of the training that must be over before a class counts as lost."""
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


def judge_skip(learning: Learning, *, epoch_start: int, steps_per_epoch: int) -> Verdict:
    """What follows from the last of ``learning.skipped_steps``: nothing more, a restart, or the end.

    Restarts help where weights were driven too far. Where not one step was good since the last restart, or since the
    beginning, the weights are what they were then, and a lower rate changes nothing. A row of skips counts wherever epochs
    end in it: those of short trainings are shorter than a row.
    """
    last = learning.skipped_steps[-1]
    row = range(last - SKIPS_IN_ROW + 1, last + 1)
    in_row = row.start >= learning.restarted_at and set(row) <= set(learning.skipped_steps)
    since = [step for step in learning.skipped_steps if step >= max(epoch_start, learning.restarted_at)]
    if not in_row and len(since) <= max(SKIPS_IN_ROW, SKIPPED_SHARE * steps_per_epoch):
        return "skip"
    good = last + 1 - learning.restarted_at - sum(step >= learning.restarted_at for step in learning.skipped_steps)
    return "restart" if good > 0 and learning.restarts < MOST_RESTARTS else "fail"


def collapsed(history: Sequence[EpochRecord]) -> str | None:
    """What the last epoch lost that the ones before it had learnt, in words; None: nothing."""
    if len(history) < 2 or history[-1].mean_dice is None or history[-1].loss is None:
        return None
    *before, last = history
    best = max((record.mean_dice or 0.0 for record in before), default=0.0)
    dice, loss = last.mean_dice or 0.0, last.loss or 0.0
    lowest = min((record.loss for record in before if record.loss is not None), default=loss)
    if best < LEARNT_DICE or dice > COLLAPSED_SHARE * best or loss < lowest + COLLAPSED_LOSS:
        return None
    return (
        f"the foreground was lost: the pseudo-Dice fell from {best:.2f} to {dice:.2f}, the loss rose from {lowest:.2f} to "
        f"{loss:.2f}"
    )


def is_good(history: Sequence[EpochRecord]) -> bool:
    """Whether the state at the end of the last epoch may serve restarts."""
    return history[-1].loss is not None and collapsed(history) is None


def lost_classes(history: Sequence[EpochRecord], num_epochs: int) -> tuple[str, ...]:
    """Classes that none of the last epochs found although their validation patches show them."""
    last = history[-1]
    if last.step < LEAST_STEPS or len(history) < LEAST_SHARE * num_epochs:
        return ()
    lost = []
    for name in last.pseudo_dice:
        known = [dice for record in history if (dice := record.pseudo_dice.get(name)) is not None]
        recent = known[-patience(num_epochs) :]
        if len(recent) == patience(num_epochs) and max(recent) < FOUND_DICE:
            lost.append(name)
    return tuple(lost)


def describe_lost(name: str, step: int, num_cases: int) -> Remark:
    """A class that is not found, and what is done about it; ``num_cases``: training cases of the fold that show it."""
    showing = (
        "the only training case that shows it" if num_cases == 1 else f"the {num_cases} training cases that show it"
    )
    measure = (
        f"patches around it are drawn more often from now on, from {showing}"
        if num_cases
        else "no training case of this fold shows it, so it cannot be learnt: add cases, or take other folds (--splits)"
    )
    return Remark(
        kind="lost_class", step=step, about=name, found=f"{name} is not found on any validation patch after {step} steps",
        measure=measure,
    )  # fmt: skip


def never_found(history: Sequence[EpochRecord]) -> list[Remark]:
    """Classes that validation patches show and that no epoch of a finished training found."""
    remarks = []
    for name in history[-1].pseudo_dice if history else ():
        known = [dice for record in history if (dice := record.pseudo_dice.get(name)) is not None]
        if known and max(known) < FOUND_DICE and history[-1].step >= LEAST_STEPS:
            remarks.append(
                Remark(
                    kind="never_found",
                    step=history[-1].step,
                    about=name,
                    found=f"{name} was found on no validation patch up to the end",
                    measure="do not rely on its predictions; a longer --budget or more cases that show it may help",
                )
            )
    return remarks


def never_shown(history: Sequence[EpochRecord]) -> list[Remark]:
    """Classes that no validation patch of a finished training showed, and that were predicted on none."""
    if not history or history[-1].step < LEAST_STEPS:
        return []
    step = history[-1].step
    silent = (
        name for name in history[-1].pseudo_dice if all(record.pseudo_dice.get(name) is None for record in history)
    )
    return [
        Remark(
            kind="never_shown", step=step, about=name, found=f"no validation patch of this fold shows {name}",
            measure="whether it was learnt is not known from this fold, and no measure was taken for it",
        )
        for name in silent
    ]  # fmt: skip


def find_starved(history: Sequence[EpochRecord], *, on_cpu: bool, more_workers: int) -> Remark | None:
    """Whether the last two epochs waited long for their batches; the very first, in which workers start, does not count."""
    recent = history[1:][-2:]
    limit = STARVED_SHARE_CPU if on_cpu else STARVED_SHARE
    if len(recent) < 2 or min(record.wait_share for record in recent) < limit:
        return None
    share = fmean(record.wait_share for record in recent)
    if on_cpu:
        measure = "reading is slow: put preprocessed data on a faster disk (--work), or close what else uses it"
    elif more_workers:
        measure = f"{more_workers} more processes read patches from now on"
    else:
        measure = (
            "all cores read patches already; put preprocessed data on a faster disk (--work), or give it more cores"
        )
    found = f"{share:.0%} of the training time goes into waiting for patches"
    return Remark(kind="starved", step=recent[-1].step, found=found, measure=measure)


def find_overfitting(history: Sequence[EpochRecord], num_epochs: int) -> Remark | None:
    """Whether the validation loss has risen from its best while the training loss went on falling, and scores with it."""
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
    return Remark(
        kind="overfitting",
        step=known[-1].step,
        found=f"the network begins to learn its cases by heart: since step {step} the training loss fell by {fall:.2f}, and "
        f"the validation loss rose by {rise:.2f}",
        measure="the final weights are used all the same, for choosing by the validation cases would flatter their score; "
        "best.safetensors keeps the best. More cases help, or a shorter --budget",
    )

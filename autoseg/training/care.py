"""What is done when a training goes wrong: the findings of `health` become words and deeds."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from autoseg.issues import AutosegError
from autoseg.training.batches import BatchSource
from autoseg.training.health import (
    MOST_RESTARTS,
    collapsed,
    describe_lost,
    find_overfitting,
    find_starved,
    judge_skip,
    lost_classes,
)
from autoseg.training.history import EpochRecord
from autoseg.training.learning import Kind, Learning, Remark
from autoseg.training.loop import Control, Parts, StepRecord
from autoseg.training.patches import ANNOTATED

Say = Callable[[str], None]
SCARCE_SHARE = 1 / 5
"""Of the cases; a class that fewer show is scarce. Those of the usual datasets are in most cases."""


@dataclass(slots=True, kw_only=True)
class FoldState:
    """What changes during a training besides weights."""

    learning: Learning
    control: Control
    good: dict[str, Tensor]
    """Weights to go back to: of the last epoch that ended well, at first those of the beginning."""
    num_workers: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    moving_average: float | None = None
    best_score: float = -math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    last_saved: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Care:
    """What caring for a training needs to know, and whom it tells."""

    where: str
    """Name of the training, e.g. ``3d_fullres, fold 2``."""
    num_epochs: int
    steps_per_epoch: int
    source: BatchSource
    """Training batches."""
    case_ids: Sequence[str]
    """Names of the source's cases; fewer where they have none."""
    most_workers: int
    """Processes that may make batches."""
    say: Say


def note(care: Care, state: FoldState, remark: Remark) -> None:
    """Say something once, and keep it in the fold's record."""
    if not state.learning.knows(remark):
        care.say(f"{care.where}: {remark}")
        state.learning = state.learning.model_copy(update={"remarks": (*state.learning.remarks, remark)})


def after_skip(care: Care, parts: Parts, state: FoldState, record: StepRecord) -> None:
    """A step's loss or gradient was no finite number: it was skipped; repeated, weights go back at half the rate.

    Raises `AutosegError` where that cannot help, or has not helped three times.
    """
    skipped = (*state.learning.skipped_steps, record.step)
    state.learning = state.learning.model_copy(update={"skipped_steps": skipped})
    what = f"the loss became {record.loss}" if not math.isfinite(record.loss) else "the gradient became infinite"
    epoch_start = record.step - record.step % care.steps_per_epoch
    verdict = judge_skip(state.learning, epoch_start=epoch_start, steps_per_epoch=care.steps_per_epoch)
    if verdict == "fail":
        raise _failure(care, state, what)
    found = f"{what} at step {record.step + 1}"
    note(care, state, _remark("not_finite", record, found, "such steps are skipped, and the weights stay as they were"))
    if verdict == "restart":
        restart(care, parts, state, record, f"{what} again and again, last at step {record.step + 1}")


def require_steps(care: Care, state: FoldState, num_steps: int) -> None:
    """Raise `AutosegError` where all of a training's steps were skipped: its weights are those that it began with.

    Only trainings that are shorter than a row of skips come to their end so.
    """
    if len(state.learning.skipped_steps) == num_steps:
        raise _failure(care, state, "loss or gradient was no finite number")


def restart(care: Care, parts: Parts, state: FoldState, record: StepRecord, found: str) -> None:
    """Go back to the last good weights at half the rate, with an optimiser that remembers nothing; steps go on.

    Raises `AutosegError` after the third time.
    """
    learning = state.learning
    if learning.restarts >= MOST_RESTARTS:
        raise _failure(care, state, found)
    parts.network.load_state_dict(state.good)
    parts.optimiser.state.clear()
    factor = learning.rate_factor / 2
    state.learning = learning.model_copy(
        update={"restarts": learning.restarts + 1, "restarted_at": record.step + 1, "rate_factor": factor}
    )
    state.control.rate_factor = factor
    measure = f"the last good weights are taken again, with {factor:g} of the planned learning rate"
    note(care, state, _remark("restart", record, found, measure, about=f"restart {state.learning.restarts}"))


def after_epoch(care: Care, parts: Parts, state: FoldState, record: StepRecord) -> None:
    """Look for what went wrong in the last epoch, say it, and do what can be done."""
    history = state.history
    lost = collapsed(history)
    if lost is not None:
        restart(care, parts, state, record, lost)
    names = [name for name in lost_classes(history, care.num_epochs) if name not in state.learning.sought]
    if names and not all(state.learning.knows(describe_lost(name, 0, 0)) for name in names):
        seek(care, state, record, names)
    more = max(0, care.most_workers - state.num_workers)
    starved = find_starved(history, on_cpu=parts.device.type == "cpu", more_workers=more)
    if starved is not None and not state.learning.knows(starved):
        note(care, state, starved)
        if more and parts.device.type != "cpu":
            state.num_workers = care.most_workers
            state.control.new_batches = True
    overfitting = find_overfitting(history, care.num_epochs)
    if overfitting is not None:
        note(care, state, overfitting)


def seek(care: Care, state: FoldState, record: StepRecord, names: Sequence[str]) -> None:
    """Draw more patches around lost classes from the next step on, where training cases show them."""
    showing = cases_showing(care.source, names)
    for name in names:
        note(care, state, describe_lost(name, record.step + 1, len(showing[name])))
    sought = (*state.learning.sought, *(name for name in names if showing[name]))
    if sought != state.learning.sought:
        state.learning = state.learning.model_copy(update={"sought": sought})
        state.control.new_batches = True


def cases_showing(source: BatchSource, names: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """Numbers of the source's cases that show each of the classes."""
    if not names:
        return {}
    showing = _cases_by_class(source)
    return {name: tuple(showing.get(name, ())) for name in names}


def seeking(source: BatchSource, names: Sequence[str]) -> BatchSource:
    """The source with more patches around the classes of these names."""
    return replace(source, sought=cases_showing(source, names)) if names else source


def minding_scarce(source: BatchSource) -> BatchSource:
    """The source that draws classes of few cases as often as others; where there are none, the same (decision 0117)."""
    showing = _cases_by_class(source)
    few = SCARCE_SHARE * len(source.cases)
    scarce = {name: tuple(numbers) for name, numbers in showing.items() if len(numbers) < few}
    return replace(source, scarce=scarce, num_classes=len(showing)) if scarce else source


def _cases_by_class(source: BatchSource) -> dict[str, list[int]]:
    """Numbers of the cases that show each class that any of them shows."""
    showing: dict[str, list[int]] = {}
    for number, case in enumerate(source.cases):
        for name, voxels in case.locations.items():
            if len(voxels) and name != ANNOTATED:
                showing.setdefault(name, []).append(number)
    return showing


def _source_by_step(care: Care, learning: Learning) -> Callable[[int], BatchSource]:
    """What the batch of a step was drawn from: classes were sought from the step on at which that was said."""
    since = {remark.about: remark.step for remark in learning.remarks if remark.kind == "lost_class"}
    showing = cases_showing(care.source, learning.sought)  # looked for once: it opens every case
    return lambda step: replace(care.source, sought={name: showing[name] for name in showing if since[name] <= step})


def _remark(kind: Kind, record: StepRecord, found: str, measure: str, *, about: str = "") -> Remark:
    return Remark(kind=kind, step=record.step + 1, about=about, found=found, measure=measure)


def _failure(care: Care, state: FoldState, found: str) -> AutosegError:
    """The error that ends a training, with the cases that all bad batches have in common."""
    learning = state.learning
    bad = learning.skipped_steps
    tries = f", and {learning.restarts} restarts at lower learning rates did not mend it" if learning.restarts else ""
    text = f"{care.where}: {found}"
    if bad:
        samples = range(care.source.batch_size)
        source = _source_by_step(care, learning)
        counts = Counter(number for step in bad for number in {source(step).choose(step, i)[1] for i in samples})
        always = sorted(number for number, count in counts.items() if count == len(bad))
        named = ", ".join(
            care.case_ids[number] if number < len(care.case_ids) else f"number {number}" for number in always
        )
        text += f" at step {bad[0] + 1}"
        text += f", and in {len(bad)} steps up to step {bad[-1] + 1}" if len(bad) > 1 else ""
        text += f"; case {named} was in each of these batches" if len(bad) > 1 and always else ""
    return AutosegError(
        f"{text}{tries}. Look for extreme intensities with autoseg check and mend or remove what it finds, then run again; "
        "if nothing is wrong with the data, tell us with the fold's learning.json and history.jsonl"
    )

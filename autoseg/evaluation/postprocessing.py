"""Changes to finished label maps that cross-validation has shown to help (method section 9.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from skimage.measure import label

from autoseg.compute.executor import run_jobs
from autoseg.evaluation.metrics import BoolArray, IntArray, dice_coefficient
from autoseg.imaging.readers import file_states
from autoseg.issues import AutosegError, Issue
from autoseg.storage.cache import Cached
from autoseg.wording import count_noun
from planners import Document, LabelClass, Labels

Dices = dict[str, float | None]
BeforeAndAfter = tuple[tuple[Dices, Dices], ...]
"""Of each step that was tried on a case."""


class KeepLargestComponent(Document):
    """Keep the largest connected component of the union of these classes; the other voxels become background."""

    kind: Literal["keep_largest_component"] = "keep_largest_component"
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of classes or regions, taken together as one mask."""


class PostprocessingTrial(Document):
    """One step that was tried on the cross-validation's predictions."""

    step: KeepLargestComponent
    accepted: bool
    dice_before: float | None
    """The mean Dice that decides: over the foreground for the step on all classes, else the class's own. None: undefined."""
    dice_after: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PostprocessingCase:
    """One validated case; the loaders return integer (Z, Y, X) with internal label values."""

    case_id: str
    load_prediction: Callable[[], IntArray]
    load_reference: Callable[[], IntArray]
    files: tuple[Path, ...] = ()
    """All that the loaders read, for the cache."""


def apply_postprocessing(
    labels: IntArray, steps: Sequence[KeepLargestComponent], classes: Labels
) -> NDArray[np.integer]:
    """A new label map after all steps, in order.

    ``labels`` is integer (Z, Y, X) with the internal values that ``classes`` describes. Components are connected through
    faces, edges and corners (26 neighbours in 3D, 8 where an axis has size 1); several of equal largest size all stay.
    A voxel removed from a region becomes background for all its labels. Without steps, a copy. Raises `AutosegError`
    for a step on a class that does not exist.
    """
    result = labels.copy()
    for step in steps:
        values = _values_of(step, classes)
        result[_smaller_components(np.isin(result, values))] = 0
    return result


def decide_postprocessing(
    cases: Sequence[PostprocessingCase], labels: Labels, *, num_workers: int = 1, keep_in: Path | None = None
) -> tuple[tuple[KeepLargestComponent, ...], tuple[PostprocessingTrial, ...]]:
    """The steps that help on validated cases, and all that were tried (method section 9.3).

    First all classes as one mask: accepted if the foreground mean Dice rises and no class's mean Dice falls. Then, if there
    is more than one class, each in declaration order on top of what is accepted: accepted if its own mean Dice rises.
    Means leave out the cases in which a Dice is undefined; a class that is undefined in every case makes the foreground
    mean undefined, which accepts nothing. Each worker holds one case in memory at a time. Without cases nothing is tried.
    What was tried on a case is cached in the folder ``keep_in``, so that an interrupted call can resume.
    """
    if not cases:
        return (), ()
    attempt = partial(_try_steps, cases, labels=labels, num_workers=num_workers, keep_in=keep_in)
    everything = KeepLargestComponent(classes=tuple(each.name for each in labels.classes))
    trials = [_judge_everything(everything, attempt((), (everything,)), labels)]
    accepted: tuple[KeepLargestComponent, ...] = (everything,) if trials[0].accepted else ()
    if len(labels.classes) > 1:
        for group in _independent_groups(labels):
            steps = tuple(KeepLargestComponent(classes=(each.name,)) for each in group)
            tried = attempt(accepted, steps)
            judged = [_judge_class(step, tried, number) for number, step in enumerate(steps)]
            accepted += tuple(trial.step for trial in judged if trial.accepted)
            trials += judged
    return accepted, tuple(trials)


def _values_of(step: KeepLargestComponent, labels: Labels) -> list[int]:
    known = {each.name: each.values for each in labels.classes}
    missing = [name for name in step.classes if name not in known]
    if missing:
        raise AutosegError(
            Issue(
                code="postprocessing.unknown_class",
                where="postprocessing",
                message=f"names {', '.join(missing)}, but the classes are {', '.join(known)}",
                fix="use the postprocessing that was chosen for this dataset",
            )
        )
    return sorted({value for name in step.classes for value in known[name]})


def _smaller_components(mask: BoolArray) -> BoolArray:
    """Voxels of all components of ``mask`` (Z, Y, X) that are smaller than the largest."""
    removed = np.zeros_like(mask)
    box = ndimage.find_objects(mask.astype(np.uint8), max_label=1)[0]
    if box is None:
        return removed
    components: IntArray = label(mask[box], connectivity=mask.ndim)  # type: ignore[no-untyped-call]
    sizes = np.bincount(components.ravel())
    sizes[0] = sizes[1:].max()
    removed[box] = (sizes < sizes[0])[components]
    return removed


def _independent_groups(labels: Labels) -> list[tuple[LabelClass, ...]]:
    """Consecutive classes without a value in common: a step on one cannot change another, so one pass tries them all."""
    groups: list[tuple[LabelClass, ...]] = []
    for each in labels.classes:
        taken = {value for other in groups[-1] for value in other.values} if groups else set()
        if groups and not taken & set(each.values):
            groups[-1] += (each,)
        else:
            groups.append((each,))
    return groups


def _try_steps(
    cases: Sequence[PostprocessingCase],
    accepted: tuple[KeepLargestComponent, ...],
    steps: tuple[KeepLargestComponent, ...],
    *,
    labels: Labels,
    num_workers: int,
    keep_in: Path | None,
) -> list[BeforeAndAfter]:
    """For each case and step, the Dice of the step's classes before and after it, on top of the accepted ones."""
    run = partial(_try_on_case, accepted=accepted, steps=steps, labels=labels)
    cached = run if keep_in is None else Cached(function=run, kind=BeforeAndAfter, state=_state, folder=keep_in)
    return run_jobs(cached, cases, name=lambda case: f"case {case.case_id}", num_workers=num_workers)


def _state(case: PostprocessingCase) -> object:
    return case.case_id, file_states(case.files)


def _try_on_case(
    case: PostprocessingCase,
    *,
    accepted: tuple[KeepLargestComponent, ...],
    steps: tuple[KeepLargestComponent, ...],
    labels: Labels,
) -> BeforeAndAfter:
    prediction = apply_postprocessing(case.load_prediction(), accepted, labels)
    reference = case.load_reference()
    return tuple(
        (
            _dices(prediction, reference, step, labels),
            _dices(apply_postprocessing(prediction, (step,), labels), reference, step, labels),
        )
        for step in steps
    )


def _dices(prediction: IntArray, reference: IntArray, step: KeepLargestComponent, labels: Labels) -> Dices:
    """Dice of each class of a step, over the voxels that are not ignored."""
    values = {each.name: each.values for each in labels.classes}
    scored: BoolArray | Literal[True] = True if labels.ignore is None else reference != labels.ignore
    result: Dices = {}
    for name in step.classes:
        predicted = np.isin(prediction, values[name]) & scored
        expected = np.isin(reference, values[name]) & scored
        tp, n_pred, n_ref = (int(np.count_nonzero(mask)) for mask in (predicted & expected, predicted, expected))
        result[name] = dice_coefficient(tp, n_pred, n_ref)
    return result


def _mean_dice(dices: Sequence[Dices], name: str) -> float | None:
    defined = [value for each in dices if (value := each[name]) is not None]
    return fmean(defined) if defined else None


def _judge_everything(
    step: KeepLargestComponent, tried: Sequence[BeforeAndAfter], labels: Labels
) -> PostprocessingTrial:
    names = [each.name for each in labels.classes]
    before, after = (
        {name: _mean_dice([case[0][moment] for case in tried], name) for name in names} for moment in (0, 1)
    )
    means = _plain_mean(before), _plain_mean(after)
    rises = means[0] is not None and means[1] is not None and means[1] > means[0]
    fallen = [
        name for name in names if (old := before[name]) is not None and (new := after[name]) is not None and new < old
    ]
    reason = f"the mean foreground Dice of {count_noun(len(tried), 'case')} goes {_change(*means)}"
    reason += f", but that of {', '.join(fallen)} falls" if fallen else ""
    return PostprocessingTrial(
        step=step, accepted=rises and not fallen, dice_before=means[0], dice_after=means[1], reason=reason
    )


def _judge_class(step: KeepLargestComponent, tried: Sequence[BeforeAndAfter], number: int) -> PostprocessingTrial:
    name = step.classes[0]
    before, after = (_mean_dice([case[number][moment] for case in tried], name) for moment in (0, 1))
    return PostprocessingTrial(
        step=step,
        accepted=before is not None and after is not None and after > before,
        dice_before=before,
        dice_after=after,
        reason=f"the mean Dice of {name} over {count_noun(len(tried), 'case')} goes {_change(before, after)}",
    )


def _plain_mean(means: Dices) -> float | None:
    """Mean over classes; none as soon as one class is undefined, as the method has it."""
    values = list(means.values())
    return None if any(value is None for value in values) else fmean(value for value in values if value is not None)


def _change(before: float | None, after: float | None) -> str:
    old, new = ("undefined" if value is None else f"{value:.4f}" for value in (before, after))
    return f"from {old} to {new}"

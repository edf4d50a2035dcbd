"""Changes to finished label maps that cross-validation has shown to help (method section 9.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from skimage.measure import label

from autoseg.compute.executor import run_jobs
from autoseg.evaluation.metrics import BoolArray, IntArray, dice_coefficient, mean_of_defined
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
    known = {each.name: each.values for each in classes.classes}
    result = labels.copy()
    for step in steps:
        if missing := [name for name in step.classes if name not in known]:
            message = f"names {', '.join(missing)}, but the classes are {', '.join(known)}"
            fix = "use the postprocessing that was chosen for this dataset"
            raise AutosegError(
                Issue(code="postprocessing.unknown_class", where="postprocessing", message=message, fix=fix)
            )
        mask = np.isin(result, [value for name in step.classes for value in known[name]])
        if box := ndimage.find_objects(mask.astype(np.uint8), max_label=1)[0]:
            components: IntArray = label(mask[box], connectivity=mask.ndim)  # type: ignore[no-untyped-call]
            sizes = np.bincount(components.ravel())
            sizes[0] = sizes[1:].max()
            result[box][(sizes < sizes[0])[components]] = 0
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

    def attempt(
        accepted: tuple[KeepLargestComponent, ...], steps: tuple[KeepLargestComponent, ...]
    ) -> list[BeforeAndAfter]:
        run = partial(_try_on_case, accepted=accepted, steps=steps, labels=labels)
        cached = run if keep_in is None else Cached(function=run, kind=BeforeAndAfter, state=_state, folder=keep_in)
        return run_jobs(cached, cases, name=lambda case: f"case {case.case_id}", num_workers=num_workers)

    over = count_noun(len(cases), "case")
    everything = KeepLargestComponent(classes=tuple(each.name for each in labels.classes))
    tried = attempt((), (everything,))
    trials = [_judge(everything, [case[0] for case in tried], f"the mean foreground Dice of {over}")]
    accepted: tuple[KeepLargestComponent, ...] = (everything,) if trials[0].accepted else ()
    for group in _independent_groups(labels) if len(labels.classes) > 1 else ():
        steps = tuple(KeepLargestComponent(classes=(each.name,)) for each in group)
        tried = attempt(accepted, steps)
        judged = [
            _judge(step, [case[number] for case in tried], f"the mean Dice of {step.classes[0]} over {over}")
            for number, step in enumerate(steps)
        ]
        accepted += tuple(trial.step for trial in judged if trial.accepted)
        trials += judged
    return accepted, tuple(trials)


def _state(case: PostprocessingCase) -> object:
    return case.case_id, file_states(case.files)


def _independent_groups(labels: Labels) -> list[tuple[LabelClass, ...]]:
    """Consecutive classes without a value in common: a step on one cannot change another, so one pass tries them all."""
    groups: list[tuple[LabelClass, ...]] = []
    for each in labels.classes:
        if groups and not {value for other in groups[-1] for value in other.values} & set(each.values):
            groups[-1] += (each,)
        else:
            groups.append((each,))
    return groups


def _try_on_case(
    case: PostprocessingCase,
    *,
    accepted: tuple[KeepLargestComponent, ...],
    steps: tuple[KeepLargestComponent, ...],
    labels: Labels,
) -> BeforeAndAfter:
    """For each step, the Dice of its classes before and after it, on top of the accepted ones."""
    prediction = apply_postprocessing(case.load_prediction(), accepted, labels)
    reference = case.load_reference()
    values = {each.name: each.values for each in labels.classes}
    scored: BoolArray | Literal[True] = True if labels.ignore is None else reference != labels.ignore

    def dices(predicted: IntArray, names: tuple[str, ...]) -> Dices:
        result: Dices = {}
        for name in names:
            masks = [np.isin(array, values[name]) & scored for array in (predicted, reference)]
            counts = (int(np.count_nonzero(mask)) for mask in (masks[0] & masks[1], *masks))
            result[name] = dice_coefficient(*counts)
        return result

    return tuple(
        (dices(prediction, step.classes), dices(apply_postprocessing(prediction, (step,), labels), step.classes))
        for step in steps
    )


def _judge(step: KeepLargestComponent, tried: Sequence[tuple[Dices, Dices]], what: str) -> PostprocessingTrial:
    """Whether a step helps: the plain mean of its classes rises, and none of them falls."""
    means: list[Dices] = [
        {name: mean_of_defined(case[moment][name] for case in tried) for name in step.classes} for moment in (0, 1)
    ]
    # undefined as soon as one class is, as the method has it
    before, after = (None if None in mean.values() else mean_of_defined(mean.values()) for mean in means)
    rises = before is not None and after is not None and after > before
    fallen = [
        name for name, old in means[0].items() if old is not None and (new := means[1][name]) is not None and new < old
    ]
    shown = ["undefined" if value is None else f"{value:.4f}" for value in (before, after)]
    reason = f"{what} goes from {shown[0]} to {shown[1]}"
    reason += f", but that of {', '.join(fallen)} falls" if fallen and len(step.classes) > 1 else ""
    return PostprocessingTrial(
        step=step, accepted=rises and not fallen, dice_before=before, dice_after=after, reason=reason
    )

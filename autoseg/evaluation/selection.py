"""Which configuration, or pair of them, is the model, and how the probabilities of several become one label map.

Method sections 8.2, 9.4 and 9.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from autoseg.evaluation.metrics import mean_of_defined
from autoseg.evaluation.postprocessing import KeepLargestComponent, PostprocessingTrial
from autoseg.imaging.resampling import write_overlaps
from autoseg.issues import AutosegError, Issue
from autoseg.wording import count_noun
from planners import PROSE, Document, Labels

Scores = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""Dice by candidate, case id and class name; none where a class is in neither prediction nor reference."""

JOINT = " + "
FALLBACK = ("3d_fullres", "3d_lowres", "2d")
"""Used where nothing was validated: in the nnU-Net paper full resolution in 3D is best most often."""

THRESHOLD = 0.5
"""A voxel belongs to a region whose probability is above this (method section 8.2)."""

Members = Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]


# --- documents ---


class Candidate(Document):
    """One configuration or pair, scored over the cases that all compared candidates have validated."""

    name: str
    """``2d``, ``3d_fullres``, ``2d + 3d_fullres``."""
    members: Members
    mean_dice: float | None
    """Mean foreground Dice: over cases for each class, then over classes. None: nothing to compare."""
    dice_per_class: dict[str, float | None]
    num_cases: int
    """Compared cases."""


class Choice(Document):
    """What the comparison of candidates says."""

    name: str
    members: Members
    candidates: tuple[Candidate, ...]
    """Singles first, then pairs, in the order given."""
    cross_validated: bool
    """Whether validated cases decided. If not, no score here may be shown as a cross-validated one."""
    mean_dice: float | None
    reason: Annotated[str, PROSE]


class Selection(Document):
    """``selection.json``: what predicts, and what cross-validation says of it."""

    schema_version: Literal[1] = 1
    members: Members
    """Configuration names; the probabilities of two are averaged."""
    folds: Annotated[tuple[int, ...], Field(min_length=1)]
    """Folds of each member whose logits are averaged."""
    postprocessing: tuple[KeepLargestComponent, ...]
    """In the order in which they are applied."""
    cross_validated: bool
    reason: Annotated[str, PROSE]
    candidates: tuple[Candidate, ...]
    dice_before_postprocessing: float | None
    """Cross-validated mean foreground Dice of the members."""
    dice_after_postprocessing: float | None
    """The same after postprocessing, which was decided on these very cases."""
    postprocessing_trials: tuple[PostprocessingTrial, ...] = ()
    made_from: str | None = None
    """Hash of plan, trainings and weights that it belongs to; none: written before there was one, or elsewhere."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        scored = self.dice_before_postprocessing is not None or self.dice_after_postprocessing is not None
        if scored and not self.cross_validated:
            raise ValueError("a score is given although nothing was cross-validated")
        return self

    @property
    def name(self) -> str:
        """Name of the chosen candidate."""
        return candidate_name(self.members)

    @property
    def is_hold_out(self) -> bool:
        """Whether one fold was trained, and scores are those of the cases that it left out."""
        return self.cross_validated and len(self.folds) == 1


# --- candidates ---


def candidate_name(members: Sequence[str]) -> str:
    """``2d + 3d_fullres`` for two configurations, the name itself for one."""
    return JOINT.join(members)


def candidate_members(name: str) -> tuple[str, ...]:
    """The configurations that a candidate's name stands for."""
    return tuple(name.split(JOINT))


def select_candidate(scores: Scores, *, scored_as: str = "cross-validated") -> Choice:
    """The candidate with the highest mean foreground Dice over the cases that all candidates have validated.

    Of equals the earlier one wins, single configurations before pairs. A candidate without any validated case cannot be
    compared and takes no part. Where no case is shared, or no class can be scored, the choice falls on the first of
    `FALLBACK` that there is (else the first candidate), ``cross_validated`` is false and the reason says so. A class that
    is undefined in all cases of a candidate takes no part in its mean. ``scored_as``: how the reason calls the cases. Raises
    `ValueError` without candidates.
    """
    if not scores:
        raise ValueError("there are no candidates to select from")
    names = sorted(scores, key=lambda name: len(candidate_members(name)))
    validated = [set(scores[name]) for name in names if scores[name]]
    shared = sorted(set.intersection(*validated)) if validated else []
    candidates = tuple(_score_candidate(name, scores[name], shared) for name in names)
    scored = [(each.mean_dice, each) for each in candidates if each.mean_dice is not None]
    if scored:
        dice, best = max(scored, key=lambda pair: pair[0])
        over = f"mean foreground Dice {dice:.4f} over {count_noun(len(shared), f'{scored_as} case')}"
        others = sorted((pair for pair in scored if pair[1] is not best), key=lambda pair: -pair[0])
        listed = ", ".join(f"{each.name} {dice:.4f}" for dice, each in others)
        reason = (
            f"{best.name} has the highest {over}; {listed}" if others else f"{best.name} is the only candidate; {over}"
        )
    else:
        best = next((each for name in FALLBACK for each in candidates if each.name == name), candidates[0])
        why = "no case was validated by all candidates" if validated else "no fold validates on any case"
        reason = f"{best.name} is used without comparison: {why}, so nothing was cross-validated"
    return Choice(
        name=best.name,
        members=best.members,
        candidates=candidates,
        cross_validated=bool(scored),
        mean_dice=best.mean_dice,
        reason=reason,
    )


def _score_candidate(name: str, cases: Mapping[str, Mapping[str, float | None]], shared: Sequence[str]) -> Candidate:
    own = [cases[case] for case in shared if case in cases]
    classes = dict.fromkeys(name for case in cases.values() for name in case)
    per_class = {each: mean_of_defined(case[each] for case in own) for each in classes}
    return Candidate(
        name=name,
        members=candidate_members(name),
        mean_dice=mean_of_defined(per_class.values()),
        dice_per_class=per_class,
        num_cases=len(own),
    )


# --- probabilities ---


def mean_probabilities(members: Iterable[NDArray[np.floating]]) -> NDArray[np.float32]:
    """The plain mean of the members' probabilities, each (K, Z, Y, X) in [0, 1], as float32 of that shape.

    Members may be generated one by one; two arrays are in memory at a time. Raises `AutosegError` where shapes differ, and
    `ValueError` without members.
    """
    total: NDArray[np.float32] | None = None
    number = 0
    for member in members:
        if total is None:
            total = np.zeros(member.shape, dtype=np.float32)
        elif member.shape != total.shape:
            message = f"have shapes {total.shape} and {member.shape} (classes, z, y, x)"
            fix = "predict the same image with all members, from the same plan"
            raise AutosegError(Issue(code="ensemble.shape_mismatch", where="members", message=message, fix=fix))
        total += member
        number += 1
    if total is None:
        raise ValueError("an ensemble needs at least one member")
    total /= number
    return total


def labels_from_probabilities(probabilities: NDArray[np.floating], labels: Labels) -> NDArray[np.uint8 | np.uint16]:
    """Internal label values, (Z, Y, X), from probabilities (K, Z, Y, X).

    Classes: the channel with the largest probability, the first of equals; channel 0 is the background. Regions: each region
    whose probability is above `THRESHOLD` writes its value of ``region_order``, later ones over earlier ones; combinations that this would
    lose have values of their own (`planners.Labels.overlaps`). ``uint8`` if there
    are fewer than 255 foreground values, else ``uint16``. Raises `AutosegError` where K does not fit the labels.
    """
    if probabilities.ndim != 4 or probabilities.shape[0] != labels.num_outputs:
        message = f"have shape {probabilities.shape}, but these labels need ({labels.num_outputs}, z, y, x)"
        fix = "use the probabilities that a model of this dataset made"
        raise AutosegError(Issue(code="ensemble.class_mismatch", where="probabilities", message=message, fix=fix))
    result = np.zeros(probabilities.shape[1:], dtype=np.uint8 if max(labels.values) < 255 else np.uint16)
    if labels.region_order is not None:
        for probability, value in zip(probabilities, labels.region_order, strict=True):
            result[probability > THRESHOLD] = value
        if labels.overlaps:
            write_overlaps(result, [probability > THRESHOLD for probability in probabilities], labels.overlaps)
        return result
    for z in range(probabilities.shape[1]):  # slice by slice: argmax makes 64-bit numbers
        result[z] = probabilities[:, z].argmax(axis=0)
    return result

"""How well single lesions are found: components of prediction and reference, matched by overlap.

Two ways are in use:

* ``overlap``: a reference lesion is found where any predicted component touches it. All components that touch it are
  compared with it together; a component that touches none is a false positive. Lesions whose dilated masks meet are one, and what
  touches the dilated mask touches the lesion. Without dilation and smallest volume this is the plain way (as ISLES'22);
  with them it is that of BraTS 2023 (github.com/rachitsaluja/BraTS-2023-Metrics 43c9052). BraTS 2024 treats predictions as
  references are treated, and joins lesions of one tissue that touch the same lesion of another
  (github.com/rachitsaluja/BraTS-2024-Metrics 9a0ab9c).
* ``one_to_one``: each reference lesion has at most one predicted component, so that the sum of their Dice is as large as
  possible (panoptica 2.1.7, as BraTS 2025 uses it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from autoseg.evaluation.surfaces import BoolArray, Spacing, border_distance, surface_scores
from planners import Document

EDGES = ndimage.generate_binary_structure(3, 2)
"""Dilation is by voxels that share a face or an edge, as in BraTS."""
CONNECTIVITY = {6: 1, 18: 2, 26: 3}


class Tissue(Document):
    """Lesions of another tissue, which join those that touch them."""

    values: Annotated[tuple[int, ...], Field(min_length=1)]
    dilation: Annotated[int, Field(ge=0)] = 0
    ignored_mm3: Annotated[float, Field(ge=0)] = 0.0


class LesionRule(Document):
    """What a lesion is, and when it is found."""

    matching: Literal["overlap", "one_to_one"] = "overlap"
    connectivity: Literal[6, 18, 26] = 26
    """Neighbours of a voxel that belong to its component."""
    dilation: Annotated[int, Field(ge=0)] = 0
    """Voxels by which reference lesions grow before they are joined and touched (``overlap`` only)."""
    ignored_mm3: Annotated[float, Field(ge=0)] = 0.0
    """Reference lesions of at most this volume are not counted, found or not."""
    predictions_alike: bool = False
    """Whether predicted components are joined by dilation as well, and those of at most ``ignored_mm3`` removed (``overlap`` only)."""
    joined_by: tuple[Tissue, ...] = ()
    """Lesions that touch the same lesion of one of these tissues are one, in this order (``overlap`` only)."""
    least_dice: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Dice of a matched lesion from which on it is found."""
    misses_count: bool = True
    """Whether missed and false positive lesions are in the means by lesion (Dice 0), or these are over matched ones."""
    false_positives_count: bool = True
    """Whether false positive lesions are among these."""
    distances: bool = False
    """Whether the 95 % Hausdorff distance of each lesion is measured, which takes long."""
    distance: Literal["surface", "border"] = "surface"
    """``surface``: as that of classes (`surfaces.surface_scores`). ``border``: between border voxels (`surfaces.border_distance`)."""
    missing_mm: Annotated[float, Field(ge=0)] | Literal["diagonal"] | None = None
    """Distance of a missed or false positive lesion, or that of opposite corners of the image, in voxels; none: they have none, and
    the mean is over matched lesions."""


PLAIN = LesionRule(distances=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionScores:
    """Counts and means of one class in one case."""

    found: int
    """Reference lesions that are counted and found."""
    missed: int
    false_positive: int
    """Predicted components without a reference lesion."""
    count_error: int
    """Predicted components minus reference lesions, all of them."""
    dice: float | None
    """Mean over lesions; none where there is none to count."""
    hausdorff95_mm: float | None
    """Mean over lesions; none where none has a distance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matched:
    """Components, and which predicted ones belong to each reference lesion that is counted."""

    lesions: NDArray[np.int32]
    predicted: NDArray[np.int32]
    of_lesion: tuple[tuple[int, tuple[int, ...], float], ...]
    """Reference lesion, its predicted components, and their Dice."""
    false_positive: int


def score_lesions(
    prediction: BoolArray,
    reference: BoolArray,
    rule: LesionRule,
    spacing_mm: Spacing,
    *,
    tissues: Sequence[tuple[BoolArray, BoolArray]] = (),
    diagonal: float = 0.0,
) -> LesionScores:
    """Scores by lesion of two masks (Z, Y, X) of one class; ``spacing_mm`` is (z, y, x).

    ``tissues``: prediction and reference of each of ``rule.joined_by``. ``diagonal`` of the whole image, in voxels.
    """
    if rule.matching == "overlap":
        matched, num_predicted, num_lesions = _touching(prediction, reference, rule, math.prod(spacing_mm), tissues)
    else:
        matched, num_predicted, num_lesions = _one_to_one(prediction, reference, rule, math.prod(spacing_mm))
    found = sum(bool(own) and dice >= rule.least_dice for _, own, dice in matched.of_lesion)
    pairs = [(lesion, own, dice) for lesion, own, dice in matched.of_lesion if own]
    apart = len(matched.of_lesion) - len(pairs) + matched.false_positive * rule.false_positives_count
    extra = [0.0] * apart if rule.misses_count else [0.0] * (not pairs and apart > 0)
    return LesionScores(
        found=found,
        missed=len(matched.of_lesion) - found,
        false_positive=matched.false_positive,
        count_error=num_predicted - num_lesions,
        dice=_mean([*(dice for _, _, dice in pairs), *extra]),
        hausdorff95_mm=_distance(matched, pairs, len(extra), rule, spacing_mm, diagonal) if rule.distances else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _components(mask: BoolArray, connectivity: int) -> tuple[NDArray[np.int32], int]:
    labelled, number = ndimage.label(mask, ndimage.generate_binary_structure(3, CONNECTIVITY[connectivity]))
    return labelled, int(number)


def _touching(
    prediction: BoolArray,
    reference: BoolArray,
    rule: LesionRule,
    voxel_mm3: float,
    tissues: Sequence[tuple[BoolArray, BoolArray]],
) -> tuple[_Matched, int, int]:
    """Predicted components that touch each lesion, and the numbers of components and lesions."""
    zones, number = _zones(reference, rule)
    if rule.predictions_alike:
        predicted, num_predicted = _large_lesions(prediction, rule, voxel_mm3)
    else:
        predicted, num_predicted = _components(prediction, rule.connectivity)
    for tissue, (other_prediction, other_reference) in zip(rule.joined_by, tissues, strict=True):
        own = LesionRule(connectivity=rule.connectivity, dilation=tissue.dilation, ignored_mm3=tissue.ignored_mm3)
        others = np.where(other_reference, _zones(other_reference, own)[0], 0)
        joined = _joined(np.where(reference, zones, 0), others, number)
        zones, number = joined[zones], int(joined.max())
        joined = _joined(predicted, _large_lesions(other_prediction, own, voxel_mm3)[0], num_predicted)
        predicted, num_predicted = joined[predicted], int(joined.max())
    lesions = np.where(reference, zones, 0)
    sizes, predicted_sizes = np.bincount(lesions.ravel(), minlength=number + 1), np.bincount(predicted.ravel())
    touching, common = _pairs(zones, predicted), dict(_pairs(lesions, predicted))
    touched: dict[int, list[int]] = {}
    for (zone, component), _ in touching:
        touched.setdefault(zone, []).append(component)
    of_lesion = []
    for lesion in np.flatnonzero(sizes[1:] * voxel_mm3 > rule.ignored_mm3) + 1:
        components = tuple(touched.get(int(lesion), ()))
        shared = sum(common.get((int(lesion), component), 0) for component in components)
        total = int(sizes[lesion]) + sum(int(predicted_sizes[component]) for component in components)
        of_lesion.append((int(lesion), components, 2 * shared / total))
    false_positive = num_predicted - len({component for (_, component), _ in touching})
    matched = _Matched(lesions=lesions, predicted=predicted, of_lesion=tuple(of_lesion), false_positive=false_positive)
    return matched, num_predicted, number


def _zones(mask: BoolArray, rule: LesionRule) -> tuple[NDArray[np.int32], int]:
    """Components of the dilated mask: what lies in one of them is one lesion."""
    return _components(
        ndimage.binary_dilation(mask, EDGES, rule.dilation) if rule.dilation else mask, rule.connectivity
    )


def _large_lesions(mask: BoolArray, rule: LesionRule, voxel_mm3: float) -> tuple[NDArray[np.int32], int]:
    """Lesions of a mask, numbered from 1 on, without those of at most the volume that is ignored."""
    zones, number = _zones(mask, rule)
    lesions = np.where(mask, zones, 0)
    kept = np.bincount(lesions.ravel(), minlength=number + 1) * voxel_mm3 > rule.ignored_mm3
    kept[0] = False
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return numbers[lesions], int(numbers.max())


def _joined(lesions: NDArray[np.int32], others: NDArray[np.int32], number: int) -> NDArray[np.int32]:
    """New number of each lesion, from 0 (none) on: lesions have one number if the first of ``others`` that they touch is the same."""
    first: dict[int, int] = {}
    for step in np.argwhere(EDGES) - 1:
        near = tuple(slice(max(0, move), size + min(0, move)) for move, size in zip(step, lesions.shape, strict=True))
        far = tuple(slice(max(0, -move), size + min(0, -move)) for move, size in zip(step, lesions.shape, strict=True))
        for (lesion, other), _ in _pairs(lesions[near], others[far]):
            first[lesion] = min(first.get(lesion, other), other)
    groups = [(first[each], 0) if each in first else (0, each) for each in range(1, number + 1)]
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups), 1)}
    return np.array([0, *(numbers[group] for group in groups)], np.int32)


def _one_to_one(
    prediction: BoolArray, reference: BoolArray, rule: LesionRule, voxel_mm3: float
) -> tuple[_Matched, int, int]:
    """The assignment of components to lesions with the largest sum of Dice, and the numbers of components and lesions."""
    from scipy.optimize import linear_sum_assignment  # loaded when asked for

    predicted, num_predicted = _components(prediction, rule.connectivity)
    lesions, number = _components(reference, rule.connectivity)
    sizes = np.bincount(lesions.ravel(), minlength=number + 1)[1:]
    predicted_sizes = np.bincount(predicted.ravel(), minlength=num_predicted + 1)[1:]
    dice = np.zeros((number, num_predicted))
    for (lesion, component), shared in _pairs(lesions, predicted):
        dice[lesion - 1, component - 1] = 2 * shared / (sizes[lesion - 1] + predicted_sizes[component - 1])
    partner = {
        int(row): int(column)
        for row, column in zip(*linear_sum_assignment(dice, maximize=True), strict=True)
        if dice[row, column] > 0
    }
    of_lesion = tuple(
        (int(row) + 1, (partner[row] + 1,), float(dice[row, partner[row]]))
        if row in partner
        else (int(row) + 1, (), 0.0)
        for row in map(int, np.flatnonzero(sizes * voxel_mm3 > rule.ignored_mm3))
    )
    false_positive = num_predicted - len(partner)
    matched = _Matched(lesions=lesions, predicted=predicted, of_lesion=of_lesion, false_positive=false_positive)
    return matched, num_predicted, number


def _pairs(first: NDArray[np.int32], second: NDArray[np.int32]) -> list[tuple[tuple[int, int], int]]:
    """Numbers above 0 that lie on each other, and in how many voxels, in order."""
    both = (first > 0) & (second > 0)
    width = int(second.max(initial=0)) + 1
    codes, counts = np.unique(first[both].astype(np.int64) * width + second[both], return_counts=True)
    return [(divmod(int(code), width), int(count)) for code, count in zip(codes, counts, strict=True)]


def _distance(
    matched: _Matched,
    pairs: Sequence[tuple[int, tuple[int, ...], float]],
    num_apart: int,
    rule: LesionRule,
    spacing_mm: Spacing,
    diagonal: float,
) -> float | None:
    """Mean 95 % Hausdorff distance by lesion."""
    boxes = [ndimage.find_objects(array) if pairs else [] for array in (matched.lesions, matched.predicted)]
    measured = []
    for lesion, components, _ in pairs:
        found = [boxes[0][lesion - 1], *(boxes[1][component - 1] for component in components)]
        box = tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*found, strict=True))
        masks = np.isin(matched.predicted[box], components), matched.lesions[box] == lesion
        measured.append(_distance_of(masks, rule, spacing_mm))
    missing_mm = diagonal if rule.missing_mm == "diagonal" else rule.missing_mm
    apart = [] if missing_mm is None else [missing_mm] * num_apart
    return _mean([*(each for each in measured if each is not None), *apart])


def _distance_of(masks: tuple[BoolArray, BoolArray], rule: LesionRule, spacing_mm: Spacing) -> float | None:
    if rule.distance == "border":
        return border_distance(*masks, spacing_mm)
    return surface_scores(masks, None, spacing_mm, 0.0)[0]


# --- detection curve ---

FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False detections a case at which the sensitivity is read and averaged, as in LUNA16 (Setio et al. 2017)."""
FROC_FLOOR = 0.1
"""Voxels below this probability belong to no candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections:
    """Candidates of one case, for the detection curve."""

    num_lesions: int
    hits: tuple[float, ...]
    """For each reference lesion that a candidate touches, the largest probability in those that do."""
    false: tuple[float, ...]
    """The largest probability in each candidate that touches no lesion."""


class DetectionCurve(Document):
    """Free-response curve (FROC): sensitivity by false detections a case."""

    thresholds: tuple[float, ...]
    """Of the probability, falling."""
    false_per_case: tuple[float, ...]
    sensitivity: tuple[float, ...]
    at_rates: dict[str, float]
    """Sensitivity at each of `FROC_RATES`, the largest that is reached with at most so many."""
    score: float
    """Their mean."""
    num_cases: int
    num_lesions: int


def find_detections(probability: NDArray[np.floating], reference: BoolArray) -> Detections:
    """Candidates in a map of probabilities (Z, Y, X): components from `FROC_FLOOR` on, each as sure as its surest voxel."""
    lesions, number = _components(reference, 26)
    candidates, num_candidates = _components(np.asarray(probability >= FROC_FLOOR), 26)
    if not num_candidates:
        return Detections(num_lesions=number, hits=(), false=())
    sure = np.asarray(ndimage.maximum(probability, candidates, np.arange(1, num_candidates + 1)), np.float64)
    best: dict[int, float] = {}
    touching = set()
    for (lesion, candidate), _ in _pairs(lesions, candidates):
        best[lesion] = max(best.get(lesion, 0.0), float(sure[candidate - 1]))
        touching.add(candidate)
    false = tuple(float(each) for i, each in enumerate(sure, 1) if i not in touching)
    return Detections(num_lesions=number, hits=tuple(best.values()), false=false)


def detection_curve(cases: Sequence[Detections]) -> DetectionCurve | None:
    """The curve over all cases; none where no reference has a lesion."""
    num_lesions = sum(case.num_lesions for case in cases)
    if not num_lesions:
        return None
    hits = np.sort([each for case in cases for each in case.hits])[::-1]
    false = np.sort([each for case in cases for each in case.false])[::-1]
    thresholds = np.unique(np.concatenate([hits, false]))[::-1]
    found = np.searchsorted(-hits, -thresholds, side="right") / num_lesions
    wrong = np.searchsorted(-false, -thresholds, side="right") / len(cases)
    at_rates = {f"{rate:g}": float(found[wrong <= rate].max(initial=0.0)) for rate in FROC_RATES}
    return DetectionCurve(
        thresholds=tuple(thresholds.tolist()),
        false_per_case=tuple(wrong.tolist()),
        sensitivity=tuple(found.tolist()),
        at_rates=at_rates,
        score=sum(at_rates.values()) / len(at_rates),
        num_cases=len(cases),
        num_lesions=num_lesions,
    )

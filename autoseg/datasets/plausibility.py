"""Compares label maps with each other: those that do not seem to belong, and classes that hardly occur."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.datasets.dataset import DatasetDescription, Finding
from autoseg.imaging.volume import Geometry
from planners import LabelClass

MIN_OTHERS = 5
"""With fewer other cases nothing is called unusual."""
MIN_OTHERS_WITH_CLASS = 10
USUAL_SHARE = 0.95
"""A class that so many of the others have is expected in every case."""
MAX_SPACING_RATIO = 3.0
MAX_SIZE_RATIO = 10.0
MAX_VOLUME_RATIO = 10.0
"""Scanners, fields of view and tumours of one collection do differ by less, unless their spread says otherwise."""
MAX_DEVIATIONS = 6.0
"""Robust standard deviations (1.4826 x median absolute deviation) of the others' logarithms that are still usual."""
NUM_SIGNS_OF_ERROR = 3
"""So many signs at once mean another kind of data, not an unusual case."""
RARE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """One label map: where it is, its grid in canonical axes, and the voxels of each file value."""

    case_id: str
    path: str
    paired: bool
    """Whether it has an image; one without is compared with the others, never they with it."""
    geometry: Geometry
    counts: Mapping[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Usual:
    """What label maps with an image are like."""

    num_cases: int
    spacings_mm: NDArray[np.float64]
    """(cases, 3)"""
    shapes: NDArray[np.int64]
    """(cases, 3)"""
    volumes_ml: NDArray[np.float64]
    """Of the foreground, of those that have any."""
    num_having: tuple[int, ...]
    """Label maps that have each class."""

    @classmethod
    def of(cls, facts: Sequence[LabelFacts], dataset: DatasetDescription) -> _Usual:
        volumes = [_foreground_ml(fact, dataset) for fact in facts]
        return cls(
            num_cases=len(facts),
            spacings_mm=np.array([fact.geometry.spacing_mm for fact in facts]).reshape(-1, 3),
            shapes=np.array([fact.geometry.shape for fact in facts], np.int64).reshape(-1, 3),
            volumes_ml=np.array([volume for volume in volumes if volume > 0]),
            num_having=tuple(sum(_has(fact, label, dataset) for fact in facts) for label in dataset.labels.classes),
        )


def implausible_labels(facts: Sequence[LabelFacts], dataset: DatasetDescription) -> list[Finding]:
    """Label maps whose spacing, size, foreground volume or classes are unlike those of the others.

    Each quantity is compared by its logarithm with the median of all label maps that have an image: unusual is what is
    off by more than a fixed ratio and by more than `MAX_DEVIATIONS` robust standard deviations. A warning; with
    `NUM_SIGNS_OF_ERROR` signs an error. Nothing is said with fewer than `MIN_OTHERS` others.
    """
    usual = _Usual.of([fact for fact in facts if fact.paired], dataset)
    findings = []
    for fact in facts:
        num_others = usual.num_cases - fact.paired
        if num_others < MIN_OTHERS:
            continue
        signs = [*_grid_signs(fact, usual), *_volume_signs(fact, usual, dataset), *_class_signs(fact, usual, dataset)]
        if signs:
            findings.append(Finding(
                severity="error" if len(signs) >= NUM_SIGNS_OF_ERROR else "warning",
                case_id=fact.case_id,
                where=fact.path,
                found=f"the label map is unlike the {num_others} others: {'; '.join(signs)}",
                mend="make sure that it belongs to this dataset and to its image, or remove the case",
            ))
    return findings


def rare_classes(facts: Sequence[LabelFacts], dataset: DatasetDescription) -> list[Finding]:
    """Classes that no case has (warning), or only one or two of three or more (note)."""
    labelled = [fact for fact in facts if fact.paired]
    findings = []
    for label in dataset.labels.classes if labelled else ():
        values = [dataset.file_values[value] for value in label.values]
        cases = [fact.case_id for fact in labelled if _has(fact, label, dataset)]
        shown = f"class {label.name} ({'value' if len(values) == 1 else 'values'} {', '.join(map(str, values))})"
        if not cases:
            findings.append(Finding(
                severity="warning", case_id=None, where=dataset.root, found=f"no label map has {shown}",
                mend="correct its value in the dataset's description, or remove the class from it",
            ))
        elif len(cases) <= RARE < len(labelled):
            findings.append(Finding(
                severity="note", case_id=None, where=dataset.root,
                found=f"only {len(cases)} of {len(labelled)} label maps {'has' if len(cases) == 1 else 'have'} {shown}: "
                f"{', '.join(cases)}",
                mend="add cases with this class; it cannot be learned and validated well on so few",
            ))
    return findings


def _grid_signs(fact: LabelFacts, usual: _Usual) -> list[str]:
    signs = []
    own, others = fact.geometry.spacing_mm, usual.spacings_mm
    if any(_is_unusual(mm, column, MAX_SPACING_RATIO) for mm, column in zip(own, others.T, strict=True)):
        signs.append(f"spacing {_triple(own)} mm against a median of {_triple(np.median(others, axis=0))}")
    shape = fact.geometry.shape
    if _is_unusual(math.prod(shape), usual.shapes.prod(axis=1), MAX_SIZE_RATIO):
        signs.append(f"size {_triple(shape)} voxels against a median of {_triple(np.median(usual.shapes, axis=0))}")
    return signs


def _volume_signs(fact: LabelFacts, usual: _Usual, dataset: DatasetDescription) -> list[str]:
    own = _foreground_ml(fact, dataset)
    if own == 0 or len(usual.volumes_ml) <= MIN_OTHERS or not _is_unusual(own, usual.volumes_ml, MAX_VOLUME_RATIO):
        return []
    return [f"foreground of {own:.3g} ml against a median of {np.median(usual.volumes_ml):.3g}"]


def _class_signs(fact: LabelFacts, usual: _Usual, dataset: DatasetDescription) -> list[str]:
    num_others = usual.num_cases - fact.paired
    if num_others < MIN_OTHERS_WITH_CLASS or _foreground_ml(fact, dataset) == 0:  # empty ones are reported as such
        return []
    return [
        f"no voxel of {label.name}, which {having} of them have"
        for label, having in zip(dataset.labels.classes, usual.num_having, strict=True)
        if having >= USUAL_SHARE * num_others and not _has(fact, label, dataset)
    ]


def _has(fact: LabelFacts, label: LabelClass, dataset: DatasetDescription) -> bool:
    return any(fact.counts.get(dataset.file_values[value]) for value in label.values)


def _foreground_ml(fact: LabelFacts, dataset: DatasetDescription) -> float:
    voxels = sum(count for value, count in fact.counts.items() if value != dataset.file_values[0])
    return voxels * fact.geometry.voxel_volume_ml


def _is_unusual(own: float, others: NDArray[Any], max_ratio: float) -> bool:
    """Whether ``own`` (positive) is further from the median of ``others`` than ratio and spread allow."""
    logs = np.log(others)
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    return abs(math.log(own) - middle) > max(math.log(max_ratio), MAX_DEVIATIONS * spread)


def _triple(values: Iterable[float]) -> str:
    return "x".join(f"{value:.3g}" for value in values)

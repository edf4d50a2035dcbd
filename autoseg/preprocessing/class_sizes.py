"""How large the classes of a dataset are and into how many pieces they fall, and what of it a person should hear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, generate_binary_structure, label

from planners import ClassSize, Fingerprint, Labels

TINY_SHARE = 1e-4
"""Of the volume: of a class below it, a patch drawn anywhere shows nothing."""
MANY_COMPONENTS = 20
_TOUCHING = generate_binary_structure(3, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMeasure:
    """One class in one case."""

    num_voxels: int
    volume_ml: float
    share: float
    num_components: int


def measure_classes(
    labels: NDArray[np.integer[Any]], plan_labels: Labels, *, voxel_volume_ml: float
) -> tuple[ClassMeasure, ...]:
    """Size and pieces of every class or region in ``labels`` (Z, Y, X), internal values; in the order of declaration.

    Each is looked at inside its own box only. Voxels that touch, if only at a corner, are one piece.
    """
    boxes = dict(enumerate(find_objects(np.maximum(labels, 0)), start=1))
    return tuple(_measure(labels, entry.values, boxes, voxel_volume_ml) for entry in plan_labels.classes)


def _measure(
    labels: NDArray[np.integer[Any]], values: Sequence[int], boxes: dict[int, Any], voxel_volume_ml: float
) -> ClassMeasure:
    found = [box for value in values if (box := boxes.get(value)) is not None]
    if not found:
        return ClassMeasure(num_voxels=0, volume_ml=0.0, share=0.0, num_components=0)
    around = tuple(slice(min(box[i].start for box in found), max(box[i].stop for box in found)) for i in range(3))
    mask = np.isin(labels[around], values)
    number = int(mask.sum())
    return ClassMeasure(
        num_voxels=number,
        volume_ml=number * voxel_volume_ml,
        share=number / labels.size,
        num_components=label(mask, _TOUCHING)[1],
    )


def pool_class_sizes(labels: Labels, cases: Sequence[Sequence[ClassMeasure]]) -> tuple[ClassSize, ...]:
    """Medians over the cases that have a class."""
    return tuple(_pool(entry.name, [case[i] for case in cases]) for i, entry in enumerate(labels.classes))


def _pool(name: str, measures: Sequence[ClassMeasure]) -> ClassSize:
    present = [measure for measure in measures if measure.num_voxels] or list(measures)
    return ClassSize(
        name=name,
        num_cases=sum(measure.num_voxels > 0 for measure in measures),
        median_volume_ml=median(measure.volume_ml for measure in present),
        median_share=median(measure.share for measure in present),
        median_components=float(median(measure.num_components for measure in present)),
    )


def describe_unusual_classes(fingerprint: Fingerprint) -> tuple[str, ...]:
    """A sentence on each class that is hard to learn by its size: absent, tiny, or in many pieces."""
    sentences = (_unusual(size, fingerprint.num_training_cases) for size in fingerprint.class_sizes)
    return tuple(sentence for sentence in sentences if sentence)


def _unusual(size: ClassSize, num_cases: int) -> str:
    if size.num_cases == 0:
        return f"{size.name} is in none of the {num_cases} training cases; nothing can be learnt of it"
    traits = []
    if size.median_share < TINY_SHARE:
        traits.append(f"fills {100 * size.median_share:.2g} % of the volume ({size.median_volume_ml:.3g} ml)")
    if size.median_components > MANY_COMPONENTS:
        traits.append(f"lies in {size.median_components:g} separate pieces")
    if not traits:
        return ""
    among = (
        "the only case that has it" if size.num_cases == 1 else f"the median of the {size.num_cases} cases that have it"
    )
    where = "the median case" if size.num_cases == num_cases else among
    return f"{size.name} {' and '.join(traits)} in {where}; expect scores that vary from case to case"

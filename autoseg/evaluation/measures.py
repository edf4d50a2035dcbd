"""Measures of masks that some challenges take besides those of all results, each as the challenge's own code does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from autoseg.evaluation.metrics import EvaluatedClass
from autoseg.evaluation.surfaces import SHARE, BoolArray, IntArray, Spacing, border_distance, border_distances

Measure = Callable[[BoolArray, BoolArray, Spacing, float], float | None]
"""Of the box (Z, Y, X) around prediction and reference, with the spacing (z, y, x) in mm and the image's diagonal in voxels; none: undefined."""


def _assd_mm(prediction: BoolArray, reference: BoolArray, spacing_mm: Spacing, _: float) -> float | None:
    """Mean symmetric surface distance as medpy's ``assd`` until 0.4: the mean of the means of both ways between border voxels."""
    ways = border_distances(prediction, reference, spacing_mm)
    return None if ways is None else float(np.mean([way.mean() for way in ways]))


def _pooled_assd_mm(prediction: BoolArray, reference: BoolArray, spacing_mm: Spacing, _: float) -> float | None:
    """The mean over the border voxels of both masks together, as medpy's ``assd`` from 0.5 on."""
    ways = border_distances(prediction, reference, spacing_mm)
    return None if ways is None else float(np.concatenate(ways).mean())


def _hausdorff_mm(prediction: BoolArray, reference: BoolArray, spacing_mm: Spacing, _: float) -> float | None:
    """The largest distance of a border voxel from the other mask's border."""
    ways = border_distances(prediction, reference, spacing_mm)
    return None if ways is None else float(np.concatenate(ways).max())


def _border_hausdorff95_mm(prediction: BoolArray, reference: BoolArray, spacing_mm: Spacing, _: float) -> float | None:
    return border_distance(prediction, reference, spacing_mm)


def _border_hausdorff95_voxels(
    prediction: BoolArray, reference: BoolArray, _: Spacing, diagonal: float
) -> float | None:
    """medpy's ``hd95`` without a spacing; one empty: the distance of opposite corners of the image."""
    if prediction.any() != reference.any():
        return diagonal
    return border_distance(prediction, reference, (1.0, 1.0, 1.0))


def _contour_hausdorff95_mm(prediction: BoolArray, reference: BoolArray, spacing_mm: Spacing, _: float) -> float | None:
    """The larger of the 95th percentiles of both ways, between voxels with a neighbour (of 26) outside of the mask or the image."""
    ways = border_distances(prediction, reference, spacing_mm, corners=True)
    return None if ways is None else float(max(np.percentile(way, 100 * SHARE) for way in ways))


def _centreline_dice(prediction: BoolArray, reference: BoolArray, *_: Spacing | float) -> float | None:
    """Harmonic mean of the shares of each mask's skeleton inside of the other mask (Shit et al. 2021); 0 where either is 0."""
    if not (prediction.any() or reference.any()):
        return None
    shares = [_share_inside(prediction, reference), _share_inside(reference, prediction)]
    return 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0


def _share_inside(mask: BoolArray, other: BoolArray) -> float:
    from skimage.morphology import skeletonize  # loaded when asked for

    if not mask.any():
        return 0.0
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    skeleton = np.asarray(skeletonize(mask[box], method="lee")) > 0  # type: ignore[no-untyped-call]
    return float(skeleton[other[box]].sum() / skeleton.sum()) if skeleton.any() else 0.0


MEASURES: dict[str, Measure] = {
    "assd_mm": _assd_mm,
    "pooled_assd_mm": _pooled_assd_mm,
    "hausdorff_mm": _hausdorff_mm,
    "border_hausdorff95_mm": _border_hausdorff95_mm,
    "border_hausdorff95_voxels": _border_hausdorff95_voxels,
    "contour_hausdorff95_mm": _contour_hausdorff95_mm,
    "centreline_dice": _centreline_dice,
}


def measure_classes(
    prediction: IntArray,
    reference: IntArray,
    classes: Sequence[EvaluatedClass],
    spacing_mm: Spacing,
    ignore: int | None = None,
) -> dict[str, dict[str, float | None]]:
    """The measures that each class asks for, by `EvaluatedClass.key`, of label maps (Z, Y, X); ``spacing_mm`` is (z, y, x).

    Distances are none where either mask is empty, unless the measure says otherwise. Voxels whose reference is ``ignore`` belong to no mask.
    """
    asking = [each for each in classes if each.measures]
    highest = max((value for each in asking for value in each.values), default=1)
    found = [ndimage.find_objects(array, max_label=highest) for array in (prediction, reference)] if asking else []
    measured = {}
    for each in asking:
        boxes = [box for of in found for value in each.values if (box := of[value - 1]) is not None]
        sides = zip(*boxes, strict=True) if boxes else ((slice(0, 0),) for _ in reference.shape)
        box = tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)
        masks = [np.isin(array[box], each.values) for array in (prediction, reference)]
        if ignore is not None:
            masks = [mask & (reference[box] != ignore) for mask in masks]
        measured[each.key] = {
            name: MEASURES[name](masks[0], masks[1], spacing_mm, math.hypot(*reference.shape)) for name in each.measures
        }
    return measured

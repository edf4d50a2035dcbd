"""How well a predicted label map agrees with its reference: overlap, volume and distance of surfaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from scipy import ndimage
from scipy.spatial import cKDTree

from autoseg.issues import AutosegError, Issue
from planners import Document, Labels

IntArray = NDArray[np.integer]
BoolArray = NDArray[np.bool_]
Box = tuple[slice, ...]

DEFAULT_TOLERANCE_MM = 1.0
"""Surfaces closer than this count as equal in the surface Dice: about one voxel of a finely resolved volume."""

PERCENTILE = 95.0
BOX_MARGIN = 1
"""Voxels around a class that are compared, too: an ignored neighbour decides whether a voxel is at the surface."""
ROUNDING = 1e-6
"""Relative slack of the tolerance, so that three steps of 0.1 mm lie within 0.3 mm."""

STORED_NAMES = {"dice": "Dice", "iou": "IoU", "tp": "TP", "fp": "FP", "fn": "FN", "tn": "TN"}
"""Names of fields in ``summary.json``, where they differ (method section 9.1)."""


def stored_name(field: str) -> str:
    """Name of a metric in ``summary.json``."""
    return STORED_NAMES.get(field, field)


class EvaluatedClass(Document):
    """A class or region that is scored: the union of ``values`` in both label maps."""

    name: str
    values: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]

    @property
    def key(self) -> str:
        """The class in ``summary.json``: ``1``, or ``(1, 2, 3)`` for a region (method section 9.1)."""
        return str(self.values[0]) if len(self.values) == 1 else str(self.values)


def evaluated_classes(labels: Labels, file_values: Sequence[int] | None = None) -> tuple[EvaluatedClass, ...]:
    """The classes of a dataset, in declaration order.

    ``file_values[i]`` is the value in the user's files of internal value i; none: internal values are scored.
    """
    return tuple(
        EvaluatedClass(
            name=label.name,
            values=label.values if file_values is None else tuple(file_values[value] for value in label.values),
        )
        for label in labels.classes
    )


class ClassMetrics(Document):
    """Scores of one class in one case. None if undefined, see `compare`."""

    model_config = ConfigDict(alias_generator=stored_name, populate_by_name=True)

    dice: float | None
    iou: float | None
    tp: int
    fp: int
    fn: int
    tn: int
    n_pred: int
    """Predicted voxels, ``tp + fp``."""
    n_ref: int
    """Reference voxels, ``tp + fn``."""
    volume_prediction_ml: float
    volume_reference_ml: float
    hausdorff95_mm: float | None
    surface_dice: float | None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.n_pred != self.tp + self.fp or self.n_ref != self.tp + self.fn:
            raise ValueError("n_pred must be TP + FP and n_ref must be TP + FN")
        return self


def compare(
    prediction: IntArray,
    reference: IntArray,
    *,
    classes: Sequence[EvaluatedClass],
    spacing_mm: tuple[float, float, float],
    ignore: int | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> dict[str, ClassMetrics]:
    """Scores of each class of one case, by class name in the order of ``classes``.

    ``prediction`` and ``reference`` are integer (Z, Y, X) of one shape; 2D data has Z = 1. ``spacing_mm`` is (z, y, x).
    Voxels whose reference is ``ignore`` take no part in anything.

    Overlap (method section 9.1): Dice = 2 TP / (2 TP + FP + FN), IoU = TP / (TP + FP + FN).

    Surfaces: a *surface voxel* belongs to the mask and has a face neighbour that does not; the outside of the image does
    not, ignored voxels count as belonging, and axes of size 1 have no neighbours. The 95 % Hausdorff
    distance is the larger of the two directed 95th percentiles (linear interpolation) of the distances in mm from the
    centre of each surface voxel to the nearest one of the other mask. The normalised surface Dice is the share of all
    surface voxels of both masks that lie within ``tolerance_mm`` of the other surface.

    Conventions:

    * both empty: Dice, IoU, Hausdorff distance and surface Dice are none; nothing was there to find;
    * one empty: Dice, IoU and surface Dice are 0, the Hausdorff distance is none (it would be infinite);
    * a mask that touches nothing but ignored voxels has no surface and counts as empty for the surface scores alone.

    Raises `AutosegError` where shapes differ and `ValueError` for classes that share a name or their values.
    """
    _check_input(prediction, reference, classes)
    boxes = _boxes(prediction, classes), _boxes(reference, classes)
    ignored_total = 0 if ignore is None else int(np.count_nonzero(reference == ignore))
    scores = {}
    for number, each in enumerate(classes):
        box = _union(boxes[0][number], boxes[1][number], reference.shape)
        values = np.array(each.values)
        ignored = None if ignore is None else reference[box] == ignore
        masks = _mask(prediction[box], values, ignored), _mask(reference[box], values, ignored)
        flat = tuple(axis for axis, size in enumerate(reference.shape) if size == 1)
        surfaces = _surface(masks[0], ignored, flat), _surface(masks[1], ignored, flat)
        scores[each.name] = _score(
            masks, _distances(*surfaces, spacing_mm), reference.size - ignored_total, spacing_mm, tolerance_mm
        )
    return scores


def dice_coefficient(tp: int, n_pred: int, n_ref: int) -> float | None:
    """Dice from counts; none where both masks are empty."""
    return 2 * tp / (n_pred + n_ref) if n_pred + n_ref else None


def _check_input(prediction: IntArray, reference: IntArray, classes: Sequence[EvaluatedClass]) -> None:
    if prediction.shape != reference.shape or prediction.ndim != 3:
        raise AutosegError(
            Issue(
                code="evaluation.shape_mismatch",
                where="prediction",
                message=f"has shape {prediction.shape} but its reference has {reference.shape} (z, y, x)",
                fix="compare a prediction with the reference of the same case, on the same grid",
            )
        )
    for what in ([each.name for each in classes], [each.key for each in classes]):
        if len(set(what)) != len(what):
            raise ValueError(f"classes must have distinct names and values, found {what}")


def _boxes(array: IntArray, classes: Sequence[EvaluatedClass]) -> list[Box | None]:
    """Tight box of each class; none where it does not occur. One pass over the array."""
    highest = max((value for each in classes for value in each.values), default=1)
    found = ndimage.find_objects(array, max_label=highest)
    boxes = []
    for each in classes:
        own = [found[value - 1] for value in each.values if found[value - 1] is not None]
        boxes.append(_enclosing(own) if own else None)
    return boxes


def _enclosing(boxes: Sequence[Box]) -> Box:
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def _union(first: Box | None, second: Box | None, shape: tuple[int, ...]) -> Box:
    """The box of both, wider by `BOX_MARGIN` inside the image."""
    present = [box for box in (first, second) if box is not None]
    if not present:
        return tuple(slice(0, 0) for _ in shape)
    return tuple(
        slice(max(0, axis.start - BOX_MARGIN), min(size, axis.stop + BOX_MARGIN))
        for axis, size in zip(_enclosing(present), shape, strict=True)
    )


def _mask(array: IntArray, values: IntArray, ignored: BoolArray | None) -> BoolArray:
    mask: BoolArray = array == values[0] if len(values) == 1 else np.isin(array, values)
    return mask if ignored is None else mask & ~ignored


def _surface(mask: BoolArray, ignored: BoolArray | None, flat: tuple[int, ...]) -> BoolArray:
    """Voxels of ``mask`` with a face neighbour outside of it, along axes that are not ``flat``."""
    solid = np.pad(mask if ignored is None else mask | ignored, 1)
    inside = mask.copy()
    for axis in range(mask.ndim):
        if axis in flat:
            continue
        for neighbour in (slice(None, -2), slice(2, None)):
            inside &= solid[tuple(neighbour if a == axis else slice(1, -1) for a in range(mask.ndim))]
    return mask & ~inside


def _distances(
    first: BoolArray, second: BoolArray, spacing_mm: tuple[float, float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Distance in mm from each voxel of one surface to the other, both ways; none where both are empty."""
    if not first.any() and not second.any():
        return None
    return _distances_to(first, second, spacing_mm), _distances_to(second, first, spacing_mm)


def _distances_to(start: BoolArray, target: BoolArray, spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Distance in mm from each voxel of ``start`` to the nearest of ``target``, in no special order.

    A tree over surface voxels instead of a distance transform over the volume: time goes with the surface.
    """
    distances = np.zeros(np.count_nonzero(start))
    apart = np.argwhere(start & ~target) * spacing_mm
    if not target.any():
        distances[:] = np.inf
    elif len(apart):
        # an unbalanced tree gives the same answers and is built in half the time
        tree = cKDTree(np.argwhere(target) * spacing_mm, balanced_tree=False)
        distances[: len(apart)] = tree.query(apart)[0]
    return distances


def _score(
    masks: tuple[BoolArray, BoolArray],
    distances: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    num_voxels: int,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
) -> ClassMetrics:
    n_pred, n_ref = (int(np.count_nonzero(mask)) for mask in masks)
    tp = int(np.count_nonzero(masks[0] & masks[1]))
    union = n_pred + n_ref - tp
    voxel_ml = math.prod(spacing_mm) / 1000
    return ClassMetrics(
        dice=dice_coefficient(tp, n_pred, n_ref),
        iou=tp / union if union else None,
        tp=tp,
        fp=n_pred - tp,
        fn=n_ref - tp,
        tn=num_voxels - union,
        n_pred=n_pred,
        n_ref=n_ref,
        volume_prediction_ml=n_pred * voxel_ml,
        volume_reference_ml=n_ref * voxel_ml,
        hausdorff95_mm=_hausdorff(distances),
        surface_dice=_surface_dice(distances, tolerance_mm),
    )


def _hausdorff(distances: tuple[NDArray[np.float64], NDArray[np.float64]] | None) -> float | None:
    if distances is None or not len(distances[0]) or not len(distances[1]):
        return None
    return max(float(np.percentile(each, PERCENTILE)) for each in distances)


def _surface_dice(
    distances: tuple[NDArray[np.float64], NDArray[np.float64]] | None, tolerance_mm: float
) -> float | None:
    if distances is None:
        return None
    both = np.concatenate(distances)
    return float(np.count_nonzero(both <= tolerance_mm * (1 + ROUNDING)) / both.size)

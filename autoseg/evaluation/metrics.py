"""How well a predicted label map agrees with its reference: overlap, volume and distance of surfaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
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
FloatArray = NDArray[np.float64]
Spacing = tuple[float, float, float]

DEFAULT_TOLERANCE_MM = 1.0
"""Surfaces closer than this count as equal in the surface Dice: about one voxel of a finely resolved volume."""

SHARE = 0.95
BOX_MARGIN = 1
"""Voxels around a class that are compared, too: next to an ignored one there is no surface."""
ROUNDING = 1e-6
"""Relative slack of the tolerance and of `SHARE`, so that three steps of 0.1 mm lie within 0.3 mm."""

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
    spacing_mm: Spacing,
    ignore: int | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> dict[str, ClassMetrics]:
    """Scores of each class of one case, by class name in the order of ``classes``.

    ``prediction`` and ``reference`` are integer (Z, Y, X) of one shape; 2D data has Z = 1. ``spacing_mm`` is (z, y, x).
    Voxels whose reference is ``ignore`` take no part in anything.

    Overlap (method section 9.1): Dice = 2 TP / (2 TP + FP + FN), IoU = TP / (TP + FP + FN).

    Surfaces, as in DeepMind's ``surface-distance`` (Nikolov et al. 2021): a surface has one element for each eight
    neighbouring voxels that are not all inside or all outside of the mask. It lies at their common corner and has the
    area of the marching cubes there, or their length along an image with an axis of size 1. Beyond the image is outside.
    Distances run from the elements of one mask to the nearest of the other. The normalised surface Dice is the share of
    both areas that lies within ``tolerance_mm``; the 95 % Hausdorff distance is the larger of the two distances within
    which 95 % of a mask's area lie. Where one of the eight voxels is ignored there is no surface.

    Conventions:

    * both empty: Dice, IoU, Hausdorff distance and surface Dice are none; nothing was there to find;
    * one empty: Dice, IoU and surface Dice are 0, the Hausdorff distance is none (it would be infinite);
    * a mask all of whose surface is next to ignored voxels: Hausdorff distance and surface Dice are none.

    Raises `AutosegError` where shapes differ and `ValueError` for classes that share a name or their values.
    """
    if prediction.shape != reference.shape or prediction.ndim != 3:
        message = f"has shape {prediction.shape} but its reference has {reference.shape} (z, y, x)"
        fix = "compare a prediction with the reference of the same case, on the same grid"
        raise AutosegError(
            Issue(code="evaluation.shape_mismatch", where="prediction", message=message, fix=fix),
        )
    for what in ([each.name for each in classes], [each.key for each in classes]):
        if len(set(what)) != len(what):
            raise ValueError(f"classes must have distinct names and values, found {what}")
    highest = max((value for each in classes for value in each.values), default=1)
    found = [ndimage.find_objects(array, max_label=highest) for array in (prediction, reference)]
    num_voxels = reference.size - (0 if ignore is None else int(np.count_nonzero(reference == ignore)))
    scores = {}
    for each in classes:
        boxes = [box for of in found for value in each.values if (box := of[value - 1]) is not None]
        box = _enclosing(boxes, reference.shape)
        ignored = None if ignore is None else reference[box] == ignore
        masks = _mask(prediction[box], each.values, ignored), _mask(reference[box], each.values, ignored)
        scores[each.name] = _score(masks, ignored, num_voxels, spacing_mm, tolerance_mm)
    return scores


def dice_coefficient(tp: int, n_pred: int, n_ref: int) -> float | None:
    """Dice from counts; none where both masks are empty."""
    return 2 * tp / (n_pred + n_ref) if n_pred + n_ref else None


def _enclosing(boxes: Sequence[tuple[slice, ...]], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The box around all boxes, wider by `BOX_MARGIN` inside the image; an empty one around none."""
    if not boxes:
        return tuple(slice(0, 0) for _ in shape)
    return tuple(
        slice(max(0, min(s.start for s in axis) - BOX_MARGIN), min(size, max(s.stop for s in axis) + BOX_MARGIN))
        for axis, size in zip(zip(*boxes, strict=True), shape, strict=True)
    )


def _mask(array: IntArray, values: tuple[int, ...], ignored: BoolArray | None) -> BoolArray:
    mask: BoolArray = array == values[0] if len(values) == 1 else np.isin(array, values)
    return mask if ignored is None else mask & ~ignored


def _score(
    masks: tuple[BoolArray, BoolArray],
    ignored: BoolArray | None,
    num_voxels: int,
    spacing_mm: Spacing,
    tolerance_mm: float,
) -> ClassMetrics:
    n_pred, n_ref = (int(np.count_nonzero(mask)) for mask in masks)
    tp = int(np.count_nonzero(masks[0] & masks[1]))
    union = n_pred + n_ref - tp
    voxel_ml = math.prod(spacing_mm) / 1000
    hausdorff95_mm, surface_dice = _surface_scores(masks, ignored, spacing_mm, tolerance_mm) if union else (None, None)
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
        hausdorff95_mm=hausdorff95_mm,
        surface_dice=surface_dice,
    )


def _surface_scores(
    masks: tuple[BoolArray, BoolArray], ignored: BoolArray | None, spacing_mm: Spacing, tolerance_mm: float
) -> tuple[float | None, float | None]:
    """Hausdorff distance and surface Dice of two masks (Z, Y, X) that are not both empty."""
    unscored = None if ignored is None else _corner_codes(ignored) > 0
    area_of_code = _area_of_codes(spacing_mm)
    surfaces, areas = [], []
    for mask in masks:
        codes = _corner_codes(mask)
        surface = (codes > 0) & (codes < 255)
        if unscored is not None:
            surface &= ~unscored
        surfaces.append(surface)
        areas.append(area_of_code[codes[surface]])
    if any(mask.any() and not len(area) for mask, area in zip(masks, areas, strict=True)):
        return None, None
    if not all(map(len, areas)):
        return None, 0.0
    distances = [_distances(surfaces[i], surfaces[1 - i], spacing_mm) for i in (0, 1)]
    near = [area[way <= tolerance_mm * (1 + ROUNDING)].sum() for area, way in zip(areas, distances, strict=True)]
    return max(map(_distance_within, distances, areas)), float(sum(near) / sum(area.sum() for area in areas))


def _corner_codes(mask: BoolArray) -> IntArray:
    """For each corner of voxels, the eight around it as bits of a number: bit 4 z + 2 y + x.

    The image ends with a corner on either side, along an axis of size 1 with none: both its neighbours are the voxel itself.
    """
    codes: IntArray = np.pad(mask.astype(np.uint8), [(int(size > 1),) * 2 for size in mask.shape])
    for bits in (1, 2, 4):  # x, y, z: each in turn is the last axis
        first, second = (codes, codes) if codes.shape[-1] == 1 else (codes[..., :-1], codes[..., 1:])
        codes = np.moveaxis(first | second << bits, -1, 0)
    return codes


@cache
def _triangles() -> tuple[NDArray[np.intp], FloatArray]:
    """Triangles of the surface in each of the 256 cells of eight voxels: code of its cell, and half the product of two sides,
    in voxels.

    Of each cell and its negative, the one with fewer voxels decides, so that both have the same surface and voxels which
    touch only along an edge are apart.
    """
    from skimage.measure import marching_cubes  # takes a third of a second to load

    bits = np.arange(256)[:, None] >> np.arange(8) & 1
    bits ^= bits.sum(axis=1, keepdims=True) > 4
    cells = bits.reshape(512, 2, 2).astype(float)  # one above the other; between two of them the surface means nothing
    vertices, faces, _, _ = marching_cubes(cells, 0.5, method="lorensen")  # type: ignore[no-untyped-call]
    corners = vertices[faces].astype(np.float64)
    layer = np.floor(corners[:, :, 0].mean(axis=1)).astype(np.intp)
    sides = corners[:, 1:] - corners[:, :1]
    inside = layer % 2 == 0
    return layer[inside] // 2, np.cross(sides[:, 0], sides[:, 1])[inside] / 2


def _area_of_codes(spacing_mm: Spacing) -> FloatArray:
    """Area in mm² of the surface in a cell, by its code."""
    z, y, x = spacing_mm
    codes, products = _triangles()
    areas = np.linalg.norm(products * (y * x, z * x, z * y), axis=1)
    return np.bincount(codes, weights=areas, minlength=256).astype(np.float64)


def _distances(start: BoolArray, target: BoolArray, spacing_mm: Spacing) -> FloatArray:
    """Distance in mm from each element of ``start``, in the order of the array, to the nearest of ``target``.

    A tree over the elements instead of a distance transform over the volume: time goes with the surface.
    """
    distances = np.zeros(np.count_nonzero(start))
    apart = ~target[start]
    if apart.any():
        # an unbalanced tree gives the same answers and is built in half the time
        tree = cKDTree(np.argwhere(target) * spacing_mm, balanced_tree=False)
        distances[apart] = tree.query(np.argwhere(start & ~target) * spacing_mm)[0]
    return distances


def _distance_within(distances: FloatArray, areas: FloatArray) -> float:
    """The smallest distance within which `SHARE` of the area lies."""
    order = np.argsort(distances)
    covered = np.cumsum(areas[order])
    return float(distances[order[np.searchsorted(covered, SHARE * (1 - ROUNDING) * covered[-1])]])

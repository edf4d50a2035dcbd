"""How well a predicted label map agrees with its reference: overlap, volume and distance of surfaces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    computed_field,
    model_serializer,
    model_validator,
)
from scipy import ndimage

from autoseg.evaluation.lesions import LesionRule, score_lesions
from autoseg.evaluation.surfaces import BoolArray, IntArray, Spacing, surface_scores
from autoseg.issues import AutosegError, Issue
from planners import Document, Labels

DEFAULT_TOLERANCE_MM = 1.0
"""Surfaces closer than this count as equal in the surface Dice: about one voxel of a finely resolved volume."""

BOX_MARGIN = 1
"""Voxels around a class that are compared, too: next to an ignored one there is no surface."""

STORED_NAMES = {"dice": "Dice", "iou": "IoU", "tp": "TP", "fp": "FP", "fn": "FN", "tn": "TN"}
"""Names of fields in ``summary.json``, where they differ (method section 9.1)."""


def stored_name(field: str) -> str:
    """Name of a metric in ``summary.json``."""
    return STORED_NAMES.get(field, field)


class EvaluatedClass(Document):
    """A class or region that is scored: the union of ``values`` in both label maps."""

    name: str
    values: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    tolerance_mm: Annotated[float, Field(ge=0)] | None = None
    """Of its surface Dice; none: that of all classes."""
    labelled_slices: bool = False
    """Whether it is scored only from the lowest slice (along z of the file) with this class in the reference up to the one below the highest."""
    lesions: LesionRule | None = None
    """Of its lesions; none: that of all classes."""
    measures: tuple[str, ...] = ()
    """Measures of `measures.MEASURES` that are taken of it, too."""

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
    """Scores of one class in one case. None if undefined, see `compare`.

    Rates and errors of volume follow from the counts; they are stored, and not read again.
    """

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
    lesions_found: int | None = None
    """This and all that follow are none where lesions were not asked for."""
    lesions_missed: int | None = None
    lesions_false_positive: int | None = None
    lesion_count_error: int | None = None
    """Predicted components minus reference lesions."""
    lesion_dice: float | None = None
    lesion_hausdorff95_mm: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_derived(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if name not in DERIVED} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.n_pred != self.tp + self.fp or self.n_ref != self.tp + self.fn:
            raise ValueError("n_pred must be TP + FP and n_ref must be TP + FN")
        return self

    @model_serializer(mode="wrap")
    def _without_lesions(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        stored: dict[str, Any] = handler(self)
        if self.lesions_found is not None:
            return stored
        return {name: value for name, value in stored.items() if not name.startswith("lesion")}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def sensitivity(self) -> float | None:
        """TP / (TP + FN); none without the class in the reference."""
        return self.tp / self.n_ref if self.n_ref else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def precision(self) -> float | None:
        """TP / (TP + FP); none without the class in the prediction."""
        return self.tp / self.n_pred if self.n_pred else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def specificity(self) -> float | None:
        """TN / (TN + FP); none without the class in either, or without other voxels. Near 1 in large images, whatever the model."""
        return self.tn / (self.tn + self.fp) if self.n_pred + self.n_ref and self.tn + self.fp else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def volume_error_ml(self) -> float | None:
        """Predicted minus reference volume; none without the class in either."""
        return self.volume_prediction_ml - self.volume_reference_ml if self.n_pred + self.n_ref else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def relative_volume_error(self) -> float | None:
        """The same, as a share of the reference volume; none without the class in the reference."""
        return self.n_pred / self.n_ref - 1 if self.n_ref else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lesion_sensitivity(self) -> float | None:
        """Share of reference lesions that were found; none without one to count."""
        return _share(self.lesions_found, self.lesions_missed)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lesion_precision(self) -> float | None:
        """Found / (found + false positive) lesions; none where there are neither."""
        return _share(self.lesions_found, self.lesions_false_positive)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lesion_f1(self) -> float | None:
        """2 found / (2 found + missed + false positive) lesions; none where there is no lesion in either."""
        counts = self.lesions_found, self.lesions_missed, self.lesions_false_positive
        if counts[0] is None or counts[1] is None or counts[2] is None:
            return None
        return 2 * counts[0] / (2 * counts[0] + counts[1] + counts[2]) if sum(filter(None, counts)) else None


def united_classes(
    unions: Mapping[str, Sequence[str]], classes: Sequence[EvaluatedClass]
) -> tuple[EvaluatedClass, ...]:
    """Unions of ``classes``, by the names of these; one that has the values of a class or another union is left out."""
    by_name, taken = {each.name: each for each in classes}, {frozenset(each.values) for each in classes}
    found = []
    for name, members in unions.items():
        values = frozenset(value for member in members for value in by_name[member].values)
        if values not in taken:
            taken.add(values)
            found.append(EvaluatedClass(name=name, values=tuple(sorted(values))))
    return tuple(found)


DERIVED = tuple(ClassMetrics.model_computed_fields)
"""Metrics that follow from the counts."""


def _share(found: int | None, other: int | None) -> float | None:
    if found is None or other is None:
        return None
    return found / (found + other) if found + other else None


def compare(
    prediction: IntArray,
    reference: IntArray,
    *,
    classes: Sequence[EvaluatedClass],
    spacing_mm: Spacing,
    ignore: int | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    lesions: LesionRule | None = None,
) -> dict[str, ClassMetrics]:
    """Scores of each class of one case, by class name in the order of ``classes``.

    ``prediction`` and ``reference`` are integer (Z, Y, X) of one shape; 2D data has Z = 1. ``spacing_mm`` is (z, y, x).
    Voxels whose reference is ``ignore`` take no part in anything.

    Overlap (method section 9.1): Dice = 2 TP / (2 TP + FP + FN), IoU = TP / (TP + FP + FN).

    Surface Dice and 95 % Hausdorff distance are those of `surfaces.surface_scores`; ``tolerance_mm`` is that of classes
    without their own. Where one of eight neighbouring voxels is ignored there is no surface. With ``lesions`` single lesions are
    scored, too (`lesions.score_lesions`).

    Conventions:

    * both empty: Dice, IoU, Hausdorff distance and surface Dice are none; nothing was there to find;
    * one empty: Dice, IoU and surface Dice are 0, the Hausdorff distance is none (it would be infinite);
    * a mask all of whose surface is next to ignored voxels: Hausdorff distance and surface Dice are none;
    * a rate whose denominator is 0 is none, and so is a mean over no lesion.

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
    wanted = [values for each in classes for values in (each.values, *_tissues(each.lesions or lesions))]
    highest = max((value for values in wanted for value in values), default=1)
    found = [ndimage.find_objects(array, max_label=highest) for array in (prediction, reference)]
    num_voxels = reference.size - (0 if ignore is None else int(np.count_nonzero(reference == ignore)))
    scores = {}
    for each in classes:
        rule = each.lesions or lesions
        tissues = _tissues(rule)
        values = (value for of_one in (each.values, *tissues) for value in of_one)
        boxes = [box for value in values for of in found if (box := of[value - 1]) is not None]
        box = _enclosing(boxes, reference.shape)
        if each.labelled_slices:
            box = (_labelled_slices(reference, each.values) or box[0], *box[1:])
        ignored = None if ignore is None else reference[box] == ignore
        masks = _mask(prediction[box], each.values, ignored), _mask(reference[box], each.values, ignored)
        tolerance = tolerance_mm if each.tolerance_mm is None else each.tolerance_mm
        pairs = [(_mask(prediction[box], of, ignored), _mask(reference[box], of, ignored)) for of in tissues]
        diagonal = math.hypot(*reference.shape)
        by_lesion = {} if rule is None else _lesion_fields(masks, rule, spacing_mm, pairs, diagonal)
        scores[each.name] = _score(masks, ignored, num_voxels, spacing_mm, tolerance, by_lesion)
    return scores


def _tissues(rule: LesionRule | None) -> tuple[tuple[int, ...], ...]:
    """Values of the tissues that join lesions."""
    return () if rule is None else tuple(tissue.values for tissue in rule.joined_by)


def _labelled_slices(reference: IntArray, values: tuple[int, ...]) -> slice | None:
    """From the lowest to below the highest slice of a class; none where it is absent."""
    found = np.flatnonzero(np.isin(reference, values).any(axis=(1, 2)))
    return slice(int(found[0]), int(found[-1])) if len(found) else None


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
    by_lesion: Mapping[str, Any],
) -> ClassMetrics:
    n_pred, n_ref = (int(np.count_nonzero(mask)) for mask in masks)
    tp = int(np.count_nonzero(masks[0] & masks[1]))
    union = n_pred + n_ref - tp
    voxel_ml = math.prod(spacing_mm) / 1000
    hausdorff95_mm, surface_dice = surface_scores(masks, ignored, spacing_mm, tolerance_mm) if union else (None, None)
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
        **by_lesion,
    )


def _lesion_fields(
    masks: tuple[BoolArray, BoolArray],
    rule: LesionRule,
    spacing_mm: Spacing,
    tissues: Sequence[tuple[BoolArray, BoolArray]],
    diagonal: float,
) -> dict[str, Any]:
    scores = score_lesions(*masks, rule, spacing_mm, tissues=tissues, diagonal=diagonal)
    return {
        "lesions_found": scores.found,
        "lesions_missed": scores.missed,
        "lesions_false_positive": scores.false_positive,
        "lesion_count_error": scores.count_error,
        "lesion_dice": scores.dice,
        "lesion_hausdorff95_mm": scores.hausdorff95_mm,
    }

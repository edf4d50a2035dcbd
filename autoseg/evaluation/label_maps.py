"""Label maps from probabilities: the largest probability, of one model or several, and postprocessing (method sections 8.2, 9.3 and 9.5).

`autoseg.evaluation.rankseg` decides otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from skimage.measure import label

from autoseg.evaluation.surfaces import BoolArray, IntArray
from autoseg.imaging.resampling import raise_labels, write_overlaps
from autoseg.issues import AutosegError, Issue
from planners import Document, Labels

Floats = NDArray[np.floating]
LabelMap = NDArray[np.uint8 | np.uint16]
Decoder = Literal["argmax", "rankseg"]
"""``argmax``: the largest probability, of regions all above `THRESHOLD`. ``rankseg``: the largest expected Dice."""


class Probabilities(Protocol):
    """Probabilities (K, Z, Y, X), in memory or on disk; slices along Z are arrays."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, where: Any, /) -> NDArray[np.floating]: ...


Slab = tuple[slice, Sequence[NDArray[np.floating]]]
"""Rows of the first axis, and for each class the scores (rows, a1, a2) there."""

THRESHOLD = 0.5
"""A voxel belongs to a region whose probability is above this (method section 8.2)."""
SLAB_VOXELS = 2**20
"""Voxels that are decided or counted at once; counting takes 16 bytes for each."""
Counts = NDArray[np.int64]
"""(..., C, 3): of each class the voxels in prediction and reference, in the prediction, and in the reference."""
ROUNDING = 1e-6
"""Relative slack of volumes, so that ten voxels of 0.1 mm³ are not smaller than 1 mm³."""
SMALLEST_MM3 = tuple(digit * 10.0**power for power in range(5) for digit in (1, 2, 5))
"""Volumes below which components are removed on trial: 1 mm³ to 50 ml; for pictures without spacing, pixels."""


# --- the largest probability ---


def probability_slabs(probabilities: Probabilities) -> Iterator[Slab]:
    """Probabilities (K, Z, Y, X), slab by slab along Z."""
    for rows in _slabs(probabilities.shape[1:]):
        yield rows, list(probabilities[:, rows])


def _slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Rows of the first axis of a volume, so many together as have `SLAB_VOXELS`."""
    size = max(1, SLAB_VOXELS // max(1, math.prod(shape[1:])))
    return (slice(start, min(start + size, shape[0])) for start in range(0, shape[0], size))


def decide(scores: Sequence[Floats], labels: Labels) -> LabelMap:
    """Internal label values (...) from the probabilities (...) of each class or region.

    Classes: the one with the largest probability, the first of equals; the first is the background. Regions: each region
    whose probability is above `THRESHOLD` writes its value of ``region_order``, later ones over earlier ones; combinations that this would
    lose have values of their own (`planners.Labels.overlaps`). ``uint8`` if there are fewer than 255 foreground values, else ``uint16``.
    """
    if labels.region_order is not None:
        return compose_regions([each > THRESHOLD for each in scores], labels)
    return largest_scores(scores, labels)[0]


def largest_scores(scores: Sequence[Floats], labels: Labels, *, leads: bool = False) -> tuple[LabelMap, Floats]:
    """The class with the largest of ``scores``, the first of equals, and that score; with ``leads`` how far it is above the others."""
    result = np.zeros(scores[0].shape, dtype=type_for(labels))
    best, second, spare = scores[0].copy(), None, np.empty_like(scores[0])
    for k, each in enumerate(
        scores[1:], 1
    ):  # class by class: argmax along a first axis is slow and makes 64-bit numbers
        if leads:
            np.minimum(best, each, out=spare)
            second = spare.copy() if second is None else np.maximum(second, spare, out=second)
        raise_labels(result, each > best, k)
        np.maximum(best, each, out=best)
    return result, best if second is None else np.subtract(best, second, out=best)


def compose_regions(masks: Sequence[NDArray[np.bool_]], labels: Labels) -> LabelMap:
    """Label values where regions are, one mask for each."""
    result = np.zeros(masks[0].shape, dtype=type_for(labels))
    for mask, value in zip(masks, labels.region_order or (), strict=True):
        result[mask] = value
    write_overlaps(result, masks, labels.overlaps)
    return result


def type_for(labels: Labels) -> type[np.uint8] | type[np.uint16]:
    """Of a label map."""
    return np.uint8 if max(labels.values) < 255 else np.uint16


# --- postprocessing ---


class KeepLargestComponent(Document):
    """Keep the largest connected component of the union of these classes; the other voxels become background."""

    kind: Literal["keep_largest_component"] = "keep_largest_component"
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of classes or regions, taken together as one mask."""

    def __str__(self) -> str:
        return f"largest component of {_together(self.classes)}"

    def removed(self, sizes: NDArray[np.integer], voxel_mm3: float) -> BoolArray:
        """Which components go, by their sizes in voxels; several of equal largest size all stay."""
        is_smaller: BoolArray = sizes < sizes.max(initial=0)
        return is_smaller


class RemoveSmallComponents(Document):
    """Remove connected components of the union of these classes that are smaller than a volume."""

    kind: Literal["remove_small_components"] = "remove_small_components"
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    smallest_mm3: Annotated[float, Field(gt=0)]
    """Components of this volume stay. For pictures without spacing: pixels."""

    def __str__(self) -> str:
        return f"components of {_together(self.classes)} from {self.smallest_mm3:g} mm³"

    def removed(self, sizes: NDArray[np.integer], voxel_mm3: float) -> BoolArray:
        """Which components go, by their sizes in voxels."""
        is_small: BoolArray = sizes * voxel_mm3 < self.smallest_mm3 * (1 - ROUNDING)
        return is_small


class FillHoles(Document):
    """Give a class the background that it encloses; other classes inside it stay."""

    kind: Literal["fill_holes"] = "fill_holes"
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=1)]

    def __str__(self) -> str:
        return f"holes of {self.classes[0]} filled"


Step = Annotated[KeepLargestComponent | RemoveSmallComponents | FillHoles, Field(discriminator="kind")]


def _together(classes: Sequence[str]) -> str:
    return classes[0] if len(classes) == 1 else f"{', '.join(classes)} together"


def apply_postprocessing(
    labels: IntArray, steps: Sequence[Step], classes: Labels, *, voxel_mm3: float
) -> NDArray[np.integer]:
    """A new label map after all steps, in order.

    ``labels`` is integer (Z, Y, X) with the internal values that ``classes`` describes; ``voxel_mm3`` is the volume of one of
    its voxels. Components are connected through faces, edges and corners (26 neighbours in 3D, 8 where an axis has size 1),
    and the background that a hole must be cut off from through faces. A voxel removed from a region becomes background for all its
    labels; a hole of a region gets the value that the region writes. Without steps, a copy. Raises `AutosegError` for a step on a class
    that does not exist.
    """
    result = labels.copy()
    for step in steps:
        mask = np.isin(result, _values_of(step, classes))
        if not (box := ndimage.find_objects(mask.astype(np.uint8), max_label=1)[0]):
            continue
        if isinstance(step, FillHoles):
            result[box][_holes(mask[box], labels.shape) & (result[box] == 0)] = _written(step, classes)
        else:
            components = _components(mask[box])
            goes = step.removed(np.bincount(components.reshape(-1))[1:], voxel_mm3)
            result[box][np.concatenate([[False], goes])[components]] = 0
    return result


def _values_of(step: Step, classes: Labels) -> list[int]:
    """Label values of the classes of a step."""
    known = {each.name: each.values for each in classes.classes}
    if missing := [name for name in step.classes if name not in known]:
        message = f"names {', '.join(missing)}, but the classes are {', '.join(known)}"
        fix = "use the postprocessing that was chosen for this dataset"
        raise AutosegError(Issue(code="postprocessing.unknown_class", where="postprocessing", message=message, fix=fix))
    return [value for name in step.classes for value in known[name]]


def _written(step: FillHoles, classes: Labels) -> int:
    """The value that filled voxels of a class or region get."""
    place = [each.name for each in classes.classes].index(step.classes[0])
    return classes.classes[place].values[0] if classes.region_order is None else classes.region_order[place]


def _components(mask: BoolArray) -> IntArray:
    components: IntArray = label(mask, connectivity=mask.ndim)  # type: ignore[no-untyped-call]
    return components


def _holes(mask: BoolArray, shape: tuple[int, ...]) -> BoolArray:
    """Voxels that ``mask``, a part of an array of ``shape``, encloses; in one slice, within the slice."""
    flat = tuple(axis for axis, size in enumerate(shape) if size == 1 < max(shape))
    inside = mask.squeeze(axis=flat)
    filled: BoolArray = ndimage.binary_fill_holes(inside) & ~inside
    return np.expand_dims(filled, flat)


# --- counting ---


def trial_steps(classes: Labels) -> tuple[Step, ...]:
    """All steps that are worth a trial: first on all classes as one mask, if there are several, then on each."""
    names = [each.name for each in classes.classes]
    together = (KeepLargestComponent(classes=tuple(names)),) if len(names) > 1 else ()
    return (*together, *(step for name in names for step in _steps_on(name)))


def _steps_on(name: str) -> Iterator[Step]:
    yield KeepLargestComponent(classes=(name,))
    for smallest_mm3 in SMALLEST_MM3:
        yield RemoveSmallComponents(classes=(name,), smallest_mm3=smallest_mm3)
    yield FillHoles(classes=(name,))


def count_agreement(prediction: IntArray, reference: IntArray, classes: Labels) -> Counts:
    """(C, 3) of two label maps; voxels whose reference is the ignore value take no part."""
    highest = max(classes.values) + 2  # the ignore value is one above the others
    flat = np.zeros(highest * highest, np.int64)
    predicted, true = np.ravel(prediction), np.ravel(reference)
    for start in range(0, predicted.size, SLAB_VOXELS):
        part = slice(start, start + SLAB_VOXELS)
        flat += np.bincount(predicted[part].astype(np.intp) * highest + true[part], minlength=flat.size)
    pairs = flat.reshape(highest, highest)
    if classes.ignore is not None:
        pairs[:, classes.ignore] = 0
    values = [list(each.values) for each in classes.classes]
    return np.array([(pairs[np.ix_(of, of)].sum(), pairs[of].sum(), pairs[:, of].sum()) for of in values], np.int64)


def count_trials(
    prediction: IntArray, reference: IntArray, trials: Sequence[Step], classes: Labels, *, voxel_mm3: float
) -> Counts:
    """(1 + trials, C, 3): as it is, and after each step alone.

    Both label maps are (Z, Y, X), internal values. Components are found once for all steps on the same classes, and what each step removes is
    added up from what every component holds.
    """
    whole = count_agreement(prediction, reference, classes)
    result = np.repeat(whole[None], 1 + len(trials), axis=0)
    for names in dict.fromkeys(step.classes for step in trials):
        own = [(i, step) for i, step in enumerate(trials, 1) if step.classes == names]
        mask = np.isin(prediction, _values_of(own[0][1], classes))
        if not (box := ndimage.find_objects(mask.astype(np.uint8), max_label=1)[0]):
            continue
        inside, truth = mask[box], reference[box]
        components = _components(inside)
        sizes = np.bincount(components.reshape(-1))[1:]
        held: Counts | None = None
        for i, step in own:
            if isinstance(step, FillHoles):
                filled = _holes(inside, prediction.shape) & (prediction[box] == 0)
                if filled.any():
                    value = np.full(np.count_nonzero(filled), _written(step, classes))
                    result[i, :, :2] += count_agreement(value, truth[filled], classes)[:, :2]
                continue
            goes = step.removed(sizes, voxel_mm3)
            if not goes.any():
                continue
            if held is None:
                held = _held(components[inside], prediction[box][inside], truth[inside], classes)
            result[i, :, :2] -= held[goes].sum(axis=0)
    return result


def _held(components: IntArray, prediction: IntArray, reference: IntArray, classes: Labels) -> Counts:
    """(components, C, 2): the voxels of each class in each component that agree, and all; of the voxels of a mask."""
    number = int(components.max())
    held = np.zeros((number, len(classes.classes), 2), np.int64)
    scored = reference != (-1 if classes.ignore is None else classes.ignore)
    for c, each in enumerate(classes.classes):
        inside = np.isin(prediction, each.values) & scored
        agree = inside & np.isin(reference, each.values)
        for column, which in enumerate((agree, inside)):
            held[:, c, column] = np.bincount(components[which], minlength=number + 1)[1:]
    return held


# --- ensembles of label maps that were decided before ---


def ensemble_labels(
    label_maps: Sequence[NDArray[np.integer]],
    probabilities: Sequence[Probabilities],
    weights: Sequence[float],
    labels: Labels,
) -> NDArray[np.integer]:
    """The label map of an ensemble, from those of its members (Z, Y, X) and their probabilities (K, Z, Y, X), which may stay on disk.

    Only where members differ are probabilities read: a class that is first for all is first in every mean of them.
    """
    result = label_maps[0].copy()
    for where, p in _where_members_differ(label_maps, probabilities):
        result.reshape(-1)[where] = decide(list(np.tensordot(_whole(weights, len(p)), p, 1)), labels)
    return result


def count_ensembles(
    label_maps: Sequence[NDArray[np.integer]],
    probabilities: Sequence[Probabilities],
    weights: Sequence[Sequence[float]],
    reference: NDArray[np.integer],
    labels: Labels,
) -> Counts:
    """(ensembles, C, 3): agreement of each ensemble with the reference; ``weights`` has one for each member, perhaps 0."""
    differ = np.zeros(reference.size, dtype=bool)
    result = np.zeros((len(weights), len(labels.classes), 3), dtype=np.int64)
    for where, p in _where_members_differ(label_maps, probabilities):
        differ[where] = True
        truth = reference.reshape(-1)[where]
        for i, each in enumerate(weights):
            decided = decide(list(np.tensordot(np.asarray(each, np.float32), p, 1)), labels)
            result[i] += count_agreement(decided, truth, labels)
    same = ~differ
    return result + count_agreement(label_maps[0].reshape(-1)[same], reference.reshape(-1)[same], labels)


def ensemble_slabs(probabilities: Sequence[Probabilities], weights: Sequence[float]) -> Iterator[Slab]:
    """The weighted mean of probabilities (K, Z, Y, X) that may stay on disk, slab by slab along Z; no weights: the plain mean."""
    whole = _whole(weights, len(probabilities))
    for parts in zip(*map(probability_slabs, probabilities), strict=True):
        rows = parts[0][0]
        yield (
            rows,
            [
                sum(w * np.asarray(p, np.float32) for w, p in zip(whole, of, strict=True))
                for of in zip(*(part for _, part in parts), strict=True)
            ],
        )


def _whole(weights: Sequence[float], number: int) -> NDArray[np.float32]:
    return np.asarray(weights or [1 / number] * number, np.float32)


def _where_members_differ(
    label_maps: Sequence[NDArray[np.integer]], probabilities: Sequence[Probabilities]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Places of some voxels, and the members' probabilities (M, K, n) there, until all have come."""
    shape = label_maps[0].shape
    for rows in _slabs(shape):
        differ = np.logical_or.reduce([each[rows] != label_maps[0][rows] for each in label_maps])
        if differ.any():
            where = np.flatnonzero(differ)
            p = [each[:, rows].reshape(each.shape[0], -1)[:, where] for each in probabilities]
            yield where + rows.start * math.prod(shape[1:]), np.array(p, np.float32)

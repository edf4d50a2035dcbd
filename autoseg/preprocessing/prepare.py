"""From the voxels of a case to the arrays a network sees: reoriented, cropped, normalised, resampled (method section 4).

In a cascade, the classes that the previous stage predicted are added as channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from autoseg.compute.memory import free_memory_bytes
from autoseg.imaging.image import Geometry, Image, looks_like_ct
from autoseg.imaging.orientation import (
    IDENTITY,
    Orientation,
    acquisition_orientation,
    canonical_geometry,
    canonical_orientation,
    ras_orientation,
    to_canonical,
)
from autoseg.imaging.placement import Box, Placement, bounding_box, crop, nonzero_mask
from autoseg.imaging.resampling import decide_separate_axis, resample_image, resample_labels
from autoseg.issues import AutosegError, Issue
from autoseg.preprocessing.store import Prepared, StoredArray, StoredCase, open_array, pack_array
from autoseg.storage.atomic import write_together
from autoseg.wording import count_noun
from planners import (
    ChannelNormalization,
    Configuration,
    IntensityStatistics,
    Labels,
    Plan,
    configuration_spacing,
    resampled_shape,
    transpose,
)

Floats = NDArray[np.float32]
SMALLEST_DIVISOR = 1e-8
"""Constant images are divided by this instead of zero."""
OUTSIDE = -1
"""Label of background voxels outside the non-zero mask."""
ANNOTATED = "annotated"
"""Key of the annotated voxels, in datasets with an ignore label."""
BYTES_PER_VOXEL = 8
"""Of each channel after resampling: float32, and once more along the last axis to be resampled."""
LOCATIONS_SEED = 1234
MOST_LOCATIONS = 10_000
LEAST_SHARE = 0.01
"""Of each class up to `MOST_LOCATIONS` voxels are kept, but never less than this share."""


def normalise(
    image: NDArray[Any],
    normalization: Sequence[ChannelNormalization],
    intensities: Sequence[IntensityStatistics],
    mask: NDArray[np.bool_],
    *,
    modality: Sequence[str] = (),
) -> Floats:
    """``image`` (C, a0, a1, a2) with every channel scaled as ``normalization`` says; float32, a new array.

    ``intensities`` are those of the dataset's foreground, one entry a channel. ``mask`` (a0, a1, a2) marks the voxels
    that masked schemes take their statistics from and change; an empty mask leaves the channel as it is. ``modality`` is
    that of each channel as far as it is known (`Image.modality`).
    Raises `AutosegError` when a channel said to be RGB has values outside 0 to 255.
    """
    result = np.array(image, np.float32, order="C")
    told = modality or [""] * len(result)
    for channel, scheme, statistics, each in zip(result, normalization, intensities, told, strict=True):
        _normalise_channel(channel, scheme, statistics, mask, each)
    return result


def _normalise_channel(
    channel: Floats,
    normalization: ChannelNormalization,
    statistics: IntensityStatistics,
    mask: NDArray[np.bool_],
    modality: str,
) -> None:
    """In place."""
    scheme = normalization.scheme
    if scheme == "ct_or_zscore":
        scheme = "zscore" if looks_like_ct(channel, modality) is False else "ct"
    if scheme == "ct":
        np.clip(channel, statistics.percentile_00_5, statistics.percentile_99_5, out=channel)
        channel -= np.float32(statistics.mean)
        channel /= np.float32(max(statistics.std, SMALLEST_DIVISOR))
    elif scheme == "zscore" and normalization.use_mask:
        inside = channel[mask]
        if inside.size:
            _standardise(inside)
            channel[mask] = inside
    elif scheme == "zscore":
        _standardise(channel)
    elif scheme == "rescale_to_0_1":
        channel -= channel.min()
        channel /= max(float(channel.max()), SMALLEST_DIVISOR)
    elif scheme == "rgb_to_0_1":
        low, high = float(channel.min()), float(channel.max())
        if low < 0 or high > 255:
            message = f"a colour channel has values from {low:g} to {high:g}, expected 0 to 255"
            fix = "convert the image to 8 bits, or name its channels by what they show instead of R, G, B"
            raise AutosegError(Issue(code="image.colour_range", where="", message=message, fix=fix))
        channel /= np.float32(255)


def _standardise(values: Floats) -> None:
    """Mean 0 and standard deviation 1, in place; sums run in float64, which long float32 sums need."""
    values -= np.float32(values.mean(dtype=np.float64))
    rows = values.reshape(len(values), -1)
    rows = rows if rows.shape[1] > 1 else rows.T
    with np.errstate(over="ignore"):
        squares = sum(float(np.dot(row, row)) for row in rows)
    if not np.isfinite(squares):  # beyond single precision
        squares = sum(float(np.dot(row, row)) for row in (row.astype(np.float64) for row in rows))
    values /= np.float32(max((squares / values.size) ** 0.5, SMALLEST_DIVISOR))


@dataclass(frozen=True, slots=True)
class CroppedCase:
    """A case in plan axes, cropped to its non-zero box: what all configurations start from."""

    image: NDArray[np.float32]
    """(C, a0, a1, a2)."""
    labels: NDArray[np.int16] | None
    """(a0, a1, a2), `OUTSIDE` in the background outside the non-zero mask."""
    mask: NDArray[np.bool_]
    """(a0, a1, a2): voxels that masked normalisation uses."""
    geometry: Geometry
    orientation: Orientation
    shape_before_cropping: tuple[int, ...]
    box: Box
    modality: tuple[str, ...]


def source_orientation(geometry: Geometry, plan: Plan) -> Orientation:
    """How the axes of a file become the source axes of ``plan``; undone on export by the case's `Placement`."""
    if plan.strict_reference:
        return IDENTITY
    orientations = {"anatomical": canonical_orientation, "acquisition": acquisition_orientation, "ras": ras_orientation}
    return orientations[plan.source_axes](geometry)


def prepare_image(
    volume: Image, plan: Plan, configuration: Configuration, *, labels: NDArray[np.integer[Any]] | None = None
) -> Prepared:
    """One case as ``configuration`` needs it, in the order of method section 4.1.

    Brought to source axes (not with ``plan.strict_reference``), then to plan axes; cropped to the box of non-zero
    voxels; normalised; resampled. ``labels`` (Z, Y, X), internal values, in the axes of ``volume``, are treated
    alike; background outside the non-zero mask becomes -1. Raises `AutosegError` when the shape of ``labels`` or the
    number of channels does not fit, or when voxels are not finite.
    """
    cropped = crop_case(volume, plan, labels)
    return normalise_and_resample(cropped, place(cropped, plan, configuration), plan, configuration)


def crop_case(volume: Image, plan: Plan, labels: NDArray[np.integer[Any]] | None) -> CroppedCase:
    """The steps of `prepare_image` that all configurations share."""
    _check_input(volume, plan, labels)
    orientation = source_orientation(volume.geometry, plan)
    image = _to_plan_axes(volume.array, orientation, plan)
    mask = nonzero_mask(image)
    box = bounding_box(mask)
    mask, cropped_labels = crop(mask, box), None
    if labels is not None:
        cropped_labels = crop(_to_plan_axes(labels, orientation, plan), box).astype(np.int16)
        cropped_labels[(cropped_labels == 0) & ~mask] = OUTSIDE
        mask = cropped_labels >= 0
    return CroppedCase(
        crop(image, box), cropped_labels, mask, volume.geometry, orientation, image.shape[1:], box, volume.modality
    )


def place(cropped: CroppedCase, plan: Plan, configuration: Configuration) -> Placement:
    """Where the arrays of ``configuration`` are in the source image."""
    return _place(
        cropped.geometry, cropped.orientation, cropped.shape_before_cropping, cropped.box, plan, configuration
    )


def place_whole(geometry: Geometry, plan: Plan, configuration: Configuration) -> Placement:
    """The same, before the voxels are known: as if nothing were cropped."""
    orientation = source_orientation(geometry, plan)
    shape = transpose(canonical_geometry(geometry, orientation).shape, plan.transpose_forward)
    return _place(geometry, orientation, shape, tuple((0, size) for size in shape), plan, configuration)  # type: ignore[arg-type]


def _place(
    geometry: Geometry,
    orientation: Orientation,
    shape_before_cropping: Sequence[int],
    box: Box,
    plan: Plan,
    configuration: Configuration,
) -> Placement:
    source_mm = canonical_geometry(geometry, orientation).spacing_mm
    spacing_mm = transpose(source_mm, plan.transpose_forward)
    target_mm = configuration_spacing(configuration, spacing_mm)
    if geometry.dimensions == 2 and not plan.strict_reference:  # of unknown thickness: one slice of a volume
        across = plan.transpose_forward.index(orientation.permutation.index(0))
        if plan.original_median_shape[across] > 1:
            pairs = zip(spacing_mm, target_mm, strict=True)
            first, second, third = (target if axis == across else own for axis, (own, target) in enumerate(pairs))
            spacing_mm = first, second, third
    size = tuple(stop - start for start, stop in box)
    return Placement(
        source=geometry,
        permutation=orientation.permutation,
        flips=orientation.flips,
        transpose_forward=plan.transpose_forward,
        shape_before_cropping=tuple(shape_before_cropping),  # type: ignore[arg-type]  # three axes, as below
        box=box,
        spacing_mm=spacing_mm,
        resampled_shape=resampled_shape(size, spacing_mm, target_mm),  # type: ignore[arg-type]
        resampled_spacing_mm=target_mm,
    )


def normalise_and_resample(
    cropped: CroppedCase, placement: Placement, plan: Plan, configuration: Configuration
) -> Prepared:
    """The steps of `prepare_image` that depend on the configuration."""

    def separate_axis(separate_z: bool | None) -> int | None:
        return decide_separate_axis(placement.spacing_mm, placement.resampled_spacing_mm, separate_z)

    _require_memory(cropped, placement)
    image = normalise(
        cropped.image, configuration.normalization, plan.intensities, cropped.mask, modality=cropped.modality
    )
    for_image, for_labels = configuration.resample_image, configuration.resample_labels
    shape, labels = placement.resampled_shape, cropped.labels
    image = resample_image(image, shape, resampling=for_image, separate_axis=separate_axis(for_image.separate_z))
    if labels is not None:
        labels = resample_labels(
            labels, shape, resampling=for_labels, separate_axis=separate_axis(for_labels.separate_z)
        )
    return Prepared(image=image, labels=labels, placement=placement)


def _require_memory(cropped: CroppedCase, placement: Placement) -> None:
    """Raise `AutosegError` before memory is asked for that is not there."""
    needed, free = BYTES_PER_VOXEL * len(cropped.image) * math.prod(placement.resampled_shape), free_memory_bytes()
    if needed > free:
        sizes = " x ".join(map(str, placement.resampled_shape))
        message = (
            f"its {' x '.join(map(str, cropped.geometry.shape))} voxels of "
            f"{' x '.join(f'{each:g}' for each in cropped.geometry.spacing_mm)} mm become {sizes} at the spacing of the plan, "
            f"which takes {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free"
        )
        fix = "correct the spacing in the file, or use a machine with more memory"
        raise AutosegError(Issue(code="image.too_large", where="", message=message, fix=fix))


def _to_plan_axes(array: NDArray[Any], orientation: Orientation, plan: Plan) -> NDArray[Any]:
    lead = array.ndim - 3
    axes = (*range(lead), *(lead + axis for axis in plan.transpose_forward))
    return to_canonical(array, orientation).transpose(axes)


def _check_input(volume: Image, plan: Plan, labels: NDArray[Any] | None) -> None:
    """Raise `AutosegError` for other channels or shapes, and for voxels that resampling would spread: NaN or infinity."""
    array, channels = volume.array, plan.channels
    if len(array) != len(channels):
        message = (
            f"the image has {len(array)} channels, but the plan was made for {len(channels)}: {', '.join(channels)}"
        )
        fix = "use one file per channel, in this order"
        raise AutosegError(Issue(code="image.channels", where="", message=message, fix=fix))
    if labels is not None and labels.shape != array.shape[1:]:
        message = f"the label map has {labels.shape} voxels (z, y, x), but its image has {array.shape[1:]}"
        fix = "resample the label map to the grid of the image"
        raise AutosegError(Issue(code="labels.shape_differs", where="", message=message, fix=fix))
    for number, channel in enumerate(array):
        if math.isfinite(float(channel.min())) and math.isfinite(float(channel.max())):
            continue  # minimum and maximum pass NaN on, and are cheaper than a mask
        odd = ~np.isfinite(channel)
        z, y, x = (int(i) for i in np.argwhere(odd)[0])
        message = (
            f"channel {number} has {count_noun(int(odd.sum()), 'voxel')} of NaN or infinity, the first "
            f"({channel[z, y, x]}) at ({z}, {y}, {x}) (z, y, x)"
        )
        fix = "replace them, for example by the smallest finite value, or leave the case out"
        raise AutosegError(Issue(code="image.not_finite", where="", message=message, fix=fix))


def class_locations(labels: NDArray[np.integer[Any]], plan_labels: Labels) -> dict[str, NDArray[np.int32]]:
    """Where classes are, for sampling patches: int32 (N, 3) voxel positions by class name (method section 4.5).

    Of a class with M voxels ``max(min(10000, M), 1 % of M)`` are drawn without replacement, the same for the same
    labels; absent classes get (0, 3). A region is the union of its labels. With an ignore label, `ANNOTATED` holds
    voxels of every other value, background and outside included.
    """
    rng = np.random.default_rng(LOCATIONS_SEED)
    boxes = find_objects(np.maximum(labels, 0))
    locations = {
        label.name: _draw(labels, box_around(boxes, label.values), label.values, rng) for label in plan_labels.classes
    }
    if plan_labels.ignore is not None:
        if ANNOTATED in locations:
            message = f"a class cannot be named {ANNOTATED!r} if there is an ignore label"
            raise AutosegError(Issue(code="labels.reserved_name", where="", message=message, fix="rename it"))
        everything = tuple(slice(0, size) for size in labels.shape)
        locations[ANNOTATED] = _draw(labels, everything, (OUTSIDE, *range(plan_labels.ignore)), rng)
    return locations


def box_around(boxes: Sequence[tuple[slice, ...] | None], values: Sequence[int]) -> tuple[slice, ...]:
    """The box around label ``values``, of which ``boxes`` (`scipy.ndimage.find_objects`) has one each; empty for none."""
    found = [box for value in values if value <= len(boxes) and (box := boxes[value - 1]) is not None]
    if not found:
        return (slice(0, 0),) * 3
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides)) for sides in zip(*found, strict=True)
    )


def _draw(
    labels: NDArray[Any], box: tuple[slice, ...], values: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.int32]:
    """Positions of some voxels inside ``box`` that have one of ``values``."""
    part = labels[box]
    wanted = part == values[0] if len(values) == 1 else np.isin(part, values)
    places = np.flatnonzero(wanted)
    number = max(min(MOST_LOCATIONS, len(places)), math.ceil(LEAST_SHARE * len(places)))
    chosen = places if number == len(places) else rng.choice(places, number, replace=False, shuffle=False)
    start = np.array([side.start for side in box])
    positions: NDArray[np.int32] = np.stack(np.unravel_index(chosen, part.shape), axis=1).astype(np.int32)
    return positions + start.astype(np.int32)


@dataclass(frozen=True, slots=True)
class CascadeCase:
    """A stored case with the first stage's label map. Holds paths only, so it can be sent to other processes."""

    case: StoredCase
    folder: Path | None
    """Of the label maps; none: the case's own labels replace them, to time steps before a first stage is trained."""

    @property
    def image(self) -> StoredArray:
        """float32 (C, a0, a1, a2), without the classes of the first stage."""
        return self.case.image

    @property
    def labels(self) -> StoredArray:
        """int16 (a0, a1, a2)."""
        return self.case.labels

    @property
    def locations(self) -> Mapping[str, NDArray[np.int32]]:
        """Sampled voxels (N, 3) of each class."""
        return self.case.locations

    @property
    def previous(self) -> StoredArray:
        """Integers (a0, a1, a2): see `open_previous`."""
        return self.case.labels if self.folder is None else open_previous(self.folder, self.case)


def store_previous(
    folder: Path, case_id: str, labels: NDArray[np.integer[Any]], *, made_from: str, patch_shape: Sequence[int]
) -> None:
    """Store a label map (a0, a1, a2) of the first stage on the second's grid as ``CASE.b2nd``, replacing an older one.

    ``made_from`` is the key of everything it was made from, and is kept in the same file. Numbers are stored, not one
    channel per class: patches are encoded when they are read.
    """
    write_together({_path(folder, case_id): pack_array(labels, tuple(patch_shape), made_from=made_from)})


def has_previous(folder: Path, case_id: str, made_from: str) -> bool:
    """Whether the label map of a case is stored and was made from the same."""
    path = _path(folder, case_id)
    try:
        return path.is_file() and open_array(path).made_from == made_from
    except AutosegError:
        return False


def open_previous(folder: Path, case: StoredCase) -> StoredArray:
    """The stored label map (a0, a1, a2) of a case, sliced like an array; only the chunks that are touched are read.

    Raises `AutosegError` when it is missing or is not on the grid of ``case``.
    """
    path, expected = _path(folder, case.case_id), case.record.image_shape[1:]
    array = open_array(path)
    if array.shape != expected:
        message = f"{array.shape} voxels, but its case has {expected}"
        fix = "predict the previous stage again"
        raise AutosegError(
            Issue(code="store.previous_stage_shape", where=str(path), message=message, fix=fix, case=case.case_id)
        )
    return array


def with_classes(
    image: NDArray[np.float32], labels: NDArray[np.integer[Any]], values: Sequence[int]
) -> NDArray[np.float32]:
    """An image (C, ...) with one more channel for each of ``values``: 1 where ``labels`` (...) has it, else 0."""
    result = np.empty((len(image) + len(values), *image.shape[1:]), np.float32)
    result[: len(image)] = image
    for channel, value in zip(result[len(image) :], values, strict=True):
        channel[...] = labels == value
    return result


def _path(folder: Path, case_id: str) -> Path:
    return folder / f"{case_id}.b2nd"

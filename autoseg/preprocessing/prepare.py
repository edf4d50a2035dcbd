"""From the files of a case to the arrays a network sees: turned, cropped, normalised, resampled (method section 4)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from autoseg.compute.executor import run_jobs
from autoseg.data.case_labels import read_case_labels
from autoseg.data.dataset import Case, DatasetDescription
from autoseg.imaging.cropping import Box, bounding_box, crop, nonzero_mask
from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.normalisation import normalise
from autoseg.imaging.orientation import (
    Orientation,
    canonical_geometry,
    to_canonical,
)
from autoseg.imaging.placement import Placement
from autoseg.imaging.readers import files_of, read_image
from autoseg.imaging.resampling import decide_separate_axis, resample_image, resample_labels
from autoseg.issues import AutosegError
from autoseg.preprocessing.need import largest_need
from autoseg.preprocessing.source_axes import source_orientation
from autoseg.preprocessing.store import STORAGE_VERSION, Prepared, is_stored, write_case
from autoseg.storage.atomic import sync_folder
from autoseg.tracking.progress import Reporter
from planners import Configuration, Labels, Plan, configuration_spacing, resampled_shape, transpose

OUTSIDE = -1
"""Label of background voxels outside the non-zero mask."""
ANNOTATED = "annotated"
"""Key of the voxels that somebody annotated, in datasets with an ignore label."""
LOCATIONS_SEED = 1234
MOST_LOCATIONS = 10_000
LEAST_SHARE = 0.01
"""Of each class up to `MOST_LOCATIONS` voxels are kept, but never less than this share."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A case turned to plan axes and cropped to its box: what all configurations start from."""

    image: NDArray[np.float32]
    labels: NDArray[np.int16] | None
    mask: NDArray[np.bool_]
    """Voxels that masked normalisation looks at."""
    geometry: Geometry
    orientation: Orientation
    shape_before_cropping: tuple[int, ...]
    box: Box


def prepare_image(
    volume: Image, plan: Plan, configuration: Configuration, *, labels: NDArray[np.integer[Any]] | None = None
) -> Prepared:
    """One case as ``configuration`` wants it, in the order of method section 4.1.

    Turned to source axes (not with ``plan.strict_reference``), then to plan axes; cropped to the box of non-zero
    voxels; normalised; resampled. ``labels`` (Z, Y, X), internal values, in the axes of ``volume``, go the same way;
    background outside the non-zero mask becomes -1. Raises `AutosegError` when the shape of ``labels`` or the number of
    channels does not fit, or when voxels are not finite.
    """
    cut = _cut_out(volume, plan, labels)
    return _prepare(cut, _placement(cut, plan, configuration), plan, configuration)


def _cut_out(volume: Image, plan: Plan, labels: NDArray[np.integer[Any]] | None) -> _Cut:
    _check_input(volume, plan, labels)
    orientation = source_orientation(volume.geometry, plan)
    image = _to_plan_axes(volume.array, orientation, plan)
    mask = nonzero_mask(image)
    box = bounding_box(mask)
    mask, turned = crop(mask, box), None
    if labels is not None:
        turned = crop(_to_plan_axes(labels, orientation, plan), box).astype(np.int16)
        turned[(turned == 0) & ~mask] = OUTSIDE
        mask = turned >= 0
    return _Cut(crop(image, box), turned, mask, volume.geometry, orientation, image.shape[1:], box)


def _prepare(cut: _Cut, placement: Placement, plan: Plan, configuration: Configuration) -> Prepared:
    normalised = normalise(cut.image, configuration.normalization, plan.intensities, cut.mask)
    return _resampled(normalised, cut.labels, placement, configuration)


def _to_plan_axes(array: NDArray[Any], orientation: Orientation, plan: Plan) -> NDArray[Any]:
    lead = array.ndim - 3
    axes = (*range(lead), *(lead + axis for axis in plan.transpose_forward))
    return to_canonical(array, orientation).transpose(axes)


def _placement(cut: _Cut, plan: Plan, configuration: Configuration) -> Placement:
    turned_mm = canonical_geometry(cut.geometry, cut.orientation).spacing_mm
    spacing_mm = transpose(turned_mm, plan.transpose_forward)
    target_mm = configuration_spacing(configuration, spacing_mm)
    size = tuple(stop - start for start, stop in cut.box)
    return Placement(
        source=cut.geometry,
        permutation=cut.orientation.permutation,
        flips=cut.orientation.flips,
        transpose_forward=plan.transpose_forward,
        shape_before_cropping=_three(cut.shape_before_cropping),
        box=cut.box,
        spacing_mm=spacing_mm,
        resampled_shape=_three(resampled_shape(size, spacing_mm, target_mm)),
        resampled_spacing_mm=target_mm,
    )


def _three(values: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    first, second, third = values
    return first, second, third


def _resampled(
    image: NDArray[np.float32], labels: NDArray[np.int16] | None, placement: Placement, configuration: Configuration
) -> Prepared:
    def separate_axis(separate_z: bool | None) -> int | None:
        return decide_separate_axis(placement.spacing_mm, placement.resampled_spacing_mm, separate_z)

    for_image, for_labels = configuration.resample_image, configuration.resample_labels
    shape = placement.resampled_shape
    image = resample_image(image, shape, resampling=for_image, separate_axis=separate_axis(for_image.separate_z))
    if labels is not None:
        labels = resample_labels(
            labels, shape, resampling=for_labels, separate_axis=separate_axis(for_labels.separate_z)
        )
    return Prepared(image=image, labels=labels, placement=placement)


def _check_input(volume: Image, plan: Plan, labels: NDArray[Any] | None) -> None:
    if len(volume.array) != len(plan.channels):
        raise AutosegError(
            f"the image has {len(volume.array)} channels, but the plan was made for {len(plan.channels)} "
            f"({', '.join(plan.channels)}); give one file for each of them, in this order"
        )
    if labels is not None and labels.shape != volume.array.shape[1:]:
        raise AutosegError(
            f"the label map has {labels.shape} voxels (z, y, x) but its image has {volume.array.shape[1:]}; "
            "resample the label map to the grid of the image"
        )
    check_finite(volume)


def check_finite(volume: Image) -> None:
    """Raise `AutosegError` when voxels are NaN or infinite: resampling would spread them over the volume."""
    for channel, array in enumerate(volume.array):
        if math.isfinite(float(array.min())) and math.isfinite(float(array.max())):
            continue  # minimum and maximum pass NaN on, and are cheaper than a mask
        odd = ~np.isfinite(array)
        z, y, x = (int(i) for i in np.argwhere(odd)[0])
        raise AutosegError(
            f"channel {channel} has {int(odd.sum())} voxels that are NaN or infinite, the first ({array[z, y, x]}) at "
            f"({z}, {y}, {x}) (z, y, x); replace them, for example by the smallest finite value, or leave the case out"
        )


def class_locations(labels: NDArray[np.integer[Any]], plan_labels: Labels) -> dict[str, NDArray[np.int32]]:
    """Where classes lie, for drawing patches: int32 (N, 3) voxel positions by class name (method section 4.5).

    Of a class with M voxels ``max(min(10000, M), 1 % of M)`` are drawn without replacement, the same for the same
    labels; absent classes get (0, 3). A region is the union of its labels. With an ignore label, `ANNOTATED` holds
    voxels of every other value, background and outside included.
    """
    rng = np.random.default_rng(LOCATIONS_SEED)
    boxes = find_objects(np.maximum(labels, 0))
    locations = {}
    for label in plan_labels.classes:
        found = [boxes[value - 1] for value in label.values if value <= len(boxes) and boxes[value - 1] is not None]
        locations[label.name] = _draw(labels, _union(found), label.values, rng)
    if plan_labels.ignore is not None:
        if ANNOTATED in locations:
            raise AutosegError(
                f"a class cannot be named {ANNOTATED!r} beside an ignore label; rename it in the dataset"
            )
        everything = tuple(slice(0, size) for size in labels.shape)
        values = (OUTSIDE, *range(plan_labels.ignore))
        locations[ANNOTATED] = _draw(labels, everything, values, rng)
    return locations


def _union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """The box around boxes; empty for none."""
    if not boxes:
        return (slice(0, 0),) * 3
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides)) for sides in zip(*boxes, strict=True)
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
class Target:
    """Where the cases of one configuration are stored."""

    configuration: Configuration
    folder: Path


@dataclass(frozen=True, slots=True)
class _Work:
    """What a worker needs for every case."""

    dataset: DatasetDescription
    plan: Plan


@dataclass(frozen=True, slots=True)
class _Item:
    """A case and where it is still missing."""

    case: Case
    targets: tuple[Target, ...]


def preprocess_case(case: Case, dataset: DatasetDescription, plan: Plan, targets: Sequence[Target]) -> None:
    """Read one case, and prepare and store it for every one of ``targets``.

    Labels may have another orientation than their image. Raises `AutosegError` that names the case's files.
    """
    digests = [case_digest(case, dataset, plan, target.configuration) for target in targets]
    volume = read_image(case.image_paths)
    labels = None
    if case.is_labelled:
        try:
            labels = read_case_labels(case, dataset.coding, onto=volume.geometry).array
        except AutosegError as error:
            raise AutosegError(_naming(Path(case.label_files[0]), error)) from error
    try:
        cut = _cut_out(volume, plan, labels)
        made: dict[Any, Prepared] = {}
        for target, consumed in zip(targets, digests, strict=True):
            placement, key = _placement(cut, plan, target.configuration), _processing(target.configuration)
            if (
                placement,
                key,
            ) not in made:  # the same voxels often serve slices and volumes; one set is held at a time
                made = {(placement, key): _prepare(cut, placement, plan, target.configuration)}
            _store(
                case, made[placement, key], plan, target, consumed, made_from(case, dataset, plan, target.configuration)
            )
    except AutosegError as error:
        raise AutosegError(_naming(case.image_paths[0] if len(case.images) == 1 else case.images, error)) from error


def _processing(configuration: Configuration) -> tuple[Any, ...]:
    """What decides voxels besides the grid."""
    return configuration.normalization, configuration.resample_image, configuration.resample_labels


def _store(case: Case, prepared: Prepared, plan: Plan, target: Target, consumed: str, made_from: str) -> None:
    locations = {} if prepared.labels is None else class_locations(prepared.labels, plan.labels)
    write_case(
        target.folder,
        case.case_id,
        prepared,
        locations,
        consumed,
        made_from=made_from,
        patch_shape=target.configuration.patch_shape,
    )


def _naming(source: object, error: AutosegError) -> str:
    shown = ", ".join(map(str, source)) if isinstance(source, tuple) else str(source)
    return str(error) if shown in str(error) else f"{shown}: {error}"


def preprocess_dataset(
    dataset: DatasetDescription, plan: Plan, targets: Sequence[Target], *, num_workers: int, reporter: Reporter
) -> None:
    """Store all training cases of ``dataset`` for every one of ``targets``, in parallel, reading each case once.

    Cases that are there, complete and made from the same files, label values and plan fields are left as they are.
    All cases are tried; what went wrong is reported together.
    """
    waiting = [item for item in (_missing(case, dataset, plan, targets) for case in dataset.training) if item.targets]
    names = " and ".join(target.configuration.name for target in targets)
    kept = len(dataset.training) - len(waiting)
    if kept:
        reporter.say(f"Preprocessing {names}: {kept} of {len(dataset.training)} cases are there already")
    if not waiting:
        return
    configurations = [target.configuration for target in targets]
    need = largest_need([item.case for item in waiting], plan=plan, configurations=configurations)
    with reporter.track(f"Preprocessing {names}", len(waiting)) as tracker:
        run_jobs(
            partial(_do, _Work(dataset, plan)),
            waiting,
            name=_name,
            num_workers=num_workers,
            need_bytes=need,
            say=reporter.say,
            tracker=tracker,
        )
    for target in targets:
        sync_folder(target.folder)


def _missing(case: Case, dataset: DatasetDescription, plan: Plan, targets: Sequence[Target]) -> _Item:
    return _Item(
        case,
        tuple(
            target
            for target in targets
            if not is_stored(target.folder, case.case_id, case_digest(case, dataset, plan, target.configuration))
        ),
    )


def _name(item: _Item) -> str:
    return f"case {item.case.case_id}"


def _do(work: _Work, item: _Item) -> None:
    preprocess_case(item.case, work.dataset, work.plan, item.targets)


def common_to_cases(plan: Plan) -> dict[str, Any]:
    """What of a plan all stored cases depend on, whatever their configuration; plain values."""
    return {
        "strict_reference": plan.strict_reference,
        "source_axes": plan.source_axes,
        "transpose_forward": plan.transpose_forward,
        "channels": len(plan.channels),
        "intensities": [statistics.model_dump() for statistics in plan.intensities],
        "labels": plan.labels.model_dump(),
    }


def case_digest(case: Case, dataset: DatasetDescription, plan: Plan, configuration: Configuration) -> str:
    """Digest of all that a stored case depends on: plan fields, label values, and its files by name, size and time."""
    files = [_file_state(each) for file in (*case.images, *case.label_files) for each in files_of(file)]
    named = case.model_dump(include={"images", "label", "masks"})  # which segment of a file is which class
    return _digest({**_rules(case, dataset, plan, configuration), "named": named, "files": files})


def made_from(case: Case, dataset: DatasetDescription, plan: Plan, configuration: Configuration) -> str:
    """Digest of all that decides the voxels of a stored case, the content of its files among it: the same in another place."""
    return _digest({**_rules(case, dataset, plan, configuration), "content": case.content, "parts": case.parts})


def _rules(case: Case, dataset: DatasetDescription, plan: Plan, configuration: Configuration) -> dict[str, Any]:
    return {
        "version": STORAGE_VERSION,
        **common_to_cases(plan),
        "coding": dataset.coding.model_dump(exclude={"labels", "mask_value"}),
        "annotated": case.annotated,
        "configuration": configuration.model_dump(
            include={"dimensions", "spacing_mm", "normalization", "resample_image", "resample_labels"}
        ),
    }


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _file_state(path: Path) -> list[Any]:
    """Name, size and time of a file."""
    try:
        state = path.stat()
    except OSError as error:
        raise AutosegError(f"{path} could not be read ({error.strerror}); check the path and its permissions") from None
    return [str(path), state.st_size, state.st_mtime_ns]

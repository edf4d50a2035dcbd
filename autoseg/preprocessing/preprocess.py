"""Preprocesses and stores the cases of a dataset, in parallel, each file read once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from autoseg.compute.executor import run_jobs
from autoseg.compute.memory import free_memory_bytes
from autoseg.data.dataset import Case, DatasetDescription
from autoseg.data.labels import read_case_labels
from autoseg.imaging.orientation import canonical_geometry
from autoseg.imaging.placement import Placement
from autoseg.imaging.readers import file_states, read_header, read_image, split_part
from autoseg.issues import AutosegError, Issue
from autoseg.preprocessing.prepare import class_locations, crop_case, normalise_and_resample, place, source_orientation
from autoseg.preprocessing.store import STORAGE_VERSION, Prepared, is_stored, write_case
from autoseg.storage.atomic import sync_folder
from autoseg.storage.cache import key_of
from autoseg.tracking.progress import Reporter
from planners import Configuration, Plan, configuration_spacing, resampled_shape, transpose

NUM_HEADERS = 4
"""Cases with the largest files whose headers are read: all headers of a large dataset would take minutes."""
BYTES_PER_VOXEL = 15
"""Of each channel, before and after resampling: up to 12 were measured (`benchmarks/preprocess.py --growth`)."""
MAX_GROWTH = 8
"""Times as many voxels after resampling: with more the spacing of a case that takes all memory is wrong."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the cases of one configuration are stored."""

    configuration: Configuration
    folder: Path


def preprocess_dataset(
    dataset: DatasetDescription, plan: Plan, targets: Sequence[Target], *, num_workers: int, reporter: Reporter
) -> None:
    """Store all training cases of ``dataset`` for every one of ``targets``, in parallel, reading each case once.

    Cases that are stored already, made from the same (`stored_key`), are kept. All cases are tried; what went wrong is
    reported together as one `AutosegError`.
    """

    items = []
    for case in dataset.training:
        keys = [stored_key(case, dataset, plan, target.configuration) for target in targets]
        missing = [t for t, key in zip(targets, keys, strict=True) if not is_stored(t.folder, case.case_id, key)]
        items += [(case, missing)] if missing else []
    names = " and ".join(target.configuration.name for target in targets)
    if len(items) < len(dataset.training):
        kept = len(dataset.training) - len(items)
        reporter.say(f"Preprocessing {names}: {kept} of {len(dataset.training)} cases are up to date")
    if not items:
        return
    configurations = [target.configuration for target in targets]
    with reporter.track(f"Preprocessing {names}", len(items)) as tracker:
        run_jobs(
            partial(_preprocess_item, dataset=dataset, plan=plan),
            items,
            name=lambda item: f"case {item[0].case_id}",
            num_workers=num_workers,
            need_bytes=largest_need([case for case, _ in items], plan=plan, configurations=configurations),
            say=reporter.say,
            tracker=tracker,
        )
    for target in targets:
        sync_folder(target.folder)


def _preprocess_item(item: tuple[Case, Sequence[Target]], *, dataset: DatasetDescription, plan: Plan) -> None:
    preprocess_case(item[0], dataset, plan, item[1])


def preprocess_case(case: Case, dataset: DatasetDescription, plan: Plan, targets: Sequence[Target]) -> None:
    """Read one case, and prepare and store it for every one of ``targets``.

    Labels may have another orientation than their image. Raises `AutosegError` that names case and file.
    """
    keys = [stored_key(case, dataset, plan, target.configuration) for target in targets]
    try:
        volume, labels = read_image(case.image_paths).of_modality(case.modality), None
        if case.is_labelled:
            try:
                labels = read_case_labels(case, dataset.coding, onto=volume.geometry).array
            except AutosegError as error:
                raise locate(error, case, where=case.label_files[0]) from error
        cropped = crop_case(volume, plan, labels)
        made: dict[Any, Prepared] = {}
        for target, key in zip(targets, keys, strict=True):
            configuration, placement = target.configuration, place(cropped, plan, target.configuration)
            same = placement, configuration.normalization, configuration.resample_image, configuration.resample_labels
            require_memory(placement, len(volume.array), free_bytes=free_memory_bytes())
            if same not in made:  # 2D and 3D often share their voxels; one set is held at a time
                made = {same: normalise_and_resample(cropped, placement, plan, configuration)}
            prepared = made[same]
            locations = {} if prepared.labels is None else class_locations(prepared.labels, plan.labels)
            patch = configuration.patch_shape
            write_case(target.folder, case.case_id, prepared, locations, made_from=key, patch_shape=patch)
    except AutosegError as error:
        raise locate(error, case, where=", ".join(case.images)) from error


def require_memory(placement: Placement, num_channels: int, *, free_bytes: int) -> None:
    """Refuse a case that resampling makes both much larger (`MAX_GROWTH`) and more than memory holds."""
    before, after = math.prod(placement.shape_after_cropping), math.prod(placement.resampled_shape)
    need_bytes = BYTES_PER_VOXEL * num_channels * (before + after)
    if after <= MAX_GROWTH * before or need_bytes <= free_bytes:
        return
    shape, own_mm, target_mm = (
        " x ".join(f"{each:.3g}" if isinstance(each, float) else str(each) for each in of)
        for of in (placement.resampled_shape, placement.spacing_mm, placement.resampled_spacing_mm)
    )
    message = (
        f"resampled from {own_mm} to {target_mm} mm it has {shape} voxels, which take up to {need_bytes / 1e9:.1f} GB, "
        f"and {free_bytes / 1e9:.1f} GB is free"
    )
    fix = "correct the spacing of the image if it is wrong, or leave the case out with --exclude"
    raise AutosegError(Issue(code="preprocessing.too_large", where="", message=message, fix=fix))


def locate(error: AutosegError, case: Case, *, where: str) -> AutosegError:
    """The same issues with the case, and with ``where`` if they name no place."""
    issues = [issue.model_copy(update={"case": case.case_id, "where": issue.where or where}) for issue in error.issues]
    return AutosegError(*issues, headline=error.headline)


def stored_key(case: Case, dataset: DatasetDescription, plan: Plan, configuration: Configuration) -> str:
    """Key of everything that decides the voxels of a stored case: plan, label values and the content of its files.

    It does not depend on the paths. If the content was not read (``case.content``), path, size and time of the files are
    used instead.
    """
    content = case.content or file_states([*case.images, *case.label_files])
    configured = configuration.model_dump(
        include={"dimensions", "spacing_mm", "normalization", "resample_image", "resample_labels"}
    )
    coding = dataset.coding.model_dump(
        exclude={"labels", "mask_value"} | ({"dropped"} if not dataset.dropped_values else set())
    )
    known = [case.modality] if case.modality else []
    return key_of(STORAGE_VERSION, shared_inputs(plan), coding, configured, case.annotated, case.parts, content, *known)


def shared_inputs(plan: Plan) -> dict[str, Any]:
    """The part of a plan on which stored cases of every configuration depend; plain values."""
    return {
        "strict_reference": plan.strict_reference,
        "source_axes": plan.source_axes,
        "transpose_forward": plan.transpose_forward,
        "channels": len(plan.channels),
        "intensities": [statistics.model_dump() for statistics in plan.intensities],
        "labels": plan.labels.model_dump(),
    }


def largest_need(
    cases: Sequence[Case], *, plan: Plan | None = None, configurations: Sequence[Configuration] = ()
) -> int:
    """Memory in bytes to read the largest of ``cases`` and, with ``plan``, to prepare it for ``configurations``.

    The largest are those with the largest files. Unreadable files count as 0; reading their voxels reports them.
    """
    largest = sorted(
        cases, key=lambda case: sum(_size(split_part(Path(path))[0]) for path in case.images), reverse=True
    )
    return max((_need(case, plan, configurations) for case in largest[:NUM_HEADERS]), default=0)


def _size(path: Path) -> int:
    try:
        return sum(_size(file) for file in path.iterdir()) if path.is_dir() else path.stat().st_size
    except OSError:
        return 0


def _need(case: Case, plan: Plan | None, configurations: Sequence[Configuration]) -> int:
    try:
        headers = [read_header(Path(path)) for path in case.images]
    except AutosegError:
        return 0
    geometry = headers[0].geometry
    voxels = math.prod(geometry.shape)
    if plan is not None:
        source = canonical_geometry(geometry, source_orientation(geometry, plan))
        shape = transpose(source.shape, plan.transpose_forward)
        spacing_mm = transpose(source.spacing_mm, plan.transpose_forward)
        targets_mm = [configuration_spacing(configuration, spacing_mm) for configuration in configurations]
        # of the whole image; cropping can only reduce it
        voxels += max((math.prod(resampled_shape(shape, spacing_mm, each)) for each in targets_mm), default=0)
    return BYTES_PER_VOXEL * sum(header.num_channels for header in headers) * voxels

"""What the documents in a trained model's folder of the reference say: enough to predict (method sections 7.10, 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import AliasChoices, Field

from planners.document import DocumentError
from planners.fingerprint import IntensityStatistics, Labels
from planners.geometry import Axis
from planners.interop.nnunet import (
    READERS,
    DatasetFile,
    StatisticsFile,
    internal_labels,
    label_problems,
    read_part,
    read_statistics,
)
from planners.interop.nnunet_plans import make_plan
from planners.interop.plans_file import InheritanceError, PlansFile, inherited
from planners.plan import Plan

SPACING_BESIDE = "Tiff3DIO"
"""Takes spacings from a JSON file beside each image, which is not read here: images would be resampled wrongly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NnunetModel:
    """A model of the reference, its weights left aside."""

    plan: Plan
    """Only the configurations that predict: the model's, and the stages before it."""
    file_values: tuple[int, ...]
    """Value in label files of each internal value."""
    file_ending: str


class _ModelPlansFile(PlansFile):
    image_reader_writer: str
    statistics: dict[str, StatisticsFile] = Field(
        validation_alias=AliasChoices(
            "foreground_intensity_properties_per_channel",
            "foreground_intensity_properties_by_modality",  # of earlier versions
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What plans files leave to other documents."""

    channels: tuple[str, ...]
    labels: Labels
    intensities: tuple[IntensityStatistics, ...]


def read_nnunet_model(
    plans: str | bytes,
    dataset: str | bytes,
    *,
    configuration: str,
    mirror_axes: Sequence[Axis] | None = None,
    plans_where: str = "plans.json",
    dataset_where: str = "dataset.json",
) -> NnunetModel:
    """The model of ``configuration`` that ``plans.json`` and ``dataset.json`` (their texts) describe.

    ``mirror_axes`` are the axes of the patch that prediction mirrors; none: those of the method. Configurations that
    prediction does not need may hold anything. Raises `DocumentError` with all problems of both files, each with its place.
    """
    file, problems = read_part(_ModelPlansFile, plans, plans_where)
    description, dataset_problems = read_part(DatasetFile, dataset, dataset_where)
    problems += dataset_problems
    if description is not None:
        problems += [f"{dataset_where}: {line}" for line in label_problems(description)]
    if file is not None:
        problems += [f"{plans_where}: {line}" for line in _plans_problems(file, description, configuration)]
    if problems or file is None or description is None:
        raise DocumentError(f"{plans_where} with {dataset_where}", tuple(problems))
    labels, file_values = internal_labels(description.labels, description.regions_class_order)
    known = _Known(
        channels=description.channels,
        labels=labels,
        intensities=tuple(read_statistics(file.statistics[str(index)]) for index in range(len(description.channels))),
    )
    plan = make_plan(file, _needed(file, configuration), known, where=plans_where)
    dimensions = plan.configuration(configuration).dimensions
    if any(axis >= dimensions for axis in mirror_axes or ()):
        raise DocumentError(
            plans_where, (f"configurations.{configuration}: has {dimensions} axes, but {mirror_axes} are mirrored",)
        )
    source_axes = READERS[file.image_reader_writer]
    if source_axes is not None:
        plan = plan.model_copy(update={"source_axes": source_axes, "strict_reference": False})
    return NnunetModel(
        plan=_mirrored(plan, configuration, mirror_axes), file_values=file_values, file_ending=description.file_ending
    )


def _plans_problems(file: _ModelPlansFile, dataset: DatasetFile | None, configuration: str) -> list[str]:
    problems = []
    if configuration not in file.configurations:
        problems.append(
            f"configurations: lacks {configuration!r}, which was trained; it has {', '.join(file.configurations)}"
        )
    if file.image_reader_writer == SPACING_BESIDE:
        problems.append(
            f"image_reader_writer: {SPACING_BESIDE} takes voxel sizes from a JSON file beside each image, which autoseg does "
            "not read, so it would resample images wrongly"
        )
    elif file.image_reader_writer not in READERS:
        problems.append(
            f"image_reader_writer: {file.image_reader_writer!r} is not known; known are {', '.join(READERS)}"
        )
    channels = [] if dataset is None else [str(index) for index in range(len(dataset.channels))]
    if dataset is not None and not set(channels) <= set(file.statistics):
        problems.append(
            f"foreground_intensity_properties_per_channel: has channels {sorted(file.statistics)}, "
            f"but the dataset {channels}"
        )
    return problems


def _needed(file: PlansFile, configuration: str) -> tuple[str, ...]:
    """The configuration, the stage before it, and the one whose data it reads; where inheritance is wrong, itself alone."""
    try:
        previous = inherited(file.configurations, configuration).get("previous_stage")
    except InheritanceError:
        previous = None
    if not isinstance(previous, str) or previous not in file.configurations:
        return (configuration,)
    data = file.configurations[configuration].get("inherits_from", configuration)
    return tuple(dict.fromkeys((previous, data, configuration)))


def _mirrored(plan: Plan, name: str, axes: Sequence[Axis] | None) -> Plan:
    if axes is None:
        return plan
    changed = tuple(
        each if each.name != name else each.model_copy(update={"mirror_axes": tuple(axes)})
        for each in plan.configurations
    )
    return plan.model_copy(update={"configurations": changed})

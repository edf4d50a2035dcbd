"""nnU-Net's plans files, written and read, and models that hold one (method section 3.14)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pydantic import AliasChoices, Field, JsonValue, ValidationError

from planners.decision import counted
from planners.document import DocumentError, Issue, PlanningError, issues_of, within
from planners.fingerprint import IntensityStatistics, Labels
from planners.geometry import Axis, inverse
from planners.interop.nnunet import (
    READERS,
    DatasetFile,
    NnunetDataset,
    StatisticsFile,
    fault,
    internal_labels,
    label_issues,
    read_part,
    read_statistics,
)
from planners.interop.plans_file import (
    NETWORKS,
    RESAMPLING,
    SCHEMES,
    ConfigurationFile,
    InheritanceError,
    PlansFile,
    inherited,
    read_configurations,
)
from planners.plan import ChannelNormalization, Configuration, Loss, Network, Plan, Resampling
from planners.topology import find_preset

PLANNERS: dict[str, tuple[str, str]] = {
    "default": ("ExperimentPlanner", "nnUNetPlans"),
    "resenc": ("ResEncUNetPlanner", "nnUNetResEncUNetPlans"),
    "resenc_m": ("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
    "resenc_l": ("nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans"),
    "resenc_xl": ("nnUNetPlannerResEncXL", "nnUNetResEncUNetXLPlans"),
}
"""nnU-Net's planner class and plans name of each preset (method section 3.1)."""
READER_OF_ENDING = {
    ".png": "NaturalImage2DIO",
    ".bmp": "NaturalImage2DIO",
    ".tiff": "Tiff3DIO",
    ".nii": "NibabelIO",
}
"""By file ending; any other takes SimpleITKIO (method section 1.5). ``.tif`` may be flat or not, see `_reader`."""
STATISTICS = {
    "max": "maximum", "mean": "mean", "median": "median", "min": "minimum", "percentile_00_5": "percentile_00_5",
    "percentile_99_5": "percentile_99_5", "std": "std",
}  # fmt: skip
"""nnU-Net's names of intensity statistics, and ours."""
FLAT_SPACING_FACTOR = 999.0
"""2D images are read as slices this many times as thick as their larger pixel side (method section 1.5)."""


def nnunet_plans(
    plan: Plan, *, plans_name: str | None = None, file_ending: str = ".nii.gz", reader: str | None = None
) -> dict[str, JsonValue]:
    """A plan in the form of nnU-Net's plans file; dump it as JSON with an indent of 4.

    ``plans_name`` is the preset's own unless given, ``reader`` what nnU-Net chooses for such files. Candidates that nnU-Net
    does not have (V-Nets) are left out. Raises `PlanningError` for the V-Net preset.
    """
    if plan.preset not in PLANNERS:
        found, fix = f"nnU-Net has no counterpart of {plan.preset!r}", f"plan with one of {', '.join(PLANNERS)}"
        issue = Issue(code="plan.not_in_nnunet", where="preset", message=found, fix=fix)
        raise PlanningError(f"plan of {plan.dataset_name} cannot be exported", [issue])
    if any(entry.scheme not in SCHEMES for each in plan.configurations for entry in each.normalization):
        found, fix = "nnU-Net normalises all cases of a channel alike", "plan with --strict-reference"
        issue = Issue(code="plan.not_in_nnunet", where="normalization", message=found, fix=fix)
        raise PlanningError(f"plan of {plan.dataset_name} cannot be exported", [issue])
    planner, own_name = PLANNERS[plan.preset]
    name = plans_name or own_name
    known = [configuration for configuration in plan.configurations if configuration.network.family in NETWORKS]
    return {
        "dataset_name": plan.dataset_name,
        "plans_name": name,
        "original_median_spacing_after_transp": list(plan.original_median_spacing_mm),
        "original_median_shape_after_transp": list(plan.original_median_shape),
        "image_reader_writer": reader or _reader(plan, file_ending.casefold()),
        "transpose_forward": list(plan.transpose_forward),
        "transpose_backward": list(plan.transpose_backward),
        "configurations": {configuration.name: _written(configuration, name, plan.preset) for configuration in known},
        "experiment_planner_used": planner,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(index): {key: getattr(entry, field) for key, field in STATISTICS.items()}
            for index, entry in enumerate(plan.intensities)
        },
    }


def _reader(plan: Plan, file_ending: str) -> str:
    """The class that nnU-Net chooses; whether ``.tif`` files are 2D follows from the median spacing."""
    if file_ending == ".tif":
        thickness_mm, *pixel_mm = plan.original_median_spacing_mm
        is_flat = math.isclose(thickness_mm, FLAT_SPACING_FACTOR * max(pixel_mm))
        return "NaturalImage2DIO" if is_flat else "Tiff3DIO"
    return READER_OF_ENDING.get(file_ending, "SimpleITKIO")


def _written(configuration: Configuration, plans_name: str, preset: str) -> dict[str, JsonValue]:
    if configuration.previous_stage is not None:
        return {"inherits_from": configuration.data, "previous_stage": configuration.previous_stage}
    shared = preset != "default" and configuration.name != "3d_lowres"
    data, labels, logits = (
        dict[str, JsonValue](
            is_seg=is_label,
            order=resampling.order,
            order_z=resampling.order_z,
            force_separate_z=resampling.separate_z,
        )
        for resampling, is_label in (
            (configuration.resample_image, False),
            (configuration.resample_labels, True),
            (configuration.resample_logits, False),
        )
    )
    written: dict[str, JsonValue] = {
        "data_identifier": f"{'nnUNetPlans' if shared else plans_name}_{configuration.name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": configuration.batch_size,
        "patch_size": list(configuration.patch_shape),
        "median_image_size_in_voxels": [
            round(size) if configuration.name == "3d_lowres" else size for size in configuration.median_shape
        ],
        "spacing": list(configuration.spacing_mm),
        "normalization_schemes": [SCHEMES[entry.scheme] for entry in configuration.normalization],
        "use_mask_for_norm": [entry.use_mask for entry in configuration.normalization],
        "resampling_fn_data": RESAMPLING,
        "resampling_fn_seg": RESAMPLING,
        "resampling_fn_data_kwargs": data,
        "resampling_fn_seg_kwargs": labels,
        "resampling_fn_probabilities": RESAMPLING,
        "resampling_fn_probabilities_kwargs": logits,
        "architecture": _written_network(configuration.network),
        "batch_dice": configuration.loss.batch_dice,
    }
    if configuration.next_stage is not None:
        written["next_stage"] = configuration.next_stage
    return written


def _written_network(network: Network) -> dict[str, JsonValue]:
    dimensions = len(network.strides[0])
    counts = "n_conv_per_stage" if network.family == "unet" else "n_blocks_per_stage"
    return {
        "network_class_name": NETWORKS[network.family],
        "arch_kwargs": {
            "n_stages": len(network.strides),
            "features_per_stage": list(network.features),
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [list(kernel) for kernel in network.kernels],
            "strides": [list(stride) for stride in network.strides],
            counts: list(network.blocks),
            "n_conv_per_stage_decoder": list(reversed(network.decoder_blocks)),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What a plans file does not hold."""

    channels: tuple[str, ...]
    labels: Labels
    intensities: tuple[IntensityStatistics, ...]


def read_nnunet_plans(text: str | bytes, dataset: NnunetDataset, *, where: str = "plans.json") -> Plan:
    """The plan of a plans file of nnU-Net; ``dataset`` is what `read_nnunet_dataset` made of its dataset.

    Channels, labels and intensities come from the dataset. The file does not hold the memory target: it is the preset's, by
    the planner's class, and for an unknown class by the network's. Mirroring, loss and deep supervision are nnU-Net's fixed
    ones. Raises `DocumentError` with all issues, each with its place.
    """
    try:
        file = PlansFile.model_validate_json(text)
    except ValidationError as error:
        raise DocumentError(where, issues_of(error)) from error
    fingerprint = dataset.fingerprint
    known = _Known(channels=fingerprint.channels, labels=fingerprint.labels, intensities=fingerprint.intensities)
    return _make_plan(file, tuple(file.configurations), known, where=where)


def _part_issues(part: ConfigurationFile, known: _Known) -> list[Issue]:
    channels = len(known.channels)
    arguments = part.architecture.arch_kwargs
    issues = [
        fault(
            field,
            f"{len(getattr(part, field))} entries for {counted(channels, 'channel')} of the dataset",
            fix="give one for each channel",
        )
        for field in ("normalization_schemes", "use_mask_for_norm")
        if len(getattr(part, field)) != channels
    ]
    counts, field = _counts(part)
    if counts is None:
        issues.append(fault(f"architecture.arch_kwargs.{field}", "missing", fix="add it"))
    if len(arguments.n_conv_per_stage_decoder) != len(arguments.features_per_stage) - 1:
        place = "architecture.arch_kwargs.n_conv_per_stage_decoder"
        issues.append(fault(place, "must have one entry less than there are stages", fix="give that many"))
    return issues


def _counts(part: ConfigurationFile) -> tuple[tuple[int, ...] | None, str]:
    """Convolutions or blocks of each stage, and the field that holds them."""
    arguments = part.architecture.arch_kwargs
    if part.architecture.family == "unet":
        return arguments.n_conv_per_stage, "n_conv_per_stage"
    return arguments.n_blocks_per_stage, "n_blocks_per_stage"


def _make_plan(file: PlansFile, names: Collection[str], known: _Known, *, where: str) -> Plan:
    """The plan with the configurations ``names`` of a plans file. Raises `DocumentError` with all issues."""
    parts, issues = read_configurations(file.configurations, names)
    for name, part in parts.items():
        issues += within(f"configurations.{name}", _part_issues(part, known))
    if issues:
        raise DocumentError(where, issues)
    residual = any(part.architecture.family == "residual_unet" for part in parts.values())
    fallback = "resenc" if residual else "default"
    preset = next((key for key, (planner, _) in PLANNERS.items() if planner == file.experiment_planner_used), fallback)
    # a model's plan has only the configurations that predict; elsewhere a missing stage is a fault
    stages = (
        tuple(parts) if len(parts) < len(file.configurations) else tuple(part.next_stage for part in parts.values())
    )
    try:
        return Plan(
            dataset_name=file.dataset_name,
            preset=preset,
            strict_reference=True,
            memory_target_gb=find_preset(preset)[1].reference_gb,
            channels=known.channels,
            labels=known.labels,
            transpose_forward=file.transpose_forward,
            transpose_backward=inverse(file.transpose_forward),
            original_median_spacing_mm=file.original_median_spacing_after_transp,
            original_median_shape=file.original_median_shape_after_transp,
            intensities=known.intensities,
            configurations=tuple(_read_configuration(name, part, known, file, stages) for name, part in parts.items()),
        )
    except ValidationError as error:
        raise DocumentError(where, issues_of(error)) from error


def _read_configuration(
    name: str, part: ConfigurationFile, known: _Known, file: PlansFile, stages: Collection[str | None]
) -> Configuration:
    arguments, (counts, _) = part.architecture.arch_kwargs, _counts(part)
    schemes = {written: scheme for scheme, written in SCHEMES.items()}
    image, labels, logits = (
        Resampling(order=given.order, order_z=given.order_z, separate_z=given.force_separate_z)
        for given in (
            part.resampling_fn_data_kwargs,
            part.resampling_fn_seg_kwargs,
            part.resampling_fn_probabilities_kwargs,
        )
    )
    network = Network(
        family=part.architecture.family,
        num_inputs=len(known.channels) + (len(known.labels.values) if part.previous_stage else 0),
        num_outputs=known.labels.num_outputs,
        features=arguments.features_per_stage,
        kernels=arguments.kernel_sizes,
        strides=arguments.strides,
        blocks=counts or (),
        decoder_blocks=tuple(reversed(arguments.n_conv_per_stage_decoder)),
    )
    return Configuration(
        name=name,
        dimensions=len(part.patch_size),  # type: ignore[arg-type]  # 2 or 3, as `PatchShape` says
        data=name if part.previous_stage is None else file.configurations[name].get("inherits_from", name),
        spacing_mm=part.spacing,
        median_shape=part.median_image_size_in_voxels,
        patch_shape=part.patch_size,
        batch_size=part.batch_size,
        normalization=tuple(
            ChannelNormalization(scheme=schemes[scheme], use_mask=masked)
            for scheme, masked in zip(part.normalization_schemes, part.use_mask_for_norm, strict=True)
        ),
        resample_image=image,
        resample_labels=labels,
        resample_logits=logits,
        network=network,
        loss=Loss(batch_dice=part.batch_dice),
        deep_supervision=True,
        mirror_axes=(0, 1) if len(part.patch_size) == 2 else (0, 1, 2),
        previous_stage=part.previous_stage,
        next_stage=part.next_stage if part.previous_stage is None and part.next_stage in stages else None,
    )


SPACING_BESIDE = "Tiff3DIO"
"""Takes spacings from a JSON file of each image, which is not read here: images would be resampled wrongly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NnunetModel:
    """A model of nnU-Net, without its weights."""

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
    prediction does not need may hold anything. Raises `DocumentError` with all issues of both files, each with its place.
    """
    file, issues = read_part(_ModelPlansFile, plans, plans_where)
    description, dataset_issues = read_part(DatasetFile, dataset, dataset_where)
    issues += dataset_issues
    if description is not None:
        issues += within(dataset_where, label_issues(description))
    if file is not None:
        issues += within(plans_where, _plans_issues(file, description, configuration))
    if issues or file is None or description is None:
        raise DocumentError(f"{plans_where} with {dataset_where}", issues)
    labels, file_values = internal_labels(description.labels, description.regions_class_order)
    known = _Known(
        channels=description.channels,
        labels=labels,
        intensities=tuple(read_statistics(file.statistics[str(index)]) for index in range(len(description.channels))),
    )
    plan = _make_plan(file, _needed(file, configuration), known, where=plans_where)
    source_axes = READERS[file.image_reader_writer]
    if source_axes is not None:
        plan = plan.model_copy(update={"source_axes": source_axes, "strict_reference": False})
    if mirror_axes is not None:
        chosen = plan.configuration(configuration)
        if any(axis >= chosen.dimensions for axis in mirror_axes):
            found = f"has {chosen.dimensions} axes, but {mirror_axes} are mirrored"
            issue = fault(f"configurations.{configuration}", found, fix="choose existing axes")
            raise DocumentError(plans_where, [issue])
        mirrored = chosen.model_copy(update={"mirror_axes": tuple(mirror_axes)})
        changed = tuple(mirrored if each is chosen else each for each in plan.configurations)
        plan = plan.model_copy(update={"configurations": changed})
    return NnunetModel(plan=plan, file_values=file_values, file_ending=description.file_ending)


def _plans_issues(file: _ModelPlansFile, dataset: DatasetFile | None, configuration: str) -> list[Issue]:
    issues = []
    if configuration not in file.configurations:
        message = f"lacks {configuration!r}, which was trained; there are {', '.join(file.configurations)}"
        issues.append(fault("configurations", message, fix="use the plans file of this model"))
    if file.image_reader_writer == SPACING_BESIDE:
        message = f"{SPACING_BESIDE} takes spacings from a JSON file of each image, which autoseg does not read"
        issues.append(fault("image_reader_writer", message, fix="use nnU-Net for this model"))
    elif file.image_reader_writer not in READERS:
        message = f"{file.image_reader_writer!r} is not known"
        issues.append(fault("image_reader_writer", message, fix=f"use nnU-Net; known are {', '.join(READERS)}"))
    channels = [] if dataset is None else [str(index) for index in range(len(dataset.channels))]
    if dataset is not None and not set(channels) <= set(file.statistics):
        message = f"has channels {sorted(file.statistics)}, but the dataset {channels}"
        fix = "use the plans file and the dataset file of one model"
        issues.append(fault("foreground_intensity_properties_per_channel", message, fix=fix))
    return issues


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

"""The reference's plans files, written and read (method section 3.14)."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from planners.document import DocumentError, describe_problems
from planners.fingerprint import IntensityStatistics, PositiveFloat, PositiveInt
from planners.geometry import inverse
from planners.interop.nnunet import NnunetDataset
from planners.plan import (
    ChannelNormalization,
    Configuration,
    Family,
    Network,
    NormalizationScheme,
    Permutation,
    Plan,
    Preset,
    Resampling,
    Sizes,
)
from planners.presets import PRESETS
from planners.problems import PlanningError
from planners.rules.loss import decide_loss

PLANNERS: dict[Preset, tuple[str, str]] = {
    "default": ("ExperimentPlanner", "nnUNetPlans"),
    "resenc": ("ResEncUNetPlanner", "nnUNetResEncUNetPlans"),
    "resenc_m": ("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
    "resenc_l": ("nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans"),
    "resenc_xl": ("nnUNetPlannerResEncXL", "nnUNetResEncUNetXLPlans"),
}
"""Class and plans name of each preset that the reference knows (method section 3.1)."""
NETWORKS: dict[Family, str] = {
    "unet": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "residual_unet": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
}
SCHEMES: dict[NormalizationScheme, str] = {
    "ct": "CTNormalization",
    "none": "NoNormalization",
    "zscore": "ZScoreNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}
READERS = {
    ".png": "NaturalImage2DIO",
    ".bmp": "NaturalImage2DIO",
    ".tif": "NaturalImage2DIO",
    ".tiff": "Tiff3DIO",
    ".nii": "NibabelIO",
}
"""By file ending; any other takes SimpleITKIO (method section 1.5)."""
RESAMPLING = "resample_data_or_seg_to_shape"
CASCADE = "3d_cascade_fullres"


def nnunet_plans(plan: Plan, *, plans_name: str | None = None, file_ending: str = ".nii.gz") -> dict[str, JsonValue]:
    """A plan in the form of the reference's plans file; dump it as JSON with an indent of 4.

    ``plans_name`` is the preset's own unless given. Candidates that the reference has no word for (V-Nets) are left
    out. Raises `PlanningError` for the V-Net preset.
    """
    if plan.preset not in PLANNERS:
        raise PlanningError(
            f"plan of {plan.dataset_name}",
            [f"preset: {plan.preset!r} has no counterpart in the reference; take one of {', '.join(PLANNERS)}"],
        )
    planner, own_name = PLANNERS[plan.preset]
    name = plans_name or own_name
    known = [configuration for configuration in plan.configurations if configuration.network.family in NETWORKS]
    return {
        "dataset_name": plan.dataset_name,
        "plans_name": name,
        "original_median_spacing_after_transp": list(plan.original_median_spacing_mm),
        "original_median_shape_after_transp": list(plan.original_median_shape),
        "image_reader_writer": READERS.get(file_ending.casefold(), "SimpleITKIO"),
        "transpose_forward": list(plan.transpose_forward),
        "transpose_backward": list(plan.transpose_backward),
        "configurations": {
            configuration.name: _written(configuration, name, plan.preset) for configuration in known
        },
        "experiment_planner_used": planner,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(index): _written_statistics(entry) for index, entry in enumerate(plan.intensities)
        },
    }


def _written(configuration: Configuration, plans_name: str, preset: Preset) -> dict[str, JsonValue]:
    if configuration.previous_stage is not None:
        return {"inherits_from": configuration.data, "previous_stage": configuration.previous_stage}
    shared = preset != "default" and configuration.name != "3d_lowres"
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
        "resampling_fn_data_kwargs": _written_resampling(configuration.resample_image, is_label=False),
        "resampling_fn_seg_kwargs": _written_resampling(configuration.resample_labels, is_label=True),
        "resampling_fn_probabilities": RESAMPLING,
        "resampling_fn_probabilities_kwargs": _written_resampling(configuration.resample_logits, is_label=False),
        "architecture": _written_network(configuration.network),
        "batch_dice": configuration.loss.batch_dice,
    }
    if configuration.next_stage is not None:
        written["next_stage"] = configuration.next_stage
    return written


def _written_resampling(resampling: Resampling, *, is_label: bool) -> dict[str, JsonValue]:
    return {
        "is_seg": is_label,
        "order": resampling.order,
        "order_z": resampling.order_z,
        "force_separate_z": resampling.separate_z,
    }


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


def _written_statistics(entry: IntensityStatistics) -> dict[str, JsonValue]:
    return {
        "max": entry.maximum,
        "mean": entry.mean,
        "median": entry.median,
        "min": entry.minimum,
        "percentile_00_5": entry.percentile_00_5,
        "percentile_99_5": entry.percentile_99_5,
        "std": entry.std,
    }


class _File(BaseModel):
    """The reference keeps more in its files than a plan needs."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)


class _ArchitectureArguments(_File):
    features_per_stage: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    kernel_sizes: tuple[Sizes, ...]
    strides: tuple[Sizes, ...]
    n_conv_per_stage: tuple[PositiveInt, ...] | None = None
    n_blocks_per_stage: tuple[PositiveInt, ...] | None = None
    n_conv_per_stage_decoder: tuple[PositiveInt, ...]


class _Architecture(_File):
    network_class_name: Literal[
        "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    ]
    arch_kwargs: _ArchitectureArguments


class _ResamplingArguments(_File):
    order: Literal[0, 1, 3]
    order_z: Literal[0, 1, 3]
    force_separate_z: bool | None = None


class _ConfigurationFile(_File):
    batch_size: PositiveInt
    patch_size: Sizes
    median_image_size_in_voxels: Annotated[tuple[PositiveFloat, ...], Field(min_length=2, max_length=3)]
    spacing: Annotated[tuple[PositiveFloat, ...], Field(min_length=2, max_length=3)]
    normalization_schemes: tuple[
        Literal[
            "CTNormalization",
            "NoNormalization",
            "ZScoreNormalization",
            "RescaleTo01Normalization",
            "RGBTo01Normalization",
        ],
        ...,
    ]
    use_mask_for_norm: tuple[bool, ...]
    resampling_fn_data: Literal["resample_data_or_seg_to_shape"]
    resampling_fn_seg: Literal["resample_data_or_seg_to_shape"]
    resampling_fn_probabilities: Literal["resample_data_or_seg_to_shape"]
    resampling_fn_data_kwargs: _ResamplingArguments
    resampling_fn_seg_kwargs: _ResamplingArguments
    resampling_fn_probabilities_kwargs: _ResamplingArguments
    architecture: _Architecture
    batch_dice: bool
    next_stage: str | None = None
    previous_stage: str | None = None


class _PlansFile(_File):
    dataset_name: str
    original_median_spacing_after_transp: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    original_median_shape_after_transp: tuple[PositiveInt, PositiveInt, PositiveInt]
    transpose_forward: Permutation
    experiment_planner_used: str
    configurations: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]


def read_nnunet_plans(text: str | bytes, dataset: NnunetDataset, *, where: str = "plans.json") -> Plan:
    """The plan that a plans file of the reference holds; ``dataset`` is what `read_nnunet_dataset` made of its dataset.

    Channels, labels and intensities come from the dataset. The file does not say which memory it was planned for: the
    preset's own is taken, by the planner's class, and for an unknown class by the network's. Mirroring, loss and deep
    supervision are the reference's fixed ones. Raises `DocumentError` with all problems, each with its place.
    """
    try:
        file = _PlansFile.model_validate_json(text)
    except ValidationError as error:
        raise DocumentError(where, describe_problems(error)) from error
    problems: list[str] = []
    parts = {}
    for name in file.configurations:
        place = f"configurations.{name}"
        try:
            merged = _inherited(file.configurations, name)
            parts[name] = _ConfigurationFile.model_validate_json(json.dumps(merged))
            problems += [f"{place}: {line}" for line in _part_problems(parts[name], dataset)]
        except ValidationError as error:
            problems += [f"{place}.{line}" for line in describe_problems(error)]
        except _InheritanceError as error:
            problems.append(f"{place}.inherits_from: {error}")
    if problems:
        raise DocumentError(where, tuple(problems))
    try:
        return _plan(file, parts, dataset)
    except ValidationError as error:
        raise DocumentError(where, describe_problems(error)) from error


class _InheritanceError(ValueError):
    """A configuration that inherits from one that is missing or from itself."""


def _inherited(configurations: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """A configuration with the fields of its ancestors; its own win."""
    line: list[str] = []
    merged: dict[str, Any] = {}
    current: str | None = name
    while current is not None:
        if current in line:
            raise _InheritanceError(f"goes round in a circle: {' -> '.join((*line, current))}")
        if current not in configurations:
            raise _InheritanceError(f"{current!r} is missing; the file has {', '.join(configurations)}")
        line.append(current)
        merged = {**configurations[current], **merged}
        current = configurations[current].get("inherits_from")
    return merged


def _part_problems(part: _ConfigurationFile, dataset: NnunetDataset) -> list[str]:
    channels = len(dataset.fingerprint.channels)
    arguments = part.architecture.arch_kwargs
    problems = [
        f"{field}: {len(getattr(part, field))} entries for {channels} channels of the dataset"
        for field in ("normalization_schemes", "use_mask_for_norm")
        if len(getattr(part, field)) != channels
    ]
    counts, field = _counts(part)
    if counts is None:
        problems.append(f"architecture.arch_kwargs.{field}: missing")
    if len(arguments.n_conv_per_stage_decoder) != len(arguments.features_per_stage) - 1:
        problems.append("architecture.arch_kwargs.n_conv_per_stage_decoder: must have one entry less than there are stages")
    return problems


def _counts(part: _ConfigurationFile) -> tuple[tuple[int, ...] | None, str]:
    """Convolutions or blocks of each stage, and the field that holds them."""
    arguments = part.architecture.arch_kwargs
    if part.architecture.network_class_name == NETWORKS["unet"]:
        return arguments.n_conv_per_stage, "n_conv_per_stage"
    return arguments.n_blocks_per_stage, "n_blocks_per_stage"


def _plan(file: _PlansFile, parts: dict[str, _ConfigurationFile], dataset: NnunetDataset) -> Plan:
    residual = any(part.architecture.network_class_name == NETWORKS["residual_unet"] for part in parts.values())
    fallback: Preset = "resenc" if residual else "default"
    preset = next((key for key, (planner, _) in PLANNERS.items() if planner == file.experiment_planner_used), fallback)
    fingerprint = dataset.fingerprint
    return Plan(
        dataset_name=file.dataset_name,
        preset=preset,
        strict_reference=True,
        memory_target_gb=PRESETS[preset].reference_gb,
        channels=fingerprint.channels,
        labels=fingerprint.labels,
        transpose_forward=file.transpose_forward,
        transpose_backward=inverse(file.transpose_forward),
        original_median_spacing_mm=file.original_median_spacing_after_transp,
        original_median_shape=file.original_median_shape_after_transp,
        intensities=fingerprint.intensities,
        configurations=tuple(_read_configuration(name, part, dataset, file) for name, part in parts.items()),
    )


def _read_configuration(
    name: str, part: _ConfigurationFile, dataset: NnunetDataset, file: _PlansFile
) -> Configuration:
    labels = dataset.fingerprint.labels
    schemes = {written: scheme for scheme, written in SCHEMES.items()}
    family: Family = "unet" if part.architecture.network_class_name == NETWORKS["unet"] else "residual_unet"
    return Configuration(
        name=name,
        dimensions=len(part.patch_size),  # type: ignore[arg-type]  # 2 or 3, as `Sizes` says
        data=name if part.previous_stage is None else file.configurations[name].get("inherits_from", name),
        spacing_mm=part.spacing,
        median_shape=part.median_image_size_in_voxels,
        patch_shape=part.patch_size,
        batch_size=part.batch_size,
        normalization=tuple(
            ChannelNormalization(scheme=schemes[scheme], use_mask=masked)
            for scheme, masked in zip(part.normalization_schemes, part.use_mask_for_norm, strict=True)
        ),
        resample_image=_read_resampling(part.resampling_fn_data_kwargs),
        resample_labels=_read_resampling(part.resampling_fn_seg_kwargs),
        resample_logits=_read_resampling(part.resampling_fn_probabilities_kwargs),
        network=_read_network(part, family, dataset),
        loss=decide_loss(family, has_regions=labels.has_regions, batch_dice=part.batch_dice).value,
        deep_supervision=True,
        mirror_axes=(0, 1) if len(part.patch_size) == 2 else (0, 1, 2),
        previous_stage=part.previous_stage,
        next_stage=part.next_stage if part.previous_stage is None else None,
    )


def _read_network(part: _ConfigurationFile, family: Family, dataset: NnunetDataset) -> Network:
    arguments = part.architecture.arch_kwargs
    fingerprint = dataset.fingerprint
    counts, _ = _counts(part)
    return Network(
        family=family,
        num_inputs=len(fingerprint.channels) + (len(fingerprint.labels.values) if part.previous_stage else 0),
        num_outputs=fingerprint.labels.num_outputs,
        features=arguments.features_per_stage,
        kernels=arguments.kernel_sizes,
        strides=arguments.strides,
        blocks=counts or (),
        decoder_blocks=tuple(reversed(arguments.n_conv_per_stage_decoder)),
    )


def _read_resampling(arguments: _ResamplingArguments) -> Resampling:
    return Resampling(
        order=arguments.order, order_z=arguments.order_z, separate_z=arguments.force_separate_z
    )


"""nnU-Net's plans file as documents, validated when read (method section 3.14)."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from planners.document import Issue, issues_of
from planners.fingerprint import PositiveFloat, PositiveInt, Voxels
from planners.geometry import Permutation
from planners.interop.nnunet import fault
from planners.plan import (
    BatchSize,
    Blocks,
    Features,
    Kernel,
    MedianShape,
    NormalizationScheme,
    PatchShape,
    Stride,
)

NETWORKS: dict[str, str] = {
    "unet": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "residual_unet": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
}
FAMILIES: dict[str, str] = {
    **{name: family for family, name in NETWORKS.items()},
    "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet": "residual_unet",
}
"""Class names; the last is that of earlier versions."""
SCHEMES: dict[NormalizationScheme, str] = {
    "ct": "CTNormalization",
    "none": "NoNormalization",
    "zscore": "ZScoreNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}
RESAMPLING = "resample_data_or_seg_to_shape"


class _Part(BaseModel):
    """nnU-Net's files hold more than a plan needs."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)


def _known_network(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(f"autoseg does not build this network; it builds {', '.join(FAMILIES)}")
    return name


def _each_axis_once(order: Permutation) -> Permutation:
    if len(set(order)) < len(order):
        raise ValueError("must name each of the axes 0, 1 and 2 once")
    return order


class _NormArguments(_Part):
    eps: Annotated[float, Field(ge=1e-5, le=1e-5)] = 1e-5
    affine: Literal[True]


class _ActivationArguments(_Part):
    """The slope is torch's own unless given."""

    negative_slope: Annotated[float, Field(ge=0.01, le=0.01)] = 0.01
    inplace: bool = True


class _ArchitectureArguments(_Part):
    """Other values are refused: the network would compute something else with tensors of the same shapes."""

    model_config = ConfigDict(extra="forbid")

    n_stages: PositiveInt | None = None
    features_per_stage: Annotated[tuple[Features, ...], Field(min_length=1)]
    kernel_sizes: tuple[Kernel, ...]
    strides: tuple[Stride, ...]
    n_conv_per_stage: tuple[Blocks, ...] | None = None
    n_blocks_per_stage: tuple[Blocks, ...] | None = None
    n_conv_per_stage_decoder: tuple[Blocks, ...]
    conv_op: Literal["torch.nn.modules.conv.Conv2d", "torch.nn.modules.conv.Conv3d"] | None = None
    conv_bias: Literal[True] = True
    norm_op: (
        Literal["torch.nn.modules.instancenorm.InstanceNorm2d", "torch.nn.modules.instancenorm.InstanceNorm3d"] | None
    ) = None
    norm_op_kwargs: _NormArguments | None = None
    dropout_op: None = None
    dropout_op_kwargs: dict[str, Any] | None = None
    nonlin: Literal["torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"] = "torch.nn.LeakyReLU"
    nonlin_kwargs: _ActivationArguments | None = None


class _Architecture(_Part):
    network_class_name: Annotated[str, AfterValidator(_known_network)]
    arch_kwargs: _ArchitectureArguments

    @property
    def family(self) -> str:
        return FAMILIES[self.network_class_name]


class ResamplingArguments(_Part):
    """How arrays are brought to another grid."""

    order: Literal[0, 1, 3]
    order_z: Literal[0, 1, 3]
    force_separate_z: bool | None = None


class ConfigurationFile(_Part):
    """One configuration with the fields that it inherits."""

    preprocessor_name: Literal["DefaultPreprocessor"] = "DefaultPreprocessor"
    batch_size: BatchSize
    patch_size: PatchShape
    median_image_size_in_voxels: MedianShape
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
    resampling_fn_data_kwargs: ResamplingArguments
    resampling_fn_seg_kwargs: ResamplingArguments
    resampling_fn_probabilities_kwargs: ResamplingArguments
    architecture: _Architecture
    batch_dice: bool
    next_stage: str | None = None
    previous_stage: str | None = None


class PlansFile(_Part):
    """``plans.json``; configurations still without what they inherit, see `read_configurations`."""

    label_manager: Literal["LabelManager"] = "LabelManager"
    dataset_name: str
    original_median_spacing_after_transp: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    original_median_shape_after_transp: tuple[Voxels, Voxels, Voxels]
    transpose_forward: Annotated[Permutation, AfterValidator(_each_axis_once)]
    experiment_planner_used: str
    configurations: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]


def read_configurations(
    configurations: dict[str, dict[str, Any]], names: Collection[str]
) -> tuple[dict[str, ConfigurationFile], list[Issue]]:
    """The configurations of these names with what they inherit, and the issues of the others."""
    parts: dict[str, ConfigurationFile] = {}
    issues: list[Issue] = []
    for name in names:
        place = f"configurations.{name}"
        try:
            parts[name] = ConfigurationFile.model_validate_json(json.dumps(inherited(configurations, name)))
        except ValidationError as error:
            issues += [each.model_copy(update={"where": f"{place}.{each.where}"}) for each in issues_of(error)]
        except InheritanceError as error:
            issues.append(fault(f"{place}.inherits_from", str(error), fix="name another configuration of the file"))
    return parts, issues


class InheritanceError(ValueError):
    """A configuration inherits from one that is missing, from itself, or from something that is not a name."""


def inherited(configurations: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """A configuration with the fields of its ancestors; its own win. Raises `InheritanceError`."""
    line: list[str] = []
    merged: dict[str, Any] = {}
    current: str | None = name
    while current is not None:
        if not isinstance(current, str):
            raise InheritanceError(f"must be the name of a configuration (found {current!r})")
        if current in line:
            raise InheritanceError(f"is circular: {' -> '.join((*line, current))}")
        if current not in configurations:
            raise InheritanceError(f"{current!r} is missing; the file has {', '.join(configurations)}")
        line.append(current)
        merged = {**configurations[current], **merged}
        current = configurations[current].get("inherits_from")
    return _with_architecture(merged)


def _with_architecture(fields: dict[str, Any]) -> dict[str, Any]:
    """Earlier versions of nnU-Net described the network in the configuration itself."""
    if "architecture" in fields or "UNet_class_name" not in fields:
        return fields
    family = fields["UNet_class_name"]
    counts = fields.get("n_conv_per_stage_encoder")
    base, most = fields.get("UNet_base_num_features"), fields.get("unet_max_num_features")
    features = None
    if isinstance(counts, list) and isinstance(base, int) and isinstance(most, int):
        features = [min(base * 2**stage, most) for stage in range(len(counts))]
    arguments = {
        "features_per_stage": features,
        "kernel_sizes": fields.get("conv_kernel_sizes"),
        "strides": fields.get("pool_op_kernel_sizes"),
        "n_conv_per_stage" if family == "PlainConvUNet" else "n_blocks_per_stage": counts,
        "n_conv_per_stage_decoder": fields.get("n_conv_per_stage_decoder"),
    }
    name = f"dynamic_network_architectures.architectures.unet.{family}"
    return {**fields, "architecture": {"network_class_name": name, "arch_kwargs": arguments}}

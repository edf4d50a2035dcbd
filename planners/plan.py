"""Everything that preprocessing, training and inference need to know, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from planners.decision import DecisionRecord, counted
from planners.document import PROSE, Document, InvalidError
from planners.fingerprint import MOST_VOXELS, IntensityStatistics, Labels, PositiveFloat, PositiveInt, Voxels
from planners.geometry import Axis, Permutation, nearest_multiples, total_strides
from planners.registry import LOSSES, TOPOLOGIES, require_installed

MOST_PATCH_VOXELS = 2 * MOST_VOXELS
"""Along one axis; a patch may be longer than the longest case, since it is rounded up until the strides divide it."""
MOST_PATCHES = 10**12
"""In one batch; the smallest patch in the largest memory stays below."""
MOST_FEATURES = 100_000
MOST_BLOCKS = 100
"""In one stage."""
LARGEST_KERNEL = 31
LARGEST_STRIDE = 16

NormalizationScheme = Literal["ct", "zscore", "none", "rescale_to_0_1", "rgb_to_0_1", "ct_or_zscore"]
"""``ct_or_zscore``: each image by its intensities, for channels that are CT in some cases and MR in others."""
SourceAxes = Literal["anatomical", "acquisition", "ras"]
T = TypeVar("T")
Features = Annotated[int, Field(gt=0, le=MOST_FEATURES)]
Blocks = Annotated[int, Field(gt=0, le=MOST_BLOCKS)]
BatchSize = Annotated[int, Field(gt=0, le=MOST_PATCHES)]
Kernel = Annotated[tuple[Annotated[int, Field(gt=0, le=LARGEST_KERNEL)], ...], Field(min_length=2, max_length=3)]
Stride = Annotated[tuple[Annotated[int, Field(gt=0, le=LARGEST_STRIDE)], ...], Field(min_length=2, max_length=3)]
PatchShape = Annotated[tuple[Annotated[int, Field(gt=0, le=MOST_PATCH_VOXELS)], ...], Field(min_length=2, max_length=3)]
MedianShape = Annotated[tuple[Annotated[float, Field(gt=0, le=MOST_VOXELS)], ...], Field(min_length=2, max_length=3)]


class ChannelNormalization(Document):
    """How the intensities of one channel are scaled (method section 4.2)."""

    scheme: NormalizationScheme
    use_mask: bool = False
    """Statistics from, and change of, the voxels inside the non-zero mask only."""


class Resampling(Document):
    """How arrays are brought to another grid (method sections 3.12 and 4.4)."""

    order: Literal[0, 1, 3]
    """Spline order in plane, or on all axes."""
    order_z: Literal[0, 1, 3]
    """Spline order along the coarse axis where it is resampled on its own."""
    separate_z: bool | None = None
    """Whether the coarse axis goes on its own; none: decided for each case by its anisotropy."""


class Network(Document):
    """Topology of one network; every list runs from the highest resolution to the bottleneck.

    Kernel sizes and strides have as many entries as the configuration has dimensions (2 or 3).
    """

    family: Annotated[str, AfterValidator(partial(require_installed, TOPOLOGIES))]
    """Name of an installed topology."""
    num_inputs: PositiveInt
    """Image channels, plus one for each foreground label of a previous stage."""
    num_outputs: PositiveInt
    features: Annotated[tuple[Features, ...], Field(min_length=1)]
    kernels: tuple[Kernel, ...]
    strides: tuple[Stride, ...]
    """Stride at the entry of each stage; the first is all ones."""
    blocks: tuple[Blocks, ...]
    """Convolutions (``unet``, ``vnet``) or residual blocks (``residual_unet``) of each encoder stage."""
    decoder_blocks: tuple[Blocks, ...]
    """The same for the decoder, from the highest resolution; one entry less than stages."""

    @field_validator("kernels", "strides", "blocks")
    @classmethod
    def _check_stages(cls, entries: tuple[T, ...], info: ValidationInfo) -> tuple[T, ...]:
        features = info.data.get("features")
        if features is not None and len(entries) != len(features):
            raise ValueError(f"{info.field_name} has {len(entries)} entries but features has {len(features)}")
        return entries

    @field_validator("kernels", "strides")
    @classmethod
    def _check_axes(cls, entries: tuple[tuple[int, ...], ...], info: ValidationInfo) -> tuple[tuple[int, ...], ...]:
        others = info.data.get("kernels", ())
        faults = []
        if len({len(entry) for entry in (*entries, *others)}) > 1:
            faults.append("kernels and strides must all have the same number of axes")
        if info.field_name == "strides" and entries and max(entries[0]) > 1:
            faults.append(f"the first stride must be all ones, found {entries[0]}")
        if info.field_name == "kernels" and (
            even := [entry for entry in entries if any(size % 2 == 0 for size in entry)]
        ):
            faults.append(f"kernel sizes must be odd, found {', '.join(map(str, even))}")
        if faults:
            raise ValueError("; ".join(faults))
        return entries

    @field_validator("decoder_blocks")
    @classmethod
    def _check_decoder(cls, entries: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        features = info.data.get("features")
        if features is not None and len(entries) != len(features) - 1:
            raise ValueError(f"decoder_blocks has {len(entries)} entries, must have {len(features) - 1}")
        return entries


class Loss(Document):
    """Terms of the training loss, weighted equally (method sections 7.3 and 7.4)."""

    name: Annotated[str, AfterValidator(partial(require_installed, LOSSES))] = "compound"
    """Name of an installed loss; ``compound`` is the method's, of the terms that follow."""
    region: Literal["dice", "squared_dice"] = "dice"
    """``squared_dice``: the V-Net's, with squared terms in the denominator."""
    voxel: Literal["cross_entropy", "focal", "top_k"] | None = "cross_entropy"
    """Binary where classes are regions; none: only the region term."""
    batch_dice: bool
    """Dice sums run over the whole batch instead of each sample."""


class Configuration(Document):
    """One network with the preprocessing of its data. Axes are plan axes, coarsest first.

    A 2D configuration has two entries in ``patch_shape`` and ``median_shape``; its first plan axis is never
    resampled, and each slice along it is one image.
    """

    name: str
    dimensions: Literal[2, 3]
    data: str
    """Name of the configuration whose preprocessed data this one reads (the cascade reads ``3d_fullres``)."""
    spacing_mm: Annotated[tuple[PositiveFloat, ...], Field(min_length=2, max_length=3)]
    median_shape: MedianShape
    """Median case in voxels after resampling; may end in .5."""
    patch_shape: PatchShape
    batch_size: BatchSize
    normalization: tuple[ChannelNormalization, ...]
    resample_image: Resampling
    resample_labels: Resampling
    resample_logits: Resampling
    network: Network
    loss: Loss
    deep_supervision: bool
    mirror_axes: tuple[Axis, ...]
    """Axes of the patch (0 is its first) along which training and prediction may mirror."""
    previous_stage: str | None = None
    next_stage: str | None = None

    @field_validator("spacing_mm", "median_shape", "patch_shape")
    @classmethod
    def _check_axes(cls, entries: tuple[T, ...], info: ValidationInfo) -> tuple[T, ...]:
        axes = info.data.get("dimensions")
        if axes is not None and len(entries) != axes:
            raise ValueError(f"{info.field_name} has {len(entries)} entries, must have {axes}")
        return entries

    @field_validator("network")
    @classmethod
    def _check_network(cls, network: Network, info: ValidationInfo) -> Network:
        axes = info.data.get("dimensions")
        if axes is not None and len(network.strides[0]) != axes:
            raise ValueError(f"the network has {len(network.strides[0])} axes, must have {axes}")
        divisors = total_strides(network.strides)
        patch = info.data.get("patch_shape", divisors)
        if any(size % divisor for size, divisor in zip(patch, divisors, strict=False)):
            shapes = dict.fromkeys(nearest_multiples(patch, divisors))
            raise InvalidError(
                f"the patch {list(patch)} is not divisible by the total strides {list(divisors)}",
                fix=f"set patch_shape to {' or '.join(str(list(shape)) for shape in shapes)}",
            )
        return network

    @field_validator("mirror_axes")
    @classmethod
    def _check_mirror_axes(cls, mirror_axes: tuple[Axis, ...], info: ValidationInfo) -> tuple[Axis, ...]:
        axes = info.data.get("dimensions")
        if axes is not None and any(axis >= axes for axis in mirror_axes):
            raise ValueError(f"mirror_axes {mirror_axes} do not exist in a patch with {axes} axes")
        if len(set(mirror_axes)) < len(mirror_axes):
            raise ValueError(f"mirror_axes {mirror_axes} name an axis twice")
        return mirror_axes


def configuration_spacing(configuration: Configuration, case_spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    """Spacing to which one case is resampled, three plan axes, in mm (method section 4.1, step 4).

    ``case_spacing_mm`` has three plan axes too. A 2D configuration keeps the case's own spacing across slices.
    """
    first, second, third = (case_spacing_mm[0], *configuration.spacing_mm)[-3:]
    return first, second, third


class Plan(Document):
    """What to do with a dataset. Knows no machine and no clock."""

    schema_version: Literal[1] = 1
    dataset_name: str
    preset: str
    """See `planners.topology.find_preset`."""
    strict_reference: bool
    """Exactly nnU-Net's plan, in the axes of the files, even if it cannot be trained."""
    memory_target_gb: PositiveFloat
    channels: tuple[str, ...]
    labels: Labels
    source_axes: SourceAxes = "anatomical"
    """Anatomical axes, to which images are reoriented, or those of the files, flipped only (with ``strict_reference`` not even
    that). ``ras``: anatomical, but (z, y, x) run towards Superior, Anterior and Right, for some models of nnU-Net."""
    transpose_forward: Permutation
    """Plan axis i is source axis ``transpose_forward[i]``."""
    transpose_backward: Permutation
    original_median_spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Plan axes."""
    original_median_shape: tuple[Voxels, Voxels, Voxels]
    """Plan axes, after cropping, rounded."""
    intensities: tuple[IntensityStatistics, ...]
    configurations: Annotated[tuple[Configuration, ...], Field(min_length=1)]
    decisions: Annotated[tuple[DecisionRecord, ...], PROSE] = ()

    @field_validator("transpose_backward")
    @classmethod
    def _check_transposition(cls, backward: Permutation, info: ValidationInfo) -> Permutation:
        forward = info.data.get("transpose_forward")
        if forward is not None and tuple(forward[i] for i in backward) != (0, 1, 2):
            raise ValueError(f"transpose_backward {backward} does not undo transpose_forward {forward}")
        return backward

    @field_validator("intensities")
    @classmethod
    def _check_intensities(
        cls, intensities: tuple[IntensityStatistics, ...], info: ValidationInfo
    ) -> tuple[IntensityStatistics, ...]:
        channels = info.data.get("channels")
        if channels is not None and len(intensities) != len(channels):
            raise ValueError(f"intensities has {len(intensities)} entries, must have {len(channels)}, one a channel")
        return intensities

    @field_validator("configurations")
    @classmethod
    def _check_configurations(
        cls, configurations: tuple[Configuration, ...], info: ValidationInfo
    ) -> tuple[Configuration, ...]:
        dimensions = {configuration.name: configuration.dimensions for configuration in configurations}
        names = [configuration.name for configuration in configurations]
        faults = (
            [f"configuration names must differ from each other, found {names}"] if len(set(names)) < len(names) else []
        )
        channels = info.data.get("channels")
        for configuration in configurations:
            if channels is not None and len(configuration.normalization) != len(channels):
                faults.append(
                    f"{configuration.name}: one normalization for each of {counted(len(channels), 'channel')}"
                )
            faults += _interface_faults(configuration, channels, info.data.get("labels"))
            for field in ("data", "previous_stage", "next_stage"):
                other = getattr(configuration, field)
                if other is not None and other not in names:
                    faults.append(f"{configuration.name}: refers to {other!r}, which the plan lacks; it has {names}")
                elif other is not None and dimensions[other] != configuration.dimensions:
                    faults.append(
                        f"{configuration.name}: is {configuration.dimensions}D, but {field} names {other!r}, which is {dimensions[other]}D"
                    )
            faults += _shared_data_faults(configuration, [c for c in configurations if c.data == configuration.name])
            if configuration.name in _names_before(configuration, configurations):
                faults.append(f"{configuration.name}: its previous stages lead back to itself")
        if faults:
            raise ValueError("; ".join(faults))
        return configurations

    @property
    def names(self) -> tuple[str, ...]:
        """Of all configurations, in order."""
        return tuple(configuration.name for configuration in self.configurations)

    def configuration(self, name: str) -> Configuration:
        """The configuration of that name; `KeyError` lists the known names."""
        for configuration in self.configurations:
            if configuration.name == name:
                return configuration
        raise KeyError(f"the plan has no configuration {name!r}; it has: {', '.join(self.names)}")

    def chain(self, name: str) -> tuple[Configuration, ...]:
        """The configuration of that name with those before it whose predictions it needs, the first stage first."""
        last = self.configuration(name)
        before = _names_before(last, self.configurations)
        return (*(self.configuration(stage) for stage in reversed(before)), last)


def _shared_data_faults(owner: Configuration, readers: Sequence[Configuration]) -> list[str]:
    """Where the ``readers`` of the preprocessed data of a configuration want it otherwise."""
    faults = []
    for field in ("spacing_mm", "normalization", "resample_image", "resample_labels"):
        if any(getattr(reader, field) != getattr(owner, field) for reader in readers):
            names = ", ".join(reader.name for reader in readers)
            faults.append(
                f"{field} of {names} must be the same, as they read the preprocessed data of {owner.name}: change it in all"
            )
    return faults


def _interface_faults(
    configuration: Configuration, channels: tuple[str, ...] | None, labels: Labels | None
) -> list[str]:
    """Where inputs and outputs of a network are not those of the dataset; nothing is said of what is faulty itself."""
    network, faults = configuration.network, []
    if labels is not None and network.num_outputs != labels.num_outputs:
        faults.append(
            f"{configuration.name}: num_outputs is {network.num_outputs}, but the labels need {labels.num_outputs}"
        )
    if channels is not None and labels is not None:
        before = 0 if configuration.previous_stage is None else len(labels.values)
        if network.num_inputs != len(channels) + before:
            found = counted(len(channels), "channel") + (
                f" and {counted(before, 'label')} of the previous stage" if before else ""
            )
            faults.append(f"{configuration.name}: num_inputs is {network.num_inputs}, but the dataset has {found}")
    return faults


def _names_before(configuration: Configuration, configurations: tuple[Configuration, ...]) -> list[str]:
    """Names of the previous stages, the nearest first; each once, also where they run in a circle."""
    previous = {each.name: each.previous_stage for each in configurations}
    names: list[str] = []
    stage = configuration.previous_stage
    while stage is not None and stage not in names:
        names.append(stage)
        stage = previous.get(stage)
    return names

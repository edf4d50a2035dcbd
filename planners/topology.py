"""What planning needs to know of a network family, the presets that name one, and the layers that topologies consist of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol

from planners.decision import Decision
from planners.document import Issue, PlanningError
from planners.plan import Loss, Network
from planners.registry import TOPOLOGIES
from planners.rules.topology import Pyramid, PyramidRule, reference_pyramid, trainable_pyramid


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetRules:
    """Constants of one preset (method section 3.1)."""

    feature_maps_3d: int
    """Feature-map values of one training batch of 2 that fit into ``reference_gb``, 3D."""
    feature_maps_2d: int
    """The same for a batch of 12 in 2D."""
    reference_gb: float
    """Memory that these values stand for: the preset's default."""
    batch_share: float
    """Largest share of the dataset's voxels in one batch."""
    patch_yields_to_batch: bool
    """2D patches shrink until 12 fit at once, not just 2."""


class Describe(Protocol):
    """Makes the network on a pyramid whose highest resolution has ``spacing_mm``."""

    def __call__(
        self, pyramid: Pyramid, spacing_mm: Sequence[float], *, num_inputs: int, num_outputs: int
    ) -> Network: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """One network family. To add one: such an object, and the torch module that it names."""

    name: str
    """As plans name it."""
    title: str
    """For people."""
    module: str
    """``module:callable`` that makes the torch module from a `Network` (keyword ``deep_supervision``); code, never a document,
    names it."""
    describe: Describe
    layers: Callable[[Network, Sequence[Stage]], Iterable[Layer]]
    """Every layer in the order of the forward pass, heads right after their stage, for the memory model."""
    feature_maps: Callable[[Pyramid, int], int]
    """Feature-map values of one image (method section 3.8), from the pyramid and the number of label entries: background,
    classes or regions, and the ignore label. One stage has no head."""
    source: str | None = None
    """Where the family comes from; none: the method."""
    dimensions: tuple[int, ...] = (2, 3)
    most_stages: int | None = None
    """Most stages that nnU-Net plans."""
    reference_pyramid: PyramidRule = reference_pyramid
    """The stages for a patch, exactly as in nnU-Net ..."""
    trainable_pyramid: PyramidRule = trainable_pyramid
    """... and where that gives a network that cannot be trained."""
    has_deep_supervision: bool = True
    """Whether there is a head at each resolution."""
    decide_loss: Callable[[bool], Decision[Loss]] | None = None
    """Its own loss, from whether Dice sums run over the batch; none: that of the method."""
    decide_candidate: Callable[[Sequence[float]], Decision[bool]] | None = None
    """Whether the preset ``default`` plans it beside the U-Net at full resolution, by the spacing; none: never. Asked of
    families in this package only."""
    presets: Mapping[str, PresetRules] = field(default_factory=dict)
    """Presets that plan this family, by name."""


def preset_names() -> tuple[str, ...]:
    """Presets of all installed topologies."""
    return tuple(preset for name in TOPOLOGIES.names() for preset in TOPOLOGIES.get(name).presets)


def _others() -> Iterator[str]:
    yield from (name for name in TOPOLOGIES.names() if name not in TOPOLOGIES.own)


def find_preset(preset: str) -> tuple[Topology, PresetRules]:
    """The topology that a preset plans, and its constants. Raises `PlanningError` for a name that is not installed."""
    for name in chain(TOPOLOGIES.own, _others()):
        topology = TOPOLOGIES.get(name)
        if preset in topology.presets:
            return topology, topology.presets[preset]
    issue = Issue(
        code="plan.unknown_preset",
        where="preset",
        message=f"no preset {preset!r} is installed",
        fix=f"choose one of {', '.join(preset_names())}",
    )
    raise PlanningError("the dataset cannot be planned", [issue])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One convolution with what follows it up to the next, with counts for one image."""

    name: str
    parameters: int
    inputs: int
    """Values that the convolution reads."""
    outputs: int
    """Values that it writes."""
    multiplications: int = 0
    """Of values with weights, in the forward pass; 0: unknown."""
    convolved: int = 0
    """Convolution outputs that wait as the input of a norm."""
    normed: int = 0
    """Norm outputs that wait as the input of an activation which changes nothing in place."""
    activated: int = 0
    """Activation outputs, which wait as the next convolution's input too."""
    again: int = 0
    """Of the activation outputs those that a GPU computes once more instead of keeping them."""
    joined: int = 0
    """Values that wait only as a convolution's input: concatenations, pooled maps."""
    pooled: int = 0
    """Values that an average pooling over three axes reads; torch's kernels for CPUs know only float32 there."""
    beside: int = 0
    """Values of the gradient that goes round this layer on a skip path and waits while the layer runs backward."""
    is_skip: bool = False
    """Its output is needed again by the decoder."""
    takes_skip: bool = False
    """Joins its output to a skip; both gradients come in one piece, which stays until the encoder's part is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A resolution: voxels of a feature map and the kernel there."""

    voxels: int
    kernel: int
    """Voxels under the kernel."""
    step: int
    """Voxels under the stride at its entry."""
    axes: int


def conv_block(name: str, inputs: int, outputs: int, stage: Stage, size_before: int, *, is_skip: bool = False) -> Layer:
    """Convolution with bias, norm with scale and shift, activation in place."""
    size = outputs * stage.voxels
    return Layer(
        name=name,
        parameters=inputs * outputs * stage.kernel + 3 * outputs,
        inputs=inputs * size_before,
        outputs=size,
        multiplications=inputs * stage.kernel * size,
        convolved=size,
        activated=size,
        is_skip=is_skip,
    )


def residual_block(
    name: str, inputs: int, outputs: int, stage: Stage, size_before: int, *, pools: bool, is_skip: bool
) -> Iterator[Layer]:
    """Two convolutions beside a skip path that pools where it strides and projects where the width changes."""
    size = outputs * stage.voxels
    if inputs != outputs:
        yield Layer(
            name=f"{name} projection",
            parameters=inputs * outputs + 2 * outputs,
            inputs=inputs * stage.voxels,
            outputs=size,
            multiplications=inputs * size,
            convolved=size,
            joined=inputs * stage.voxels if pools else 0,
            pooled=inputs * size_before if pools and stage.axes == 3 else 0,
        )
    first = conv_block(f"{name} convolution 0", inputs, outputs, stage, size_before)
    yield replace(first, beside=size, again=size)
    second = conv_block(f"{name} convolution 1", outputs, outputs, stage, stage.voxels, is_skip=is_skip)
    yield replace(second, beside=size)


def upsampling(name: str, below: int, features: int, stage_below: Stage, stage: Stage) -> Layer:
    """Transposed convolution with bias; its output waits only joined to the skip."""
    return Layer(
        name=name,
        parameters=below * features * stage_below.step + features,
        inputs=below * stage_below.voxels,
        outputs=features * stage.voxels,
        multiplications=below * features * stage.voxels,
        joined=2 * features * stage.voxels,
        takes_skip=True,
    )


def head(name: str, features: int, outputs: int, stage: Stage) -> Layer:
    """One voxel wide convolution with bias; what the loss keeps of its output is counted there."""
    return Layer(
        name=name,
        parameters=features * outputs + outputs,
        inputs=features * stage.voxels,
        outputs=outputs * stage.voxels,
        multiplications=features * outputs * stage.voxels,
    )

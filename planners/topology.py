"""What planning needs to know of a network family, and the presets that name one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from planners.decision import Decision
from planners.document import Issue, PlanningError
from planners.geometry import PlanSpacing
from planners.layers import Layer, Stage
from planners.parts import TOPOLOGIES
from planners.plan import Loss, Network
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
    decide_candidate: Callable[[PlanSpacing], Decision[bool]] | None = None
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

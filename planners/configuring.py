"""One configuration from its grid: which rules, in which order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from planners.decision import Decision, DecisionRecord
from planners.document import Issue, PlanningError
from planners.fingerprint import ClassSize, Labels
from planners.geometry import Axis, Permutation
from planners.plan import ChannelNormalization, Configuration, Loss, Network
from planners.rules.batch import decide_batch_size
from planners.rules.cascade import decide_inputs
from planners.rules.loss import decide_batch_dice, decide_deep_supervision, decide_loss, find_rarity
from planners.rules.memory import MemoryBudget, memory_budget
from planners.rules.mirroring import decide_mirror_axes
from planners.rules.patch import (
    Grid,
    NoFit,
    PatchFit,
    describe_departure,
    describe_patch,
    fit_reference_patch,
    fit_trainable_patch,
)
from planners.rules.spacing import Interpolation
from planners.rules.topology import Pyramid, describe_pyramid
from planners.topology import PresetRules, Topology
from planners.wording import voxels

LARGER_TARGETS_GB = (8.0, 12.0, 16.0, 24.0, 32.0, 40.0, 48.0, 80.0)
"""Common sizes of GPU memory, to say what more of it would change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all configurations of a plan share."""

    dataset_name: str
    preset: PresetRules
    memory_target_gb: float
    strict_reference: bool
    labels: Labels
    label_entries: int
    """Background, classes or regions, and the ignore entry (method section 3.8)."""
    num_training_cases: int
    class_sizes: tuple[ClassSize, ...]
    normalization: tuple[ChannelNormalization, ...]
    interpolation: Interpolation
    transpose_forward: Permutation
    sided_axis: Axis | None
    sided_pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What sets one configuration apart from the others of its plan."""

    name: str
    topology: Topology
    data: str
    is_full_resolution: bool = False
    has_low_resolution: bool = False
    previous_stage: str | None = None
    next_stage: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A patch, and if it departs from nnU-Net's, why."""

    fit: PatchFit
    departure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A configuration with the decisions that led to it."""

    configuration: Configuration
    records: tuple[DecisionRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choices:
    """The decisions on one configuration, in order."""

    inputs: Decision[int] | None
    """None: the image alone."""
    patch: Decision[tuple[int, ...]]
    stages: Decision[Network]
    batch: Decision[int]
    batch_dice: Decision[bool]
    loss: Decision[Loss]
    deep_supervision: Decision[bool]
    mirroring: Decision[tuple[Axis, ...]]


def fit_by_letter(setting: Setting, topology: Topology, grid: Grid) -> PatchFit | NoFit:
    """The patch exactly as nnU-Net plans it, or why there is none."""
    fit = fit_reference_patch(
        grid, _budget(setting, grid), _estimate(setting, topology), rule=topology.reference_pyramid
    )
    most = topology.most_stages
    if isinstance(fit, PatchFit) and most is not None and fit.pyramid.num_stages > most:
        return NoFit(
            reason=f"a patch of {voxels(fit.pyramid.patch)} voxels has more than {most} stages", yields_to_memory=False
        )
    return fit


def fit_trainable(setting: Setting, topology: Topology, grid: Grid) -> PatchFit:
    """The patch among trainable networks."""
    return fit_trainable_patch(
        grid, _budget(setting, grid), _estimate(setting, topology), rule=topology.trainable_pyramid
    )


def _estimate(setting: Setting, topology: Topology) -> Callable[[Pyramid], int]:
    return lambda pyramid: topology.feature_maps(pyramid, setting.label_entries)


def flaw_of(fit: PatchFit | NoFit | None) -> str | None:
    """Why a network of this fit cannot be trained; none where it can, or without a fit."""
    if isinstance(fit, NoFit):
        return fit.reason
    if fit is not None and fit.pyramid.num_stages < 2:
        return (
            f"a patch of {voxels(fit.pyramid.patch)} voxels gives a network of one stage, without decoder and outputs"
        )
    return None


def fit_grid(setting: Setting, name: str, topology: Topology, grid: Grid) -> Fitted:
    """The patch for a grid: nnU-Net's, or a trainable one where that cannot be trained (unless strict)."""
    letter = fit_by_letter(setting, topology, grid)
    if setting.strict_reference:
        if isinstance(letter, NoFit):
            raise refusal(setting.dataset_name, name, letter)
        return Fitted(fit=letter)
    flaw = flaw_of(letter)
    if flaw is None and isinstance(letter, PatchFit):
        return Fitted(fit=letter)
    return Fitted(fit=fit_trainable(setting, topology, grid), departure=flaw)


def refusal(dataset_name: str, name: str, letter: NoFit) -> PlanningError:
    """Why nnU-Net's rules give no plan."""
    issue = Issue(
        code="plan.no_patch",
        where=f"configuration {name}",
        message=letter.reason,
        fix="plan without --strict-reference" + (", or for more --memory" if letter.yields_to_memory else ""),
    )
    return PlanningError(f"dataset {dataset_name} cannot be planned", [issue])


def configure(setting: Setting, role: Role, grid: Grid, fitted: Fitted) -> Draft:
    """The configuration on a grid with the patch that fits it."""
    choices = _choose(setting, role, grid, fitted.fit)
    configuration = Configuration(
        name=role.name,
        dimensions=_dimensions(grid),
        data=role.data,
        spacing_mm=grid.spacing_mm,
        median_shape=tuple(float(size) for size in grid.median_shape),
        patch_shape=choices.patch.value,
        batch_size=choices.batch.value,
        normalization=setting.normalization,
        resample_image=setting.interpolation.image,
        resample_labels=setting.interpolation.labels,
        resample_logits=setting.interpolation.logits,
        network=choices.stages.value,
        loss=choices.loss.value,
        deep_supervision=choices.deep_supervision.value,
        mirror_axes=choices.mirroring.value,
        previous_stage=role.previous_stage,
        next_stage=role.next_stage,
    )
    return Draft(configuration=configuration, records=_records(role.name, choices, fitted))


def _choose(setting: Setting, role: Role, grid: Grid, fit: PatchFit) -> _Choices:
    dimensions, budget = _dimensions(grid), _budget(setting, grid)
    batch = decide_batch_size(fit, budget, dataset_voxels=grid.dataset_voxels, share=setting.preset.batch_share)
    batch_dice = decide_batch_dice(
        dimensions, is_full_resolution=role.is_full_resolution, has_low_resolution=role.has_low_resolution
    )
    num_channels, previous = len(setting.normalization), role.previous_stage
    inputs = decide_inputs(num_channels, previous, len(setting.labels.values)) if previous is not None else None
    network = role.topology.describe(
        fit.pyramid,
        grid.spacing_mm,
        num_inputs=num_channels if inputs is None else inputs.value,
        num_outputs=setting.labels.num_outputs,
    )
    return _Choices(
        inputs=inputs,
        patch=describe_patch(fit, budget, setting.memory_target_gb, change=_with_more_memory(setting, role, grid, fit)),
        stages=describe_pyramid(fit.pyramid, grid.spacing_mm, network, source=role.topology.source),
        batch=batch,
        batch_dice=batch_dice,
        loss=_loss(setting, role, batch_dice=batch_dice.value, patch_voxels=math.prod(fit.pyramid.patch), grid=grid),
        deep_supervision=decide_deep_supervision(
            role.topology, fit.pyramid.num_stages, strict_reference=setting.strict_reference
        ),
        mirroring=decide_mirror_axes(
            dimensions,
            transpose_forward=setting.transpose_forward,
            sided_axis=None if setting.strict_reference else setting.sided_axis,
            sided_pairs=setting.sided_pairs,
        ),
    )


def _loss(setting: Setting, role: Role, *, batch_dice: bool, patch_voxels: int, grid: Grid) -> Decision[Loss]:
    if role.topology.decide_loss is not None:
        return role.topology.decide_loss(batch_dice)
    rarity = find_rarity(
        () if setting.strict_reference else setting.class_sizes,
        case_voxels=grid.dataset_voxels / setting.num_training_cases,
        patch_voxels=patch_voxels,
    )
    return decide_loss(has_regions=setting.labels.has_regions, batch_dice=batch_dice, rarity=rarity)


def _records(name: str, choices: _Choices, fitted: Fitted) -> tuple[DecisionRecord, ...]:
    network = choices.stages.value
    pyramid: JsonValue = {
        "features": list(network.features),
        "strides": [list(stride) for stride in network.strides],
        "kernels": [list(kernel) for kernel in network.kernels],
        "blocks": list(network.blocks),
    }
    told: list[tuple[Decision[Any], JsonValue]] = [
        (choices.patch, list(choices.patch.value)),
        (choices.stages, pyramid),
        (choices.batch, choices.batch.value),
        (choices.batch_dice, choices.batch_dice.value),
        (choices.loss, choices.loss.value.model_dump(mode="json")),
        (choices.deep_supervision, choices.deep_supervision.value),
        (choices.mirroring, list(choices.mirroring.value)),
    ]
    if choices.inputs is not None:
        told.insert(0, (choices.inputs, choices.inputs.value))
    if fitted.departure is not None:
        departure = describe_departure(fitted.fit, fitted.departure)
        told.insert(0, (departure, list(departure.value)))
    return tuple(decision.record(value, configuration=name) for decision, value in told)


def _with_more_memory(setting: Setting, role: Role, grid: Grid, fit: PatchFit) -> str:
    """What the next larger common GPU would change about the patch."""
    for target_gb in LARGER_TARGETS_GB:
        if target_gb <= setting.memory_target_gb or fit.num_steps == 0:
            continue
        budget = memory_budget(setting.preset, target_gb, dimensions=_dimensions(grid))
        larger = fit_reference_patch(
            grid, budget, _estimate(setting, role.topology), rule=role.topology.reference_pyramid
        )
        if flaw_of(larger) is None and isinstance(larger, PatchFit) and larger.pyramid.patch != fit.pyramid.patch:
            patch = voxels(larger.pyramid.patch)
            if role.next_stage is not None:  # how coarse the low resolution is depends on the full-resolution patch
                return f"with {target_gb:g} GB a patch of {patch} voxels would fit, or a finer spacing, or no cascade would be needed"
            condition = "" if role.previous_stage is None else ", if a cascade were still needed"
            return f"with {target_gb:g} GB the patch would be {patch} voxels{condition}"
    if fit.num_steps == 0 and role.next_stage is not None:
        return "with more memory the spacing might be finer, or no cascade needed"
    if fit.num_steps == 0:
        return "larger or finer images, but not more memory"
    return f"more than {LARGER_TARGETS_GB[-1]:g} GB of memory would allow a larger patch"


def _budget(setting: Setting, grid: Grid) -> MemoryBudget:
    return memory_budget(setting.preset, setting.memory_target_gb, dimensions=_dimensions(grid))


def _dimensions(grid: Grid) -> Any:
    return len(grid.spacing_mm)

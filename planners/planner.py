"""Fingerprint and memory target -> plan: which configurations a dataset gets, in nnU-Net's order, and each by which rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planners.decision import Decision, DecisionRecord, voxels
from planners.document import Issue, PlanningError
from planners.fingerprint import CtEvidence, Fingerprint, IntensityStatistics, find_issues, find_size_issues
from planners.geometry import Permutation, SourceSpacing, inverse, transpose
from planners.plan import ChannelNormalization, Configuration, Loss, Plan, SourceAxes
from planners.registry import TOPOLOGIES
from planners.rules.axes import (
    decide_axis_order,
    decide_mirror_axes,
    decide_source_axes,
    decide_volumetric,
    find_single_slice_axis,
    in_acquisition_axes,
    put_single_slice_first,
)
from planners.rules.intensity import decide_normalization
from planners.rules.loss import decide_batch_dice, decide_deep_supervision, decide_loss, find_rarity
from planners.rules.patch import (
    Grid,
    MemoryBudget,
    NoFit,
    PatchFit,
    decide_batch_size,
    decide_memory_target,
    decide_smaller_patch,
    describe_departure,
    describe_patch,
    fit_reference_patch,
    fit_trainable_patch,
    memory_budget,
)
from planners.rules.spacing import (
    Interpolation,
    LowResolution,
    decide_coarse_grid,
    decide_inputs,
    decide_interpolation,
    decide_median_shape,
    decide_target_spacing,
    search_low_resolution,
    structure_width_mm,
)
from planners.rules.topology import Pyramid, describe_pyramid
from planners.topology import PresetRules, Topology, find_preset

LARGER_TARGETS_GB = (8.0, 12.0, 16.0, 24.0, 32.0, 40.0, 48.0, 80.0)
"""Common sizes of GPU memory, to say what more of it would change."""

LITTLE_MEMORY = 8
"""Candidates for little time are planned for so many times less memory, which gives about as many times fewer voxels a patch."""

Draft = tuple[Configuration, tuple[DecisionRecord, ...]]
"""A configuration with the decisions that led to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """What all configurations of a plan share."""

    fingerprint: Fingerprint
    preset: PresetRules
    memory_target_gb: float
    strict_reference: bool
    normalization: tuple[ChannelNormalization, ...]
    interpolation: Interpolation
    transpose_forward: Permutation

    def budget(self, grid: Grid) -> MemoryBudget:
        """What fits on a grid."""
        return memory_budget(self.preset, self.memory_target_gb, dimensions=len(grid.spacing_mm))

    def estimate(self, topology: Topology) -> Callable[[Pyramid], int]:
        """Feature-map values of one image."""
        return lambda pyramid: topology.feature_maps(pyramid, self.fingerprint.num_label_entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Role:
    """What sets one configuration apart from the others of its plan."""

    name: str
    topology: Topology
    data: str
    is_full_resolution: bool = False
    has_low_resolution: bool = False
    previous_stage: str | None = None
    next_stage: str | None = None
    for_little_time: bool = False
    """Planned for less memory than there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    """A patch, and if it departs from nnU-Net's, why."""

    fit: PatchFit
    departure: str | None = None


def plan_dataset(
    fingerprint: Fingerprint,
    *,
    preset: str = "default",
    memory_gb: float | None = None,
    device_memory_gb: float | None = None,
    target_spacing_mm: tuple[float, float, float] | None = None,
    strict_reference: bool = False,
) -> Plan:
    """What to do with a dataset (method section 3).

    ``memory_gb`` (1e9 bytes) is what training is planned for; without it the preset's own, which ``device_memory_gb``
    caps where the device is smaller. ``target_spacing_mm`` replaces the spacing of full resolution, source axes
    (z, y, x). With ``strict_reference`` the plan is exactly nnU-Net's, even if a network cannot be trained (see
    `why_untrainable`); without it named departures make such networks trainable, and candidates may be added.

    The order of cases and their names do not matter. Raises `PlanningError` with all issues where sizes, memory or spacing
    are out of range, and where nnU-Net's rules give no plan.
    """
    topology, rules = find_preset(preset)
    issues = find_issues(
        fingerprint, memory_gb=memory_gb, device_memory_gb=device_memory_gb, target_spacing_mm=target_spacing_mm
    )
    _refuse(fingerprint, *issues)
    fingerprint, source_axes, reoriented = _in_source_axes(fingerprint)
    memory = decide_memory_target(rules, requested_gb=memory_gb, device_gb=device_memory_gb)
    volume, forward, records = _volume(fingerprint, target_spacing_mm, strict_reference=strict_reference)
    normalization, intensities = _normalization(fingerprint, () if strict_reference else fingerprint.ct_evidence)
    interpolation = decide_interpolation()
    setting = _Setting(
        fingerprint=fingerprint,
        preset=rules,
        memory_target_gb=memory.value,
        strict_reference=strict_reference,
        normalization=normalization.value,
        interpolation=interpolation.value,
        transpose_forward=forward,
    )
    candidates, drafts = _configurations(setting, topology, volume, preset == "default" and not strict_reference)
    z, y, x = _median([case.shape for case in fingerprint.cases], forward)
    return Plan(
        dataset_name=fingerprint.dataset_name,
        preset=preset,
        strict_reference=strict_reference,
        memory_target_gb=memory.value,
        channels=fingerprint.channels,
        labels=fingerprint.labels,
        source_axes=source_axes,
        transpose_forward=forward,
        transpose_backward=inverse(forward),
        original_median_spacing_mm=_median([case.spacing_mm for case in fingerprint.cases], forward),
        original_median_shape=(round(z), round(y), round(x)),
        intensities=intensities,
        configurations=tuple(configuration for configuration, _ in drafts),
        decisions=(
            *(memory.record(), *reoriented, *records, normalization.record(), interpolation.record()),
            *candidates,
            *(record for _, own in drafts for record in own),
        ),
    )


def _normalization(
    fingerprint: Fingerprint, evidence: Sequence[CtEvidence]
) -> tuple[Decision[tuple[ChannelNormalization, ...]], tuple[IntensityStatistics, ...]]:
    """Schemes, and the intensities of all cases; of those that are CT where some are not."""
    decided = decide_normalization(fingerprint.channels, fingerprint.median_relative_size_after_cropping, evidence)
    intensities = list(fingerprint.intensities)
    for channel, (each, chosen) in enumerate(zip(evidence, decided.value, strict=False)):
        if chosen.scheme == "ct_or_zscore" and each.intensities is not None:
            intensities[channel] = each.intensities
    return decided, tuple(intensities)


def _refuse(fingerprint: Fingerprint, *issues: Issue) -> None:
    if issues:
        raise PlanningError(f"dataset {fingerprint.dataset_name} cannot be planned", issues)


def _in_source_axes(fingerprint: Fingerprint) -> tuple[Fingerprint, SourceAxes, list[DecisionRecord]]:
    """The fingerprint along the source axes, these axes, and why; nothing where files have no directions."""
    axes = decide_source_axes(fingerprint.cases, sided_axis=fingerprint.sided_axis)
    if axes.value == "acquisition":
        fingerprint = fingerprint.model_copy(update={"cases": tuple(map(in_acquisition_axes, fingerprint.cases))})
    known = any(case.file_axes is not None for case in fingerprint.cases)
    return fingerprint, axes.value, [axes.record()] * known


def _median(values: Sequence[Sequence[float]], permutation: Permutation) -> tuple[float, float, float]:
    """Along each axis, in plan axes."""
    return transpose(np.median(np.array(values), axis=0).tolist(), permutation)


def _volume(
    fingerprint: Fingerprint, requested_mm: tuple[float, float, float] | None, *, strict_reference: bool
) -> tuple[Grid, Permutation, tuple[DecisionRecord, ...]]:
    """Resampled dataset and order of the axes, with the decisions that led there (method sections 3.2 to 3.4)."""
    wanted = None if requested_mm is None else SourceSpacing(requested_mm)
    spacing = decide_target_spacing(fingerprint.cases, requested_mm=wanted)
    shape = decide_median_shape(fingerprint.cases, spacing.value, strict_reference=strict_reference)
    _refuse(fingerprint, *find_size_issues(shape.value, requested_mm=wanted))
    order = decide_axis_order(spacing.value)
    single = None if strict_reference else find_single_slice_axis(shape.value, spacing.value)
    if single is not None and order.value[0] != single:
        order = put_single_slice_first(single, shape.value, spacing.value)
    median_shape = transpose(shape.value, order.value)
    volume = Grid(
        spacing_mm=transpose(spacing.value, order.value),
        median_shape=median_shape,
        dataset_voxels=math.prod(median_shape) * fingerprint.num_training_cases,
    )
    return volume, order.value, (spacing.record(), shape.record(), order.record())


def configuration_names() -> tuple[str, ...]:
    """All names that configurations of a plan can have."""
    topologies = map(TOPOLOGIES.get, TOPOLOGIES.own)
    others = (f"3d_fullres_{each.name}" for each in topologies if each.decide_candidate is not None)
    return ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres", "3d_coarse", "3d_fullres_small", *others)


def _configurations(
    setting: _Setting, topology: Topology, volume: Grid, with_candidates: bool
) -> tuple[list[DecisionRecord], list[Draft]]:
    """All configurations in the order of a plan (method sections 3.5, 3.10), and why these."""
    slices = replace(volume, spacing_mm=volume.spacing_mm[1:], median_shape=volume.median_shape[1:])
    drafts = []
    if 2 in topology.dimensions:
        drafts.append(_fit_and_configure(setting, _Role(name="2d", topology=topology, data="2d"), slices))
    volumetric = decide_volumetric(volume.median_shape)
    if not volumetric.value or 3 not in topology.dimensions:
        if not drafts:
            message = f"a {topology.title} is 3D only, and the median case is a single slice"
            issue = Issue(code="plan.topology_dimensions", where="preset", message=message, fix="choose another preset")
            _refuse(setting.fingerprint, issue)
        return [volumetric.record(shown=False)], drafts
    fullres = _Role(name="3d_fullres", topology=topology, data="3d_fullres", is_full_resolution=True)
    fitted = _fit(setting, fullres, volume)
    low = _decide_low_resolution(setting, topology, volume, fitted.fit.pyramid.patch)
    if low.value is None:
        drafts.append(_configure(setting, fullres, volume, fitted))
    else:
        fullres = replace(fullres, has_low_resolution=True)
        lowres = _Role(name="3d_lowres", topology=topology, data="3d_lowres", next_stage="3d_cascade_fullres")
        cascade = replace(fullres, name="3d_cascade_fullres", previous_stage="3d_lowres")
        drafts.append(_configure(setting, lowres, low.value.grid, _Fitted(fit=low.value.fit)))
        drafts += [_configure(setting, role, volume, fitted) for role in (fullres, cascade)]
    records = [volumetric.record(), low.record(shown=low.value is not None)]
    for beside in map(TOPOLOGIES.get, TOPOLOGIES.own if with_candidates else ()):
        if beside.decide_candidate is not None:
            candidate = beside.decide_candidate(volume.spacing_mm)
            records.append(candidate.record())
            if candidate.value:
                role = replace(fullres, name=f"3d_fullres_{beside.name}", topology=beside)
                drafts.append(_fit_and_configure(setting, role, volume))
    if not setting.strict_reference:
        own, little = _for_little_time(setting, fullres, volume, fitted.fit)
        records, drafts = [*records, *own], [*drafts, *little]
    return records, drafts


def _for_little_time(
    setting: _Setting, fullres: _Role, volume: Grid, own: PatchFit
) -> tuple[list[DecisionRecord], list[Draft]]:
    """A smaller patch at full resolution, and coarser voxels with as many: candidates where a step of the whole patch takes long.

    Both are planned by the same rules for less memory; nothing where the patch is small already.
    """
    little = replace(setting, memory_target_gb=setting.memory_target_gb / LITTLE_MEMORY)
    fitted = _fit(little, fullres, volume)
    smaller = decide_smaller_patch(own.pyramid.patch, fitted.fit.pyramid.patch)
    if not smaller.value:
        return [smaller.record()], []
    role = replace(fullres, name="3d_fullres_small", for_little_time=True)
    drafts = [_configure(little, role, volume, fitted)]
    fingerprint = setting.fingerprint
    width_mm = structure_width_mm(fingerprint.class_sizes)
    coarse = decide_coarse_grid(volume, width_mm=width_mm, num_cases=fingerprint.num_training_cases)
    if coarse.value is not None:
        role = _Role(name="3d_coarse", topology=fullres.topology, data="3d_coarse", for_little_time=True)
        drafts.append(_fit_and_configure(little, role, coarse.value))
    return [smaller.record(), coarse.record(shown=coarse.value is not None)], drafts


def _decide_low_resolution(
    setting: _Setting, topology: Topology, volume: Grid, patch: tuple[int, ...]
) -> Decision[LowResolution | None]:
    """The low resolution as nnU-Net plans it; where its network could not be trained, a trainable one."""
    num_cases = setting.fingerprint.num_training_cases
    found = search_low_resolution(
        volume, patch, num_cases=num_cases, fit=lambda grid: _fit_by_letter(setting, topology, grid)
    )
    if isinstance(found.value, NoFit) and setting.strict_reference:
        _refuse(setting.fingerprint, _no_patch("3d_lowres", found.value))
    if not setting.strict_reference and _flaw(
        found.value.fit if isinstance(found.value, LowResolution) else found.value
    ):
        found = search_low_resolution(
            volume,
            patch,
            num_cases=num_cases,
            fit=lambda grid: _fit_trainable(setting, topology, grid),
            least_voxels=1,
        )
    return found  # type: ignore[return-value]  # NoFit is gone: it was refused, or the trainable search has none


def _fit_by_letter(setting: _Setting, topology: Topology, grid: Grid) -> PatchFit | NoFit:
    """The patch exactly as nnU-Net plans it, or why there is none."""
    rule, most = topology.reference_pyramid, topology.most_stages
    fit = fit_reference_patch(grid, setting.budget(grid), setting.estimate(topology), rule=rule)
    if isinstance(fit, PatchFit) and most is not None and fit.pyramid.num_stages > most:
        reason = f"a patch of {voxels(fit.pyramid.patch)} voxels has more than {most} stages"
        return NoFit(reason=reason, yields_to_memory=False)
    return fit


def _fit_trainable(setting: _Setting, topology: Topology, grid: Grid) -> PatchFit:
    rule = topology.trainable_pyramid
    return fit_trainable_patch(grid, setting.budget(grid), setting.estimate(topology), rule=rule)


def _flaw(fit: PatchFit | NoFit | None) -> str | None:
    """Why a network of this fit cannot be trained; none where it can, or without a fit."""
    if isinstance(fit, NoFit):
        return fit.reason
    if fit is not None and fit.pyramid.num_stages < 2:
        return (
            f"a patch of {voxels(fit.pyramid.patch)} voxels gives a network of one stage, without decoder and outputs"
        )
    return None


def _no_patch(name: str, letter: NoFit) -> Issue:
    """Why nnU-Net's rules give no plan."""
    return Issue(
        code="plan.no_patch",
        where=f"configuration {name}",
        message=letter.reason,
        fix="plan without --strict-reference" + (", or for more --memory" if letter.yields_to_memory else ""),
    )


def _fit(setting: _Setting, role: _Role, grid: Grid) -> _Fitted:
    """The patch for a grid: nnU-Net's, or a trainable one where that cannot be trained (unless strict)."""
    letter = _fit_by_letter(setting, role.topology, grid)
    if setting.strict_reference and isinstance(letter, NoFit):
        _refuse(setting.fingerprint, _no_patch(role.name, letter))
    flaw = None if setting.strict_reference else _flaw(letter)
    if flaw is None and isinstance(letter, PatchFit):
        return _Fitted(fit=letter)
    return _Fitted(fit=_fit_trainable(setting, role.topology, grid), departure=flaw)


def _fit_and_configure(setting: _Setting, role: _Role, grid: Grid) -> Draft:
    return _configure(setting, role, grid, _fit(setting, role, grid))


def _configure(setting: _Setting, role: _Role, grid: Grid, fitted: _Fitted) -> Draft:
    """The configuration on a grid with the patch that fits it."""
    labels, topology, strict = setting.fingerprint.labels, role.topology, setting.strict_reference
    dimensions: Any = len(grid.spacing_mm)
    fit, budget, pyramid = fitted.fit, setting.budget(grid), fitted.fit.pyramid
    num_inputs, previous = len(setting.normalization), role.previous_stage
    decisions: list[Decision[Any]] = []
    if fitted.departure is not None:
        decisions.append(describe_departure(fit, fitted.departure))
    if previous is not None:
        decisions.append(decide_inputs(num_inputs, previous, len(labels.values)))
        num_inputs = decisions[-1].value
    network = topology.describe(pyramid, grid.spacing_mm, num_inputs=num_inputs, num_outputs=labels.num_outputs)
    change = _with_more_memory(setting, role, grid, fit)
    batch = decide_batch_size(fit, budget, dataset_voxels=grid.dataset_voxels, share=setting.preset.batch_share)
    batch_dice = decide_batch_dice(
        dimensions, is_full_resolution=role.is_full_resolution, has_low_resolution=role.has_low_resolution
    )
    loss = _decide_loss(setting, topology, grid, math.prod(pyramid.patch), batch_dice=batch_dice.value)
    deep_supervision = decide_deep_supervision(topology, pyramid.num_stages, strict_reference=strict)
    mirroring = decide_mirror_axes(
        dimensions,
        transpose_forward=setting.transpose_forward,
        sided_axis=None if strict else setting.fingerprint.sided_axis,
        sided_pairs=setting.fingerprint.sided_pairs,
    )
    decisions += [
        describe_patch(fit, budget, setting.memory_target_gb, change=change),
        describe_pyramid(pyramid, grid.spacing_mm, network, source=topology.source),
        *(batch, batch_dice, loss, deep_supervision, mirroring),
    ]
    configuration = Configuration(
        name=role.name,
        dimensions=dimensions,
        data=role.data,
        spacing_mm=grid.spacing_mm,
        median_shape=tuple(float(size) for size in grid.median_shape),
        patch_shape=pyramid.patch,
        batch_size=batch.value,
        normalization=setting.normalization,
        resample_image=setting.interpolation.image,
        resample_labels=setting.interpolation.labels,
        resample_logits=setting.interpolation.logits,
        network=network,
        loss=loss.value,
        deep_supervision=deep_supervision.value,
        mirror_axes=mirroring.value,
        previous_stage=previous,
        next_stage=role.next_stage,
    )
    return configuration, tuple(decision.record(role.name) for decision in decisions)


def _decide_loss(
    setting: _Setting, topology: Topology, grid: Grid, patch_voxels: int, *, batch_dice: bool
) -> Decision[Loss]:
    if topology.decide_loss is not None:
        return topology.decide_loss(batch_dice)
    fingerprint = setting.fingerprint
    rarity = find_rarity(
        () if setting.strict_reference else fingerprint.class_sizes,
        case_voxels=grid.dataset_voxels / fingerprint.num_training_cases,
        patch_voxels=patch_voxels,
    )
    return decide_loss(has_regions=fingerprint.labels.has_regions, batch_dice=batch_dice, rarity=rarity)


def _with_more_memory(setting: _Setting, role: _Role, grid: Grid, fit: PatchFit) -> str:
    """What the next larger common GPU would change about the patch; of one for little time, more time does."""
    if role.for_little_time:
        return "with more time 3d_fullres is trained, with its larger patch"
    if fit.num_steps == 0:
        if role.next_stage is not None:
            return "with more memory the spacing might be finer, or no cascade needed"
        return "larger or finer images, but not more memory"
    for target_gb in LARGER_TARGETS_GB:
        if target_gb <= setting.memory_target_gb:
            continue
        larger = fit_reference_patch(
            grid,
            replace(setting, memory_target_gb=target_gb).budget(grid),
            setting.estimate(role.topology),
            rule=role.topology.reference_pyramid,
        )
        if _flaw(larger) is None and isinstance(larger, PatchFit) and larger.pyramid.patch != fit.pyramid.patch:
            patch = voxels(larger.pyramid.patch)
            if role.next_stage is not None:  # how coarse the low resolution is depends on the full-resolution patch
                return f"with {target_gb:g} GB a patch of {patch} voxels would fit, or a finer spacing, or no cascade would be needed"
            condition = "" if role.previous_stage is None else ", if a cascade were still needed"
            return f"with {target_gb:g} GB the patch would be {patch} voxels{condition}"
    return f"more than {LARGER_TARGETS_GB[-1]:g} GB of memory would allow a larger patch"

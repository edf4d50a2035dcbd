"""Fingerprint and memory target -> plan: which configurations a dataset gets, in nnU-Net's order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import JsonValue

from planners.configuring import (
    Draft,
    Fitted,
    Role,
    Setting,
    configure,
    fit_by_letter,
    fit_grid,
    fit_trainable,
    flaw_of,
    refusal,
)
from planners.decision import Decision, DecisionRecord
from planners.document import Issue, PlanningError
from planners.fingerprint import CaseSize, Fingerprint
from planners.geometry import (
    Permutation,
    PlanShape,
    PlanSpacing,
    SourceSpacing,
    inverse,
    shape_in_plan_axes,
    spacing_in_plan_axes,
    transpose,
)
from planners.parts import TOPOLOGIES
from planners.plan import Plan
from planners.rules.axes import decide_axis_order, decide_volumetric, find_single_slice_axis, put_single_slice_first
from planners.rules.cascade import LowResolution, search_low_resolution
from planners.rules.intensity import decide_normalization
from planners.rules.limits import find_issues, find_size_issues
from planners.rules.memory import decide_memory_target
from planners.rules.patch import Grid, NoFit
from planners.rules.source_axes import decide_source_axes, in_acquisition_axes
from planners.rules.spacing import decide_interpolation, decide_median_shape, decide_target_spacing
from planners.topology import PresetRules, Topology, find_preset


@dataclass(frozen=True, slots=True, kw_only=True)
class _Space:
    """The resampled dataset in plan axes, with the decisions that led there."""

    transpose_forward: Permutation
    volume: Grid
    records: tuple[DecisionRecord, ...]


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
    _refuse(fingerprint, issues)
    axes = decide_source_axes(fingerprint.cases, sided_axis=fingerprint.sided_axis)
    if axes.value == "acquisition":
        fingerprint = fingerprint.model_copy(update={"cases": tuple(map(in_acquisition_axes, fingerprint.cases))})
    reoriented = any(case.file_axes is not None for case in fingerprint.cases)
    memory = decide_memory_target(rules, requested_gb=memory_gb, device_gb=device_memory_gb)
    space = _decide_space(fingerprint, target_spacing_mm, strict_reference=strict_reference)
    setting, records = _decide_setting(fingerprint, rules, memory.value, space, strict_reference)
    candidates, drafts = _configurations(
        setting, topology, space, with_candidates=preset == "default" and not strict_reference
    )
    configured = (record for draft in drafts for record in draft.records)
    return Plan(
        dataset_name=fingerprint.dataset_name,
        preset=preset,
        strict_reference=strict_reference,
        memory_target_gb=memory.value,
        channels=fingerprint.channels,
        labels=fingerprint.labels,
        source_axes=axes.value,
        transpose_forward=space.transpose_forward,
        transpose_backward=inverse(space.transpose_forward),
        original_median_spacing_mm=_median_spacing(fingerprint.cases, space.transpose_forward),
        original_median_shape=_median_size(fingerprint.cases, space.transpose_forward),
        intensities=fingerprint.intensities,
        configurations=tuple(draft.configuration for draft in drafts),
        decisions=(
            memory.record(memory.value),
            *[axes.record(axes.value)] * reoriented,
            *space.records,
            *records,
            *candidates,
            *configured,
        ),
    )


def _decide_space(
    fingerprint: Fingerprint, requested_mm: tuple[float, float, float] | None, *, strict_reference: bool
) -> _Space:
    """Spacing, median shape and axis order (method sections 3.2 to 3.4)."""
    wanted = None if requested_mm is None else SourceSpacing(requested_mm)
    spacing = decide_target_spacing(fingerprint.cases, requested_mm=wanted)
    shape = decide_median_shape(fingerprint.cases, spacing.value, strict_reference=strict_reference)
    _refuse(fingerprint, find_size_issues(shape.value, requested_mm=wanted))
    order = decide_axis_order(spacing.value)
    single = None if strict_reference else find_single_slice_axis(shape.value, spacing.value)
    if single is not None and order.value[0] != single:
        order = put_single_slice_first(single, shape.value, spacing.value)
    voxels = shape_in_plan_axes(shape.value, order.value)
    volume = Grid(
        spacing_mm=spacing_in_plan_axes(spacing.value, order.value),
        median_shape=voxels,
        dataset_voxels=math.prod(voxels) * fingerprint.num_training_cases,
    )
    records = (
        spacing.record(list(spacing.value)),
        shape.record(list(shape.value)),
        order.record(list(order.value)),
    )
    return _Space(transpose_forward=order.value, volume=volume, records=records)


def _decide_setting(
    fingerprint: Fingerprint, rules: PresetRules, memory_gb: float, space: _Space, strict_reference: bool
) -> tuple[Setting, tuple[DecisionRecord, ...]]:
    """What all configurations share: intensities and interpolation (method sections 3.11, 3.12)."""
    normalization = decide_normalization(fingerprint.channels, fingerprint.median_relative_size_after_cropping)
    interpolation = decide_interpolation()
    setting = Setting(
        dataset_name=fingerprint.dataset_name,
        preset=rules,
        memory_target_gb=memory_gb,
        strict_reference=strict_reference,
        labels=fingerprint.labels,
        label_entries=fingerprint.num_label_entries,
        num_training_cases=fingerprint.num_training_cases,
        class_sizes=fingerprint.class_sizes,
        normalization=normalization.value,
        interpolation=interpolation.value,
        transpose_forward=space.transpose_forward,
        sided_axis=fingerprint.sided_axis,
        sided_pairs=fingerprint.sided_pairs,
    )
    orders: JsonValue = {
        kind: getattr(interpolation.value, kind).model_dump(mode="json") for kind in ("image", "labels", "logits")
    }
    schemes: JsonValue = [entry.model_dump(mode="json") for entry in normalization.value]
    return setting, (normalization.record(schemes), interpolation.record(orders))


def _configurations(
    setting: Setting, topology: Topology, space: _Space, *, with_candidates: bool
) -> tuple[tuple[DecisionRecord, ...], tuple[Draft, ...]]:
    """All configurations in the order of a plan (method sections 3.5, 3.10), and why these."""
    volume = space.volume
    slices = Grid(
        spacing_mm=volume.spacing_mm[1:], median_shape=volume.median_shape[1:], dataset_voxels=volume.dataset_voxels
    )
    drafts = []
    if 2 in topology.dimensions:
        drafts.append(_draft(setting, Role(name="2d", topology=topology, data="2d"), slices))
    volumetric = decide_volumetric(_plan_shape(volume))
    if not volumetric.value or 3 not in topology.dimensions:
        if not drafts:
            raise _wrong_dimensions(setting, topology)
        return (volumetric.record(False),), tuple(drafts)
    full = fit_grid(setting, "3d_fullres", topology, volume)
    low = _decide_low_resolution(setting, topology, volume, full)
    drafts += _volumetric_drafts(setting, topology, volume, full, low.value)
    records = [volumetric.record(True), low.record(low.value is not None)]
    for beside in map(TOPOLOGIES.get, TOPOLOGIES.own if with_candidates else ()):
        if beside.decide_candidate is not None:
            candidate = beside.decide_candidate(_plan_spacing(volume))
            records.append(candidate.record(candidate.value))
            if candidate.value:
                drafts.append(_draft(setting, _full_resolution(beside, low.value, suffix=f"_{beside.name}"), volume))
    return tuple(records), tuple(drafts)


def _wrong_dimensions(setting: Setting, topology: Topology) -> PlanningError:
    issue = Issue(
        code="plan.topology_dimensions",
        where="preset",
        message=f"a {topology.title} is 3D only, and the median case is a single slice",
        fix="choose another preset",
    )
    return PlanningError(f"dataset {setting.dataset_name} cannot be planned", [issue])


def _decide_low_resolution(
    setting: Setting, topology: Topology, volume: Grid, full: Fitted
) -> Decision[LowResolution | None]:
    """The low resolution as nnU-Net plans it; where its network could not be trained, a trainable one."""
    patch, num_cases = full.fit.pyramid.patch, setting.num_training_cases
    found = search_low_resolution(
        volume, patch, num_cases=num_cases, fit=lambda grid: fit_by_letter(setting, topology, grid)
    )
    if isinstance(found.value, NoFit) and setting.strict_reference:
        raise refusal(setting.dataset_name, "3d_lowres", found.value)
    if not setting.strict_reference and flaw_of(
        found.value.fit if isinstance(found.value, LowResolution) else found.value
    ):
        found = search_low_resolution(
            volume,
            patch,
            num_cases=num_cases,
            fit=lambda grid: fit_trainable(setting, topology, grid),
            least_voxels=1,
        )
    return found  # type: ignore[return-value]  # NoFit is gone: it was raised, or the trainable search has none


def _volumetric_drafts(
    setting: Setting, topology: Topology, volume: Grid, full: Fitted, low: LowResolution | None
) -> tuple[Draft, ...]:
    """Full resolution, and with a low resolution its first stage before and the cascade after it."""
    fullres = _full_resolution(topology, low)
    if low is None:
        return (configure(setting, fullres, volume, full),)
    lowres = Role(name="3d_lowres", topology=topology, data="3d_lowres", next_stage="3d_cascade_fullres")
    cascade = replace(fullres, name="3d_cascade_fullres", previous_stage="3d_lowres")
    return (
        configure(setting, lowres, low.grid, Fitted(fit=low.fit)),
        configure(setting, fullres, volume, full),
        configure(setting, cascade, volume, full),
    )


def _full_resolution(topology: Topology, low: LowResolution | None, *, suffix: str = "") -> Role:
    return Role(
        name=f"3d_fullres{suffix}",
        topology=topology,
        data="3d_fullres",
        is_full_resolution=True,
        has_low_resolution=low is not None,
    )


def _draft(setting: Setting, role: Role, grid: Grid) -> Draft:
    return configure(setting, role, grid, fit_grid(setting, role.name, role.topology, grid))


def _refuse(fingerprint: Fingerprint, issues: tuple[Issue, ...]) -> None:
    if issues:
        raise PlanningError(f"dataset {fingerprint.dataset_name} cannot be planned", issues)


def _plan_shape(grid: Grid) -> PlanShape:
    z, y, x = grid.median_shape
    return PlanShape((z, y, x))


def _plan_spacing(grid: Grid) -> PlanSpacing:
    z, y, x = grid.spacing_mm
    return PlanSpacing((z, y, x))


def _median_spacing(cases: Sequence[CaseSize], permutation: Permutation) -> tuple[float, float, float]:
    z, y, x = transpose(np.median(np.array([case.spacing_mm for case in cases]), axis=0).tolist(), permutation)
    return float(z), float(y), float(x)


def _median_size(cases: Sequence[CaseSize], permutation: Permutation) -> tuple[int, int, int]:
    z, y, x = transpose(np.median(np.array([case.shape for case in cases]), axis=0).tolist(), permutation)
    return round(z), round(y), round(x)

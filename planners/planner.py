"""Fingerprint and memory target -> plan: which configurations exist for a dataset, in the method's order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
from planners.document import Issue
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
from planners.plan import Plan, Preset
from planners.presets import PRESETS, PresetRules
from planners.problems import PlanningError
from planners.rules.axes import decide_axis_order, find_single_slice_axis, put_single_slice_first
from planners.rules.candidates import decide_vnet_candidate, decide_volumetric
from planners.rules.cascade import LowResolution, search_low_resolution
from planners.rules.intensity import decide_normalization
from planners.rules.interpolation import decide_interpolation
from planners.rules.limits import find_issues, find_size_issues
from planners.rules.memory import decide_memory_target
from planners.rules.patch import Grid, NoFit
from planners.rules.source_axes import decide_source_axes, in_acquisition_axes
from planners.rules.spacing import decide_median_shape, decide_target_spacing


@dataclass(frozen=True, slots=True, kw_only=True)
class _Space:
    """The resampled dataset in plan axes, with the decisions that led there."""

    transpose_forward: Permutation
    volume: Grid
    records: tuple[DecisionRecord, ...]


def plan_dataset(
    fingerprint: Fingerprint,
    *,
    preset: Preset = "default",
    memory_gb: float | None = None,
    device_memory_gb: float | None = None,
    target_spacing_mm: tuple[float, float, float] | None = None,
    strict_reference: bool = False,
) -> Plan:
    """What to do with a dataset (method section 3).

    ``memory_gb`` (1e9 bytes) is what training is planned for; without it the preset's own, which ``device_memory_gb``
    caps where the device is smaller. ``target_spacing_mm`` replaces the spacing of full resolution, source axes
    (z, y, x). With ``strict_reference`` the rules are followed to the letter, even to networks that cannot be trained
    (see `why_untrainable`); without it such networks are mended by named rules, and candidates may be added.

    The order of cases and their names play no part. Raises `PlanningError` with every problem where sizes, memory or
    spacing are beyond all sense, and where the letter of the method ends in no plan at all.
    """
    _refuse(fingerprint, _issues(fingerprint, memory_gb, device_memory_gb, target_spacing_mm))
    axes = decide_source_axes(fingerprint.cases, sided_axis=fingerprint.sided_axis)
    if axes.value == "acquisition":
        fingerprint = fingerprint.model_copy(update={"cases": tuple(map(in_acquisition_axes, fingerprint.cases))})
    turned = any(case.file_axes is not None for case in fingerprint.cases)
    memory = decide_memory_target(PRESETS[preset], requested_gb=memory_gb, device_gb=device_memory_gb)
    space = _decide_space(fingerprint, target_spacing_mm, strict_reference=strict_reference)
    setting, records = _decide_setting(fingerprint, PRESETS[preset], memory.value, space, strict_reference)
    candidates, drafts = _configurations(setting, space, preset, fingerprint.num_training_cases)
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
            *[axes.record(axes.value)] * turned,
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
    setting: Setting, space: _Space, preset: Preset, num_cases: int
) -> tuple[tuple[DecisionRecord, ...], tuple[Draft, ...]]:
    """All configurations in the order of a plan (method sections 3.5, 3.10), and why these."""
    volume = space.volume
    family = setting.preset.family
    slices = Grid(
        spacing_mm=volume.spacing_mm[1:], median_shape=volume.median_shape[1:], dataset_voxels=volume.dataset_voxels
    )
    flat = _draft(setting, Role(name="2d", family=family, data="2d"), slices)
    volumetric = decide_volumetric(_plan_shape(volume))
    if not volumetric.value:
        return (volumetric.record(False),), (flat,)
    full = fit_grid(setting, "3d_fullres", family, volume)
    low = _decide_low_resolution(setting, volume, full, num_cases)
    drafts = [flat, *_volumetric_drafts(setting, volume, full, low.value)]
    records = [volumetric.record(True), low.record(low.value is not None)]
    if preset == "default" and not setting.strict_reference:
        vnet = decide_vnet_candidate(_plan_spacing(volume))
        records.append(vnet.record(vnet.value))
        if vnet.value:
            role = Role(
                name="3d_fullres_vnet",
                family="vnet",
                data="3d_fullres",
                is_full_resolution=True,
                has_low_resolution=low.value is not None,
            )
            drafts.append(_draft(setting, role, volume))
    return tuple(records), tuple(drafts)


def _decide_low_resolution(
    setting: Setting, volume: Grid, full: Fitted, num_cases: int
) -> Decision[LowResolution | None]:
    """Low resolution by the letter; where its network could not be trained, among trainable ones."""
    family, patch = setting.preset.family, full.fit.pyramid.patch
    found = search_low_resolution(
        volume, patch, num_cases=num_cases, fit=lambda grid: fit_by_letter(setting, family, grid)
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
            fit=lambda grid: fit_trainable(setting, family, grid),
            least_voxels=1,
        )
    return found  # type: ignore[return-value]  # NoFit is gone: it was raised, or the trainable search has none


def _volumetric_drafts(setting: Setting, volume: Grid, full: Fitted, low: LowResolution | None) -> tuple[Draft, ...]:
    """Full resolution, and with a low resolution its first stage before and the cascade after it."""
    family = setting.preset.family
    fullres = Role(
        name="3d_fullres",
        family=family,
        data="3d_fullres",
        is_full_resolution=True,
        has_low_resolution=low is not None,
    )
    if low is None:
        return (configure(setting, fullres, volume, full),)
    lowres = Role(name="3d_lowres", family=family, data="3d_lowres", next_stage="3d_cascade_fullres")
    cascade = Role(
        name="3d_cascade_fullres",
        family=family,
        data="3d_fullres",
        is_full_resolution=True,
        has_low_resolution=True,
        previous_stage="3d_lowres",
    )
    return (
        configure(setting, lowres, low.grid, Fitted(fit=low.fit)),
        configure(setting, fullres, volume, full),
        configure(setting, cascade, volume, full),
    )


def _draft(setting: Setting, role: Role, grid: Grid) -> Draft:
    return configure(setting, role, grid, fit_grid(setting, role.name, role.family, grid))


def _issues(
    fingerprint: Fingerprint,
    memory_gb: float | None,
    device_memory_gb: float | None,
    target_spacing_mm: Sequence[float] | None,
) -> tuple[Issue, ...]:
    return find_issues(
        fingerprint, memory_gb=memory_gb, device_memory_gb=device_memory_gb, target_spacing_mm=target_spacing_mm
    )


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

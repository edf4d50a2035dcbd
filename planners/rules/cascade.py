"""Whether a cascade is planned: a network on coarser images first, because a full-resolution patch covers too little."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from planners.decision import Decision
from planners.rules.patch import Grid, NoFit, PatchFit
from planners.wording import counted, millimetres, voxels

SEEN_SHARE = 0.25
"""A patch that covers less of the median case than this has too little context (method section 3.10)."""
COARSENING = 1.03
"""By how much the spacing grows from one try to the next."""
SIMILAR_SPACING = 2
"""Axes finer than the coarsest by more than this factor are coarsened first."""
SMALLEST_GAIN = 2
"""The low resolution must have fewer voxels than full resolution by this factor (method section 3.10)."""

FitPatch = Callable[[Grid], PatchFit | NoFit]


@dataclass(frozen=True, slots=True, kw_only=True)
class LowResolution:
    """The coarser grid and the patch on it."""

    grid: Grid
    fit: PatchFit


def search_low_resolution(
    full: Grid, patch: tuple[int, ...], *, num_cases: int, fit: FitPatch, least_voxels: int = 0
) -> Decision[LowResolution | NoFit | None]:
    """Coarsen until a patch covers a quarter of the median case (method section 3.10).

    ``full`` and ``patch`` are those of full resolution, three plan axes; ``fit`` finds the patch on a grid. None where
    full resolution suffices or the coarser grid is too similar to it; `NoFit` where ``fit`` found none on the way.
    ``least_voxels``: smallest size of an axis of the median case; 0 in nnU-Net.
    """
    found: PatchFit | None = None
    grid, spacing = full, full.spacing_mm
    full_voxels = grid_voxels = math.prod(full.median_shape)
    patch_voxels = math.prod(patch)
    covered = patch_voxels / full_voxels

    def decision(
        value: LowResolution | NoFit | None, reason: str, change: str | None = None
    ) -> Decision[LowResolution | NoFit | None]:
        rule = "cascade.low_resolution"
        return Decision(rule=rule, value=value, reason=reason, source="method 3.10", change=change)

    while patch_voxels / grid_voxels < SEEN_SHARE:
        spacing = _coarsen(spacing)
        shape = [old / new * size for old, new, size in zip(full.spacing_mm, spacing, full.median_shape, strict=True)]
        grid_voxels = math.prod(shape)
        grid = Grid(
            spacing_mm=spacing,
            median_shape=tuple(max(least_voxels, round(size)) for size in shape),
            dataset_voxels=grid_voxels * num_cases,
        )
        result = fit(grid)
        if isinstance(result, NoFit):
            return decision(result, f"at {millimetres(spacing)} {result.reason}")
        found, patch_voxels = result, math.prod(result.pyramid.patch)
    larger = "with larger images or less memory a cascade would be planned"
    if found is None:
        reason = f"a full-resolution patch of {voxels(patch)} voxels covers {covered:.0%} of the median case, at least {SEEN_SHARE:.0%}, so "
        return decision(None, f"{reason}no cascade is needed", larger)
    little = f"a full-resolution patch covers {covered:.1%} of the median case, less than {SEEN_SHARE:.0%}"
    if (gain := full_voxels / grid_voxels) < SMALLEST_GAIN:
        reason = f"{little}, but at {millimetres(spacing)}, where a patch would cover enough, a case has only {gain:.2f} times fewer voxels; "
        return decision(None, f"{reason}below a factor of {SMALLEST_GAIN} no cascade is planned", larger)
    share = patch_voxels / grid_voxels
    reason = (
        f"{little}; at {millimetres(spacing)} a patch of {voxels(found.pyramid.patch)} voxels covers {share:.0%}, so a "
    )
    reason += "low-resolution network and a cascade that refines its segmentation are planned"
    change = "with more memory or smaller images no cascade would be needed"
    return decision(LowResolution(grid=grid, fit=found), reason, change)


def decide_inputs(num_channels: int, previous_stage: str, num_values: int) -> Decision[int]:
    """Input channels of a cascade's second stage: those of the image, and behind them one for each label."""
    return Decision(
        rule="cascade.inputs",
        value=num_channels + num_values,
        reason=f"the inputs are {counted(num_channels, 'image channel')} and one channel for each of {counted(num_values, 'label')} with "
        f"the segmentation of {previous_stage}, which is randomly degraded in training so that the network does not rely on it",
        source="method 6.4 and 8.4",
    )


def _coarsen(spacing_mm: tuple[float, ...]) -> tuple[float, ...]:
    """The next coarser spacing; axes much finer than the coarsest first."""
    coarsest = max(spacing_mm)
    fine = [coarsest / mm > SIMILAR_SPACING for mm in spacing_mm]
    if not any(fine):
        return tuple(mm * COARSENING for mm in spacing_mm)
    return tuple(mm * COARSENING if is_fine else mm for mm, is_fine in zip(spacing_mm, fine, strict=True))

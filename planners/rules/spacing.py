"""Target spacing, interpolation, the shape of the median case after resampling, and whether a cascade starts on coarser images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from planners.decision import Decision, counted, millimetres, voxels
from planners.fingerprint import CaseSize, ClassSize
from planners.geometry import SourceShape, SourceSpacing
from planners.plan import Resampling
from planners.rules.patch import Grid, NoFit, PatchFit

ANISOTROPY = 3
"""Spacing ratio above which one axis is treated as coarse (method section 3.2)."""
COARSE_PERCENTILE = 10
"""Of the spacings along the coarse axis; the median would drop slices of the finer cases."""
FLAT_FACTOR = 999
"""A 2D image counts as this many times as thick as its larger pixel side (method section 1.5)."""
SPACING_MARGIN_MM = 1e-5
"""By how much the coarse axis stays the coarsest."""


def decide_target_spacing(
    cases: Sequence[CaseSize], *, requested_mm: SourceSpacing | None = None
) -> Decision[SourceSpacing]:
    """Spacing of the full-resolution data, source axes, in mm (method section 3.2)."""
    if requested_mm is not None:
        return Decision(
            rule="spacing.target",
            value=requested_mm,
            reason=f"{millimetres(requested_mm)} was requested",
            source="method 3.2",
            change="without --target-spacing it would be the median spacing of the cases",
        )
    spacings = np.array([case.spacing_mm for case in cases])
    median = np.percentile(spacings, 50, axis=0)
    middle = np.percentile(np.array([case.shape for case in cases]), 50, axis=0)
    coarse = int(np.argmax(median))
    finer = [axis for axis in range(3) if axis != coarse]
    finest_pair = float(max(median[finer]))
    if not (median[coarse] > ANISOTROPY * finest_pair and middle[coarse] * ANISOTROPY < min(middle[finer])):
        ratio = max(median) / min(median)
        return Decision(
            rule="spacing.target",
            value=_triple(median),
            reason=f"{millimetres(median)} is the median spacing of {counted(len(cases), 'training case')}; the axes differ by a factor "
            f"of {ratio:.3g}, or there are too many slices for one axis to count as coarse",
            source="method 3.2",
            change=f"an axis more than {ANISOTROPY} times coarser and with less than a third of the voxels of the others "
            f"would get the {COARSE_PERCENTILE}th percentile of its spacings instead",
        )
    tenth = float(np.percentile(spacings[:, coarse], COARSE_PERCENTILE))
    chosen = median.copy()
    chosen[coarse] = finest_pair + SPACING_MARGIN_MM if tenth < finest_pair else tenth
    if all(case.shape[coarse] == 1 for case in cases):
        return _single_slices(_triple(chosen), coarse)
    return Decision(
        rule="spacing.target",
        value=_triple(chosen),
        reason=f"median voxels of {millimetres(median)} are more than {ANISOTROPY} times coarser along axis {coarse} "
        f"of the images, which has few slices; it gets the {COARSE_PERCENTILE}th percentile of its spacings, "
        f"{chosen[coarse]:.4g} mm, so that cases with thinner slices keep them",
        source="method 3.2",
        change=f"with slices at most {ANISOTROPY} times thicker than the in-plane spacing the median would be taken",
    )


def decide_median_shape(
    cases: Sequence[CaseSize], spacing_mm: SourceSpacing, *, strict_reference: bool
) -> Decision[SourceShape]:
    """The median shape.

    Departure ``shape.at_least_one_voxel``: an axis that rounds to 0 voxels keeps one (decision record 0011).
    """
    shape = median_shape(cases, spacing_mm)
    reason = (
        f"resampled to {millimetres(spacing_mm)}, the median over {counted(len(cases), 'case')} is {voxels(shape)} voxels, "
        "taken along each axis"
    )
    if strict_reference or min(shape) > 0:
        return Decision(rule="shape.median", value=shape, reason=reason, source="method 3.4")
    z, y, x = (max(size, 1.0) for size in shape)
    return Decision(
        rule="shape.at_least_one_voxel",
        value=SourceShape((z, y, x)),
        reason=f"{reason}; empty axes keep one voxel",
        source="method 3.4 and decision record 0011",
        change="a finer target spacing would leave more voxels",
    )


def median_shape(cases: Sequence[CaseSize], spacing_mm: SourceSpacing) -> SourceShape:
    """Median over cases of the shape after resampling to ``spacing_mm``, source axes (method section 3.4).

    Each case is rounded first (ties to even), so the median may end in .5; it is 0 where most cases are thinner
    than half a voxel of the new spacing.
    """
    spacings = np.array([case.spacing_mm for case in cases])
    shapes = np.array([case.shape for case in cases])
    z, y, x = np.median(np.round(spacings / np.array(spacing_mm) * shapes), axis=0)
    return SourceShape((float(z), float(y), float(x)))


def _single_slices(chosen_mm: SourceSpacing, coarse: int) -> Decision[SourceSpacing]:
    """Files of 2D images have no thickness, and often no pixel size either (method section 1.5)."""
    pixels = [mm for axis, mm in enumerate(chosen_mm) if axis != coarse]
    reason = f"images are single slices, whose median pixels are {millimetres(pixels)}"
    if pixels == [1.0, 1.0]:
        reason = f"images are single slices with pixels of {millimetres(pixels)}, also assumed where files give no size"
    if math.isclose(chosen_mm[coarse], FLAT_FACTOR * max(pixels)):
        reason += f"; the {chosen_mm[coarse]:.4g} mm across stand for an unknown thickness"
    else:
        reason += f"; {chosen_mm[coarse]:.4g} mm is the {COARSE_PERCENTILE}th percentile of their thickness"
    return Decision(rule="spacing.target", value=chosen_mm, reason=reason, source="method 1.5 and 3.2")


def _triple(values: np.ndarray) -> SourceSpacing:
    z, y, x = (float(value) for value in values)
    return SourceSpacing((z, y, x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpolation:
    """One choice for each kind of array."""

    image: Resampling
    labels: Resampling
    logits: Resampling


def decide_interpolation() -> Decision[Interpolation]:
    """Spline orders (method section 3.12); separate z is decided for each case (4.4)."""
    return Decision(
        rule="interpolation.orders",
        value=Interpolation(
            image=Resampling(order=3, order_z=0),
            labels=Resampling(order=1, order_z=0),
            logits=Resampling(order=1, order_z=0),
        ),
        reason="images by cubic splines, label maps and logits linearly; where slices are more than 3 times thicker than the in-plane "
        "spacing, slices are resampled in plane and by nearest neighbour across",
        source="method 3.12 and 4.4",
    )


# --- a cascade ---

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


# --- little time ---

COARSE_GAIN = 8
"""A coarse configuration has at most so many times fewer voxels than full resolution."""
FEWEST_ACROSS = 8
"""Voxels that the smallest structure must have across: coarse labels of such a ball still have a Dice of 0.94 (docs/decisions/0207)."""


def structure_width_mm(sizes: Sequence[ClassSize]) -> float | None:
    """How wide the smallest class is: the diameter of a ball as large as its median component; None if nothing is known."""
    volumes = [each.median_volume_ml / max(1.0, each.median_components) for each in sizes if each.num_cases]
    return min((6000 * volume / math.pi) ** (1 / 3) for volume in volumes) if volumes else None


def decide_coarse_grid(full: Grid, *, width_mm: float | None, num_cases: int) -> Decision[Grid | None]:
    """A coarser grid for little time: at most `COARSE_GAIN` times fewer voxels, structures still `FEWEST_ACROSS` voxels wide.

    ``full`` is that of full resolution, three plan axes; ``width_mm`` the width of the smallest structure, none if it is not
    known. None where that allows less than half of the voxels to be saved.
    """

    def across(spacing_mm: Sequence[float]) -> float:
        return 0.0 if width_mm is None else width_mm / math.prod(spacing_mm) ** (1 / 3)

    spacing, whole = full.spacing_mm, math.prod(full.spacing_mm)
    while math.prod(spacing) < COARSE_GAIN * whole and across(_coarsen(spacing)) >= FEWEST_ACROSS:
        spacing = _coarsen(spacing)
    gain, found = math.prod(spacing) / whole, width_mm is not None
    known = (
        f"the smallest structure is about {width_mm:.3g} mm wide" if found else "how wide structures are is not known"
    )
    if gain < SMALLEST_GAIN:
        reason, grid = f"{known}, so it would have fewer than {FEWEST_ACROSS} voxels across on a coarser grid", None
    else:
        shape = (old / new * size for old, new, size in zip(full.spacing_mm, spacing, full.median_shape, strict=True))
        median_shape = tuple(float(max(1, round(size))) for size in shape)
        voxels_in_all = math.prod(median_shape) * num_cases
        grid = Grid(spacing_mm=spacing, median_shape=median_shape, dataset_voxels=voxels_in_all)
        reason = (
            f"at {millimetres(spacing)} a case has {gain:.3g} times fewer voxels; {known}, {across(spacing):.3g} voxels across there, so a "
            "coarse network is a candidate where time is short"
        )
    return Decision(
        rule="candidates.coarse",
        value=grid,
        reason=reason,
        source="docs/decisions/0207",
        change=f"larger structures would allow up to {COARSE_GAIN} times fewer voxels" if gain < COARSE_GAIN else None,
    )

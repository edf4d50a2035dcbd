"""The patch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from planners.decision import Decision
from planners.rules.memory import MemoryBudget
from planners.rules.topology import Pyramid, PyramidRule, reference_pyramid, trainable_pyramid
from planners.wording import amount, counted, voxels

START_VOXELS = {3: 256**3, 2: 2048**2}
"""Voxels of the patch that shrinking starts from, by dimensions (method section 3.6)."""

Estimate = Callable[[Pyramid], int]
"""Feature-map values of one image (method section 3.8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The resampled dataset of a configuration, in two or three plan axes."""

    spacing_mm: tuple[float, ...]
    median_shape: tuple[float, ...]
    dataset_voxels: float
    """Voxels of all training cases together; a 2D grid counts those of the volumes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchFit:
    """The patch found by shrinking."""

    pyramid: Pyramid
    start: tuple[float, ...]
    start_estimate: int
    estimate: int
    """Feature-map values of one image."""
    num_steps: int
    """How often one axis was reduced."""
    fits: bool = True
    """False where even the smallest trainable patch exceeds the budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoFit:
    """nnU-Net's rule gives no patch."""

    reason: str
    yields_to_memory: bool
    """Whether more memory may give one."""


def start_patch(grid: Grid) -> tuple[float, ...]:
    """The patch of fixed volume and equal extent in mm, clipped to the median case (method section 3.6).

    An axis may be fractional where the median is, and 0 where it is more than about 10,000 times coarser.
    """
    dimensions = len(grid.spacing_mm)
    inverse = [1 / mm for mm in grid.spacing_mm]
    factor = (START_VOXELS[dimensions] / math.prod(inverse)) ** (1 / dimensions)
    return tuple(min(round(one * factor), median) for one, median in zip(inverse, grid.median_shape, strict=True))


def fit_reference_patch(
    grid: Grid, budget: MemoryBudget, estimate: Estimate, *, rule: PyramidRule = reference_pyramid
) -> PatchFit | NoFit:
    """Shrink the start patch until it fits, exactly as nnU-Net does (method section 3.9).

    `NoFit` where that ends in an empty patch or does not end.
    """
    start = start_patch(grid)
    if min(start) <= 0:
        return NoFit(reason=f"the initial patch of {voxels(start)} voxels is empty", yields_to_memory=False)
    pyramid = rule(grid.spacing_mm, start)
    size = start_size = estimate(pyramid)
    seen = {pyramid.patch}
    while budget.is_exceeded_by(size):
        axis = _axes_by_relative_size(pyramid.patch, grid.median_shape)[0]
        smaller = _shrink(pyramid, axis, grid.spacing_mm, rule)
        if smaller is None or smaller.patch in seen:
            return NoFit(
                reason=f"a patch of {voxels(pyramid.patch)} voxels needs {amount(size)} feature-map values, more than the memory "
                "target allows, and nnU-Net's rule cannot shrink it further",
                yields_to_memory=True,
            )
        pyramid, size = smaller, estimate(smaller)
        seen.add(pyramid.patch)
    return PatchFit(pyramid=pyramid, start=start, start_estimate=start_size, estimate=size, num_steps=len(seen) - 1)


def fit_trainable_patch(
    grid: Grid, budget: MemoryBudget, estimate: Estimate, *, rule: PyramidRule = trainable_pyramid
) -> PatchFit:
    """The same search among trainable networks only: departure ``patch.trainable`` (decision record 0011).

    Every patch has at least one voxel an axis and two stages. Where the axis that should shrink cannot, the next
    one does; where none can, the patch with the smallest estimate is taken although it exceeds the budget.
    """
    start = tuple(max(size, 1) for size in start_patch(grid))
    pyramid = rule(grid.spacing_mm, start)
    tried = {pyramid.patch: (estimate(pyramid), pyramid)}
    start_size, _ = tried[pyramid.patch]
    while budget.is_exceeded_by(tried[pyramid.patch][0]):
        smaller = _next_untried(pyramid, grid, tried.keys(), rule)
        if smaller is None:
            break
        pyramid = smaller
        tried[pyramid.patch] = (estimate(pyramid), pyramid)
    size, pyramid = min(tried.values(), key=lambda entry: entry[0])
    return PatchFit(
        pyramid=pyramid,
        start=start,
        start_estimate=start_size,
        estimate=size,
        num_steps=len(tried) - 1,
        fits=not budget.is_exceeded_by(size),
    )


def _next_untried(
    pyramid: Pyramid, grid: Grid, tried: Collection[tuple[int, ...]], rule: PyramidRule
) -> Pyramid | None:
    for axis in _axes_by_relative_size(pyramid.patch, grid.median_shape):
        smaller = _shrink(pyramid, axis, grid.spacing_mm, rule)
        if smaller is not None and smaller.patch not in tried:
            return smaller
    return None


def _axes_by_relative_size(patch: Sequence[int], median_shape: Sequence[float]) -> list[int]:
    """Axes by size relative to the median case, largest first; of equals the last first."""
    return sorted(range(len(patch)), key=lambda axis: (patch[axis] / median_shape[axis], axis), reverse=True)


def _shrink(pyramid: Pyramid, axis: int, spacing_mm: Sequence[float], rule: PyramidRule) -> Pyramid | None:
    """One step along one axis; none where no voxel would be left.

    The step is the divisor that the network would have *after* a full step (method section 3.9), so 256 voxels
    with divisor 64 become 224, not 192.
    """
    probe = rule(spacing_mm, _less(pyramid.patch, axis, pyramid.divisors[axis]))
    smaller = _less(pyramid.patch, axis, probe.divisors[axis])
    return rule(spacing_mm, smaller) if smaller[axis] > 0 else None


def _less(patch: Sequence[int], axis: int, step: int) -> tuple[int, ...]:
    return tuple(size - step if index == axis else size for index, size in enumerate(patch))


def describe_patch(
    fit: PatchFit, budget: MemoryBudget, target_gb: float, *, change: str | None
) -> Decision[tuple[int, ...]]:
    """The patch with its reason."""
    shape = voxels(fit.pyramid.patch)
    need = f"{amount(fit.estimate)} feature-map values"
    most = budget.feature_maps * budget.batch / budget.fitting_images
    limit = f"the {amount(most)} that {target_gb:g} GB allow for each of {budget.fitting_images} patches"
    if fit.num_steps == 0 and fit.fits:
        reason = f"{shape} voxels, the initial patch, take {need}, within {limit}"
    elif fit.fits:
        reason = (
            f"from {voxels(fit.start)} voxels with {amount(fit.start_estimate)} values, the axis that is largest relative to the "
            f"median case was reduced {counted(fit.num_steps, 'time')}, to {shape} with {need}, within {limit}"
        )
    else:
        reason = f"{shape} voxels is the smallest trainable patch; its {need} exceed {limit}"
    return Decision(
        rule="patch.shape", value=fit.pyramid.patch, reason=reason, source="method 3.6 to 3.9", change=change
    )


def describe_departure(fit: PatchFit, flaw: str) -> Decision[tuple[int, ...]]:
    """Departure: a trainable patch where nnU-Net's rule gives none (decision record 0011)."""
    return Decision(
        rule="patch.trainable",
        value=fit.pyramid.patch,
        reason=f"with nnU-Net's rule {flaw}, so no network could be trained; a patch of {voxels(fit.pyramid.patch)} voxels with "
        f"{fit.pyramid.num_stages} stages is taken instead",
        source="method 3.7, 3.9 and decision record 0011",
        change="with larger images or more memory the departure would not be needed",
    )

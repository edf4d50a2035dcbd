"""The patch and the batch size, within the memory that training is planned for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from planners.decision import Decision, amount, counted, voxels
from planners.rules.topology import Pyramid, PyramidRule, reference_pyramid, trainable_pyramid
from planners.topology import PresetRules

REFERENCE_BATCH = {3: 2, 2: 12}
"""Batch size that the feature-map references stand for, by dimensions (method section 3.1)."""
SMALLEST_BATCH = 2
"""Smaller batches make gradients too noisy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """Feature-map values that fit, for one configuration."""

    feature_maps: float
    """Of one image where ``batch`` of them fit."""
    batch: int
    fitting_images: int
    """How many images must fit at once before a patch is small enough."""

    def is_exceeded_by(self, estimate: int) -> bool:
        """Whether a patch with this estimate must shrink (method section 3.9)."""
        if self.fitting_images == self.batch:
            return estimate > self.feature_maps
        return estimate / self.batch * self.fitting_images > self.feature_maps

    def fitting_batch(self, estimate: int) -> int:
        """How many patches with this estimate fit, ties to even (method section 3.9)."""
        return round(self.feature_maps / estimate * self.batch)


def memory_budget(preset: PresetRules, target_gb: float, *, dimensions: int) -> MemoryBudget:
    """The budget of a 2D or 3D configuration (method section 3.1, last line)."""
    reference = preset.feature_maps_3d if dimensions == 3 else preset.feature_maps_2d
    batch = REFERENCE_BATCH[dimensions]
    return MemoryBudget(
        feature_maps=reference * (target_gb / preset.reference_gb),
        batch=batch,
        fitting_images=batch if preset.patch_yields_to_batch else SMALLEST_BATCH,
    )


def decide_memory_target(
    preset: PresetRules, *, requested_gb: float | None, device_gb: float | None
) -> Decision[float]:
    """Memory in GB (1e9 bytes) that training is planned for.

    As requested; else the preset's default, capped by a smaller device. A larger device changes nothing, so the same dataset
    gives the same plan on every sufficient machine.
    """
    own = preset.reference_gb
    if requested_gb is not None:
        value, why = requested_gb, f"{requested_gb:g} GB were requested (the preset's default is {own:g} GB)"
    elif device_gb is not None and device_gb < own:
        value, why = device_gb, f"the device has {device_gb:.3g} GB, less than the preset's {own:g} GB"
    else:
        value, why = own, f"{own:g} GB is the preset's default"
    return Decision(
        rule="memory.target",
        value=value,
        reason=why,
        source="method 3.1",
        change="more memory (--memory) allows larger patches or batches",
    )


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


SMALLER = 2
"""A smaller patch is a candidate where it has at least so many times fewer voxels."""


def decide_smaller_patch(own: Sequence[int], smaller: Sequence[int]) -> Decision[bool]:
    """Whether a smaller patch at the same resolution is worth planning for runs with little time."""
    gain = math.prod(own) / math.prod(smaller)
    told = f"a patch of {voxels(smaller)} voxels, for less memory, has {gain:.3g} times fewer than {voxels(own)}"
    worth = gain >= SMALLER
    return Decision(
        rule="candidates.small_patch",
        value=worth,
        reason=f"{told}, so it is a candidate where time is short" if worth else f"{told}, too few to save time",
        source="docs/decisions/0207",
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


def decide_batch_size(fit: PatchFit, budget: MemoryBudget, *, dataset_voxels: float, share: float) -> Decision[int]:
    """Patches in one training batch (method section 3.9): what fits, at most a share of the dataset, at least 2."""
    fitting = budget.fitting_batch(fit.estimate)
    covering = round(dataset_voxels * share / math.prod(fit.pyramid.patch))
    return Decision(
        rule="batch.size",
        value=max(min(fitting, covering), SMALLEST_BATCH),
        reason=f"memory allows {fitting} and {share:.0%} of the dataset's voxels {covering}; the smaller number is taken, but at least "
        f"{SMALLEST_BATCH}",
        source="method 3.9",
        change=_change_of_batch(
            max(fitting, SMALLEST_BATCH), max(covering, SMALLEST_BATCH), is_shrunk=fit.num_steps > 0
        ),
    )


def _change_of_batch(fitting: int, covering: int, *, is_shrunk: bool) -> str:
    """What limits the batch; both numbers are at least the smallest batch."""
    if covering < fitting:
        return "more training cases would allow more patches"
    if covering == fitting:
        return "more memory and more training cases together would allow more patches"
    if is_shrunk:
        return "more memory would first allow larger patches, then more of them"
    return "more memory would allow more patches"

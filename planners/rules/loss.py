"""What training makes small: the terms of the loss, and at which resolutions they are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planners.decision import Decision
from planners.fingerprint import ClassSize
from planners.plan import Loss
from planners.rules.topology import SMALLEST_SUPERVISED
from planners.topology import Topology

RARE_SHARE = 1e-5
"""Of a patch that shows a class: 21 voxels of 128 x 128 x 128, a ball of 3.4 voxels across (decision record 0116)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rarity:
    """The smallest class, as a patch around one of its pieces shows it."""

    name: str
    voxels: float
    patch_voxels: int

    @property
    def share(self) -> float:
        """Of the patch."""
        return self.voxels / self.patch_voxels


def find_rarity(sizes: Sequence[ClassSize], *, case_voxels: float, patch_voxels: int) -> Rarity | None:
    """Of the classes that occur, the one with fewest voxels in a patch; None where sizes are not known.

    Of pieces of one size that lie evenly over the case, a patch shows one whole and its share of the others.
    """
    inside = patch_voxels / max(case_voxels, patch_voxels)
    found = []
    for size in sizes:
        voxels = size.median_share * case_voxels
        piece = voxels / max(1.0, size.median_components)
        if size.num_cases:
            found.append(Rarity(name=size.name, voxels=piece + (voxels - piece) * inside, patch_voxels=patch_voxels))
    return min(found, key=lambda each: each.voxels, default=None)


def decide_loss(*, has_regions: bool, batch_dice: bool, rarity: Rarity | None = None) -> Decision[Loss]:
    """Dice and cross entropy (method sections 7.3, 7.4), for families without a loss of their own.

    Departure ``loss.rare_class``: of a class that fills next to nothing of a patch, a mean over all voxels tells nothing;
    it goes over the worst tenth of them (decision record 0116).
    """
    sums = "over the whole batch" if batch_dice else "for each patch"
    voxel = "binary cross entropy of each region" if has_regions else "cross entropy"
    if rarity is not None and rarity.share < RARE_SHARE:
        return Decision(
            rule="loss.rare_class",
            value=Loss(voxel="top_k", batch_dice=batch_dice),
            reason=f"of the {rarity.patch_voxels} voxels of a patch that shows it, {rarity.name} has about {rarity.voxels:.2g}, so "
            f"beside Dice, summed {sums}, {voxel} is taken over the worst tenth of the voxels, where a missed structure lies",
            source="Wu et al. 2016 and decision record 0116",
            change=f"from {RARE_SHARE * rarity.patch_voxels:.2g} voxels of {rarity.name} on every voxel would have a say",
        )
    return Decision(
        rule="loss.terms",
        value=Loss(batch_dice=batch_dice),
        reason=f"Dice, summed {sums}, rewards overlap whatever a structure's size, and {voxel} gives every voxel a say",
        source="method 7.3, 7.4 and 3.10",
    )


def decide_batch_dice(dimensions: int, *, is_full_resolution: bool, has_low_resolution: bool) -> Decision[bool]:
    """Whether Dice sums run over the batch (method section 3.10, last point)."""
    if dimensions == 2:
        value, reason = True, "one slice often lacks a structure, so all slices of a batch are summed"
    elif is_full_resolution and has_low_resolution:
        value, reason = (
            True,
            "where a coarse stage is needed, a patch at full resolution sees little of the case and often lacks a structure",
        )
    elif is_full_resolution:
        value, reason = False, "where no coarse stage is planned, each patch is scored by itself"
    else:
        value, reason = (
            False,
            "a patch at low resolution sees at least a quarter of the case, so each is scored by itself",
        )
    return Decision(rule="loss.batch_dice", value=value, reason=reason, source="method 3.10")


def decide_deep_supervision(topology: Topology, num_stages: int, *, strict_reference: bool) -> Decision[bool]:
    """Whether lower resolutions are trained too (method section 7.5).

    Departure ``supervision.single_head``: two stages have one head, whose weight the reference sets to 0; it is
    trained without deep supervision instead (decision record 0011).
    """
    if not topology.has_deep_supervision:
        return Decision(
            rule="supervision.deep",
            value=False,
            reason=f"a {topology.title} has one head",
            source=topology.source or "method 7.5",
        )
    if num_stages < SMALLEST_SUPERVISED and not strict_reference:
        return Decision(
            rule="supervision.single_head",
            value=False,
            reason=f"a network of {num_stages} stages has one head, to which deep supervision would give no weight",
            source="method 7.5 and decision record 0011",
            change="larger patches give more stages",
        )
    return Decision(
        rule="supervision.deep",
        value=True,
        reason=f"a network of {num_stages} stages is trained at each resolution but the lowest two, the finer the "
        "more weight",
        source="method 7.5",
    )

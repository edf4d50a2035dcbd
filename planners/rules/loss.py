"""The terms of the loss, and at which resolutions they are computed."""

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
    """The smallest class, in a patch around one of its components."""

    name: str
    voxels: float
    patch_voxels: int

    @property
    def share(self) -> float:
        """Of the patch."""
        return self.voxels / self.patch_voxels


def find_rarity(sizes: Sequence[ClassSize], *, case_voxels: float, patch_voxels: int) -> Rarity | None:
    """Of the classes that occur, the one with fewest voxels in a patch; None where sizes are not known.

    Components are taken to be of one size and evenly distributed: a patch holds one of them and its share of the others.
    """
    inside = patch_voxels / max(case_voxels, patch_voxels)
    found = []
    for size in sizes:
        voxels = size.median_share * case_voxels
        component = voxels / max(1.0, size.median_components)
        if size.num_cases:
            found.append(
                Rarity(name=size.name, voxels=component + (voxels - component) * inside, patch_voxels=patch_voxels)
            )
    return min(found, key=lambda each: each.voxels, default=None)


def decide_loss(*, has_regions: bool, batch_dice: bool, rarity: Rarity | None = None) -> Decision[Loss]:
    """Dice and cross entropy (method sections 7.3, 7.4), for families without a loss of their own.

    Departure ``loss.rare_class``: a class that fills almost none of a patch vanishes in a mean over all voxels, so the mean
    is taken over the worst tenth of them (decision record 0116).
    """
    sums = "over the whole batch" if batch_dice else "for each patch"
    voxel = "binary cross entropy of each region" if has_regions else "cross entropy"
    if rarity is not None and rarity.share < RARE_SHARE:
        return Decision(
            rule="loss.rare_class",
            value=Loss(voxel="top_k", batch_dice=batch_dice),
            reason=f"{rarity.name} fills about {rarity.voxels:.2g} of the {rarity.patch_voxels} voxels of a patch, so in addition to Dice, "
            f"summed {sums}, {voxel} is averaged over the worst tenth of the voxels only",
            source="Wu et al. 2016 and decision record 0116",
            change=f"with at least {RARE_SHARE * rarity.patch_voxels:.2g} voxels of {rarity.name} all voxels would be averaged",
        )
    return Decision(
        rule="loss.terms",
        value=Loss(batch_dice=batch_dice),
        reason=f"Dice, summed {sums}, and {voxel}",
        source="method 7.3, 7.4 and 3.10",
    )


def decide_batch_dice(dimensions: int, *, is_full_resolution: bool, has_low_resolution: bool) -> Decision[bool]:
    """Whether Dice sums run over the batch (method section 3.10, last point)."""
    if dimensions == 2:
        value, reason = True, "a slice often lacks a structure, so Dice is computed over the batch"
    elif is_full_resolution and has_low_resolution:
        value, reason = (
            True,
            "a full-resolution patch covers little of the case and often lacks a structure, so Dice is computed over the batch",
        )
    elif is_full_resolution:
        value, reason = False, "without a cascade Dice is computed for each patch"
    else:
        value, reason = (
            False,
            "a low-resolution patch covers at least a quarter of the case, so Dice is computed for each patch",
        )
    return Decision(rule="loss.batch_dice", value=value, reason=reason, source="method 3.10")


def decide_deep_supervision(topology: Topology, num_stages: int, *, strict_reference: bool) -> Decision[bool]:
    """Whether lower resolutions are trained too (method section 7.5).

    Departure ``supervision.single_head``: nnU-Net sets the weight of the only head of a two-stage network to 0; it is trained
    without deep supervision instead (decision record 0011).
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
            reason=f"a network of {num_stages} stages has one head, which deep supervision would weight with 0",
            source="method 7.5 and decision record 0011",
            change="larger patches give more stages",
        )
    return Decision(
        rule="supervision.deep",
        value=True,
        reason="the loss is computed at each resolution but the lowest two, with half the weight from one to the next",
        source="method 7.5",
    )

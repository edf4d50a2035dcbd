"""What training makes small: the terms of the loss, and at which resolutions they are taken."""

from __future__ import annotations

from planners.decision import Decision
from planners.plan import Family, Loss
from planners.rules.trainability import SMALLEST_SUPERVISED


def decide_loss(family: Family, *, has_regions: bool, batch_dice: bool) -> Decision[Loss]:
    """Dice and cross entropy; the V-Net's own Dice alone (method sections 7.3, 7.4; Milletari et al. 2016)."""
    sums = "over the whole batch" if batch_dice else "for each patch"
    if family == "vnet":
        return Decision(
            rule="loss.terms",
            value=Loss(region="squared_dice", voxel=None, batch_dice=batch_dice),
            reason=f"Dice with squared terms in the denominator, summed {sums}, balances small and large structures by "
            "itself",
            source="Milletari et al. 2016, section 3",
        )
    voxel = "binary cross entropy of each region" if has_regions else "cross entropy"
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
        value, reason = True, "a patch sees less than a quarter of the case and often lacks a structure"
    else:
        value, reason = False, "a patch sees much of the case, so each is scored by itself"
    return Decision(rule="loss.batch_dice", value=value, reason=reason, source="method 3.10")


def decide_deep_supervision(family: Family, num_stages: int, *, strict_reference: bool) -> Decision[bool]:
    """Whether lower resolutions are trained too (method section 7.5).

    Departure ``supervision.single_head``: two stages have one head, whose weight the reference sets to 0; it is
    trained without deep supervision instead (decision record 0011).
    """
    if family == "vnet":
        return Decision(
            rule="supervision.deep", value=False, reason="a V-Net has one head", source="Milletari et al. 2016"
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

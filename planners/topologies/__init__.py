"""The network families, and the one place that chooses between them."""

from __future__ import annotations

from collections.abc import Sequence

from planners.plan import Family, Network
from planners.rules.topology import Pyramid
from planners.topologies import residual_unet, unet, vnet

MOST_STAGES: dict[Family, int | None] = {
    "unet": unet.MOST_STAGES,
    "residual_unet": residual_unet.MOST_STAGES,
    "vnet": None,
}
"""Stages beyond which the reference has no answer."""


def estimate_feature_maps(family: Family, pyramid: Pyramid, *, label_entries: int) -> int:
    """Feature-map values of one image (method section 3.8)."""
    match family:
        case "unet":
            return unet.estimate_feature_maps(pyramid, label_entries=label_entries)
        case "residual_unet":
            return residual_unet.estimate_feature_maps(pyramid, label_entries=label_entries)
        case "vnet":
            return vnet.estimate_feature_maps(pyramid, label_entries=label_entries)


def describe_network(
    family: Family, pyramid: Pyramid, spacing_mm: Sequence[float], *, num_inputs: int, num_outputs: int
) -> Network:
    """The network of a family on a pyramid whose highest resolution has this spacing."""
    match family:
        case "unet":
            return unet.describe(pyramid, num_inputs=num_inputs, num_outputs=num_outputs)
        case "residual_unet":
            return residual_unet.describe(pyramid, num_inputs=num_inputs, num_outputs=num_outputs)
        case "vnet":
            return vnet.describe(pyramid, spacing_mm, num_inputs=num_inputs, num_outputs=num_outputs)

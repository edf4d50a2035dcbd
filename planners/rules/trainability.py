"""Which networks cannot be trained, whatever the data."""

from __future__ import annotations

from planners.plan import Configuration

SMALLEST_SUPERVISED = 3
"""Stages from which deep supervision is defined: the coarsest head gets no weight (method section 7.5)."""


def why_untrainable(configuration: Configuration) -> tuple[str, ...]:
    """One sentence for each thing that keeps a network from being built or trained; empty where all is well.

    Plans that follow the reference to the letter may hold such configurations (method sections 3.5, 3.7); other
    plans never do.
    """
    num_stages = len(configuration.network.strides)
    patch = " x ".join(str(size) for size in configuration.patch_shape)
    if num_stages < 2:
        return (
            f"configuration {configuration.name}: a patch of {patch} voxels gives a network of one stage, without a "
            "decoder and outputs; plan without the strict reference, or with larger images",
        )
    if configuration.deep_supervision and num_stages < SMALLEST_SUPERVISED:
        return (
            f"configuration {configuration.name}: a patch of {patch} voxels gives a network of two stages, whose only "
            "head has weight 0 under deep supervision; plan without the strict reference, or with larger images",
        )
    return ()

"""The plain U-Net: two convolutions a stage, on the way down and up (method sections 3.8, 3.9, 5.2)."""

from __future__ import annotations

import math

from planners.geometry import stage_shapes
from planners.plan import Network
from planners.rules.topology import Pyramid

BASE_FEATURES = 32
LARGEST_FEATURES = {3: 320, 2: 512}
"""By dimensions (method section 3.1)."""
CONVOLUTIONS = 2
"""In each stage of encoder and decoder."""
MOST_STAGES = 14
"""The reference's list of convolutions ends here."""


def features(num_stages: int, *, dimensions: int) -> tuple[int, ...]:
    """Feature maps of each stage: doubling from 32 to the cap."""
    return tuple(min(LARGEST_FEATURES[dimensions], BASE_FEATURES * 2**stage) for stage in range(num_stages))


def estimate_feature_maps(pyramid: Pyramid, *, label_entries: int) -> int:
    """Feature-map values of one image: convolutions, transposed convolutions and the finest head.

    ``label_entries`` counts background, classes or regions and the ignore label. One stage has no head.
    """
    sizes = [math.prod(shape) for shape in stage_shapes(pyramid.patch, pyramid.strides)]
    widths = features(pyramid.num_stages, dimensions=len(pyramid.patch))
    maps = [width * size for width, size in zip(widths, sizes, strict=True)]
    encoder = CONVOLUTIONS * sum(maps)
    decoder = (CONVOLUTIONS + 1) * sum(maps[:-1])
    return encoder + decoder + (label_entries * sizes[0] if pyramid.num_stages > 1 else 0)


def describe(pyramid: Pyramid, *, num_inputs: int, num_outputs: int) -> Network:
    """The network on a pyramid."""
    stages = pyramid.num_stages
    return Network(
        family="unet",
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        features=features(stages, dimensions=len(pyramid.patch)),
        kernels=pyramid.kernels,
        strides=pyramid.strides,
        blocks=(CONVOLUTIONS,) * stages,
        decoder_blocks=(CONVOLUTIONS,) * (stages - 1),
    )

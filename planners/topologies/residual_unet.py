"""The residual-encoder U-Net: residual blocks down, one convolution a stage up (method sections 3.8, 5.3)."""

from __future__ import annotations

import math

from planners.geometry import stage_shapes
from planners.plan import Network
from planners.rules.topology import Pyramid
from planners.topologies.unet import features

BLOCKS = (1, 3, 4, 6)
"""Residual blocks of the first stages; the last number holds for all further ones (method section 3.1)."""
DECODER_CONVOLUTIONS = 1
MOST_STAGES = 13
"""The reference's list of blocks ends here."""


def blocks(num_stages: int) -> tuple[int, ...]:
    """Residual blocks of each encoder stage."""
    return (BLOCKS + BLOCKS[-1:] * max(0, num_stages - len(BLOCKS)))[:num_stages]


def estimate_feature_maps(pyramid: Pyramid, *, label_entries: int) -> int:
    """Feature-map values of one image: stem, blocks with their changed skip paths, decoder and the finest head.

    ``label_entries`` counts background, classes or regions and the ignore label. One stage has no head.
    """
    stages = pyramid.num_stages
    sizes = [math.prod(shape) for shape in stage_shapes(pyramid.patch, pyramid.strides)]
    widths = features(stages, dimensions=len(pyramid.patch))
    maps = [width * size for width, size in zip(widths, sizes, strict=True)]
    previous = (widths[0], *widths[:-1])
    skips = [
        size
        for size, width, before, stride in zip(maps, widths, previous, pyramid.strides, strict=True)
        if width != before or max(stride) > 1
    ]
    convolutions = sum(2 * count * size for count, size in zip(blocks(stages), maps, strict=True))
    decoder = (DECODER_CONVOLUTIONS + 1) * sum(maps[:-1])
    return maps[0] + convolutions + sum(skips) + decoder + (label_entries * sizes[0] if stages > 1 else 0)


def describe(pyramid: Pyramid, *, num_inputs: int, num_outputs: int) -> Network:
    """The network on a pyramid."""
    stages = pyramid.num_stages
    return Network(
        family="residual_unet",
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        features=features(stages, dimensions=len(pyramid.patch)),
        kernels=pyramid.kernels,
        strides=pyramid.strides,
        blocks=blocks(stages),
        decoder_blocks=(DECODER_CONVOLUTIONS,) * (stages - 1),
    )

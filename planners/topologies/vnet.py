"""The V-Net: large kernels, stages that add their input to their result, one head (Milletari et al. 2016).

An encoder stage halves with a strided convolution (kernel = stride, none before the first stage) and goes through
its convolutions; its input, after halving, is added to the last one's result. The first stage adds the image itself,
its channels repeated in turn up to 16. A decoder stage takes a transposed convolution (kernel = stride) to half of
its width, concatenates the skip, and goes through convolutions of the full width; the concatenation is added to the
last one's result. The sizes of the patch come from the U-Net's rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from planners.geometry import stage_shapes, stage_spacings
from planners.plan import Network
from planners.rules.topology import SIMILAR_SPACING, Pyramid

BASE_FEATURES = 16
LARGEST_FEATURES = 256
CONVOLUTIONS = (1, 2, 3)
"""Of the first stages; the last number holds for all further ones."""
KERNELS = ((5, 10), (3, 6))
"""Kernel size and the voxels that an axis needs for it; 1 below all."""


def features(num_stages: int) -> tuple[int, ...]:
    """Feature maps of each encoder stage: doubling from 16 to 256. A decoder stage has twice as many."""
    return tuple(min(LARGEST_FEATURES, BASE_FEATURES * 2**stage) for stage in range(num_stages))


def convolutions(num_stages: int) -> tuple[int, ...]:
    """Convolutions of each encoder stage; decoder stages have as many as the encoder's at their resolution."""
    return (CONVOLUTIONS + CONVOLUTIONS[-1:] * max(0, num_stages - len(CONVOLUTIONS)))[:num_stages]


def kernels(pyramid: Pyramid, spacing_mm: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """Kernel of each stage: 5, 3 or 1 along an axis, by its voxels and its spacing there.

    Axes more than twice as coarse as the finest, or exactly twice, have kernel 1, as halving treats them.
    """
    shapes = stage_shapes(pyramid.patch, pyramid.strides)
    spacings = stage_spacings(spacing_mm, pyramid.strides)
    return tuple(
        tuple(_kernel(size, mm / min(spacing)) for size, mm in zip(shape, spacing, strict=True))
        for shape, spacing in zip(shapes, spacings, strict=True)
    )


def estimate_feature_maps(pyramid: Pyramid, *, label_entries: int) -> int:
    """Feature-map values of one image: convolutions, halvings, doublings and the head.

    ``label_entries`` counts background, classes or regions and the ignore label. One stage has no head.
    """
    stages = pyramid.num_stages
    sizes = [math.prod(shape) for shape in stage_shapes(pyramid.patch, pyramid.strides)]
    maps = [width * size for width, size in zip(features(stages), sizes, strict=True)]
    counts = convolutions(stages)
    encoder = sum(count * size for count, size in zip(counts, maps, strict=True)) + sum(maps[1:])
    decoder = sum((2 * count + 1) * size for count, size in zip(counts[:-1], maps[:-1], strict=True))
    return encoder + decoder + (label_entries * sizes[0] if stages > 1 else 0)


def describe(pyramid: Pyramid, spacing_mm: Sequence[float], *, num_inputs: int, num_outputs: int) -> Network:
    """The network on a pyramid."""
    stages = pyramid.num_stages
    return Network(
        family="vnet",
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        features=features(stages),
        kernels=kernels(pyramid, spacing_mm),
        strides=pyramid.strides,
        blocks=convolutions(stages),
        decoder_blocks=convolutions(stages)[:-1],
    )


def _kernel(size: int, coarseness: float) -> int:
    if coarseness >= SIMILAR_SPACING:
        return 1
    return next((kernel for kernel, needed in KERNELS if size >= needed), 1)

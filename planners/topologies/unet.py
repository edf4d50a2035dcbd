"""The plain U-Net: two convolutions a stage, on the way down and up (method sections 3.8, 3.9, 5.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from planners.geometry import stage_shapes
from planners.plan import Network
from planners.rules.topology import Pyramid
from planners.topology import Layer, PresetRules, Stage, Topology, conv_block, head, upsampling

BASE_FEATURES = 32
LARGEST_FEATURES = {3: 320, 2: 512}
"""By dimensions (method section 3.1)."""
CONVOLUTIONS = 2
"""In each stage of encoder and decoder."""
MOST_STAGES = 14
"""nnU-Net's list of convolutions ends here."""


def features(num_stages: int, *, dimensions: int) -> tuple[int, ...]:
    """Feature maps of each stage: doubling from 32 to the cap."""
    return tuple(min(LARGEST_FEATURES[dimensions], BASE_FEATURES * 2**stage) for stage in range(num_stages))


def feature_maps(pyramid: Pyramid, label_entries: int) -> int:
    """Convolutions, transposed convolutions and the finest head."""
    sizes = [math.prod(shape) for shape in stage_shapes(pyramid.patch, pyramid.strides)]
    widths = features(pyramid.num_stages, dimensions=len(pyramid.patch))
    maps = [width * size for width, size in zip(widths, sizes, strict=True)]
    encoder = CONVOLUTIONS * sum(maps)
    decoder = (CONVOLUTIONS + 1) * sum(maps[:-1])
    return encoder + decoder + (label_entries * sizes[0] if pyramid.num_stages > 1 else 0)


def describe(pyramid: Pyramid, spacing_mm: Sequence[float], *, num_inputs: int, num_outputs: int) -> Network:
    """The network on a pyramid, whatever its spacing."""
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


def layers(network: Network, stages: Sequence[Stage]) -> Iterator[Layer]:
    """Encoder and decoder."""
    width = network.num_inputs
    for index, (stage, features, count) in enumerate(zip(stages, network.features, network.blocks, strict=True)):
        for block in range(count):
            size_before = stages[index - 1].voxels if block == 0 and index else stage.voxels
            skip = block == count - 1 and index < len(stages) - 1
            yield conv_block(f"encoder {index} block {block}", width, features, stage, size_before, is_skip=skip)
            width = features
    yield from decoder_layers(network, stages)


def decoder_layers(network: Network, stages: Sequence[Stage]) -> Iterator[Layer]:
    """From the second lowest resolution up."""
    for index in reversed(range(len(stages) - 1)):
        features, below, stage = network.features[index], network.features[index + 1], stages[index]
        yield upsampling(f"decoder {index} up", below, features, stages[index + 1], stage)
        width = 2 * features
        for block in range(network.decoder_blocks[index]):
            yield conv_block(f"decoder {index} block {block}", width, features, stage, stage.voxels)
            width = features
        yield head(f"head {index}", features, network.num_outputs, stage)


TOPOLOGY = Topology(
    name="unet",
    title="U-Net",
    module="autoseg.networks.build:UNet",
    describe=describe,
    layers=layers,
    feature_maps=feature_maps,
    most_stages=MOST_STAGES,
    presets={
        "default": PresetRules(
            feature_maps_3d=560_000_000,
            feature_maps_2d=85_000_000,
            reference_gb=8.0,
            batch_share=0.05,
            patch_yields_to_batch=False,
        )
    },
)

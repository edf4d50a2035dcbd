"""The residual-encoder U-Net: residual blocks down, one convolution a stage up (method sections 3.8, 5.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from planners.decision import Decision, millimetres
from planners.geometry import stage_shapes
from planners.plan import Network
from planners.rules.topology import Pyramid
from planners.topologies.unet import decoder_layers, features
from planners.topology import Layer, PresetRules, Stage, Topology, conv_block, residual_block

BLOCKS = (1, 3, 4, 6)
"""Residual blocks of the first stages; the last number holds for all further ones (method section 3.1)."""
DECODER_CONVOLUTIONS = 1
MOST_STAGES = 13
"""nnU-Net's list of blocks ends here."""


def blocks(num_stages: int) -> tuple[int, ...]:
    """Residual blocks of each encoder stage."""
    return (BLOCKS + BLOCKS[-1:] * num_stages)[:num_stages]


def feature_maps(pyramid: Pyramid, label_entries: int) -> int:
    """Stem, blocks with their changed skip paths, decoder and the finest head."""
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


def describe(pyramid: Pyramid, spacing_mm: Sequence[float], *, num_inputs: int, num_outputs: int) -> Network:
    """The network on a pyramid, whatever its spacing."""
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


def layers(network: Network, stages: Sequence[Stage]) -> Iterator[Layer]:
    """Stem, encoder and decoder."""
    width = network.features[0]
    stem = conv_block("stem", network.num_inputs, width, stages[0], stages[0].voxels)
    yield replace(stem, again=stem.activated)
    for index, (stage, wanted, count) in enumerate(zip(stages, network.features, network.blocks, strict=True)):
        for block in range(count):
            yield from residual_block(
                f"encoder {index} block {block}",
                width,
                wanted,
                stage,
                stages[index - 1].voxels if block == 0 and index else stage.voxels,
                pools=block == 0 and stage.step > 1,
                is_skip=block == count - 1 and index < len(stages) - 1,
            )
            width = wanted
    yield from decoder_layers(network, stages)


def decide_candidate(spacing_mm: Sequence[float]) -> Decision[bool]:
    """A residual encoder is planned beside the U-Net for all volumes: its kernels follow the spacing as the U-Net's do."""
    return Decision(
        rule="candidates.residual_unet",
        value=True,
        reason=f"residual blocks fit voxels of {millimetres(spacing_mm)} as the U-Net does, so a residual encoder is a candidate; it costs more a "
        "step, so a race decides",
        source="docs/decisions/0206",
    )


_M = PresetRules(
    feature_maps_3d=680_000_000,
    feature_maps_2d=135_000_000,
    reference_gb=8.0,
    batch_share=1.0,
    patch_yields_to_batch=True,
)
TOPOLOGY = Topology(
    name="residual_unet",
    title="residual-encoder U-Net",
    module="autoseg.networks.build:UNet",
    describe=describe,
    layers=layers,
    feature_maps=feature_maps,
    most_stages=MOST_STAGES,
    decide_candidate=decide_candidate,
    presets={
        "resenc": replace(_M, batch_share=0.05),
        "resenc_m": _M,
        "resenc_l": replace(_M, feature_maps_3d=2_100_000_000, feature_maps_2d=380_000_000, reference_gb=24.0),
        "resenc_xl": replace(_M, feature_maps_3d=3_600_000_000, feature_maps_2d=560_000_000, reference_gb=40.0),
    },
)

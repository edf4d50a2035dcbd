"""The V-Net: large kernels, stages that add their input to their result, one head (Milletari et al. 2016).

An encoder stage downsamples with a strided convolution (kernel = stride, none before the first stage) and goes through
its convolutions; its input, after halving, is added to the last one's result. The first stage adds the image itself,
its channels repeated in turn up to 16. A decoder stage takes a transposed convolution (kernel = stride) to half of
its width, concatenates the skip, and goes through convolutions of the full width; the concatenation is added to the
last one's result. The sizes of the patch come from the U-Net's rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from planners.decision import Decision, millimetres
from planners.geometry import stage_shapes, stage_spacings
from planners.plan import Loss, Network
from planners.rules.topology import SIMILAR_SPACING, Pyramid
from planners.topology import Layer, PresetRules, Stage, Topology, head, upsampling

BASE_FEATURES = 16
LARGEST_FEATURES = 256
CONVOLUTIONS = (1, 2, 3)
"""Of the first stages; the last number holds for all further ones."""
KERNELS = ((5, 10), (3, 6))
"""Kernel size and the voxels that an axis needs for it; 1 below all."""
NEAR_ISOTROPIC = 1.5
"""Largest spacing ratio at which a V-Net, whose kernels are large along all axes, is a candidate."""
SOURCE = "Milletari et al. 2016"


def features(num_stages: int) -> tuple[int, ...]:
    """Feature maps of each encoder stage: doubling from 16 to 256. A decoder stage has twice as many."""
    return tuple(min(LARGEST_FEATURES, BASE_FEATURES * 2**stage) for stage in range(num_stages))


def convolutions(num_stages: int) -> tuple[int, ...]:
    """Convolutions of each encoder stage; decoder stages have as many as the encoder's at their resolution."""
    return (CONVOLUTIONS + CONVOLUTIONS[-1:] * num_stages)[:num_stages]


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


def feature_maps(pyramid: Pyramid, label_entries: int) -> int:
    """Convolutions, halvings, doublings and the head."""
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


def layers(network: Network, stages: Sequence[Stage]) -> Iterator[Layer]:
    """Encoder, decoder and the one head."""
    widths = network.features
    for index, (stage, features, count) in enumerate(zip(stages, widths, network.blocks, strict=True)):
        if index:
            above, size = widths[index - 1], features * stage.voxels
            yield Layer(
                name=f"encoder {index} down",
                parameters=above * features * stage.step + 4 * features,
                inputs=above * stages[index - 1].voxels,
                outputs=size,
                multiplications=above * stage.step * size,
                convolved=size,
                normed=size,
                activated=size,
            )
        inputs = features if index else network.num_inputs
        yield from _stage_layers(f"encoder {index}", inputs, features, stage, count, is_skip=index < len(stages) - 1)
    for index in reversed(range(len(stages) - 1)):
        features, stage = widths[index], stages[index]
        below = widths[index + 1] if index == len(stages) - 2 else 2 * widths[index + 1]
        up = upsampling(f"decoder {index} up", below, features, stages[index + 1], stage)
        yield replace(up, parameters=up.parameters + 3 * features, convolved=up.outputs, normed=up.outputs)
        yield from _stage_layers(f"decoder {index}", 2 * features, 2 * features, stage, network.decoder_blocks[index])
    yield head("head", 2 * widths[0], network.num_outputs, stages[0])


def _stage_layers(
    name: str, inputs: int, features: int, stage: Stage, count: int, *, is_skip: bool = False
) -> Iterator[Layer]:
    size = features * stage.voxels
    for convolution in range(count):
        before = inputs if convolution == 0 else features
        yield Layer(
            name=f"{name} convolution {convolution}",
            parameters=before * features * stage.kernel + 4 * features,
            inputs=before * stage.voxels,
            outputs=size,
            multiplications=before * stage.kernel * size,
            convolved=size,
            normed=size,
            activated=size,
            beside=size,
            is_skip=is_skip and convolution == count - 1,
        )


def decide_candidate(spacing_mm: Sequence[float]) -> Decision[bool]:
    """Whether a V-Net is planned beside the U-Net, for volumes (decision record 0013)."""
    ratio = max(spacing_mm) / min(spacing_mm)
    near = ratio <= NEAR_ISOTROPIC
    return Decision(
        rule="candidates.vnet",
        value=near,
        reason=f"voxels of {millimetres(spacing_mm)} differ by a factor of {ratio:.3g} between axes, "
        + (
            f"at most {NEAR_ISOTROPIC}, so a V-Net is a candidate"
            if near
            else f"more than {NEAR_ISOTROPIC}, too anisotropic for the large kernels of a V-Net"
        ),
        source=f"{SOURCE} and decision record 0013",
        change=f"with a factor {'above' if near else 'of at most'} {NEAR_ISOTROPIC} it would "
        + ("not be" if near else "be a candidate"),
    )


def decide_loss(batch_dice: bool) -> Decision[Loss]:
    """Its own Dice alone (Milletari et al. 2016, section 3)."""
    sums = "over the whole batch" if batch_dice else "for each patch"
    return Decision(
        rule="loss.terms",
        value=Loss(region="squared_dice", voxel=None, batch_dice=batch_dice),
        reason=f"Dice with squared terms in the denominator, summed {sums}, balances small and large structures by "
        "itself",
        source=f"{SOURCE}, section 3",
    )


TOPOLOGY = Topology(
    name="vnet",
    title="V-Net",
    module="autoseg.networks.build:VNet",
    describe=describe,
    layers=layers,
    feature_maps=feature_maps,
    source=SOURCE,
    has_deep_supervision=False,
    decide_loss=decide_loss,
    decide_candidate=decide_candidate,
    presets={
        "vnet": PresetRules(
            feature_maps_3d=560_000_000,
            feature_maps_2d=85_000_000,
            reference_gb=8.0,
            batch_share=0.05,
            patch_yields_to_batch=False,
        )
    },
)

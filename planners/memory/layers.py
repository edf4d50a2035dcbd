"""What each layer of a planned network holds in memory: parameters, and values that wait for the backward pass.

Counts are exact for the networks that a plan describes (method section 5; V-Nets as in `planners.topologies.vnet`):
parameters of the whole network, and feature-map values of one image. Bytes and copies are `coefficients`' matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from planners.geometry import stage_shapes
from planners.plan import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One convolution with what follows it up to the next, with counts for one image."""

    name: str
    parameters: int
    inputs: int
    """Values that the convolution reads."""
    outputs: int
    """Values that it writes."""
    convolved: int = 0
    """Convolution outputs that wait as the input of a norm."""
    normed: int = 0
    """Norm outputs that wait as the input of an activation which changes nothing in place."""
    activated: int = 0
    """Activation outputs, which wait as the next convolution's input too."""
    joined: int = 0
    """Values that wait only as a convolution's input: concatenations, pooled maps."""
    pooled: int = 0
    """Values that an average pooling over three axes reads; torch's kernels for CPUs know only float32 there."""
    beside: int = 0
    """Values of the gradient that goes round this layer on a skip path and waits while the layer runs backward."""
    is_skip: bool = False
    """Its output is needed again by the decoder."""
    takes_skip: bool = False
    """Joins its output to a skip; both gradients come in one piece, which stays until the encoder's part is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A resolution: voxels of a feature map and the kernel there."""

    voxels: int
    kernel: int
    """Voxels under the kernel."""
    step: int
    """Voxels under the stride at its entry."""
    axes: int


def network_layers(network: Network, patch: Sequence[int]) -> tuple[Layer, ...]:
    """All layers in the order of the forward pass; heads come right after their decoder stage."""
    stages = tuple(
        Stage(voxels=math.prod(shape), kernel=math.prod(kernel), step=math.prod(stride), axes=len(shape))
        for shape, kernel, stride in zip(
            stage_shapes(patch, network.strides), network.kernels, network.strides, strict=True
        )
    )
    if network.family == "vnet":
        return tuple(_vnet_layers(network, stages))
    return tuple(_unet_layers(network, stages))


def count_parameters(network: Network) -> int:
    """Trainable parameters; they do not depend on the patch."""
    patch = [math.prod(column) for column in zip(*network.strides, strict=True)]
    return sum(layer.parameters for layer in network_layers(network, patch))


def _unet_layers(network: Network, stages: Sequence[Stage]) -> Iterator[Layer]:
    width = network.num_inputs
    if network.family == "residual_unet":
        yield _conv_block("stem", width, network.features[0], stages[0], stages[0].voxels)
        width = network.features[0]
    for index, (stage, features, count) in enumerate(zip(stages, network.features, network.blocks, strict=True)):
        for block in range(count):
            size_before = stages[index - 1].voxels if block == 0 and index else stage.voxels
            name = f"encoder {index} block {block}"
            skip = block == count - 1 and index < len(stages) - 1
            if network.family == "residual_unet":
                pools = block == 0 and stage.step > 1
                yield from _residual_block(name, width, features, stage, size_before, pools=pools, is_skip=skip)
            else:
                yield _conv_block(name, width, features, stage, size_before, is_skip=skip)
            width = features
    for index in reversed(range(len(stages) - 1)):
        yield from _unet_decoder(network, stages, index)


def _unet_decoder(network: Network, stages: Sequence[Stage], index: int) -> Iterator[Layer]:
    features, below, stage = network.features[index], network.features[index + 1], stages[index]
    yield _upsampling(f"decoder {index} up", below, features, stages[index + 1], stage)
    width = 2 * features
    for block in range(network.decoder_blocks[index]):
        yield _conv_block(f"decoder {index} block {block}", width, features, stage, stage.voxels)
        width = features
    yield _head(f"head {index}", features, network.num_outputs, stage)


def _vnet_layers(network: Network, stages: Sequence[Stage]) -> Iterator[Layer]:
    widths = network.features
    for index, (stage, features, count) in enumerate(zip(stages, widths, network.blocks, strict=True)):
        if index:
            above, size = widths[index - 1], features * stage.voxels
            yield Layer(
                name=f"encoder {index} down",
                parameters=above * features * stage.step + 4 * features,
                inputs=above * stages[index - 1].voxels,
                outputs=size,
                convolved=size,
                normed=size,
                activated=size,
            )
        inputs = features if index else network.num_inputs
        yield from _vnet_stage(f"encoder {index}", inputs, features, stage, count, is_skip=index < len(stages) - 1)
    for index in reversed(range(len(stages) - 1)):
        features, stage = widths[index], stages[index]
        below = widths[index + 1] if index == len(stages) - 2 else 2 * widths[index + 1]
        up = _upsampling(f"decoder {index} up", below, features, stages[index + 1], stage)
        yield replace(up, parameters=up.parameters + 3 * features, convolved=up.outputs, normed=up.outputs)
        yield from _vnet_stage(f"decoder {index}", 2 * features, 2 * features, stage, network.decoder_blocks[index])
    yield _head("head", 2 * widths[0], network.num_outputs, stages[0])


def _vnet_stage(
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
            convolved=size,
            normed=size,
            activated=size,
            beside=size,
            is_skip=is_skip and convolution == count - 1,
        )


def _conv_block(
    name: str, inputs: int, outputs: int, stage: Stage, size_before: int, *, is_skip: bool = False
) -> Layer:
    """Convolution with bias, norm with scale and shift, activation in place."""
    size = outputs * stage.voxels
    return Layer(
        name=name,
        parameters=inputs * outputs * stage.kernel + 3 * outputs,
        inputs=inputs * size_before,
        outputs=size,
        convolved=size,
        activated=size,
        is_skip=is_skip,
    )


def _residual_block(
    name: str, inputs: int, outputs: int, stage: Stage, size_before: int, *, pools: bool, is_skip: bool
) -> Iterator[Layer]:
    """Two convolutions beside a skip path that pools where it strides and projects where the width changes."""
    size = outputs * stage.voxels
    if inputs != outputs:
        yield Layer(
            name=f"{name} projection",
            parameters=inputs * outputs + 2 * outputs,
            inputs=inputs * stage.voxels,
            outputs=size,
            convolved=size,
            joined=inputs * stage.voxels if pools else 0,
            pooled=inputs * size_before if pools and stage.axes == 3 else 0,
        )
    first = _conv_block(f"{name} convolution 0", inputs, outputs, stage, size_before)
    yield replace(first, beside=size)
    second = _conv_block(f"{name} convolution 1", outputs, outputs, stage, stage.voxels, is_skip=is_skip)
    yield replace(second, beside=size)


def _upsampling(name: str, below: int, features: int, stage_below: Stage, stage: Stage) -> Layer:
    """Transposed convolution with bias; its output waits only joined to the skip."""
    return Layer(
        name=name,
        parameters=below * features * stage_below.step + features,
        inputs=below * stage_below.voxels,
        outputs=features * stage.voxels,
        joined=2 * features * stage.voxels,
        takes_skip=True,
    )


def _head(name: str, features: int, outputs: int, stage: Stage) -> Layer:
    """One voxel wide convolution with bias; what the loss keeps of its output is counted there."""
    return Layer(
        name=name,
        parameters=features * outputs + outputs,
        inputs=features * stage.voxels,
        outputs=outputs * stage.voxels,
    )

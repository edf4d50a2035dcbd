"""Layers as the memory model counts them: parameters, and values of one image that wait for the backward pass.

Topologies build theirs of these. Bytes and copies are counted in `planners.memory`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace


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


def conv_block(name: str, inputs: int, outputs: int, stage: Stage, size_before: int, *, is_skip: bool = False) -> Layer:
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


def residual_block(
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
    first = conv_block(f"{name} convolution 0", inputs, outputs, stage, size_before)
    yield replace(first, beside=size)
    second = conv_block(f"{name} convolution 1", outputs, outputs, stage, stage.voxels, is_skip=is_skip)
    yield replace(second, beside=size)


def upsampling(name: str, below: int, features: int, stage_below: Stage, stage: Stage) -> Layer:
    """Transposed convolution with bias; its output waits only joined to the skip."""
    return Layer(
        name=name,
        parameters=below * features * stage_below.step + features,
        inputs=below * stage_below.voxels,
        outputs=features * stage.voxels,
        joined=2 * features * stage.voxels,
        takes_skip=True,
    )


def head(name: str, features: int, outputs: int, stage: Stage) -> Layer:
    """One voxel wide convolution with bias; what the loss keeps of its output is counted there."""
    return Layer(
        name=name,
        parameters=features * outputs + outputs,
        inputs=features * stage.voxels,
        outputs=outputs * stage.voxels,
    )

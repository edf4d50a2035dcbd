"""Bytes that training and prediction of a configuration take, told from its topology.

Training is followed layer by layer: the forward pass piles up what waits for the backward pass, which frees it again
while gradients of the weights pile up; the highest point counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from planners.geometry import stage_shapes
from planners.memory.coefficients import (
    LABEL_BYTES,
    OPTIMISER_STATES,
    WEIGHT_BYTES,
    Coefficients,
    Device,
    DType,
    coefficients_for,
)
from planners.memory.layers import Layer, network_layers
from planners.plan import Configuration, Network, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes beyond those of the program itself with its libraries loaded."""

    training_bytes: int
    """Peak of a training step, on the device that computes."""
    inference_bytes: int
    """Peak of the network on one batch of windows; the volume around it is `estimate_case_memory`'s matter."""
    num_parameters: int
    weights_bytes: int
    """Weights with their casts."""
    gradients_bytes: int
    optimiser_bytes: int
    activations_bytes: int
    """All that waits for the backward pass, of the whole batch."""
    loss_bytes: int


def estimate_memory(
    plan: Plan,
    configuration: str,
    *,
    dtype: DType = "float32",
    device: Device = "cpu",
    optimiser: Literal["sgd", "adamw"] = "sgd",
    batch_size: int | None = None,
    window_batch_size: int = 1,
    network: Network | None = None,
) -> MemoryEstimate:
    """Memory of one training step and of prediction, by the coefficients of a number format on a device.

    ``batch_size`` and ``network`` replace the configuration's own, for schedules that train a narrower one.
    ``window_batch_size`` windows are predicted at once. Raises `KeyError` for an unknown configuration.
    """
    chosen = plan.configuration(configuration)
    topology = network or chosen.network
    numbers = coefficients_for(dtype, device)
    layers = network_layers(topology, chosen.patch_shape)
    batch = batch_size or chosen.batch_size
    parameters = sum(layer.parameters for layer in layers)
    weights = parameters * (WEIGHT_BYTES + numbers.cast_weight)
    states = parameters * WEIGHT_BYTES * OPTIMISER_STATES[optimiser]
    scratch = parameters * numbers.weight_scratch
    loss = batch * _loss_bytes(chosen, topology, numbers)
    images = batch * math.prod(chosen.patch_shape) * (WEIGHT_BYTES * topology.num_inputs + LABEL_BYTES)
    climb = _highest_point(layers, batch, loss, numbers)
    return MemoryEstimate(
        training_bytes=int(weights + states + scratch + images + climb + numbers.overhead_bytes),
        inference_bytes=int(weights + _inference_bytes(layers, window_batch_size, numbers) + numbers.overhead_bytes),
        num_parameters=parameters,
        weights_bytes=int(weights),
        gradients_bytes=parameters * WEIGHT_BYTES,
        optimiser_bytes=int(states),
        activations_bytes=int(batch * sum(_kept(layer, numbers) for layer in layers)),
        loss_bytes=int(loss),
    )


def _kept(layer: Layer, numbers: Coefficients) -> float:
    """Bytes of one image that wait for the backward pass."""
    return (
        layer.convolved * numbers.convolved
        + layer.normed * numbers.normed
        + layer.activated * numbers.activated
        + layer.joined * numbers.joined
    )


def _highest_point(layers: Sequence[Layer], batch: int, loss: float, numbers: Coefficients) -> float:
    """Most bytes of waiting values, gradients of weights, and the running operation, over the backward pass."""
    waiting = batch * sum(_kept(layer, numbers) for layer in layers)
    highest = waiting + loss
    gradients = 0.0
    for layer in reversed(layers):
        gradients += layer.parameters * WEIGHT_BYTES
        running = batch * layer.passing * numbers.gradient * numbers.gradient_copies
        highest = max(highest, waiting + gradients + running)
        waiting -= batch * _kept(layer, numbers)
    return highest


def _inference_bytes(layers: Sequence[Layer], batch: int, numbers: Coefficients) -> float:
    """Most bytes of skips and of the running operation, over the forward pass."""
    skips = highest = 0.0
    for layer in layers:
        highest = max(highest, skips + batch * layer.passing * numbers.gradient * numbers.forward_copies)
        if layer.is_skip:
            skips += batch * max(layer.activated, layer.normed) * numbers.activated
    return highest


def _loss_bytes(configuration: Configuration, network: Network, numbers: Coefficients) -> float:
    """float32 copies of one image's logits, at every head that is trained."""
    shapes = stage_shapes(configuration.patch_shape, network.strides)[:-1]
    heads = shapes if configuration.deep_supervision else shapes[:1]
    voxels = sum(math.prod(shape) for shape in heads)
    return voxels * network.num_outputs * WEIGHT_BYTES * numbers.loss_copies

"""Bytes that training and prediction of a configuration take, told from its topology."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from planners.geometry import stage_shapes
from planners.memory.coefficients import (
    LABEL_BYTES,
    OPTIMISER_STATES,
    WEIGHT_BYTES,
    Device,
    DType,
    coefficients_for,
)
from planners.memory.layers import network_layers
from planners.memory.passes import inference_pile, loss_blocks, training_pile, waiting_blocks
from planners.plan import Configuration, Network, Plan

Optimiser = Literal["sgd", "adamw"]


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
    optimiser: Optimiser = "sgd",
    batch_size: int | None = None,
    window_batch_size: int | None = None,
    network: Network | None = None,
    keeps_freed: bool = False,
) -> MemoryEstimate:
    """Memory of one training step and of prediction, by the coefficients of a number format on a device.

    ``batch_size`` and ``network`` replace the configuration's own, for schedules that train a narrower one.
    ``window_batch_size`` windows are predicted at once; none: as many as a training batch has. ``keeps_freed``: the process
    gives nothing back of what it frees, which takes more and is faster. Raises `KeyError` for an unknown configuration.

    The number of threads plays no part: with one or two of them, what a convolution takes differs by a few MB.
    """
    return estimate_configuration_memory(
        plan.configuration(configuration),
        dtype=dtype,
        device=device,
        optimiser=optimiser,
        batch_size=batch_size,
        window_batch_size=window_batch_size,
        network=network,
        keeps_freed=keeps_freed,
    )


def estimate_configuration_memory(
    chosen: Configuration,
    *,
    dtype: DType,
    device: Device = "cpu",
    optimiser: Optimiser = "sgd",
    batch_size: int | None = None,
    window_batch_size: int | None = None,
    network: Network | None = None,
    keeps_freed: bool = False,
) -> MemoryEstimate:
    """`estimate_memory` where the configuration is at hand."""
    topology = network or chosen.network
    numbers = coefficients_for(dtype, device)
    if keeps_freed:
        numbers = replace(numbers, returned_from=math.inf)
    layers = network_layers(topology, chosen.patch_shape)
    batch = batch_size or chosen.batch_size
    parameters = sum(layer.parameters for layer in layers)
    weights = parameters * WEIGHT_BYTES
    states = weights * OPTIMISER_STATES[optimiser]
    images = batch * math.prod(chosen.patch_shape) * (WEIGHT_BYTES * topology.num_inputs + LABEL_BYTES)
    heads = _head_logits(chosen, topology)
    training = training_pile(layers, batch, heads, numbers).most(numbers.spread)
    windows = inference_pile(layers, window_batch_size or batch, heads[0], numbers).most(numbers.spread)
    waiting = sum(size * count for layer in layers for size, count in waiting_blocks(layer, batch, numbers))
    casts = parameters * numbers.cast_weight
    return MemoryEstimate(
        training_bytes=int(weights + states + images + training + numbers.overhead_bytes),
        inference_bytes=int(weights + windows + numbers.overhead_bytes),
        num_parameters=parameters,
        weights_bytes=int(weights + casts),
        gradients_bytes=parameters * WEIGHT_BYTES,
        optimiser_bytes=int(states),
        activations_bytes=int(waiting - casts),
        loss_bytes=int(sum(size * count for size, count in loss_blocks(batch, heads, numbers))),
    )


def _head_logits(configuration: Configuration, network: Network) -> list[int]:
    """Logits of one image at every head that is trained, highest resolution first."""
    shapes = stage_shapes(configuration.patch_shape, network.strides)[:-1]
    heads = shapes if configuration.deep_supervision else shapes[:1]
    return [math.prod(shape) * network.num_outputs for shape in heads]

"""What a plan needs of memory and disk, as a model of its networks with named coefficients.

Counts of layers are exact (`planners.topology`). What exists at once while a network runs forward and backward is followed
layer by layer; checked against torch 2.13: the values that wait for the backward pass are those that autograd saves, and
copies while a convolution runs are those of single convolutions in oneDNN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from planners.fingerprint import Fingerprint
from planners.geometry import resampled_shape, stage_shapes, transpose
from planners.plan import Configuration, Network, Plan, configuration_spacing
from planners.registry import TOPOLOGIES
from planners.rules.axes import in_acquisition_axes
from planners.topology import Layer, Stage

DType = Literal["float32", "bfloat16", "float16"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """Bytes of one value, by what it waits for (see `planners.topology.Layer`), and copies while an operation runs."""

    convolved: float
    normed: float
    activated: float
    joined: float
    pooled: float
    gradient: float
    """Bytes of one value of a gradient map."""
    input_copies: float
    """Maps of a convolution's input size that exist at most while it runs backward, its input left aside."""
    output_copies: float
    """Maps of a convolution's output size that exist at most while it runs forward."""
    cast_weight: float
    """Bytes of the copy of each weight that autocast makes; 0 without."""
    weight_scratch: float
    """Bytes for each parameter of the layer that runs backward, beside the gradient: reordered, or in another format."""
    logit_copies: float
    """float32 copies of a head's logits that the loss keeps or makes."""
    logits_at_once: float
    """Values of a head of which such copies exist at once; larger ones are computed in slabs."""
    computed_again: float
    """Share of `planners.topology.Layer.again` that does not wait, because it is computed once more."""
    norm_maps: float
    """Gradient maps of a layer's output size that exist while activation and norm run backward, beside what waits of it."""
    kept_gradients: float
    """Share of the last step's gradients of weights that still exists when the loss is computed."""
    returned_from: float
    """Bytes from which a freed block goes back to the system at once; smaller ones stay with the process."""
    spread: float
    """What the process holds of smaller blocks that come and go, gaps between them included, as a multiple of what they
    take at most. What stays for good (weights, optimiser state) has none."""
    overhead_bytes: float
    """Threads, kernels, imported modules: whatever does not grow with the network."""


WEIGHT_BYTES = 4
"""Weights, gradients and optimiser states are float32 whatever the network computes in."""
OPTIMISER_STATES = {"sgd": 1, "adamw": 2}
"""Values of optimiser state for each parameter."""
LABEL_BYTES = 8
"""Labels of a batch are 64-bit integers."""


_CPU: dict[str, float] = {
    # glibc maps blocks of 32 MiB and more one by one and gives them back; smaller ones share a heap that only its end
    # shrinks. 1.6 is what the heap held of the small blocks' most, measured on networks of 0.8 to 3 GB
    "returned_from": 32 * 1024**2, "spread": 1.6, "logits_at_once": math.inf, "computed_again": 0, "norm_maps": 2,
    "kept_gradients": 1,
    # a network of two features takes 180 MB: imports 70, threads and compiled kernels 110
    "overhead_bytes": 180e6,
}  # fmt: skip
_CUDA: dict[str, float] = {
    # counted on fake tensors (benchmarks/fake_gpu.py), never measured. 0.9 GB is for the context, for workspaces of libraries and
    # for gaps; the slabs are those of autoseg/training/losses.py
    "returned_from": math.inf, "spread": 1, "overhead_bytes": 0.9e9, "logits_at_once": 2**24, "computed_again": 1,
    "norm_maps": 1, "kept_gradients": 0,  # the result of the norm is gone by then
}  # fmt: skip
_FULL: dict[str, float] = {
    # copies: oneDNN reorders maps into its blocked layout and back, found by running single convolutions
    "convolved": 4, "normed": 4, "activated": 4, "joined": 4, "pooled": 0, "gradient": 4, "input_copies": 1,
    "output_copies": 1, "cast_weight": 0, "weight_scratch": 4, "logit_copies": 6,
}  # fmt: skip
_HALF_CPU: dict[str, float] = {
    "convolved": 2, "normed": 2, "activated": 2, "joined": 2, "pooled": 0, "gradient": 2, "input_copies": 1,
    "output_copies": 1, "cast_weight": 2, "weight_scratch": 6, "logit_copies": 6,
}  # fmt: skip
_HALF_CUDA: dict[str, float] = {
    # maps keep their format, and what convolutions copy are workspaces
    "convolved": 2, "normed": 2, "activated": 2, "joined": 2, "pooled": 0, "gradient": 2, "input_copies": 1,
    "output_copies": 1, "cast_weight": 2, "weight_scratch": 2, "logit_copies": 6,
}  # fmt: skip


def coefficients_for(dtype: DType, device: Device) -> Coefficients:
    """The coefficients of a number format on a device."""
    half = _HALF_CPU if device == "cpu" else _HALF_CUDA
    return Coefficients(**(_FULL if dtype == "float32" else half), **(_CPU if device == "cpu" else _CUDA))


Optimiser = Literal["sgd", "adamw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes beyond those of the program itself with its libraries loaded."""

    training_bytes: int
    """Peak of a training step, on the device that computes."""
    inference_bytes: int
    """Peak of the network on one batch of windows; for the volume see `estimate_volume_memory`."""
    num_parameters: int
    weights_bytes: int
    """Weights with their casts."""
    gradients_bytes: int
    optimiser_bytes: int
    activations_bytes: int
    """All that waits for the backward pass, of the whole batch."""
    loss_bytes: int


def estimate_configuration_memory(
    chosen: Configuration,
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
    gives nothing back of what it frees, which takes more and is faster.

    The number of threads plays no part: with one or two of them, what a convolution takes differs by a few MB.
    """
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
    shapes = stage_shapes(chosen.patch_shape, topology.strides)[:-1]
    heads = [math.prod(shape) * topology.num_outputs for shape in shapes]  # of one image, highest resolution first
    heads = heads if chosen.deep_supervision else heads[:1]
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


def network_layers(network: Network, patch: Sequence[int]) -> tuple[Layer, ...]:
    """All layers in the order of the forward pass; heads come right after their decoder stage."""
    stages = [
        Stage(voxels=math.prod(shape), kernel=math.prod(kernel), step=math.prod(stride), axes=len(shape))
        for shape, kernel, stride in zip(
            stage_shapes(patch, network.strides), network.kernels, network.strides, strict=True
        )
    ]
    return tuple(TOPOLOGIES.get(network.family).layers(network, stages))


IMAGE_BYTES = 4
"""Preprocessed images are float32."""
STORED_LABEL_BYTES = 2
"""Preprocessed label maps are 16-bit integers."""
STORED_SHARE = 0.95
"""Of the bytes of images that compression leaves at most; 0.44 to 0.78 were seen (docs/decisions/0003)."""
STORED_LABEL_SHARE = 0.05
"""Of the bytes of label maps that compression leaves: they are mostly constant."""
IMAGE_COPIES = 3
"""Of the preprocessed image while it is predicted: as it was made, padded, and one on the way."""
LOGIT_COPIES = 2
"""Of the logits of the whole case: the sum over windows, and its mean."""


def estimate_disk(plan: Plan, fingerprint: Fingerprint) -> dict[str, int]:
    """Bytes on disk of the preprocessed training cases, for each configuration that stores its own."""
    cases = map(in_acquisition_axes, fingerprint.cases) if plan.source_axes == "acquisition" else fingerprint.cases
    forward = plan.transpose_forward
    sizes = [(transpose(case.shape, forward), transpose(case.spacing_mm, forward)) for case in cases]
    voxel_bytes = len(plan.channels) * IMAGE_BYTES * STORED_SHARE + STORED_LABEL_BYTES * STORED_LABEL_SHARE
    stored = {}
    for configuration in plan.configurations:
        if configuration.data == configuration.name:
            shapes = [resampled_shape(shape, mm, configuration_spacing(configuration, mm)) for shape, mm in sizes]
            voxels = sum(map(math.prod, shapes)) * fingerprint.num_training_cases // len(sizes)
            stored[configuration.name] = int(voxels * voxel_bytes)
    return stored


def estimate_volume_memory(configuration: Configuration, voxels: int) -> int:
    """Main memory in bytes of a preprocessed image of so many voxels and of its logits, while windows are predicted."""
    network = configuration.network
    return IMAGE_BYTES * (network.num_inputs * IMAGE_COPIES + network.num_outputs * LOGIT_COPIES + 1) * voxels


Blocks = Iterable[tuple[float, float]]
"""(bytes of one block, how many of them)."""


@dataclass(slots=True, kw_only=True)
class Pile:
    """Bytes that exist now, and the most of them so far; blocks that go back to the system at once are counted apart."""

    returned_from: float
    """Bytes from which a freed block goes back; smaller ones stay with the process for its next ones."""
    large: float = 0.0
    small: float = 0.0
    most_large: float = 0.0
    most_small: float = 0.0

    def add(self, blocks: Blocks) -> None:
        """Put blocks on the pile."""
        for size, count in blocks:
            if size >= self.returned_from:
                self.large += size * count
            else:
                self.small += size * count
        self.most_large, self.most_small = max(self.most_large, self.large), max(self.most_small, self.small)

    def drop(self, blocks: Blocks) -> None:
        """Take blocks away again."""
        self.add((size, -count) for size, count in blocks)

    def touch(self, *blocks: tuple[float, float]) -> None:
        """Blocks that exist at once for a moment."""
        self.add(blocks)
        self.drop(blocks)

    def most(self, spread: float) -> float:
        """Bytes that the process held at most: of small blocks ``spread`` times what they took, for their gaps.

        Both kinds are taken at their own highest, for the process keeps the space of small blocks between them.
        """
        return self.most_large + spread * self.most_small


HEAD_COPIES = 4
"""float32 logits of a batch of windows in prediction: of the last pass, mirrored back, their sum, and weighted."""


def training_pile(layers: Sequence[Layer], batch: int, heads: Sequence[int], numbers: Coefficients) -> Pile:
    """Activations, casts of weights, and gradients of one step.

    ``heads``: logits of one image at every trained head, highest resolution first. The forward pass piles up what waits
    for the backward pass, which frees it again while gradients of weights pile up. Weights and optimiser state are not
    counted.
    """
    pile = Pile(returned_from=numbers.returned_from)
    for layer in layers:
        pile.add(waiting_blocks(layer, batch, numbers))
        pile.touch((batch * layer.outputs * numbers.gradient, numbers.output_copies - 1))
    # the previous step's gradients of weights are dropped only between the loss and the backward pass, on a CPU
    gradients = [(layer.parameters * WEIGHT_BYTES, numbers.kept_gradients) for layer in layers]
    pile.touch(*gradients, *loss_blocks(batch, heads, numbers))
    unused: list[
        tuple[float, float]
    ] = []  # gradients of concatenations, of which the encoder has not used its part yet
    for layer in reversed(layers):
        inputs, outputs, beside = (
            batch * values * numbers.gradient for values in (layer.inputs, layer.outputs, layer.beside)
        )
        pile.touch((outputs, numbers.norm_maps), (beside, 1))  # activation and norm
        if layer.takes_skip:
            unused.append((batch * layer.joined * numbers.gradient, 1.0))
            pile.add(unused[-1:])
        elif layer.is_skip:
            pile.drop([unused.pop()])
        pile.drop(waiting_blocks(layer, batch, numbers))
        scratch = layer.parameters * (numbers.weight_scratch + numbers.cast_weight)
        pile.touch((inputs, numbers.input_copies), (outputs, 1), (beside, 1), (scratch, 1))  # convolution
        pile.add([(layer.parameters * WEIGHT_BYTES, 1.0)])
    return pile


def inference_pile(layers: Sequence[Layer], batch: int, logits: int, numbers: Coefficients) -> Pile:
    """Activations of a forward pass that keeps nothing but the skips, each until it is joined.

    ``logits``: those of one image at the highest resolution; the sum over mirror images and folds exists beside.
    """
    pile = Pile(returned_from=numbers.returned_from)
    total = batch * logits * WEIGHT_BYTES
    pile.add([(total, 1.0)])
    skips: list[tuple[float, float]] = []
    for layer in layers:
        inputs, outputs = (batch * values * numbers.gradient for values in (layer.inputs, layer.outputs))
        pile.add([(layer.parameters * numbers.cast_weight, 1.0)])
        pile.touch((inputs, 1), (outputs, max(2.0, numbers.output_copies)))  # a norm writes beside what it reads
        if layer.is_skip:
            skips.append((batch * layer.activated * numbers.activated, 1.0))
            pile.add(skips[-1:])
        elif layer.takes_skip:
            pile.touch((batch * layer.joined * numbers.joined, 1.0))
            pile.drop([skips.pop()])
    # nothing of the network is left by then, but most of a small network is less than its logits
    alone = Pile(returned_from=numbers.returned_from)
    alone.touch((total, HEAD_COPIES))
    return alone if alone.most(numbers.spread) > pile.most(numbers.spread) else pile


def waiting_blocks(layer: Layer, batch: int, numbers: Coefficients) -> list[tuple[float, float]]:
    """What waits of a layer for its backward pass: values by kind, and the cast copy of its weights."""
    kinds = ("convolved", "normed", "joined", "pooled")
    values = [(batch * getattr(layer, kind) * getattr(numbers, kind), 1.0) for kind in kinds]
    activated = layer.activated - numbers.computed_again * layer.again
    values.insert(2, (batch * activated * numbers.activated, 1.0))
    return [*values, (layer.parameters * numbers.cast_weight, 1.0)]


def loss_blocks(batch: int, heads: Sequence[int], numbers: Coefficients) -> list[tuple[float, float]]:
    """The loss at its highest: at the highest resolution, when other heads have only their gradients left."""
    copies = [numbers.logit_copies, *([1.0] * (len(heads) - 1))]
    blocks = [
        (min(batch * logits, numbers.logits_at_once) * WEIGHT_BYTES, count)
        for logits, count in zip(heads, copies, strict=True)
    ]
    # where slabs are taken, logits and their gradient wait in the network's format
    return blocks + [
        (batch * logits * numbers.gradient, 2.0) for logits in heads if batch * logits > numbers.logits_at_once
    ]

"""What exists at once while a network runs forward and backward, followed layer by layer.

Checked against torch 2.13: the values that wait for the backward pass are those that autograd saves; copies while a
convolution runs are those of single convolutions in oneDNN.
"""

from __future__ import annotations

from collections.abc import Sequence

from planners.memory.coefficients import WEIGHT_BYTES, Coefficients
from planners.memory.layers import Layer
from planners.memory.pile import Pile

HEAD_COPIES = 4
"""float32 logits of a batch of windows in prediction: of the last pass, turned back, their sum, and weighted."""


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
    # the previous step's gradients of weights are dropped only between the loss and the backward pass
    gradients = [(layer.parameters * WEIGHT_BYTES, 1.0) for layer in layers]
    pile.touch(*gradients, *loss_blocks(batch, heads, numbers))
    unused: list[tuple[float, float]] = []
    for layer in reversed(layers):
        _go_back(pile, layer, batch, numbers, unused)
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
    values = (
        (layer.convolved, numbers.convolved),
        (layer.normed, numbers.normed),
        (layer.activated, numbers.activated),
        (layer.joined, numbers.joined),
        (layer.pooled, numbers.pooled),
    )
    return [*((batch * count * size, 1.0) for count, size in values), (layer.parameters * numbers.cast_weight, 1.0)]


def loss_blocks(batch: int, heads: Sequence[int], numbers: Coefficients) -> list[tuple[float, float]]:
    """The loss at its highest: at the highest resolution, when other heads have only their gradients left."""
    copies = [numbers.logit_copies, *([1.0] * (len(heads) - 1))]
    return [(batch * logits * WEIGHT_BYTES, count) for logits, count in zip(heads, copies, strict=True)]


def _go_back(pile: Pile, layer: Layer, batch: int, numbers: Coefficients, unused: list[tuple[float, float]]) -> None:
    """One layer's backward pass: activation and norm, then convolution.

    ``unused``: gradients of concatenations, of which the encoder has not used its part yet.
    """
    inputs, outputs, beside = (
        batch * values * numbers.gradient for values in (layer.inputs, layer.outputs, layer.beside)
    )
    pile.touch((outputs, 2), (beside, 1))
    if layer.takes_skip:
        unused.append((batch * layer.joined * numbers.gradient, 1.0))
        pile.add(unused[-1:])
    elif layer.is_skip:
        pile.drop([unused.pop()])
    pile.drop(waiting_blocks(layer, batch, numbers))
    scratch = layer.parameters * (numbers.weight_scratch + numbers.cast_weight)
    pile.touch((inputs, numbers.input_copies), (outputs, 1), (beside, 1), (scratch, 1))
    pile.add([(layer.parameters * WEIGHT_BYTES, 1.0)])

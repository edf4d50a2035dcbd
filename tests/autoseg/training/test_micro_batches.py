"""A batch in micro-batches has the gradient of the whole batch, whatever the loss."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_batches import CASES, make_batch, make_network
from torch import Tensor

from autoseg.compute.memory import micro_batch_sizes
from autoseg.training.loop import accumulate, is_mean_over_samples
from autoseg.training.losses import make_loss, supervise_deeply


def gradients(name: str, *, size: int | None, separable: bool | None = None) -> tuple[float, Tensor]:
    """Loss and gradient of all parameters; of the whole batch at once where ``size`` is None."""
    loss, labels = CASES[name]
    network, criterion = make_network(labels), make_loss(loss, labels)
    images, target = make_batch(labels)
    if size is None:
        value = supervise_deeply(criterion, network(images), target)
        value.backward()
    else:
        value = accumulate(
            network,
            lambda logits, part: supervise_deeply(criterion, logits, part),
            lambda v: v.backward(),
            images,
            target,
            size=size,
            separable=is_mean_over_samples(loss, labels) if separable is None else separable,
        )
    parts = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    return float(value.detach()), torch.cat(parts)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", list(CASES))
def test_the_gradient_is_that_of_the_whole_batch(name: str, size: int) -> None:
    """Losses are computed in float32, the network in float64: what is left is float32's rounding, 1e-7, in sums of hundreds."""
    (value, gradient), (expected_value, expected) = gradients(name, size=size), gradients(name, size=None)
    assert value == pytest.approx(expected_value, abs=1e-5)
    assert (gradient - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    "name", [name for name, (loss, labels) in CASES.items() if not is_mean_over_samples(loss, labels)]
)
def test_micro_batches_taken_one_by_one_would_be_another_loss(name: str) -> None:
    """So it is right to compute these twice."""
    (_, gradient), (_, expected) = gradients(name, size=1, separable=True), gradients(name, size=None)
    assert (gradient - expected).norm() > 1e-2 * expected.norm()


@given(st.integers(1, 5000))
def test_micro_batches_halve_down_to_one_sample(batch: int) -> None:
    sizes = micro_batch_sizes(batch)
    assert sizes[0] == batch
    assert sizes[-1] == 1
    assert all(2 * b - 1 <= a <= 2 * b for a, b in pairwise(sizes))

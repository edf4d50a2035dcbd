"""A batch in micro-batches has the gradient of the whole batch, whatever the loss."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autoseg.compute.memory import micro_batch_sizes
from autoseg.networks.build import build_network
from autoseg.training.loop import accumulate, is_mean_over_samples
from autoseg.training.losses import make_loss, supervise_deeply
from planners import LabelClass, Labels, Loss, Network

CLASSES = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
WITH_IGNORE = CLASSES.model_copy(update={"ignore": 3})
REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))), region_order=(1, 2)
)
CASES = {
    "per sample": (Loss(batch_dice=False), CLASSES),
    "V-Net": (Loss(region="squared_dice", voxel=None, batch_dice=False), CLASSES),
    "focal": (Loss(voxel="focal", batch_dice=False), CLASSES),
    "regions": (Loss(batch_dice=False), REGIONS),
    "batch Dice": (Loss(batch_dice=True), CLASSES),
    "ignore label": (Loss(batch_dice=False), WITH_IGNORE),
    "top k": (Loss(voxel="top_k", batch_dice=False), CLASSES),
    "batch Dice of regions": (Loss(batch_dice=True), REGIONS),
}
BATCH = 5


def make_network(labels: Labels) -> nn.Module:
    """Three stages, so that one of two heads has no weight."""
    topology = Network(
        family="unet",
        num_inputs=1,
        num_outputs=labels.num_outputs,
        features=(4, 8, 8),
        kernels=((3, 3),) * 3,
        strides=((1, 1), (2, 2), (2, 2)),
        blocks=(1, 1, 1),
        decoder_blocks=(1, 1),
    )
    return build_network(topology, deep_supervision=True, seed=3).train().double()


def make_batch(labels: Labels) -> tuple[Tensor, Tensor]:
    """Samples that differ in how much of each class they hold, and in how much is ignored."""
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 1, 16, 16, generator=draws, dtype=torch.float64)
    target = torch.zeros(BATCH, 16, 16, dtype=torch.int64)
    for i in range(BATCH):
        target[i, : 2 + i] = 1
        target[i, -1 - i :, :5] = 2
        if labels.ignore is not None:
            target[i, :, : 3 * i] = labels.ignore
    return images, target


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

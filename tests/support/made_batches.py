"""A batch, a network and losses of every kind: for tests that compute a batch in parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoseg.networks.build import build_network
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

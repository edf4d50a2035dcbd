"""What the second of two processes does that train one model, in tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from made_batches import BATCH, CASES, make_batch, make_network
from made_folds import make_spec
from torch import Tensor

from autoseg.compute.cluster import end_with_parent
from autoseg.compute.ranks import Ranks, joined, leave, store_at
from autoseg.training.fold_spec import FoldSpec
from autoseg.training.losses import make_joint_loss, supervise_deeply
from autoseg.training.together import follow_fold

STEPS = 8


def main(task: str, folder: str, rank: str, port: str) -> None:
    """The second process: its part of the gradients, or of a training."""
    end_with_parent()
    torch.set_num_threads(1)
    ranks = joined(torch.device("cpu"), rank=int(rank), count=2, store=store_at(int(port), 2))
    if task == "both":
        for name in CASES:
            joint_gradient(name, ranks)
    follow_fold(with_ranks(Path(folder), ranks), ranks)
    leave()


def joint_gradient(name: str, ranks: Ranks) -> tuple[float, Tensor]:
    """Loss and gradient of the whole batch, of which this process computes its share."""
    loss, labels = CASES[name]
    network, (images, target) = make_network(labels), make_batch(labels)
    share = list(ranks.share(BATCH))
    criterion = make_joint_loss(loss, labels, lambda rows: ranks.gather(rows, BATCH))
    value = supervise_deeply(criterion, network(images[share]), target[share])
    value.backward()
    ranks.sum_gradients(list(network.parameters()))
    return float(value.detach()), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def with_ranks(folder: Path, ranks: Ranks | None, *, batch_dice: bool = True) -> FoldSpec:
    """SGD: AdamW divides by the gradient's size, and makes whole steps of rounding where that is near zero."""
    spec = make_spec(folder, steps=STEPS)
    loss = spec.configuration.loss.model_copy(update={"batch_dice": batch_dice})
    configuration = spec.configuration.model_copy(update={"loss": loss})
    sgd = {"optimiser": "sgd", "momentum": 0.9, "peak_learning_rate": 0.005}
    training = spec.training.model_copy(update={"steps_per_epoch": 1, **sgd})
    return replace(spec, configuration=configuration, training=training, ranks=ranks, checkpoint_interval_s=0.0)

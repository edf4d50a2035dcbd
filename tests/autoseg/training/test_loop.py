"""The training loop: single steps, memory, optimisers, and what validation counts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_folds import (
    LABELS,
    make_plan,
    make_spec,
    run,
    shallow,
    training_with,
)
from spies import Spy
from torch import Tensor, nn

from autoseg.compute.workarounds import MMAP_THRESHOLD_BYTES, kept_heap
from autoseg.tracking.callbacks import StepRecord
from autoseg.training.fold import class_counts
from autoseg.training.fold_spec import batch_source, make_fold_parts, make_network
from autoseg.training.loop import (
    Parts,
    compute_gradient,
    load_optimiser,
    make_optimiser,
    make_parts,
    queue_step,
    run_network,
    train,
    train_step,
)
from autoseg.training.losses import make_loss
from autoseg.training.sampling import Batch, finish
from planners import LabelClass, Labels, trial_training

AUGMENTATION_S = 0.02


def test_a_schedule_without_momentum_trains_with_plain_sgd(tmp_path) -> None:
    spec = training_with(make_spec(tmp_path, steps=1), optimiser="sgd", momentum=0.0, gradient_clip=1e9)
    parts = make_fold_parts(spec)
    batch = finish(
        batch_source(spec, purpose="training")[0], batch_source(spec, purpose="training").recipe, spec.device
    )
    before = [parameter.detach().clone() for parameter in parts.network.parameters()]
    train_step(parts, *batch, 0.01)
    decay = spec.training.weight_decay
    for old, parameter in zip(before, parts.network.parameters(), strict=True):
        step = (
            0.0 if parameter.grad is None else parameter.grad + decay * old
        )  # heads below the full resolution have none
        assert torch.allclose(parameter, old - 0.01 * step, atol=1e-7)
    run(spec)


def test_memory_that_is_kept_changes_no_bit() -> None:
    plan = make_plan()
    configuration = shallow(plan.configuration("3d_fullres"))
    training = trial_training(configuration, base_features=4, batch_size=1, precision="float32")
    image = torch.rand((1, 1, 128, 128, 128), generator=torch.Generator().manual_seed(0))
    assert 4 * image.numel() * 4 >= MMAP_THRESHOLD_BYTES  # so that the first maps would be given back
    weights = []
    for held in (0.0, float("inf")):
        network = make_network(configuration, training, seed=1)
        parts = make_parts(network, make_loss(configuration.loss, plan.labels), training, torch.device("cpu"))
        with kept_heap(parts.device, lambda held=held: held):
            for _ in range(2):
                train_step(parts, image, (image[:, 0] > 0.5).long(), 1e-3)
        weights.append(torch.cat([tensor.flatten() for tensor in network.state_dict().values()]))
    assert torch.equal(*weights)


def test_micro_batches_in_bfloat16_point_the_way_of_the_whole_batch(tmp_path) -> None:
    """Steps of bfloat16 are 2**-8: sums of a few hundred values in another order may differ by a percent."""
    spec = training_with(make_spec(tmp_path), precision="bfloat16", batch_size=4)
    crops = batch_source(spec, purpose="training")[0]
    images, labels = finish(crops, batch_source(spec, purpose="training").recipe, spec.device)
    directions = []
    for size, separable in ((4, True), (1, True), (1, False)):
        parts = replace(make_fold_parts(spec), separable=separable)
        parts.network.train()
        compute_gradient(parts, images, labels, size)
        gradient = torch.cat([p.grad.flatten() for p in parts.network.parameters() if p.grad is not None])
        directions.append(gradient / gradient.norm())
    for direction in directions[1:]:
        assert float(direction @ directions[0]) > 0.99


def test_class_counts_are_those_of_a_hand_count() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1, 0] = 5.0  # the first row is predicted as class 1, the rest as background
    target = torch.tensor([[[1, 2], [1, 0]]])
    hits, predicted, present = class_counts(logits, target, LABELS).tolist()
    assert hits == [1, 0]
    assert predicted == [2, 0]
    assert present == [2, 1]


def test_class_counts_of_regions_leave_ignored_voxels_out() -> None:
    """A region is predicted where its logit is above 0."""
    labels = Labels(
        classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))),
        region_order=(1, 2),
        ignore=3,
    )
    logits = torch.tensor([[[[0.5, 0.5, 0.0]], [[-1.0, 0.0, 2.0]]], [[[9.0, -1.0, 9.0]], [[9.0, 0.1, 9.0]]]])
    target = torch.tensor([[[1, 2, 0]], [[3, 2, 3]]])
    assert class_counts(logits, target, labels).tolist() == [[2, 1], [2, 2], [3, 2]]


def made_control(**changes: object) -> SimpleNamespace:
    """What may change from step to step, and does not."""
    usual = {"micro_batch_size": 1, "learning_rate": lambda step: 0.01, "reads_after": lambda step: False}
    return SimpleNamespace(**{**usual, "new_batches": False, **changes})


def make_slowly(batch: Batch) -> Batch:
    """An augmentation that takes long."""
    time.sleep(AUGMENTATION_S)
    return batch


def test_steps_follow_the_schedule_until_new_batches_are_wanted() -> None:
    parts = half_parts(precision="float32")
    batch = torch.ones(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)
    control = made_control(micro_batch_size=2, learning_rate=lambda step: 0.01 * step)
    records: list[StepRecord] = []

    def on_step(record: StepRecord) -> None:
        records.append(record)
        control.new_batches = record.step == 5

    def do(steps: range) -> int:
        return train(
            parts,
            [batch] * 9,
            steps,
            make_batch=make_slowly,
            control=control,
            on_step=on_step,
            on_memory_error=records.remove,
        )

    started = time.perf_counter()
    assert do(range(4, 9)) == 6
    spent = time.perf_counter() - started
    assert [record.step for record in records] == [4, 5]
    assert [record.learning_rate for record in records] == [0.04, 0.05]
    assert all(0 <= record.wait_s < record.duration_s < spent and not record.skipped for record in records)
    assert all(record.duration_s - record.wait_s > AUGMENTATION_S for record in records)  # which is no waiting
    assert not control.new_batches
    assert (do(range(6, 9)), do(range(0))) == (9, 0)


LATE = {
    "sgd": {"optimiser": "sgd", "momentum": 0.9},
    "plain": {"optimiser": "sgd", "momentum": 0.0},
    "adamw": {"optimiser": "adamw"},
}
"""Optimisers, each fused: they step over what is not finite by themselves, and results are read late, as on a GPU."""


def late_parts(precision: str = "float32", **changes: object) -> Parts:
    return half_parts(precision, fused=True, **changes)


@dataclass
class Recorded:
    """A training of some steps, of which ``bad`` ones have a loss that is not finite, told as it goes."""

    parts: Parts
    bad: tuple[int, ...] = ()
    control: SimpleNamespace = field(default_factory=lambda: made_control())
    made: int = 0
    records: list[StepRecord] = field(default_factory=list)
    made_before: list[int] = field(default_factory=list)
    """Batches that were made when each record came."""

    def make(self, step: int) -> Batch:
        self.made += 1
        images = torch.full((1, 1, 8, 8), math.inf if step in self.bad else 1.0 + 0.01 * step)
        return images, torch.zeros(1, 8, 8, dtype=torch.int64)

    def on_step(self, record: StepRecord) -> None:
        self.records.append(record)
        self.made_before.append(self.made)

    def train(self, steps: range, loaded: Iterable[int] | None = None, **options: Any) -> int:
        return train(
            self.parts,
            steps if loaded is None else loaded,
            steps,
            make_batch=self.make,
            control=self.control,
            on_step=self.on_step,
            on_memory_error=lambda step: None,
            **options,
        )

    @property
    def weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.parts.network.parameters()])


@pytest.mark.parametrize("name", LATE)
def test_steps_that_are_read_late_are_those_that_are_read_at_once(name: str) -> None:
    """Steps that are not finite change nothing, not even the first one, and are told like the others."""
    bad = (0, 7, 8)
    late, soon = (Recorded(half_parts("float32", fused=fused, **LATE[name]), bad) for fused in (True, False))
    assert (late.train(range(25)), soon.train(range(25))) == (25, 25)
    assert [record.step for record in late.records] == [*range(25)]
    assert [record.step for record in late.records if record.skipped] == [*bad]
    assert [record.skipped for record in late.records] == [record.skipped for record in soon.records]
    losses = ([record.loss for record in each.records if not record.skipped] for each in (late, soon))
    assert [*next(losses)] == pytest.approx([*next(losses)], rel=1e-5)  # fused sums go in another order
    assert torch.allclose(late.weights, soon.weights, rtol=1e-5, atol=1e-7)
    assert soon.made_before == [*range(1, 26)]
    assert late.made_before == [11] * 10 + [21] * 10 + [25] * 5  # the next batch is given before the results are read
    assert [record.lag for record in late.records] == [*range(9, -1, -1), *range(9, -1, -1), *range(4, -1, -1)]
    assert {record.lag for record in soon.records} == {0}


def test_results_are_read_where_weights_are_looked_at_and_where_steps_are_slow(monkeypatch) -> None:
    wanted = Recorded(late_parts(), control=made_control(reads_after=lambda step: step == 2))
    wanted.train(range(7))
    assert [record.lag for record in wanted.records] == [2, 1, 0, 3, 2, 1, 0]
    slow = Recorded(late_parts())
    monkeypatch.setattr("autoseg.training.loop.LONGEST_UNREAD_S", 0.0)
    slow.train(range(7))
    assert {record.lag for record in slow.records} == {0}


def test_new_batches_drop_the_one_that_was_made_ahead() -> None:
    late = Recorded(late_parts())
    late.control.reads_after = lambda step: step == 3
    tell = late.on_step
    late.on_step = lambda record: (tell(record), setattr(late.control, "new_batches", record.step == 3))  # type: ignore[assignment,method-assign]
    assert late.train(range(9)) == 4
    assert (late.made, len(late.records)) == (5, 4)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("good", [0, 1, 4])
def test_steps_before_a_batch_that_cannot_be_had_are_told_first(fused: bool, good: int) -> None:
    def loaded() -> Iterator[int]:
        yield from range(good)
        raise OSError("gone")

    each, saved = Recorded(half_parts("float32", fused=fused)), []
    with pytest.raises(OSError, match="gone"):
        each.train(range(9), loaded(), on_batch_error=lambda done: saved.append((done, len(each.records))))
    assert saved == [(good, good)]


def test_the_scaler_steps_over_an_overflow_without_being_asked() -> None:
    late, soon = (half_parts(fused=fused) for fused in (True, False))
    for parts in (late, soon):
        parts.network.weight.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[union-attr,operator]
    batch = torch.ones(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
    applied = [[queue_step(parts, *batch, 0.01).read()[1] for _ in range(20)] for parts in (late, soon)]
    assert applied == [[True] * 17 + [False] * 3] * 2


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("name", LATE)
def test_a_step_that_is_read_late_waits_for_nothing(tmp_path, name: str, precision: str) -> None:
    """With the product's loss and micro-batches; the scaler that is not fused asks whether there was an overflow."""
    spec = training_with(make_spec(tmp_path, name="2d"), precision=precision, **LATE[name])
    source, waits = batch_source(spec, purpose="training"), []
    batch = finish(source[0], source.recipe, spec.device)
    for fused in (True, False):
        parts = make_fold_parts(spec)
        parts = replace(parts, optimiser=make_optimiser(parts.network, spec.training, fused=fused))
        with Spy() as spy:
            queue_step(parts, *batch, 0.01, micro_batch_size=1)
        waits.append(spy.waits)
    assert waits[0] == 0
    assert (waits[1] > 0) == (precision == "float16" or name == "adamw")


@pytest.mark.parametrize("name", LATE)
def test_optimisers_go_on_from_each_others_state(name: str) -> None:
    """That of a CPU on a GPU, and the other way round."""
    for first, then in ((False, True), (True, False)):
        begun = Recorded(half_parts("float32", fused=first, **LATE[name]))
        begun.train(range(3))
        gone_on = Recorded(half_parts("float32", fused=then, **LATE[name]))
        gone_on.parts.network.load_state_dict(begun.parts.network.state_dict())
        load_optimiser(gone_on.parts.optimiser, deepcopy(begun.parts.optimiser.state_dict()))
        assert gone_on.parts.optimiser.param_groups[0]["fused"] == (then or None)
        for each in (begun, gone_on):
            each.train(range(3, 8))
        assert torch.allclose(begun.weights, gone_on.weights, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(where: str) -> None:
    parts = half_parts(precision="float32")
    if where == "loss":
        parts = replace(parts, loss=lambda logits, target: logits.square().mean() * math.inf)
    else:
        parts.network.weight.register_hook(lambda gradient: gradient * math.nan)  # type: ignore[union-attr,operator]
    before = [parameter.detach().clone() for parameter in parts.network.parameters()]
    batch = torch.ones(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
    assert not train_step(parts, *batch, 0.01)[1]
    assert all(torch.equal(old, new) for old, new in zip(before, parts.network.parameters(), strict=True))


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_networks_compute_in_the_precision_of_the_schedule(precision: str, dtype: torch.dtype) -> None:
    logits = run_network(nn.Conv2d(1, 2, 3), torch.ones(1, 1, 8, 8), precision)
    assert logits.dtype == dtype  # type: ignore[union-attr]


def test_momentum_is_nesterovs() -> None:
    (group,) = half_parts().optimiser.param_groups
    assert (group["momentum"], group["nesterov"]) == (0.9, True)


def half_parts(precision: str = "float16", *, fused: bool = False, **changes: object) -> Parts:
    """A small network in float16, or another precision."""
    changes = {"precision": precision, "optimiser": "sgd", "momentum": 0.9, **changes}
    training = trial_training(make_plan().configuration("2d"), base_features=4, batch_size=1, precision="float32")
    training = training.model_copy(update=changes)
    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 3, padding=1)
    parts = make_parts(network, lambda logits, target: logits.square().mean(), training, torch.device("cpu"))
    return replace(parts, optimiser=make_optimiser(network, training, fused=fused))


def test_gradients_that_stay_infinite_at_any_scale_are_not_applied() -> None:
    parts = half_parts()
    parts.network.weight.register_hook(lambda gradient: gradient * float("nan"))  # type: ignore[union-attr,operator]
    batch = torch.ones(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
    applied = [train_step(parts, *batch, 0.01)[1] for _ in range(25)]
    assert applied == [True] * 17 + [False] * 8  # the scale begins at 2 ** 16 and is halved each time


def test_memory_that_runs_out_in_the_optimiser_lets_the_step_be_redone() -> None:
    parts, untroubled = half_parts(), half_parts()
    batch = torch.ones(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
    hungry = iter([True])

    def run_out(*_: object) -> None:
        if next(hungry, False):
            raise torch.OutOfMemoryError("CUDA out of memory")

    def do_steps(parts: Parts, steps: range) -> list[int]:
        relieved: list[int] = []
        train(
            parts,
            [batch] * len(steps),
            steps,
            make_batch=lambda batch: batch,
            control=made_control(),
            on_step=lambda _: None,
            on_memory_error=relieved.append,
        )
        return relieved

    parts.optimiser.register_step_pre_hook(run_out)  # type: ignore[arg-type]
    assert len(do_steps(parts, range(6))) == 1
    assert do_steps(untroubled, range(6)) == []
    pairs = zip(parts.network.parameters(), untroubled.network.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)

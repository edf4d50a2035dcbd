"""A foreground that is lost brings the last good weights back at half the rate, three times at most."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from autoseg.training.care import Care, FoldState, after_epoch, seeking
from autoseg.training.health import describe_lost
from autoseg.training.learning import Learning
from torch import nn

from autoseg.issues import AutosegError
from autoseg.tracking.history import EpochRecord
from autoseg.training.augmentation import make_recipe
from autoseg.training.loop import Control, Parts, StepRecord, make_parts, train, train_step
from autoseg.training.sampling import BatchSource
from planners import Training

TRAINING = Training(
    configuration="2d", base_features=4, batch_size=1, num_steps=1200, steps_per_epoch=100, precision="float32", optimiser="adamw",
    peak_learning_rate=0.01, momentum=0.9, weight_decay=0.0, warmup_steps=0, curve="cosine", gradient_clip=12.0,
    deep_supervision=False, mirroring=False, augmentation=False, foreground_share=0.33, validation_batches=1,
)  # fmt: skip


@dataclass
class Case:
    locations: dict[str, np.ndarray]
    image: np.ndarray = field(default_factory=lambda: np.zeros((1, 1, 8, 8), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros((1, 8, 8), np.int16))


def make_care(said: list[str], *, shown: bool = True) -> Care:
    source = BatchSource(
        cases=[Case({"ball": np.zeros((int(shown), 3), np.int32)}) for _ in range(2)],
        recipe=make_recipe((8, 8), num_channels=1, mirror_axes=(), masked_channels=[], augment=False),
        batch_size=1, foreground_share=0.33, seed=0, configuration="2d", fold=0, purpose="training",
    )  # fmt: skip
    return Care(
        where="2d, fold 0",
        num_epochs=12,
        steps_per_epoch=100,
        source=source,
        case_ids=["a", "b"],
        most_workers=0,
        say=said.append,
    )


def trained_parts() -> Parts:
    """A network after a step, so that its optimiser remembers something."""
    torch.manual_seed(0)
    parts = make_parts(
        nn.Conv2d(1, 2, 3, padding=1), lambda logits, target: logits.square().mean(), TRAINING, torch.device("cpu")
    )
    train_step(parts, torch.ones(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64), 0.01)
    return parts


def half_parts() -> Parts:
    """The same in float16."""
    training = TRAINING.model_copy(update={"precision": "float16", "optimiser": "sgd"})
    torch.manual_seed(0)
    return make_parts(
        nn.Conv2d(1, 2, 3, padding=1), lambda logits, target: logits.square().mean(), training, torch.device("cpu")
    )


def test_gradients_that_no_scale_mends_are_no_health() -> None:
    parts = half_parts()
    parts.network.weight.register_hook(lambda gradient: gradient * float("nan"))  # type: ignore[union-attr,operator]
    batch = torch.ones(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
    applied = [train_step(parts, *batch, 0.01).applied for _ in range(25)]
    assert applied == [True] * 17 + [False] * 8  # the scale begins at 2 ** 16 and is halved each time


def test_memory_that_runs_out_in_the_optimiser_lets_the_step_be_done_again() -> None:
    parts, untroubled = half_parts(), half_parts()
    batch = torch.ones(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
    hungry = iter([True])

    def run_out(*_: object) -> None:
        if next(hungry, False):
            raise torch.OutOfMemoryError("CUDA out of memory")

    def do_steps(parts: Parts, steps: range) -> list[int]:
        relieved: list[int] = []
        control = Control(micro_batch_size=1)
        train(parts, [batch] * len(steps), steps, control=control, listeners=(), relieve=relieved.append)
        return relieved

    parts.optimiser.register_step_pre_hook(run_out)  # type: ignore[arg-type]
    assert len(do_steps(parts, range(6))) == 1
    assert do_steps(untroubled, range(6)) == []
    pairs = zip(parts.network.parameters(), untroubled.network.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def make_state(history: list[EpochRecord], **learning: object) -> FoldState:
    kept = Learning(key="k", batch_size=1, micro_batch_size=1, **learning)  # type: ignore[arg-type]
    good = {"weight": torch.full((2, 1, 3, 3), 0.5), "bias": torch.zeros(2)}
    return FoldState(learning=kept, control=Control(micro_batch_size=1), good=good, history=history)


def epoch(number: int, dice: float, loss: float) -> EpochRecord:
    return EpochRecord(
        epoch=number, step=100 * (number + 1), loss=loss, pseudo_dice={"ball": dice}, moving_average=dice, learning_rate=0.01,
        seconds=1.0, wait_share=0.0,
    )  # fmt: skip


COLLAPSED = [epoch(0, 0.4, 0.5), epoch(1, 0.7, 0.2), epoch(2, 0.0, 1.5)]
LAST = StepRecord(step=299, loss=1.5, learning_rate=0.01, wait_s=0.0, duration_s=0.1)


def test_the_last_good_weights_return_at_half_the_rate() -> None:
    said: list[str] = []
    parts, state = trained_parts(), make_state(COLLAPSED)
    assert parts.optimiser.state
    after_epoch(make_care(said), parts, state, LAST)
    assert torch.equal(parts.network.weight, state.good["weight"])
    assert not parts.optimiser.state
    assert state.control.rate_factor == 0.5
    assert (state.learning.restarts, state.learning.restarted_at, state.learning.rate_factor) == (1, 300, 0.5)
    assert len(said) == 1
    assert said[0].startswith("2d, fold 0: the foreground was lost: the pseudo-Dice fell from 0.70 to 0.00")
    assert said[0].endswith("the last good weights are taken again, with 0.5 of the planned learning rate")


def test_the_fourth_collapse_ends_the_training() -> None:
    state = make_state(COLLAPSED, restarts=3, restarted_at=200, rate_factor=0.125)
    with pytest.raises(AutosegError, match=r"2d, fold 0: the foreground was lost.*3 restarts at lower learning rates"):
        after_epoch(make_care([]), trained_parts(), state, LAST)


def test_the_case_of_all_bad_batches_is_named_as_they_were_drawn() -> None:
    """Case a, which alone shows the ball, is bad: in batches before the ball was sought, and in those drawn around it since."""
    care = make_care([])
    places = [Case({"ball": np.zeros((int(number == 0), 3), np.int32)}) for number in range(2)]
    plain = replace(care.source, cases=places)
    around = seeking(plain, ["ball"])
    before = [step for step in range(100) if plain.choose(step, 0)[1] == 0]
    since = [step for step in range(100, 300) if plain.choose(step, 0)[1] == 1 and around.choose(step, 0)[1] == 0]
    early = [step for step in range(100) if plain.choose(step, 0)[1] == 1 and around.choose(step, 0)[1] == 0]
    assert before
    assert since
    assert early
    lost = describe_lost("ball", 100, 1)
    for bad, named in (((*before, *since), "case a was in each"), (tuple(early), "case b was in each")):
        state = make_state(COLLAPSED, restarts=3, skipped_steps=bad, sought=("ball",), remarks=(lost,))
        with pytest.raises(AutosegError, match=named):
            after_epoch(replace(care, source=plain), trained_parts(), state, LAST)


def test_a_good_epoch_changes_nothing() -> None:
    said: list[str] = []
    parts, state = trained_parts(), make_state(COLLAPSED[:2])
    before = parts.network.weight.clone(), state.learning, state.control.rate_factor
    after_epoch(make_care(said), parts, state, LAST)
    assert torch.equal(parts.network.weight, before[0])
    assert (state.learning, state.control.rate_factor) == before[1:]
    assert said == []


@pytest.mark.parametrize(
    ("shown", "measure"), [(True, "from the 2 training cases"), (False, "no training case of this fold shows it")]
)
def test_a_lost_class_is_sought_where_there_is_something_to_find(shown: bool, measure: str) -> None:
    said: list[str] = []
    parts, state = trained_parts(), make_state([epoch(i, 0.0, 0.5) for i in range(4)])
    for _ in range(2):
        after_epoch(make_care(said, shown=shown), parts, state, LAST)
    assert len(said) == 1
    assert measure in said[0]
    assert state.learning.sought == (("ball",) if shown else ())
    assert state.control.new_batches is shown


def test_a_device_that_waits_gets_more_processes() -> None:
    """A GPU is only named here: what is decided about it needs none."""
    said: list[str] = []
    parts = replace(trained_parts(), device=torch.device("cuda"))
    state = make_state([replace(epoch(i, 0.5, 0.2), wait_share=0.4) for i in range(3)])
    state.num_workers = 2
    for _ in range(2):
        after_epoch(replace(make_care(said), most_workers=8), parts, state, LAST)
    assert said == [
        "2d, fold 0: 40% of the training time goes into waiting for patches; 6 more processes read patches from now on"
    ]
    assert state.num_workers == 8
    assert state.control.new_batches

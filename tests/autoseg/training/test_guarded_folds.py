"""Trainings that go wrong: guards at work."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
import torch
from made_folds import (
    StopAt,
    Told,
    after_steps,
    broken_case,
    codes_of,
    decisions_of,
    history_of,
    make_spec,
    one_broken_of,
    revision,
    run,
    same_weights,
    state_of,
    steps_saved,
    training_with,
)
from safetensors.torch import load_file
from torch.nn import Module
from torch.optim import Optimizer

from autoseg.issues import AutosegError
from autoseg.tracking.callbacks import Callback, StepRecord
from autoseg.training import fold, fold_spec, guards, loop
from autoseg.training.augmentation import Recipe
from autoseg.training.fold import train_fold
from autoseg.training.fold_spec import FoldSpec
from autoseg.training.sampling import Batch, Crop, finish
from planners import Revision, Training


def test_a_loss_that_is_no_number_ends_the_training_with_a_fix(tmp_path) -> None:
    spec = make_spec(tmp_path)
    for case in spec.training_cases:
        case.image[:] = np.nan
    with pytest.raises(AutosegError, match="loss became nan at step 1") as raised:
        run(spec)
    assert raised.value.codes == ("training.loss_not_finite",)


@pytest.mark.parametrize(("steps", "steps_per_epoch"), [(12, 1), (12, 2), (2, 2), (1, 1)])
def test_a_training_without_one_good_step_never_ends_well(tmp_path, steps: int, steps_per_epoch: int) -> None:
    """Epochs of short schedules are shorter than a row of skips, and the shortest trainings are, too."""
    spec = replace(
        make_spec(tmp_path, steps=steps),
        training_cases=[broken_case(0)],
        case_ids=["shape_0"],
        checkpoint_interval_s=0.0,
    )
    spec = training_with(spec, steps_per_epoch=steps_per_epoch)
    for _ in range(2):  # a second call goes on from the checkpoint, and ends no better
        with pytest.raises(AutosegError, match=r"at step 1\b.*look for extreme intensities"):
            run(spec)
    assert not (tmp_path / "final.safetensors").exists()


def test_a_failed_training_keeps_its_history_and_resumes_from_its_checkpoint(tmp_path) -> None:
    undisturbed, spec = (make_spec(tmp_path / name, steps=12) for name in ("a", "b"))
    with pytest.raises(KeyboardInterrupt):
        train_fold(spec, should_stop=after_steps(4))
    with pytest.raises(AutosegError, match=r"at step 5, and in 6 steps up to step 10.*issues\.json and history\.jsonl"):
        run(replace(spec, training_cases=[broken_case(i) for i in range(4)]))
    assert [line["skipped"] for line in history_of(spec)] == [0, 2, 3]
    assert codes_of(spec) == ["training.loss_not_finite", "training.restarted"]
    assert steps_saved(spec) == 4
    run(spec)
    run(undisturbed)
    assert history_of(spec) == history_of(undisturbed)
    assert decisions_of(spec) == decisions_of(undisturbed)
    assert same_weights(spec, undisturbed)


def test_single_bad_steps_are_skipped_reported_once_and_recorded(tmp_path) -> None:
    spec, bad = one_broken_of(40, tmp_path, steps=30, steps_per_epoch=10)
    assert 1 <= len(bad) <= 3
    told = Told([])
    run(spec, told)
    (issue,) = told.issues
    assert (issue.code, issue.where) == ("training.loss_not_finite", "3d_fullres, fold 0")
    assert issue.message == f"the loss became nan at step {bad[0] + 1}; such steps are skipped"
    assert state_of(spec).skipped_steps == bad
    assert state_of(spec).restarts == 0
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "final.safetensors").values())
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert sum(line["skipped"] for line in lines) == len(bad)


def test_repeated_bad_steps_restart_at_half_the_rate_and_resume_with_the_same_bits(tmp_path) -> None:
    def spec(name: str) -> FoldSpec:
        return one_broken_of(12, tmp_path / name, steps=24, steps_per_epoch=24)[0]

    undisturbed, stopped = spec("a"), replace(spec("b"), checkpoint_interval_s=0.0)
    run(undisturbed)
    state = state_of(undisturbed)
    assert state.restarts >= 1
    assert state.rate_factor == 0.5**state.restarts
    assert codes_of(undisturbed) == ["training.loss_not_finite", *["training.restarted"] * state.restarts]
    with pytest.raises(KeyboardInterrupt):
        run(stopped, StopAt(state.restarted_at + 1))
    run(stopped)
    assert decisions_of(stopped) == decisions_of(undisturbed)
    assert same_weights(stopped, undisturbed)


@dataclass
class Lags(Callback):
    """Keeps by how much each record was late."""

    lags: list[int] = field(default_factory=list)

    def on_step(self, step: StepRecord) -> None:
        self.lags.append(step.lag)


@pytest.fixture
def late(monkeypatch) -> None:
    """Trainings as on a GPU: the optimiser skips what is not finite, and results are read every tenth step."""
    monkeypatch.setattr(loop, "make_optimiser", partial(fused_optimiser, loop.make_optimiser))
    monkeypatch.setattr(loop, "LONGEST_UNREAD_S", float("inf"))


def fused_optimiser(make: Callable[..., Optimizer], network: Module, training: Training, *, fused: bool) -> Optimizer:
    return make(network, training, fused=True)


def test_a_training_that_is_read_late_resumes_with_the_same_bits(tmp_path, late) -> None:
    """It is saved where it was read: every tenth step, and at the ends of epochs."""
    undisturbed, spec = (
        training_with(make_spec(tmp_path / name, steps=24, name="2d"), steps_per_epoch=12) for name in ("a", "b")
    )
    lags = Lags()
    run(undisturbed, lags)
    assert lags.lags == [*range(9, -1, -1), 1, 0, *range(7, -1, -1), 0, 0, 0, 0]  # the last steps are averaged
    with pytest.raises(KeyboardInterrupt):
        train_fold(spec, should_stop=after_steps(2))
    assert steps_saved(spec) == 12
    run(spec)
    assert history_of(spec) == history_of(undisturbed)
    assert same_weights(spec, undisturbed)


def test_another_length_is_asked_for_and_replayed_where_results_are_read(tmp_path, late) -> None:
    """Later steps would have been done with the learning rate of the former length."""
    asked: list[int] = []

    def revise(done: int) -> Revision | None:
        asked.append(done)
        return revision(10, 17) if done == 10 else None

    live, replayed, early = (
        training_with(make_spec(tmp_path / name, steps=12, name="2d"), steps_per_epoch=12, averaged_share=0.0)
        for name in ("live", "replayed", "early")
    )
    run(replace(live, revise=revise))
    assert asked == [10, 12]
    assert steps_saved(live) == 17
    run(replace(replayed, revisions=(revision(10, 17),)))
    assert same_weights(live, replayed)
    lags = Lags()
    run(replace(early, revisions=(revision(7, 11),)), lags)
    assert lags.lags == [*range(6, -1, -1), 2, 1, 0, 0]


def test_bad_steps_that_are_read_late_restart_once_for_all_that_were_done(tmp_path, late) -> None:
    """Those after the third in a row were computed with the same bad weights; they count no more."""
    spec = training_with(make_spec(tmp_path, steps=30, name="2d"), steps_per_epoch=30)
    batches = BadBatches(range(13, 19))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "finish", batches.finish)
        run(spec)
    state = state_of(spec)
    assert state.skipped_steps == [*range(13, 19)]
    assert (state.restarts, state.restarted_at) == (1, 20)
    assert codes_of(spec) == ["training.loss_not_finite", "training.restarted"]
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "final.safetensors").values())


@dataclass
class BadBatches:
    """Batches of which those of some steps hold no numbers."""

    bad: range
    made: int = 0

    def finish(self, crops: Sequence[Crop], recipe: Recipe, device: torch.device) -> Batch:
        images, labels = finish(crops, recipe, device)
        self.made += 1
        return (images * np.nan if self.made - 1 in self.bad else images), labels


def test_a_training_that_cannot_recover_names_the_case(tmp_path) -> None:
    spec, bad = one_broken_of(3, tmp_path, steps=60, steps_per_epoch=60)
    assert len(bad) > 20
    with pytest.raises(
        AutosegError, match=r"the loss became nan at step \d+, and in \d+ steps .*; case shape_0 was in each"
    ):
        run(replace(spec, case_ids=[f"shape_{i}" for i in range(3)]))


def test_lost_classes_are_sampled_more_also_after_a_resume(tmp_path, monkeypatch) -> None:
    """A network that hardly moves, and limits that call chance hits lost: both classes are."""
    monkeypatch.setattr(guards, "LEAST_STEPS", 6)
    monkeypatch.setattr(guards, "FOUND_DICE", 0.5)

    def spec(name: str) -> FoldSpec:
        return training_with(make_spec(tmp_path / name, steps=16), steps_per_epoch=2, peak_learning_rate=1e-7)

    undisturbed, stopped = spec("a"), replace(spec("b"), checkpoint_interval_s=0.0)
    run(undisturbed)
    sought = state_of(undisturbed).sought
    assert list(sought) == ["ball", "box"]
    assert codes_of(undisturbed).count("training.class_not_learned") == 2
    (first,) = set(sought.values())
    with pytest.raises(KeyboardInterrupt):
        run(stopped, StopAt(first + 3))
    run(stopped)
    assert decisions_of(stopped) == decisions_of(undisturbed)
    assert same_weights(stopped, undisturbed)


def test_a_training_that_runs_out_of_memory_continues_in_micro_batches(tmp_path, monkeypatch) -> None:
    """The error is the allocator's own: whole batches ask it for a petabyte from step 3 on."""
    make_loss, calls = fold_spec.make_loss, []

    def hungry(*given: object):
        loss = make_loss(*given)

        def compute(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            calls.append(len(target))
            if len(target) > 1 and len(calls) > 4:
                torch.empty(10**15, dtype=torch.uint8)
            return loss(logits, target)

        return compute

    monkeypatch.setattr(fold_spec, "make_loss", hungry)
    spec = training_with(make_spec(tmp_path / "a"), validation_batches=0)
    run(spec)
    assert codes_of(spec) == ["training.micro_batches"]
    best, final = (load_file(spec.folder / f"{name}.safetensors") for name in ("best", "final"))
    assert all(torch.equal(best[name], final[name]) for name in final)  # nothing was validated
    assert state_of(spec).micro_batch_size == 1
    monkeypatch.setattr(fold_spec, "make_loss", make_loss)
    whole = training_with(make_spec(tmp_path / "b"), validation_batches=0)
    run(whole)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / n / "history.jsonl").read_text().splitlines()] for n in "ab"
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)  # the same training, but float32 sums in another order


def test_memory_that_runs_out_beside_a_step_is_an_error_to_read(tmp_path, monkeypatch) -> None:
    """Again the allocator's own error, here while validation patches are scored."""
    monkeypatch.setattr(fold, "validate_epoch", lambda *given: torch.empty(10**15, dtype=torch.uint8))
    with pytest.raises(AutosegError, match="memory ran out while patches were prepared or validated") as raised:
        run(make_spec(tmp_path))
    assert raised.value.codes == ("memory.too_small",)

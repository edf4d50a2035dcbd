"""Guards: rules that notice a training that goes wrong and leave a healthy one alone, and what is done then."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_folds import Told, make_case, make_spec, steps_saved, training_with
from torch import nn

from autoseg.issues import AutosegError
from autoseg.tracking.callbacks import EpochRecord
from autoseg.training.fold_spec import FoldRun, FoldState, batch_source
from autoseg.training.guards import (
    check_classes,
    check_collapse,
    check_overfitting,
    check_waiting,
    failure_issue,
    find_collapse,
    find_overfitting,
    is_good,
    judge_skip,
    never_found,
    never_seen,
    patience,
    shrink_micro_batch,
    source_by_step,
    unlearned_classes,
    waiting_share,
)
from autoseg.training.loop import make_parts, train_step
from autoseg.training.sampling import with_sought, worker_died

STEPS = 50
"""An epoch's."""


def epoch(number: int, **changes: object) -> EpochRecord:
    """An epoch of a training that goes well."""
    gone = number / 12
    values: dict[str, object] = {
        "epoch": number,
        "step": STEPS * (number + 1),
        "loss": 0.9 - 1.7 * gone,
        "validation_loss": 0.9 - 1.6 * gone,
        "pseudo_dice": {"ball": 0.9 * gone, "box": 0.8 * gone},
        "moving_average": 0.8 * gone,
        "learning_rate": 0.01,
        "seconds": 5.0,
        "wait_share": 0.05,
    }
    return EpochRecord(**{**values, **changes})  # type: ignore[arg-type]


def verdict(*skipped: int, restarts: int = 0, restarted_at: int = 0, start: int = 0, length: int = STEPS) -> str:
    return judge_skip(skipped, restarts=restarts, restarted_at=restarted_at, epoch_start=start, steps_per_epoch=length)


HEALTHY = [epoch(i) for i in range(12)]


@given(st.integers(1, 12), st.lists(st.floats(-0.03, 0.03), min_size=12, max_size=12), st.floats(0, 0.19))
def test_a_healthy_training_is_left_alone(until: int, noise: list[float], waiting: float) -> None:
    """Noise of a few hundredths in loss and score, a pause of a fifth: nothing of it is worth a word."""
    history = [
        epoch(i, loss=epoch(i).loss + noise[i], validation_loss=epoch(i).validation_loss - noise[i], wait_share=waiting)
        for i in range(until)
    ]
    assert find_collapse(history) is None
    assert is_good(history)
    assert find_overfitting(history, 12, 16) is None
    assert waiting_share(history, on_cpu=False) is None
    if until > 1:
        assert unlearned_classes(history, 12) == ()
        assert never_found(history) == never_seen(history) == []


def test_single_skips_pass_and_rows_do_not() -> None:
    assert verdict(7) == verdict(7, 20, 33) == verdict(20, 21) == "skip"
    assert verdict(20, 21, 22) == "restart"
    often = (3, 9, 14, 22, 31, 40)
    assert verdict(*often[:-1]) == "skip"  # a tenth of 50 steps
    assert verdict(*often) == verdict(*often, start=3) == "restart"
    assert verdict(*often, start=30) == "skip"


@pytest.mark.parametrize("length", [1, 2, 3])
def test_rows_of_skips_count_across_the_ends_of_short_epochs(length: int) -> None:
    def short(*skipped: int, **changes: int) -> str:
        return verdict(*skipped, **changes, start=skipped[-1] - skipped[-1] % length, length=length)

    assert short(0, 1) == "skip"
    assert short(0, 1, 2) == "fail"
    assert short(5, 6, 7) == "restart"
    assert short(4, 5, 7) == "skip"
    assert short(5, 6, 7, 8, 9, restarts=1, restarted_at=8) == "skip"  # the row before is dealt with
    assert short(5, 6, 7, 8, 9, 10, restarts=1, restarted_at=8) == "fail"


def test_restarts_that_cannot_help_are_not_made() -> None:
    """No good step: the weights are those of the last good state already."""
    assert verdict(0, 1, 2) == "fail"
    assert verdict(5, 6, 7, 8, 9, 10, restarts=1, restarted_at=8) == "fail"
    assert verdict(1, 2, 3) == "restart"  # one good step is enough
    assert verdict(5, 6, 7, 9, 10, 11, restarts=1, restarted_at=8) == "restart"
    assert verdict(20, 21, 22, restarts=2) == "restart"
    assert verdict(20, 21, 22, restarts=3) == "fail"


@given(st.sets(st.integers(0, 400), min_size=1), st.integers(0, 3))
def test_the_verdict_ends_every_row_of_skips(steps: set[int], restarts: int) -> None:
    """Whatever was skipped: three restarts and one epoch's share of skips are the most that can happen."""
    last = max(steps)
    found = verdict(*sorted(steps), restarts=restarts, start=last - last % STEPS)
    if {last - 1, last - 2} <= steps:
        assert found != "skip"
    if restarts == 3:
        assert found != "restart"


def test_a_lost_foreground_is_a_collapse_only_where_there_was_one() -> None:
    gone = epoch(6, loss=1.2, pseudo_dice={"ball": 0.0, "box": 0.01})
    found = find_collapse([*HEALTHY[:6], gone])
    assert found is not None
    assert "fell from 0.35 to 0.01" in found
    assert not is_good([*HEALTHY[:6], gone])
    assert find_collapse([HEALTHY[0], gone]) is None  # nothing was learnt before
    assert find_collapse([*HEALTHY[:6], epoch(6, pseudo_dice={"ball": 0.0, "box": 0.01})]) is None  # only these patches
    assert find_collapse([*HEALTHY[:6], epoch(6, loss=1.2)]) is None
    assert not is_good([epoch(0, loss=None)])


@pytest.mark.parametrize(
    ("best", "dice", "rise", "is_collapse"),
    [
        (0.21, 0.0, 0.21, True),
        (0.19, 0.0, 0.21, False),  # it had hardly begun to learn
        (0.5, 0.049, 0.21, True),
        (0.5, 0.051, 0.21, False),  # a tenth of the best is left
        (0.5, 0.0, 0.19, False),  # the loss hardly rose
        (0.2, 0.0, 0.21, True),  # at each limit
        (0.5, 0.05, 0.21, True),
        (0.5, 0.0, 0.2, True),
        (None, 0.0, 0.21, False),  # no score to lose
        (0.5, None, 0.21, False),
    ],
)
def test_the_limits_of_a_collapse(best: float | None, dice: float | None, rise: float, is_collapse: bool) -> None:
    before, last = epoch(0, loss=0.5, pseudo_dice={"ball": best}), epoch(1, loss=0.5 + rise, pseudo_dice={"ball": dice})
    assert (find_collapse([before, last]) is not None) is is_collapse


@pytest.mark.parametrize(
    ("dice", "steps", "num_epochs", "unlearned"),
    [(0.009, 50, 15, True), (0.01, 50, 15, False), (0.0, 49, 15, False), (0.0, 50, 16, False)],
)
def test_the_limits_of_what_is_not_learned(dice: float, steps: int, num_epochs: int, unlearned: bool) -> None:
    """A hundredth of Dice, 150 steps, a fifth of the training."""
    history = [epoch(i, step=steps * (i + 1), pseudo_dice={"box": dice}) for i in range(3)]
    assert (unlearned_classes(history, num_epochs) == ("box",)) is unlearned
    assert (never_found(history) == ["box"]) is (dice < 0.01 and steps == 50)


def test_a_class_is_lost_after_patience_and_not_before() -> None:
    def history(until: int, **dice: float | None) -> list[EpochRecord]:
        return [epoch(i, pseudo_dice={"ball": 0.5, "box": 0.3, **dice}) for i in range(until)]

    assert patience(12) == 2
    assert patience(1000) == 100
    assert unlearned_classes(history(2, box=0.0), 12) == ()
    assert unlearned_classes(history(3, box=0.0), 12) == ("box",)
    assert unlearned_classes(history(3, box=0.0), 20) == ()
    assert unlearned_classes(history(3, box=0.02), 12) == ()
    assert unlearned_classes(history(9, box=None), 12) == ()  # no patch shows it: nothing is known
    recovered = [*history(4, box=0.0), epoch(4, pseudo_dice={"ball": 0.5, "box": 0.3})]
    assert unlearned_classes(recovered, 12) == ()
    assert unlearned_classes(history(150, box=0.0), 1000) == ()
    assert never_found(history(12, box=0.0)) == ["box"]
    assert never_found(recovered) == []


def test_classes_in_no_validation_patch_are_reported() -> None:
    """Their pseudo-Dice is not known in any epoch, so no other rule speaks of them."""
    unseen = [epoch(i, pseudo_dice={"ball": 0.8, "box": None}) for i in range(12)]
    assert never_seen(unseen) == ["box"]
    assert never_found(unseen) == []
    assert never_seen([*unseen, epoch(12, pseudo_dice={"ball": 0.8, "box": 0.0})]) == []
    assert never_seen(unseen[:2]) == never_seen([]) == []


def test_few_steps_prove_nothing() -> None:
    short = [epoch(i, step=4 * (i + 1), pseudo_dice={"box": 0.0}) for i in range(12)]
    assert unlearned_classes(short, 12) == ()
    assert never_found(short) == []


@pytest.mark.parametrize(("on_cpu", "enough", "too_little"), [(True, 0.5, 0.49), (False, 0.2, 0.19)])
def test_a_waiting_device_is_noticed(on_cpu: bool, enough: float, too_little: float) -> None:
    slow = [epoch(i, wait_share=enough) for i in range(3)]
    assert waiting_share(slow, on_cpu=on_cpu) == pytest.approx(enough)
    assert waiting_share([*slow[:2], epoch(2, wait_share=too_little)], on_cpu=on_cpu) is None
    assert waiting_share([epoch(0), epoch(1), *slow[:2]], on_cpu=on_cpu) == pytest.approx(enough)  # only since then
    assert waiting_share(slow[:2], on_cpu=on_cpu) is None  # workers start in the first epoch


@pytest.mark.parametrize(
    ("rise", "fall", "is_overfitting"),
    [(0.1, 0.05, True), (0.098, 0.05, False), (0.1, 0.048, False)],
)
def test_the_limits_of_overfitting(rise: float, fall: float, is_overfitting: bool) -> None:
    """A validation loss that rises by a tenth from its best while the training loss falls by half as much, on means of two epochs."""
    better = [epoch(i, loss=fall, validation_loss=0.0, moving_average=0.8) for i in range(2)]
    worse = [epoch(i, loss=0.0, validation_loss=rise, moving_average=0.7) for i in range(2, 4)]
    found = find_overfitting([*better, *worse], 12, 16)
    assert (found is not None) is is_overfitting
    assert found is None or "since step 100" in found
    assert find_overfitting([*better, *worse][1:], 12, 16) is None  # too few epochs for two means
    assert find_overfitting([*better, *worse], 12, 15) is None  # 32 patches are three epochs


def test_overfitting_is_told_from_the_last_epochs_that_have_all_numbers() -> None:
    trained = [
        epoch(i, loss=0.5 - 0.1 * i, validation_loss=value, moving_average=0.5 - 0.01 * i)
        for i, value in enumerate([0.6, 0.22, 0.2, 0.4, 0.7, 0.72])
    ]
    told = "overfitting: since step 150 the training loss fell by 0.30 and the validation loss rose by 0.50"
    assert find_overfitting(trained, 12, 16) == told
    for lacks in ("loss", "validation_loss", "moving_average"):
        hole = epoch(6, **{"loss": 9.0, "validation_loss": 9.0, "moving_average": 0.1, lacks: None})
        assert find_overfitting([*trained, hole], 12, 16) == told


@pytest.mark.parametrize(("rise", "is_overfitting"), [(0.26, True), (0.25, False)])
def test_a_rise_within_the_noise_of_few_patches_is_not_overfitting(rise: float, is_overfitting: bool) -> None:
    """Means of four epochs that are 0.1 off; one in a hundred of five means is 3.14 standard errors of 0.082 too low."""
    losses = [start + noise for start in (0.0, rise) for noise in (0.1, -0.1, 0.1, -0.1)]
    history = [
        epoch(i, loss=0.5 - 0.1 * i, validation_loss=loss, moving_average=0.5 - 0.01 * i)
        for i, loss in enumerate(losses)
    ]
    assert (find_overfitting(history, 12, 8) is not None) is is_overfitting


def test_a_healthy_training_with_few_validation_patches_is_not_warned_of() -> None:
    """Recorded: 16 patches an epoch, and a Dice that rose from 0.05 to 0.88; it was warned of before."""
    known = json.loads((Path(__file__).parent / "noisy_history.json").read_text())
    history = [
        epoch(i, loss=loss, validation_loss=validated, moving_average=average)
        for i, (loss, validated, average) in enumerate(known)
    ]
    assert [end for end in range(2, len(history)) if find_overfitting(history[:end], len(history), 16)] == []


def test_a_rising_validation_loss_alone_is_no_fault_while_scores_rise() -> None:
    """Cross-entropy punishes certainty: it often rises while the overlap still gets better."""
    history = [*HEALTHY[:7], *(epoch(i, validation_loss=0.1 * i) for i in range(7, 12))]
    assert find_overfitting(history, 12, 16) is None


def made_epoch(number: int, dice: float, loss: float, *, waiting: float = 0.0) -> EpochRecord:
    return epoch(
        number, step=100 * (number + 1), loss=loss, pseudo_dice={"ball": dice}, moving_average=dice, wait_share=waiting
    )


COLLAPSED = [made_epoch(0, 0.4, 0.5), made_epoch(1, 0.7, 0.2), made_epoch(2, 0.0, 1.5)]


def make_run(folder: Path, history: list[EpochRecord], **state: object) -> FoldRun:
    """A training of 12 epochs under way: a small network after a step, so that its optimiser has a state."""
    spec = training_with(make_spec(folder), num_steps=1200, steps_per_epoch=100)
    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 3, padding=1)
    parts = make_parts(network, lambda logits, target: logits.square().mean(), spec.training, torch.device("cpu"))
    train_step(parts, torch.ones(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64), 0.01)
    good = {"weight": torch.full((2, 1, 3, 3), 0.5), "bias": torch.zeros(2)}
    kept = FoldState(micro_batch_size=2, good=good, history=history, **state)  # type: ignore[arg-type]
    return FoldRun(spec=replace(spec, case_ids=["a", "b", "c", "d"]), parts=parts, state=kept, listeners=[Told([])])


def end_epoch(run: FoldRun, check: Callable[[FoldRun, EpochRecord], None]) -> list[str]:
    """Codes of the issues after a check of the last epoch."""
    check(run, run.state.history[-1])
    return [issue.code for issue in run.state.issues]


def test_the_last_good_weights_return_at_half_the_rate(tmp_path) -> None:
    run = make_run(tmp_path, COLLAPSED)
    assert run.parts.optimiser.state
    assert end_epoch(run, check_collapse) == ["training.restarted"]
    assert torch.equal(run.parts.network.weight, run.state.good["weight"])
    assert not run.parts.optimiser.state
    assert (run.state.restarts, run.state.restarted_at, run.state.rate_factor) == (1, 300, 0.5)
    assert run.state.issues[0].message == (
        "the training collapsed: the pseudo-Dice fell from 0.70 to 0.00, the loss rose from 0.20 to 1.50; restored the last "
        "good weights, with 0.5 of the planned learning rate"
    )


def test_the_fourth_collapse_ends_the_training(tmp_path) -> None:
    run = make_run(tmp_path, COLLAPSED, restarts=3, restarted_at=200, rate_factor=0.125)
    with pytest.raises(AutosegError, match="3 restarts with lower learning rates did not help") as raised:
        end_epoch(run, check_collapse)
    assert raised.value.codes == ("training.collapsed",)


def test_the_case_of_all_bad_batches_is_named_as_they_were_drawn(tmp_path) -> None:
    """Case a, which alone shows the ball, is bad: before more patches were drawn around the ball, and since."""
    run = make_run(tmp_path, COLLAPSED)
    none = np.zeros((0, 3), np.int32)
    cases = [make_case(0), *(replace(make_case(i), locations={"ball": none, "box": none}) for i in range(1, 4))]
    run.spec = training_with(replace(run.spec, training_cases=cases), batch_size=1)
    plain, around = (with_sought(batch_source(run.spec, purpose="training"), names) for names in ((), ("ball",)))
    before = [step for step in range(100) if plain.choose(step, 0)[1] == 0]
    since = [step for step in range(100, 300) if plain.choose(step, 0)[1] != 0 and around.choose(step, 0)[1] == 0]
    early = [step for step in range(100) if plain.choose(step, 0)[1] == 1 and around.choose(step, 0)[1] == 0]
    assert before
    assert since
    assert early
    run.state.restarts, run.state.sought = 3, {"ball": 100}
    for bad, named in (([*before, *since], "case a was in each"), (early, "case b was in each")):
        run.state.skipped_steps = bad
        with pytest.raises(AutosegError, match=named):
            end_epoch(run, check_collapse)


def test_a_good_epoch_changes_nothing(tmp_path) -> None:
    run = make_run(tmp_path, COLLAPSED[:2])
    before = run.parts.network.weight.clone()
    for check in (check_collapse, check_classes, check_waiting):
        assert end_epoch(run, check) == []
    assert torch.equal(run.parts.network.weight, before)
    assert (run.state.rate_factor, run.new_batches) == (1.0, False)


@pytest.mark.parametrize("shown", [True, False])
def test_more_patches_are_drawn_around_a_class_that_cases_show(tmp_path, shown: bool) -> None:
    run = make_run(tmp_path, [made_epoch(i, 0.0, 0.5) for i in range(4)])
    if not shown:
        none = {"ball": np.zeros((0, 3), np.int32)}
        run.spec = replace(run.spec, training_cases=[replace(case, locations=none) for case in run.spec.training_cases])
    for _ in range(2):
        assert end_epoch(run, check_classes) == ["training.class_not_found"]
    assert ("4 training cases" in run.state.issues[0].message) is shown
    assert run.state.sought == ({"ball": 400} if shown else {})
    assert run.new_batches is shown


def test_classes_that_were_not_learned_are_named_at_the_end(tmp_path) -> None:
    dice = {"ball": 0.5, "box": 0.0, "egg": None}
    run = make_run(tmp_path, [epoch(i, step=100 * (i + 1), pseudo_dice=dice) for i in range(12)])
    end_epoch(run, check_classes)
    assert [(issue.code, issue.where) for issue in run.state.issues] == [
        ("training.class_not_found", "3d_fullres, fold 0, class box"),
        ("training.class_not_learned", "3d_fullres, fold 0, class box"),
        ("training.class_not_validated", "3d_fullres, fold 0, class egg"),
    ]


def test_overfitting_is_an_issue_of_the_fold(tmp_path) -> None:
    losses = [(0.5, 0.2), (0.4, 0.2), (0.3, 0.5), (0.2, 0.6)]
    run = make_run(
        tmp_path,
        [
            epoch(i, loss=one, validation_loss=other, moving_average=0.5 - 0.1 * i)
            for i, (one, other) in enumerate(losses)
        ],
    )
    run.spec = training_with(run.spec, batch_size=2, validation_batches=4)
    assert end_epoch(run, check_overfitting) == [], "eight validation patches an epoch are too few"
    run.spec = training_with(run.spec, batch_size=2, validation_batches=8)
    assert end_epoch(run, check_overfitting) == ["training.overfitting"]
    assert run.state.issues[0].where == "3d_fullres, fold 0"


def test_each_restart_is_reported(tmp_path) -> None:
    run = make_run(tmp_path, COLLAPSED)
    assert [*(end_epoch(run, check_collapse) for _ in range(3))][-1] == ["training.restarted"] * 3
    assert (run.state.restarts, run.state.rate_factor) == (3, 0.125)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([], "it failed"),
        ([4], "it failed at step 5"),
        ([4, 6], "it failed at step 5, and in 2 steps up to step 7"),
    ],
)
def test_a_failure_names_the_first_and_the_last_bad_step(tmp_path, bad: list[int], said: str) -> None:
    run = make_run(tmp_path, COLLAPSED, skipped_steps=bad)
    message = failure_issue(run, "it failed", code="training.loss_not_finite").message
    assert message.partition("; ")[0] == said


def test_batches_are_drawn_around_a_class_from_the_step_on_at_which_that_began(tmp_path) -> None:
    run = make_run(tmp_path, COLLAPSED, sought={"ball": 100})
    of = source_by_step(batch_source(run.spec, purpose="training"), run.state)
    assert (dict(of(99).sought), dict(of(100).sought)) == ({}, {"ball": [0, 1, 2, 3]})


def test_micro_batches_halve_until_a_single_sample_does_not_fit(tmp_path) -> None:
    run = make_run(tmp_path, COLLAPSED)
    run.state.micro_batch_size = 5
    sizes = [(shrink_micro_batch(run, 7), run.state.micro_batch_size)[1] for _ in range(3)]
    assert sizes == [3, 2, 1]
    assert [issue.code for issue in run.state.issues] == ["training.micro_batches"] * 3
    with pytest.raises(AutosegError) as raised:
        shrink_micro_batch(run, 7)
    assert raised.value.codes == ("memory.too_small",)
    assert steps_saved(run.spec) == 7


def test_a_gpu_tries_each_size_twice(tmp_path) -> None:
    """A GPU is only named here: what is decided about it needs none."""
    run = make_run(tmp_path, COLLAPSED)
    run.state.micro_batch_size, run.spec = 5, replace(run.spec, device=torch.device("cuda"))
    sizes = [(shrink_micro_batch(run, 7), run.state.micro_batch_size)[1] for _ in range(7)]
    assert sizes == [5, 3, 3, 2, 2, 1, 1]


def test_only_a_killed_worker_is_taken_for_one() -> None:
    killed = "DataLoader worker (pid 7) is killed by signal: Killed."
    assert worker_died(RuntimeError(killed))
    assert not worker_died(RuntimeError("shapes differ"))
    assert not worker_died(ValueError(killed))


@pytest.mark.parametrize(("device", "most"), [("cpu", 8), ("cuda", 2)])
def test_a_device_that_waits_is_told_what_helps_where_workers_cannot(tmp_path, device: str, most: int) -> None:
    run = make_run(tmp_path, [made_epoch(i, 0.5, 0.2, waiting=0.6) for i in range(3)])
    run.spec, run.num_workers = replace(run.spec, device=torch.device(device), most_workers=most), 2
    assert end_epoch(run, check_waiting) == ["training.data_starved"]
    (issue,) = run.state.issues
    assert issue.message == "60% of the training time is spent waiting for patches"
    assert "--work" in issue.fix
    assert (run.num_workers, run.new_batches) == (2, False)


def test_a_device_that_waits_gets_more_workers(tmp_path) -> None:
    """A GPU is only named here: what is decided about it needs none."""
    run = make_run(tmp_path, [made_epoch(i, 0.5, 0.2, waiting=0.4) for i in range(3)])
    run.spec, run.num_workers = replace(run.spec, device=torch.device("cuda"), most_workers=8), 2
    for _ in range(2):
        assert end_epoch(run, check_waiting) == ["training.data_starved"]
    assert (
        run.state.issues[0].message
        == "40% of the training time is spent waiting for patches; 6 more workers read patches from now on"
    )
    assert (run.num_workers, run.new_batches) == (8, True)

"""Rules that notice a training that goes wrong, and leave a healthy one alone."""

from __future__ import annotations

import math

import pytest
from autoseg.training.health import (
    collapsed,
    find_overfitting,
    find_starved,
    is_good,
    judge_skip,
    lost_classes,
    never_found,
    never_shown,
    patience,
)
from autoseg.training.learning import Learning
from hypothesis import given
from hypothesis import strategies as st

from autoseg.tracking.history import EpochRecord, history_text, read_history

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


def skips(*steps: int, **changes: object) -> Learning:
    return Learning(key="k", batch_size=2, micro_batch_size=2, skipped_steps=steps, **changes)  # type: ignore[arg-type]


HEALTHY = [epoch(i) for i in range(12)]


@given(st.integers(1, 12), st.lists(st.floats(-0.03, 0.03), min_size=12, max_size=12), st.floats(0, 0.19))
def test_a_healthy_training_is_left_alone(until: int, noise: list[float], waiting: float) -> None:
    """Noise of a few hundredths in loss and score, a pause of a fifth: nothing of it is worth a word."""
    history = [
        epoch(i, loss=epoch(i).loss + noise[i], validation_loss=epoch(i).validation_loss - noise[i], wait_share=waiting)
        for i in range(until)
    ]
    assert collapsed(history) is None
    assert is_good(history)
    assert find_overfitting(history, 12) is None
    assert find_starved(history, on_cpu=False, more_workers=3) is None
    if until > 1:
        assert lost_classes(history, 12) == ()
        assert never_found(history) == never_shown(history) == []


def test_single_skips_are_let_pass_and_rows_are_not() -> None:
    assert judge_skip(skips(7), epoch_start=0, steps_per_epoch=STEPS) == "skip"
    assert judge_skip(skips(7, 20, 33), epoch_start=0, steps_per_epoch=STEPS) == "skip"
    assert judge_skip(skips(20, 21, 22), epoch_start=0, steps_per_epoch=STEPS) == "restart"
    often = skips(3, 9, 14, 22, 31, 40)
    assert judge_skip(often, epoch_start=0, steps_per_epoch=STEPS) == "restart"
    assert judge_skip(often, epoch_start=30, steps_per_epoch=STEPS) == "skip"


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 3])
def test_rows_of_skips_count_across_the_ends_of_short_epochs(steps_per_epoch: int) -> None:
    def verdict(learning: Learning) -> str:
        last = learning.skipped_steps[-1]
        return judge_skip(learning, epoch_start=last - last % steps_per_epoch, steps_per_epoch=steps_per_epoch)

    assert verdict(skips(0, 1)) == "skip"
    assert verdict(skips(0, 1, 2)) == "fail"
    assert verdict(skips(5, 6, 7)) == "restart"
    assert verdict(skips(4, 5, 7)) == "skip"
    assert verdict(skips(5, 6, 7, 8, 9, restarts=1, restarted_at=8)) == "skip"  # the row before is dealt with
    assert verdict(skips(5, 6, 7, 8, 9, 10, restarts=1, restarted_at=8)) == "fail"


def test_restarts_that_cannot_help_are_not_begun() -> None:
    """No good step: the weights are those of the last good state already."""
    assert judge_skip(skips(0, 1, 2), epoch_start=0, steps_per_epoch=STEPS) == "fail"
    assert (
        judge_skip(skips(5, 6, 7, 8, 9, 10, restarts=1, restarted_at=8), epoch_start=0, steps_per_epoch=STEPS) == "fail"
    )
    assert (
        judge_skip(skips(5, 6, 7, 9, 10, 11, restarts=1, restarted_at=8), epoch_start=0, steps_per_epoch=STEPS)
        == "restart"
    )
    assert judge_skip(skips(20, 21, 22, restarts=3), epoch_start=0, steps_per_epoch=STEPS) == "fail"


@given(st.sets(st.integers(0, 400), min_size=1), st.integers(0, 3))
def test_the_verdict_ends_every_row_of_skips(steps: set[int], restarts: int) -> None:
    """Whatever was skipped: three restarts and one epoch's share of skips are the most that can happen."""
    learning = skips(*sorted(steps), restarts=restarts)
    verdict = judge_skip(learning, epoch_start=max(steps) - max(steps) % STEPS, steps_per_epoch=STEPS)
    last = max(steps)
    if {last - 1, last - 2} <= steps:
        assert verdict != "skip"
    if restarts == 3:
        assert verdict != "restart"


def test_a_lost_foreground_is_a_collapse_only_where_there_was_one() -> None:
    gone = epoch(6, loss=1.2, pseudo_dice={"ball": 0.0, "box": 0.01})
    found = collapsed([*HEALTHY[:6], gone])
    assert found is not None
    assert "fell from 0.35 to 0.01" in found
    assert not is_good([*HEALTHY[:6], gone])
    assert collapsed([HEALTHY[0], gone]) is None  # nothing was learnt before
    assert collapsed([*HEALTHY[:6], epoch(6, pseudo_dice={"ball": 0.0, "box": 0.01})]) is None  # only these patches
    assert collapsed([*HEALTHY[:6], epoch(6, loss=1.2)]) is None
    assert not is_good([epoch(0, loss=None)])


def test_a_class_is_lost_after_patience_and_not_before() -> None:
    def history(until: int, **dice: float | None) -> list[EpochRecord]:
        return [epoch(i, pseudo_dice={"ball": 0.5, "box": 0.3, **dice}) for i in range(until)]

    assert patience(12) == 2
    assert patience(1000) == 100
    assert lost_classes(history(2, box=0.0), 12) == ()
    assert lost_classes(history(3, box=0.0), 12) == ("box",)
    assert lost_classes(history(3, box=0.0), 20) == ()
    assert lost_classes(history(3, box=0.02), 12) == ()
    assert lost_classes(history(9, box=None), 12) == ()  # no patch shows it: nothing is known
    recovered = [*history(4, box=0.0), epoch(4, pseudo_dice={"ball": 0.5, "box": 0.3})]
    assert lost_classes(recovered, 12) == ()
    assert lost_classes(history(150, box=0.0), 1000) == ()
    assert [remark.about for remark in never_found(history(12, box=0.0))] == ["box"]
    assert never_found(recovered) == []


def test_classes_that_no_validation_patch_shows_are_told() -> None:
    """Their pseudo-Dice is not known in any epoch, so no other rule speaks of them."""
    unseen = [epoch(i, pseudo_dice={"ball": 0.8, "box": None}) for i in range(12)]
    (remark,) = never_shown(unseen)
    assert str(remark).startswith("no validation patch of this fold shows box; ")
    assert never_found(unseen) == []
    assert never_shown([*unseen, epoch(12, pseudo_dice={"ball": 0.8, "box": 0.0})]) == []
    assert never_shown(unseen[:2]) == never_shown([]) == []


def test_few_steps_prove_nothing() -> None:
    short = [epoch(i, step=4 * (i + 1), pseudo_dice={"box": 0.0}) for i in range(12)]
    assert lost_classes(short, 12) == ()
    assert never_found(short) == []


@pytest.mark.parametrize(
    ("on_cpu", "more", "measure"), [(True, 0, "--work"), (False, 3, "3 more processes"), (False, 0, "--work")]
)
def test_a_starved_device_is_told_with_what_helps(on_cpu: bool, more: int, measure: str) -> None:
    slow = [epoch(i, wait_share=0.6) for i in range(3)]
    remark = find_starved(slow, on_cpu=on_cpu, more_workers=more)
    assert remark is not None
    assert remark.found.startswith("60% of the training time")
    assert measure in remark.measure
    assert (
        find_starved([epoch(i, wait_share=0.4) for i in range(3)], on_cpu=True, more_workers=0) is None
    )  # its own work
    assert find_starved(slow[:2], on_cpu=on_cpu, more_workers=more) is None  # workers start in the first epoch
    assert find_starved([*slow[:2], epoch(2)], on_cpu=on_cpu, more_workers=more) is None


def test_learning_by_heart_is_noticed() -> None:
    def later(i: int, rise: float) -> EpochRecord:
        best = epoch(6)
        return epoch(
            i,
            validation_loss=(best.validation_loss or 0) + rise * (i - 6),
            moving_average=(best.moving_average or 0) - 0.01,
        )

    history = [*HEALTHY[:7], *(later(i, 0.08) for i in range(7, 12))]
    remark = find_overfitting(history, 12)
    assert remark is not None
    assert "since step 400" in remark.found or "since step 350" in remark.found
    assert find_overfitting([*HEALTHY[:7], *(later(i, 0.0) for i in range(7, 12))], 12) is None


def test_a_rising_validation_loss_alone_is_no_fault_while_scores_rise() -> None:
    """Cross-entropy punishes certainty: it often rises while the overlap still gets better."""
    history = [*HEALTHY[:7], *(epoch(i, validation_loss=0.1 * i) for i in range(7, 12))]
    assert find_overfitting(history, 12) is None


def test_history_survives_being_written(tmp_path) -> None:
    history = [epoch(0, loss=None, skipped=50), epoch(1, pseudo_dice={"ball": None, "box": 0.1 + 0.2})]
    (tmp_path / "history.jsonl").write_text(history_text(history))
    assert read_history(tmp_path / "history.jsonl") == (history, None)
    assert read_history(tmp_path / "absent.jsonl") == ([], None)
    whole = (tmp_path / "history.jsonl").read_bytes()
    (tmp_path / "history.jsonl").write_bytes(whole[:-10])
    found, damage = read_history(tmp_path / "history.jsonl")
    assert found == history[:1]
    assert "history.jsonl is damaged from line 2 on" in (damage or "")
    assert history[1].mean_dice == pytest.approx(0.3, abs=math.ulp(1.0))

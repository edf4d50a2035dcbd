"""The history of a training."""

from __future__ import annotations

import math

import pytest

from autoseg.issues import Issue
from autoseg.tracking.callbacks import EpochRecord, history_text, read_history, read_issues, save_issues


def epoch(number: int, **changes: object) -> EpochRecord:
    values: dict[str, object] = {
        "epoch": number,
        "step": 50 * (number + 1),
        "loss": 0.5,
        "pseudo_dice": {},
        "moving_average": None,
        "learning_rate": 0.01,
        "seconds": 5.0,
        "wait_share": 0.05,
    }
    return EpochRecord(**{**values, **changes})  # type: ignore[arg-type]


def test_history_survives_being_written(tmp_path) -> None:
    history = [epoch(0, loss=None, skipped=50), epoch(1, pseudo_dice={"ball": None, "box": 0.1 + 0.2})]
    (tmp_path / "history.jsonl").write_text(history_text(history))
    assert read_history(tmp_path / "history.jsonl") == (history, None)
    assert read_history(tmp_path / "absent.jsonl") == ([], None)
    whole = (tmp_path / "history.jsonl").read_bytes()
    (tmp_path / "history.jsonl").write_bytes(whole[:-10])
    found, damage = read_history(tmp_path / "history.jsonl")
    assert found == history[:1]
    assert damage is not None
    assert (damage.code, damage.where) == ("history.damaged", str(tmp_path / "history.jsonl"))
    assert history[1].mean_dice == pytest.approx(0.3, abs=math.ulp(1.0))


def test_issues_survive_being_written_and_damage_is_an_issue(tmp_path) -> None:
    issue = Issue(code="training.overfitting", severity="warning", where="2d, fold 0", message="overfitting")
    save_issues(tmp_path, [issue], key="k")
    assert read_issues(tmp_path) == (issue,)
    assert read_issues(tmp_path / "absent") == ()
    (tmp_path / "issues.json").write_text("{")
    assert len(read_issues(tmp_path)) == 1

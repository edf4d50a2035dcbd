"""Checkpoints: damaged, foreign and malicious ones."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

import pytest
import torch
from made_folds import (
    StopAt,
    Told,
    make_spec,
    run,
    same_weights,
)

from autoseg.issues import AutosegError
from autoseg.training.checkpoints import load_checkpoint, load_latest, pause_s, save, save_steps
from autoseg.training.fold_spec import FoldRun, FoldState, make_fold_parts


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(tmp_path) -> None:
    spec = replace(make_spec(tmp_path / "b"), checkpoint_interval_s=0.0)
    with pytest.raises(KeyboardInterrupt):
        run(spec, StopAt(5))
    last = tmp_path / "b" / "checkpoint.pt"
    last.write_bytes(last.read_bytes()[:500])
    told = Told([])
    run(spec, told)
    (issue,) = told.issues
    assert (issue.code, issue.where) == ("checkpoint.damaged", str(last))
    assert "the checkpoint of step 4 is used" in issue.message
    undisturbed = make_spec(tmp_path / "a")
    run(undisturbed)
    assert same_weights(undisturbed, spec)


def test_a_checkpoint_of_another_training_is_reported_and_not_used(tmp_path) -> None:
    run(make_spec(tmp_path))
    assert load_checkpoint(tmp_path / "checkpoint.pt", key="other") is None
    told = Told([])
    run(replace(make_spec(tmp_path), key="other"), told)
    (issue,) = told.issues
    assert issue.code == "checkpoint.other_training"
    assert issue.message.endswith("the fold starts from the beginning")


def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"key": "key", "step": Evil()}, tmp_path / "zipped.pt")
    for name in ("checkpoint.pt", "zipped.pt"):
        with pytest.raises(AutosegError) as raised:
            load_checkpoint(tmp_path / name, key="key")
        assert raised.value.codes == ("checkpoint.not_plain",)
    assert not marker.exists()


def test_a_truncated_checkpoint_is_named(tmp_path) -> None:
    run(make_spec(tmp_path))
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AutosegError, match=r"checkpoint\.pt.*delete it") as raised:
        load_checkpoint(path, key="key")
    assert raised.value.codes == ("checkpoint.damaged",)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_steps_before_an_error_are_saved(tmp_path, done: int) -> None:
    spec = make_spec(tmp_path)
    run = FoldRun(spec=spec, parts=make_fold_parts(spec), state=FoldState(micro_batch_size=2, good={}))
    save_steps(run, done)
    found = load_checkpoint(tmp_path / "checkpoint.pt", key=spec.key)
    assert (0 if found is None else found.step) == done
    assert (found is None) == (done == 0)


@pytest.mark.parametrize("take", [lambda: torch.empty(10**15, dtype=torch.uint8), lambda: bytearray(2**62)])
def test_a_checkpoint_is_not_called_damaged_where_memory_is_too_little(tmp_path, monkeypatch, take) -> None:
    """The errors are the allocators' own: no test fills memory."""
    (tmp_path / "checkpoint.pt").touch()
    monkeypatch.setattr(torch, "load", lambda *given, **named: take())
    with pytest.raises((RuntimeError, MemoryError)):
        load_latest(tmp_path / "checkpoint.pt", key="key")


def test_best_weights_are_written_when_they_changed(tmp_path) -> None:
    spec = make_spec(tmp_path)
    state = FoldState(micro_batch_size=2, good={"a": torch.zeros(2)}, best={"a": torch.ones(2)})
    run = FoldRun(spec=spec, parts=make_fold_parts(spec), state=state)

    def best_after(step: int) -> float:
        save(run, step)
        found = load_checkpoint(tmp_path / "checkpoint.pt", key=spec.key)
        assert found is not None
        assert found.step == step
        return float(found.state["best"]["a"][0])

    def files() -> list[str]:
        return sorted(path.name for path in tmp_path.glob("best-*"))

    assert (best_after(1), files()) == (1.0, ["best-1.pt"])
    first = (tmp_path / "best-1.pt").stat()
    assert (best_after(2), files()) == (1.0, ["best-1.pt"])
    assert (tmp_path / "best-1.pt").stat() == first
    state.best = state.good
    assert (best_after(3), files()) == (0.0, ["best-1.pt"]), "in the checkpoint; the one before needs the file"
    assert (best_after(4), files()) == (0.0, [])
    state.best = {"a": torch.full((2,), 5.0)}
    assert (best_after(5), files()) == (5.0, ["best-5.pt"])
    (tmp_path / "best-5.pt").unlink()
    found, (issue,) = load_latest(tmp_path / "checkpoint.pt", key=spec.key)
    assert found is not None
    assert (found.step, issue.code) == (4, "checkpoint.damaged")


@pytest.mark.parametrize(
    ("cost_s", "pause"), [(0.0, 45.0), (0.9, 45.0), (1.0, 50.0), (11.0, 550.0), (12.0, 600.0), (60.0, 600.0)]
)
def test_checkpoints_cost_a_fiftieth_of_the_time(cost_s: float, pause: float) -> None:
    assert pause_s(45.0, cost_s) == pytest.approx(pause)

"""A run keeps the plan that it started with, on whatever machine it is resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builders import Listening, begin, make_phantom, said

from autoseg.pipeline import run_stages
from autoseg.stages.plan import most_needed_gb, plan_edits
from autoseg.stages.run import Run
from autoseg.storage.atomic import save_document
from planners import Plan


@pytest.fixture
def planned(tmp_path: Path) -> Run:
    return run_stages(begin(make_phantom(tmp_path, training=2), tmp_path / "run"), "plan")


def on_gpu(run: Run, monkeypatch: pytest.MonkeyPatch, *, num_bytes: int) -> Run:
    """The same run on a GPU with so much memory; no machine has them all."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=num_bytes))
    return replace(run, device_name="cuda", reporter=Listening())


def plan_again(run: Run) -> Plan:
    return run_stages(run, "plan").plan


def test_a_run_is_planned_for_the_gpu_that_it_begins_on(planned: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned.plan
    planned.folder.plan.unlink()
    planned.folder.stage("plan").unlink()
    small = on_gpu(planned, monkeypatch, num_bytes=5_930_000_000)
    capped = plan_again(small)
    assert (plan.memory_target_gb, capped.memory_target_gb) == (8.0, 6.0)
    assert "the device has 6 GB" in capped.decisions[0].reason
    for other in (on_gpu(small, monkeypatch, num_bytes=25_000_000_000), replace(small, device_name="cpu")):
        assert plan_again(other) == capped
    asked = begin(planned.folder.root, None, {"memory_gb": 5.0})
    assert plan_again(asked).memory_target_gb == 5.0
    assert plan_again(begin(planned.folder.root, None, {"memory_gb": None})) == plan


@pytest.mark.parametrize("fits", [True, False])
def test_a_run_keeps_its_plan_on_a_smaller_gpu_with_a_note_if_it_is_too_small(
    planned: Run, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    """By what training takes, not by the target, which small images do not fill."""
    needed = most_needed_gb(planned.plan)
    assert 1 < needed < 7
    gigabytes = int(needed) + fits
    small = on_gpu(planned, monkeypatch, num_bytes=gigabytes * 10**9)
    assert plan_again(small) == planned.plan
    assert (f"but the GPU has {gigabytes} GB" in said(small)) is not fits
    assert (f"--memory-gb {gigabytes}" in said(small)) is not fits


def test_a_plan_put_into_the_folder_is_used_and_its_edits_reported(planned: Run, tmp_path: Path) -> None:
    own = planned.plan
    first, *others = own.configurations
    theirs = own.model_copy(update={"configurations": (first.model_copy(update={"batch_size": 3}), *others)})
    (tmp_path / "other").mkdir()
    save_document(tmp_path / "other" / "plan.json", theirs)
    run = run_stages(begin(planned.settings.dataset, tmp_path / "other"), "plan")
    assert run.plan == theirs
    (edit,) = plan_edits(run)
    assert (edit.path, edit.own, edit.value) == (f"{first.name}.batch_size", first.batch_size, 3)
    assert f"plan.json was edited: {edit}" in said(run)
    assert plan_again(begin(tmp_path / "other", replan=True)) == own


def test_changes_that_are_given_count_as_edits_in_the_report(planned: Run) -> None:
    run = run_stages(begin(planned.folder.root, None, {"set": "plan.2d.batch_size=3"}), "plan")
    assert [edit.path for edit in plan_edits(run)] == ["2d.batch_size"]
    assert "was edited" not in said(run)

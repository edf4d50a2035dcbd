"""Preprocessing of several processes in one run folder, and what it needs of the disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import Job, Listening, said

from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.settings import Settings
from autoseg.stages.preprocess import candidates, preprocess_configurations, warn_of_disk
from autoseg.stages.run import Run
from autoseg.storage.locks import hold_lock
from autoseg.tracking.progress import SilentReporter
from planners import CaseSize, Fingerprint, IntensityStatistics, LabelClass, Labels, Plan, plan_dataset


class Impatient(SilentReporter):
    """Looks which locks are held, and leaves, as soon as something is waited for."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.held: set[str] = set()

    def say(self, text: str) -> None:
        assert text.startswith("Waiting: ")
        self.held = {path.stem for path in (self.run.root / "locks").iterdir() if is_held(path)}
        raise KeyboardInterrupt


def is_held(path: Path) -> bool:
    try:
        with hold_lock(path, what="it"):
            return False
    except AutosegError:
        return True


def cascade_plan() -> Plan:
    """A plan of large volumes."""
    statistics = IntensityStatistics(
        mean=0, median=0, std=1, minimum=0, maximum=1, percentile_00_5=0, percentile_99_5=1
    )
    return plan_dataset(Fingerprint(
        dataset_name="made", cases=(CaseSize(case_id="a", shape=(400, 512, 512), spacing_mm=(1.0, 1.0, 1.0)),),
        num_training_cases=1, channels=("MRI",), labels=Labels(classes=(LabelClass(name="ball", values=(1,)),)),
        intensities=(statistics,), median_relative_size_after_cropping=1.0,
    ))  # fmt: skip


def held_while_waiting(folder: RunFolder, plan: Plan, names: Sequence[str], awaited: str) -> set[str]:
    """Locks that are held when ``names`` are to be preprocessed and another process is at the data ``awaited``."""
    reporter = Impatient(folder)
    run = Run(folder=folder, settings=Settings(dataset=folder.root), reporter=reporter)
    chosen = [plan.configuration(name) for name in names]
    with hold_lock(folder.lock(f"preprocess-{awaited}"), what="it"), pytest.raises(KeyboardInterrupt):
        preprocess_configurations(run, plan, chosen)
    return reporter.held


@pytest.mark.parametrize("awaited", ["3d_fullres", "3d_lowres"])
def test_locks_are_taken_in_one_order_whatever_order_a_command_names_its_data_in(tmp_path: Path, awaited: str) -> None:
    """Two commands that took them in different orders would wait for each other for ever."""
    folder, plan = RunFolder(tmp_path / "run"), cascade_plan()
    orders = permutations(["2d", "3d_fullres", "3d_lowres"])
    held = [held_while_waiting(folder, plan, names, awaited) for names in orders]
    assert all(locks == held[0] for locks in held)


def test_data_are_those_of_the_rule_or_of_what_was_asked_for(tmp_path: Path) -> None:
    plan, settings = cascade_plan(), Settings(dataset=tmp_path)

    def names(**changes: object) -> list[str]:
        device = str(changes.pop("device_name", "cpu"))
        run = Run(folder=RunFolder(tmp_path), settings=settings.model_copy(update=changes), device_name=device)
        return [configuration.name for configuration in candidates(run, plan)]

    assert names(device_name="cuda") == ["3d_fullres", "2d", "3d_lowres", "3d_cascade_fullres"]
    for by_rule in (names(), names(device_name="cuda", budget=3600.0)):
        assert "3d_cascade_fullres" not in by_rule
    assert names(configurations=("2d",)) == ["2d"]
    assert names(configurations=("3d_cascade_fullres",)) == ["3d_lowres", "3d_cascade_fullres"]


def test_too_little_disk_space_is_reported_in_advance(
    finished: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Run.open(finished.root)
    run = replace(opened, folder=RunFolder(finished.root, tmp_path), reporter=Listening())
    warn_of_disk(run, run.plan, ["3d_fullres"])
    assert said(run) == ""
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(free=1000)
    )  # no disk here is as full as that
    warn_of_disk(run, run.plan, ["3d_fullres"])
    assert "only 0.0 GB is free" in said(run)
    assert "--work" in said(run)

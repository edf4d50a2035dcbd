"""Stages of several processes that work in one run folder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import pytest
from autoseg.pipeline.options import Options
from autoseg.pipeline.stages import preprocess_configurations

from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.storage.locks import hold_lock
from autoseg.tracking.progress import SilentReporter
from planners import CaseSize, Fingerprint, IntensityStatistics, LabelClass, Labels, Plan, plan_dataset


class Impatient(SilentReporter):
    """Somebody who looks which locks are held, and goes, as soon as something is waited for."""

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


def held_while_waiting(run: RunFolder, plan: Plan, names: Sequence[str], awaited: str) -> set[str]:
    """Locks that are held when ``names`` are to be preprocessed and somebody else is at the data ``awaited``."""
    reporter = Impatient(run)
    options = Options(dataset=run.root, run=run, device_name="cpu", num_threads=1, num_workers=1, reporter=reporter)
    chosen = [plan.configuration(name) for name in names]
    with hold_lock(run.lock(f"preprocess-{awaited}"), what="it"), pytest.raises(KeyboardInterrupt):
        preprocess_configurations(options, None, plan, chosen)  # type: ignore[arg-type]
    return reporter.held


@pytest.mark.parametrize("awaited", ["3d_fullres", "3d_lowres"])
def test_locks_are_taken_in_one_order_whatever_order_a_command_names_its_data_in(tmp_path: Path, awaited: str) -> None:
    """Two commands that took them in different orders would wait for each other for ever."""
    run, plan = RunFolder(tmp_path / "run"), cascade_plan()
    orders = permutations(["2d", "3d_fullres", "3d_lowres"])
    held = [held_while_waiting(run, plan, names, awaited) for names in orders]
    assert all(locks == held[0] for locks in held)

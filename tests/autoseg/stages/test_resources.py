"""What a stage will need is compared with what the machine has."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from autoseg.pipeline.bench import make_bench
from autoseg.pipeline.measuring import measure_steps
from autoseg.pipeline.options import Options
from autoseg.pipeline.resources import warn_of_disk
from autoseg.pipeline.stages import plan_stage

from autoseg.data.phantom import make_phantom_dataset
from autoseg.pipeline import measuring
from autoseg.run_folder import RunFolder
from autoseg.tracking.progress import SilentReporter
from autoseg.training import preflight
from autoseg.training.preflight import needed_bytes
from planners import preferred_configurations, trial_training


class Listening(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def planned(tmp_path):
    make_phantom_dataset(tmp_path / "Task99_Phantom", num_training=2, num_test=0, seed=1)
    options = Options(
        dataset=tmp_path / "Task99_Phantom",
        run=RunFolder(tmp_path / "run"),
        device_name="cpu",
        num_threads=1,
        num_workers=1,
        reporter=Listening(),
        budget_s=60.0,
    )
    return options, *plan_stage(options)


def on_gpu(options: Options, monkeypatch: pytest.MonkeyPatch, *, num_bytes: int) -> Options:
    """The same run on a GPU with so much memory; no machine has them all."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=num_bytes))
    return replace(options, device_name="cuda")


def test_a_run_is_planned_for_the_gpu_that_it_begins_on(planned, tmp_path, monkeypatch) -> None:
    options, _, plan = planned
    small = on_gpu(replace(options, run=RunFolder(tmp_path / "small")), monkeypatch, num_bytes=5_930_000_000)
    _, capped = plan_stage(small)
    assert (plan.memory_target_gb, capped.memory_target_gb) == (8.0, 6.0)
    assert "the device has 6 GB" in capped.decisions[0].reason
    for other in (on_gpu(small, monkeypatch, num_bytes=25_000_000_000), replace(small, device_name="cpu")):
        assert plan_stage(other)[1] == capped
    assert plan_stage(replace(small, memory_gb=5.0, device_name="cpu"))[1].memory_target_gb == 5.0
    assert plan_stage(replace(small, device_name="cpu"))[1] == plan  # what was asked for and no longer is


def test_a_run_keeps_its_plan_on_a_smaller_gpu_and_says_so(planned, monkeypatch) -> None:
    options, _, plan = planned
    small = on_gpu(options, monkeypatch, num_bytes=5_930_000_000)
    assert plan_stage(small)[1] == plan
    assert [text for text in options.reporter.said if "the GPU has 6 GB" in text and "--memory-gb 6" in text]


def test_a_full_disk_is_foretold(planned, monkeypatch) -> None:
    options, _, plan = planned
    warn_of_disk(options, plan, ["3d_fullres"])
    assert not [text for text in options.reporter.said if "--work" in text]
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(free=1000)
    )  # no disk here is as full as that
    warn_of_disk(options, plan, ["3d_fullres"])
    assert [text for text in options.reporter.said if "only 0.0 GB are free" in text and "--work" in text]


def test_a_network_that_no_memory_holds_is_refused_before_it_is_tried(planned, monkeypatch) -> None:
    options, dataset, plan = planned
    monkeypatch.setattr(preflight, "free_memory_bytes", lambda: 10_000_000)  # a machine with 10 MB
    monkeypatch.setattr(measuring, "measure_precision", lambda bench: "float32")
    monkeypatch.setattr(measuring, "measure_export", lambda *given: 0.0)
    monkeypatch.setattr(measuring, "measure_preparation", lambda *given: 0.0)
    with pytest.raises(
        Exception,
        match=r"takes about \d+\.\d GB of memory for a single sample, but 0\.0 GB are free.*--memory-gb below 8",
    ):
        measure_steps(make_bench(options, dataset, plan), preferred_configurations(plan), budgeted=True, num_folds=2)


def test_wider_networks_take_more(planned) -> None:
    _, _, plan = planned
    configuration = plan.configuration("3d_fullres")
    needs = [
        needed_bytes(
            configuration, trial_training(configuration, base_features=width, batch_size=2, precision="float32"), 2
        )
        for width in (8, 16, 32)
    ]
    assert needs == sorted(needs)
    assert needs[0] < needs[-1]

"""Training goes on from a finished run or its bundle, and says what is kept and what is new."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from autoseg.pipeline.bundling import bundle_run
from autoseg.pipeline.options import Options
from autoseg.pipeline.run import run_all
from autoseg.pipeline.scheduling import schedule_stage
from autoseg.pipeline.selecting import select_stage
from autoseg.pipeline.stages import plan_stage
from autoseg.pipeline.training import train_stage

from autoseg.data.phantom import make_phantom_dataset
from autoseg.inference.model import open_model
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, save_document
from autoseg.tracking.history import read_issues
from autoseg.tracking.progress import SilentReporter
from planners import Schedule


class Listening(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def options(dataset: Path, run: Path, **changes: object) -> Options:
    values: dict[str, object] = {
        "dataset": dataset,
        "run": RunFolder(run),
        "device_name": "cpu",
        "num_threads": 1,
        "num_workers": 1,
        "reporter": Listening(),
        "budget_s": 5.0,
        "folds": 2,
    }
    return Options(**{**values, **changes})  # type: ignore[arg-type]


def shorten(run: RunFolder, file: Path, *, steps: int) -> Path:
    """The run's own schedule with so many steps of its first training."""
    schedule = load_document(Schedule, run.schedule)
    changes = {"num_steps": steps, "steps_per_epoch": 10, "warmup_steps": 2, "validation_batches": 2}
    save_document(file, schedule.model_copy(update={"trainings": (schedule.trainings[0].model_copy(update=changes),)}))
    return file


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A run that has learnt something of one phantom dataset."""
    folder: Path = tmp_path_factory.mktemp("pretrained")
    make_phantom_dataset(folder / "Task98_Source", num_training=4, num_test=0, seed=11)
    torch.set_num_threads(1)
    first = options(folder / "Task98_Source", folder / "run")
    schedule_stage(first)
    schedule = shorten(first.run, folder / "schedule.json", steps=40)
    select_stage(replace(first, schedule=schedule))
    return folder / "run"


@pytest.fixture
def target(tmp_path) -> Path:
    """Other phantoms, one class of which has another name."""
    folder = tmp_path / "Task99_Target"
    make_phantom_dataset(folder, num_training=4, num_test=0, seed=12)
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace('"ring"', '"torus"'))
    return folder


def test_a_run_goes_on_from_another(pretrained, target, tmp_path) -> None:
    about = open_model(pretrained).description
    mine = options(target, tmp_path / "run", pretrained=pretrained)
    _, plan = plan_stage(mine)
    (name,) = about.stages
    assert [c.name for c in plan.configurations] == [name]
    assert plan.configuration(name).patch_shape == about.plan.configuration(name).patch_shape
    schedule_stage(mine)
    schedule = shorten(mine.run, tmp_path / "schedule.json", steps=10)
    mine = replace(mine, schedule=schedule)
    prepared = train_stage(mine)
    said = "\n".join(mine.reporter.said)
    assert "Training goes on from a model of " in said
    assert "outputs: background, bean keep their layers, torus start fresh" in said
    fold = mine.run.fold(name, 0)
    assert any("torus start fresh" in issue.message for issue in read_issues(fold))
    assert prepared.schedule.trainings[0].base_features == about.training(name).base_features

    fresh = options(target, tmp_path / "fresh", schedule=schedule)
    train_stage(fresh)
    first = [
        json.loads((run.fold(name, 0) / "history.jsonl").read_text().splitlines()[0]) for run in (mine.run, fresh.run)
    ]
    assert first[0]["pseudo_dice"]["bean"] > (first[1]["pseudo_dice"]["bean"] or 0) + 0.1
    assert first[0]["loss"] < first[1]["loss"]


def test_bundles_serve_as_well_and_other_things_are_refused(pretrained, target, tmp_path) -> None:
    bundle = tmp_path / "model.autoseg"
    bundle_run(pretrained, bundle)
    _, plan = plan_stage(options(target, tmp_path / "run", pretrained=bundle))
    assert [c.name for c in plan.configurations] == list(open_model(pretrained).description.stages)
    with pytest.raises(AutosegError) as raised:
        plan_stage(options(target, tmp_path / "run", pretrained=bundle, memory_gb=4.0, preset="vnet"))
    assert [problem.where for problem in raised.value.problems] == ["--preset", "--memory-gb"]
    (tmp_path / "notes.txt").write_text("no model")
    for wrong in (tmp_path / "notes.txt", tmp_path / "absent", target):
        with pytest.raises(AutosegError, match=wrong.name):
            plan_stage(options(target, tmp_path / "other", pretrained=wrong))


def test_a_given_schedule_of_another_width_is_refused_in_one_line(pretrained, target, tmp_path) -> None:
    schedule = load_document(Schedule, RunFolder(pretrained).schedule)
    wider = tuple(t.model_copy(update={"base_features": t.base_features + 1}) for t in schedule.trainings)
    save_document(tmp_path / "wider.json", schedule.model_copy(update={"trainings": wider}))
    name, own = wider[0].configuration, schedule.trainings[0].base_features
    with pytest.raises(
        AutosegError, match=f"trains {name} with {own + 1} features, not {own} as the networks of --pretrained"
    ) as raised:
        schedule_stage(options(target, tmp_path / "run", pretrained=pretrained, schedule=tmp_path / "wider.json"))
    assert "\n" not in str(raised.value)


def test_a_run_is_not_pretrained_by_itself(pretrained, target, tmp_path) -> None:
    shutil.copytree(pretrained, tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.joinpath("run").rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to("run")
    itself = options(target, tmp_path / "run", pretrained=tmp_path / "link")
    for stage in (plan_stage, run_all):
        with pytest.raises(AutosegError, match=r"link is the run folder itself \(--out\)"):
            stage(itself)
    assert {path: path.read_bytes() for path in tmp_path.joinpath("run").rglob("*") if path.is_file()} == before


def test_cases_that_the_model_has_seen_are_told(pretrained, tmp_path) -> None:
    again = options(pretrained.parent / "Task98_Source", tmp_path / "run", pretrained=pretrained)
    schedule_stage(again)
    assert any("4 of 4 cases were among those" in line and "flatter" in line for line in again.reporter.said)

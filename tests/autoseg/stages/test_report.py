"""What a report says besides its documents: commands for the terminal, and durations."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

import typer

from autoseg.cli import app
from autoseg.data.dataset import Case, DatasetDescription
from autoseg.run_folder import RunFolder
from autoseg.settings import Settings
from autoseg.stages.report import commands, durations
from autoseg.stages.run import Run
from autoseg.storage.atomic import save_document
from planners import LabelClass, Labels


def test_every_command_of_a_report_is_understood(tmp_path: Path) -> None:
    dataset = DatasetDescription(
        name="d",
        root="d",
        layout="pairs",
        channels=("CT",),
        labels=Labels(classes=(LabelClass(name="a", values=(1,)),)),
        file_values=(0, 1),
        file_ending=".nii.gz",
        training=(),
        test=(Case(case_id="t", images=("t.nii.gz",)),),
    )
    settings = Settings(dataset=Path("my data"), seed=3, target_spacing=(2.5, 0.8, 0.8), skip_bad=True, budget=1800.0)
    run = Run(folder=RunFolder(tmp_path / "run ü"), settings=settings)
    save_document(run.folder.dataset, dataset)
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    words = {purpose: shlex.split(text) for purpose, text in commands(run).items()}

    assert {each[1] for each in words.values()} == {"predict", "evaluate", "run", "submit"}
    for program, name, *arguments in words.values():
        assert program == "autoseg"
        known[name].make_context(name, arguments)
    longer = words["Train for an hour more"]
    assert longer == ["autoseg", "run", str(tmp_path / "run ü"), "--budget", "+1h"]


def test_what_trainings_of_earlier_schedules_took_does_not_count() -> None:
    schedule = SimpleNamespace(trainings=(SimpleNamespace(configuration="2d"),), num_folds=2)
    stages_s = {
        "check": 1.0, "train-2d-fold_0": 10.0, "train-2d-fold_1": 20.0, "validate-2d-fold_0": 3.0,
        "train-2d-fold_2": 100.0, "train-3d_fullres-fold_0": 100.0, "validate-3d_fullres-fold_0": 100.0,
    }  # fmt: skip
    assert durations(stages_s, schedule) == {"check": 1.0, "train": 30.0, "validate": 3.0}  # type: ignore[arg-type]

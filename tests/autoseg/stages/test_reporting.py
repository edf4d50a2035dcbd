"""What a report says beside its tables: commands that a person can type, and what the run took."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

import typer
from autoseg.cli.parameters import parse_spacing
from autoseg.pipeline.options import Options
from autoseg.pipeline.reporting import again, durations

from autoseg.cli import app
from autoseg.run_folder import RunFolder
from autoseg.tracking.progress import SilentReporter


def test_a_run_is_repeated_with_all_wishes_that_it_was_made_with() -> None:
    options = Options(
        dataset=Path("my data"), run=RunFolder(Path("run ü")), device_name="cpu", num_threads=1, num_workers=1,
        reporter=SilentReporter(), seed=3, preset="resenc_m", memory_gb=6.0, strict_reference=True, layout="pairs",
        spec=Path("a spec.json"), skip_bad=True, pretrained=Path("model.zip"), groups=Path("groups.csv"), folds=3,
        target_spacing_mm=(2.5, 0.8, 0.8),
    )  # fmt: skip
    words = shlex.split(shlex.join(["autoseg", *map(str, again(options, options.run.root))]))
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    understood = commands[words[1]].make_context("run", words[2:]).params
    for name in (
        "seed",
        "memory_gb",
        "strict_reference",
        "layout",
        "spec",
        "skip_bad",
        "pretrained",
        "groups",
        "folds",
    ):
        assert understood[name] == getattr(options, name), name
    assert parse_spacing(understood["target_spacing"]) == options.target_spacing_mm
    assert (understood["dataset"], understood["out"]) == (options.dataset, options.run.root)
    assert (understood["preset"].value, understood["device"]) == (options.preset, options.device_name)


def test_what_is_as_usual_is_not_said() -> None:
    options = Options(
        dataset=Path("data"),
        run=RunFolder(Path("run")),
        device_name="cpu",
        num_threads=1,
        num_workers=1,
        reporter=SilentReporter(),
    )
    assert list(map(str, again(options, Path("other")))) == ["run", "data", "--out", "other", "--device", "cpu"]


def test_what_trainings_of_former_schedules_took_does_not_count() -> None:
    schedule = SimpleNamespace(trainings=(SimpleNamespace(configuration="2d"),), num_folds=2)
    stages_s = {
        "check": 1.0, "train-2d-fold_0": 10.0, "train-2d-fold_1": 20.0, "validate-2d-fold_0": 3.0,
        "train-2d-fold_2": 100.0, "train-3d_fullres-fold_0": 100.0, "validate-3d_fullres-fold_0": 100.0,
    }  # fmt: skip
    assert durations(stages_s, schedule) == {"check": 1.0, "train": 30.0, "validate": 3.0}  # type: ignore[arg-type]

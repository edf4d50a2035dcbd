"""Commands are understood, or refused with an example."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import autoseg
from autoseg.cli import app
from autoseg.data.discovery import discover_dataset
from autoseg.data.phantom import make_phantom_dataset
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, save_document
from planners import Plan


@pytest.mark.parametrize("command", sorted(typer.main.get_command(app).commands))
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


def test_the_help_names_the_run_folder_that_is_taken_without_out() -> None:
    shown = CliRunner().invoke(app, ["run", "--help"]).output.replace("│", " ")
    assert "default: run" in " ".join(shown.split())


@pytest.mark.parametrize(("kind", "name"), [("msd", "submission.zip"), ("folder", "submission")])
def test_a_submission_is_called_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    dataset, run = tmp_path / "Task77_Phantom", RunFolder(tmp_path / "run")
    make_phantom_dataset(dataset, num_training=2, num_test=1)
    run.root.mkdir()
    save_document(run.dataset, discover_dataset(dataset))
    shutil.copytree(dataset / "labelsTs", run.predictions)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["submit", "run", "--as", kind])
    assert result.exit_code == 0, result.output
    assert (tmp_path / name).is_dir() == (kind == "folder")
    assert (tmp_path / name).exists()


GOLDEN = Path(__file__).parents[1] / "golden" / "plans" / "025"
FILES = ["--nnunet-fingerprint", str(GOLDEN / "fingerprint.json"), "--nnunet-dataset", str(GOLDEN / "dataset.json")]


def test_a_plan_from_nnunets_files_is_kept_with_its_decisions(tmp_path: Path) -> None:
    given = json.loads((GOLDEN / "dataset.json").read_text()) | {"overwrite_image_reader_writer": "NibabelIO"}
    (tmp_path / "dataset.json").write_text(json.dumps(given))
    files = [*FILES[:3], str(tmp_path / "dataset.json")]
    written = tmp_path / "plans.json"
    result = CliRunner().invoke(app, ["plan", *files, "--out", str(tmp_path / "run"), "--nnunet-plans", str(written)])
    assert result.exit_code == 0, result.output
    plan = load_document(Plan, tmp_path / "run" / "plan.json")
    assert {"memory.target", "patch.shape"} <= {decision.rule for decision in plan.decisions}
    assert json.loads(written.read_text())["image_reader_writer"] == "NibabelIO"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_says_how_to_resume(tmp_path: Path, number: signal.Signals) -> None:
    pipe = tmp_path / "fingerprint.json"
    os.mkfifo(pipe)
    call = [
        sys.executable,
        "-c",
        "from autoseg.cli import main; main()",
        "plan",
        *FILES,
        "--nnunet-fingerprint",
        str(pipe),
    ]
    # What is started in the background of a shell ignores Ctrl-C, and what it starts, too.
    listens = partial(signal.signal, number, signal.SIG_DFL)
    with (
        subprocess.Popen(
            call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listens
        ) as process,
        pipe.open("w"),  # opens once the command waits for what is never written
    ):
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "Interrupted. Run the same command to resume.\n"


def test_bad_options_are_refused_together_before_a_run_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call = ["run", "x", "--budget", "soon", "--target-spacing", "1,0,2", "--folds", "1"]
    error = CliRunner().invoke(app, call).exception
    assert isinstance(error, AutosegError)
    assert {issue.where for issue in error.issues} == {"--budget", "--target-spacing", "--folds"}
    assert set(error.codes) == {"settings.bad_value"}
    assert not list(tmp_path.iterdir())


def test_unused_options_are_refused_at_once() -> None:
    useless = ["--skip-bad", "--pretrained", "x", "--layout", "msd", "--spec", "x", "--workers", "1"]
    result = CliRunner().invoke(app, ["plan", *FILES, *useless])
    assert result.exit_code == 2
    assert all(option in result.output for option in useless if option.startswith("--"))


def test_the_package_offers_its_stages() -> None:
    for name in autoseg.__all__:
        assert getattr(autoseg, name) is not None
    with pytest.raises(AttributeError, match="Predictor"):
        autoseg.Oracle  # noqa: B018

"""What a person types is understood, or refused with an example."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

import autoseg
from autoseg.cli import app
from autoseg.cli.console import show_result
from autoseg.cli.parameters import parse_duration, parse_spacing
from autoseg.data.discovery import discover_dataset
from autoseg.data.phantom import make_phantom_dataset
from autoseg.pipeline.options import Options
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, save_document
from autoseg.tracking.progress import SilentReporter
from planners import Plan


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("2h", 7200), ("1h30m", 5400), ("0.5h", 1800), (" 5M ", 300)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "soon", "-5m", "0m", "5m3h", "1e3s"])
def test_other_words_are_no_durations(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="20m"):
        parse_duration(text)


def test_spacings_are_read() -> None:
    assert parse_spacing("2.5,0.8,0.8") == (2.5, 0.8, 0.8)
    for text in ("1,2", "a,b,c", "1,-1,1", "1,inf,1", "nan,1,1"):
        with pytest.raises(typer.BadParameter):
            parse_spacing(text)


@pytest.mark.parametrize("command", sorted(typer.main.get_command(app).commands))
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


def test_the_help_names_the_run_folder_that_is_taken_without_out() -> None:
    assert "default: run" in " ".join(CliRunner().invoke(app, ["run", "--help"], terminal_width=300).output.split())


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


def test_printed_commands_can_be_pasted_for_folders_with_spaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "my run")
    options = Options(
        dataset=tmp_path, run=run, device_name="cpu", num_threads=1, num_workers=1, reporter=SilentReporter()
    )
    selection = SimpleNamespace(summary=None, selection=SimpleNamespace(reason="one case"))
    show_result(options, SimpleNamespace(selected=selection, report=tmp_path, predictions=[]))  # type: ignore[arg-type]
    assert f"autoseg predict '{run.root}' INPUT OUTPUT" in capsys.readouterr().out


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
def test_a_command_that_is_stopped_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
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
    assert errors == "stopped; the same command goes on where this one was\n"


def test_options_that_play_no_part_are_refused_at_once() -> None:
    useless = ["--skip-bad", "--pretrained", "x", "--layout", "msd", "--spec", "x", "--workers", "1"]
    result = CliRunner().invoke(app, ["plan", *FILES, *useless])
    assert result.exit_code == 2
    assert all(option in result.output for option in useless if option.startswith("--"))


def test_the_package_offers_its_stages() -> None:
    for name in autoseg.__all__:
        assert getattr(autoseg, name) is not None
    with pytest.raises(AttributeError, match="Predictor"):
        autoseg.Oracle  # noqa: B018

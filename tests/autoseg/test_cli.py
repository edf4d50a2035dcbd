"""Commands are understood, or refused with an example."""

from __future__ import annotations

import json
import os
import re
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
from autoseg.cli.console import show_next_step
from autoseg.cli.usage import WISHES
from autoseg.data.checks.report import CheckReport
from autoseg.data.discovery import discover_dataset
from autoseg.data.phantom import make_phantom_dataset
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, save_document
from planners import Plan
from planners.edits import PLAN_FIELDS, SCHEDULE_FIELDS


@pytest.mark.parametrize("command", sorted(typer.main.get_command(app).commands))
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


def test_the_help_names_the_run_folder_that_is_taken_without_out() -> None:
    shown = CliRunner().invoke(app, ["run", "--help"]).output.replace("│", " ")
    assert "default: run" in " ".join(shown.split())


@pytest.mark.parametrize(("kind", "name"), [("zip", "submission.zip"), ("folder", "submission")])
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
    call = ["run", "x", "--budget", "soon", "--target-spacing", "1,0,2", "--folds", "0", "--splits", "no.json"]
    error = CliRunner().invoke(app, call).exception
    assert isinstance(error, AutosegError)
    found = {issue.where: issue.code for issue in error.issues}
    bad = dict.fromkeys(("--budget", "--target-spacing", "--folds"), "settings.bad_value")
    assert found == {**bad, "--splits no.json": "settings.no_file", "x": "dataset.missing"}
    assert not list(tmp_path.iterdir())


def test_unused_options_are_refused_at_once() -> None:
    useless = ["--skip-bad", "--pretrained", "none", "--layout", "msd", "--spec", ".", "--workers", "1"]
    result = CliRunner().invoke(app, ["plan", *FILES, *useless])
    assert result.exit_code == 2
    assert all(option in result.output for option in useless if option.startswith("--"))


LARGE = ("rich", "torch", "SimpleITK", "scipy", "pandas", "numpy", "matplotlib", "pydicom", "joblib")
MANY = """
import contextlib, io, json, sys
from autoseg.cli import main
for words in json.load(sys.stdin):
    sys.argv, code = ["autoseg", *words], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, out.getvalue(), [name for name in {large} if name in sys.modules]]))
"""
"""Many calls in one process, each with its exit code, what it says and what is loaded then."""
CALLS = [
    (["--help"], 0, "predict the test images, report. Resumable."),
    ([], 2, "import-nnunet"),
    (["-h"], 0, "predict the test images, report. Resumable."),
    (["predict", "-h"], 0, "--mirroring"),
    (["predict", "m", "i", "o", "--tta"], 2, "unless `--no-mirroring` is given"),
    (["run", "--help"], 0, "\nTraining:\n  --budget TIME"),
    (["--version"], 0, autoseg.__version__),
    (["submit", "--list"], 0, "a zip of label maps"),
    (["run", "data", "--epochs", "5"], 2, "--set schedule.epochs=NUMBER"),
    (["train", "data", "-tr", "nnUNetTrainerDA5"], 2, "no trainer classes"),
    (["predict", "m", "i", "o", "--disable_tta"], 2, "--no-mirroring"),
    (["run", "data", "--budgt", "2h"], 2, "did you mean --budget?"),
    (["run", "data", "--target_spacing", "1,1,1"], 2, "did you mean --target-spacing?"),
    (["run", "data", "--tolerance-mm", "2"], 2, "autoseg evaluate"),
    (["run", "data", "--nonsense"], 2, "unknown option --nonsense\n"),
    (["trian", "data"], 2, "did you mean train?"),
    (["data"], 2, "autoseg run data"),
    (["run"], 2, "DATASET"),
    (["run", "absent"], 1, "absent: does not exist; pass the folder of the dataset"),
    (["run", "data"], 1, "data: is empty; pass the folder of the dataset"),
    (["check", "file"], 1, "file: is a file, not a folder or a list of cases"),
    (["report", "file"], 1, "file: is a file, not a folder or a list of cases"),
    (["run", "data", "--budget", "soon"], 2, "--budget"),
    (["run", "absent", "--budget", "soon"], 2, "absent: does not exist"),
    (["run", "data", "--schedule", "no.json"], 2, "--schedule no.json: does not exist"),
    (["predict", "absent", "data", "out"], 1, "absent: does not exist; pass a run folder"),
    (["predict", "data", "data", "out"], 1, "data: not a run folder"),
    (["predict", "file", "data", "out"], 1, "file: not a bundle"),
    (["predict", "m.zip", "data", "out", "--part", "3/2"], 2, "'3/2' is no part"),
    (["predict", "m.zip", "data", "out", "--device", "foo"], 2, "--device: not a device"),
    (["predict", "m.zip", "data", "begun"], 1, "begun: belongs to the run"),
    (["run", "data", "--out", "file"], 1, "file: is a file, not a folder"),
    (["run", "data", "--out", "file/run"], 1, "file: is a file, not a folder"),
    (["run", "data", "--device", "foo"], 2, "--device: not a device"),
    (["run", "data", "--layout", "nolayout"], 1, "layout 'nolayout' does not exist (available: bids"),
    (["run", "data", "--pretrained", "data"], 1, "data: not a run folder"),
    (["bundle", "m.zip", "file"], 1, "file: exists already"),
    (["clean", "data"], 1, "data: no run folder: has no settings.json"),
    (["status", "data"], 1, "data: no run folder: has no settings.json"),
    (["clean", "absent"], 1, "absent: does not exist; pass a run folder"),
    (["demo", "--device", "foo"], 2, "not a device"),
    (["evaluate", "absent", "data"], 1, "absent: does not exist"),
    (["submit", "absent"], 1, "absent: does not exist"),
]


def test_help_and_wrong_calls_are_answered_before_anything_large_is_loaded(tmp_path: Path) -> None:
    for folder in ("data", "begun/stages", "begun/locks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "m.zip").write_bytes(b"PK\5\6" + bytes(18))
    program, calls = MANY.format(large=LARGE), json.dumps([words for words, _, _ in CALLS])
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=calls,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    for (words, code, said), line in zip(CALLS, done.stdout.splitlines(), strict=True):
        ended, output, loaded = json.loads(line)
        assert (words, ended, loaded) == (words, code, [])
        assert said in output, words


def test_hints_name_options_and_fields_that_exist() -> None:
    commands = typer.main.get_command(app).commands
    flags = {flag for command in commands.values() for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    for hint in WISHES.values():
        assert set(re.findall(r"--[a-z-]+", hint)) <= flags
        assert set(re.findall(r"plan\.3d_fullres\.([a-z_.]+)=", hint)) <= {*PLAN_FIELDS}
        assert set(re.findall(r"schedule\.([a-z_]+)=", hint)) <= {*SCHEDULE_FIELDS}


def test_the_module_is_the_command(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "autoseg", "--version"]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout == f"autoseg {autoseg.__version__}\n"


@pytest.mark.parametrize(
    ("line", "offered"),
    [("autoseg tra", "train"), ("autoseg run --bud", "--budget"), ("autoseg run --device c", "cpu cuda")],
)
def test_the_shell_completes_commands_and_options(line: str, offered: str) -> None:
    call = [sys.executable, "-c", "import sys; sys.argv = ['autoseg']; from autoseg.cli import main; main()"]
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_AUTOSEG_COMPLETE": "complete_bash"}
    done = subprocess.run(call, capture_output=True, text=True, check=True, env={**os.environ, **asked})
    assert done.stdout.split() == offered.split()


def test_a_check_says_what_to_do_next_and_how_to_name_what_has_no_name(tmp_path: Path) -> None:
    found, plain = tmp_path / "named", tmp_path / "plain"
    make_phantom_dataset(found, num_training=2, num_test=0)
    shutil.copytree(found / "imagesTr", plain / "images")
    shutil.copytree(found / "labelsTr", plain / "labels")
    said = CliRunner().invoke(app, ["check", str(plain), "--workers", "1"]).output
    assert f"Next: autoseg run {plain} --out run --workers 1" in said
    named = json.loads(said[said.index("{") : said.rindex("}") + 1].replace("CLASS_1", "organ"))
    assert named["channel_names"] == {"0": "MRI"}
    (plain / "dataset.json").write_text(json.dumps(named))
    said = CliRunner().invoke(app, ["check", str(plain), "--workers", "1"]).output
    assert "organ" in said
    assert "Hint" not in said


def test_names_of_channels_are_proposed_by_what_they_look_like(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ct = Issue(code="channel.looks_like_ct", severity="note", where="channel channel_0", message="", fix="")
    for channels, issues, names in (
        (["channel_0"], (ct,), {"0": "CT"}),
        (["channel_0", "channel_1", "PET"], (ct,), {"0": "CT", "1": "MRI_2", "2": "PET"}),
        (["channel_0", "channel_1"], (), {"0": "MRI_1", "1": "MRI_2"}),
    ):
        show_next_step(CheckReport(root="", channels=tuple(channels), issues=issues), tmp_path, [])
        said = capsys.readouterr().out
        assert "(write what each one is)" in said
        assert json.loads(said[said.index("{") : said.rindex("}") + 1]) == {"channel_names": names}


def test_errors_of_one_kind_are_said_together_where_they_concern_many_files() -> None:
    files = [
        Issue(
            code="reader.truncated", case=f"c{n}", where=f"c{n}.nii", message=f"ends at byte {n}", fix="copy it again"
        )
        for n in range(60)
    ]
    options = [
        Issue(code="settings.bad_value", where=f"--option{n}", message=f"{n} is too large", fix=f"use {n}")
        for n in range(6)
    ]
    lines = str(AutosegError(*files, *options, headline="Errors:")).splitlines()
    assert lines[1:4] == [f"  - {issue}" for issue in files[:3]]
    assert lines[4] == "  - 57 more like it: c3, c4, c5, c6, c7, c8 and 51 more"
    assert lines[5:] == [f"  - {issue}" for issue in options]
    assert len(str(AutosegError(*files[:4])).splitlines()) == 4


def test_the_package_offers_its_stages() -> None:
    for name in autoseg.__all__:
        assert getattr(autoseg, name) is not None
    with pytest.raises(AttributeError, match="Predictor"):
        autoseg.Oracle  # noqa: B018

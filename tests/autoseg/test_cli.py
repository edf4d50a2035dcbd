"""What a person types is understood, or refused with an example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import autoseg
from autoseg.cli import app
from autoseg.cli.parameters import parse_duration, parse_spacing
from autoseg.run_folder import load_document
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

"""What a person types is understood, or refused with an example."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

import autoseg
from autoseg.cli import app
from autoseg.cli.parameters import parse_duration, parse_spacing


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


def test_the_package_offers_its_stages() -> None:
    for name in autoseg.__all__:
        assert getattr(autoseg, name) is not None
    with pytest.raises(AttributeError, match="Predictor"):
        autoseg.Oracle  # noqa: B018

"""The command line: one caller of the front door, and the only room that prints."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from autoseg import __version__
from autoseg.cli.commands import COMMANDS
from autoseg.cli.console import INTERRUPTED, readable_errors, say_interrupted, treat_termination_as_interrupt
from autoseg.cli.usage import explain_usage_error

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""Any wrong call; typer exports this kind of it only."""
app = typer.Typer(name="autoseg", no_args_is_help=True, pretty_exceptions_enable=False)
for command in COMMANDS:
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autoseg {__version__}")
        raise typer.Exit


@app.callback()
def _autoseg(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """From a folder of labelled medical volumes to a cross-validated segmentation model, with one command."""


def main() -> None:
    """Entry point of the ``autoseg`` command."""
    treat_termination_as_interrupt()
    with readable_errors():
        try:
            code = app(standalone_mode=False)
        except USAGE_ERROR as error:
            if sys.argv[1:]:  # without any, the help was shown
                typer.secho(f"autoseg: {explain_usage_error(error, sys.argv[1:], app)}", fg=typer.colors.RED, err=True)
            raise SystemExit(2) from None
    if code == INTERRUPTED:  # typer catches Ctrl-C in a command itself, and leaves nothing of it but the exit code
        say_interrupted()
    raise SystemExit(code)

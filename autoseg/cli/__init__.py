"""The command line: one caller of the front door, and the only room that prints."""

from __future__ import annotations

from collections.abc import Callable

import typer

from autoseg.cli.commands import COMMANDS
from autoseg.cli.console import readable_errors
from autoseg.compute.executor import treat_termination_as_interrupt

app = typer.Typer(
    name="autoseg",
    help="From a folder of labelled medical volumes to a cross-validated segmentation model, with one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.command()(command)


def main(call: Callable[[], object] = app) -> None:
    """Entry point of the ``autoseg`` command."""
    treat_termination_as_interrupt()
    with readable_errors():
        call()

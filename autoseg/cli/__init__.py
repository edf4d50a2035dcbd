"""The command line: one caller of the front door, and the only room that prints."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from autoseg import __version__
from autoseg.cli.commands import COMMANDS
from autoseg.cli.console import INTERRUPTED, readable_errors, say_interrupted, treat_termination_as_interrupt
from autoseg.cli.usage import explain_usage_error

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""Any wrong call; typer exports this kind of it only."""
NAMES = {command.__name__.replace("_", "-"): command for command in COMMANDS}


class _Command(TyperCommand):
    """Shows its options in sections of plain text: rich, which would draw boxes, takes longer to load than all else."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[Any]] = {}
        for parameter in self.get_params(ctx):
            if (row := parameter.get_help_record(ctx)) is not None:
                panel = getattr(parameter, "rich_help_panel", None) or "Options"
                sections.setdefault("Arguments" if parameter.param_type_name == "argument" else panel, []).append(row)
        for name, rows in sections.items():
            with formatter.section(name):
                formatter.write_dl(rows)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autoseg {__version__}")
        raise typer.Exit


def _autoseg(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """From a folder of labelled medical volumes to a cross-validated segmentation model, with one command."""


def make_app(names: Iterable[str] = NAMES) -> typer.Typer:
    """The command line. Only the commands in ``names`` get their options: those of all take longer to make than to answer."""
    made = typer.Typer(
        name="autoseg",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_autoseg)
    for name, command in NAMES.items():
        first_line = (command.__doc__ or "").partition("\n")[0]
        made.command(name, cls=_Command, short_help=first_line)(command if name in names else lambda: None)
    return made


app = make_app()


def main() -> None:
    """Entry point of the ``autoseg`` command."""
    treat_termination_as_interrupt()
    words = sys.argv[1:]  # none: help, or a shell that completes a command
    with readable_errors():
        try:
            code = make_app(words or NAMES)(standalone_mode=False)
        except USAGE_ERROR as error:
            if words:
                typer.secho(f"autoseg: {explain_usage_error(error, words, app)}", fg=typer.colors.RED, err=True)
            else:
                typer.echo(str(error), err=True)
            raise SystemExit(2) from None
    if code == INTERRUPTED:  # typer catches Ctrl-C in a command itself, and leaves nothing of it but the exit code
        say_interrupted()
    raise SystemExit(code)

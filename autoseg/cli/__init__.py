"""The command line: one caller of the stages, and the only room that prints."""

from __future__ import annotations

from collections.abc import Callable

import typer

from autoseg.cli import dataset_commands, model_commands, run_commands
from autoseg.cli.console import readable_errors
from autoseg.compute.interruption import treat_termination_as_interrupt

app = typer.Typer(
    name="autoseg",
    help="From a folder of labelled medical volumes to a cross-validated segmentation model, with one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    run_commands.run,
    model_commands.predict,
    model_commands.evaluate,
    dataset_commands.check,
    dataset_commands.plan,
    model_commands.submit,
    model_commands.bundle,
    model_commands.import_nnunet,
    dataset_commands.fingerprint,
    dataset_commands.preprocess,
    run_commands.train,
    run_commands.select,
    run_commands.report,
    run_commands.demo,
):
    app.command()(command)


def main(call: Callable[[], object] = app) -> None:
    """Entry point of the ``autoseg`` command."""
    treat_termination_as_interrupt()
    with readable_errors():
        call()

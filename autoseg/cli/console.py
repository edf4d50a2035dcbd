"""What a person sees and what the log file keeps: progress, results, errors."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from shlex import join, quote
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from autoseg.issues import AutosegError
from autoseg.pipeline.options import Options
from autoseg.run_folder import RunFolder
from autoseg.tracking.progress import LogReporter, Reporter, RunClock, TerminalReporter
from planners import DocumentError, PlanningError

if TYPE_CHECKING:
    from autoseg.evaluation.table import Summary
    from autoseg.pipeline.run import RunResult
    from autoseg.pipeline.selecting import Selected

logger = logging.getLogger("autoseg")
INTERRUPTED = 130
"""Exit code of what Ctrl-C ended, as shells have it."""


def make_reporter(budget_s: float | None = None) -> Reporter:
    """Bars on a terminal, plain log lines elsewhere; both on standard error, results go to standard output."""
    clock = RunClock()
    if budget_s is not None:
        clock.expect(budget_s)
    console = Console(stderr=True)
    if console.is_terminal:
        return TerminalReporter(console, clock)
    if not logger.handlers or all(isinstance(handler, logging.FileHandler) for handler in logger.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        handler.setLevel(logging.INFO)
        logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    return LogReporter(clock)


def start_log_file(folder: RunFolder) -> None:
    """Keep every line in the run's ``log.txt``. Raises `AutosegError` where the folder cannot be written."""
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(folder.log)
    except OSError as error:
        raise AutosegError(
            f"{folder.root} cannot be written ({error.strerror or error}); choose another run folder with --out"
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # A full disk is reported by the stage that meets it; a log line that no longer fits must not add a traceback.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.debug("called: %s", join(("autoseg", *sys.argv[1:])))


def show_result(options: Options, result: RunResult) -> None:
    """The scores, and where everything lies."""
    if result.selected.summary is not None:
        show_scores(result.selected, result.selected.summary)
    else:
        typer.echo(f"Nothing was cross-validated: {result.selected.selection.reason}")
    typer.echo(f"Model:       {options.run.root}  (autoseg predict {quote(str(options.run.root))} INPUT OUTPUT)")
    typer.echo(f"Report:      {result.report}")
    if result.predictions:
        typer.echo(f"Predictions: {options.run.predictions}  ({len(result.predictions)} test images)")


def show_scores(selected: Selected, summary: Summary) -> None:
    """The scores of a cross-validation, and what takes away from them."""
    from autoseg.evaluation.table import format_table

    by = "a fold that left it out" if selected.caveats else "a network that did not see it"
    typer.echo(f"Cross-validation: every case predicted by {by}")
    typer.echo(format_table(summary))
    for caveat in selected.caveats:
        typer.echo(f"With reserve: {caveat}")


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors meant for the user become a message and exit code 1; after Ctrl-C it is said how to go on, and the code is 130."""
    try:
        yield
    except (AutosegError, DocumentError, PlanningError) as error:
        typer.secho(f"autoseg: {error}", fg=typer.colors.RED, err=True)
        logger.debug("failed", exc_info=error)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        _say_stopped()
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as end:  # typer catches Ctrl-C in a command itself, and leaves nothing of it but the exit code
        if end.code == INTERRUPTED:
            _say_stopped()
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _say_stopped() -> None:
    text = "stopped; the same command goes on where this one was"
    typer.secho(text, err=True)
    logger.debug(text)

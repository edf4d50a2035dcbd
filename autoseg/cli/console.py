"""What the terminal and the log file show: progress, results, errors."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from shlex import quote
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from autoseg.issues import AutosegError
from autoseg.tracking.progress import LogReporter, Reporter, RunClock, TerminalReporter
from autoseg.wording import count_noun
from planners import DocumentError, PlanningError

if TYPE_CHECKING:
    from autoseg.data.checks.check import CheckReport
    from autoseg.stages.run import Run

logger = logging.getLogger("autoseg")
INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""


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


def show_result(run: Run) -> None:
    """The scores, and where everything is."""
    show_scores(run)
    root, predictions = run.folder.root, run.predictions
    typer.echo(f"Model:       {root}  (autoseg predict {quote(str(root))} INPUT OUTPUT)")
    typer.echo(f"Report:      {run.report}")
    if predictions:
        typer.echo(f"Predictions: {run.folder.predictions}  ({count_noun(len(predictions), 'test image')})")


def show_scores(run: Run) -> None:
    """The scores of the cross-validation, and their caveats."""
    from autoseg.evaluation.table import format_table
    from autoseg.stages.schedule import read_prepared
    from autoseg.stages.select import score_issues

    summary = run.summary
    if summary is None:
        typer.echo(f"Nothing was cross-validated: {run.selection.reason}")
        return
    issues = score_issues(run, read_prepared(run))
    by = "a fold that left it out" if issues else "a network that did not see it"
    typer.echo(f"Cross-validation: every case predicted by {by}")
    typer.echo(format_table(summary))
    for issue in issues:
        typer.echo(f"{issue.severity.capitalize()}: {issue}")


def show_issues(report: CheckReport) -> None:
    """One line for each issue, and how many there are."""
    for issue in report.issues:
        typer.echo(f"{issue.severity}: {issue}")
    others = report.num_warnings + report.num_notes
    if not report.num_errors and not others:
        typer.echo("No issues found.")
        return
    typer.echo(
        f"{count_noun(report.num_errors, 'error')}, {'1 warning or note' if others == 1 else f'{others} warnings and notes'}"
    )


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors meant for the user become a message and exit code 1; Ctrl-C says how to resume, with exit code 130."""
    try:
        yield
    except (AutosegError, DocumentError, PlanningError) as error:
        typer.secho(f"autoseg: {error}", fg=typer.colors.RED, err=True)
        logger.debug("failed", exc_info=error)
        wrong_call = isinstance(error, AutosegError) and all(code.startswith("settings.") for code in error.codes)
        raise SystemExit(2 if wrong_call else 1) from error
    except KeyboardInterrupt:
        _say_interrupted()
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as end:  # typer catches Ctrl-C in a command itself, and leaves nothing of it but the exit code
        if end.code == INTERRUPTED:
            _say_interrupted()
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _say_interrupted() -> None:
    text = "Interrupted. Run the same command to resume."
    typer.secho(text, err=True)
    logger.debug(text)

"""What a person types and sees: options made from the fields of `Settings`, progress, the log file, results, errors."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Union

import typer
from rich.console import Console

from autoseg.issues import AutosegError
from autoseg.settings import Option, Settings, StageName, flag_of, options, parse_duration
from autoseg.tracking.progress import LogReporter, Reporter, RunClock, TerminalReporter
from autoseg.wording import count_noun
from planners import DocumentError, PlanningError

if TYPE_CHECKING:
    from autoseg.data.checks.check import CheckReport
    from autoseg.stages.run import Run

logger = logging.getLogger("autoseg")
INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""
ORDER: tuple[StageName, ...] = ("check", "fingerprint", "plan", "preprocess", "schedule", "train")
PANELS: dict[StageName, str] = {
    "check": "The dataset",
    "fingerprint": "The plan",
    "plan": "The plan",
    "preprocess": "The plan",
    "schedule": "Training",
    "train": "Training",
}
"""Headings of the help text."""
MACHINE = "This machine (changes at most the last digits of results)"
TARGET = typer.Argument(
    metavar="DATASET|RUN", help="Folder of labelled volumes, or a run folder to resume.", show_default=False
)
OptionalTarget = Annotated[Path | None, TARGET]
OUT = typer.Option("--out", help="Run folder; everything is written here (default: run).", show_default=False)
REDO = typer.Option("--redo", help="Redo what was made from other options or data.", show_default=False)
REPLAN = typer.Option("--replan", help="Discard edits of plan.json and schedule.json.", show_default=False)


def make_reporter(budget: str | None = None) -> Reporter:
    """Bars on a terminal, plain log lines elsewhere; both on standard error, results go to standard output."""
    clock = RunClock()
    with suppress(ValueError):  # the settings say what is wrong with it
        if isinstance(seconds := parse_duration(budget), float):
            clock.expect(seconds)
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


def stage_command(until: StageName, *, replans: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that takes the settings of all stages up to ``until``; with ``out`` also the options of a run's call.

    Its function gets those that were given as ``options``, with the ``reporter`` of the call.
    """
    shared = [_parameter(name, option) for name, option in options() if ORDER.index(option.stage) <= ORDER.index(until)]

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        own = {p.name: p for p in signature(function, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD}
        kinds: dict[str, tuple[Any, Any, Any]] = {
            "dataset": (Path, TARGET, Parameter.empty),
            "out": (Path | None, OUT, None),
        }
        kinds |= {"redo": (bool, REDO, False), **({"replan": (bool, REPLAN, False)} if replans else {})}
        for name, (kind, declared, default) in kinds.items() if "out" in own else ():
            if name not in own or own[name].annotation == kind:
                own[name] = Parameter(
                    name, Parameter.KEYWORD_ONLY, annotation=Annotated[kind, declared], default=default
                )

        @wraps(function)
        def command(**given: Any) -> None:
            mine = {name: given.pop(name) for name in own}
            settings = {name: value for name, value in given.items() if value not in (None, [], ())}
            function(**mine, **settings, reporter=make_reporter(settings.get("budget")))

        parameters = [*(p.replace(kind=Parameter.KEYWORD_ONLY) for p in own.values()), *shared]
        command.__signature__ = signature(function).replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return declare


def _parameter(name: str, option: Option) -> Parameter:
    """Switches have an opposite; everything else is text that `Settings` reads, so that all faults are reported together."""
    default = Settings.model_fields[name].get_default(call_default_factory=True)
    is_switch, flag = isinstance(default, bool), flag_of(name)
    kind: Any = bool if is_switch else list[str] if isinstance(default, tuple | dict) else str
    declared = typer.Option(
        f"{flag}/--no-{flag[2:]}" if is_switch else flag,
        help=option.help,
        show_default=False,
        rich_help_panel=PANELS[option.stage] if option.decides else MACHINE,
        metavar=None if is_switch else option.metavar,
    )
    annotation: Any = Annotated[Union[kind, None], declared]  # noqa: UP007  # known only when it runs
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=None)

"""What a person types and sees: options made from the fields of `Settings`, progress, the log file, results, errors."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Union

import typer

from autoseg.cli.options import A_RUN
from autoseg.data.place import require_dataset
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import RunFolder, find_model, require_place_for_run
from autoseg.settings import STAGES, Option, Settings, StageName, flag_of, make_settings, options, parse_duration
from autoseg.wording import condensed, count_noun, grouped, shorten
from datasets_spec import all_layouts, unknown_layout
from planners import DocumentError, PlanningError

if TYPE_CHECKING:
    from autoseg.data.checks.report import CheckReport
    from autoseg.stages.run import Run
    from autoseg.tracking.progress import Reporter

logger = logging.getLogger("autoseg")
INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""
PANELS: dict[StageName, str] = {
    "check": "The dataset",
    "fingerprint": "The plan",
    "plan": "The plan",
    "preprocess": "The plan",
    "schedule": "Training",
    "train": "Training",
    "select": "The selection",
}
"""Headings of the help text."""
MACHINE = "This machine (changes results by rounding at most)"
TARGET = typer.Argument(
    metavar="DATASET|RUN", help="Folder of labelled volumes, or a run folder to resume.", show_default=False
)
OptionalTarget = Annotated[Path | None, TARGET]
OUT = typer.Option("--out", help="Run folder; everything is written here (default: run).", show_default=False)
REDO = typer.Option("--redo", help="Redo what was made from other options or data.", show_default=False)
REPLAN = typer.Option("--replan", help="Discard edits of plan.json and schedule.json.", show_default=False)


def make_reporter(budget: str | None = None) -> Reporter:
    """Bars on a terminal, plain log lines elsewhere; both on standard error, results go to standard output.

    What commands need is loaded meanwhile.
    """
    reporter = _make_reporter(budget)
    with reporter.phase("Starting"):
        import_module("autoseg.api")
    return reporter


def _make_reporter(budget: str | None) -> Reporter:
    from rich.console import Console

    from autoseg.tracking.progress import LogReporter, RunClock, TerminalReporter

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
    typer.echo(f"Model:       {root}")
    typer.echo(f"Predict:     autoseg predict {shlex.quote(str(root))} INPUT OUTPUT")
    typer.echo(f"Report:      {run.report}")
    if predictions:
        typer.echo(f"Predictions: {run.folder.predictions}  ({count_noun(len(predictions), 'test image')})")


def show_scores(run: Run) -> None:
    """The scores of the cross-validation or hold-out, and their caveats."""
    from autoseg.evaluation.table import format_table
    from autoseg.stages.announce import no_use_issues
    from autoseg.stages.schedule import read_prepared
    from autoseg.stages.select import score_issues

    for issue in no_use_issues(run.schedule):
        typer.echo(f"Warning: {issue}")
    summary = run.summary
    if summary is None:
        typer.echo(f"No scores: {run.selection.reason}")
        return
    issues = score_issues(run, read_prepared(run)) if run.trains else ()  # folds may be others by now
    by = "a network that did not see it" if run.trains and not issues else "a fold that left it out"
    if run.selection.is_hold_out:
        typer.echo(
            f"Hold-out: {count_noun(len(summary.metric_per_case), 'case')} predicted by {by}\n"
            "          The others have no score"
        )
    else:
        typer.echo(f"Cross-validation: every case predicted by {by}")
    typer.echo(format_table(summary))
    if run.selection.dice_corrected is not None:
        limits = run.selection.corrected_interval
        interval = "" if limits is None else f" [{limits[0]:.3f}, {limits[1]:.3f}]"
        typer.echo(f"Corrected mean Dice: {run.selection.dice_corrected:.3f}{interval} ({run.selection.correction})")
    elif run.selection.correction:
        typer.echo(f"Mean Dice {run.selection.correction}")
    for issue in grouped(issues):
        typer.echo(f"{issue.severity.capitalize()}: {issue}")


def show_issues(report: CheckReport) -> None:
    """The errors, many of one kind together, a line for each kind of warnings and notes, and how many there are."""
    errors = condensed(issue for issue in report.issues if issue.severity == "error")
    shown = [*errors, *grouped([issue for issue in report.issues if issue.severity != "error"])]
    for issue in shown:
        typer.echo(f"{issue.severity}: {issue}")
    others = report.num_warnings + report.num_notes
    if not report.num_errors and not others:
        typer.echo("No issues found.")
        return
    counts = f"{count_noun(report.num_errors, 'error')}, {'1 warning or note' if others == 1 else f'{others} warnings and notes'}"
    typer.echo(counts + ("" if len(shown) == len(report.issues) else "; --json lists each"))


def show_next_step(report: CheckReport, dataset: Path, arguments: Sequence[str]) -> None:
    """How to name what has no name, and which command follows; ``arguments`` are the options that the check was given."""
    nameless = [name for name in (*report.channels, *report.classes) if name.startswith(("channel_", "label_"))]
    if nameless and dataset.is_dir():
        where = dataset / "dataset.json"
        typer.echo(f"Hint: no names for {shorten(nameless)} (a channel called CT is planned as CT)")
        typer.echo(f"Name them in {where}, e.g. (write what each one is):")
        channels = {str(i): _example_name(report, i) for i in range(len(report.channels))}
        labels = {f"CLASS_{name[6:]}": int(name[6:]) for name in nameless if name.startswith("label_")}
        lines = [f'"channel_names": {json.dumps(channels)}'] * any(name.startswith("channel_") for name in nameless)
        lines += [f'"labels": {json.dumps({"background": 0, **labels})}'] * bool(labels)
        typer.echo("  {" + ",\n   ".join(lines) + "}")
    command = shlex.join(["autoseg", "run", str(dataset), "--out", "run", *arguments])
    if report.summary is not None and not report.training:
        typer.echo(f"Next: {shlex.join(['autoseg', 'predict', 'MODEL', str(dataset), 'OUTPUT'])}")
    elif not report.num_errors:
        typer.echo(f"Next: {command}")
    elif {issue.case for issue in report.issues if issue.severity == "error"} < {*report.training, *report.test}:
        typer.echo(f"Next: correct the errors, or leave these cases out:\n  {command} --skip-bad")
    else:
        typer.echo("Next: correct the errors, and check again")


def _example_name(report: CheckReport, index: int) -> str:
    """The name of a channel, or one that a person might give to it: CT where it looks like CT."""
    name = report.channels[index]
    if not name.startswith("channel_"):
        return name
    if any(issue.code == "channel.looks_like_ct" and issue.where == f"channel {name}" for issue in report.issues):
        return "CT"
    return "MRI" if len(report.channels) == 1 else f"MRI_{index + 1}"


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors meant for the user become a message and exit code 1; Ctrl-C says how to resume, with exit code 130."""
    try:
        yield
    except (AutosegError, DocumentError, PlanningError) as error:
        typer.secho(f"autoseg: {error}", fg=typer.colors.RED, err=True)
        logger.debug("failed", exc_info=error)
        wrong_call = isinstance(error, AutosegError) and any(code.startswith("settings.") for code in error.codes)
        raise SystemExit(2 if wrong_call else 1) from error
    except KeyboardInterrupt:
        say_interrupted()
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def say_interrupted() -> None:
    text = "Interrupted. Run the same command to resume."
    typer.secho(text, err=True)
    logger.debug(text)


def treat_termination_as_interrupt() -> None:
    """Let SIGTERM and SIGUSR1 end the program as Ctrl-C does, so that open files are closed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGUSR1"):  # Windows has no SIGUSR1
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)


FILES = ("spec", "pretrained", "schedule", "splits", "groups", "groups_table")
"""Settings that name what must exist."""


def require_sound_call(*issues: Iterable[Issue], settings: Mapping[str, Any] | None = None) -> None:
    """Raise `AutosegError` with all that is wrong with a call, before anything large is loaded: ``issues`` and ``settings``."""
    found = [issue for some in issues for issue in some]
    given = {name: value for name, value in (settings or {}).items() if value not in (None, "none", ["none"])}
    whole = {name: value.strip().removeprefix("+") if name == "budget" else value for name, value in given.items()}
    try:
        make_settings({"dataset": ".", **whole})
    except AutosegError as error:
        found += error.issues
    for name in FILES:
        if name in given and not Path(given[name]).exists():
            where, fix = f"{flag_of(name)} {given[name]}", "check the path"
            found.append(Issue(code="settings.no_file", where=where, message="does not exist", fix=fix))
    if "layout" in given and "spec" not in given:
        layouts = all_layouts()
        if given["layout"] not in {each.name for each in layouts}:
            found.append(unknown_layout(given["layout"], layouts))
    if "pretrained" in given and Path(given["pretrained"]).exists():
        found += faults(find_model, Path(given["pretrained"]))
    if found:
        raise AutosegError(*found)


def faults(check: Callable[..., object], *values: Any) -> Iterator[Issue]:
    """The issues that a ``check`` of ``values`` raises; none where they were not given."""
    try:
        if None not in values:
            check(*values)
    except AutosegError as error:
        yield from error.issues


def missing(path: Path | None, *, code: str, fix: str) -> Iterator[Issue]:
    """An issue if a path was given that does not exist; ``FOLDER#UID`` names a series in a folder."""
    if path is not None and not path.exists() and "#" not in path.name:
        yield Issue(code=code, where=str(path), message="does not exist", fix=fix)


def no_run(path: Path) -> Iterator[Issue]:
    """An issue if ``path`` is no run folder."""
    if not RunFolder(path).settings.is_file():
        message = "no run folder: has no settings.json" if path.exists() else "does not exist"
        yield Issue(code="run.missing", where=str(path), message=message, fix=A_RUN)


def stage_command(until: StageName, *, replans: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that takes the settings of all stages up to ``until``; with ``out`` also the options of a run's call.

    Its function gets those that were given as ``options``, with the ``reporter`` of the call.
    """
    shared = [
        _parameter(name, option) for name, option in options() if STAGES.index(option.stage) <= STAGES.index(until)
    ]

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
            require_sound_call(
                faults(require_dataset, None if mine.get("as_json") else mine["dataset"]),  # JSON holds the error, too
                faults(require_place_for_run, mine.get("out")),
                settings=settings,
            )
            budget = None if "schedule" in settings else settings.get("budget")  # a schedule tells its own time
            function(**mine, **settings, reporter=make_reporter(budget))

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
        *([option.also] if option.also else []),
        help=option.help,
        show_default=False,
        rich_help_panel=PANELS[option.stage] if option.decides else MACHINE,
        metavar=None if is_switch else option.metavar,
        autocompletion=(lambda: list(option.choices)) if option.choices else None,
    )
    annotation: Any = Annotated[Union[kind, None], declared]  # noqa: UP007  # known only when it runs
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=None)

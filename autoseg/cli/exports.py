"""Commands that take a model elsewhere, or tell what it costs to predict faster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import autoseg
from autoseg.cli.console import faults, make_reporter, missing, require_sound_call
from autoseg.cli.options import A_RUN, DeviceOption, RunArgument, ThreadsOption
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import RunFolder, check_free, find_model

FoldsOption = Annotated[
    int | None,
    typer.Option("--folds", min=1, help="Use the networks of this many folds (default: all).", show_default=False),
]


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Run folder or bundle file.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder, e.g. liver.onnx.", show_default=False)],
    format: Annotated[Literal["onnx"], typer.Option("--format", help="Of the networks.")] = "onnx",
    folds: FoldsOption = None,
    quantise: Annotated[
        Literal["int8"] | None,
        typer.Option(
            "--quantise", help="Compute convolutions in 8 bits; MODEL is a run folder, whose cases tell what it costs."
        ),
    ] = None,
    cases: Annotated[
        int | None,
        typer.Option(
            "--cases", min=3, help="With --quantise, measure on this many cases (default: all).", show_default=False
        ),
    ] = None,
    threads: ThreadsOption = None,
) -> None:
    """Write a model as ONNX graphs and one JSON, for `autoseg predict` without torch's networks, or for programs of your own."""
    require_sound_call(
        missing(model, code="run.missing", fix="pass a run folder or a bundle file"),
        faults(find_model, model if model.exists() else None),
        faults(check_free, out),
        _cases_alone(cases, quantise),
    )
    measured = autoseg.export(
        model, out, format=format, quantise=quantise, num_folds=folds, most_cases=cases, threads=threads,
        reporter=make_reporter(),
    )  # fmt: skip
    for line in measured:
        typer.echo(line)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    typer.echo(f"Exported: {out} ({size:.1f} MB)")


def _cases_alone(cases: int | None, quantise: str | None) -> list[Issue]:
    if cases is None or quantise is not None:
        return []
    message, fix = "is the number of cases that 8 bits are measured on", "add --quantise int8, or omit it"
    return [Issue(code="settings.contradiction", where="--cases", message=message, fix=fix)]


def measure(run_folder: RunArgument, device: DeviceOption = "auto", threads: ThreadsOption = None) -> None:
    """Measure what `predict --fast` costs: Dice and time without mirroring and with larger steps, on the cross-validation's cases."""
    require_sound_call(
        missing(run_folder, code="run.missing", fix=A_RUN),
        faults(_require_finished, run_folder if run_folder.exists() else None),
    )
    for line in autoseg.measure(run_folder, device=device, threads=threads, reporter=make_reporter()):
        typer.echo(line)


def _require_finished(run_folder: Path) -> None:
    find_model(run_folder)
    if not RunFolder(run_folder).is_begun:
        message = "no run folder: a bundle has no cases to measure on"
        raise AutosegError(Issue(code="model.not_a_run", where=str(run_folder), message=message, fix=A_RUN))

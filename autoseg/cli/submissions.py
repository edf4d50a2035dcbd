"""The commands that pack predictions for challenges, and check packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import autoseg
from autoseg.cli.console import make_reporter, missing, require_sound_call
from autoseg.cli.options import (
    A_RUN,
    AsOption,
    ChallengeSpecOption,
    DeviceOption,
    FillOption,
    ImagesOption,
    IncompleteOption,
    OutOption,
    PredictionsOption,
    ThreadsOption,
)
from autoseg.issues import AutosegError, Issue
from autoseg.wording import as_line


def submit(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Run folder; several for a challenge of several tasks.", show_default=False),
    ] = None,
    kind: AsOption = "zip",
    spec: ChallengeSpecOption = None,
    images: ImagesOption = None,
    predictions: PredictionsOption = None,
    out: OutOption = None,
    fill: FillOption = None,
    incomplete: IncompleteOption = False,
    list_all: Annotated[bool, typer.Option("--list", help="List all challenges with their limits.")] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Pack test predictions as a challenge wants them, and check the package by its rules.

    Test images without a prediction are predicted. Label values, types of voxels, names and folders become those of the challenge; the same predictions
    give the same file. Facts that were not confirmed in a source of the challenge are listed.
    """
    if list_all:
        from autoseg.delivery.challenge_list import list_challenges

        typer.echo(list_challenges())
        return
    if not runs:
        message, fix = "no run folder given", "pass a run folder, the --out of autoseg run, or --list"
        raise AutosegError(Issue(code="run.missing", where="RUN", message=message, fix=fix))
    require_sound_call(
        *(missing(run, code="run.missing", fix=A_RUN) for run in runs),
        *(
            missing(each, code="submission.no_folder", fix="pass an existing one")
            for each in (spec, images, predictions)
            if each
        ),
    )
    done = autoseg.submit(
        runs,
        kind=kind,
        spec=spec,
        images=images,
        predictions=predictions,
        out=out,
        fill=_filled(fill),
        incomplete=incomplete,
        device=device,
        threads=threads,
        reporter=make_reporter(),
    )
    _show_notes(done.issues)
    typer.echo(f"Submission: {done.path}")
    typer.echo(done.line)


def check_submission(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Archive or folder to upload.", show_default=False)],
    kind: AsOption = "zip",
    spec: ChallengeSpecOption = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Folder of the test images, to compare names and grids.", show_default=False),
    ] = None,
    fill: FillOption = None,
    incomplete: IncompleteOption = False,
) -> None:
    """Check a package that was made elsewhere by the rules of a challenge: names, numbers, types, values, grids."""
    fix = "pass an existing one"
    require_sound_call(*(missing(each, code="submission.no_folder", fix=fix) for each in (file, spec, images) if each))
    done = autoseg.check_submission(
        file, kind=kind, spec=spec, images=images, fill=_filled(fill), incomplete=incomplete, reporter=make_reporter()
    )
    _show_notes(done.issues)
    typer.echo(done.line)


def _show_notes(issues: Sequence[Issue]) -> None:
    for issue in issues:
        typer.echo(as_line(issue), err=True)


def _filled(given: list[str] | None) -> dict[str, str]:
    """Fields by name. Raises `AutosegError` for what has no ``=``."""
    fix = "write FIELD=TEXT, e.g. --fill team=ours"
    bad = [
        Issue(code="submission.bad_field", where="--fill", message=f"{text!r} is not FIELD=TEXT", fix=fix)
        for text in given or ()
        if not text.partition("=")[0] or "=" not in text
    ]
    if bad:
        raise AutosegError(*bad)
    return {name: value for name, _, value in (text.partition("=") for text in given or ())}

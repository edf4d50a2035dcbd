"""The commands that write containers for challenges, and rehearse them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import autoseg
from autoseg.cli.console import faults, make_reporter, missing, require_sound_call
from autoseg.cli.exports import FoldsOption
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import find_model

Method = Literal["invoke", "exec"]
"""How grand-challenge runs an image."""
InterfaceOption = Annotated[
    str | None,
    typer.Option(
        "--interface",
        metavar="NAME|FILE",
        help="Sockets of the phase: a known challenge (isles26, topcow24 ...), a TOML file, or grand-challenge's JSON.",
        show_default=False,
    ),
]
ChannelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--channel",
        metavar="NAME=SLUG",
        help="Input for a channel of the model, where their names do not match; can be repeated.",
        show_default=False,
    ),
]
EmptyOption = Annotated[
    bool,
    typer.Option(
        "--empty-if-failing", help="Write an empty label map for an image that cannot be predicted, instead of failing."
    ),
]
BaseOption = Annotated[
    Path | None,
    typer.Option(
        "--base",
        metavar="TAR",
        help="Also write the image, without Docker, on this base with Python: root file system or docker save file.",
        show_default=False,
    ),
]


def container(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Run folder or bundle file.", show_default=False)],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="New folder for the Docker build context.", show_default=False)
    ],
    kind: Annotated[
        Literal["grand-challenge", "flare", "brats25"], typer.Option("--for", help="Platform that will run it.")
    ] = "grand-challenge",
    interface: InterfaceOption = None,
    channel: ChannelOption = None,
    folds: FoldsOption = None,
    mirroring: Annotated[
        bool, typer.Option("--mirroring/--no-mirroring", help="Test-time mirroring: slower, better.")
    ] = True,
    empty_if_failing: EmptyOption = False,
    tag: Annotated[
        str | None, typer.Option("--tag", help="Name of the image (default: autoseg-DATASET).", show_default=False)
    ] = None,
    base: BaseOption = None,
    method: Annotated[
        Method,
        typer.Option(
            "--method", help="With --base, how grand-challenge runs it: a server, or a process for each case."
        ),
    ] = "invoke",
) -> None:
    """Write a container that predicts for a challenge: program, model, Dockerfile and scripts; with --base also its image."""
    require_sound_call(
        missing(model, code="run.missing", fix="pass a run folder or a bundle file"),
        faults(find_model, model if model.exists() else None),
        missing(base, code="container.not_an_image", fix="pass a tar of a root file system, or of docker save"),
    )
    for line in autoseg.container(
        model, out, kind=kind, interface=interface, channels=_named_channels(channel or []), num_folds=folds,
        mirroring=mirroring, empty_if_failing=empty_if_failing, tag=tag, base=base, method=method, reporter=make_reporter(),
    ):  # fmt: skip
        typer.echo(line)


def _named_channels(words: list[str]) -> dict[str, str]:
    """``NAME=SLUG`` of each word. Raises `AutosegError` for other words."""
    pairs = [word.partition("=") for word in words]
    if bad := [word for word, pair in zip(words, pairs, strict=True) if not all(pair)]:
        fix = "write NAME=SLUG, e.g. CT=head-neck-ct"
        issue = Issue(
            code="settings.channel", where=f"--channel {bad[0]}", message="is not of the form NAME=SLUG", fix=fix
        )
        raise AutosegError(issue)
    return {name: slug for name, _, slug in pairs}


def _limit(name: str, what: str) -> Any:
    """The option of a limit of the platform."""
    return typer.Option(name, help=f"{what} (default: that of the challenge).", show_default=False)


def rehearse(
    container: Annotated[
        str,
        typer.Argument(
            metavar="CONTAINER",
            help="Folder that autoseg container wrote, image file, or name of a Docker image.",
            show_default=False,
        ),
    ],
    cases: Annotated[
        Path, typer.Option("--cases", help="Folder of images, with labels or without.", show_default=False)
    ],
    memory: Annotated[str | None, _limit("--memory", "Limit for main memory, e.g. 15g")] = None,
    shm: Annotated[str | None, _limit("--shm", "Size of the shared memory, e.g. 128m")] = None,
    time: Annotated[str | None, _limit("--time", "Time limit for one case, e.g. 10m")] = None,
    method: Annotated[Method, typer.Option("--method", help="Image to run, of a grand-challenge folder.")] = "invoke",
    model: Annotated[
        Path | None,
        typer.Option("--model", help="The model.tar.gz beside an image of grand-challenge.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File for the report as JSON.", show_default=False)] = None,
) -> None:
    """Run a container as its platform does, with its limits, and say whether it would pass. Exit code 1 if not.

    With Docker if its daemon answers, else in Linux namespaces: no network, another user, read-only inputs. One broken image is run, too.
    """
    require_sound_call(missing(cases, code="predict.no_input", fix="pass a folder of images"))
    found, lines = autoseg.rehearse(
        container, cases, memory=memory, shm=shm, time=time, method=method, model=model, reporter=make_reporter()
    )
    for line in lines:
        typer.echo(line)
    if out is not None:
        from autoseg.storage.atomic import save_document

        save_document(out, found)
    if not found.passes:
        raise SystemExit(1)

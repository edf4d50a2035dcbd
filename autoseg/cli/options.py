"""Command line options made from the fields of `Settings`: declared there, once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from autoseg.settings import Option, Settings, StageName, flag_of, options

ORDER: tuple[StageName, ...] = ("check", "fingerprint", "plan", "preprocess", "schedule", "train")
PANELS: dict[StageName, str] = {
    "check": "The dataset",
    "fingerprint": "The plan",
    "plan": "The plan",
    "preprocess": "The plan",
    "schedule": "Training",
    "train": "Training",
}
"""Headings of the help page."""
MACHINE = "This machine (changes no results but last digits)"
OWN_TYPES: dict[str, Any] = {
    "preset": str | None,
    "budget": str | None,
    "target_spacing": str | None,
    "exclude": list[str] | None,
    "set": list[str] | None,
    "configurations": list[str] | None,
    "track": list[str] | None,
}
"""Fields that a command line gives as text, or several times."""
METAVARS = {"budget": "TIME", "target_spacing": "Z,Y,X", "set": "NAME=VALUE", "exclude": "CASE", "preset": "NAME"}
"""What to give, where the type alone does not tell."""

_TARGET = typer.Argument(
    metavar="DATASET|RUN", help="Folder of labelled volumes, or a run folder to resume.", show_default=False
)
TargetArgument = Annotated[Path, _TARGET]
OptionalTarget = Annotated[Path | None, _TARGET]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="Run folder; everything is written here (default: run).", show_default=False),
]
RedoOption = Annotated[
    bool, typer.Option("--redo", help="Train again what was trained from other options or data.", show_default=False)
]
ReplanOption = Annotated[
    bool, typer.Option("--replan", help="Drop edits of plan.json and schedule.json.", show_default=False)
]


def takes_settings(until: StageName) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command take the options of all stages up to ``until``, and pass those that were given as ``wishes``."""
    names = [(name, option) for name, option in options() if ORDER.index(option.stage) <= ORDER.index(until)]

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in signature(function, eval_str=True).parameters.values() if p.name != "wishes"]

        @wraps(function)
        def command(**given: Any) -> None:
            mine = {p.name: given.pop(p.name) for p in own}
            wishes = {name: value for name, value in given.items() if value not in (None, [], ())}
            function(wishes=wishes, **mine)

        shared = [_parameter(name, option) for name, option in names]
        parameters = [*(p.replace(kind=Parameter.KEYWORD_ONLY) for p in own), *shared]
        command.__signature__ = signature(function).replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return declare


def _parameter(name: str, option: Option) -> Parameter:
    kind = OWN_TYPES.get(name) or _plain(Settings.model_fields[name].annotation)
    flag = flag_of(name)
    names = (flag, f"--no-{flag[2:]}") if kind is bool else (flag,)
    declared = typer.Option(
        *_slashed(names),
        help=option.help,
        show_default=False,
        rich_help_panel=PANELS[option.stage] if option.decides else MACHINE,
        metavar=None if kind is bool else METAVARS.get(name),
    )
    annotation: Any = Annotated[Union[kind, None], declared]  # noqa: UP007  # known only when it runs
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=None)


def _slashed(names: tuple[str, ...]) -> tuple[str, ...]:
    """Typer writes a switch and its opposite as one name."""
    return names if len(names) == 1 else (f"{names[0]}/{names[1]}",)


def _plain(annotation: Any) -> Any:
    """A field's type without its constraints and its None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain(get_args(annotation)[0])
    if origin in (Union, UnionType):
        (kind,) = [each for each in get_args(annotation) if each is not type(None)]
        return _plain(kind)
    return annotation

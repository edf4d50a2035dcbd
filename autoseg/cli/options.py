"""Command line options made from the fields of `Settings`: declared there, once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Union

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
"""Headings of the help text."""
MACHINE = "This machine (changes at most the last digits of results)"
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
    bool, typer.Option("--redo", help="Redo what was made from other options or data.", show_default=False)
]
ReplanOption = Annotated[
    bool, typer.Option("--replan", help="Discard edits of plan.json and schedule.json.", show_default=False)
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

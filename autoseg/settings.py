"""Every option of a run, once: the command line, ``settings.json``, Python and the report derive from these fields."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError

from autoseg.issues import AutosegError, Issue
from planners import Document, Preset

StageName = Literal[
    "check", "fingerprint", "plan", "preprocess", "schedule", "train", "validate", "select", "predict", "report"
]
STAGES: tuple[StageName, ...] = get_args(StageName)
"""In the order in which a run does them."""
DURATION = re.compile(r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?")


@dataclass(frozen=True, slots=True)
class Option:
    """How users see a field of `Settings`."""

    help: str
    """With unit and, where it is not obvious, the default."""
    stage: StageName
    """The first stage that reads it: commands that stop before that stage do not offer it."""
    metavar: str = "TEXT"
    """Placeholder in the help text."""
    decides: bool = True
    """Changing it changes results, which are then redone."""
    choices: tuple[str, ...] = ()
    """Values that shells offer."""
    also: str = ""
    """Another name on the command line."""


def parse_duration(value: object) -> object:
    """Seconds of ``90s``, ``20m``, ``2h`` or ``1h30m``; numbers are seconds. Raises `ValueError` for other text."""
    if not isinstance(value, str):
        return value
    match = DURATION.fullmatch(value.strip().lower())
    if match is None or not value.strip():
        raise ValueError(f"{value!r} is not a duration; write for example 90s, 20m, 2h or 1h30m")
    hours, minutes, seconds = (float(match[unit] or 0) for unit in "hms")
    return hours * 3600 + minutes * 60 + seconds


def parse_spacing(value: object) -> object:
    """Three numbers of ``2.5,0.8,0.8``; other values pass. Raises `ValueError` for other text."""
    if not isinstance(value, str):
        return value
    try:
        z, y, x = map(float, value.split(","))
    except ValueError:
        raise ValueError(f"{value!r} is not three numbers; write for example 2.5,0.8,0.8") from None
    return z, y, x


def parse_names(value: object) -> object:
    """Names separated by commas, as one text or several; each once."""
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(dict.fromkeys(name.strip() for part in value for name in part.split(",") if name.strip()))
    return value


def parse_changes(value: object) -> object:
    """``plan.3d_fullres.patch_shape=64,160,160`` and the like, as texts or as a mapping, as a mapping of texts."""
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, Mapping):
        plain = {k: ",".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for k, v in value.items()}
    elif isinstance(value, list | tuple) and all(isinstance(part, str) and "=" in part for part in value):
        plain = {name.strip(): text.strip() for name, _, text in (part.partition("=") for part in value)}
    else:
        raise ValueError(f"{value!r} does not set a value; write for example plan.3d_fullres.patch_shape=64,160,160")
    for name in plain:
        if name.partition(".")[0] not in ("plan", "schedule") or not name.partition(".")[2]:
            raise ValueError(f"{name!r} starts with neither plan. nor schedule.")
    return plain


def parse_part(text: str) -> tuple[int, int]:
    """K and N of ``K/N``. Raises `AutosegError` for other text, and for a K that is not between 1 and N."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        message, fix = f"{text!r} is no part", "pass K/N with K from 1 to N, such as 2/8"
        raise AutosegError(Issue(code="settings.part", where="--part", message=message, fix=fix))
    return int(first), int(count)


def known_device(name: str) -> str:
    """The name of a kind of device, or of several with commas, whether this machine has them or not. Raises `ValueError` for others."""
    names = [each.strip() for each in name.split(",")]
    if name != "auto" and not all(re.fullmatch(r"(?:cpu|cuda|mps)(?::\d+)?", each) for each in names):
        raise ValueError("not a device; write auto, cpu, cuda, cuda:1, mps, or several such as cuda:0,cuda:2")
    return ",".join(names)


def whole_path(path: Path | None) -> Path | None:
    """A path that stays valid when the next call is made from another folder."""
    return None if path is None else path.absolute()


OptionalPath = Annotated[Path | None, AfterValidator(whole_path)]
Names = Annotated[tuple[str, ...], BeforeValidator(parse_names)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(Document):
    """``settings.json``: the options of a run. Fields also take what a command line gives (``2h``, ``1,0.8,0.8``)."""

    model_config = ConfigDict(strict=False)

    schema_version: Literal[1] = 1
    dataset: Annotated[Path, AfterValidator(whole_path)]
    """Folder of labelled volumes."""
    layout: Annotated[str | None, Option("Layout to use if several match.", "check", "NAME")] = None
    spec: Annotated[OptionalPath, Option("Spec file (TOML) that describes the dataset's layout.", "check", "FILE")] = (
        None
    )
    skip_bad: Annotated[
        bool, Option("Leave out cases with errors instead of stopping; the report names them.", "check")
    ] = False
    exclude: Annotated[
        Names,
        Option(
            "Leave out this case; can be repeated. A later call replaces the whole list (none: no case).",
            "check",
            "CASE",
        ),
    ] = ()
    workers: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Option(
            "Worker processes for reading and preprocessing (default: one per core).", "check", "INTEGER", decides=False
        ),
    ] = None
    strict_reference: Annotated[bool, Option("Plan exactly as nnU-Net does, in file axes.", "fingerprint")] = False
    preset: Annotated[Preset, Option("Networks to plan (default: default).", "plan", "NAME")] = "default"
    memory_gb: Annotated[
        Positive | None, Option("GPU memory to plan for, in GB (1e9 bytes; default: the preset's).", "plan", "GB")
    ] = None
    target_spacing: Annotated[
        tuple[Positive, Positive, Positive] | None,
        BeforeValidator(parse_spacing),
        Option("Spacing at full resolution, Z,Y,X in mm (default: planned).", "plan", "Z,Y,X"),
    ] = None
    pretrained: Annotated[OptionalPath, Option("Run folder or bundle to fine-tune, with its plan.", "plan", "RUN")] = (
        None
    )
    set: Annotated[
        dict[str, str],
        BeforeValidator(parse_changes),
        Option(
            "Change a value of the plan or the schedule, e.g. plan.3d_fullres.patch_shape=64,160,160 or "
            "schedule.epochs=250; can be repeated.",
            "plan",
            "NAME=VALUE",
        ),
    ] = Field(default_factory=dict)
    work: Annotated[
        OptionalPath,
        Option("Folder for preprocessed data (default: in the run folder).", "preprocess", "FOLDER", decides=False),
    ] = None
    budget: Annotated[
        Positive | None,
        BeforeValidator(parse_duration),
        Option(
            "Time for the whole run, e.g. 20m or 2h (default: one hour on a CPU, nnU-Net's 1000 epochs on a GPU); +1h gives a "
            "run that much more, and goes on from its trained weights.",
            "schedule",
            "TIME",
        ),
    ] = None
    """Seconds."""
    anyway: Annotated[
        bool, Option("Train even if the time is too short to learn anything.", "schedule", decides=False)
    ] = False
    schedule: Annotated[
        OptionalPath, Option("Use this schedule.json instead of measuring the machine.", "schedule", "FILE")
    ] = None
    configurations: Annotated[
        Names,
        Option("Train these configurations of the plan (default: as the schedule's rule chooses).", "schedule", "NAME"),
    ] = ()
    race: Annotated[
        bool, Option("Let candidate networks race on one fold where there is time; else the rule chooses.", "schedule")
    ] = True
    mirroring: Annotated[
        bool, Option("Mirror images in training and prediction where the plan allows it.", "schedule")
    ] = True
    splits: Annotated[
        OptionalPath, Option("JSON file with the folds to use, e.g. nnU-Net's splits_final.json.", "schedule", "FILE")
    ] = None
    folds: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Option("Number of folds; 1 is a hold-out (default: five, or fewer if time is short).", "schedule", "INTEGER"),
    ] = None
    groups: Annotated[
        OptionalPath,
        Option("CSV file with columns case and group; cases of a group stay together.", "schedule", "FILE"),
    ] = None
    select_by: Annotated[
        str | None,
        Option(
            "Choose the configuration that this challenge ranks first, by its classes and metrics (default: by Dice).",
            "select",
            "NAME",
        ),
    ] = None
    leave_one_group_out: Annotated[bool, Option("One fold for each group.", "schedule")] = False
    hold_out_groups: Annotated[
        str | None,
        Option("One fold for each group of this column of --groups-table: leave one site out.", "schedule", "COLUMN"),
    ] = None
    groups_table: Annotated[
        OptionalPath,
        Option(
            "CSV file with a column case or patient and others, such as site, sex or age: scores by each of them.",
            "schedule",
            "FILE",
            decides=False,
        ),
    ] = None
    seed: Annotated[int, Field(ge=0), Option("Random seed (default: 0).", "schedule", "INTEGER")] = 0
    device: Annotated[
        str,
        AfterValidator(known_device),
        Option(
            "auto, cpu, cuda, cuda:1, mps, or several for trainings side by side, such as cuda:0,cuda:2 (default: auto, all GPUs).",
            "schedule",
            "NAME",
            False,
            ("auto", "cpu", "cuda", "mps"),
            also="--devices",
        ),
    ] = "auto"
    ddp: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Option(
            "Processes that train one model together, each on a device of its own (default: 1).",
            "schedule",
            "INTEGER",
            decides=False,
        ),
    ] = None
    threads: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Option(
            "CPU threads; sums are rounded otherwise with another number of them (default: one per core).",
            "schedule",
            "INTEGER",
            decides=False,
        ),
    ] = None
    track: Annotated[
        Names,
        Option("Also write metrics for tensorboard or mlflow.", "train", "NAME", False, ("tensorboard", "mlflow")),
    ] = ()


def options() -> Iterator[tuple[str, Option]]:
    """Name and `Option` of every field that users can set, in order."""
    for name, field in Settings.model_fields.items():
        yield from ((name, each) for each in field.metadata if isinstance(each, Option))


def flag_of(name: str) -> str:
    """A field as the command line calls it: ``--skip-bad``."""
    return f"--{name.replace('_', '-')}"


def make_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from what the user gave. Raises `AutosegError` with all faults, named as on the command line."""
    try:
        return Settings.model_validate(dict(given))
    except ValidationError as error:
        raise AutosegError(*(_issue(fault) for fault in error.errors(include_url=False))) from error


def updated(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """``settings`` with some fields replaced; changes of plan and schedule (``set``) are added to earlier ones.

    ``none`` resets a field to its default.
    """
    reset = [name for name, value in given.items() if value in ("none", ["none"], ("none",))]
    values = {name: getattr(settings, name) for name in Settings.model_fields if name not in reset}
    new = {name: value for name, value in given.items() if name not in reset}
    if "set" in new:
        new["set"] = {**settings.set, **make_settings({"dataset": ".", "set": new["set"]}).set}
    return make_settings({**values, **new})


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A field that two settings give different values."""

    name: str
    option: Option
    before: str
    now: str
    note: str = ""

    def __str__(self) -> str:
        return f"{flag_of(self.name)} was {self.before} and is {self.now}{self.note}"


def differences(before: Settings, now: Settings) -> tuple[Difference, ...]:
    """Fields with an `Option` that differ, in order."""
    pairs = ((name, option, getattr(before, name), getattr(now, name)) for name, option in options())
    return tuple(
        Difference(
            name=name,
            option=option,
            before=describe_value(old, name),
            now=describe_value(new, name),
            note=" (a list replaces the earlier one)" if old and isinstance(old, tuple) and new else "",
        )
        for name, option, old, new in pairs
        if old != new
    )


def given_settings(settings: Settings) -> dict[str, str]:
    """What differs from the defaults, as text, by the name on the command line."""
    defaults = Settings(dataset=settings.dataset)
    return {flag_of(each.name): each.now for each in differences(defaults, settings)}


def changes_of(settings: Settings, document: Literal["plan", "schedule"]) -> dict[str, str]:
    """What ``--set`` changes in one document, by path inside it."""
    own = {name.partition(".")[::2]: text for name, text in settings.set.items()}
    return {path: text for (where, path), text in own.items() if where == document}


def sets_steps(settings: Settings) -> bool:
    """Whether the user set the number of training steps or epochs."""
    return not {"num_steps", "epochs"}.isdisjoint(path.rpartition(".")[2] for path in changes_of(settings, "schedule"))


def fewest_steps_set(settings: Settings) -> int | None:
    """The fewest training steps that the user set for a configuration; None where none are set, or epochs are."""
    changes = changes_of(settings, "schedule").items()
    found = [int(text) for path, text in changes if path.rpartition(".")[2] == "num_steps" and text.isdecimal()]
    return min(found, default=None)


def as_duration(seconds: float) -> str:
    """Seconds as users write them: ``1h30m``, ``20m``, ``90s``; `parse_duration` reads it again."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    parts = (f"{hours:g}h" if hours else "", f"{minutes:g}m" if minutes else "", f"{rest:g}s" if rest else "")
    return "".join(parts)


def describe_value(value: object, name: str) -> str:
    """A field's value as users write it."""
    if name == "budget" and isinstance(value, float):
        return as_duration(value)
    if value is None or value == () or value == {}:
        return "not given"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={text}" for name, text in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def as_arguments(settings: Settings, *, deciding: bool = False) -> tuple[str, ...]:
    """The options that give ``settings`` on a command line, without the dataset; or only those ``deciding`` results."""
    words: list[str] = []
    changed = differences(Settings(dataset=settings.dataset), settings)
    for each in [each for each in changed if each.option.decides or not deciding]:
        match getattr(settings, each.name), flag_of(each.name):
            case bool(value), flag:
                words.append(flag if value else f"--no-{flag[2:]}")
            case dict(value), flag:
                words += [word for key, text in value.items() for word in (flag, f"{key}={text}")]
            case _, flag:
                words += [flag, each.now]
    return tuple(words)


def _issue(fault: Any) -> Issue:
    name = str(fault["loc"][0]) if fault["loc"] else ""
    known = ", ".join(field for field, _ in options())
    if fault["type"] == "extra_forbidden":
        return Issue(code="settings.unknown", where=name, message="unknown option", fix=f"use one of {known}")
    message = str(fault["msg"]).removeprefix("Value error, ")
    return Issue(code="settings.bad_value", where=flag_of(name), message=f"{message} (found {fault['input']!r})")

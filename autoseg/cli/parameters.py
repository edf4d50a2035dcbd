"""The options that commands share, each declared once, and the `Options` that they make."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from autoseg.cli.console import make_reporter, start_log_file
from autoseg.compute.executor import available_cores
from autoseg.imaging.readers import require_text
from autoseg.pipeline.claiming import require_free
from autoseg.pipeline.options import Options
from autoseg.run_folder import RunFolder

DURATION = re.compile(r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?")


class PresetName(StrEnum):
    """Which kind of networks to plan."""

    default = "default"
    resenc = "resenc"
    resenc_m = "resenc_m"
    resenc_l = "resenc_l"
    resenc_xl = "resenc_xl"
    vnet = "vnet"


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``20m``, ``2h``, ``1h30m``. Raises `typer.BadParameter` for anything else, and for zero."""
    match = DURATION.fullmatch(text.strip().lower())
    hours, minutes, seconds = (float(match[unit] or 0) if match else 0.0 for unit in "hms")
    total = hours * 3600 + minutes * 60 + seconds
    if total <= 0:
        raise typer.BadParameter(f"{text!r} is no duration; write it like 90s, 20m, 2h or 1h30m")
    return total


def parse_spacing(text: str) -> tuple[float, float, float]:
    """Three positive numbers, ``Z,Y,X`` in mm. Raises `typer.BadParameter` for anything else."""
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} are not three numbers; write them like 2.5,0.8,0.8") from None
    if not all(0 < value < float("inf") for value in (z, y, x)):
        raise typer.BadParameter(f"{text!r}: spacings must be positive numbers of mm")
    return z, y, x


DatasetArgument = Annotated[Path, typer.Argument(help="Folder of labelled volumes.", show_default=False)]
OptionalDatasetArgument = Annotated[Path | None, typer.Argument(help="Folder of labelled volumes.", show_default=False)]
OutOption = Annotated[
    Path, typer.Option("--out", help="Run folder; everything is written here (default: run).", show_default=False)
]
WorkOption = Annotated[
    Path | None,
    typer.Option("--work", help="Folder for preprocessed data (default: in the run folder).", show_default=False),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Time for the whole run, e.g. 20m or 2h (default: one hour on a CPU, the method's 1000 epochs on a GPU).",
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything that is drawn.")]
ScheduleOption = Annotated[
    Path | None,
    typer.Option("--schedule", help="Follow this schedule.json instead of measuring the machine.", show_default=False),
]
PresetOption = Annotated[PresetName, typer.Option("--preset", help="Kind of networks to plan.")]
MemoryOption = Annotated[
    float | None,
    typer.Option(
        "--memory-gb", help="GPU memory to plan for, in GB (1e9 bytes) (default: the preset's).", show_default=False
    ),
]
TargetSpacingOption = Annotated[
    str | None,
    typer.Option(
        "--target-spacing", help="Spacing of full resolution, Z,Y,X in mm (default: planned).", show_default=False
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict-reference", help="Follow the reference planner to the letter, file axes included.")
]
LayoutOption = Annotated[
    str | None, typer.Option("--layout", help="Name of the layout to take where several fit.", show_default=False)
]
SpecOption = Annotated[
    Path | None,
    typer.Option("--spec", help="TOML file that says where the files of the dataset lie.", show_default=False),
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out cases with errors instead of stopping; the report names them.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="Processes for reading and preprocessing (default: one a core).", show_default=False
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads for computing on a CPU; last digits of results depend on them (default: one a core).",
        show_default=False,
    ),
]
PretrainedOption = Annotated[
    Path | None,
    typer.Option("--pretrained", help="Run folder or bundle to train on from, with its plan.", show_default=False),
]
SplitsOption = Annotated[
    Path | None,
    typer.Option(
        "--splits", help="JSON file with the folds to take, e.g. nnU-Net's splits_final.json.", show_default=False
    ),
]
FoldsOption = Annotated[
    int | None,
    typer.Option(
        "--folds", min=2, help="Number of folds (default: five, fewer where time is short).", show_default=False
    ),
]
GroupsOption = Annotated[
    Path | None,
    typer.Option(
        "--groups", help="CSV file with columns case and group: cases of a group stay together.", show_default=False
    ),
]
LeaveOutOption = Annotated[bool, typer.Option("--leave-one-group-out", help="One fold for each group.")]

SHARED: dict[str, tuple[Any, Any]] = {
    "dataset": (DatasetArgument, Parameter.empty),
    "out": (OutOption, Path("run")),
    "budget": (BudgetOption, None),
    "schedule": (ScheduleOption, None),
    "device": (DeviceOption, "auto"),
    "seed": (SeedOption, 0),
    "preset": (PresetOption, PresetName.default),
    "memory_gb": (MemoryOption, None),
    "target_spacing": (TargetSpacingOption, None),
    "strict_reference": (StrictOption, False),
    "layout": (LayoutOption, None),
    "spec": (SpecOption, None),
    "skip_bad": (SkipBadOption, False),
    "work": (WorkOption, None),
    "workers": (WorkersOption, None),
    "threads": (ThreadsOption, None),
    "pretrained": (PretrainedOption, None),
    "splits": (SplitsOption, None),
    "folds": (FoldsOption, None),
    "groups": (GroupsOption, None),
    "leave_one_group_out": (LeaveOutOption, False),
}
"""Type and default of every shared option, in the order of the help page."""
LOOKING = ("dataset", "out", "layout", "spec", "skip_bad", "workers")
PREPROCESSING = (*LOOKING, "preset", "memory_gb", "target_spacing", "strict_reference", "work", "pretrained")
RUNNING = tuple(SHARED)


def takes(names: tuple[str, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a function of `Options` and options of its own into a command that takes the shared options ``names`` too."""

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in signature(function, eval_str=True).parameters.values() if p.name != "options"]

        @wraps(function)
        def command(**given: Any) -> None:
            mine = {p.name: given.pop(p.name) for p in own}
            function(make_options(**given), **mine)

        shared = [
            Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, (kind, default) in SHARED.items()
            if name in names
        ]
        parameters = [*shared, *(p.replace(kind=Parameter.KEYWORD_ONLY) for p in own)]
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return declare


def make_options(
    dataset: Path,
    out: Path,
    *,
    budget: str | None = None,
    schedule: Path | None = None,
    device: str | None = None,
    seed: int = 0,
    preset: PresetName = PresetName.default,
    memory_gb: float | None = None,
    target_spacing: str | None = None,
    strict_reference: bool = False,
    layout: str | None = None,
    spec: Path | None = None,
    skip_bad: bool = False,
    work: Path | None = None,
    workers: int | None = None,
    threads: int | None = None,
    pretrained: Path | None = None,
    splits: Path | None = None,
    folds: int | None = None,
    groups: Path | None = None,
    leave_one_group_out: bool = False,
) -> Options:
    """Options of a run with what the machine offers filled in; also starts the log file.

    ``device`` is what training and prediction run on, and is looked for at once; none for stages before training.
    """
    num_threads = threads or available_cores()
    if device is not None:
        from autoseg.compute.device import choose_device, set_threads

        set_threads(num_threads)
        device = str(choose_device(device))
    seconds = None if budget is None else parse_duration(budget)
    spacing_mm = None if target_spacing is None else parse_spacing(target_spacing)
    folder = RunFolder(out, work)
    require_text([out, *([] if work is None else [work])])
    require_free(folder, dataset)
    start_log_file(folder)
    return Options(
        dataset=dataset,
        run=folder,
        device_name=device or "cpu",
        num_threads=num_threads,
        num_workers=workers or available_cores(),
        reporter=make_reporter(seconds),
        budget_s=seconds,
        schedule=schedule,
        seed=seed,
        preset=preset.value,
        memory_gb=memory_gb,
        target_spacing_mm=spacing_mm,
        strict_reference=strict_reference,
        layout=layout,
        spec=spec,
        skip_bad=skip_bad,
        pretrained=pretrained,
        splits=splits,
        folds=folds,
        groups=groups,
        leave_one_group_out=leave_one_group_out,
    )

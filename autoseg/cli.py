"""The command line: one caller of the stages, and the only room that prints."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from autoseg.datasets.check_report import CheckReport, failed_report, make_report
from autoseg.datasets.checks import check_dataset
from autoseg.datasets.dataset import DatasetDescription
from autoseg.datasets.discovery import describe_dataset, discover_dataset
from autoseg.datasets.leaving_out import errors_that_remain, leave_out_bad
from autoseg.errors import AutosegError
from autoseg.execution.interruption import treat_termination_as_interrupt
from autoseg.execution.jobs import available_cores
from autoseg.pipeline.interop import PlanSettings, plan_from_nnunet, write_nnunet_plans
from autoseg.pipeline.options import Options
from autoseg.pipeline.stages import fingerprint_stage, plan_stage, preprocess_stage
from autoseg.progress import LogReporter, Reporter, RunClock, TerminalReporter
from autoseg.run_folder import RunFolder, load_document
from planners import DocumentError, PlanningError, explain, write_document

if TYPE_CHECKING:
    from autoseg.pipeline.run import RunResult

# Rooms that need torch, pandas or matplotlib are imported by the commands that use them: looking, planning and preprocessing
# start in a third of the time without.
logger = logging.getLogger("autoseg")
DEMO_BUDGET = "4m"
DURATION = re.compile(r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?")

app = typer.Typer(
    name="autoseg",
    help="From a folder of labelled medical volumes to a cross-validated segmentation model, with one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class PresetName(StrEnum):
    """Which kind of networks to plan."""

    default = "default"
    resenc = "resenc"
    resenc_m = "resenc_m"
    resenc_l = "resenc_l"
    resenc_xl = "resenc_xl"
    vnet = "vnet"


class SubmissionKind(StrEnum):
    """How predictions are packed."""

    msd = "msd"
    folder = "folder"


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
OutOption = Annotated[Path, typer.Option("--out", help="Run folder; everything is written here.", show_default=False)]
WorkOption = Annotated[
    Path | None, typer.Option("--work", help="Folder for preprocessed data [default: in the run folder].", show_default=False)
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Time for the whole run, e.g. 20m or 2h [default: one hour on a CPU, the method's 1000 epochs on a GPU].",
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
    typer.Option("--memory-gb", help="GPU memory to plan for, in GB (1e9 bytes) [default: the preset's].", show_default=False),
]
StrictOption = Annotated[
    bool, typer.Option("--strict-reference", help="Follow the reference planner to the letter, file axes included.")
]
LayoutOption = Annotated[
    str | None, typer.Option("--layout", help="Name of the layout to take where several fit.", show_default=False)
]
SpecOption = Annotated[
    Path | None, typer.Option("--spec", help="TOML file that says where the files of the dataset lie.", show_default=False)
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out cases with errors instead of stopping; the report names them.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes for reading and preprocessing [default: one a core].", show_default=False),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads for training on a CPU [default: one a core].", show_default=False),
]


def add_run_command(name: str, help_text: str, finish: Callable[[Options], None]) -> None:
    """A command that takes all options of a run, does what is missing, and ends with ``finish``."""

    def command(
        dataset: DatasetArgument,
        out: OutOption = Path("run"),
        budget: BudgetOption = None,
        schedule: ScheduleOption = None,
        device: DeviceOption = "auto",
        seed: SeedOption = 0,
        preset: PresetOption = PresetName.default,
        memory_gb: MemoryOption = None,
        strict_reference: StrictOption = False,
        layout: LayoutOption = None,
        spec: SpecOption = None,
        skip_bad: SkipBadOption = False,
        work: WorkOption = None,
        workers: WorkersOption = None,
        threads: ThreadsOption = None,
    ) -> None:
        finish(
            make_options(
                dataset, out, budget=budget, schedule=schedule, device=device, seed=seed, preset=preset, memory_gb=memory_gb,
                strict_reference=strict_reference, layout=layout, spec=spec, skip_bad=skip_bad, work=work,
                workers=workers,
                threads=threads,
            )
        )

    app.command(name, help=help_text)(command)


def run(options: Options) -> None:
    """Everything, with the scores and the places of all results at the end."""
    from autoseg.pipeline.run import run_all

    show_result(options, run_all(options))


def select(options: Options) -> None:
    """Up to the selection."""
    from autoseg.evaluation.tables import format_table
    from autoseg.pipeline.selecting import select_stage

    selected = select_stage(options)
    if selected.summary is not None:
        typer.echo(format_table(selected.summary))
    typer.echo(f"Selection: {options.run.selection}")


def report(options: Options) -> None:
    """Up to the report."""
    from autoseg.pipeline.run import run_all

    typer.echo(f"Report: {run_all(options).report}")


add_run_command(
    "run",
    "Do everything: check, plan, train, cross-validate, select, predict the test images, report. Resumable.",
    run,
)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Run folder of a finished run.", show_default=False)],
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Image file, folder of images, or DICOM series folder.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(help="Folder for the label maps.", show_default=False)],
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write CASE.npz with float32 (classes, z, y, x).")
    ] = False,
    mirroring: Annotated[
        bool, typer.Option("--mirroring/--no-mirroring", help="Average over mirror images where training mirrored.")
    ] = True,
    device: DeviceOption = "auto",
) -> None:
    """Segment new images; finished ones are skipped on a second call."""
    from autoseg.execution.device import choose_device
    from autoseg.inference.folder import predict_cases
    from autoseg.inference.input_cases import find_input_cases
    from autoseg.inference.predictor import Predictor
    from autoseg.pipeline.training import set_threads

    chosen = choose_device(device)
    set_threads(available_cores())
    reporter = make_reporter()
    predictor = Predictor.load(model, device=str(chosen), mirroring=mirroring)
    cases = find_input_cases(source, predictor.model.plan.channels)
    written = predict_cases(predictor, cases, output, probabilities=probabilities, reporter=reporter)
    typer.echo(f"{len(written)} label maps in {output}")


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted label maps.", show_default=False)],
    references: Annotated[Path, typer.Argument(help="Folder of reference label maps of the same names.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="File for all scores [default: PREDICTIONS/summary.json].", show_default=False)
    ] = None,
    tolerance_mm: Annotated[
        float | None,
        typer.Option("--tolerance-mm", min=0.0, help="Tolerance of the surface Dice, in mm [default: 1].", show_default=False),
    ] = None,
    workers: WorkersOption = None,
) -> None:
    """Score predictions against references: Dice, surface distances, volumes; per class and case."""
    from autoseg.evaluation.metrics import DEFAULT_TOLERANCE_MM
    from autoseg.evaluation.summary import evaluate_folder, write_summary
    from autoseg.evaluation.tables import format_table

    summary = evaluate_folder(
        predictions,
        references,
        tolerance_mm=DEFAULT_TOLERANCE_MM if tolerance_mm is None else tolerance_mm,
        num_workers=workers or available_cores(),
        reporter=make_reporter(),
    )
    path = out or predictions / "summary.json"
    write_summary(path, summary)
    typer.echo(format_table(summary))
    typer.echo(f"All scores: {path}")


@app.command()
def check(
    dataset: DatasetArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
    skip_bad: SkipBadOption = False,
    layout: LayoutOption = None,
    spec: SpecOption = None,
    workers: WorkersOption = None,
) -> None:
    """Say what is in a folder and what is wrong with it. Trains nothing, writes nothing. Exit code 1 on errors."""
    num_workers = workers or available_cores()
    reporter = make_reporter()
    try:
        description = discover_dataset(dataset, layout=layout, spec=spec, num_workers=num_workers)
        if not as_json:
            typer.echo(f"Found {describe_dataset(description)}")
        findings = check_dataset(description, num_workers=num_workers, reporter=reporter)
        if skip_bad:
            description = leave_out_bad(description, findings)
    except AutosegError as error:
        if not as_json:
            raise
        typer.echo(write_document(failed_report(dataset, error)))
        raise typer.Exit(1) from error
    show_findings(make_report(description, description.findings if skip_bad else findings), as_json=as_json)
    if errors_that_remain(findings) if skip_bad else any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


def show_findings(report: CheckReport, *, as_json: bool) -> None:
    """All findings, as lines with a count at the end or as one JSON document."""
    if as_json:
        typer.echo(write_document(report))
        return
    for finding in report.findings:
        typer.echo(f"{finding.severity}: {finding.where}: {finding.found}; {finding.mend}")
    typer.echo(f"{report.num_errors} errors, {report.num_warnings + report.num_notes} warnings and notes")


@app.command()
def plan(
    dataset: Annotated[Path | None, typer.Argument(help="Folder of labelled volumes.", show_default=False)] = None,
    out: OutOption = Path("run"),
    preset: PresetOption = PresetName.default,
    memory_gb: MemoryOption = None,
    target_spacing: Annotated[
        str | None,
        typer.Option("--target-spacing", help="Spacing of full resolution, Z,Y,X in mm [default: planned].", show_default=False),
    ] = None,
    strict_reference: StrictOption = False,
    layout: LayoutOption = None,
    spec: SpecOption = None,
    skip_bad: SkipBadOption = False,
    explanation: Annotated[bool, typer.Option("--explain", help="Print every decision with its reason and source.")] = False,
    nnunet_fingerprint: Annotated[
        Path | None, typer.Option("--nnunet-fingerprint", help="Plan from nnU-Net's dataset_fingerprint.json.", show_default=False)
    ] = None,
    nnunet_dataset: Annotated[
        Path | None, typer.Option("--nnunet-dataset", help="The dataset.json that belongs to it.", show_default=False)
    ] = None,
    nnunet_plans: Annotated[
        Path | None, typer.Option("--nnunet-plans", help="Also write the plan as nnU-Net's plans file.", show_default=False)
    ] = None,
    workers: WorkersOption = None,
) -> None:
    """Say what would be done with a dataset, and why. Trains nothing."""
    spacing = None if target_spacing is None else parse_spacing(target_spacing)
    if nnunet_fingerprint is not None and nnunet_dataset is not None and dataset is None:
        sources = (nnunet_fingerprint, nnunet_dataset)
        settings = PlanSettings(preset=preset.value, memory_gb=memory_gb, target_spacing_mm=spacing, strict_reference=strict_reference)
        planned, ending = plan_from_nnunet(*sources, settings)
    elif dataset is not None and nnunet_fingerprint is None and nnunet_dataset is None:
        options = make_options(
            dataset, out, preset=preset, memory_gb=memory_gb, strict_reference=strict_reference, layout=layout, spec=spec,
            skip_bad=skip_bad,
            workers=workers,
        )
        description, planned = plan_stage(replace(options, target_spacing_mm=spacing))
        ending = description.file_ending
        typer.echo(f"Plan: {options.run.plan}")
    else:
        raise typer.BadParameter("give DATASET, or both --nnunet-fingerprint and --nnunet-dataset")
    if nnunet_plans is not None:
        write_nnunet_plans(nnunet_plans, planned, file_ending=ending)
        typer.echo(f"nnU-Net plans: {nnunet_plans}")
    if explanation or (dataset is None and nnunet_plans is None):
        typer.echo(explain(planned))


@app.command()
def submit(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder with test predictions.", show_default=False)],
    kind: Annotated[SubmissionKind, typer.Option("--as", help="msd: zip with a task folder; folder: plain files.")] = (
        SubmissionKind.msd
    ),
    out: Annotated[Path, typer.Option("--out", help="File or folder to write.")] = Path("submission.zip"),
) -> None:
    """Pack the predictions of the test images as a challenge wants them."""
    from autoseg.delivery.submission import pack_submission

    files = RunFolder(run_folder)
    description = load_document(DatasetDescription, files.dataset)
    packed = pack_submission(files.predictions, description, kind=kind.value, out=out)
    typer.echo(f"Submission: {packed}")


@app.command()
def fingerprint(
    dataset: DatasetArgument,
    out: OutOption = Path("run"),
    layout: LayoutOption = None,
    spec: SpecOption = None,
    skip_bad: SkipBadOption = False,
    workers: WorkersOption = None,
) -> None:
    """Measure sizes, spacings and intensities of a dataset."""
    options = make_options(dataset, out, layout=layout, spec=spec, skip_bad=skip_bad, workers=workers)
    fingerprint_stage(options)
    typer.echo(f"Fingerprint: {options.run.fingerprint}")


@app.command()
def preprocess(
    dataset: DatasetArgument,
    out: OutOption = Path("run"),
    preset: PresetOption = PresetName.default,
    memory_gb: MemoryOption = None,
    strict_reference: StrictOption = False,
    layout: LayoutOption = None,
    spec: SpecOption = None,
    skip_bad: SkipBadOption = False,
    work: WorkOption = None,
    workers: WorkersOption = None,
) -> None:
    """Crop, normalise and resample every case for every configuration that may be trained."""
    options = make_options(
        dataset, out, preset=preset, memory_gb=memory_gb, strict_reference=strict_reference, layout=layout, spec=spec,
        skip_bad=skip_bad,
        work=work, workers=workers,
    )
    _, planned = preprocess_stage(options)
    typer.echo(f"Preprocessed data: {options.run.preprocessed(planned.configurations[0].data).parent}")


@app.command()
def train(
    dataset: DatasetArgument,
    out: OutOption = Path("run"),
    configuration: Annotated[
        str | None, typer.Option("--configuration", help="Train only this one [default: all scheduled].", show_default=False)
    ] = None,
    fold: Annotated[int | None, typer.Option("--fold", min=0, help="Train only this fold [default: all].", show_default=False)] = None,
    budget: BudgetOption = None,
    schedule: ScheduleOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    preset: PresetOption = PresetName.default,
    memory_gb: MemoryOption = None,
    strict_reference: StrictOption = False,
    layout: LayoutOption = None,
    spec: SpecOption = None,
    skip_bad: SkipBadOption = False,
    work: WorkOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Train and validate; different folds may train at once in one run folder."""
    from autoseg.pipeline.training import train_stage

    options = make_options(
        dataset, out, budget=budget, schedule=schedule, device=device, seed=seed, preset=preset, memory_gb=memory_gb,
        strict_reference=strict_reference, layout=layout, spec=spec, skip_bad=skip_bad, work=work, workers=workers,
        threads=threads,
    )
    train_stage(options, configuration=configuration, fold=fold)
    typer.echo(f"Models: {options.run.models}")


add_run_command(
    "select", "Choose the best configuration or ensemble, and its postprocessing, by cross-validation.", select
)
add_run_command(
    "report", "Write the report page; does first what is missing before it, test predictions included.", report
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the phantom dataset and its run.")] = Path("demo"),
    budget: BudgetOption = DEMO_BUDGET,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
) -> None:
    """Make a small phantom dataset and do the main job on it."""
    from autoseg.datasets.phantom import make_phantom_dataset
    from autoseg.pipeline.run import run_all

    dataset = out / "Task99_Phantom"
    if not (dataset / "dataset.json").exists():
        make_phantom_dataset(dataset, seed=seed)
        typer.echo(f"Made a phantom dataset in {dataset}")
    options = make_options(dataset, out / "run", budget=budget, device=device, seed=seed)
    show_result(options, run_all(options))
    typer.echo(f"Score them:  autoseg evaluate {options.run.predictions} {dataset / 'labelsTs'}")


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
    strict_reference: bool = False,
    layout: str | None = None,
    spec: Path | None = None,
    skip_bad: bool = False,
    work: Path | None = None,
    workers: int | None = None,
    threads: int | None = None,
) -> Options:
    """Options of a run with what the machine offers filled in; also starts the log file.

    ``device`` is what training and prediction run on, and is looked for at once; none for stages before training.
    """
    num_threads = threads or available_cores()
    if device is not None:
        from autoseg.execution.device import choose_device
        from autoseg.pipeline.training import set_threads

        set_threads(num_threads)
        device = str(choose_device(device))
    seconds = None if budget is None else parse_duration(budget)
    folder = RunFolder(out, work)
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
        strict_reference=strict_reference,
        layout=layout,
        spec=spec,
        skip_bad=skip_bad,
    )


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


def start_log_file(folder: RunFolder) -> None:
    """Keep every line in the run's ``log.txt``. Raises `AutosegError` where the folder cannot be written."""
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(folder.log)
    except OSError as error:
        raise AutosegError(
            f"{folder.root} cannot be written ({error.strerror or error}); choose another run folder with --out"
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # A full disk is reported by the stage that meets it; a log line that no longer fits must not add a traceback.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)


def show_result(options: Options, result: RunResult) -> None:
    """The scores, and where everything lies."""
    from autoseg.evaluation.tables import format_table

    if result.selected.summary is not None:
        typer.echo("Cross-validation: every case predicted by a network that did not see it")
        typer.echo(format_table(result.selected.summary))
    else:
        typer.echo(f"Nothing was cross-validated: {result.selected.selection.reason}")
    typer.echo(f"Model:       {options.run.root}  (autoseg predict {options.run.root} INPUT OUTPUT)")
    typer.echo(f"Report:      {result.report}")
    if result.predictions:
        typer.echo(f"Predictions: {options.run.predictions}  ({len(result.predictions)} test images)")


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors meant for the user become a message and exit code 1; Ctrl-C ends quietly with 130."""
    try:
        yield
    except (AutosegError, DocumentError, PlanningError) as error:
        typer.secho(f"autoseg: {error}", fg=typer.colors.RED, err=True)
        logger.debug("failed", exc_info=error)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        typer.secho("stopped; the same command goes on where this one was", err=True)
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def main(call: Callable[[], object] = app) -> None:
    """Entry point of the ``autoseg`` command."""
    treat_termination_as_interrupt()
    with readable_errors():
        call()

"""All commands: parse, call the front door, print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import typer

import autoseg
from autoseg.cli.console import (
    OptionalTarget,
    faults,
    make_reporter,
    missing,
    no_run,
    require_sound_call,
    show_issues,
    show_next_step,
    show_result,
    show_scores,
    stage_command,
)
from autoseg.cli.containers import container, rehearse
from autoseg.cli.exports import FoldsOption, export, measure
from autoseg.cli.options import (
    A_RUN,
    CasesOption,
    ClusterOption,
    DatasetArgument,
    DeviceOption,
    DryRunOption,
    InputArgument,
    OutputArgument,
    RunArgument,
    SlurmOption,
    ThreadsOption,
    WorkersOption,
)
from autoseg.cli.scores import (
    ChallengeOption,
    GroupsOption,
    MetricsOption,
    ResourcesOption,
    ScoresOption,
    ToleranceOption,
    compare,
    place_for_scores,
    show_challenge,
    show_resources,
)
from autoseg.cli.service import serve
from autoseg.cli.submissions import check_submission, submit
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import (
    check_free,
    find_model,
    require_folder_for_predictions,
    require_place_for_predictions,
    require_place_for_run,
)
from autoseg.settings import as_arguments, make_settings, parse_part
from planners import write_document

# All else is imported by the functions that use it: help, wrong calls and wrong paths are answered at once.


@stage_command(until="select")
def run(
    dataset: Path,
    out: Path | None,
    cluster: ClusterOption = None,
    slurm_options: SlurmOption = "",
    dry_run: DryRunOption = False,
    **options: Any,
) -> None:
    """Do everything: check, plan, train, cross-validate, select, predict the test images, report. Resumable."""
    if sent := _cluster_words(cluster, slurm_options, dry_run):
        if dry_run:
            return _show_scripts(autoseg.api.job_scripts(dataset, out, **sent, **options))
        options |= sent
    done = autoseg.run(dataset, out, **options)
    if done.ranks is None or not done.ranks.rank:  # others only helped to train
        show_result(done)


def _cluster_words(cluster: str | None, slurm_options: str, dry_run: bool) -> dict[str, Any]:
    """What says where the work is done; nothing for this machine. Raises `AutosegError` for options that need another cluster."""
    from autoseg.compute.cluster import parse_cluster, parse_slurm_options

    kind = None if cluster is None else parse_cluster(cluster).kind
    parse_slurm_options(slurm_options)
    if kind != "slurm" and (needless := ["--slurm-options"] * bool(slurm_options) + ["--dry-run"] * dry_run):
        message, fix = "needs --cluster slurm", "add it, or omit this"
        raise AutosegError(*(Issue(code="settings.contradiction", where=w, message=message, fix=fix) for w in needless))
    return {} if cluster is None else {"cluster": cluster, "slurm_options": slurm_options}


def _show_scripts(scripts: list[Path]) -> None:
    for script in scripts:
        typer.echo(f"Job script: {script}")
    if not any(script.name == "train.sh" for script in scripts) and any(s.name == "prepare.sh" for s in scripts):
        typer.echo("Trainings are known after prepare.sh: submit it, and call this again.")


@stage_command(until="train")
def train(
    dataset: Path,
    out: Path | None,
    configuration: Annotated[
        str | None,
        typer.Option(
            "--configuration",
            help="Train only this configuration, after the stages it needs (default: all scheduled).",
            show_default=False,
        ),
    ] = None,
    fold: Annotated[
        int | None, typer.Option("--fold", min=0, help="Train only this fold (default: all).", show_default=False)
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for a fold that another process trains, instead of refusing.")
    ] = False,
    within: Annotated[
        str | None,
        typer.Option(
            "--within",
            metavar="TIME",
            help="Time for the one fold of --configuration and --fold, validation included, e.g. 20m: where a budget decides, its steps "
            "follow the pace.",
            show_default=False,
        ),
    ] = None,
    cluster: ClusterOption = None,
    slurm_options: SlurmOption = "",
    dry_run: DryRunOption = False,
    **options: Any,
) -> None:
    """Train and validate. Different folds can train in one run folder at the same time."""
    options |= {"configuration": configuration, "fold": fold}
    if sent := _cluster_words(cluster, slurm_options, dry_run):
        if dry_run:
            return _show_scripts(autoseg.api.job_scripts(dataset, out, until="train", **sent, **options))
        options |= sent
    done = autoseg.train(dataset, out, wait=wait, within=within, **options)
    if done.ranks is None or not done.ranks.rank:
        typer.echo(f"Models: {done.folder.models}")


@stage_command(until="select", replans=False)
def select(dataset: Path, out: Path | None, cluster: CasesOption = None, **options: Any) -> None:
    """Choose the best configuration or ensemble, and its postprocessing, by cross-validation. Finished models are not retrained."""
    done = autoseg.select(dataset, out, cluster=cluster, **options)
    show_scores(done)
    typer.echo(f"Selection: {done.folder.selection}")


@stage_command(until="select", replans=False)
def report(dataset: Path, out: Path | None, **options: Any) -> None:
    """Write the report page, after what is not done yet; of a finished model without training anything."""
    done = autoseg.report(dataset, out, **options)
    if done.report.is_file():
        typer.echo(f"Report: {done.report}")


@stage_command(until="fingerprint", replans=False)
def fingerprint(dataset: Path, out: Path | None, cluster: CasesOption = None, **options: Any) -> None:
    """Measure sizes, spacings and intensities of a dataset."""
    typer.echo(f"Fingerprint: {autoseg.fingerprint(dataset, out, cluster=cluster, **options).folder.fingerprint}")


@stage_command(until="preprocess")
def preprocess(dataset: Path, out: Path | None, cluster: CasesOption = None, **options: Any) -> None:
    """Crop, normalise and resample every case for every configuration that can be trained."""
    done = autoseg.preprocess(dataset, out, cluster=cluster, **options)
    typer.echo(f"Preprocessed data: {done.folder.all_preprocessed}")


@stage_command(until="schedule")
def schedule(dataset: Path, out: Path | None, cluster: CasesOption = None, **options: Any) -> None:
    """Do all before training: the last step times this machine and decides what is trained for how long."""
    typer.echo(f"Schedule: {autoseg.schedule(dataset, out, cluster=cluster, **options).folder.schedule}")


def status(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
) -> None:
    """Show which parts of a run are done, running (and where), waiting or failed (with the log)."""
    require_sound_call(no_run(run_folder))
    units = autoseg.status(run_folder)
    width = max(len(unit.name) for unit in units)
    for unit in units:
        details = "; ".join(text for text in (unit.where, unit.note) if text)
        typer.echo(f"{unit.name:{width}}  {unit.state:<9}  {details}".rstrip())


@stage_command(until="plan")
def plan(
    dataset: OptionalTarget = None,
    out: Path | None = None,
    explanation: Annotated[
        bool, typer.Option("--explain", help="Print every decision with its reason and source.")
    ] = False,
    nnunet_fingerprint: Annotated[
        Path | None,
        typer.Option("--nnunet-fingerprint", help="Plan from nnU-Net's dataset_fingerprint.json.", show_default=False),
    ] = None,
    nnunet_dataset: Annotated[
        Path | None, typer.Option("--nnunet-dataset", help="The dataset.json of that dataset.", show_default=False)
    ] = None,
    nnunet_plans: Annotated[
        Path | None,
        typer.Option("--nnunet-plans", help="Also write the plan as an nnU-Net plans file.", show_default=False),
    ] = None,
    **options: Any,
) -> None:
    """Show what would be done with a dataset, and why. Trains nothing."""
    from autoseg.interop.nnunet_plans import require_place_for_plans, write_nnunet_plans
    from autoseg.stages.plan import planned as rules_plan
    from planners import explain, explain_schedule

    if nnunet_plans is not None:
        inputs = (nnunet_fingerprint, nnunet_dataset, options.get("spec"), options.get("pretrained"))
        require_place_for_plans(nnunet_plans, [path for path in inputs if path is not None])
    if dataset is None and nnunet_fingerprint is not None and nnunet_dataset is not None:
        planned, ending, reader = _plan_from_nnunet(nnunet_fingerprint, nnunet_dataset, out, options)
        own, scheduled = None, None
    elif dataset is not None and nnunet_fingerprint is None and nnunet_dataset is None:
        if nnunet_plans is not None and not options.get("strict_reference"):
            raise typer.BadParameter(
                "--nnunet-plans needs --strict-reference here: without it plan axes are anatomical, but nnU-Net uses file "
                "axes, so spacing, patch and transposition would refer to different axes"
            )
        done = autoseg.plan(dataset, out, **options)
        planned, ending, reader = done.plan, done.dataset.file_ending, None
        typer.echo(f"Plan: {done.folder.plan}")
        own, scheduled = rules_plan(done, changed=False), done.schedule if done.folder.schedule.is_file() else None
    else:
        raise typer.BadParameter("pass DATASET, or both --nnunet-fingerprint and --nnunet-dataset")
    if nnunet_plans is not None:
        kept = write_nnunet_plans(nnunet_plans, planned, file_ending=ending, reader=reader)
        others = f" (kept the existing {', '.join(kept)})" if kept else ""
        typer.echo(f"nnU-Net plans: {nnunet_plans}{others}")
    if explanation or (dataset is None and nnunet_plans is None and out is None):
        typer.echo(explain(planned, own=own))
        if scheduled is not None:
            typer.echo(explain_schedule(scheduled))


def _plan_from_nnunet(
    fingerprint: Path, description: Path, out: Path | None, options: dict[str, Any]
) -> tuple[Any, str, str | None]:
    """The plan, file ending and reader of a dataset that is known only from nnU-Net's files."""
    from autoseg.interop.nnunet_plans import plan_from_nnunet
    from autoseg.run_folder import RunFolder
    from autoseg.settings import flag_of
    from autoseg.settings import options as all_options
    from autoseg.stages.begin import require_free_for_plan
    from autoseg.storage.atomic import save_document

    used = {"preset", "memory_gb", "target_spacing", "strict_reference"}
    given = {name: options[name] for name, _ in all_options() if name in options}
    if needless := [flag_of(name) for name in given if name not in used]:
        raise typer.BadParameter(f"{', '.join(needless)}: not used with --nnunet-fingerprint, which reads no images")
    if out is not None:
        require_free_for_plan(RunFolder(out), description.parent)
    wanted = make_settings({"dataset": description.parent, **given})
    planned, found = plan_from_nnunet(
        fingerprint,
        description,
        preset=wanted.preset,
        memory_gb=wanted.memory_gb,
        target_spacing_mm=wanted.target_spacing,
        strict_reference=wanted.strict_reference,
    )
    if out is not None:
        save_document(RunFolder(out).plan, planned)
        typer.echo(f"Plan: {RunFolder(out).plan}")
    return planned, found.file_ending, found.reader


@stage_command(until="check")
def check(
    dataset: DatasetArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
    **options: Any,
) -> None:
    """Show what is in a folder and what is wrong with it. Trains nothing, writes nothing. Exit code 1 on errors."""
    from autoseg.data.checks.report import failed_report

    options_given = {name: value for name, value in options.items() if name != "reporter"}
    try:
        found = autoseg.check(dataset, **options)
    except AutosegError as error:
        if not as_json:
            raise
        typer.echo(write_document(failed_report(dataset, error)))
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(write_document(found))
    else:
        typer.echo(f"Found {found.summary}")
        show_issues(found)
        show_next_step(found, dataset, as_arguments(make_settings({"dataset": dataset, **options_given})))
    if found.num_errors:
        raise typer.Exit(1)


SPEC_HELP = "Spec file (TOML) that describes INPUT's layout."
InputSpecOption = Annotated[Path | None, typer.Option("--spec", help=SPEC_HELP, show_default=False)]
ProbabilitiesOption = Annotated[
    bool,
    typer.Option(
        "--probabilities",
        help="Also write calibrated maps (_maps, NIfTI) and CASE.npz with float32 (classes, z, y, x).",
    ),
]
DoubtOption = Annotated[
    bool,
    typer.Option(
        "--doubt",
        help="Also write maps of entropy and of disagreement of folds, and the expected Dice; takes twice as long.",
    ),
]
EveryWindowOption = Annotated[
    bool, typer.Option("--every-window", help="Compute every window, even of constant regions such as air.")
]
MIRRORING_HELP = "Average over mirrored images if training used mirroring."
MirroringOption = Annotated[bool, typer.Option("--mirroring/--no-mirroring", help=MIRRORING_HELP)]
FAST_HELP = "One fold, no mirroring, larger steps; what it costs: docs/guides/predict.md#faster, autoseg measure."
FastOption = Annotated[bool, typer.Option("--fast", help=FAST_HELP)]
STEP_HELP = "Distance of windows, as a share of the patch. [default: 0.5, with --fast 0.75]"
StepOption = Annotated[float | None, typer.Option("--step", min=0.1, max=1, help=STEP_HELP, show_default=False)]
ENGINE_HELP = "For an exported model: onnxruntime (default), openvino or openvino-bfloat16."
EngineOption = Annotated[str | None, typer.Option("--engine", metavar="NAME", help=ENGINE_HELP, show_default=False)]
StrictOption = Annotated[bool, typer.Option("--strict", help="Refuse images unlike the training data.")]
AS_HELP = "Write DICOM objects of DICOM series instead: dicom-seg, dicom-labelmap or rtstruct."
AsOption = Annotated[str | None, typer.Option("--as", metavar="NAME", help=AS_HELP, show_default=False)]
TERMS_HELP = "CSV file with codes and colours of classes, for --as."
TermsOption = Annotated[Path | None, typer.Option("--terms", help=TERMS_HELP, show_default=False)]
PART_HELP = "Predict only the K-th of N equal parts."
PartOption = Annotated[str | None, typer.Option("--part", metavar="K/N", help=PART_HELP, show_default=False)]
MEMORY_HELP = "Limit for main memory, in GB. [default: free memory]"
MemoryOption = Annotated[float | None, typer.Option("--memory-gb", min=0.1, help=MEMORY_HELP, show_default=False)]


def predict(
    model: Annotated[
        Path,
        typer.Argument(help="Run folder, bundle file, exported model, or a model in RUN/previous.", show_default=False),
    ],
    source: InputArgument = None,
    output: OutputArgument = None,
    layout: Annotated[
        str | None, typer.Option("--layout", help="Layout of INPUT, if not the training data's.", show_default=False)
    ] = None,
    spec: InputSpecOption = None,
    part: PartOption = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="End well even if images cannot be predicted.")] = False,
    probabilities: ProbabilitiesOption = False,
    doubt: DoubtOption = False,
    mirroring: MirroringOption = True,
    kind: AsOption = None,
    terms: TermsOption = None,
    fast: FastOption = False,
    step: StepOption = None,
    folds: FoldsOption = None,
    engine: EngineOption = None,
    every_window: EveryWindowOption = False,
    memory_gb: MemoryOption = None,
    strict: StrictOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    cluster: ClusterOption = None,
    slurm_options: SlurmOption = "",
) -> None:
    """Segment new images. A second call skips images that are done and have not changed; several calls share the work."""
    require_sound_call(
        faults(find_model, model),
        missing(source, code="predict.no_input", fix="pass an image file, a folder of images or a DICOM series folder"),
        faults(parse_part, part),
        faults(require_place_for_predictions, output),
        faults(_require_folder_or_image, output),
        _own_images_only(source, output, {"--layout": layout, "--spec": spec, "--part": part, "--cluster": cluster,
                                          "--probabilities": probabilities or None, "--doubt": doubt or None, "--as": kind, "--terms": terms,
                                          "--no-mirroring": None if mirroring else True, "--fast": fast or None, "--step": step, "--folds": folds, "--engine": engine}),
        faults(_require_kind, kind),
        missing(terms, code="structures.unreadable", fix="pass a CSV file"),
        settings={"layout": layout, "spec": spec, "device": device},
    )  # fmt: skip
    options: dict[str, Any] = {
        "layout": layout, "spec": spec, "skip_bad": skip_bad, "probabilities": probabilities, "doubt": doubt,
        "mirroring": mirroring, "fast": fast, "step": step, "folds": folds, "engine": engine,
        "kind": kind, "terms": terms, "every_window": every_window, "memory_gb": memory_gb, "device": device, "strict": strict, "threads": threads, "part": part, "reporter": make_reporter(),
    }  # fmt: skip
    sent = _cluster_words(cluster, slurm_options, dry_run=False)
    if sent and source is not None and output is not None:
        written = autoseg.api.predict_parts(model, source, output, **sent, **options)
    else:
        written = autoseg.predict(model, source, output, **options)
    if written:
        typer.echo(f"{'Label maps' if kind is None else 'DICOM objects'}: {output or written[0].parent}")


def _own_images_only(source: Path | None, output: Path | None, options: Mapping[str, Any]) -> Iterator[Issue]:
    """Issues with a call without INPUT or OUTPUT."""
    if source is not None and output is None:
        yield Issue(
            code="predict.no_output", where="OUTPUT", message="is missing", fix="pass a folder for the label maps"
        )
    if source is None:
        for name in (name for name, value in options.items() if value is not None):
            message, fix = "needs INPUT and OUTPUT: own test images follow the run's options", "add them, or omit this"
            yield Issue(code="settings.contradiction", where=name, message=message, fix=fix)


def _require_kind(kind: str) -> None:
    from autoseg.imaging.writers import parse_kind

    parse_kind(kind)


def _require_folder_or_image(output: Path) -> None:
    if output.is_file():
        from autoseg.imaging.readers import image_ending

        if not image_ending(output):
            require_folder_for_predictions(output)


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Folder of predicted label maps, or of CASE/CLASS masks.", show_default=False)
    ],
    references: Annotated[
        Path,
        typer.Argument(
            help="Folder of reference label maps or masks of the same cases, or a dataset.", show_default=False
        ),
    ],
    out: ScoresOption = None,
    challenge: ChallengeOption = None,
    metrics: MetricsOption = "",
    resources: ResourcesOption = None,
    tolerance_mm: ToleranceOption = None,
    groups_table: GroupsOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse predictions without a reference, and the reverse.")
    ] = False,
    workers: WorkersOption = None,
    cluster: CasesOption = None,
) -> None:
    """Score predictions against references: Dice, surface distances, volumes, rates; per class and case, with intervals.

    Two files are scored as one case. In folders names may differ by words such as _mask, _seg, _pred or _0000, and by their endings; what has no counterpart is listed.
    Classes have their names in datasets and in folders that `autoseg predict` wrote, and are named by value elsewhere.
    """
    fix = "pass a folder of label maps"
    require_sound_call(
        *(missing(each, code="evaluation.no_folder", fix=fix) for each in (predictions, references)),
        missing(groups_table, code="groups.unreadable", fix="pass a CSV file"),
    )
    from autoseg.evaluation.table import format_table, write_summary, write_table

    path = place_for_scores(predictions, out)
    table = path.with_suffix(".csv")
    summary = autoseg.evaluate(
        predictions,
        references,
        challenge=challenge,
        metrics=[name.strip() for name in metrics.split(",") if name.strip()],
        tolerance_mm=tolerance_mm,
        groups_table=groups_table,
        strict=strict,
        workers=workers,
        cluster=cluster,
        reporter=make_reporter(),
    )
    write_summary(path, summary)
    write_table(table, summary)
    typer.echo(format_table(summary))
    if challenge is not None:
        show_challenge(summary, challenge, path)
    if resources is not None:
        show_resources(resources)
    typer.echo(f"All scores: {path}")
    typer.echo(f"Table:      {table}")


def bundle(
    run_folder: RunArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write, e.g. model.zip.", show_default=False)],
) -> None:
    """Pack the model of a run into one file that `autoseg predict` takes on any machine, with nothing about the cases."""
    require_sound_call(
        missing(run_folder, code="run.missing", fix=A_RUN),
        faults(find_model, run_folder if run_folder.exists() else None),
        faults(check_free, out),
    )
    from autoseg.inference.model import bundle_run

    typer.echo(f"Bundle: {bundle_run(run_folder, out)} ({out.stat().st_size / 1e6:.1f} MB)")


def clean(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
) -> None:
    """Remove the previous models of a run, and trainings and data that its plan and schedule no longer use."""
    require_sound_call(no_run(run_folder))
    found = autoseg.clean(run_folder, dry_run=dry_run)
    for path, size in found.items():
        typer.echo(f"{size / 1e6:10.1f} MB  {path}")
    total = f"{sum(found.values()) / 1e6:10.1f} MB  {'would be removed' if dry_run else 'removed'}"
    typer.echo(total if found else "Nothing to remove.")


def import_nnunet(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder TRAINER__PLANS__CONFIGURATION of a trained nnU-Net v2 model.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Bundle file to write, e.g. model.zip.", show_default=False)
    ],
    fold: Annotated[
        list[int] | None,
        typer.Option(
            "--fold",
            min=0,
            help="Fold to import; can be repeated (default: all folds found).",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Literal["final", "best"],
        typer.Option(
            "--checkpoint",
            help="final: weights at the end of training; best: weights of the best epoch on the validation fold.",
        ),
    ] = "final",
) -> None:
    """Convert a trained nnU-Net v2 model into a bundle for `autoseg predict`. Runs no code from its files."""
    require_sound_call(
        missing(folder, code="import.not_a_model", fix="pass the folder of a trained nnU-Net v2 model"),
        faults(check_free, out),
    )
    from autoseg.interop.nnunet_model import import_nnunet as import_model

    import_model(folder, out, folds=fold or None, checkpoints=checkpoint, say=typer.echo)
    typer.echo(f"Bundle: {out} ({out.stat().st_size / 1e6:.1f} MB)")


DEMO: dict[str, Any] = {
    "folds": 2,
    "configurations": "3d_fullres",
    "set": {"schedule.num_steps": 200, "schedule.base_features": 16},
}
"""Enough for a Dice of 0.9, on any machine: the number of steps does not depend on its speed."""


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the phantom dataset and its run.")] = Path("demo"),
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed.")] = 0,
) -> None:
    """Generate a small phantom dataset and run everything on it, with a fixed number of training steps."""
    require_sound_call(faults(require_place_for_run, out), settings={"device": device, "seed": str(seed)})
    from autoseg.data.phantom import make_phantom_dataset

    dataset = out / "Task99_Phantom"
    if not (dataset / "dataset.json").exists():
        make_phantom_dataset(dataset, seed=seed)
        typer.echo(f"Generated a phantom dataset in {dataset}")
    done = autoseg.run(dataset, out / "run", **DEMO, device=device, seed=seed, reporter=make_reporter())
    show_result(done)
    typer.echo(
        f"Evaluate:    autoseg evaluate {quote(str(done.folder.predictions))} {quote(str(dataset / 'labelsTs'))}"
    )


COMMANDS = (
    run, predict, evaluate, compare, check, plan, submit, check_submission, bundle, export, container, rehearse, serve, clean, import_nnunet, fingerprint, preprocess, schedule, train,
    select, measure, report, status, demo,
)  # fmt: skip
"""In the order of the help text."""

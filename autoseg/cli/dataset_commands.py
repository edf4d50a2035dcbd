"""Commands that look at a dataset and prepare it: check, fingerprint, plan, preprocess."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoseg.cli.console import make_reporter
from autoseg.cli.parameters import (
    LOOKING,
    PREPROCESSING,
    DatasetArgument,
    LayoutOption,
    MemoryOption,
    OptionalDatasetArgument,
    PresetName,
    PresetOption,
    PretrainedOption,
    SkipBadOption,
    SpecOption,
    StrictOption,
    TargetSpacingOption,
    WorkersOption,
    make_options,
    parse_spacing,
    takes,
)
from autoseg.compute.executor import available_cores
from autoseg.data.checks import check_dataset, check_images
from autoseg.data.checks.report import CheckReport, failed_report, images_report, make_report
from autoseg.data.dataset import describe_dataset, errors_that_remain, leave_out_bad
from autoseg.data.discovery import discover_dataset
from autoseg.data.discovery.unlabelled import NothingLabelledError, find_loose_images
from autoseg.interop.nnunet.plans import (
    PlanSettings,
    plan_from_nnunet,
    require_place_for_plans,
    write_nnunet_plans,
)
from autoseg.issues import AutosegError
from autoseg.pipeline.claiming import require_free_for_plan
from autoseg.pipeline.options import Options
from autoseg.pipeline.stages import fingerprint_stage, plan_stage, preprocess_stage
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import save_document
from autoseg.tracking.progress import Reporter
from autoseg.wording import count_noun
from planners import explain, write_document


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
        description = discover_dataset(dataset, layout=layout, spec=spec, num_workers=num_workers, reporter=reporter)
        if not as_json:
            typer.echo(f"Found {describe_dataset(description)}")
        findings = check_dataset(description, num_workers=num_workers, reporter=reporter)
        if skip_bad:
            description = leave_out_bad(description, findings)
    except AutosegError as error:
        try:
            report = _check_unlabelled(dataset, error, num_workers=num_workers, reporter=reporter)
        except AutosegError as failure:
            if not as_json:
                raise failure from None
            typer.echo(write_document(failed_report(dataset, failure)))
            raise typer.Exit(1) from failure
        if not as_json:
            typer.echo(f"Found {report.summary}")
        show_findings(report, as_json=as_json)
        raise typer.Exit(1 if report.num_errors else 0) from None
    show_findings(make_report(description, description.issues if skip_bad else findings), as_json=as_json)
    if errors_that_remain(findings) if skip_bad else any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


def _check_unlabelled(dataset: Path, error: AutosegError, *, num_workers: int, reporter: Reporter) -> CheckReport:
    """The report on the images of a folder in which nothing is labelled; where that is not the ``error``, it is raised again."""
    if not isinstance(error, NothingLabelledError):
        raise error
    images = find_loose_images(dataset)
    if not images:
        raise error
    found = check_images(images, num_workers=num_workers, reporter=reporter)
    return images_report(dataset, images, found, elsewhere=error.elsewhere)


def show_findings(report: CheckReport, *, as_json: bool) -> None:
    """All findings, as lines with a count at the end or as one JSON document."""
    if as_json:
        typer.echo(write_document(report))
        return
    for finding in report.issues:
        typer.echo(f"{finding.severity}: {finding.where}: {finding.message}; {finding.fix}")
    others = report.num_warnings + report.num_notes
    typer.echo(
        f"{count_noun(report.num_errors, 'error')}, {'1 warning or note' if others == 1 else f'{others} warnings and notes'}"
    )


def plan(
    dataset: OptionalDatasetArgument = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Run folder; everything is written here (default for a DATASET: run).", show_default=False
        ),
    ] = None,
    preset: PresetOption = PresetName.default,
    memory_gb: MemoryOption = None,
    target_spacing: TargetSpacingOption = None,
    strict_reference: StrictOption = False,
    layout: LayoutOption = None,
    spec: SpecOption = None,
    skip_bad: SkipBadOption = False,
    pretrained: PretrainedOption = None,
    explanation: Annotated[
        bool, typer.Option("--explain", help="Print every decision with its reason and source.")
    ] = False,
    nnunet_fingerprint: Annotated[
        Path | None,
        typer.Option("--nnunet-fingerprint", help="Plan from nnU-Net's dataset_fingerprint.json.", show_default=False),
    ] = None,
    nnunet_dataset: Annotated[
        Path | None, typer.Option("--nnunet-dataset", help="The dataset.json that belongs to it.", show_default=False)
    ] = None,
    nnunet_plans: Annotated[
        Path | None,
        typer.Option("--nnunet-plans", help="Also write the plan as nnU-Net's plans file.", show_default=False),
    ] = None,
    workers: WorkersOption = None,
) -> None:
    """Say what would be done with a dataset, and why. Trains nothing."""
    if dataset is not None and nnunet_plans is not None and not strict_reference:
        raise typer.BadParameter(
            "--nnunet-plans needs --strict-reference here: without it a plan's axes are directions of the body, but nnU-Net "
            "reads those of the files, so spacing, patch and transposition would be of other axes"
        )
    if nnunet_plans is not None:
        inputs = (nnunet_fingerprint, nnunet_dataset, spec, pretrained)
        require_place_for_plans(nnunet_plans, [path for path in inputs if path is not None])
    if nnunet_fingerprint is not None and nnunet_dataset is not None and dataset is None:
        needless = {
            "--layout": layout, "--pretrained": pretrained, "--skip-bad": skip_bad or None, "--spec": spec, "--workers": workers,
        }  # fmt: skip
        if given := [name for name, value in needless.items() if value is not None]:
            raise typer.BadParameter(
                f"{', '.join(given)}: no images are looked at with --nnunet-fingerprint; leave this away"
            )
        if out is not None:
            require_free_for_plan(RunFolder(out), nnunet_dataset.parent)
        sources = (nnunet_fingerprint, nnunet_dataset)
        spacing_mm = None if target_spacing is None else parse_spacing(target_spacing)
        settings = PlanSettings(
            preset=preset.value, memory_gb=memory_gb, target_spacing_mm=spacing_mm, strict_reference=strict_reference
        )
        planned, found = plan_from_nnunet(*sources, settings)
        ending, reader = found.file_ending, found.reader
        if out is not None:
            save_document(RunFolder(out).plan, planned)
            typer.echo(f"Plan: {RunFolder(out).plan}")
    elif dataset is not None and nnunet_fingerprint is None and nnunet_dataset is None:
        options = make_options(
            dataset,
            out or Path("run"),
            preset=preset,
            memory_gb=memory_gb,
            target_spacing=target_spacing,
            strict_reference=strict_reference,
            layout=layout,
            spec=spec,
            skip_bad=skip_bad,
            pretrained=pretrained,
            workers=workers,
        )
        description, planned = plan_stage(options)
        ending, reader = description.file_ending, None
        typer.echo(f"Plan: {options.run.plan}")
    else:
        raise typer.BadParameter("give DATASET, or both --nnunet-fingerprint and --nnunet-dataset")
    if nnunet_plans is not None:
        kept = write_nnunet_plans(nnunet_plans, planned, file_ending=ending, reader=reader)
        others = f" (with its former {', '.join(kept)})" if kept else ""
        typer.echo(f"nnU-Net plans: {nnunet_plans}{others}")
    if explanation or (dataset is None and nnunet_plans is None and out is None):
        typer.echo(explain(planned))


@takes(LOOKING)
def fingerprint(options: Options) -> None:
    """Measure sizes, spacings and intensities of a dataset."""
    fingerprint_stage(options)
    typer.echo(f"Fingerprint: {options.run.fingerprint}")


@takes(PREPROCESSING)
def preprocess(options: Options) -> None:
    """Crop, normalise and resample every case for every configuration that may be trained."""
    _, planned = preprocess_stage(options)
    typer.echo(f"Preprocessed data: {options.run.preprocessed(planned.configurations[0].data).parent}")

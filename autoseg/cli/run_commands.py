"""Commands that train: the whole run, its stages, and the demo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from autoseg.cli.console import show_result, show_scores
from autoseg.cli.parameters import RUNNING, BudgetOption, DeviceOption, SeedOption, make_options, takes
from autoseg.pipeline.options import Options

# Rooms that need torch, pandas or matplotlib are imported by the commands that use them: looking, planning and preprocessing
# start in a third of the time without.
DEMO_BUDGET = "4m"


@takes(RUNNING)
def run(options: Options) -> None:
    """Do everything: check, plan, train, cross-validate, select, predict the test images, report. Resumable."""
    from autoseg.pipeline.run import run_all

    show_result(options, run_all(options))


@takes(RUNNING)
def train(
    options: Options,
    configuration: Annotated[
        str | None,
        typer.Option(
            "--configuration",
            help="Train only this one, after the stages it needs (default: all scheduled).",
            show_default=False,
        ),
    ] = None,
    fold: Annotated[
        int | None, typer.Option("--fold", min=0, help="Train only this fold (default: all).", show_default=False)
    ] = None,
) -> None:
    """Train and validate; different folds may train at once in one run folder."""
    from autoseg.pipeline.training import train_stage

    train_stage(options, configuration=configuration, fold=fold)
    typer.echo(f"Models: {options.run.models}")


@takes(RUNNING)
def select(options: Options) -> None:
    """Choose the best configuration or ensemble, and its postprocessing, by cross-validation; trains what is missing, nothing anew."""
    from autoseg.pipeline.selecting import select_stage

    selected = select_stage(replace(options, may_retrain=False))
    if selected.summary is not None:
        show_scores(selected, selected.summary)
    typer.echo(f"Selection: {options.run.selection}")


@takes(RUNNING)
def report(options: Options) -> None:
    """Write the report page; does first what is missing before it, test predictions included, and trains nothing anew."""
    from autoseg.pipeline.run import run_all

    typer.echo(f"Report: {run_all(replace(options, may_retrain=False)).report}")


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the phantom dataset and its run.")] = Path("demo"),
    budget: BudgetOption = DEMO_BUDGET,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
) -> None:
    """Make a small phantom dataset and do the main job on it."""
    from autoseg.data.phantom import make_phantom_dataset
    from autoseg.pipeline.run import run_all

    dataset = out / "Task99_Phantom"
    if not (dataset / "dataset.json").exists():
        make_phantom_dataset(dataset, seed=seed)
        typer.echo(f"Made a phantom dataset in {dataset}")
    options = make_options(dataset, out / "run", budget=budget, device=device, seed=seed)
    show_result(options, run_all(options))
    typer.echo(
        f"Score them:  autoseg evaluate {quote(str(options.run.predictions))} {quote(str(dataset / 'labelsTs'))}"
    )

"""Arguments and options of the command line that are no field of `Settings`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

A_RUN = "pass a run folder, the --out of autoseg run"
DatasetArgument = Annotated[Path, typer.Argument(help="Folder of labelled volumes.", show_default=False)]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a finished run.", show_default=False)]
InputArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[INPUT]",
        help="Image file, folder of images, or DICOM series folder; without it, a run's own test images.",
        show_default=False,
    ),
]
OutputArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[OUTPUT]", help="Folder for the label maps, or output file for a single image.", show_default=False
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Worker processes for reading (default: one per core).", show_default=False),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="WHERE",
        help="Send the work to dask://HOST:PORT, dask-local:N or slurm (slurm:N: at most N tasks at once).",
        show_default=False,
        rich_help_panel="Clusters",
    ),
]
CasesOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="WHERE",
        help="Process the cases on Dask workers: dask://HOST:PORT, or dask-local:N.",
        show_default=False,
        rich_help_panel="Clusters",
    ),
]
SlurmOption = Annotated[
    str,
    typer.Option(
        "--slurm-options",
        metavar="LIST",
        help="Options for sbatch, e.g. partition=gpu,gres=gpu:1,time=08:00:00.",
        show_default=False,
        rich_help_panel="Clusters",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Only write the job scripts of Slurm.", rich_help_panel="Clusters"),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, or a comma-separated list.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads (default: one per core).", show_default=False),
]
AsOption = Annotated[
    str,
    typer.Option(
        "--as",
        metavar="NAME",
        help="Challenge (--list shows all), or zip or folder for label maps named like their images.",
    ),
]
ChallengeSpecOption = Annotated[
    Path | None,
    typer.Option("--spec", help="TOML file that describes a challenge of your own.", show_default=False),
]
FillOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fill", metavar="FIELD=TEXT", help="Value of a field in file names, e.g. team=ours.", show_default=False
    ),
]
IncompleteOption = Annotated[
    bool, typer.Option("--incomplete", help="Only warn about missing cases, for rehearsals on some of them.")
]
ImagesOption = Annotated[
    Path | None,
    typer.Option("--images", help="Folder of test images that the dataset lacks.", show_default=False),
]
PredictionsOption = Annotated[
    Path | None,
    typer.Option(
        "--predictions",
        help="Folder of label maps that were made elsewhere, with the label values of the dataset.",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="File or folder to write (default: as the challenge names it).", show_default=False),
]

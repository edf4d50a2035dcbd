"""Options and output of `evaluate`, and the command that compares results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import autoseg
from autoseg.cli.console import faults, missing, require_sound_call
from autoseg.run_folder import check_free

ChallengeOption = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="NAME",
        help="Also give the table of a challenge, e.g. kits23; or a TOML file that describes one.",
        show_default=False,
    ),
]
MetricsOption = Annotated[
    str,
    typer.Option(
        "--metrics",
        metavar="LIST",
        help="More metrics: lesions (lesion-wise scores), detection (FROC; needs probabilities).",
        show_default=False,
    ),
]
ResourcesOption = Annotated[
    Path | None,
    typer.Option(
        "--resources",
        help="Folder of JSON files of FLARE's monitor, one per case: areas under memory and CPU curves.",
        show_default=False,
    ),
]
ToleranceOption = Annotated[
    float | None,
    typer.Option(
        "--tolerance-mm", min=0.0, help="Tolerance of the surface Dice, in mm (default: 1).", show_default=False
    ),
]


ScoresOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="File for all scores, with a CSV beside it (default: PREDICTIONS/summary.json).",
        show_default=False,
    ),
]
GroupsOption = Annotated[
    Path | None,
    typer.Option(
        "--groups-table",
        metavar="FILE",
        help="CSV file with a column case or patient and others, such as site, sex or age: scores by each of them.",
        show_default=False,
    ),
]


def place_for_scores(predictions: Path, out: Path | None) -> Path:
    """The JSON file for scores, which may be written, and so may the table beside it."""
    from autoseg.evaluation.table import require_own_table
    from autoseg.imaging.readers import image_stem
    from autoseg.stages.begin import require_place_for_scores
    from autoseg.storage.atomic import require_file_name

    own = predictions.with_name(f"{image_stem(predictions)}_summary.json") if predictions.is_file() else None
    path = out or own or predictions / "summary.json"
    require_file_name(path)
    path = path.with_suffix(".json") if path.suffix == ".csv" else path
    require_place_for_scores(path)
    require_own_table(path.with_suffix(".csv"))
    return path


def show_challenge(summary: Any, challenge: str, path: Path) -> None:
    """The challenge's own table, which is also written beside the summary."""
    from autoseg.evaluation.challenge import challenge_scores, challenge_table, find_challenge, format_challenge
    from autoseg.storage.atomic import write_text

    record = find_challenge(challenge, [case.case_id for case in summary.metric_per_case])
    scores = challenge_scores(summary, record)
    table = path.with_name(f"{path.stem}_{record.name}.csv")
    write_text(table, challenge_table(scores))
    typer.echo(f"\n{format_challenge(scores, record)}")
    typer.echo(f"Table of {record.name}: {table}")


def show_resources(folder: Path) -> None:
    from autoseg.evaluation.resources import format_resources, read_resources

    typer.echo(f"\n{format_resources(read_resources(folder))}")


def compare(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT…",
            help="Run folders, summary.json files, or tables of autoseg evaluate; the first is compared with the others.",
            show_default=False,
        ),
    ],
    public: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            "--with",
            metavar="NAME FILE",
            help="Also compare with a published table of scores by case, e.g. nnunet-v1-hippocampus, in a file you have.",
            show_default=False,
        ),
    ] = None,
    challenge: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME",
            help="Also rank the results as a challenge does; they must have been evaluated with --as NAME.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for the comparison.", show_default=False)] = None,
) -> None:
    """Compare results on the same cases: difference of Dice with its 95 % interval, Wilcoxon test; spread of folds and seeds."""
    fix = "pass a run folder, a summary.json or a table"
    places = [*results, *([] if public is None else [public[1]])]
    require_sound_call(
        *(missing(each, code="compare.no_scores", fix=fix) for each in places),
        faults(check_free, out),
    )
    from autoseg.evaluation.comparison import format_comparison
    from autoseg.storage.atomic import save_document

    found, ranks = autoseg.compare(*results, public=public, challenge=challenge)
    typer.echo(format_comparison(found))
    if ranks:
        typer.echo(f"\nRanks as {challenge}:")
        for name, (rank, mean) in ranks.items():
            typer.echo(f"{rank:4}  {name}  ({mean:.4f})")
    if out is not None:
        save_document(out, found)
        typer.echo(f"Comparison: {out}")

"""Commands that use a finished model or its predictions: predict, evaluate, submit, bundle, import-nnunet."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from autoseg.cli.console import make_reporter
from autoseg.cli.parameters import DeviceOption, ThreadsOption, WorkersOption
from autoseg.compute.executor import available_cores
from autoseg.data.dataset import DatasetDescription
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, require_file_name


def predict(
    model: Annotated[Path, typer.Argument(help="Run folder of a finished run, or a bundle file.", show_default=False)],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="Image file, folder of images, or DICOM series folder.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Folder for the label maps.", show_default=False)],
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write CASE.npz with float32 (classes, z, y, x).")
    ] = False,
    mirroring: Annotated[
        bool, typer.Option("--mirroring/--no-mirroring", help="Average over mirror images where training mirrored.")
    ] = True,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Segment new images; a second call skips those that are done, unless the image has changed since."""
    from autoseg.compute.device import choose_device, set_threads
    from autoseg.inference.folder import predict_cases
    from autoseg.inference.input_cases import find_input_cases
    from autoseg.inference.predictor import Predictor

    chosen = choose_device(device)
    set_threads(threads or available_cores())
    reporter = make_reporter()
    predictor = Predictor.load(model, device=str(chosen), mirroring=mirroring)
    cases = find_input_cases(source, predictor.model.plan.channels, reporter=reporter)
    written = predict_cases(predictor, cases, output, probabilities=probabilities, reporter=reporter)
    typer.echo(f"{len(written)} {'label map' if len(written) == 1 else 'label maps'} in {output}")


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Folder of predicted label maps, or of CASE/CLASS masks.", show_default=False)
    ],
    references: Annotated[
        Path, typer.Argument(help="Folder of reference label maps or masks of the same names.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File for all scores (default: PREDICTIONS/summary.json).", show_default=False),
    ] = None,
    tolerance_mm: Annotated[
        float | None,
        typer.Option(
            "--tolerance-mm", min=0.0, help="Tolerance of the surface Dice, in mm (default: 1).", show_default=False
        ),
    ] = None,
    workers: WorkersOption = None,
) -> None:
    """Score predictions against references: Dice, surface distances, volumes; per class and case.

    Classes have their names in folders that `autoseg predict` wrote, and are named by value elsewhere.
    """
    from autoseg.evaluation.folders import evaluate_folder
    from autoseg.evaluation.metrics import DEFAULT_TOLERANCE_MM
    from autoseg.evaluation.table import format_table, write_summary
    from autoseg.inference.prediction_record import read_record, recorded_classes
    from autoseg.pipeline.claiming import require_no_own_scores

    path = out or predictions / "summary.json"
    require_file_name(path)
    require_no_own_scores(path)
    tolerance = DEFAULT_TOLERANCE_MM if tolerance_mm is None else tolerance_mm
    record = read_record(predictions)
    classes, ignore = recorded_classes(predictions) or ((), None)
    summary = evaluate_folder(
        predictions,
        references,
        classes=classes,
        ignore=ignore,
        threshold=None if record is None else record.threshold,
        tolerance_mm=tolerance,
        num_workers=workers or available_cores(),
        reporter=make_reporter(),
    )
    write_summary(path, summary)
    typer.echo(format_table(summary))
    typer.echo(f"All scores: {path}")


def bundle(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder of a finished run.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write, e.g. model.zip.", show_default=False)],
) -> None:
    """Pack the model of a run into one file that `autoseg predict` takes on any machine; it tells nothing of the cases."""
    from autoseg.pipeline.bundling import bundle_run

    typer.echo(f"Bundle: {bundle_run(run_folder, out)} ({out.stat().st_size / 1e6:.1f} MB)")


class CheckpointName(StrEnum):
    """Which weights of a fold are taken."""

    final = "final"
    best = "best"


def import_nnunet(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder TRAINER__PLANS__CONFIGURATION of a model that nnU-Net v2 trained.",
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
            help="A fold to take; may be given several times (default: all that are there).",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        CheckpointName,
        typer.Option("--checkpoint", help="Weights at the end of training, or the best on the validation fold."),
    ] = CheckpointName.final,
) -> None:
    """Turn a trained model of nnU-Net v2 into a bundle that `autoseg predict` takes. Runs no code of its files."""
    from autoseg.interop.nnunet.importing import import_nnunet as import_model

    import_model(folder, out, folds=fold or None, checkpoints=checkpoint.value, say=typer.echo)
    typer.echo(f"Bundle: {out} ({out.stat().st_size / 1e6:.1f} MB)")


def submit(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder with test predictions.", show_default=False)
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="NAME",
            help="Format: msd, a zip file with a task folder; folder, plain files; or one of an installed package.",
        ),
    ] = "msd",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File or folder to write (default: submission.zip for msd, submission for folder).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Pack the predictions of the test images as a challenge wants them."""
    from autoseg.delivery.submission import pack_submission

    files = RunFolder(run_folder)
    description = load_document(DatasetDescription, files.dataset, mend="give the --out of autoseg run")
    packed = pack_submission(files.predictions, description, kind=kind, out=out)
    typer.echo(f"Submission: {packed}")

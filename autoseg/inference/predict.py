"""Predicts the cases of a user's file or folder, the validation cases of a fold, the first stage of a cascade."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autoseg.data.discovery.discover import NamedImage, find_loose_images, labels_beside_images
from autoseg.imaging.readers import image_endings, is_dicom_series, prediction_ending, read_header, require_text
from autoseg.inference.model import Model
from autoseg.inference.predictions import Job, PredictionFolder, predictions_among
from autoseg.inference.predictor import Predictor, StoredImage
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import run_of
from autoseg.storage.atomic import remove_orphans
from autoseg.storage.cache import key_of
from autoseg.tracking.progress import Reporter, SilentReporter, Tracker
from autoseg.wording import count_noun, shorten

CHANNEL_SUFFIX = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
"""``CASE_0000``: one file per channel, numbered as in nnU-Net's folders."""
UNNUMBERED = -1
"""Channel of a file without a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputCase:
    """One image to predict."""

    case_id: str
    images: tuple[Path, ...]
    """One file or DICOM series with all channels, or one per channel in order."""


def find_input_cases(
    source: Path, channels: Sequence[str], *, reporter: Reporter | None = None
) -> tuple[InputCase, ...]:
    """The images of a file, a folder of files, a DICOM series folder, or a folder of such folders.

    With several channels, files or series folders named ``CASE_0000``, ``CASE_0001`` ... belong together, in the order of
    ``channels``; a file with all channels is a separate case. Several series in one folder are several images, named by
    folder and SeriesInstanceUID; one of them is given as ``FOLDER#UID``. Images in subfolders are named by the folders that
    lead to them (`find_loose_images`). Skipped, with a message to ``reporter``: files named as labels of other images,
    predictions of an earlier call, and files of a run whose folder is inside. Raises `AutosegError` with every image that
    lacks channels.
    """
    if not source.exists() and not is_dicom_series(source):
        fix = "pass an image file, a folder of images or a DICOM series folder"
        raise AutosegError(Issue(code="predict.no_input", where=str(source), message="does not exist", fix=fix))
    items = _without_labels(source, find_loose_images(source), reporter or SilentReporter())
    if not items:
        endings = ", ".join(sorted(image_endings()))
        fix = f"pass files that end in {endings}, or folders with a DICOM series"
        raise AutosegError(Issue(code="predict.no_images", where=str(source), message="no images found", fix=fix))
    grouped, issues = _group(items, num_channels=len(channels))
    for case_id, files in sorted(grouped.items()):
        issues += _check_channels(source, case_id, files, channels)
    if issues:
        raise AutosegError(*issues, headline=f"Cannot predict {source}")
    return tuple(
        InputCase(case_id=case_id, images=tuple(files[number] for number in sorted(files)))
        for case_id, files in sorted(grouped.items())
    )


def _without_labels(source: Path, items: list[NamedImage], reporter: Reporter) -> list[NamedImage]:
    """The images of a folder that may have label maps, predictions and runs next to them."""
    if not source.is_dir():
        return items
    runs = runs_among(source, [path for _, path in items])
    if runs:
        names = [root.resolve().name for root in sorted(set(runs.values()))]
        reporter.say(
            f"Skipped {count_noun(len(runs), 'file')} of {count_noun(len(names), 'run folder')}: {shorten(names)}"
        )
    items = [(stem, path) for stem, path in items if path not in runs]
    labels, predictions = labels_beside_images(source), predictions_among([path for _, path in items])
    skipped = {
        "label map": [path for _, path in items if path.resolve() in labels and path not in predictions],
        "prediction": sorted(predictions),
    }
    for noun, paths in skipped.items():
        if paths:
            reporter.say(f"Skipped {count_noun(len(paths), noun)}: {shorten([path.name for path in paths])}")
    without = {path for paths in skipped.values() for path in paths}
    return [(stem, path) for stem, path in items if path not in without]


def runs_among(source: Path, paths: Sequence[Path]) -> dict[Path, Path]:
    """Those of ``paths`` made by a run whose folder is ``source`` or below it, each with the folder of its run.

    The files in a folder of a run that is itself given as ``source`` are meant to be predicted.
    """
    by_folder = {folder: run_of(folder) for folder in {path.parent for path in paths}}
    found = {path: run.root for path in paths if (run := by_folder[path.parent]) is not None}
    return {path: root for path, root in found.items() if root.is_relative_to(source)}


def _group(items: Sequence[NamedImage], *, num_channels: int) -> tuple[dict[str, dict[int, Path]], list[Issue]]:
    """Files by case and channel, and an issue for every second file of the same name."""
    grouped: dict[str, dict[int, Path]] = defaultdict(dict)
    issues = []
    for stem, item in items:
        case_id, channel = _name(stem, num_channels=num_channels)
        if channel in grouped[case_id]:
            message = f"same name as {grouped[case_id][channel].name}"
            issues.append(
                Issue(
                    code="predict.same_name", where=str(item), message=message, fix="rename one of them", case=case_id
                )
            )
        grouped[case_id][channel] = item
    return grouped, issues


def _name(stem: str, *, num_channels: int) -> tuple[str, int]:
    """Case id and channel number."""
    match = CHANNEL_SUFFIX.fullmatch(stem)
    if match is None or (num_channels == 1 and match["channel"] != "0000"):
        return stem, UNNUMBERED
    return match["case"], int(match["channel"])


def _check_channels(source: Path, case_id: str, files: dict[int, Path], channels: Sequence[str]) -> list[Issue]:
    if set(files) in ({UNNUMBERED}, {0}):  # one file, perhaps numbered as the first: it may hold all channels
        issues = _check_single_file(case_id, files, channels)
        if issues is not None:
            return issues
    numbers = set(files) - {UNNUMBERED}
    if UNNUMBERED in files:
        others = ", ".join(files[number].name for number in sorted(numbers))
        message = f"same case as {others}"
        return [
            Issue(
                code="predict.same_name",
                where=str(files[UNNUMBERED]),
                message=message,
                fix="remove one of them",
                case=case_id,
            )
        ]
    missing = [f"{case_id}_{i:04d} ({name})" for i, name in enumerate(channels) if i not in numbers]
    extra = [files[number].name for number in sorted(numbers - set(range(len(channels))))]
    issues = []
    if missing:
        message = f"missing {', '.join(missing)}"
        issues.append(
            Issue(
                code="predict.missing_channel", where=str(source), message=message, fix="add these files", case=case_id
            )
        )
    if extra:
        message = f"{', '.join(extra)}, but the model has {count_noun(len(channels), 'channel')}"
        issues.append(
            Issue(code="predict.extra_channel", where=str(source), message=message, fix="remove them", case=case_id)
        )
    return issues


def _check_single_file(case_id: str, files: dict[int, Path], channels: Sequence[str]) -> list[Issue] | None:
    """Issues of a case of one file; none: the file is one channel of several, and the others are missing."""
    (path,) = files.values()
    try:
        found = read_header(path).num_channels
    except AutosegError as error:
        return [issue.model_copy(update={"where": issue.where or str(path), "case": case_id}) for issue in error.issues]
    if found == len(channels):
        return []
    if UNNUMBERED not in files and found == 1:
        return None
    message = f"{count_noun(found, 'channel')}, but the model needs {len(channels)}: {', '.join(channels)}"
    several = f"use one file with all of them, or {case_id}_0000 ... {case_id}_{len(channels) - 1:04d}"
    fix = several if len(channels) > 1 else "use a single volume of it"
    return [Issue(code="image.channels", where=str(path), message=message, fix=fix, case=case_id)]


def try_jobs(jobs: Sequence[Job], complete: Callable[[Job], None], tracker: Tracker) -> dict[str, AutosegError]:
    """Complete all ``jobs``, one in memory at a time. A failing case does not stop the others: errors by case id."""
    errors = {}
    for job in jobs:
        try:
            complete(job)
        except AutosegError as error:
            errors[job.case_id] = error
        tracker.advance(note=job.case_id)
    return errors


def complete_jobs(jobs: Sequence[Job], complete: Callable[[Job], None], tracker: Tracker) -> None:
    """`try_jobs`, and one `AutosegError` with the issues of all cases that failed."""
    errors = try_jobs(jobs, complete, tracker)
    _raise_together(errors, headline=f"{len(errors)} of {len(jobs)} cases could not be predicted")


def _raise_together(errors: dict[str, AutosegError], *, headline: str) -> None:
    issues = [
        issue.model_copy(update={"case": case_id, "where": issue.where or case_id})
        for case_id, error in errors.items()
        for issue in error.issues
    ]
    if issues:
        raise AutosegError(*issues, headline=headline)


def predict_cases(
    predictor: Predictor,
    cases: Sequence[InputCase],
    folder: Path,
    *,
    probabilities: bool,
    reporter: Reporter,
    is_own: bool = False,
) -> list[Path]:
    """Write a label map for every case, ``CASE`` plus the ending of the dataset's label files; returns their paths.

    For datasets with a mask file per class, a folder ``CASE`` with such files is written. If the format cannot hold the
    grid of the image, the image's own format is used, or NIfTI (`prediction_ending`).

    Cases that are up to date are skipped (`PredictionFolder`). With ``probabilities``, ``CASE.npz`` is written too, with an
    array ``probabilities``, float32 (K, Z, Y, X). A failing case does not stop the others; all issues are raised together
    at the end. Raises `AutosegError` at once when ``folder`` has predictions of another model or made in another way, or
    other files under the names of predictions, or a name that is not text. In a folder that ``is_own``, which only autoseg
    writes to, whatever does not fit is made again.
    """
    require_text([folder])
    if folder.exists() and not folder.is_dir():
        fix = "pass a folder for the label maps"
        raise AutosegError(Issue(code="predict.not_a_folder", where=str(folder), message="a file", fix=fix))
    sink = PredictionFolder(
        folder=folder,
        dataset=predictor.model.dataset,
        made_from=key_of(predictor.model.key, predictor.mirroring),
        say=reporter.say,
        scores="full" if probabilities else None,
        with_masks=True,
        is_own=is_own,
    )
    jobs, errors = _image_jobs(predictor, cases, probabilities=probabilities)
    remove_orphans(folder, below=False)
    sink.begin(jobs)
    with reporter.track("Predicting", len(cases)) as tracker:
        tracker.advance(len(errors))
        errors |= try_jobs(jobs, sink.complete, tracker)
    written = [sink.shown(job) for job in jobs if job.case_id not in errors]
    others = f"; the others are in {folder}" if written else ""
    _raise_together(errors, headline=f"{len(errors)} of {len(cases)} images could not be predicted{others}")
    return written


def _image_jobs(
    predictor: Predictor, cases: Sequence[InputCase], *, probabilities: bool
) -> tuple[list[Job], dict[str, AutosegError]]:
    """Jobs, and the errors of cases whose header cannot be read."""
    jobs, errors = [], {}
    for case in cases:
        image = case.images[0]
        try:
            ending = prediction_ending(image, read_header(image).geometry, predictor.model.dataset.file_ending)
        except AutosegError as error:
            errors[case.case_id] = error
            continue
        predict = partial(predictor.predict_files, case.images, probabilities=probabilities)
        jobs.append(Job(case_id=case.case_id, predict=predict, inputs=case.images, ending=ending))
    return jobs, errors


def predict_stored(
    model: Model,
    cases: Sequence[StoredImage],
    folder: Path,
    *,
    keep_probabilities: bool,
    tracker: Tracker,
    say: Callable[[str], None],
) -> None:
    """Write a label map for every stored case into one of a run's own folders (method section 8.3).

    With ``keep_probabilities``, a half-precision array (K, Z, Y, X) is kept too, for ensembles of configurations. Cases that
    are up to date are skipped; predictions of another model, or of other cases, are removed. Raises `AutosegError` at the
    end with the issues of all cases that failed.
    """
    predictor = Predictor(model=model)
    sink = PredictionFolder(
        folder=folder,
        dataset=model.dataset,
        made_from=key_of(model.key, keep_probabilities),
        say=say,
        scores="half" if keep_probabilities else None,
        is_own=True,
    )
    jobs = [
        Job(
            case_id=case.case_id,
            predict=partial(predictor.predict_source, case, probabilities=keep_probabilities),
            made_from=case.made_from,
        )
        for case in cases
    ]
    remove_orphans(folder, below=False)
    sink.begin(jobs)
    complete_jobs(jobs, sink.complete, tracker)

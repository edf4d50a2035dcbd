"""Which images lie in what a person gave to predict, and which files belong to one image."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoseg.data.discovery.unlabelled import NamedImage, find_loose_images, labels_beside_images
from autoseg.imaging.readers import image_endings, is_dicom_series, read_header
from autoseg.inference.predicted import predictions_among
from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.run_folder import run_of
from autoseg.tracking.progress import Reporter, SilentReporter
from autoseg.wording import count_noun, shorten

CHANNEL_SUFFIX = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
"""``CASE_0000``: one file for each channel, numbered as in nnU-Net's folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputCase:
    """One image to predict."""

    case_id: str
    images: tuple[Path, ...]
    """One file or DICOM series with all channels, or one for each channel in order."""


def find_input_cases(
    source: Path, channels: Sequence[str], *, reporter: Reporter | None = None
) -> tuple[InputCase, ...]:
    """The images of a file, a folder of files, a DICOM series folder, or a folder of such folders.

    With several channels, files or series folders named ``CASE_0000``, ``CASE_0001`` ... belong together, in the order of
    ``channels``; a file that holds all channels stands alone. Several series in one folder are several images, named by
    folder and SeriesInstanceUID; one of them is given as ``FOLDER#UID``. Images further down are named by the folders that
    lead to them (`find_loose_images`). Files that are named as labels of images beside them, were
    predicted by an earlier call, or made by a run whose folder lies there, are left out, and ``reporter`` is told. Raises
    `AutosegError` that names every image that lacks channels.
    """
    if not source.exists() and not is_dicom_series(source):
        raise AutosegError(f"{source} does not exist; give an image file, a folder of images or a DICOM series folder")
    items = _to_predict(source, find_loose_images(source), reporter or SilentReporter())
    if not items:
        raise AutosegError(
            f"{source} holds no image; looked for files that end in {', '.join(sorted(image_endings()))} and for folders "
            "with a DICOM series"
        )
    grouped: dict[str, dict[int, Path]] = defaultdict(dict)
    problems: list[Issue] = []
    for stem, item in items:
        case_id, channel = _name(stem, num_channels=len(channels))
        if channel in grouped[case_id]:
            problems.append(
                Issue(
                    code=UNNAMED,
                    where=str(item),
                    message=f"has the same name as {grouped[case_id][channel].name}",
                    fix="give every image a name of its own",
                )
            )
        grouped[case_id][channel] = item
    cases = []
    for case_id, files in sorted(grouped.items()):
        problems += _missing_channels(source, case_id, files, channels)
        cases.append(InputCase(case_id=case_id, images=tuple(files[number] for number in sorted(files))))
    if problems:
        raise AutosegError(*problems, headline=(f"{source} cannot be predicted as it is"))
    return tuple(cases)


def _to_predict(source: Path, items: list[NamedImage], reporter: Reporter) -> list[NamedImage]:
    """What is an image of a folder that a network might have been trained on, or that was predicted into."""
    if not source.is_dir():
        return items
    runs = runs_among(source, [path for _, path in items])
    if runs:
        names = [root.resolve().name for root in sorted(set(runs.values()))]
        reporter.say(
            f"Taken for no image: {count_noun(len(runs), 'file')} of {count_noun(len(names), 'run')}, {shorten(names)}"
        )
    items = [(stem, path) for stem, path in items if path not in runs]
    labels, predictions = labels_beside_images(source), predictions_among([path for _, path in items])
    left_out = {
        "label map": [path for _, path in items if path.resolve() in labels and path not in predictions],
        "prediction": sorted(predictions),
    }
    for noun, paths in left_out.items():
        if paths:
            reporter.say(
                f"Taken for no image: {count_noun(len(paths), noun)}, {shorten([path.name for path in paths])}"
            )
    without = {path for paths in left_out.values() for path in paths}
    return [(stem, path) for stem, path in items if path not in without]


def runs_among(source: Path, paths: Sequence[Path]) -> dict[Path, Path]:
    """Those of ``paths`` that a run made whose folder is ``source`` or lies below, each with the folder of its run.

    What lies in a folder of a run that somebody gave for itself is what they want to see predicted.
    """
    by_folder = {folder: run_of(folder) for folder in {path.parent for path in paths}}
    found = {path: run.root for path in paths if (run := by_folder[path.parent]) is not None}
    return {path: root for path, root in found.items() if root.is_relative_to(source)}


def _name(stem: str, *, num_channels: int) -> tuple[str, int]:
    """Case id and channel number; -1: the image stands alone."""
    match = CHANNEL_SUFFIX.fullmatch(stem)
    if match is None or (num_channels == 1 and match["channel"] != "0000"):
        return stem, -1
    return match["case"], int(match["channel"])


def _missing_channels(source: Path, case_id: str, files: dict[int, Path], channels: Sequence[str]) -> list[Issue]:
    if set(files) in ({-1}, {0}):  # one file, perhaps numbered as the first: it may hold all channels, as colours do
        (path,) = files.values()
        try:
            found = read_header(path).num_channels
        except AutosegError as error:
            return [
                Issue(code=UNNAMED, where=f"case {case_id}", message=str(error), fix="or give the other cases alone")
            ]
        if found == len(channels):
            return []
        if -1 in files or found > 1:
            several = f"give one file with all of them, or {case_id}_0000 ... {case_id}_{len(channels) - 1:04d}"
            return [
                Issue(
                    code=UNNAMED,
                    where=str(path),
                    message=f"holds {found} channels, but the model needs {len(channels)}: {', '.join(channels)}",
                    fix=several if len(channels) > 1 else "give a single volume of it",
                )
            ]
    numbers = set(files) - {-1}
    if -1 in files:
        others = ", ".join(files[number].name for number in sorted(numbers))
        return [
            Issue(
                code=UNNAMED,
                where=str(files[-1]),
                message=f"has the name of case {case_id}, as has {others}",
                fix="take one of them out",
            )
        ]
    missing = [f"{case_id}_{i:04d} ({name})" for i, name in enumerate(channels) if i not in numbers]
    extra = sorted(numbers - set(range(len(channels))))
    problems = []
    if missing:
        problems.append(
            Issue(
                code=UNNAMED,
                where=str(source),
                message=f"case {case_id} lacks {', '.join(missing)}",
                fix="add these files",
            )
        )
    if extra:
        surplus = ", ".join(files[number].name for number in extra)
        problems.append(
            Issue(
                code=UNNAMED,
                where=str(source),
                message=f"case {case_id} has {surplus}, but the model knows {len(channels)} channels",
                fix="take them out",
            )
        )
    return problems

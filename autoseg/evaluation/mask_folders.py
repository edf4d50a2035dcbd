"""Scores predictions that have one mask file for each class, in a folder for each case.

References may lie in the same way, in the dataset's own folders (``CASE/segmentations/CLASS``), in a folder for each class
(``CLASS/CASE``), or in one file of segments a case (DICOM SEG, ``.seg.nrrd``). A class without a file is absent there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from autoseg.compute.executor import run_jobs
from autoseg.data.case_labels import read_mask
from autoseg.data.dataset import MaskFile
from autoseg.evaluation.metrics import DEFAULT_TOLERANCE_MM, ClassMetrics, EvaluatedClass, compare
from autoseg.evaluation.summary import CaseResult, Summary, compare_grids, reading_problem, summarize
from autoseg.imaging.readers import (
    PART_MARK,
    image_ending,
    image_stem,
    is_segmentation,
    list_segments,
    read_header,
)
from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.tracking.progress import Reporter, SilentReporter

Masks = Mapping[str, Path]
"""Mask file by the name of its class: a file, or one segment of a file (``FILE#3``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskCase:
    """Predicted and reference masks of one case; of the classes without a reference nothing is there."""

    case_id: str
    predicted: Masks
    reference: Masks
    predicted_in: Path
    reference_in: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    classes: tuple[EvaluatedClass, ...]
    threshold: int | None
    tolerance_mm: float


def mask_stem(class_name: str) -> str:
    """Name of a mask file of a class, without its ending."""
    return class_name.replace("/", "_")


def holds_masks(folder: Path) -> bool:
    """Whether there are masks in folders of their own (of cases, or of classes) and no image beside these folders."""
    if not folder.is_dir() or any(_images(folder)):
        return False
    return any(any(_images(place)) for below in _folders(folder) for place in (below, *_folders(below)))


def evaluate_mask_folder(
    predictions: Path,
    references: Path,
    *,
    classes: Sequence[str] | None = None,
    threshold: int | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    num_workers: int = 1,
    reporter: Reporter | None = None,
) -> Summary:
    """Score the masks ``predictions/CASE/CLASS`` against those in ``references``; of a single class also ``predictions/CASE``.

    Classes are ``classes``, or all that are predicted; each is scored as a mask of its own, wherever they overlap, and is
    numbered from 1 on in the summary. From ``threshold`` on a voxel of a reference belongs to the structure; with none,
    everything but 0. Raises one `AutosegError` that lists every missing or extra case or mask, every file that cannot be
    read and every pair of grids that differ.
    """
    reporter = reporter or SilentReporter()
    predicted = _predictions(predictions, classes or ())
    names = tuple(classes) if classes else tuple(sorted({name for masks in predicted.values() for name in masks}))
    expected = _references(references, cases=predicted.keys(), stems={mask_stem(name) for name in names})
    chosen = tuple(EvaluatedClass(name=name, values=(number,)) for number, name in enumerate(names, 1))
    cases = [
        MaskCase(
            case_id=case_id,
            predicted=predicted[case_id],
            reference=expected[case_id][1],
            predicted_in=predictions / case_id,
            reference_in=expected[case_id][0],
        )
        for case_id in sorted(predicted.keys() & expected.keys())
    ]
    problems = [*_unpaired(predictions, references, predicted.keys(), expected.keys()), *_missing_masks(cases, names)]
    with reporter.track("Reading headers", len(cases)) as tracker:
        for found in run_jobs(_check_case, cases, name=_name, num_workers=1, tracker=tracker):
            problems += found
    if problems:
        raise AutosegError(*problems, headline=(f"{predictions} cannot be compared with {references}"))
    unpredicted = sorted(
        {stem for _, masks in expected.values() for stem in masks} - {mask_stem(name) for name in names}
    )
    if unpredicted:
        reporter.say(f"Not scored, for nobody predicted them: {', '.join(unpredicted)}")
    settings = _Settings(classes=chosen, threshold=threshold, tolerance_mm=tolerance_mm)
    with reporter.track("Scoring", len(cases)) as tracker:
        results = run_jobs(
            partial(_score, settings=settings), cases, name=_name, num_workers=num_workers, tracker=tracker
        )
    return summarize(results, chosen, tolerance_mm=tolerance_mm)


def _name(case: MaskCase) -> str:
    return f"case {case.case_id}"


# --- finding ---


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "_")))


def _images(folder: Path) -> Iterator[Path]:
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    return (file for file in files if image_ending(file))


def _predictions(folder: Path, classes: Sequence[str]) -> dict[str, Masks]:
    files = list(_images(folder))
    if files and len(classes) == 1:
        return {image_stem(file): {mask_stem(classes[0]): file} for file in files}
    return {below.name: {image_stem(file): file for file in _images(below)} for below in _folders(folder)}


def _references(folder: Path, *, cases: Collection[str], stems: Collection[str]) -> dict[str, tuple[Path, Masks]]:
    """Where the masks of each case lie, and the masks; raises `AutosegError` where there are none."""
    if not folder.is_dir():
        raise AutosegError(f"{folder} is no folder; give the folder of the reference masks")
    found: dict[str, tuple[Path, Masks]] = {
        image_stem(file): (file, _segments(file)) for file in _images(folder) if is_segmentation(file)
    }
    by_class: dict[str, dict[str, Path]] = {}
    for below in _folders(folder):
        if below.name in stems and below.name not in cases:
            for file in _images(below):
                by_class.setdefault(image_stem(file), {})[below.name] = file
        elif (place := _masks_of_case(below, stems)) is not None:
            found[below.name] = place
        elif below.name in cases:
            found[below.name] = below, {}
    found |= {case_id: (folder, masks) for case_id, masks in by_class.items() if case_id not in found}
    if not any(masks for _, masks in found.values()):
        raise AutosegError(
            f"{folder} holds no masks of {', '.join(sorted(stems)[:6])}; looked for folders CASE with a file for each class, folders "
            "CLASS with a file for each case, and files of segments; the predictions have one mask for each class"
        )
    return found


def _masks_of_case(folder: Path, stems: Collection[str]) -> tuple[Path, Masks] | None:
    """The place in the folder of a case, or in a folder below it, that has most of the classes."""
    places: list[tuple[Path, Masks]] = []
    for place in (folder, *_folders(folder)):
        files = list(_images(place))
        places += [(file, _segments(file)) for file in files if is_segmentation(file)]
        places.append((place, {image_stem(file): file for file in files if not is_segmentation(file)}))
    best = max(places, key=lambda found: len(found[1].keys() & stems))
    return best if best[1].keys() & stems else None


def _segments(file: Path) -> Masks:
    return {
        mask_stem(name): Path(f"{file}{PART_MARK}{number}") for number, name in list_segments(file).by_number.items()
    }


# --- what stands in the way ---


def _unpaired(
    predictions: Path, references: Path, predicted: Collection[str], expected: Collection[str]
) -> list[Issue]:
    return [
        *(
            Issue(
                code=UNNAMED,
                where=f"{references}, case {case_id}",
                message="has no prediction",
                fix=f"predict this case into {predictions}, or take its reference out of the folder",
            )
            for case_id in sorted(set(expected) - set(predicted))
        ),
        *(
            Issue(
                code=UNNAMED,
                where=str(predictions / case_id),
                message="has no reference",
                fix=f"add reference masks of this case to {references}, or take the prediction out of the folder",
            )
            for case_id in sorted(set(predicted) - set(expected))
        ),
    ]


def _missing_masks(cases: Sequence[MaskCase], names: Sequence[str]) -> list[Issue]:
    return [
        Issue(
            code=UNNAMED,
            where=str(case.predicted_in),
            message=f"has no mask of {name}",
            fix="add one; where nothing was found, an empty one",
        )
        for case in cases
        for name in names
        if mask_stem(name) not in case.predicted
    ]


def _check_case(case: MaskCase) -> list[Issue]:
    """Headers that cannot be read, and masks on other grids than the first predicted one."""
    problems: list[Issue] = []
    headers = []
    for path in (*case.predicted.values(), *(path for name, path in case.reference.items() if name in case.predicted)):
        try:
            headers.append((path, read_header(path)))
        except AutosegError as error:
            problems.append(reading_problem(path, error))
    for path, header in headers[1:]:
        if not header.may_be_part:
            first, grid = headers[0]
            problems += compare_grids(path, header.geometry, first, grid.geometry)
    return problems


# --- scoring ---


def _score(case: MaskCase, *, settings: _Settings) -> CaseResult:
    metrics = {each.key: _score_class(case, each, settings) for each in settings.classes}
    return CaseResult(
        case_id=case.case_id,
        metrics=metrics,
        prediction_file=str(case.predicted_in),
        reference_file=str(case.reference_in),
    )


def _score_class(case: MaskCase, label: EvaluatedClass, settings: _Settings) -> ClassMetrics:
    stem = mask_stem(label.name)
    predicted, grid = read_mask(MaskFile(label=label.name, file=str(case.predicted[stem])), threshold=None)
    expected = np.zeros_like(predicted)
    if stem in case.reference:
        reference = MaskFile(label=label.name, file=str(case.reference[stem]))
        expected, _ = read_mask(reference, threshold=settings.threshold, onto=grid)
    mask = EvaluatedClass(name=label.name, values=(1,))
    scores = compare(
        predicted.astype(np.uint8),
        expected.astype(np.uint8),
        classes=[mask],
        spacing_mm=grid.spacing_mm,
        tolerance_mm=settings.tolerance_mm,
    )
    return scores[label.name]

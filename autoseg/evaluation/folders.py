"""Scores a folder of predictions against a folder of references: label maps of the same names, or masks of single classes.

Masks are in a folder for each case, with one file for each class. Their references may be stored in the same way, in the dataset's
own folders (``CASE/segmentations/CLASS``), in a folder for each class (``CLASS/CASE``), or in one file of segments a case
(DICOM SEG, ``.seg.nrrd``). A class without a reference file is absent there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from autoseg.compute.executor import run_jobs
from autoseg.data.dataset import MaskFile
from autoseg.data.labels import read_mask
from autoseg.evaluation.metrics import DEFAULT_TOLERANCE_MM, ClassMetrics, EvaluatedClass, compare
from autoseg.evaluation.scoring import EvaluatedPair, grid_issues, on_whole_grid, score_case
from autoseg.evaluation.table import CaseResult, Summary, summarize
from autoseg.imaging.image import LabelMap
from autoseg.imaging.readers import (
    PART_MARK,
    image_ending,
    image_endings,
    image_stem,
    is_segmentation,
    list_segments,
    read_header,
    read_label_map,
)
from autoseg.issues import AutosegError, Issue
from autoseg.tracking.progress import Reporter, SilentReporter

MAX_FOUND_CLASSES = 1000
"""More distinct values than this are intensities: the references are images, not label maps."""

Masks = Mapping[str, Path]
"""Mask file by the name of its class: a file, or one segment of a file (``FILE#3``)."""


def mask_stem(class_name: str) -> str:
    """Name of a mask file of a class, without its ending."""
    return class_name.replace("/", "_")


def evaluate_folder(
    predictions: Path,
    references: Path,
    *,
    classes: Sequence[EvaluatedClass] = (),
    ignore: int | None = None,
    threshold: int | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    num_workers: int = 1,
    reporter: Reporter | None = None,
) -> Summary:
    """Score every prediction in a folder against its reference; cases come in the order of their names.

    Label maps are paired by file name without ending; files that are no images (``summary.json``, logs) are ignored. Without
    ``classes`` every value but 0 and ``ignore`` that occurs in any reference is a class, named by its value.

    Where the predictions are masks of classes, ``predictions/CASE/CLASS`` is scored against its mask in ``references``; of
    a single class also ``predictions/CASE``. Each class is scored as a separate mask, wherever they overlap, and is
    numbered from 1 on in the summary; without ``classes``, all that are predicted. From ``threshold`` on a voxel of a
    reference belongs to the structure; with none, everything but 0.

    Everything is checked first: raises one `AutosegError` that lists every missing or extra prediction, every file that
    cannot be read and every pair of grids that differ.
    """
    run = _Run(predictions, references, tolerance_mm, num_workers, reporter or SilentReporter())
    if holds_masks(predictions) or (len(classes) == 1 and holds_masks(references)):
        return _evaluate_masks(run, tuple(each.name for each in classes), threshold)
    return _evaluate_label_maps(run, tuple(classes), ignore)


@dataclass(frozen=True, slots=True)
class _Run:
    """One evaluation."""

    predictions: Path
    references: Path
    tolerance_mm: float
    num_workers: int
    reporter: Reporter

    def refuse(self, issues: Sequence[Issue]) -> None:
        if issues:
            headline = f"{self.predictions} cannot be compared with {self.references}"
            raise AutosegError(*issues, headline=headline)

    def no_prediction(self, where: str) -> Issue:
        fix = f"predict this case into {self.predictions}, or move its reference elsewhere"
        return Issue(code="evaluation.no_prediction", where=where, message="has no prediction", fix=fix)

    def no_reference(self, where: str) -> Issue:
        fix = f"add its reference to {self.references}, or move the prediction elsewhere"
        return Issue(code="evaluation.no_reference", where=where, message="has no reference", fix=fix)


def _name(case: EvaluatedPair | _MaskCase) -> str:
    return f"case {case.case_id}"


# --- label maps ---


@dataclass(frozen=True, slots=True)
class _Checked:
    issues: tuple[Issue, ...]
    prediction_values: frozenset[int] = frozenset()
    reference_values: frozenset[int] = frozenset()


def _evaluate_label_maps(run: _Run, classes: tuple[EvaluatedClass, ...], ignore: int | None) -> Summary:
    pairs, issues = _pair_files(run)
    with run.reporter.track("Reading label maps", len(pairs)) as tracker:
        checked = run_jobs(_check_pair, pairs, name=_name, num_workers=run.num_workers, tracker=tracker)
    run.refuse([*issues, *(issue for each in checked for issue in each.issues)])
    found = frozenset().union(*(each.reference_values for each in checked))
    classes = classes or _classes_of_values(found - {ignore}, run.references)
    _say_unknown_values(checked, classes, ignore, run.reporter)
    score = partial(_read_and_score, classes=classes, ignore=ignore, tolerance_mm=run.tolerance_mm)
    with run.reporter.track("Scoring", len(pairs)) as tracker:
        cases = run_jobs(score, pairs, name=_name, num_workers=run.num_workers, tracker=tracker)
    return summarize(cases, classes, ignore=ignore, tolerance_mm=run.tolerance_mm)


def _pair_files(run: _Run) -> tuple[list[EvaluatedPair], list[Issue]]:
    """The pairs that both folders have in common, sorted by name, and the issues that prevent a comparison."""
    issues: list[Issue] = []
    predicted, expected = _label_files(run.predictions, issues), _label_files(run.references, issues)
    if not issues:
        issues += [run.no_prediction(str(expected[name])) for name in sorted(expected.keys() - predicted.keys())]
        issues += [run.no_reference(str(predicted[name])) for name in sorted(predicted.keys() - expected.keys())]
    common = sorted(predicted.keys() & expected.keys())
    return [EvaluatedPair(case_id=n, prediction=predicted[n], reference=expected[n]) for n in common], issues


def _label_files(folder: Path, issues: list[Issue]) -> dict[str, Path]:
    """Image files of a folder by name without ending; adds to ``issues`` what is wrong with the folder."""
    if not folder.is_dir():
        issues.append(_no_folder(folder))
        return {}
    files: dict[str, Path] = {}
    for path in _images(folder):
        name = image_stem(path)
        if name in files:
            message = f"same name as {files[name].name}"
            issues.append(
                Issue(code="evaluation.duplicate_name", where=str(path), message=message, fix="keep one of them")
            )
        files.setdefault(name, path)
    if not files:
        fix = f"pass a folder with files that end in {', '.join(image_endings())}"
        issues.append(
            Issue(code="evaluation.no_label_maps", where=str(folder), message="contains no label maps", fix=fix)
        )
    return files


def _no_folder(folder: Path) -> Issue:
    message = "is a file, not a folder" if folder.exists() else "does not exist"
    return Issue(code="evaluation.no_folder", where=str(folder), message=message, fix="pass a folder of label maps")


def _check_pair(pair: EvaluatedPair) -> _Checked:
    """Both files read once: what is wrong with them, and which values they contain."""
    issues: list[Issue] = []
    maps: list[LabelMap] = []
    for path in (pair.prediction, pair.reference):
        try:
            maps.append(read_label_map(path))
        except AutosegError as error:
            issues += error.issues
    if issues:
        return _Checked(tuple(issues))
    predicted, expected = (frozenset(np.unique(each.array).tolist()) - {0} for each in maps)
    try:
        reference = on_whole_grid(maps[1], maps[0].geometry)
    except AutosegError as error:
        return _Checked(tuple(_located(issue, pair.reference) for issue in error.issues))
    grids = grid_issues(pair.prediction, maps[0].geometry, pair.reference, reference.geometry)
    return _Checked(grids, predicted, expected)


def _located(issue: Issue, path: Path) -> Issue:
    """An issue of an array with the file that the array is from."""
    return issue if issue.where else issue.model_copy(update={"where": str(path)})


def _read_and_score(
    pair: EvaluatedPair, *, classes: tuple[EvaluatedClass, ...], ignore: int | None, tolerance_mm: float
) -> CaseResult:
    prediction, reference = read_label_map(pair.prediction), read_label_map(pair.reference)
    return score_case(pair, prediction, reference, classes=classes, ignore=ignore, tolerance_mm=tolerance_mm)


def _classes_of_values(values: frozenset[int], references: Path) -> tuple[EvaluatedClass, ...]:
    if not values:
        message = "contains only background"
        fix = "check that these are the references, or evaluate a folder that autoseg predict wrote"
        raise AutosegError(Issue(code="evaluation.no_foreground", where=str(references), message=message, fix=fix))
    if min(values) < 0 or len(values) > MAX_FOUND_CLASSES:
        message = (
            f"contains {len(values)} different values from {min(values)} to {max(values)}: an image, not a label map"
        )
        fix = "use label maps, in which each class is a positive whole number"
        raise AutosegError(Issue(code="evaluation.not_labels", where=str(references), message=message, fix=fix))
    return tuple(EvaluatedClass(name=str(value), values=(value,)) for value in sorted(values))


def _say_unknown_values(
    checked: Sequence[_Checked], classes: Sequence[EvaluatedClass], ignore: int | None, reporter: Reporter
) -> None:
    known: set[int | None] = {ignore, *(value for each in classes for value in each.values)}
    unknown = frozenset().union(*(each.prediction_values for each in checked)) - known
    predicted = {value: sum(value in each.prediction_values for each in checked) for value in sorted(unknown)}
    if predicted:
        listed = ", ".join(f"{value} (in {number} of {len(checked)})" for value, number in predicted.items())
        reporter.say(f"Predictions contain values that are not classes and are scored as background: {listed}")


# --- masks of classes ---


@dataclass(frozen=True, slots=True, kw_only=True)
class _MaskCase:
    """Predicted and reference masks of one case; a class without a reference mask is absent."""

    case_id: str
    predicted: Masks
    reference: Masks
    predicted_in: Path
    reference_in: Path


def _evaluate_masks(run: _Run, names: tuple[str, ...], threshold: int | None) -> Summary:
    predicted = _predicted_masks(run.predictions, names)
    names = names or tuple(sorted({name for masks in predicted.values() for name in masks}))
    stems = {mask_stem(name) for name in names}
    expected = _reference_masks(run.references, cases=predicted.keys(), stems=stems)
    classes = tuple(EvaluatedClass(name=name, values=(number,)) for number, name in enumerate(names, 1))
    cases = [
        _MaskCase(
            case_id=case_id,
            predicted=predicted[case_id],
            reference=expected[case_id][1],
            predicted_in=run.predictions / case_id,
            reference_in=expected[case_id][0],
        )
        for case_id in sorted(predicted.keys() & expected.keys())
    ]
    run.refuse(_mask_issues(run, cases, names, predicted.keys(), expected.keys()))
    unpredicted = sorted({stem for _, masks in expected.values() for stem in masks} - stems)
    if unpredicted:
        run.reporter.say(f"Not scored, because not predicted: {', '.join(unpredicted)}")
    score = partial(_score_masks, classes=classes, threshold=threshold, tolerance_mm=run.tolerance_mm)
    with run.reporter.track("Scoring", len(cases)) as tracker:
        results = run_jobs(score, cases, name=_name, num_workers=run.num_workers, tracker=tracker)
    return summarize(results, classes, tolerance_mm=run.tolerance_mm)


def holds_masks(folder: Path) -> bool:
    """Whether there are masks in separate folders (of cases, or of classes) and no image next to these folders."""
    if not folder.is_dir() or any(_images(folder)):
        return False
    return any(any(_images(place)) for below in _folders(folder) for place in (below, *_folders(below)))


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "_")))


def _images(folder: Path) -> Iterator[Path]:
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    return (file for file in files if image_ending(file))


def _predicted_masks(folder: Path, names: Sequence[str]) -> dict[str, Masks]:
    files = list(_images(folder))
    if files and len(names) == 1:
        return {image_stem(file): {mask_stem(names[0]): file} for file in files}
    return {below.name: {image_stem(file): file for file in _images(below)} for below in _folders(folder)}


def _reference_masks(folder: Path, *, cases: Collection[str], stems: Collection[str]) -> dict[str, tuple[Path, Masks]]:
    """Where the masks of each case are, and the masks; raises `AutosegError` where there are none."""
    if not folder.is_dir():
        raise AutosegError(_no_folder(folder))
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
        message = f"contains no masks of {', '.join(sorted(stems)[:6])}, which the predictions have"
        fix = (
            "use folders CASE with a file for each class, folders CLASS with a file for each case, or files of segments"
        )
        raise AutosegError(Issue(code="evaluation.no_masks", where=str(folder), message=message, fix=fix))
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


def _mask_issues(
    run: _Run, cases: Sequence[_MaskCase], names: Sequence[str], predicted: Collection[str], expected: Collection[str]
) -> list[Issue]:
    """Unpaired cases, missing masks, and headers that cannot be read or have other grids."""
    issues = [run.no_prediction(f"{run.references}, case {case}") for case in sorted(set(expected) - set(predicted))]
    issues += [run.no_reference(str(run.predictions / case)) for case in sorted(set(predicted) - set(expected))]
    issues += [
        Issue(
            code="evaluation.missing_mask",
            where=str(case.predicted_in),
            message=f"has no mask of {name}",
            fix="add it, or an empty mask if the case lacks the class",
        )
        for case in cases
        for name in names
        if mask_stem(name) not in case.predicted
    ]
    with run.reporter.track("Reading headers", len(cases)) as tracker:
        for found in run_jobs(_check_headers, cases, name=_name, num_workers=1, tracker=tracker):
            issues += found
    return issues


def _check_headers(case: _MaskCase) -> list[Issue]:
    """Headers that cannot be read, and masks on other grids than the first predicted one."""
    issues: list[Issue] = []
    headers = []
    for path in (*case.predicted.values(), *(path for name, path in case.reference.items() if name in case.predicted)):
        try:
            headers.append((path, read_header(path)))
        except AutosegError as error:
            issues += error.issues
    for path, header in headers[1:]:
        if not header.may_be_part:
            first, grid = headers[0]
            issues += grid_issues(path, header.geometry, first, grid.geometry)
    return issues


def _score_masks(
    case: _MaskCase, *, classes: tuple[EvaluatedClass, ...], threshold: int | None, tolerance_mm: float
) -> CaseResult:
    return CaseResult(
        case_id=case.case_id,
        metrics={each.key: _score_mask(case, each.name, threshold, tolerance_mm) for each in classes},
        prediction_file=str(case.predicted_in),
        reference_file=str(case.reference_in),
    )


def _score_mask(case: _MaskCase, name: str, threshold: int | None, tolerance_mm: float) -> ClassMetrics:
    stem = mask_stem(name)
    predicted, grid = read_mask(MaskFile(label=name, file=str(case.predicted[stem])), threshold=None)
    expected = np.zeros_like(predicted)
    if stem in case.reference:
        reference = MaskFile(label=name, file=str(case.reference[stem]))
        expected, _ = read_mask(reference, threshold=threshold, onto=grid)
    scores = compare(
        predicted.astype(np.uint8),
        expected.astype(np.uint8),
        classes=[EvaluatedClass(name=name, values=(1,))],
        spacing_mm=grid.spacing_mm,
        tolerance_mm=tolerance_mm,
    )
    return scores[name]

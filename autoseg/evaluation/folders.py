"""Scores a folder of predictions against its references: a folder of label maps, of masks of classes, or a dataset.

A label map may also lie in a folder of its case (``CASE/CASE``, ``CASE/seg``). Masks are in a folder for each case, with one file for each class. Their references may be stored in the same way, in the dataset's
own folders (``CASE/segmentations/CLASS``), in a folder for each class (``CLASS/CASE``), or in one file of segments a case
(DICOM SEG, ``.seg.nrrd``). A class without a reference file is absent there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.compute.executor import run_jobs
from autoseg.data.dataset import DatasetDescription, MaskFile
from autoseg.data.discovery import discover_dataset
from autoseg.data.labels import read_mask
from autoseg.evaluation.detection import detections_in, probabilities_beside, require_probabilities
from autoseg.evaluation.lesions import LesionRule
from autoseg.evaluation.metrics import DEFAULT_TOLERANCE_MM, ClassMetrics, EvaluatedClass, compare, evaluated_classes
from autoseg.evaluation.pairing import WORDS, case_in, pair_names
from autoseg.evaluation.scoring import EvaluatedPair, grid_issues, on_whole_grid, score_case, score_cases
from autoseg.evaluation.table import CaseResult, Summary, summarize
from autoseg.imaging.image import LabelMap
from autoseg.imaging.readers import (
    PART_MARK,
    image_ending,
    image_endings,
    image_stem,
    is_debris,
    is_segmentation,
    list_segments,
    read_header,
    read_label_map,
)
from autoseg.issues import AutosegError, Issue, Severity
from autoseg.tracking.progress import Reporter, SilentReporter
from autoseg.wording import shorten

MAX_FOUND_CLASSES = 1000
"""More distinct values than this are intensities: the references are images, not label maps."""

Masks = Mapping[str, Path]
"""Mask file by the name of its class: a file, or one segment of a file (``FILE#3``)."""


def mask_stem(class_name: str) -> str:
    """Name of a mask file of a class, without its ending."""
    return class_name.replace("/", "_")


def case_names(predictions: Path) -> list[str]:
    """Names of what may be cases in a folder of predictions, or the name of a file, without endings."""
    paths = sorted(predictions.iterdir()) if predictions.is_dir() else [predictions]
    return [path.name if path.is_dir() else image_stem(path) for path in paths]


def evaluate_folder(
    predictions: Path,
    references: Path,
    *,
    classes: Sequence[EvaluatedClass] = (),
    ignore: int | None = None,
    threshold: int | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    lesions: LesionRule | None = None,
    challenge_classes: Sequence[EvaluatedClass] = (),
    detection: bool = False,
    strict: bool = False,
    num_workers: int = 1,
    reporter: Reporter | None = None,
) -> Summary:
    """Score every prediction in a folder against its reference; cases come in the order of their names.

    Label maps are paired by file name without ending, else without words such as ``_mask``, ``_seg``, ``_pred`` or ``_0000``
    (`pair_names`). Files that are no images (``summary.json``, logs) are ignored. Without ``classes`` every value but 0 and
    ``ignore`` that occurs in any reference is a class, named by its value. Where ``references`` is a dataset, in any layout
    that `discover_dataset` reads, its labelled cases are the references, with its own classes and ignore label.

    ``challenge_classes`` are scored instead of all these, by the values in the files; masks of classes are refused then. With
    ``lesions`` single lesions are scored, too, and with ``detection`` those found in the probabilities, ``CASE.npz`` in ``predictions``.

    Label maps in folders of their own, ``CASE/CASE`` or ``CASE/seg``, are named by the folder.

    Where the predictions are masks of classes, ``predictions/CASE/CLASS`` is scored against its mask in ``references``; of
    a single class also ``predictions/CASE``. Each class is scored as a separate mask, wherever they overlap, and is
    numbered from 1 on in the summary; without ``classes``, all that are predicted. From ``threshold`` on a voxel of a
    reference belongs to the structure; with none, everything but 0.

    Two files are one case, whatever their names.

    Predictions without a reference and references without a prediction are in ``not_scored`` of the summary; with
    ``strict`` they are errors. All else is checked first: raises one `AutosegError` that lists every file that cannot be
    read and every pair of grids that differ; also where there is no pair at all.
    """
    run = _Run(
        predictions=predictions,
        references=references,
        tolerance_mm=tolerance_mm,
        lesions=lesions,
        challenge_classes=tuple(challenge_classes),
        detection=detection,
        strict=strict,
        num_workers=num_workers,
        reporter=reporter or SilentReporter(),
    )
    in_folders = {folder for folder in (predictions, references) if _maps_in_folders(folder, classes)}
    if predictions not in in_folders and (
        holds_masks(predictions) or (len(classes) == 1 and references not in in_folders and holds_masks(references))
    ):
        return _evaluate_masks(run, tuple(each.name for each in classes), threshold)
    if references not in in_folders and (dataset := _dataset_of(run)) is not None:
        return _evaluate_dataset(run, dataset, tuple(classes))
    return _evaluate_label_maps(run, tuple(classes), ignore)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One evaluation."""

    predictions: Path
    references: Path
    tolerance_mm: float
    lesions: LesionRule | None
    challenge_classes: tuple[EvaluatedClass, ...]
    detection: bool
    strict: bool
    num_workers: int
    reporter: Reporter

    def refuse(self, issues: Sequence[Issue]) -> None:
        if issues:
            raise AutosegError(*issues, headline=f"{self.predictions} cannot be compared with {self.references}")

    def unpaired(
        self,
        references: Mapping[str, str],
        predictions: Mapping[str, str],
        num_pairs: int,
        *,
        fix: str = "name each prediction as its reference, or as its case",
    ) -> list[Issue]:
        """Issues about what has no counterpart, by case: where it is. Raises `AutosegError` with ``fix`` where there is no pair."""
        if not num_pairs:
            message = (
                f"no file has the name of one in {self.references} ({_first(predictions)}, but {_first(references)})"
            )
            raise AutosegError(Issue(code="evaluation.no_pairs", where=str(self.predictions), message=message, fix=fix))
        severity: Severity = "error" if self.strict else "warning"
        fix = f"predict this case into {self.predictions}, or move its reference elsewhere"
        issues = [
            Issue(code="evaluation.no_prediction", severity=severity, where=where, message="has no prediction", fix=fix)
            for _, where in sorted(references.items())
        ]
        fix = f"add its reference to {self.references}, or move the prediction elsewhere"
        return issues + [
            Issue(code="evaluation.no_reference", severity=severity, where=where, message="has no reference", fix=fix)
            for _, where in sorted(predictions.items())
        ]


def _first(names: Collection[str]) -> str:
    return min(names, default="none")


def _name(case: EvaluatedPair | _MaskCase) -> str:
    return f"case {case.case_id}"


# --- datasets ---


def _dataset_of(run: _Run) -> DatasetDescription | None:
    """The dataset that the references are; none where they are label maps alone, or no folder.

    It has folders and no image beside them, or images beside their label maps (``p1``, ``p1_seg``).
    """
    names = [image_stem(file) for file in _images(run.references)] if run.references.is_dir() else []
    cases = Counter(map(case_in, names))
    if not (max(cases.values()) > 1 if names else run.references.is_dir() and _folders(run.references)):
        return None
    try:
        return discover_dataset(run.references, num_workers=run.num_workers, reporter=run.reporter)
    except AutosegError:
        if names:
            return None
        raise


def _evaluate_dataset(run: _Run, dataset: DatasetDescription, classes: tuple[EvaluatedClass, ...]) -> Summary:
    own = evaluated_classes(dataset.labels, dataset.file_values)
    if run.challenge_classes:
        _require_values(run, dataset)
    elif classes and {each.name: each.values for each in classes} != {each.name: each.values for each in own}:
        listed = (", ".join(f"{each.name} {each.key}" for each in of) for of in (classes, own))
        message = "the predictions have the classes {}, but the references have {}".format(*listed)
        fix = "evaluate against the dataset that the model was trained on, or against a folder of its label maps"
        raise AutosegError(Issue(code="evaluation.other_classes", where=str(run.predictions), message=message, fix=fix))
    predicted = _label_files(run.predictions)
    cases = {case.case_id: case for case in dataset.training if case.is_labelled}
    pairs = pair_names(predicted, cases)
    extra = {name: str(predicted[name]) for name in predicted.keys() - pairs.keys()}
    missing = {name: cases[name].label_files[0] for name in cases.keys() - set(pairs.values())}
    of_test = {case.case_id for case in dataset.test}
    told = {"fix": "these are its test cases: pass the folder of their label maps"} if of_test & extra.keys() else {}
    unpaired = run.unpaired(missing, extra, len(pairs), **told)
    run.refuse(unpaired if run.strict else [])
    if run.detection:
        require_probabilities(probabilities_beside(predicted[name]) for name in pairs)
    with run.reporter.track("Scoring", len(pairs)) as tracker:
        scored = [(case_id, predicted[name]) for name, case_id in pairs.items()]
        summary = score_cases(
            dataset,
            scored,
            tracker,
            tolerance_mm=run.tolerance_mm,
            classes=run.challenge_classes,
            lesions=run.lesions,
            num_workers=run.num_workers,
            detection=run.detection,
        )
    return summary.model_copy(update={"not_scored": tuple(unpaired)})


def _require_values(run: _Run, dataset: DatasetDescription) -> None:
    """Raise `AutosegError` where the references do not have the values of the challenge's classes."""
    missing = {value for each in run.challenge_classes for value in each.values} - {*dataset.file_values}
    if missing or dataset.classes_with_masks:
        message = (
            "has masks of classes"
            if dataset.classes_with_masks
            else f"has no value {', '.join(map(str, sorted(missing)))}, which classes of the challenge have"
        )
        fix = "pass references in the form of the challenge, as label maps with its values"
        raise AutosegError(
            Issue(code="evaluation.not_of_challenge", where=str(run.references), message=message, fix=fix)
        )


# --- label maps ---


@dataclass(frozen=True, slots=True)
class _Checked:
    issues: tuple[Issue, ...]
    prediction_values: frozenset[int] = frozenset()
    reference_values: frozenset[int] = frozenset()


def _evaluate_label_maps(run: _Run, classes: tuple[EvaluatedClass, ...], ignore: int | None) -> Summary:
    pairs, unpaired = _pair_of_files(run) or _pairs_of_folders(run)
    if run.detection:
        require_probabilities(probabilities_beside(pair.prediction) for pair in pairs)
    with run.reporter.track("Reading label maps", len(pairs)) as tracker:
        checked = run_jobs(_check_pair, pairs, name=_name, num_workers=run.num_workers, tracker=tracker)
    run.refuse([*(unpaired if run.strict else ()), *(issue for each in checked for issue in each.issues)])
    found = frozenset().union(*(each.reference_values for each in checked))
    classes = run.challenge_classes or classes or _classes_of_values(found - {ignore}, run.references)
    _say_unknown_values(checked, classes, ignore, run.reporter)
    score = partial(
        _read_and_score,
        classes=classes,
        ignore=ignore,
        tolerance_mm=run.tolerance_mm,
        lesions=run.lesions,
        detection=run.detection,
    )
    with run.reporter.track("Scoring", len(pairs)) as tracker:
        cases = run_jobs(score, pairs, name=_name, num_workers=run.num_workers, tracker=tracker)
    return summarize(
        cases, classes, ignore=ignore, tolerance_mm=run.tolerance_mm, not_scored=unpaired, lesions=run.lesions
    )


def _pair_of_files(run: _Run) -> tuple[list[EvaluatedPair], list[Issue]] | None:
    """Two files, whatever their names; None for folders."""
    if not (run.predictions.is_file() and run.references.is_file()):
        return None
    case_id = image_stem(run.predictions)
    return [EvaluatedPair(case_id=case_id, prediction=run.predictions, reference=run.references)], []


def _pairs_of_folders(run: _Run) -> tuple[list[EvaluatedPair], list[Issue]]:
    """Files of one case in both folders, and what has no counterpart."""
    files: list[dict[str, Path]] = []
    issues: list[Issue] = []
    for folder in (run.predictions, run.references):
        try:
            files.append(_label_files(folder))
        except AutosegError as error:
            issues += error.issues
    run.refuse(issues)
    predicted, expected = files
    named = pair_names(predicted, expected)
    pairs = [EvaluatedPair(case_id=n, prediction=predicted[n], reference=expected[r]) for n, r in named.items()]
    unpaired = run.unpaired(
        {name: str(expected[name]) for name in expected.keys() - set(named.values())},
        {name: str(predicted[name]) for name in predicted.keys() - named.keys()},
        len(pairs),
    )
    return pairs, unpaired


def _label_files(folder: Path) -> dict[str, Path]:
    """Image files of a folder by name without ending, or, where each has a folder of its own, by the folder's name.

    Raises `AutosegError` where there is none, and for two of one name.
    """
    if not folder.is_dir():
        raise AutosegError(_no_folder(folder))
    if in_folders := _maps_in_folders(folder):
        return in_folders
    files: dict[str, Path] = {}
    issues: list[Issue] = []
    for path in _images(folder):
        if (first := files.setdefault(image_stem(path), path)) is not path:
            message, fix = f"same name as {first.name}", "keep one of them"
            issues.append(Issue(code="evaluation.duplicate_name", where=str(path), message=message, fix=fix))
    if not files:
        message, fix = "contains no label maps", f"pass a folder with files that end in {', '.join(image_endings())}"
        issues.append(Issue(code="evaluation.no_label_maps", where=str(folder), message=message, fix=fix))
    if issues:
        raise AutosegError(*issues)
    return files


def _maps_in_folders(folder: Path, classes: Sequence[EvaluatedClass] = ()) -> dict[str, Path]:
    """The label map of each case where every folder holds one image, named after the case or ``seg``; else none.

    The name of one of the ``classes`` makes it a mask.
    """
    if not folder.is_dir() or any(_images(folder)):
        return {}
    found = {below.name: files for below in _folders(folder) if (files := list(_images(below)))}
    stems = {mask_stem(each.name).casefold() for each in classes}
    for name, files in found.items():
        stem = image_stem(files[0])
        is_named = re.fullmatch(WORDS, stem, re.I) or case_in(stem) == case_in(name)
        if len(files) > 1 or not is_named or stem.casefold() in stems or is_segmentation(files[0]):
            return {}
    return {name: file for name, (file,) in found.items()}


def _no_folder(folder: Path) -> Issue:
    message = "is a file, not a folder" if folder.exists() else "does not exist"
    return Issue(
        code="evaluation.no_folder",
        where=str(folder),
        message=message,
        fix="pass two folders of label maps, or two files",
    )


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
    except AutosegError as error:  # of an array: the file that it is from is added
        where = {"where": str(pair.reference)}
        return _Checked(tuple(issue if issue.where else issue.model_copy(update=where) for issue in error.issues))
    grids = grid_issues(pair.prediction, maps[0].geometry, pair.reference, reference.geometry)
    return _Checked(grids, predicted, expected)


def _read_and_score(
    pair: EvaluatedPair,
    *,
    classes: tuple[EvaluatedClass, ...],
    ignore: int | None,
    tolerance_mm: float,
    lesions: LesionRule | None,
    detection: bool,
) -> CaseResult:
    return score_case(
        pair,
        read_label_map(pair.prediction),
        read_label_map(pair.reference),
        classes=classes,
        ignore=ignore,
        tolerance_mm=tolerance_mm,
        lesions=lesions,
        detected=classes if detection else (),
    )


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
    predicted = Counter(value for each in checked for value in each.prediction_values - known)
    if predicted:
        listed = ", ".join(f"{value} (in {number} of {len(checked)})" for value, number in sorted(predicted.items()))
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
    probabilities: Path | None
    """Where detections are asked for."""


def _evaluate_masks(run: _Run, names: tuple[str, ...], threshold: int | None) -> Summary:
    if run.challenge_classes:
        message, fix = "contains masks of classes", "pass label maps with the values of the challenge"
        raise AutosegError(
            Issue(code="evaluation.not_of_challenge", where=str(run.predictions), message=message, fix=fix)
        )
    files = list(_images(run.predictions))
    predicted: dict[str, Masks]
    if files and len(names) == 1:
        predicted = {image_stem(file): {mask_stem(names[0]): file} for file in files}
    else:
        folders = _folders(run.predictions)
        predicted = {below.name: {image_stem(file): file for file in _images(below)} for below in folders}
    found = Counter(name for masks in predicted.values() for name in masks)
    if not names and len(predicted) > 1 and max(found.values(), default=0) == 1:
        message = (
            f"its folders have no file of the same name ({shorten(sorted(found))}), so none is the mask of a class"
        )
        fix = "keep one label map in each, named as its folder or seg, or name masks by their class, as CASE/CLASS"
        raise AutosegError(Issue(code="evaluation.no_masks", where=str(run.predictions), message=message, fix=fix))
    names = names or tuple(sorted(found))
    stems = {mask_stem(name) for name in names}
    expected = _reference_masks(run.references, cases=predicted.keys(), stems=stems)
    pairs = pair_names(predicted, expected)
    cases = [
        _MaskCase(
            case_id=name,
            predicted=predicted[name],
            reference=expected[reference][1],
            predicted_in=run.predictions / name,
            reference_in=expected[reference][0],
            probabilities=run.predictions / f"{name}.npz" if run.detection else None,
        )
        for name, reference in pairs.items()
    ]
    unpaired = run.unpaired(
        {name: f"{run.references}, case {name}" for name in expected.keys() - set(pairs.values())},
        {name: str(run.predictions / name) for name in predicted.keys() - pairs.keys()},
        len(cases),
    )
    fix = "add it, or an empty mask if the case lacks the class"
    missing = [
        Issue(code="evaluation.missing_mask", where=str(case.predicted_in), message=f"has no mask of {name}", fix=fix)
        for case in cases
        for name in names
        if mask_stem(name) not in case.predicted
    ]
    with run.reporter.track("Reading headers", len(cases)) as tracker:
        headers = run_jobs(_check_headers, cases, name=_name, num_workers=1, tracker=tracker)
    run.refuse([*(unpaired if run.strict else ()), *missing, *(issue for each in headers for issue in each)])
    require_probabilities(case.probabilities for case in cases if case.probabilities is not None)
    if unpredicted := sorted({stem for _, masks in expected.values() for stem in masks} - stems):
        run.reporter.say(f"Not scored, because not predicted: {', '.join(unpredicted)}")
    classes = tuple(EvaluatedClass(name=name, values=(number,)) for number, name in enumerate(names, 1))
    score = partial(
        _score_masks, classes=classes, threshold=threshold, tolerance_mm=run.tolerance_mm, lesions=run.lesions
    )
    with run.reporter.track("Scoring", len(cases)) as tracker:
        results = run_jobs(score, cases, name=_name, num_workers=run.num_workers, tracker=tracker)
    return summarize(results, classes, tolerance_mm=run.tolerance_mm, not_scored=unpaired, lesions=run.lesions)


def holds_masks(folder: Path) -> bool:
    """Whether there are masks in separate folders (of cases, or of classes) and no image next to these folders."""
    if not folder.is_dir() or any(_images(folder)):
        return False
    return any(any(_images(place)) for below in _folders(folder) for place in (below, *_folders(below)))


def _folders(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not (is_debris(entry) or entry.name.startswith("_"))
    )


def _images(folder: Path) -> Iterator[Path]:
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not is_debris(entry))
    return (file for file in files if image_ending(file))


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
    case: _MaskCase,
    *,
    classes: tuple[EvaluatedClass, ...],
    threshold: int | None,
    tolerance_mm: float,
    lesions: LesionRule | None,
) -> CaseResult:
    metrics: dict[str, ClassMetrics] = {}
    references: dict[str, NDArray[np.bool_]] = {}
    for each in classes:
        stem = mask_stem(each.name)
        predicted, grid = read_mask(MaskFile(label=each.name, file=str(case.predicted[stem])), threshold=None)
        expected = np.zeros_like(predicted)
        if stem in case.reference:
            reference = MaskFile(label=each.name, file=str(case.reference[stem]))
            expected, _ = read_mask(reference, threshold=threshold, onto=grid)
        inside = EvaluatedClass(name=each.name, values=(1,))
        arrays = predicted.astype(np.uint8), expected.astype(np.uint8)
        scores = compare(
            *arrays, classes=[inside], spacing_mm=grid.spacing_mm, tolerance_mm=tolerance_mm, lesions=lesions
        )
        metrics[each.key] = scores[each.name]
        if case.probabilities is not None:
            references[each.key] = expected
    return CaseResult(
        case_id=case.case_id,
        metrics=metrics,
        prediction_file=str(case.predicted_in),
        reference_file=str(case.reference_in),
        detections={} if case.probabilities is None else detections_in(case.probabilities, references),
    )

"""Scores of a whole folder of predictions, and the ``summary.json`` that keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import ConfigDict, Field

from autoseg.compute.executor import run_jobs
from autoseg.data.grids import turned_differences
from autoseg.evaluation.metrics import (
    DEFAULT_TOLERANCE_MM,
    ClassMetrics,
    EvaluatedClass,
    compare,
    stored_name,
)
from autoseg.imaging.image import Geometry, LabelMap
from autoseg.imaging.orientation import align_label_map
from autoseg.imaging.readers import IMAGE_ENDINGS, image_ending, image_stem, read_label_map
from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.storage.atomic import load_document, write_text
from autoseg.tracking.progress import Reporter, SilentReporter
from planners import Document

Result = TypeVar("Result")

METRICS = tuple(ClassMetrics.model_fields)
"""All metrics of a case, by field name."""

MAX_FOUND_CLASSES = 1000
"""More distinct values than this are intensities: somebody gave images in place of label maps."""


class MeanMetrics(Document):
    """Means over cases, or over classes; counts become mean counts. None: defined nowhere."""

    model_config = ConfigDict(alias_generator=stored_name, populate_by_name=True)

    dice: float | None
    iou: float | None
    tp: float | None
    fp: float | None
    fn: float | None
    tn: float | None
    n_pred: float | None
    n_ref: float | None
    volume_prediction_ml: float | None
    volume_reference_ml: float | None
    hausdorff95_mm: float | None
    surface_dice: float | None


class ClassCounts(Document):
    """What the means of one class rest on."""

    cases: int
    both_empty: int
    """Cases without the class in either; they have no Dice and no surface scores and enter no mean of those."""
    missed: int
    """Cases whose reference has the class and whose prediction has not: Dice 0, no Hausdorff distance."""
    invented: int
    """Cases whose prediction has the class and whose reference has not: Dice 0, no Hausdorff distance."""
    in_mean: dict[str, int]
    """For each metric, the number of cases in its mean."""


class CaseResult(Document):
    """Scores of one case, by `EvaluatedClass.key`."""

    case_id: str
    metrics: dict[str, ClassMetrics]
    prediction_file: str
    reference_file: str


class Summary(Document):
    """``summary.json``: what method section 9.1 has, with surfaces, volumes and what the means rest on."""

    schema_version: Literal[1] = 1
    classes: Annotated[tuple[EvaluatedClass, ...], Field(min_length=1)]
    ignore: int | None
    tolerance_mm: float
    foreground_mean: MeanMetrics
    """Plain mean over classes of ``mean``; a class without a mean takes no part."""
    foreground_classes: dict[str, int]
    """For each metric, the number of classes in ``foreground_mean``."""
    mean: dict[str, MeanMetrics]
    """Mean over the cases in which a metric is defined, by `EvaluatedClass.key`."""
    counts: dict[str, ClassCounts]
    metric_per_case: tuple[CaseResult, ...]

    def dice_by_case(self) -> dict[str, dict[str, float | None]]:
        """Dice by case id and class name, as `selection.select_candidate` takes it."""
        return {
            case.case_id: {each.name: case.metrics[each.key].dice for each in self.classes}
            for case in self.metric_per_case
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedPair:
    """Files of one case."""

    case_id: str
    prediction: Path
    reference: Path


@dataclass(frozen=True, slots=True)
class _Checked:
    problems: tuple[Issue, ...]
    prediction_values: frozenset[int]
    reference_values: frozenset[int]


def summarize(
    cases: Sequence[CaseResult],
    classes: Sequence[EvaluatedClass],
    *,
    ignore: int | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> Summary:
    """The summary of cases that are already scored, in the order given.

    A mean over cases leaves out the cases in which a metric is none; ``counts`` says how many remain. It is none
    where no case remains, and such a class takes no part in ``foreground_mean``.
    """
    mean = {each.key: _mean_over([case.metrics[each.key] for case in cases]) for each in classes}
    counts = {each.key: _count([case.metrics[each.key] for case in cases]) for each in classes}
    per_class = list(mean.values())
    return Summary(
        classes=tuple(classes),
        ignore=ignore,
        tolerance_mm=tolerance_mm,
        foreground_mean=_mean_over(per_class),
        foreground_classes=_number_defined(per_class),
        mean=mean,
        counts=counts,
        metric_per_case=tuple(cases),
    )


def evaluate_case(
    pair: EvaluatedPair,
    *,
    classes: Sequence[EvaluatedClass],
    ignore: int | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> CaseResult:
    """Read and score one case. Distances are in mm by the spacing of the reference.

    A prediction that stores the reference's grid in another orientation is turned to it. Raises `AutosegError` where the two grids differ, and what reading raises.
    """
    prediction, reference = read_label_map(pair.prediction), read_label_map(pair.reference)
    return score_case(pair, prediction, reference, classes=classes, ignore=ignore, tolerance_mm=tolerance_mm)


def score_case(
    pair: EvaluatedPair,
    prediction: LabelMap,
    reference: LabelMap,
    *,
    classes: Sequence[EvaluatedClass],
    ignore: int | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    unscored: Collection[str] = (),
) -> CaseResult:
    """Score label maps that were read from the files of ``pair``, as `evaluate_case` does.

    Classes named in ``unscored`` count as empty in both: nobody knows where they are, and no mean may hold them.
    """
    reference = _placed(reference, prediction.geometry)
    problems = _compare_grids(pair, prediction.geometry, reference.geometry)
    if problems:
        raise AutosegError(*problems, headline=(f"case {pair.case_id} cannot be scored"))
    metrics = compare(
        align_label_map(prediction, reference.geometry),
        reference.array,
        classes=classes,
        ignore=ignore,
        spacing_mm=reference.geometry.spacing_mm,
        tolerance_mm=tolerance_mm,
    )
    return CaseResult(
        case_id=pair.case_id,
        metrics={
            each.key: _nothing(metrics[each.name]) if each.name in unscored else metrics[each.name] for each in classes
        },
        prediction_file=str(pair.prediction),
        reference_file=str(pair.reference),
    )


def _placed(reference: LabelMap, grid: Geometry) -> LabelMap:
    """A reference that may be a part of its image's grid on the whole of it; `AutosegError` where it is no part."""
    return LabelMap(array=align_label_map(reference, grid), geometry=grid) if reference.may_be_part else reference


def _nothing(metrics: ClassMetrics) -> ClassMetrics:
    """Scores of a class that is in neither label map."""
    return ClassMetrics(
        dice=None,
        iou=None,
        tp=0,
        fp=0,
        fn=0,
        tn=metrics.tp + metrics.fp + metrics.fn + metrics.tn,
        n_pred=0,
        n_ref=0,
        volume_prediction_ml=0.0,
        volume_reference_ml=0.0,
        hausdorff95_mm=None,
        surface_dice=None,
    )


def evaluate_folder(
    predictions: Path,
    references: Path,
    *,
    classes: Sequence[EvaluatedClass] | None = None,
    ignore: int | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    num_workers: int = 1,
    reporter: Reporter | None = None,
) -> Summary:
    """Score every prediction in a folder against the reference of the same name.

    Files are paired by name without ending; files that are no images (``summary.json``, logs) are passed over. With
    ``classes`` none, every value but 0 and ``ignore`` that occurs in any reference is a class, named by its value.
    Cases come in the order of their names. First all pairs are read and checked; raises one `AutosegError` that lists
    every missing or extra prediction, every unreadable file and every pair that disagrees in shape or geometry.
    """
    reporter = reporter or SilentReporter()
    pairs, problems = pair_files(predictions, references)
    checked = _in_jobs(_check_pair, pairs, "Reading label maps", num_workers, reporter)
    problems += [problem for each in checked for problem in each.problems]
    if problems:
        raise AutosegError(*problems, headline=(f"{predictions} cannot be compared with {references}"))
    found = frozenset().union(*(each.reference_values for each in checked))
    chosen = _classes_of_values(found - {ignore}, references) if classes is None else tuple(classes)
    _say_unknown_values(checked, chosen, ignore, reporter)
    score = partial(evaluate_case, classes=chosen, ignore=ignore, tolerance_mm=tolerance_mm)
    cases = _in_jobs(score, pairs, "Scoring", num_workers, reporter)
    return summarize(cases, chosen, ignore=ignore, tolerance_mm=tolerance_mm)


def pair_files(predictions: Path, references: Path) -> tuple[list[EvaluatedPair], list[Issue]]:
    """The pairs that two folders have in common, sorted by name, and what stands in the way of a comparison."""
    problems: list[Issue] = []
    predicted, expected = _label_files(predictions, problems), _label_files(references, problems)
    if not problems:
        problems += [
            Issue(
                code=UNNAMED,
                where=str(references / expected[name].name),
                message="has no prediction",
                fix=f"predict this case into {predictions}, or take its reference out of the folder",
            )
            for name in sorted(expected.keys() - predicted.keys())
        ]
        problems += [
            Issue(
                code=UNNAMED,
                where=str(predicted[name]),
                message="has no reference",
                fix=f"add a reference of the name {name} to {references}, or take this prediction out of the folder",
            )
            for name in sorted(predicted.keys() - expected.keys())
        ]
    common = sorted(predicted.keys() & expected.keys())
    return [EvaluatedPair(case_id=n, prediction=predicted[n], reference=expected[n]) for n in common], problems


def write_summary(path: Path, summary: Summary) -> None:
    """Write ``summary.json`` atomically, keys sorted as in the method; exact floats, no NaN."""
    stored = summary.model_dump(mode="json", by_alias=True)
    write_text(path, json.dumps(stored, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_summary(path: Path) -> Summary:
    """What `write_summary` wrote; `AutosegError` with all problems where it is something else."""
    return load_document(Summary, path)


def _mean_over(scores: Sequence[ClassMetrics] | Sequence[MeanMetrics]) -> MeanMetrics:
    means: dict[str, float | None] = {}
    for metric in METRICS:
        defined = [value for each in scores if (value := getattr(each, metric)) is not None]
        means[metric] = fmean(defined) if defined else None
    return MeanMetrics(**means)


def _number_defined(scores: Sequence[ClassMetrics] | Sequence[MeanMetrics]) -> dict[str, int]:
    return {stored_name(metric): sum(getattr(each, metric) is not None for each in scores) for metric in METRICS}


def _count(scores: Sequence[ClassMetrics]) -> ClassCounts:
    return ClassCounts(
        cases=len(scores),
        both_empty=sum(not each.n_pred and not each.n_ref for each in scores),
        missed=sum(not each.n_pred and each.n_ref > 0 for each in scores),
        invented=sum(each.n_pred > 0 and not each.n_ref for each in scores),
        in_mean=_number_defined(scores),
    )


def _label_files(folder: Path, problems: list[Issue]) -> dict[str, Path]:
    """Image files of a folder by name without ending; adds to ``problems`` what is wrong with the folder."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        problems.append(Issue(code=UNNAMED, where=str(folder), message=found, fix="give a folder of label maps"))
        return {}
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file() or image_ending(path) not in IMAGE_ENDINGS:
            continue
        name = image_stem(path)
        if name in files:
            problems.append(
                Issue(
                    code=UNNAMED,
                    where=str(path),
                    message=f"is a second file of the name {name}, beside {files[name].name}",
                    fix="keep one of the two",
                )
            )
        files.setdefault(name, path)
    if not files:
        problems.append(
            Issue(
                code=UNNAMED,
                where=str(folder),
                message="holds no label maps",
                fix=f"give a folder with files that end in {', '.join(IMAGE_ENDINGS)}",
            )
        )
    return files


def _in_jobs(
    function: Callable[[EvaluatedPair], Result],
    pairs: Sequence[EvaluatedPair],
    title: str,
    num_workers: int,
    reporter: Reporter,
) -> list[Result]:
    with reporter.track(title, len(pairs)) as tracker:
        return run_jobs(
            function, pairs, name=lambda pair: f"case {pair.case_id}", num_workers=num_workers, tracker=tracker
        )


def _check_pair(pair: EvaluatedPair) -> _Checked:
    """Both files read once: what is wrong with them, and which values they hold."""
    problems: list[Issue] = []
    maps: list[LabelMap] = []
    for path in (pair.prediction, pair.reference):
        try:
            maps.append(read_label_map(path))
        except AutosegError as error:
            problems += error.issues if all(issue.where for issue in error.issues) else [reading_problem(path, error)]
    if problems:
        return _Checked(tuple(problems), frozenset(), frozenset())
    values = [frozenset(int(value) for value in np.unique(each.array)) - {0} for each in maps]
    try:
        reference = _placed(maps[1], maps[0].geometry)
    except AutosegError as error:
        return _Checked((reading_problem(pair.reference, error),), *values)
    return _Checked(_compare_grids(pair, maps[0].geometry, reference.geometry), *values)


def reading_problem(path: Path, error: AutosegError) -> Issue:
    """A reader's message in three parts; it begins with the file and ends, after a semicolon, with the remedy."""
    text = str(error).removeprefix(str(path)).lstrip(": ")
    found, _, mend = text.rpartition("; ")
    return Issue(
        code=UNNAMED,
        where=str(path),
        message=found or text,
        fix=mend if found else "replace the file by a whole label map",
    )


def _compare_grids(pair: EvaluatedPair, prediction: Geometry, reference: Geometry) -> tuple[Issue, ...]:
    return compare_grids(pair.prediction, prediction, pair.reference, reference)


def compare_grids(
    prediction_file: Path, prediction: Geometry, reference_file: Path, reference: Geometry
) -> tuple[Issue, ...]:
    """One problem for each property in which the grids differ once both are turned to canonical axes.

    The tolerances are those of the dataset check: label maps that may be trained on can be scored.
    """
    differences = turned_differences(prediction, reference)
    mend = f"bring it to the grid of {reference_file}, or predict the case again from the image of that reference"
    return tuple(
        Issue(code=UNNAMED, where=str(prediction_file), message=f"has {each}", fix=mend) for each in differences
    )


def _classes_of_values(values: frozenset[int], references: Path) -> tuple[EvaluatedClass, ...]:
    if not values:
        raise AutosegError(f"the references in {references} hold nothing but background; name the classes to be scored")
    if min(values) < 0 or len(values) > MAX_FOUND_CLASSES:
        raise AutosegError(
            f"the references in {references} hold {len(values)} different values from {min(values)} to {max(values)}, "
            "as images do; give label maps, where each class is a whole number above 0"
        )
    return tuple(EvaluatedClass(name=str(value), values=(value,)) for value in sorted(values))


def _say_unknown_values(
    checked: Sequence[_Checked], classes: Sequence[EvaluatedClass], ignore: int | None, reporter: Reporter
) -> None:
    known: set[int | None] = {ignore, *(value for each in classes for value in each.values)}
    unknown = frozenset().union(*(each.prediction_values for each in checked)) - known
    predicted = {value: sum(value in each.prediction_values for each in checked) for value in sorted(unknown)}
    if predicted:
        listed = ", ".join(f"{value} (in {number} of {len(checked)})" for value, number in predicted.items())
        reporter.say(f"predictions hold values that are no class and are scored as background: {listed}")

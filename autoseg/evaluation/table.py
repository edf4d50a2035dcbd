"""Scores of many cases as one long table, and what is derived from it: ``summary.json``, means, ranks, the text for a terminal.

The long table has one row for each case, class and metric. pandas is imported where a table is made, so that commands which
score nothing start without it.

``summary.json`` has the fields of nnU-Net and additional ones:

* ``foreground_mean``: metric -> mean over classes of the means over cases;
* ``mean``: class -> metric -> mean over cases. A class is ``"1"``, a region ``"(1, 2, 3)"``, by its values in the files;
* ``metric_per_case``: a list of ``{"case_id", "metrics": {class: {metric: value}}, "prediction_file", "reference_file"}``;
* ``estimates``: class (or ``foreground``) -> metric -> mean and median with their 95 % intervals (`intervals.Estimate`);
  ``volume_correlation``: class -> Pearson's correlation of predicted and reference volumes over cases;
* ``classes``: names and values of the classes; ``unions``: those of classes that are scored together, too, and are in no
  foreground mean; ``counts`` and ``foreground_classes``: how many cases and classes each mean
  rests on; ``ignore``, ``tolerance_mm``, ``lesions``, ``detection``, ``challenge``, ``not_scored``, ``schema_version``;
* ``groups``: for each column of a table of groups, Dice in each group with intervals, and where one differs (`groups.ScoresByGroup`).

Metrics are ``Dice``, ``IoU``, ``TP``, ``FP``, ``FN``, ``TN``, ``n_pred``, ``n_ref``, ``volume_prediction_ml``,
``volume_reference_ml``, ``hausdorff95_mm``, ``surface_dice``, ``sensitivity``, ``precision``, ``specificity``,
``volume_error_ml``, ``relative_volume_error``, and where asked for those that begin with ``lesion``. What is undefined is
``null``, never ``NaN``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, Field

from autoseg.data.splits import patients_by_name
from autoseg.data.tables import Grouping
from autoseg.evaluation.calibration import Calibration
from autoseg.evaluation.groups import FOREGROUND, ScoresByGroup, in_words, scores_by_group
from autoseg.evaluation.intervals import (
    FEWEST,
    RELIABLE,
    Estimate,
    estimate,
    estimate_over_classes,
    unit_codes,
)
from autoseg.evaluation.lesions import DetectionCurve, Detections, LesionRule
from autoseg.evaluation.metrics import DEFAULT_TOLERANCE_MM, DERIVED, ClassMetrics, EvaluatedClass, stored_name
from autoseg.imaging.readers import is_picture
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import load_document, write_text
from autoseg.wording import count_noun, grouped
from planners import Document

if TYPE_CHECKING:
    import pandas as pd

ALL_METRICS = (*map(stored_name, ClassMetrics.model_fields), *DERIVED)
METRICS = tuple(name for name in ALL_METRICS if not name.startswith("lesion"))
"""Metrics of the long table, counts included, in order."""
LESION_METRICS = tuple(name for name in ALL_METRICS if name.startswith("lesion"))
"""Metrics that are there as well where lesions were scored."""
COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref")
FIELDS = {stored_name(name): name for name in (*ClassMetrics.model_fields, *DERIVED)}
"""Field of `ClassMetrics` of each metric."""
NOT_ESTIMATED = {
    *COUNTS,
    "volume_prediction_ml",
    "volume_reference_ml",
    "lesions_found",
    "lesions_missed",
    "lesions_false_positive",
}
LOWER_IS_BETTER = frozenset({"hausdorff95_mm", "lesion_hausdorff95_mm"})
SIGNED = frozenset({"volume_error_ml", "relative_volume_error", "lesion_count_error"})
"""Errors of which the one next to 0 is best."""
NO_SPACING = "scores.no_spacing"
HARDLY_FOUND = 0.1
"""Mean Dice below which a class is called that: two balls of one size with centres one and a half radii apart come to 0.09."""
ABSENT = "-"

Means = dict[str, float | None]
"""Mean by metric; counts become mean counts. None: defined nowhere."""


class CaseResult(Document):
    """Scores of one case, by `EvaluatedClass.key`."""

    case_id: str
    metrics: dict[str, ClassMetrics]
    prediction_file: str
    reference_file: str
    patient: str | None = None
    """Cases of one patient count as one in intervals; none: the case stands alone."""
    measures: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    """Measures that a challenge takes besides (`measures.MEASURES`), by `EvaluatedClass.key`."""
    detections: dict[str, Detections] = Field(default_factory=dict, exclude=True)
    """Where asked for, by `EvaluatedClass.key`; not written, since the summary has their curve."""

    @property
    def unit(self) -> str:
        """What counts once in intervals."""
        return f"case {self.case_id}" if self.patient is None else f"patient {self.patient}"


class ClassCounts(Document):
    """What the means of one class rest on."""

    cases: int
    both_empty: int
    """Cases without the class in either; they have no Dice and no surface scores and enter no mean of those."""
    missed: int
    """Cases whose reference has the class and whose prediction has not: Dice 0, no Hausdorff distance."""
    false_positive: Annotated[int, Field(validation_alias=AliasChoices("false_positive", "invented"))]
    """Cases whose prediction has the class and whose reference has not: Dice 0, no Hausdorff distance. Version 0.2 called them ``invented``."""
    in_mean: dict[str, int]
    """For each metric, the number of cases in its mean."""


class Summary(Document):
    """``summary.json``; the format is described at the top of this module."""

    schema_version: Literal[1] = 1
    classes: Annotated[tuple[EvaluatedClass, ...], Field(min_length=1)]
    ignore: int | None
    tolerance_mm: float
    foreground_mean: Means
    """Plain mean over classes of ``mean``; a class without a mean takes no part."""
    foreground_classes: dict[str, int]
    """For each metric, the number of classes in ``foreground_mean``."""
    mean: dict[str, Means]
    """Mean over the cases in which a metric is defined, by `EvaluatedClass.key`."""
    counts: dict[str, ClassCounts]
    metric_per_case: tuple[CaseResult, ...]
    not_scored: tuple[Issue, ...] = ()
    """Predictions without a reference, and references without a prediction."""
    unions: tuple[EvaluatedClass, ...] = ()
    """Classes that are scored together, besides alone; they have means and estimates, and no part in ``foreground_mean``."""
    estimates: dict[str, dict[str, Estimate]] = Field(default_factory=dict)
    """By `EvaluatedClass.key`, or ``foreground``, and metric; empty: written before there were any."""
    volume_correlation: dict[str, float | None] = Field(default_factory=dict)
    """Pearson's correlation of predicted and reference volumes, by `EvaluatedClass.key`; none below three cases or without spread."""
    lesions: LesionRule | None = None
    """How lesions were scored; none: they were not."""
    detection: dict[str, DetectionCurve] = Field(default_factory=dict)
    """Detection curve of each class with lesions, by `EvaluatedClass.key`; empty where it was not asked for."""
    groups: tuple[ScoresByGroup, ...] = ()
    """Dice by each column of a table of groups; none: there was no table."""
    calibration: Calibration | None = None
    """Of the chosen model's probabilities; none: they were not kept, or this is no cross-validation."""
    expected_coverage: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """By class: cases whose Dice is in the range that was expected of them by models of other cases, and all of these cases."""
    challenge: str | None = None
    """The challenge whose classes, tolerances and lesions these are, by name, or a file."""

    @property
    def scored(self) -> tuple[EvaluatedClass, ...]:
        """Classes, and unions of them."""
        return (*self.classes, *self.unions)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of its long table, in order."""
        return METRICS if self.lesions is None else (*METRICS, *LESION_METRICS)

    @property
    def mean_dice(self) -> float | None:
        """Mean foreground Dice."""
        return self.foreground_mean["Dice"]

    def dice_by_case(self) -> dict[str, dict[str, float | None]]:
        """Dice by case id and class name, as `selection.select_candidate` takes it."""
        return {
            case.case_id: {each.name: case.metrics[each.key].dice for each in self.classes}
            for case in self.metric_per_case
        }


# --- the long table ---


def long_table(cases: Sequence[CaseResult], classes: Sequence[EvaluatedClass]) -> pd.DataFrame:
    """Columns ``case`` (id), ``class`` (name), ``metric`` (of `METRICS`), ``value`` (float; NaN: undefined), in that order."""
    import pandas as pd

    rows = [
        (case.case_id, each.name, metric, value)
        for case in cases
        for each in classes
        for metric, value in case.metrics[each.key].model_dump(by_alias=True).items()
    ]
    return pd.DataFrame(rows, columns=["case", "class", "metric", "value"]).astype({"value": float})


def scores_by_case(
    summary: Summary, metric: str = "Dice", classes: Sequence[EvaluatedClass] | None = None
) -> pd.DataFrame:
    """One metric with a row for each case and a column for each class, both in the order of the summary. NaN: undefined."""
    import pandas as pd

    of = summary.classes if classes is None else classes
    values = _metric_table(summary.metric_per_case, [each.key for each in of], metric)
    index = pd.Index([case.case_id for case in summary.metric_per_case], name="case")
    return pd.DataFrame(values, index, pd.Index([each.name for each in of], name="class"))


def class_statistics(
    summary: Summary, metric: str = "Dice", classes: Sequence[EvaluatedClass] | None = None
) -> pd.DataFrame:
    """One metric over cases: a row for each class, by name; ``classes`` are those of the summary unless given.

    Columns: ``mean``; ``sd``, with n - 1, NaN below two cases; ``worst`` and ``worst_case``, the first of equals; ``cases``,
    in which the metric is defined. A class that is defined nowhere has NaN and no worst case.
    """
    import pandas as pd

    values = scores_by_case(summary, metric, classes)
    defined = values.dropna(axis="columns", how="all")
    badness = defined.abs() if metric in SIGNED else defined if metric in LOWER_IS_BETTER else -defined
    worst_case = badness.idxmax().astype(object).reindex(values.columns)
    return pd.DataFrame(
        {
            "mean": values.mean(),
            "sd": values.std(),
            "worst": pd.Series(
                {name: values[name].get(case, np.nan) for name, case in worst_case.items()}, dtype=float
            ),
            "worst_case": worst_case,
            "cases": values.count(),
        }
    )


def case_ranks(summary: Summary) -> pd.Series:
    """Mean Dice of each case over the classes that are defined in it, from the worst case to the best; NaN last."""
    return scores_by_case(summary).mean(axis="columns").sort_values(kind="stable", na_position="last")


# --- the summary ---


def summarize(
    cases: Sequence[CaseResult],
    classes: Sequence[EvaluatedClass],
    *,
    ignore: int | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    not_scored: Sequence[Issue] = (),
    unions: Sequence[EvaluatedClass] = (),
    lesions: LesionRule | None = None,
) -> Summary:
    """The summary of cases that are already scored, in the order given.

    A mean over cases leaves out the cases in which a metric is undefined; ``counts`` says how many remain. It is none
    where no case remains, and such a class takes no part in ``foreground_mean``.
    """
    scored, metrics = (*classes, *unions), METRICS if lesions is None else ALL_METRICS
    wide = long_table(cases, scored).pivot(index=["class", "case"], columns="metric", values="value")
    wide = wide.reindex(columns=metrics)
    mean = wide.groupby("class").mean().reindex([each.name for each in scored])
    defined = wide.groupby("class").count().reindex(mean.index, fill_value=0)
    means, in_mean = mean.to_dict("index"), defined.to_dict("index")
    foreground = mean.loc[[each.name for each in classes]]
    predicted, expected = wide["n_pred"] > 0, wide["n_ref"] > 0
    events = {
        "both_empty": ~predicted & ~expected,
        "missed": ~predicted & expected,
        "false_positive": predicted & ~expected,
    }
    counted = {name: which.groupby("class").sum() for name, which in events.items()}
    return Summary(
        classes=tuple(classes),
        ignore=ignore,
        tolerance_mm=tolerance_mm,
        foreground_mean=_means(foreground.mean().to_dict()),
        foreground_classes=_integers(foreground.count().to_dict()),
        mean={each.key: _means(means[each.name]) for each in scored},
        counts={
            each.key: ClassCounts(
                cases=len(cases),
                in_mean=_integers(in_mean[each.name]),
                **{name: int(number.get(each.name, 0)) for name, number in counted.items()},
            )
            for each in scored
        },
        metric_per_case=tuple(cases),
        not_scored=tuple(not_scored),
        unions=tuple(unions),
        estimates=_estimates(cases, classes, unions, metrics),
        volume_correlation={each.key: _correlation(cases, each) for each in scored},
        lesions=lesions,
    )


def _estimates(
    cases: Sequence[CaseResult],
    classes: Sequence[EvaluatedClass],
    unions: Sequence[EvaluatedClass],
    metrics: Sequence[str],
) -> dict[str, dict[str, Estimate]]:
    """Means and their intervals, of each class and union, and of the mean over classes."""
    units = unit_codes([case.unit for case in cases])
    keys = [each.key for each in (*classes, *unions)]
    found: dict[str, dict[str, Estimate]] = {key: {} for key in (*keys, FOREGROUND)}
    for metric in (name for name in metrics if name not in NOT_ESTIMATED):
        table = _metric_table(cases, keys, metric)
        for i, key in enumerate(keys):
            found[key][metric] = estimate(table[:, i], units)
        found[FOREGROUND][metric] = estimate_over_classes(table[:, : len(classes)], units)
    return found


def _metric_table(cases: Sequence[CaseResult], keys: Sequence[str], metric: str) -> NDArray[np.float64]:
    """One metric (cases, classes), NaN where undefined."""
    name = FIELDS[metric]
    rows = [[getattr(case.metrics[key], name) for key in keys] for case in cases]
    return np.array([[np.nan if value is None else value for value in row] for row in rows], np.float64).reshape(
        len(cases), len(keys)
    )


def _correlation(cases: Sequence[CaseResult], each: EvaluatedClass) -> float | None:
    """Pearson's correlation of predicted and reference volumes, over cases with the class in either."""
    scores = [case.metrics[each.key] for case in cases]
    pairs = [(of.volume_prediction_ml, of.volume_reference_ml) for of in scores if of.n_pred + of.n_ref]
    if len(pairs) < FEWEST or any(np.ptp(side) == 0 for side in zip(*pairs, strict=True)):
        return None
    return float(np.corrcoef(np.array(pairs).T)[0, 1])


def _means(values: Mapping[Hashable, float]) -> Means:
    return {str(name): None if math.isnan(value) else float(value) for name, value in values.items()}


def _integers(values: Mapping[Hashable, float]) -> dict[str, int]:
    return {str(name): int(value) for name, value in values.items()}


def with_groups(summary: Summary, groupings: Sequence[Grouping], *, held_out: str | None = None) -> Summary:
    """The summary with Dice by the groups of its cases; ``held_out`` names the column that made the folds."""
    cases, keys = summary.metric_per_case, [each.key for each in summary.classes]
    units, dice = unit_codes([case.unit for case in cases]), _metric_table(cases, keys, "Dice")
    found = scores_by_group(groupings, [case.case_id for case in cases], units, keys, dice, held_out=held_out)
    return summary.model_copy(update={"groups": found})


def patients_in(summary: Summary) -> dict[str, str | None]:
    """Patient of each case: as it was scored, else as its name says."""
    named = patients_by_name([case.case_id for case in summary.metric_per_case])
    return {case.case_id: case.patient or named.get(case.case_id) for case in summary.metric_per_case}


def write_summary(path: Path, summary: Summary) -> None:
    """Write ``summary.json`` atomically, keys sorted as in nnU-Net; exact floats, no NaN."""
    stored = summary.model_dump(mode="json", by_alias=True)
    write_text(path, json.dumps(stored, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_table(path: Path, summary: Summary) -> None:
    """Write all scores as CSV, atomically: a row for each case and class, a column for each metric; what is undefined is empty."""
    table = long_table(summary.metric_per_case, summary.scored)
    wide = table.pivot(index=["case", "class"], columns="metric", values="value")
    rows = wide.reindex(index=table.set_index(["case", "class"]).index.unique(), columns=summary.metrics).reset_index()
    write_text(path, rows.astype(dict.fromkeys(COUNTS, int)).to_csv(index=False, lineterminator="\n"))


def require_own_table(path: Path) -> None:
    """Raise `AutosegError` where ``path`` is a file that `write_table` did not write."""
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(b"case,class,Dice,")):
        message, fix = (
            "exists and was not written by autoseg evaluate, so it is not replaced",
            "choose another name with --out",
        )
        raise AutosegError(Issue(code="scores.not_free", where=str(path), message=message, fix=fix))


def read_summary(path: Path) -> Summary:
    """What `write_summary` wrote; `AutosegError` with all problems where it is something else."""
    return load_document(Summary, path)


# --- text ---


def format_table(summary: Summary) -> str:
    """The summary as text for a terminal: a line for each class, one for the mean over classes, those of unions, and notes.

    After ``±`` is half of the 95 % interval of the mean, where there is one. ``NSD`` is the normalised surface Dice; ``worst`` the lowest Dice,
    and its case.
    """
    import pandas as pd

    one_tolerance = all(each.tolerance_mm is None for each in summary.classes)
    shown = {
        "Dice": ("Dice", 3),
        "HD95 mm": ("hausdorff95_mm", 2),
        f"NSD {summary.tolerance_mm:g} mm" if one_tolerance else "NSD": ("surface_dice", 3),
    }
    if summary.lesions is not None:
        shown |= {"lesion F1": ("lesion_f1", 3), "lesion Dice": ("lesion_dice", 3)}
    estimates = estimates_of(summary, [metric for metric, _ in shown.values()])
    keys = [*(each.key for each in summary.classes), FOREGROUND, *(each.key for each in summary.unions)]
    own = [class_statistics(summary, classes=of) for of in (summary.classes, summary.unions)]
    names = [*own[0].index, "mean of classes", *own[1].index]
    columns: list[tuple[str, list[str]]] = []
    for title, (metric, digits) in shown.items():
        found = [estimates[key][metric] for key in keys]
        columns.append((title, [_text(each.mean, digits) for each in found]))
        if any(each.half_width is not None for each in found):
            columns.append(("±", [_text(each.half_width, digits) for each in found]))
    for name in ("sd", "cases", "worst", "worst_case"):
        middle = len(summary.metric_per_case) if name == "cases" else ""
        title = "case" if name == "worst_case" else name
        columns.append((title, [_text(each, 3) for each in (*own[0][name], middle, *own[1][name])]))
    table = pd.DataFrame(dict(enumerate(texts for _, texts in columns)), index=pd.Index(names))
    table.columns = pd.Index([title for title, _ in columns], name="class")
    found_notes = score_notes(summary)
    warnings = [issue for issue in found_notes if issue.severity == "warning"]
    notes = [*grouped(warnings), *(issue for issue in found_notes if issue not in warnings)]
    return "\n".join([table.to_string(), *_detection_lines(summary), *map(str, notes), *_group_lines(summary)])


def group_notes(summary: Summary) -> list[str]:
    """What is to be said of groups of cases, a sentence each."""
    names = {each.key: each.name for each in summary.classes}
    return [line for each in summary.groups for line in in_words(each, names)]


def _group_lines(summary: Summary) -> list[str]:
    """A table for each column of groups: mean Dice with half of its interval, of the mean over classes and of each class."""
    lines = []
    titles = {each.key: each.name for each in summary.classes}
    for each in summary.groups:
        width = max(len(row.name) for row in each.rows)
        how = ", each case by networks that saw no case of its group" if each.held_out else ""
        lines.append(f"\nDice by {each.column}{how}")
        for row in each.rows:
            own = {"mean": row.estimates[FOREGROUND]} | {title: row.estimates[key] for key, title in titles.items()}
            texts = [f"{title} {_with_half(found)}" for title, found in own.items()]
            cases = count_noun(row.estimates[FOREGROUND].cases, "case")
            few = "" if row.estimates[FOREGROUND].units >= FEWEST else "; no interval from so few"
            lines.append(f"  {row.name:{width}}  {'  '.join(texts)}  ({cases}{few})")
    return [*lines, *group_notes(summary)]


def _with_half(found: Estimate) -> str:
    half = found.half_width
    return _text(found.mean, 3) + ("" if half is None else f" ±{half:.3f}")


def _detection_lines(summary: Summary) -> list[str]:
    """Sensitivity by false detections a case, and its mean, of each class with a curve."""
    return [
        f"{each.name}: detection (FROC) {curve.score:.3f}, sensitivity at false detections a case: "
        + ", ".join(f"{rate} {found:.3f}" for rate, found in curve.at_rates.items())
        for each in summary.classes
        if (curve := summary.detection.get(each.key)) is not None
    ]


def estimates_of(summary: Summary, metrics: Sequence[str] = ("Dice",)) -> dict[str, dict[str, Estimate]]:
    """The estimates of the summary; made where it was written before there were any."""
    if summary.estimates:
        return summary.estimates
    found: dict[str, dict[str, Estimate]] = {key: {} for key in (*(each.key for each in summary.scored), FOREGROUND)}
    cases = summary.metric_per_case
    units = unit_codes([case.unit for case in cases])
    for metric in metrics:
        values = _metric_table(cases, [each.key for each in summary.classes], metric)
        for i, each in enumerate(summary.classes):
            found[each.key][metric] = estimate(values[:, i], units)
        found[FOREGROUND][metric] = estimate_over_classes(values, units)
    return found


def _text(value: object, digits: int) -> str:
    if value is None or value != value:
        return ABSENT
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def score_notes(summary: Summary) -> tuple[Issue, ...]:
    """Notes on the scores, the most important first."""
    warnings, notes = list(summary.not_scored), []
    cases = summary.metric_per_case
    if cases and all(is_picture(case.reference_file) for case in cases):
        words = "these images have no spacing: mm stands for pixels, and ml for thousands of pixels"
        notes.append(Issue(code=NO_SPACING, severity="note", where="", message=words))
    for each in summary.classes:
        mean, counts = summary.mean[each.key]["Dice"], summary.counts[each.key]
        if mean is not None and mean < HARDLY_FOUND:
            message = f"hardly ever found (mean Dice {mean:.3f}): these predictions are not usable"
            fix = "train for longer, or add cases with this class"
            if (
                having := counts.cases - counts.both_empty - counts.false_positive
            ) < 2:  # it was not there to learn from
                few = f"only {having}" if having else "none"
                fix = f"add cases with this class: {few} of {count_noun(counts.cases, 'case')} has it"
            warnings.append(
                Issue(code="scores.hardly_found", severity="warning", where=each.name, message=message, fix=fix)
            )
        left_out = {
            "without it in prediction and reference (not in the means)": counts.both_empty,
            "missed (Dice 0, no distance)": counts.missed,
            "false positive (Dice 0, no distance)": counts.false_positive,
            "with all of its surface next to ignored voxels (no surface scores)": counts.cases
            - counts.both_empty
            - counts.in_mean["surface_dice"],
        }
        if parts := [f"{number} {what}" for what, number in left_out.items() if number]:
            text = f"of {counts.cases} cases, {', '.join(parts)}"
            notes.append(Issue(code="scores.undefined", severity="note", where=each.name, message=text))
    return (*warnings, *notes, *_interval_notes(summary))


def _interval_notes(summary: Summary) -> list[Issue]:
    """How sure the means are, in words."""
    cases = summary.metric_per_case
    number = len({case.unit for case in cases})
    of = "patient" if any(case.patient is not None for case in cases) else "case"
    if not cases:
        return []
    if number < FEWEST:
        message = f"no interval is shown for a mean over {count_noun(number, of)}: at least {FEWEST} are needed"
        return [Issue(code="scores.no_interval", severity="note", where="", message=message)]
    message = f"± is half of the 95 % interval of the mean over {count_noun(number, of)} (Student's t)"
    if number < RELIABLE:
        message += f"; with fewer than {RELIABLE} it may be too narrow"
    return [Issue(code="scores.interval", severity="note", where="", message=message)]

"""Scores of many cases as one long table, and what is derived from it: ``summary.json``, means, ranks, the text for a terminal.

The long table has one row for each case, class and metric. pandas is imported where a table is made, so that commands which
score nothing start without it.

``summary.json`` has the fields of nnU-Net and additional ones:

* ``foreground_mean``: metric -> mean over classes of the means over cases;
* ``mean``: class -> metric -> mean over cases. A class is ``"1"``, a region ``"(1, 2, 3)"``, by its values in the files;
* ``metric_per_case``: a list of ``{"case_id", "metrics": {class: {metric: value}}, "prediction_file", "reference_file"}``;
* ``classes``: names and values of the classes; ``counts`` and ``foreground_classes``: how many cases and classes each mean
  rests on; ``ignore``, ``tolerance_mm``, ``not_scored``, ``schema_version``.

Metrics are ``Dice``, ``IoU``, ``TP``, ``FP``, ``FN``, ``TN``, ``n_pred``, ``n_ref``, ``volume_prediction_ml``,
``volume_reference_ml``, ``hausdorff95_mm`` and ``surface_dice``. What is undefined is ``null``, never ``NaN``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from autoseg.evaluation.metrics import DEFAULT_TOLERANCE_MM, ClassMetrics, EvaluatedClass, stored_name
from autoseg.imaging.readers import is_picture
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import load_document, write_text
from autoseg.wording import grouped
from planners import Document

if TYPE_CHECKING:
    import pandas as pd

METRICS = tuple(map(stored_name, ClassMetrics.model_fields))
"""All metrics of the long table, counts included, in order."""
COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref")
LOWER_IS_BETTER = frozenset({"hausdorff95_mm"})
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


def scores_by_case(summary: Summary, metric: str = "Dice") -> pd.DataFrame:
    """One metric with a row for each case and a column for each class, both in the order of the summary. NaN: undefined."""
    table = long_table(summary.metric_per_case, summary.classes)
    wide = table[table["metric"] == metric].pivot(index="case", columns="class", values="value")
    return wide.reindex(
        index=[case.case_id for case in summary.metric_per_case], columns=[each.name for each in summary.classes]
    )


def class_statistics(summary: Summary, metric: str = "Dice") -> pd.DataFrame:
    """One metric over cases: a row for each class, by name.

    Columns: ``mean``; ``sd``, with n - 1, NaN below two cases; ``worst`` and ``worst_case``, the first of equals; ``cases``,
    in which the metric is defined. A class that is defined nowhere has NaN and no worst case.
    """
    import pandas as pd

    values = scores_by_case(summary, metric)
    defined = values.dropna(axis="columns", how="all")
    lower = metric in LOWER_IS_BETTER
    return pd.DataFrame(
        {
            "mean": values.mean(),
            "sd": values.std(),
            "worst": values.max() if lower else values.min(),
            "worst_case": (defined.idxmax() if lower else defined.idxmin()).astype(object).reindex(values.columns),
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
) -> Summary:
    """The summary of cases that are already scored, in the order given.

    A mean over cases leaves out the cases in which a metric is undefined; ``counts`` says how many remain. It is none
    where no case remains, and such a class takes no part in ``foreground_mean``.
    """
    wide = long_table(cases, classes).pivot(index=["class", "case"], columns="metric", values="value")
    wide = wide.reindex(columns=METRICS)
    mean = wide.groupby("class").mean().reindex([each.name for each in classes])
    defined = wide.groupby("class").count().reindex(mean.index, fill_value=0)
    means, in_mean = mean.to_dict("index"), defined.to_dict("index")
    predicted, expected = wide["n_pred"] > 0, wide["n_ref"] > 0
    events = {"both_empty": ~predicted & ~expected, "missed": ~predicted & expected, "invented": predicted & ~expected}
    counted = {name: which.groupby("class").sum() for name, which in events.items()}
    return Summary(
        classes=tuple(classes),
        ignore=ignore,
        tolerance_mm=tolerance_mm,
        foreground_mean=_means(mean.mean().to_dict()),
        foreground_classes=_integers(mean.count().to_dict()),
        mean={each.key: _means(means[each.name]) for each in classes},
        counts={
            each.key: ClassCounts(
                cases=len(cases),
                in_mean=_integers(in_mean[each.name]),
                **{name: int(number.get(each.name, 0)) for name, number in counted.items()},
            )
            for each in classes
        },
        metric_per_case=tuple(cases),
        not_scored=tuple(not_scored),
    )


def _means(values: Mapping[Hashable, float]) -> Means:
    return {str(name): None if math.isnan(value) else float(value) for name, value in values.items()}


def _integers(values: Mapping[Hashable, float]) -> dict[str, int]:
    return {str(name): int(value) for name, value in values.items()}


def write_summary(path: Path, summary: Summary) -> None:
    """Write ``summary.json`` atomically, keys sorted as in nnU-Net; exact floats, no NaN."""
    stored = summary.model_dump(mode="json", by_alias=True)
    write_text(path, json.dumps(stored, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_table(path: Path, summary: Summary) -> None:
    """Write all scores as CSV, atomically: a row for each case and class, a column for each metric; what is undefined is empty."""
    table = long_table(summary.metric_per_case, summary.classes)
    wide = table.pivot(index=["case", "class"], columns="metric", values="value")
    rows = wide.reindex(index=table.set_index(["case", "class"]).index.unique(), columns=METRICS).reset_index()
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
    """The summary as text for a terminal: a line for each class, one for the mean over classes, and notes.

    ``NSD`` is the normalised surface Dice; ``worst`` the lowest Dice, and its case.
    """
    import pandas as pd

    dice, distance, surface = (
        class_statistics(summary, metric) for metric in ("Dice", "hausdorff95_mm", "surface_dice")
    )
    overall = summary.foreground_mean
    columns = {
        "Dice": [*dice["mean"], overall["Dice"]],
        "sd": [*dice["sd"], ""],
        "HD95 mm": [*distance["mean"], overall["hausdorff95_mm"]],
        f"NSD {summary.tolerance_mm:g} mm": [*surface["mean"], overall["surface_dice"]],
        "cases": [*dice["cases"], len(summary.metric_per_case)],
        "worst": [*dice["worst"], ""],
        "case": [*dice["worst_case"], ""],
    }
    texts = {
        name: [_text(value, 2 if name == "HD95 mm" else 3) for value in column] for name, column in columns.items()
    }
    table = pd.DataFrame(texts, index=[*dice.index, "mean of classes"])
    table.columns.name = "class"
    found = score_notes(summary)
    warnings = [issue for issue in found if issue.severity == "warning"]
    notes = [*grouped(warnings), *(issue for issue in found if issue not in warnings)]
    return "\n".join([table.to_string(), *map(str, notes)])


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
        notes.append(Issue(code="scores.no_spacing", severity="note", where="", message=words))
    for each in summary.classes:
        mean, counts = summary.mean[each.key]["Dice"], summary.counts[each.key]
        if mean is not None and mean < HARDLY_FOUND:
            message = f"hardly ever found (mean Dice {mean:.3f}): these predictions are not usable"
            fix = "train for longer, or add cases with this class"
            warnings.append(
                Issue(code="scores.hardly_found", severity="warning", where=each.name, message=message, fix=fix)
            )
        left_out = {
            "without it in prediction and reference (not in the means)": counts.both_empty,
            "missed (Dice 0, no distance)": counts.missed,
            "falsely predicted (Dice 0, no distance)": counts.invented,
            "with all of its surface next to ignored voxels (no surface scores)": counts.cases
            - counts.both_empty
            - counts.in_mean["surface_dice"],
        }
        if parts := [f"{number} {what}" for what, number in left_out.items() if number]:
            text = f"of {counts.cases} cases, {', '.join(parts)}"
            notes.append(Issue(code="scores.undefined", severity="note", where=each.name, message=text))
    return (*warnings, *notes)

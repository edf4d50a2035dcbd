"""Scores as tables: for each class mean, standard deviation and worst case."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass

import pandas as pd

from autoseg.evaluation.metrics import stored_name
from autoseg.evaluation.summary import Summary
from autoseg.imaging.readers import PICTURE_ENDINGS, image_ending

TABLE_METRICS = ("dice", "iou", "hausdorff95_mm", "surface_dice")
"""Metrics with a good and a bad end."""
LOWER_IS_BETTER = frozenset({"hausdorff95_mm"})
ABSENT = "-"
HARDLY_FOUND = 0.1
"""Mean Dice below which a class is called that: two balls of one size with centres one and a half radii apart come to 0.09."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreStatistics:
    """One metric of one class over cases."""

    mean: float | None
    """None: the metric is defined in no case."""
    sd: float | None
    """Sample standard deviation (n - 1); none below two cases."""
    worst: float | None
    worst_case: str | None
    """The first of equals."""
    cases: int
    """Cases in which the metric is defined."""
    left_out: int
    """Cases in which it is not, see `metrics.compare`."""


def score_statistics(summary: Summary, key: str, metric: str) -> ScoreStatistics:
    """Statistics of ``metric`` (a field of `ClassMetrics`) for the class with `EvaluatedClass.key` ``key``."""
    values: dict[str, float] = {
        case.case_id: value
        for case in summary.metric_per_case
        if (value := getattr(case.metrics[key], metric)) is not None
    }
    worst_of = max if metric in LOWER_IS_BETTER else min
    worst_case = worst_of(values, key=lambda case: values[case]) if values else None
    return ScoreStatistics(
        mean=statistics.fmean(values.values()) if values else None,
        sd=statistics.stdev(values.values()) if len(values) > 1 else None,
        worst=None if worst_case is None else values[worst_case],
        worst_case=worst_case,
        cases=len(values),
        left_out=len(summary.metric_per_case) - len(values),
    )


def summary_table(summary: Summary) -> pd.DataFrame:
    """One row for each class and metric, indexed by (class, metric); columns are the fields of `ScoreStatistics`.

    Undefined numbers are NaN and an undefined ``worst_case`` is none: a table marks a gap, it never averages one.
    """
    rows = [
        {"class": each.name, "metric": stored_name(metric), **asdict(score_statistics(summary, each.key, metric))}
        for each in summary.classes
        for metric in TABLE_METRICS
    ]
    numbers = {"mean": float, "sd": float, "worst": float}
    return pd.DataFrame(rows).set_index(["class", "metric"]).astype(numbers)


def case_table(summary: Summary) -> pd.DataFrame:
    """Dice of each case (rows, in the order of the summary) and class (columns), and their ``mean``; NaN: undefined."""
    dice = pd.DataFrame.from_dict(summary.dice_by_case(), orient="index", dtype=float)
    dice.index.name = "case"
    dice["mean"] = dice.mean(axis="columns")
    return dice


def format_table(summary: Summary) -> str:
    """The summary as text for a terminal: a line for each class, one for the mean over classes, and what was left out."""
    header = ("class", "Dice", "sd", "worst", "case", "HD95 mm", f"surface Dice {summary.tolerance_mm:g} mm", "cases")
    lines: list[tuple[str, ...]] = [header]
    for each in summary.classes:
        dice, distance, surface = (
            score_statistics(summary, each.key, metric) for metric in ("dice", "hausdorff95_mm", "surface_dice")
        )
        lines.append(
            (
                each.name,
                _number(dice.mean),
                _number(dice.sd),
                _number(dice.worst),
                dice.worst_case or ABSENT,
                _number(distance.mean, 2),
                _number(surface.mean),
                str(dice.cases),
            )
        )
    overall = summary.foreground_mean
    lines.append(
        (
            "mean of classes",
            _number(overall.dice),
            "",
            "",
            "",
            _number(overall.hausdorff95_mm, 2),
            _number(overall.surface_dice),
            str(len(summary.metric_per_case)),
        )
    )
    return "\n".join([*_align(lines), *footnotes(summary)])


def _number(value: float | None, digits: int = 3) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def _align(lines: list[tuple[str, ...]]) -> list[str]:
    """Columns padded to one width, numbers to the right, names to the left, a rule below the header."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    named = {0, 4}
    padded = [
        "  ".join(
            text.ljust(width) if column in named else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return [padded[0], "-" * max(map(len, padded)), *padded[1:]]


def footnotes(summary: Summary) -> list[str]:
    """What a reader of the scores must know beside them: sentences, the weightiest first."""
    return [*describe_lost(summary), *describe_units(summary), *describe_gaps(summary)]


def describe_lost(summary: Summary) -> list[str]:
    """A sentence for each class that is as good as not found."""
    means = {each.name: score_statistics(summary, each.key, "dice").mean for each in summary.classes}
    return [
        f"{name} is hardly found (Dice {mean:.3f}): label maps of it are of no use as they are"
        for name, mean in means.items()
        if mean is not None and mean < HARDLY_FOUND
    ]


def describe_units(summary: Summary) -> list[str]:
    """A sentence where millimetres are none: photographs have no spacing."""
    endings = {image_ending(case.reference_file) for case in summary.metric_per_case}
    if endings and endings <= set(PICTURE_ENDINGS):
        return ["these images have no spacing: mm stands for pixels, and ml for thousands of them"]
    return []


def describe_gaps(summary: Summary) -> list[str]:
    """A sentence for each class with cases that some mean had to leave out."""
    lines = []
    for each in summary.classes:
        counts = summary.counts[each.key]
        parts = [
            f"{number} {what}"
            for number, what in (
                (counts.both_empty, "without it in prediction and reference (in no mean)"),
                (counts.missed, "missed entirely (Dice 0, no distance)"),
                (counts.invented, "invented (Dice 0, no distance)"),
            )
            if number
        ]
        if parts:
            lines.append(f"{each.name}: of {counts.cases} cases, {'; '.join(parts)}")
    return lines

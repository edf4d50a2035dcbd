"""A challenge's own scores: its classes, tolerances, ways with lesions and with empty cases, its means and its ranking.

Metrics of the records in ``datasets_spec/challenges`` are looked up in `METRICS`. Every one takes ``both_empty``, its value for a case
without the class in prediction and reference, and ``one_empty``, its value where only one has it; without them such a
case has the value of `metrics.compare`, or none and no part in means. Those of lesions take ``needs_reference`` as well: none without a
reference lesion that counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from autoseg.data.challenges import challenge_named
from autoseg.evaluation.intervals import Estimate, estimate, mean_interval, ranks_of, unit_codes
from autoseg.evaluation.lesions import LesionRule
from autoseg.evaluation.metrics import ClassMetrics, EvaluatedClass
from autoseg.evaluation.table import Summary
from autoseg.issues import AutosegError, Issue
from datasets_spec import Challenge, Metric, Scoring
from planners import Document

FIELDS = {
    "dice": "dice",
    "iou": "iou",
    "surface_dice": "surface_dice",
    "hausdorff95_mm": "hausdorff95_mm",
    "sensitivity": "sensitivity",
    "precision": "precision",
    "specificity": "specificity",
    "volume_error_ml": "volume_error_ml",
    "absolute_volume_error_ml": "volume_error_ml",
    "lesion_dice": "lesion_dice",
    "lesion_hausdorff95_mm": "lesion_hausdorff95_mm",
    "lesion_f1": "lesion_f1",
    "lesion_sensitivity": "lesion_sensitivity",
    "lesion_precision": "lesion_precision",
    "absolute_lesion_count_error": "lesion_count_error",
}
"""Field of `ClassMetrics` of each metric; those that begin with ``absolute`` without their sign."""
EMPTY = frozenset({"both_empty", "one_empty"})
PARAMETERS = {"surface_dice": {"tolerance_mm", "least_dice"}}
CROPPED = frozenset({"dice", "surface_dice", "iou"})
"""Metrics that take ``labelled_slices``."""
OF_LESIONS = frozenset(LesionRule.model_fields) - {"distances"}
SIGNED = frozenset({"volume_error_ml"})
"""Metrics that are ranked by their size."""
LOWER_IS_BETTER = frozenset(name for name in FIELDS if "hausdorff" in name or "error" in name)


class ChallengeScores(Document):
    """The table of a challenge for one set of predictions."""

    challenge: str
    metrics: tuple[str, ...]
    """In order; one that the record has twice has its classes behind it."""
    per_case: dict[str, dict[str, dict[str, float | None]]]
    """Case -> class -> metric; none: undefined, and in no mean."""
    per_class: dict[str, dict[str, Estimate]]
    """Class -> metric."""
    overall: dict[str, Estimate]
    """Metric: mean over cases of each class, then over classes."""


# --- what is to be scored ---


def find_challenge(name: str) -> Challenge:
    """The challenge of that name, or in the TOML file of that path. Raises `AutosegError` where it has no metrics."""
    found, where = challenge_named(name), f"--as {name}"
    if found.scoring is None or not found.scoring.metrics:
        message = "its metrics are not recorded"
        fix = "add [[scoring.metrics]] in a TOML file that extends it, or evaluate without --as"
        raise AutosegError(Issue(code="challenge.no_metrics", where=where, message=message, fix=fix))
    if issues := _faults(found.scoring, where):
        raise AutosegError(*issues)
    return found


def _faults(scoring: Scoring, where: str) -> list[Issue]:
    """Metrics, parameters and classes that do not exist."""
    found: list[Issue] = []
    fix = "see autoseg.evaluation.challenge for the metrics and parameters that there are"
    for metric in scoring.metrics:
        allowed = _parameters_of(metric.name)
        given = {*metric.parameters, *(name for own in metric.of_class.values() for name in own)}
        unknown = [] if metric.name in FIELDS else [f"metric {metric.name}"]
        unknown += [f"parameter {name} of {metric.name}" for name in sorted(given - allowed)] if not unknown else []
        classes = {*metric.classes, *metric.of_class} - {*scoring.classes} if scoring.classes else set()
        unknown += [f"class {name} of {metric.name}" for name in sorted(classes)]
        found += [
            Issue(code="challenge.metrics", where=where, message=f"{each} does not exist", fix=fix) for each in unknown
        ]
    try:
        if not found:
            lesion_rule(scoring)
    except (ValidationError, ValueError) as error:
        found.append(Issue(code="challenge.metrics", where=where, message=str(error), fix=fix))
    return found


def _parameters_of(name: str) -> set[str]:
    own = {*EMPTY, *PARAMETERS.get(name, set())} | ({"labelled_slices"} if name in CROPPED else set())
    return own | OF_LESIONS | {"needs_reference"} if "lesion" in name else own


def scored_classes(scoring: Scoring) -> tuple[EvaluatedClass, ...]:
    """The challenge's classes, with what is special about them; none: every value is a class."""
    return tuple(
        EvaluatedClass(
            name=name,
            values=values,
            tolerance_mm=next(iter(_given(scoring, name, "tolerance_mm")), None),
            labelled_slices=any(_given(scoring, name, "labelled_slices")),
        )
        for name, values in scoring.classes.items()
    )


def tolerance_of(scoring: Scoring) -> float | None:
    """Tolerance of the surface Dice of all classes, if there is one."""
    found = [metric.parameters["tolerance_mm"] for metric in scoring.metrics if "tolerance_mm" in metric.parameters]
    return float(found[0]) if found else None


def lesion_rule(scoring: Scoring) -> LesionRule | None:
    """How lesions are scored; none if they are not. `ValueError` where two metrics want different ways."""
    metrics = [metric for metric in scoring.metrics if "lesion" in metric.name]
    rules = {
        json.dumps({name: value for name, value in metric.parameters.items() if name in OF_LESIONS}, sort_keys=True)
        for metric in metrics
    }
    if len(rules) > 1:
        raise ValueError("metrics of lesions must have the same parameters, apart from both_empty and one_empty")
    distances = any("hausdorff" in metric.name for metric in metrics)
    return LesionRule(**json.loads(rules.pop()), distances=distances) if rules else None


def _given(scoring: Scoring, of_class: str, parameter: str) -> list[Any]:
    found = [metric.of_class.get(of_class, {}).get(parameter) for metric in scoring.metrics]
    return [value for value in found if value is not None]


# --- scores ---


def challenge_scores(summary: Summary, challenge: Challenge) -> ChallengeScores:
    """The challenge's table of cases that were scored with its classes, tolerance and lesions."""
    scoring = challenge.scoring
    assert scoring is not None
    titles = _titles(scoring.metrics)
    per_case: dict[str, dict[str, dict[str, float | None]]] = {}
    for case in summary.metric_per_case:
        per_case[case.case_id] = {
            each.name: {
                title: _value(case.metrics[each.key], metric, each.name)
                for title, metric in titles.items()
                if not metric.classes or each.name in metric.classes
            }
            for each in summary.classes
        }
    units = unit_codes([case.unit for case in summary.metric_per_case])
    names = [each.name for each in summary.classes]
    tables = {title: _table(per_case, names, title) for title in titles}
    return ChallengeScores(
        challenge=challenge.name,
        metrics=tuple(titles),
        per_case=per_case,
        per_class={
            name: {
                title: estimate(table[:, i], units)
                for title, table in tables.items()
                if not titles[title].classes or name in titles[title].classes
            }
            for i, name in enumerate(names)
        },
        overall={title: _overall(table, units) for title, table in tables.items()},
    )


def _titles(metrics: Sequence[Metric]) -> dict[str, Metric]:
    """Metrics by the title of their column."""
    names = [metric.name for metric in metrics]
    return {
        metric.name if names.count(metric.name) == 1 else f"{metric.name} of {' and '.join(metric.classes)}": metric
        for metric in metrics
    }


def _value(scores: ClassMetrics, metric: Metric, of_class: str) -> float | None:
    """By the challenge's conventions."""
    parameters = metric.parameters | metric.of_class.get(of_class, {})
    value: float | None = getattr(scores, FIELDS[metric.name])
    if metric.name.startswith("absolute") and value is not None:
        value = abs(value)
    if parameters.get("needs_reference") and not (scores.lesions_found or scores.lesions_missed):
        return None
    if not (scores.n_pred or scores.n_ref) or ("lesion" in metric.name and value is None and not _has_lesions(scores)):
        return float(parameters["both_empty"]) if "both_empty" in parameters else value
    if not (scores.n_pred and scores.n_ref):
        return float(parameters["one_empty"]) if "one_empty" in parameters else value
    if metric.name == "surface_dice" and (scores.dice or 0.0) < float(parameters.get("least_dice", 0.0)):
        return 0.0
    return value


def _has_lesions(scores: ClassMetrics) -> bool:
    return bool(scores.lesions_missed or scores.lesions_false_positive or scores.lesions_found)


def _table(
    per_case: Mapping[str, Mapping[str, Mapping[str, float | None]]], names: Sequence[str], title: str
) -> NDArray[np.float64]:
    """One metric (cases, classes), NaN where undefined."""
    rows = [[case[name].get(title) for name in names] for case in per_case.values()]
    filled = [[math.nan if value is None else value for value in row] for row in rows]
    return np.array(filled, np.float64).reshape(len(rows), len(names))


def _overall(table: NDArray[np.float64], units: NDArray[np.intp]) -> Estimate:
    mean, low, high, number = mean_interval(table, units)
    return Estimate(
        mean=mean,
        low=low,
        high=high,
        median=None,
        median_low=None,
        median_high=None,
        cases=int(np.isfinite(table).any(axis=1).sum()),
        units=number,
    )


def format_challenge(scores: ChallengeScores, challenge: Challenge) -> str:
    """The table as text: a line for each class and one for the mean, with half of the 95 % interval after ``±``."""
    rows = {**scores.per_class, "mean": scores.overall}
    header = ["class", *scores.metrics]
    lines = [[name, *(str(own.get(title, "-")) for title in scores.metrics)] for name, own in rows.items()]
    widths = [max(len(line[i]) for line in (header, *lines)) for i in range(len(header))]
    text = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))) for line in (header, *lines)]  # fmt: skip
    found = challenge.unconfirmed("scoring")
    notes = [f"Not confirmed, check it: {', '.join(found)}"] if found else []
    return "\n".join([f"Scores of {challenge.title}", *text, *notes])


def challenge_table(scores: ChallengeScores) -> str:
    """CSV: a row for each case and class, then the means of classes and of all; what is undefined is empty."""
    from io import StringIO

    import pandas as pd

    rows: list[dict[str, Any]] = [
        {"case": case, "class": name, **values} for case, own in scores.per_case.items() for name, values in own.items()
    ]
    rows += [
        {"case": "mean", "class": name, **{title: each.mean for title, each in own.items()}}
        for name, own in (*scores.per_class.items(), ("mean", scores.overall))
    ]
    written = StringIO()
    pd.DataFrame(rows, columns=["case", "class", *scores.metrics]).to_csv(written, index=False, lineterminator="\n")
    return written.getvalue()


# --- ranking ---


def rank_teams(teams: Mapping[str, ChallengeScores], scoring: Scoring) -> dict[str, tuple[int, float]]:
    """Final rank of each team, and the mean that it comes from, the best first; equal ranks are left so.

    ``mean_then_rank``: for each metric teams are ranked by its mean over cases and classes, and ranks are averaged (as KiTS23,
    where equals have the lower rank). ``rank_then_mean``: teams are ranked for each case, class and metric, equals have
    their mean rank, and ranks are averaged. ``mean``: the mean over metrics decides. Of signed errors the size counts. What is undefined for one team is worse than any value.
    """
    titles = next(iter(teams.values())).metrics
    if scoring.ranking == "mean":
        signs = [1 if title.split(" of ")[0] in LOWER_IS_BETTER else -1 for title in titles]
        if len({*signs}) > 1:
            raise ValueError("cannot rank by a mean of metrics of which some are better low and others high")
        values = np.stack([_columns(teams, title, of_means=True)[0] for title in titles], axis=1)
        return _ranked(teams, signs[0] * values.mean(axis=1), signs[0])
    of_means = scoring.ranking == "mean_then_rank"
    columns = []
    for title in titles:
        sign = 1 if title.split(" of ")[0] in LOWER_IS_BETTER else -1
        for row in _columns(teams, title, of_means=of_means):
            if np.isfinite(row).any():
                columns.append(ranks_of(np.where(np.isfinite(row), sign * row, np.inf), lowest=of_means))
    return _ranked(teams, np.mean(columns, axis=0), 1)


def _columns(teams: Mapping[str, ChallengeScores], title: str, *, of_means: bool) -> NDArray[np.float64]:
    """(K, teams): what teams are ranked by, NaN where undefined."""
    if of_means:
        found = [[own.overall[title].mean for own in teams.values()]]
    else:
        first = next(iter(teams.values()))
        found = [
            [own.per_case.get(case, {}).get(name, {}).get(title) for own in teams.values()]
            for case, classes in first.per_case.items()
            for name in classes
        ]
    values = np.array([[math.nan if value is None else value for value in row] for row in found], np.float64)
    return np.abs(values) if title.split(" of ")[0] in SIGNED else values


def _ranked(
    teams: Mapping[str, ChallengeScores], values: NDArray[np.float64], sign: int
) -> dict[str, tuple[int, float]]:
    ranks = ranks_of(np.where(np.isfinite(values), values, np.inf), lowest=True)
    order = np.argsort(ranks, kind="stable")
    names = list(teams)
    return {names[i]: (int(ranks[i]), float(sign * values[i])) for i in order}


# --- resources ---

FLARE_INTERVAL_S = 0.1
"""Between two samples of FLARE's monitor."""
FLARE_RARE = 0.02
"""Share of the samples that a GPU memory must have to count as the largest."""


class Resources(Document):
    """What predicting one case took, as FLARE measures it (github.com/JunMa11/FLARE aad2cc2, ``load_json.py``)."""

    seconds: float
    gpu_mb: float | None
    """The largest memory that more than 2 % of the samples have; none without samples of a GPU."""
    gpu_mb_s: float | None
    """Area under the curve of GPU memory over time."""
    cpu_percent_s: float
    """Area under the curve of CPU use (of the whole machine) over time."""
    ram_mb_s: float
    """Area under the curve of main memory over time."""


def resource_areas(samples: Mapping[str, Any]) -> Resources:
    """From a JSON document of FLARE's monitor, which samples every `FLARE_INTERVAL_S`.

    It has ``gpu_memory`` and ``RAM_list`` (MB), ``cpu_list`` (user, system, idle in per cent) and ``time`` (s); without ``time``
    the number of samples tells it.
    """
    gpu = [float(value) for value in samples["gpu_memory"]]
    often = [value for value in {*gpu} if gpu.count(value) > FLARE_RARE * len(gpu)]
    busy = [100.0 - float(each[2]) for each in samples["cpu_list"]]
    return Resources(
        seconds=float(samples.get("time", FLARE_INTERVAL_S * len(gpu))),
        gpu_mb=max(often, default=None),
        gpu_mb_s=sum(gpu) * FLARE_INTERVAL_S if gpu else None,
        cpu_percent_s=sum(busy) * FLARE_INTERVAL_S,
        ram_mb_s=sum(map(float, samples["RAM_list"])) * FLARE_INTERVAL_S,
    )


def read_resources(folder: Path) -> dict[str, Resources]:
    """Of each case, by the names of FLARE's JSON files in a folder. Raises `AutosegError` with all that are none."""
    found: dict[str, Resources] = {}
    issues = []
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = resource_areas(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, LookupError, TypeError) as error:
            message = f"is no document of FLARE's monitor ({type(error).__name__}: {error})"
            issues.append(Issue(code="evaluation.resources", where=str(path), message=message, fix="remove it"))
    if not found and not issues:
        message, fix = "contains no JSON files", "pass the folder that FLARE's monitor wrote"
        issues.append(Issue(code="evaluation.resources", where=str(folder), message=message, fix=fix))
    if issues:
        raise AutosegError(*issues)
    return found


def format_resources(found: Mapping[str, Resources]) -> str:
    """Means over cases, with half of their 95 % interval."""
    units = unit_codes(list(found))
    lines = [f"Resources, mean of {len(found)} cases"]
    for name, title in (
        ("seconds", "time, s"),
        ("gpu_mb", "largest GPU memory, MB"),
        ("gpu_mb_s", "area under GPU memory and time, MB s"),
        ("cpu_percent_s", "area under CPU use and time, % s"),
        ("ram_mb_s", "area under main memory and time, MB s"),
    ):
        values = [getattr(each, name) for each in found.values()]
        filled = np.array([math.nan if value is None else value for value in values], np.float64)
        lines.append(f"  {title:38}  {estimate(filled, units)}")
    return "\n".join(lines)

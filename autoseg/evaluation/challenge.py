"""A challenge's own scores: its classes, tolerances, ways with lesions and with empty cases, its means and its ranking.

Metrics of the records in ``datasets_spec/challenges`` are looked up in `METRICS`. Every one takes ``both_empty``, its value for a case
without the class in prediction and reference, and ``one_empty``, its value where only one has it; without them such a
case has the value of `metrics.compare` or of `measures`, or none and no part in means. Those of lesions take ``needs_reference`` as well: none
without a reference lesion that counts. Metrics of `AGGREGATED` have one value for all cases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from autoseg.data.challenges import challenge_named
from autoseg.evaluation.intervals import Estimate, estimate, mean_interval, ranks_of, unit_codes
from autoseg.evaluation.lesions import LesionRule
from autoseg.evaluation.measures import MEASURES
from autoseg.evaluation.metrics import ClassMetrics, EvaluatedClass
from autoseg.evaluation.table import CaseResult, Summary
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
    "absolute_relative_volume_error": "relative_volume_error",
    "lesion_dice": "lesion_dice",
    "lesion_hausdorff95_mm": "lesion_hausdorff95_mm",
    "lesion_f1": "lesion_f1",
    "lesion_sensitivity": "lesion_sensitivity",
    "lesion_precision": "lesion_precision",
    "absolute_lesion_count_error": "lesion_count_error",
}
"""Field of `ClassMetrics` of each metric; those that begin with ``absolute`` without their sign."""
EMPTY = frozenset({"both_empty", "one_empty"})
PARAMETERS = {
    "surface_dice": {"tolerance_mm", "least_dice"},
    "aggregated_dice": {"by_volume"},
    "detection_f1": {"least_iou"},
}
CROPPED = frozenset({"dice", "surface_dice", "iou"})
"""Metrics that take ``labelled_slices``."""
OF_LESIONS = frozenset(LesionRule.model_fields) - {"distances"}
SIGNED = frozenset({"volume_error_ml"})
"""Metrics that are ranked by their size."""
LOWER_IS_BETTER = frozenset(
    name for name in (*FIELDS, *MEASURES) if any(word in name for word in ("hausdorff", "error", "assd"))
)


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


def find_challenge(name: str, case_ids: Collection[str] = ()) -> Challenge:
    """The challenge of that name, or in the TOML file of that path; where its parts are scored apart, as that of ``case_ids``.

    Raises `AutosegError` where it has no metrics, or no part has these cases.
    """
    found, where = challenge_named(name), f"--as {name}"
    if any(part.scoring is not None for part in found.parts.values()):
        found = _of_part(found, case_ids, where)
    if found.scoring is None or not found.scoring.metrics:
        message = "its metrics are not recorded"
        fix = "add [[scoring.metrics]] in a TOML file that extends it, or evaluate without --as"
        raise AutosegError(Issue(code="challenge.no_metrics", where=where, message=message, fix=fix))
    if issues := _faults(found.scoring, where):
        raise AutosegError(*issues)
    return found


def _of_part(challenge: Challenge, case_ids: Collection[str], where: str) -> Challenge:
    """The challenge with the scoring of the part that most of the cases belong to."""
    fitting = {
        name: sum(part.fields_of_case(each) is not None for each in case_ids)
        for name, part in challenge.parts.items()
        if part.scoring is not None
    }
    name = max(fitting, key=fitting.__getitem__)
    if not fitting[name]:
        forms = " or ".join(part.case for part in challenge.parts.values())
        message = f"scores its parts apart, by the names of cases ({forms}), but no case is named like that"
        fix = "name predictions as the challenge names its cases"
        raise AutosegError(Issue(code="challenge.no_part", where=where, message=message, fix=fix))
    title = f"{challenge.title}, {name}"
    return challenge.model_copy(update={"title": title, "scoring": challenge.parts[name].scoring})


def _faults(scoring: Scoring, where: str) -> list[Issue]:
    """Metrics, parameters and classes that do not exist."""
    found: list[Issue] = []
    fix = "see autoseg.evaluation.challenge for the metrics and parameters that there are"
    for metric in scoring.metrics:
        allowed = _parameters_of(metric.name)
        given = {*metric.parameters, *(name for own in metric.of_class.values() for name in own)}
        unknown = [] if metric.name in {*FIELDS, *MEASURES, *AGGREGATED} else [f"metric {metric.name}"]
        unknown += [f"parameter {name} of {metric.name}" for name in sorted(given - allowed)] if not unknown else []
        classes = {*metric.classes, *metric.of_class} - {*scoring.classes} if scoring.classes else set()
        unknown += [f"class {name} of {metric.name}" for name in sorted(classes)]
        found += [
            Issue(code="challenge.metrics", where=where, message=f"{each} does not exist", fix=fix) for each in unknown
        ]
    try:
        if not found:
            lesion_rule(scoring)
            scored_classes(scoring)
    except (ValidationError, ValueError) as error:
        found.append(Issue(code="challenge.metrics", where=where, message=str(error), fix=fix))
    return found


def _parameters_of(name: str) -> set[str]:
    own = {*PARAMETERS.get(name, set()), *(() if name in AGGREGATED else EMPTY)}
    own |= {"labelled_slices"} if name in CROPPED else set()
    return own | OF_LESIONS | {"needs_reference"} if "lesion" in name else own


def scored_classes(scoring: Scoring) -> tuple[EvaluatedClass, ...]:
    """The challenge's classes, with what is special about them; none: every value is a class."""
    return tuple(
        EvaluatedClass(
            name=name,
            values=values,
            tolerance_mm=next(iter(_given(scoring, name, "tolerance_mm")), None),
            labelled_slices=any(_given(scoring, name, "labelled_slices")),
            lesions=_rule_of(scoring.metrics, name),
            measures=tuple(
                dict.fromkeys(
                    metric.name
                    for metric in scoring.metrics
                    if metric.name in MEASURES and (not metric.classes or name in metric.classes)
                )
            ),
        )
        for name, values in scoring.classes.items()
    )


def tolerance_of(scoring: Scoring) -> float | None:
    """Tolerance of the surface Dice of all classes, if there is one."""
    given: list[dict[str, Any]] = [{**metric.parameters} for metric in scoring.metrics]
    found = [parameters["tolerance_mm"] for parameters in given if "tolerance_mm" in parameters]
    return float(found[0]) if found else None


def lesion_rule(scoring: Scoring) -> LesionRule | None:
    """How lesions are scored, apart from what is special about a class; none if they are not. `ValueError` where two metrics want different ways."""
    return _rule(scoring.metrics, [metric.parameters for metric in scoring.metrics if "lesion" in metric.name])


def _rule_of(metrics: Sequence[Metric], of_class: str) -> LesionRule | None:
    """How lesions of a class are scored, where that differs."""
    own = [
        metric for metric in metrics if "lesion" in metric.name and OF_LESIONS & {*metric.of_class.get(of_class, {})}
    ]
    return _rule(metrics, [metric.parameters | metric.of_class[of_class] for metric in own])


def _rule(metrics: Sequence[Metric], wanted: Sequence[Mapping[str, Any]]) -> LesionRule | None:
    rules = {
        json.dumps({name: value for name, value in each.items() if name in OF_LESIONS}, sort_keys=True)
        for each in wanted
    }
    if len(rules) > 1:
        raise ValueError("metrics of lesions must have the same parameters, apart from both_empty and one_empty")
    distances = any("lesion_hausdorff" in metric.name for metric in metrics)
    return (
        LesionRule.model_validate_json(json.dumps(json.loads(rules.pop()) | {"distances": distances}))
        if rules
        else None
    )


def _given(scoring: Scoring, of_class: str, parameter: str) -> list[Any]:
    found = [metric.of_class.get(of_class, {}).get(parameter) for metric in scoring.metrics]
    return [value for value in found if value is not None]


# --- scores ---


def _aggregated_dice(cases: Sequence[ClassMetrics], parameters: Mapping[str, Any]) -> float | None:
    """Dice of all cases together: of voxels, or of volumes (``by_volume``)."""
    shared = total = 0.0
    for each in cases:
        size = each.n_pred + each.n_ref
        volume = each.volume_prediction_ml + each.volume_reference_ml
        weight = volume / size if parameters.get("by_volume") and size else 1.0
        shared, total = shared + weight * each.tp, total + weight * size
    return 2 * shared / total if total else None


def _detection_f1(cases: Sequence[ClassMetrics], parameters: Mapping[str, Any]) -> float | None:
    """F1 of the cases that have the class: found where the IoU is at least ``least_iou``; 0 where no case has it."""
    found = sum(bool(each.n_ref) and (each.iou or 0.0) >= float(parameters["least_iou"]) for each in cases)
    missed = sum(bool(each.n_ref) for each in cases) - found
    false_positive = sum(bool(each.n_pred and not each.n_ref) for each in cases)
    return 2 * found / (2 * found + missed + false_positive) if found else 0.0


AGGREGATED: dict[str, Callable[[Sequence[ClassMetrics], Mapping[str, Any]], float | None]] = {
    "aggregated_dice": _aggregated_dice,
    "detection_f1": _detection_f1,
}
"""Scores of a class over all cases, which single cases do not have."""


def challenge_scores(summary: Summary, challenge: Challenge) -> ChallengeScores:
    """The challenge's table of cases that were scored with its classes, tolerance and lesions."""
    scoring = challenge.scoring
    assert scoring is not None
    titles = _titles(scoring.metrics)
    cases, classes = summary.metric_per_case, {each.name: each for each in summary.classes}
    single = {title: metric for title, metric in titles.items() if metric.name not in AGGREGATED}
    per_case = {
        case.case_id: {
            name: {title: _value(case, each, metric) for title, metric in single.items() if _has(metric, name)}
            for name, each in classes.items()
        }
        for case in cases
    }
    units = unit_codes([case.unit for case in cases])
    tables = {title: _table(per_case, list(classes), title) for title in single}
    per_class: dict[str, dict[str, Estimate]] = {name: {} for name in classes}
    overall: dict[str, Estimate] = {}
    for title, metric in titles.items():
        own = [(i, name) for i, name in enumerate(classes) if _has(metric, name)]
        if title in tables:
            per_class |= {name: per_class[name] | {title: estimate(tables[title][:, i], units)} for i, name in own}
            overall[title] = _overall(tables[title], units, of_case_first=scoring.of_case_first)
            continue
        values = {
            name: AGGREGATED[metric.name]([case.metrics[classes[name].key] for case in cases], metric.parameters)
            for _, name in own
        }
        per_class |= {name: per_class[name] | {title: _single(value, len(cases))} for name, value in values.items()}
        known = [value for value in values.values() if value is not None]
        overall[title] = _single(sum(known) / len(known) if known else None, len(cases))
    return ChallengeScores(
        challenge=challenge.name, metrics=tuple(titles), per_case=per_case, per_class=per_class, overall=overall
    )


def _has(metric: Metric, of_class: str) -> bool:
    return not metric.classes or of_class in metric.classes


def _single(value: float | None, cases: int) -> Estimate:
    """A score without an interval."""
    return Estimate(
        mean=value, low=None, high=None, median=None, median_low=None, median_high=None, cases=cases, units=cases
    )


def _titles(metrics: Sequence[Metric]) -> dict[str, Metric]:
    """Metrics by the title of their column."""
    names = [metric.name for metric in metrics]
    return {
        metric.name if names.count(metric.name) == 1 else f"{metric.name} of {' and '.join(metric.classes)}": metric
        for metric in metrics
    }


def _value(case: CaseResult, each: EvaluatedClass, metric: Metric) -> float | None:
    """By the challenge's conventions."""
    parameters: dict[str, Any] = {**metric.parameters, **metric.of_class.get(each.name, {})}
    scores = case.metrics[each.key]
    value: float | None
    if metric.name in MEASURES:
        value = case.measures.get(each.key, {}).get(metric.name)
    else:
        value = getattr(scores, FIELDS[metric.name])
    if metric.name.startswith("absolute") and value is not None:
        value = abs(value)
    if parameters.get("needs_reference") and not (scores.lesions_found or scores.lesions_missed):
        return None
    is_without = "lesion" in metric.name and value is None and not _has_lesions(scores, parameters)
    if not (scores.n_pred or scores.n_ref) or is_without:
        return float(parameters["both_empty"]) if "both_empty" in parameters else value
    if not (scores.n_pred and scores.n_ref):
        return float(parameters["one_empty"]) if "one_empty" in parameters else value
    if metric.name == "surface_dice" and (scores.dice or 0.0) < float(parameters.get("least_dice", 0.0)):
        return 0.0
    return value


def _has_lesions(scores: ClassMetrics, parameters: Mapping[str, Any]) -> bool:
    """Whether there is a lesion to count."""
    false_positive = scores.lesions_false_positive if parameters.get("false_positives_count", True) else 0
    return bool(scores.lesions_missed or false_positive or scores.lesions_found)


def _table(
    per_case: Mapping[str, Mapping[str, Mapping[str, float | None]]], names: Sequence[str], title: str
) -> NDArray[np.float64]:
    """One metric (cases, classes), NaN where undefined."""
    rows = [[case[name].get(title) for name in names] for case in per_case.values()]
    filled = [[math.nan if value is None else value for value in row] for row in rows]
    return np.array(filled, np.float64).reshape(len(rows), len(names))


def _overall(table: NDArray[np.float64], units: NDArray[np.intp], *, of_case_first: bool) -> Estimate:
    if of_case_first:
        defined = np.isfinite(table)
        number = defined.sum(axis=1)
        sums = np.where(defined, table, 0).sum(axis=1)
        return estimate(np.where(number > 0, sums / np.maximum(number, 1), np.nan), units)
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
    absent = challenge.scoring.not_computed if challenge.scoring is not None else ()
    notes += [f"Not computed here: {'; '.join(absent)}"] if absent else []
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

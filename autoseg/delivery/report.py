"""One self-contained web page about a run: what was found, decided, trained, and how well it does."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import JsonValue

from autoseg.delivery.figures import History, case_scores, configuration_curves, fold_curves
from autoseg.evaluation.selection import Candidate, Selection
from autoseg.evaluation.table import Summary, case_ranks, class_statistics, score_notes, scores_by_case
from autoseg.issues import Issue
from autoseg.storage.atomic import write_text
from autoseg.tracking.progress import format_duration
from planners import DecisionRecord

ABSENT = "–"
Rank = Literal["best", "median", "worst"]
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedCase:
    """A case whose picture tells how well the model does."""

    rank: Rank
    case_id: str
    dice: float
    """Mean over the classes that are defined in this case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayPicture:
    """One picture of outlines, made by `figures.overlay`."""

    case: RankedCase
    png: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something the reader can type."""

    purpose: str
    """A few words, e.g. ``Segment new images``."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContent:
    """All that a report shows. Parts that are not there yet are left empty and their sections left out."""

    dataset_name: str
    num_cases: int
    """Labelled cases."""
    num_test_cases: int = 0
    channels: tuple[str, ...]
    class_names: tuple[str, ...]
    selection: Selection | None = None
    summary: Summary | None = None
    """Scores of the chosen model's validation predictions after postprocessing; only of cross-validated cases."""
    caveats: Sequence[Issue] = ()
    """What takes away from these scores; none: every case was unseen by the networks that predicted it."""
    histories: Mapping[tuple[str, int], History]
    """Records of each training, by (configuration, fold)."""
    remarks: Mapping[tuple[str, int], Sequence[str]] = field(default_factory=dict)
    """Sentences on what went wrong in each training and what was done about it."""
    decisions: Sequence[DecisionRecord] = ()
    issues: Sequence[Issue] = ()
    overlays: Sequence[OverlayPicture] = ()
    commands: Sequence[Command] = ()
    environment: Mapping[str, str]
    """Versions and hardware, e.g. ``torch: 2.13.0``, in the order shown."""
    durations_s: Mapping[str, float]
    """Seconds by stage, in the order shown."""

    def __post_init__(self) -> None:
        if self.summary is not None and (self.selection is None or not self.selection.cross_validated):
            raise ValueError("scores of cases that were not cross-validated must not be reported")


def rank_cases(summary: Summary) -> tuple[RankedCase, ...]:
    """The best, median and worst case by mean Dice over the classes that are defined in a case.

    Of an even number the lower middle one is the median; of equals the earlier. With fewer than three scored cases only
    those that there are, as best and worst; none where no case has a Dice.
    """
    ranks = case_ranks(summary).dropna()[::-1]
    places: dict[Rank, int] = {"best": 0}
    if len(ranks) > 2:
        places["median"] = len(ranks) // 2
    if len(ranks) > 1:
        places["worst"] = len(ranks) - 1
    return tuple(
        RankedCase(rank=rank, case_id=str(ranks.index[place]), dice=float(ranks.iloc[place]))
        for rank, place in places.items()
        if len(ranks)
    )


def write_report(folder: Path, content: ReportContent) -> Path:
    """Write ``index.html`` into ``folder`` (made if missing), atomically, and return its path.

    The page needs no other file, no network and no JavaScript; all text of the dataset is escaped.
    """
    path = folder / "index.html"
    write_text(path, render_report(content))
    return path


def render_report(content: ReportContent) -> str:
    """The page as HTML text; the same content gives the same text."""
    environment = Environment(
        loader=PackageLoader("autoseg.delivery", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        content=content,
        headline=_headline(content),
        classes=_class_rows(content.summary),
        footnotes=() if content.summary is None else score_notes(content.summary),
        cases=_case_rows(content.summary),
        scores_picture=None if content.summary is None else _embedded(case_scores(content.summary), "svg+xml"),
        candidates=_candidate_rows(content.selection),
        candidate_classes=_candidate_classes(content.selection),
        trainings=_trainings(content.histories, content.remarks),
        decisions=_decision_groups(content.decisions),
        issues=sorted(content.issues, key=lambda finding: SEVERITIES.index(finding.severity)),
        overlays=[_overlay_view(picture) for picture in content.overlays],
        durations=[(stage, format_duration(seconds)) for stage, seconds in content.durations_s.items()],
        total=format_duration(sum(content.durations_s.values())),
    )


def _headline(content: ReportContent) -> dict[str, str]:
    """The few numbers at the top."""
    selection, summary = content.selection, content.summary
    if summary is not None:
        dice = _number(summary.mean_dice)
        unseen = (
            "a model that had not seen it"
            if not content.caveats
            else "a fold that left it out, but with reserve: see Scores"
        )
        under = f"over {len(summary.metric_per_case)} cases, each predicted by {unseen}"
    elif selection is not None:
        dice, under = "none", "nothing was cross-validated: no score is known"
    else:
        dice, under = "not yet", "training or selection is not finished"
    return {
        "dice": dice,
        "under_dice": under,
        "model": ABSENT if selection is None else selection.name,
        "folds": ""
        if selection is None
        else f"{len(selection.folds)} fold{'s' if len(selection.folds) > 1 else ''} each",
    }


def _class_rows(summary: Summary | None) -> list[dict[str, str]]:
    if summary is None:
        return []
    dice = class_statistics(summary).to_dict("index")
    rows = []
    for each in summary.classes:
        own, mean = dice[each.name], summary.mean[each.key]
        rows.append(
            {
                "name": each.name,
                "mean": _number(own["mean"]),
                "sd": _number(own["sd"]),
                "worst": _number(own["worst"]),
                "worst_case": own["worst_case"] if own["cases"] else ABSENT,
                "iou": _number(mean["IoU"]),
                "distance": _number(mean["hausdorff95_mm"], 2),
                "surface": _number(mean["surface_dice"]),
                "predicted_ml": _number(mean["volume_prediction_ml"], 2),
                "reference_ml": _number(mean["volume_reference_ml"], 2),
                "cases": str(own["cases"]),
                "share": _share(own["mean"]),
            }
        )
    return rows


def _case_rows(summary: Summary | None) -> list[dict[str, object]]:
    """Cases from the worst to the best mean Dice; those without any at the end."""
    if summary is None:
        return []
    dice, distance = (scores_by_case(summary, metric).to_dict("index") for metric in ("Dice", "hausdorff95_mm"))
    return [
        {
            "case": case,
            "mean": _number(mean),
            "share": _share(mean),
            "dices": [_number(value) for value in dice[case].values()],
            "distances": [_number(value, 1) for value in distance[case].values()],
        }
        for case, mean in case_ranks(summary).items()
    ]


def _candidate_rows(selection: Selection | None) -> list[dict[str, object]]:
    if selection is None:
        return []
    return [
        {
            "name": each.name,
            "mean": _number(each.mean_dice, 4),
            "cases": each.num_cases,
            "chosen": each.members == selection.members,
            "dices": _candidate_dices(each, _candidate_classes(selection)),
        }
        for each in selection.candidates
    ]


def _candidate_classes(selection: Selection | None) -> list[str]:
    candidates = () if selection is None else selection.candidates
    return list(dict.fromkeys(name for each in candidates for name in each.dice_per_class))


def _candidate_dices(candidate: Candidate, names: Sequence[str]) -> list[str]:
    return [_number(candidate.dice_per_class.get(name)) for name in names]


def _trainings(
    histories: Mapping[tuple[str, int], History], remarks: Mapping[tuple[str, int], Sequence[str]]
) -> list[dict[str, object]]:
    """For each configuration one picture of all folds, one picture of each, and what was remarked."""
    trainings: list[dict[str, object]] = []
    for name in dict.fromkeys(configuration for configuration, _ in histories):
        folds = {fold: history for (configuration, fold), history in sorted(histories.items()) if configuration == name}
        trainings.append(
            {
                "name": name,
                "picture": _embedded(configuration_curves(folds), "svg+xml"),
                "remarks": [(fold, text) for fold in folds for text in remarks.get((name, fold), ())],
                "folds": [
                    (fold, _embedded(fold_curves(history), "svg+xml"), _last_words(history))
                    for fold, history in folds.items()
                ],
            }
        )
    return trainings


def _last_words(history: History) -> str:
    """Where a training ended, in a line."""
    if not history:
        return "no epoch is finished"
    last = history[-1]
    parts = [f"{last.get('step', '?')} steps"]
    for key, words in (("loss", "training loss"), ("moving_average", "pseudo-Dice, moving average,")):
        value = last.get(key)
        if isinstance(value, int | float):
            parts.append(f"{words} {value:.3f}")
    return ", ".join(parts)


def _decision_groups(decisions: Sequence[DecisionRecord]) -> list[tuple[str, list[dict[str, str]]]]:
    """Decisions for the whole dataset first, then those of each configuration, in their order."""
    groups: dict[str | None, list[dict[str, str]]] = (
        {None: []} if any(d.configuration is None for d in decisions) else {}
    )
    for each in decisions:
        groups.setdefault(each.configuration, []).append(
            {
                "title": each.rule.replace(".", ": ").replace("_", " "),
                "rule": each.rule,
                "value": _value(each.value),
                "reason": each.reason,
                "change": each.change or "",
                "source": each.source,
            }
        )
    return [("The whole dataset" if name is None else name, records) for name, records in groups.items()]


def _value(value: JsonValue) -> str:
    """A decision's value as people write it: ``yes``, ``128 x 128``, ``3, 3, 1``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(f"({_value(item)})" if isinstance(item, list) else _value(item) for item in value) or "none"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _overlay_view(picture: OverlayPicture) -> dict[str, str]:
    return {
        "rank": picture.case.rank,
        "case": picture.case.case_id,
        "dice": _number(picture.case.dice),
        "picture": _embedded(picture.png, "png"),
    }


def _embedded(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _number(value: float | None, digits: int = 3) -> str:
    return ABSENT if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    """Width of a bar in percent."""
    return "0" if value is None or math.isnan(value) else f"{100 * min(1.0, max(0.0, value)):.1f}"

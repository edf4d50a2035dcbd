"""One self-contained web page about a run: what was found, asked for, decided and trained, and how good the model is.

`read_report` takes from a run folder what its documents say; `write_report` makes the page.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import JsonValue

from autoseg.data.dataset import DatasetDescription
from autoseg.delivery.figures import case_scores, configuration_curves, fold_curves, overlay
from autoseg.evaluation.expected_quality import FEWEST_CASES, NOMINAL, allowed_by_chance
from autoseg.evaluation.groups import FOREGROUND
from autoseg.evaluation.intervals import Estimate
from autoseg.evaluation.scoring import reference_labels
from autoseg.evaluation.selection import Selection
from autoseg.evaluation.table import (
    NO_SPACING,
    Summary,
    case_ranks,
    class_statistics,
    estimates_of,
    group_notes,
    score_notes,
    scores_by_case,
)
from autoseg.imaging.orientation import align_label_map, canonical_orientation, knows_directions, to_canonical
from autoseg.imaging.readers import read_image, read_label_map
from autoseg.issues import Issue
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, write_text
from autoseg.tracking.callbacks import HISTORY_FILE, EpochRecord, read_history, read_issues
from autoseg.wording import count_noun, format_duration
from planners import DecisionRecord, Document, Edit, Plan, Schedule

ABSENT = "–"
RATES = {
    "IoU": "IoU",
    "sensitivity": "sensitivity",
    "precision": "precision",
    "specificity": "specificity",
    "volume_error_ml": "volume error, ml",
    "relative_volume_error": "relative volume error",
    "lesion_sensitivity": "lesion sensitivity",
    "lesion_precision": "lesion precision",
    "lesion_f1": "lesion F1",
    "lesion_dice": "lesion-wise Dice",
    "lesion_hausdorff95_mm": "lesion-wise 95 % Hausdorff, mm",
    "lesion_count_error": "lesion count error",
}
"""Titles of the metrics of the second table."""
SEVERITIES = ("error", "warning", "note")
Rank = Literal["best", "median", "worst"]
D = TypeVar("D", bound=Document)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedCase:
    """A case whose picture shows how well the model does."""

    rank: Rank
    case_id: str
    dice: float
    """Mean over the classes that are defined in this case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldLog:
    """What the report shows of one training."""

    configuration: str
    fold: int
    history: Sequence[EpochRecord]
    issues: Sequence[Issue] = ()
    """What went wrong, and what was done about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContent:
    """All that a report shows. Sections whose content is empty are left out."""

    dataset: DatasetDescription
    decisions: Sequence[DecisionRecord] = ()
    """Of the plan and the schedule."""
    selection: Selection | None = None
    summary: Summary | None = None
    """Scores of the chosen model's validation predictions after postprocessing; only of cross-validated cases."""
    warnings: Sequence[Issue] = ()
    """About the model as a whole; they come first."""
    caveats: Sequence[Issue] = ()
    """Caveats of these scores; none: every case was predicted by networks that did not see it."""
    trainings: Sequence[FoldLog] = ()
    pictures: Sequence[tuple[RankedCase, bytes]] = ()
    """PNG of each case that `rank_cases` names."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Every setting that differs from its default, as text."""
    edits: Sequence[Edit] = ()
    """What the user changed in the plan and the schedule."""
    commands: Mapping[str, str] = field(default_factory=dict)
    """Commands for what comes next, by purpose."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions and hardware, in the order shown."""
    durations_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage, in the order shown."""

    def __post_init__(self) -> None:
        if self.summary is not None and (self.selection is None or not self.selection.cross_validated):
            raise ValueError("scores of cases that were not cross-validated must not be reported")


# --- from the run folder ---


def read_report(
    folder: RunFolder,
    *,
    warnings: Sequence[Issue] = (),
    caveats: Sequence[Issue] = (),
    settings: Mapping[str, str],
    edits: Sequence[Edit] = (),
    commands: Mapping[str, str],
    environment: Mapping[str, str],
    durations_s: Mapping[str, float],
) -> ReportContent:
    """What the documents of a run folder say, its best, median and worst case drawn, with what only the run knows.

    Documents that do not exist yet leave their sections out; only ``dataset.json`` must exist. Raises `AutosegError` for
    one that cannot be read.
    """
    dataset = load_document(DatasetDescription, folder.dataset)
    plan, schedule = _load(Plan, folder.plan), _load(Schedule, folder.schedule)
    selection = _load(Selection, folder.selection)
    scored = selection is not None and selection.cross_validated
    summary = _load(Summary, folder.cross_validation / "summary.json") if scored else None
    ranked = () if summary is None else rank_cases(summary)
    return ReportContent(
        dataset=dataset,
        decisions=[each for document in (plan, schedule) if document is not None for each in document.decisions],
        selection=selection,
        summary=summary,
        warnings=warnings,
        caveats=caveats,
        trainings=[] if schedule is None else read_trainings(folder, schedule),
        pictures=[
            (each, draw_case(dataset, summary, each.case_id, folder.cross_validation)) for each in ranked if summary
        ],
        settings=settings,
        edits=edits,
        commands=commands,
        environment=environment,
        durations_s=durations_s,
    )


def _load(kind: type[D], path: Path) -> D | None:
    return load_document(kind, path) if path.exists() else None


def read_trainings(folder: RunFolder, schedule: Schedule) -> list[FoldLog]:
    """History and issues of every scheduled training; damage of a history is one more issue."""
    logs = []
    for name in (training.configuration for training in schedule.trainings):
        for fold in [each for each in range(schedule.num_folds) if schedule.steps_of(name, each)]:
            history, damage = read_history(folder.fold(name, fold) / HISTORY_FILE)
            issues = (*read_issues(folder.fold(name, fold)), *([] if damage is None else [damage]))
            logs.append(FoldLog(configuration=name, fold=fold, history=history, issues=issues))
    return logs


def rank_cases(summary: Summary) -> tuple[RankedCase, ...]:
    """The best, median and worst case by mean Dice over the classes that are defined in a case.

    Of an even number the lower middle one is the median; of equals the earlier. With fewer than three scored cases only those that there are, as
    best and worst; none where no case has a Dice.
    """
    ranks = case_ranks(summary).dropna().sort_values(ascending=False, kind="stable")
    places: dict[int, Rank] = {0: "best"}
    places |= {len(ranks) - 1: "worst"} if len(ranks) > 1 else {}
    places |= {len(ranks) // 2: "median"} if len(ranks) > 2 else {}
    return tuple(
        RankedCase(rank=rank, case_id=str(ranks.index[place]), dice=float(ranks.iloc[place]))
        for place, rank in sorted(places.items())
        if place < len(ranks)
    )


def draw_case(dataset: DatasetDescription, summary: Summary, case_id: str, predictions: Path) -> bytes:
    """PNG of a training case with its reference and the prediction in the folder ``predictions``.

    In canonical axes, so that every picture shows the patient the same way up.
    """
    case = next(each for each in dataset.training if each.case_id == case_id)
    scored = next(each for each in summary.metric_per_case if each.case_id == case_id)
    image = read_image(case.image_paths)
    orientation = canonical_orientation(image.geometry)
    maps = (reference_labels(dataset, case_id), read_label_map(predictions / Path(scored.prediction_file).name))
    reference, prediction = (to_canonical(align_label_map(each, image.geometry), orientation) for each in maps)
    z, y, x = (image.geometry.spacing_mm[axis] for axis in orientation.permutation)
    # a value that is in several regions gets the last one's name
    names = {dataset.file_values[value]: each.name for each in dataset.labels.classes for value in each.values}
    return overlay(
        to_canonical(image.array[0], orientation),
        reference,
        prediction,
        names=names,
        spacing_mm=(z, y, x),
        is_axial=knows_directions(image.geometry),
    )


# --- the page ---


def write_report(folder: Path, content: ReportContent) -> Path:
    """Write ``index.html`` into ``folder`` (created if missing), atomically, and return its path.

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
    filters = {"number": _number, "interval": _interval, "percent": _percent, "value": _value, "picture": _embedded}
    environment.filters |= {**filters, "duration": format_duration}
    candidates = () if content.selection is None else content.selection.candidates
    return environment.get_template("report.html.jinja").render(
        content=content,
        headline=_headline(content),
        scores=None if content.summary is None else _scores(content.summary),
        doubt=None if content.summary is None else _doubt(content.summary),
        rate_titles=RATES,
        candidate_classes=list(dict.fromkeys(name for each in candidates for name in each.dice_per_class)),
        trainings=_trainings(content.trainings),
        decisions=_by_configuration(content.decisions),
        issues=sorted(content.dataset.issues, key=lambda issue: SEVERITIES.index(issue.severity)),
        total_s=sum(content.durations_s.values()),
    )


def _headline(content: ReportContent) -> dict[str, str]:
    """The few numbers at the top."""
    selection, summary = content.selection, content.summary
    if summary is not None:
        corrected = None if selection is None else selection.dice_corrected
        found = estimates_of(summary)[FOREGROUND]["Dice"]
        limits = None if selection is None else selection.corrected_interval
        if corrected is None:
            limits = None if found.low is None or found.high is None else (found.low, found.high)
        dice = _number(summary.mean_dice if corrected is None else corrected)
        interval = "" if limits is None else f"95 % interval {limits[0]:.3f} to {limits[1]:.3f}, "
        unseen = "a fold that left it out, but see Scores" if content.caveats else "a network that did not see it"
        under = f"{interval}over {count_noun(len(summary.metric_per_case), 'case')}, each predicted by {unseen}"
    elif selection is not None:
        dice, under = "none", "nothing was cross-validated"
    else:
        dice, under = "not yet", "training or selection is not finished"
    return {
        "dice": dice,
        "dice_of": "held-out" if selection is not None and selection.is_hold_out else "cross-validated",
        "under_dice": under,
        "model": ABSENT if selection is None else selection.name,
        "folds": "" if selection is None else f"{count_noun(len(selection.folds), 'fold')} each",
    }


def _scores(summary: Summary) -> dict[str, object]:
    """Rows of the tables of classes and of cases, the worst case first, and notes on them."""
    dice, distance = (scores_by_case(summary, metric).to_dict("index") for metric in ("Dice", "hausdorff95_mm"))
    metrics = [name for name in ("Dice", "hausdorff95_mm", "surface_dice", *RATES) if name in summary.metrics]
    found = estimates_of(summary, metrics)
    own = [class_statistics(summary, classes=of).to_dict("index") for of in (summary.classes, summary.unions)]
    rows = [
        *((each.name, found[each.key], own[0][each.name]) for each in summary.classes),
        ("mean of classes", found[FOREGROUND], None),
        *((each.name, found[each.key], own[1][each.name]) for each in summary.unions),
    ]
    return {
        "rows": rows,
        "rates": [name for name in RATES if any(name in estimates for estimates in found.values())],
        "volumes": [
            (each.name, summary.mean[each.key], summary.volume_correlation.get(each.key)) for each in summary.scored
        ],
        "cases": [(case, mean, dice[case], distance[case]) for case, mean in case_ranks(summary).items()],
        "notes": (notes := score_notes(summary)),
        "is_metric": all(note.code != NO_SPACING for note in notes),
        "group_notes": group_notes(summary),
        "foreground": FOREGROUND,
        "picture": case_scores(summary),
    }


def _doubt(summary: Summary) -> dict[str, object] | None:
    """Calibration of each class, and how often expected ranges of Dice held; none where it is not known."""
    found = summary.calibration
    if found is None:
        return None
    names = zip(found.before, found.temperatures, strict=True)
    return {
        "cases": found.cases,
        "cross_fitted": found.cross_fitted,
        "rows": [(name, temperature, found.before[name], found.after[name]) for name, temperature in names],
        "coverage": [
            (name, inside, number, *allowed_by_chance(number))
            for name, (inside, number) in summary.expected_coverage.items()
        ],
        "nominal": NOMINAL,
        "fewest": FEWEST_CASES,
    }


def _trainings(logs: Sequence[FoldLog]) -> list[dict[str, object]]:
    """For each configuration one picture of all folds, and for each fold a picture, a line and its issues."""
    by_name: dict[str, list[FoldLog]] = {}
    for log in logs:
        by_name.setdefault(log.configuration, []).append(log)
    return [
        {
            "name": name,
            "picture": configuration_curves({log.fold: log.history for log in own}),
            "folds": [(log, fold_curves(log.history), _last_words(log.history)) for log in own],
            "issues": [(log.fold, issue) for log in own for issue in log.issues],
        }
        for name, own in by_name.items()
    ]


def _last_words(history: Sequence[EpochRecord]) -> str:
    """Where a training ended, in a line."""
    if not history:
        return "no epoch is finished"
    last = history[-1]
    return f"{last.step} steps, training loss {_number(last.loss)}, pseudo-Dice, moving average, {_number(last.moving_average)}"


def _by_configuration(decisions: Sequence[DecisionRecord]) -> dict[str, list[DecisionRecord]]:
    """Decisions for the whole dataset first, then those of each configuration, in their order."""
    groups: dict[str, list[DecisionRecord]] = {}
    for each in sorted(decisions, key=lambda decision: decision.configuration is not None):
        groups.setdefault(each.configuration or "The whole dataset", []).append(each)
    return groups


# --- filters of the template ---


def _value(value: JsonValue) -> str:
    """A value of a plan as users write it: ``yes``, ``3, 3, 1``, ``none``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(f"({_value(item)})" if isinstance(item, list) else _value(item) for item in value) or "none"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _number(value: float | None, digits: int = 3) -> str:
    return ABSENT if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _interval(each: Estimate | None, digits: int = 3) -> str:
    """A mean with its 95 % interval."""
    if each is None or each.low is None or each.high is None:
        return "" if each is None else _number(each.mean, digits)
    return f"{_number(each.mean, digits)} [{each.low:.{digits}f}, {each.high:.{digits}f}]"


def _percent(value: float | None) -> str:
    """Width of a bar."""
    return "0" if value is None or math.isnan(value) else f"{100 * min(1.0, max(0.0, value)):.1f}"


def _embedded(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"

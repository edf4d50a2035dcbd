"""Results beside each other: what one gains over another on the same cases, and how much folds and seeds account for.

A result is a run folder, a ``summary.json`` (or the folder that it is in), a table that ``autoseg evaluate`` wrote, or a public
table of scores by case that the user has.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.data.splits import Splits
from autoseg.evaluation.intervals import Difference, Estimate, estimate, mean_interval, paired_difference, unit_codes
from autoseg.evaluation.table import Summary, case_ranks, read_summary, scores_by_case
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document
from autoseg.wording import count_noun, shorten
from planners import Document

MEAN = "mean Dice"
"""Name of a case's mean over the classes that it has, beside names of classes."""
NOT_ALIKE = frozenset({"seed", "threads", "workers", "device", "work", "track", "cluster"})
"""Settings in which runs may differ that are compared as seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicTable:
    """A published table of scores by case, and what is known of it."""

    column: str
    """Of the mean foreground Dice of a case."""
    cases: int
    mean: float
    """Of all its cases, to four digits: another table is refused."""
    source: str


RANKSEG = (
    "github.com/rankseg/rankseg-nnunet-benchmark 5db223f (Apache-2.0), evidence/datasets/{}/case_paired_deltas.csv"
)
"""Out-of-fold predictions of the official nnU-Net v1 models, scored by the authors of RankSEG."""
PUBLIC = {
    f"nnunet-v1-{name}": PublicTable(
        column="argmax_foreground_mean_dice", cases=cases, mean=mean, source=RANKSEG.format(folder)
    )
    for name, folder, cases, mean in (
        ("hippocampus", "Task004_Hippocampus", 260, 0.8891),
        ("heart", "Task002_Heart", 20, 0.9329),
        ("spleen", "Task009_Spleen", 41, 0.9724),
        ("prostate", "Task005_Prostate", 32, 0.7596),
        ("acdc", "Task027_ACDC", 200, 0.9245),
        ("promise12", "Task024_PROMISE12_Test", 30, 0.9194),
        ("liver", "Task003_Liver", 131, 0.8235),
        ("lung", "Task006_Lung", 63, 0.7229),
        ("pancreas", "Task007_Pancreas", 281, 0.6840),
        ("hepatic-vessel", "Task008_HepaticVessel", 303, 0.6863),
        ("colon", "Task010_Colon", 126, 0.4892),
        ("brain-tumour", "Task001_BrainTumour", 484, 0.8454),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Dice of each case of one result."""

    name: str
    dice: Mapping[str, Mapping[str, float]]
    """Case -> class, or `MEAN` -> Dice; what is undefined is left out."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Patient of each case; one that is missing stands alone."""
    folds: tuple[tuple[str, ...], ...] = ()
    """Cases of each validated fold; none: not a cross-validation."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of a run."""
    summary: Summary | None = None


class Compared(Document):
    """One result against the first one."""

    name: str
    classes: dict[str, Difference]
    """By class, and `MEAN`, that both have."""
    only_here: int
    """Cases that the first result does not have."""
    only_there: int


class Spread(Document):
    """How much means of a run differ between folds, and means of runs between seeds."""

    name: str
    number: int
    means: tuple[float, ...]
    sd: float
    expected_sd: float | None = None
    """Of fold means, if folds differed only by the cases that are in them; none for seeds."""


class Comparison(Document):
    """All results against the first one, by Dice."""

    first: str
    results: dict[str, dict[str, Estimate]]
    """Name -> class, or `MEAN` -> mean over all of its cases."""
    compared: tuple[Compared, ...]
    folds: tuple[Spread, ...] = ()
    seeds: Spread | None = None


# --- reading ---


def read_result(path: Path, name: str | None = None) -> Result:
    """A result by its path. Raises `AutosegError` where it is none."""
    title = name or path.name
    if path.is_file() and path.suffix == ".csv":
        return _read_table(path, title)
    run = RunFolder(path)
    places = [path, path / "summary.json", run.cross_validation / "summary.json"]
    file = next((place for place in reversed(places) if place.is_file()), None)
    if file is None:
        fix = "pass a finished run folder, a folder of predictions that was evaluated, a summary.json or a table"
        raise AutosegError(Issue(code="compare.no_scores", where=str(path), message="has no scores", fix=fix))
    summary = read_summary(file)
    is_run = file == run.cross_validation / "summary.json"
    splits = load_document(Splits, run.splits) if is_run and run.splits.is_file() else None
    settings = json.loads(run.settings.read_text("utf-8")) if is_run and run.settings.is_file() else {}
    return Result(
        name=title,
        dice=_dice(summary),
        units={case.case_id: case.unit for case in summary.metric_per_case},
        folds=() if splits is None else tuple(tuple(fold.val) for fold in splits.folds),
        settings=settings,
        summary=summary,
    )


def _dice(summary: Summary) -> dict[str, dict[str, float]]:
    table, means = scores_by_case(summary), {str(case): float(mean) for case, mean in case_ranks(summary).items()}
    return {
        str(case): {
            **{str(each): float(value) for each, value in row.items() if np.isfinite(value)},
            **({MEAN: means[str(case)]} if np.isfinite(means[str(case)]) else {}),
        }
        for case, row in table.iterrows()
    }


def _read_table(path: Path, name: str) -> Result:
    """A table that ``autoseg evaluate`` wrote."""
    rows = _rows(path, {"case", "class", "Dice"})
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        own = found.setdefault(row["case"], {})
        if row["Dice"]:
            own[row["class"]] = float(row["Dice"])
    return Result(name=name, dice={case: own | _mean_of(own) for case, own in found.items()})


def _mean_of(own: Mapping[str, float]) -> dict[str, float]:
    return {MEAN: float(np.mean(list(own.values())))} if own else {}


def _rows(path: Path, columns: set[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        message, fix = f"cannot be read ({error})", "check the path"
        raise AutosegError(Issue(code="compare.no_scores", where=str(path), message=message, fix=fix)) from error
    if not rows or not columns <= {*rows[0]}:
        message, fix = f"is no table with the columns {', '.join(sorted(columns))}", "pass the table of scores by case"
        raise AutosegError(Issue(code="compare.no_scores", where=str(path), message=message, fix=fix))
    return rows


def read_public(name: str, path: Path) -> Result:
    """The published table of that name, in the file that the user has. Raises `AutosegError` where it is another one."""
    table = PUBLIC.get(name)
    if table is None:
        fix = f"choose one of {', '.join(PUBLIC)}"
        raise AutosegError(Issue(code="compare.unknown", where=f"--with {name}", message="is not known", fix=fix))
    rows = _rows(path, {"case_id", table.column})
    dice = {row["case_id"]: {MEAN: float(row[table.column])} for row in rows}
    mean = float(np.mean([own[MEAN] for own in dice.values()]))
    if len(dice) != table.cases or round(mean, 4) != table.mean:
        message = f"has {len(dice)} cases with a mean of {mean:.4f}, but {name} has {table.cases} with a mean of {table.mean:.4f}"
        raise AutosegError(
            Issue(code="compare.other_table", where=str(path), message=message, fix=f"take it from {table.source}")
        )
    return Result(name=name, dice=dice)


# --- comparing ---


def compare_results(results: Sequence[Result]) -> Comparison:
    """All against the first. Raises `AutosegError` for one that shares no scored case with it."""
    first, *others = results
    named = {each.name for each in results}
    if len(named) < len(results):
        raise ValueError(f"results must have names of their own, found {sorted(each.name for each in results)}")
    compared = [_compared(first, each) for each in others]
    fix = "compare results of the same dataset, whose cases have the same names"
    issues = [
        Issue(
            code="compare.no_common_cases",
            where=each.name,
            message=f"has no scored case of {first.name} ({shorten(sorted(other.dice))})",
            fix=fix,
        )
        for each, other in zip(compared, others, strict=True)
        if not each.classes
    ]
    if issues:
        raise AutosegError(*issues)
    runs = [each for each in results if each.folds]
    return Comparison(
        first=first.name,
        results={each.name: _estimates(each) for each in results},
        compared=tuple(compared),
        folds=tuple(found for each in runs if (found := fold_spread(each)) is not None),
        seeds=seed_spread(runs),
    )


def _estimates(result: Result) -> dict[str, Estimate]:
    names = dict.fromkeys(name for own in result.dice.values() for name in own)
    units = unit_codes([result.units.get(case, f"case {case}") for case in result.dice])
    values = {name: np.array([own.get(name, np.nan) for own in result.dice.values()]) for name in names}
    return {name: estimate(of_case, units) for name, of_case in values.items()}


def _compared(first: Result, other: Result) -> Compared:
    cases = [case for case in first.dice if case in other.dice]
    units = unit_codes([first.units.get(case) or other.units.get(case, f"case {case}") for case in cases])
    names = dict.fromkeys(name for case in cases for name in first.dice[case] if name in other.dice[case])
    found = {}
    for name in names:
        before, after = (np.array([each.dice[case].get(name, np.nan) for case in cases]) for each in (first, other))
        if (difference := paired_difference(before, after, units)) is not None:
            found[name] = difference
    return Compared(
        name=other.name,
        classes=found,
        only_here=len(other.dice.keys() - first.dice.keys()),
        only_there=len(first.dice.keys() - other.dice.keys()),
    )


def fold_spread(result: Result) -> Spread | None:
    """Of the mean Dice of each fold; none below two folds.

    Folds have other networks and other cases. ``expected_sd`` is what other cases alone would give: the spread of cases
    within folds over the root of their number. What is beyond it is between networks.
    """
    parts = [[result.dice[case][MEAN] for case in fold if MEAN in result.dice.get(case, {})] for fold in result.folds]
    parts = [part for part in parts if part]
    if len(parts) < 2:
        return None
    means = [float(np.mean(part)) for part in parts]
    within = [np.var(part, ddof=1) for part in parts if len(part) > 1]
    expected = None
    if within:
        expected = float(np.sqrt(np.mean([np.mean(within) / len(part) for part in parts])))
    return Spread(
        name=result.name, number=len(parts), means=tuple(means), sd=float(np.std(means, ddof=1)), expected_sd=expected
    )


def seed_spread(runs: Sequence[Result]) -> Spread | None:
    """Of the mean Dice of runs that differ only by their seed, on cases that all have; none where there are no two."""
    alike = [{name: value for name, value in each.settings.items() if name not in NOT_ALIKE} for each in runs]
    seeds = [each.settings.get("seed") for each in runs]
    if len(runs) < 2 or any(own != alike[0] for own in alike) or len({*seeds}) < len(seeds):
        return None
    cases = [case for case in runs[0].dice if all(MEAN in each.dice.get(case, {}) for each in runs)]
    if not cases:
        return None
    means = [float(np.mean([each.dice[case][MEAN] for case in cases])) for each in runs]
    return Spread(name="seeds", number=len(runs), means=tuple(means), sd=float(np.std(means, ddof=1)))


# --- text ---


def format_comparison(comparison: Comparison) -> str:
    """As text for a terminal."""
    lines = ["Mean Dice, ± half of its 95 % interval"]
    width = max(map(len, comparison.results))
    for name, own in comparison.results.items():
        texts = [f"{each} {value}" for each, value in _in_order(own).items()]
        lines.append(f"{name:{width}}  {'  '.join(texts)}  ({count_noun(own[MEAN].cases, 'case')})")
    for each in comparison.compared:
        number = max(of.cases for of in each.classes.values())
        lines.append(f"\n{each.name} minus {comparison.first}, on {count_noun(number, 'common case')}")
        names = _in_order(each.classes)
        width_of = max(map(len, names))
        lines += [f"  {name:{width_of}}  {of}{'' if of.is_sure else '  (inconclusive)'}" for name, of in names.items()]
        if each.only_here or each.only_there:
            lines.append(
                f"  not compared: {count_noun(each.only_here, 'case')} only here, {each.only_there} only in {comparison.first}"
            )
    for spread in comparison.folds:
        beyond = "" if spread.expected_sd is None else f" ({spread.expected_sd:.4f} expected from their cases alone)"
        lines.append(f"\nFolds of {spread.name}: {_listed(spread)}, sd {spread.sd:.4f}{beyond}")
    if comparison.seeds is not None:
        _, low, high, _ = mean_interval(np.array(comparison.seeds.means), np.arange(comparison.seeds.number))
        interval = "" if low is None or high is None else f", 95 % interval of their mean [{low:.4f}, {high:.4f}]"
        lines.append(f"\nSeeds: {_listed(comparison.seeds)}, sd {comparison.seeds.sd:.4f}{interval}")
    return "\n".join(lines)


def _in_order(own: Mapping[str, Any]) -> dict[str, Any]:
    """The mean first."""
    return {name: own[name] for name in sorted(own, key=lambda name: name != MEAN)}


def _listed(spread: Spread) -> str:
    return " ".join(f"{mean:.4f}" for mean in spread.means)

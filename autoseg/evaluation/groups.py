"""Scores by group of cases: site, scanner, sex, age; and where a group differs from the others by more than chance.

Each group is compared with all other cases by the Mann-Whitney test, which assumes nothing of how Dice is distributed; a patient
counts once. The more comparisons are looked at, the more of them differ by chance: Holm's correction is over all of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from autoseg.data.tables import Grouping
from autoseg.evaluation.intervals import FEWEST, Estimate, Units, by_unit, estimate, estimate_over_classes, format_p
from planners import Document

FOREGROUND = "foreground"
SURE = 0.05
"""Corrected p below which a group is said to differ."""


class GroupRow(Document):
    """Dice in one group."""

    name: str
    estimates: dict[str, Estimate]
    """Of each class, by key, and of the mean over classes; intervals only from three patients on."""


class GroupDifference(Document):
    """One group against all other cases of its column."""

    group: str
    key: str
    """Of the class, or ``foreground``."""
    mean: float
    others: float
    """Mean Dice of the units of the group, and of the others."""
    units: int
    other_units: int
    p: float
    """Mann-Whitney test, two-sided."""
    p_corrected: float
    """By Holm's method, for all comparisons of the table."""

    @property
    def is_sure(self) -> bool:
        """Whether the group differs by more than chance."""
        return self.p_corrected < SURE


class ScoresByGroup(Document):
    """One column of a table of groups."""

    column: str
    cuts: tuple[float, ...] = ()
    """Numbers at which the column was cut, at thirds of the cases; none: its values are the groups."""
    rows: tuple[GroupRow, ...]
    differences: tuple[GroupDifference, ...] = ()
    """Of groups with enough units; of two groups only the first, which says the same as the other."""
    held_out: bool = False
    """Every case was predicted by networks that saw no case of its group."""


def scores_by_group(
    groupings: Sequence[Grouping],
    cases: Sequence[str],
    units: Units,
    keys: Sequence[str],
    dice: NDArray[np.float64],
    *,
    held_out: str | None = None,
) -> tuple[ScoresByGroup, ...]:
    """``dice`` (cases, classes), NaN where undefined, by the groups of each column; ``held_out`` names the column of the folds."""
    found, tests = [], []
    for grouping in groupings:
        of_case = np.array([grouping.of_case.get(case, "") for case in cases], str)
        there = [group for group in grouping.groups if (of_case == group).any()]
        rows = tuple(_row(group, keys, dice[of_case == group], units[of_case == group]) for group in there)
        compared = there[:1] if len(there) == 2 else there if len(there) > 2 else []
        tests += [
            (grouping.column, each) for group in compared for each in _differences(group, of_case, units, keys, dice)
        ]
        found.append(
            ScoresByGroup(column=grouping.column, cuts=grouping.cuts, rows=rows, held_out=grouping.column == held_out)
        )
    corrected = holm([each.p for _, each in tests])
    final = [
        (column, each.model_copy(update={"p_corrected": p})) for (column, each), p in zip(tests, corrected, strict=True)
    ]
    return tuple(
        each.model_copy(update={"differences": tuple(test for column, test in final if column == each.column)})
        for each in found
    )


def _row(group: str, keys: Sequence[str], dice: NDArray[np.float64], units: Units) -> GroupRow:
    estimates = {key: estimate(dice[:, i], units) for i, key in enumerate(keys)}
    return GroupRow(name=group, estimates={**estimates, FOREGROUND: estimate_over_classes(dice, units)})


def _differences(
    group: str, of_case: NDArray[np.str_], units: Units, keys: Sequence[str], dice: NDArray[np.float64]
) -> Iterator[GroupDifference]:
    """The group against the cases of all other groups: the mean over classes, and each class where there are several."""
    from scipy.stats import mannwhitneyu  # here, because it takes a second to load

    inside, outside = of_case == group, (of_case != group) & (of_case != "")
    defined = np.isfinite(dice)
    number = defined.sum(axis=1)
    means = np.where(number > 0, np.where(defined, dice, 0).sum(axis=1) / np.maximum(number, 1), np.nan)
    columns = {FOREGROUND: means} | ({key: dice[:, i] for i, key in enumerate(keys)} if len(keys) > 1 else {})
    for key, values in columns.items():
        own, others = (by_unit(values[which], units[which]) for which in (inside, outside))
        if min(len(own), len(others)) < FEWEST:
            continue
        yield GroupDifference(
            group=group,
            key=key,
            mean=float(own.mean()),
            others=float(others.mean()),
            units=len(own),
            other_units=len(others),
            p=float(mannwhitneyu(own, others).pvalue),
            p_corrected=1.0,
        )


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method: the smallest times n, the next times n - 1, never falling, at most 1."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    result = np.empty(len(p))
    result[order] = np.minimum(1.0, np.maximum.accumulate(scaled)) if len(p) else scaled
    return [float(each) for each in result]


def in_words(each: ScoresByGroup, names: dict[str, str]) -> list[str]:
    """What is to be said of a column: the groups that differ by more than chance, or that none does; ``names`` of classes by key."""
    if not each.differences:
        return [f"{each.column}: too few cases in its groups to compare them (at least {FEWEST} in two of them)"]
    sure = [test for test in each.differences if test.is_sure]
    lines = [
        f"{each.column} {test.group} differs{'' if test.key == FOREGROUND else f' in {names[test.key]}'}: mean Dice {test.mean:.3f} "
        f"({test.units}) against {test.others:.3f} ({test.other_units}) of the others, Mann-Whitney p {format_p(test.p)}, "
        f"{format_p(test.p_corrected)} after Holm's correction"
        for test in sure
    ]
    return lines or [f"{each.column}: no group differs by more than chance"]

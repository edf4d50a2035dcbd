"""How sure means, medians and differences of scores are: intervals without random numbers.

Chosen by how often they hold the truth on public scores of cases (decision 0244): Student's t for means and paired
differences, order statistics for medians. Cases of one patient count as one observation. A case without a value takes no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr, stdtrit

from planners import Document

Values = NDArray[np.float64]
"""(N,) or (N, C): of each case, and class; NaN where undefined."""
Units = NDArray[np.intp]
"""(N,): number of the patient of each case, `unit_codes`."""

CONFIDENCE = 0.95
FEWEST = 3
"""Units (patients, or cases) below which no interval is given."""
RELIABLE = 50
"""Units from which the interval of a mean holds the truth as often as it says; below it may be too narrow."""
FEWEST_DIFFERENCES = 6
"""Differences that are not 0 below which the Wilcoxon test cannot come to 0.05, so that it is not made."""

MOST_EXACT = 50
"""Differences up to which the Wilcoxon test is exact."""


class Estimate(Document):
    """A mean and a median over cases, with 95 % intervals; none where they are undefined or rest on too few."""

    mean: float | None
    low: float | None
    high: float | None
    """Interval of the mean."""
    median: float | None
    median_low: float | None
    median_high: float | None
    cases: int
    """That have a value."""
    units: int
    """Patients, or cases where patients are not known."""

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:.4f}" + ("" if self.half_width is None else f" ±{self.half_width:.4f}")

    @property
    def half_width(self) -> float | None:
        """Half of the interval of the mean, which lies in its middle."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


class Difference(Document):
    """What one of two results gains over the other on the same cases."""

    mean: float
    low: float | None
    high: float | None
    """The 95 % interval; none below `FEWEST` units."""
    wilcoxon_p: float | None
    """Signed-rank test over units, two-sided; none below `FEWEST_DIFFERENCES` units that differ."""
    cases: int
    units: int

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:+.4f}, {self.high:+.4f}]"
        p = "" if self.wilcoxon_p is None else f", Wilcoxon p {format_p(self.wilcoxon_p)}"
        return f"{self.mean:+.4f}{interval}{p}"

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def unit_codes(units: Sequence[str]) -> Units:
    """A number for each unit, from 0 on in the order of their names."""
    codes: Units = np.unique(np.asarray(units, str), return_inverse=True)[1].reshape(-1)
    return codes


def estimate(values: Values, units: Units) -> Estimate:
    """Mean over cases and median over units (by the mean of each) of ``values`` (N,), and how sure they are."""
    mean, low, high, number = mean_interval(values, units)
    of_units = by_unit(values, units)
    limits = median_interval(of_units)
    return Estimate(
        mean=mean,
        low=low,
        high=high,
        median=float(np.median(of_units)) if number else None,
        median_low=None if limits is None else limits[0],
        median_high=None if limits is None else limits[1],
        cases=int(np.isfinite(values).sum()),
        units=number,
    )


def estimate_over_classes(values: Values, units: Units) -> Estimate:
    """Of the mean over classes of ``values`` (N, C); the median is of the means of each case over the classes that it has."""
    defined = np.isfinite(values)
    number = defined.sum(axis=1)
    of_case = np.where(number > 0, np.where(defined, values, 0).sum(axis=1) / np.maximum(number, 1), np.nan)
    mean, low, high, _ = mean_interval(values, units)
    return estimate(of_case, units).model_copy(update={"mean": mean, "low": low, "high": high})


def mean_interval(values: Values, units: Units) -> tuple[float | None, float | None, float | None, int]:
    """Mean over cases (of each class, then over classes), its interval, and the units that it rests on.

    Student's t, with the deviations of a unit's cases added up before they are squared: where each unit is one case and there
    is one class, the usual interval of a mean.
    """
    table = values[:, None] if values.ndim == 1 else values
    table = table[:, np.isfinite(table).any(axis=0)]
    defined = np.isfinite(table)
    size = len(np.unique(units[defined.any(axis=1)]))
    if not size:
        return None, None, None, 0
    means = np.where(defined, table, 0).sum(axis=0) / defined.sum(axis=0)
    mean = float(means.mean())
    if size < FEWEST:
        return mean, None, None, size
    deviations = (np.where(defined, table - means, 0) / defined.sum(axis=0)).mean(axis=1)
    variance = size / (size - 1) * np.square(np.bincount(units, deviations)).sum()
    half = float(stdtrit(size - 1, (1 + CONFIDENCE) / 2) * np.sqrt(variance))
    return mean, mean - half, mean + half, size


def by_unit(values: Values, units: Units) -> Values:
    """The mean of each unit that has a value, in the order of their numbers."""
    defined = np.isfinite(values)
    number = np.bincount(units[defined]).astype(np.float64)
    sums = np.bincount(units[defined], values[defined])
    means: Values = sums[number > 0] / number[number > 0]
    return means


def median_interval(values: Values) -> tuple[float, float] | None:
    """Two of the ``values`` between which the median lies, by the binomial distribution of how many are below it.

    None where even the smallest and the largest have it between them too rarely: below six values.
    """
    number = len(values)
    rank = int(np.searchsorted(bdtr(np.arange(number), number, 0.5), (1 - CONFIDENCE) / 2, side="right"))
    if rank < 1:
        return None
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[number - rank])


def paired_difference(before: Values, after: Values, units: Units) -> Difference | None:
    """What ``after`` gains over ``before`` (N,), over cases that have both; none where none has.

    Each unit counts once, by the mean of its cases.
    """
    differences = by_unit(after - before, units)
    mean, low, high, size = mean_interval(differences, np.arange(len(differences)))
    if mean is None:
        return None
    cases = int(np.isfinite(after - before).sum())
    return Difference(mean=mean, low=low, high=high, wilcoxon_p=wilcoxon(differences), cases=cases, units=size)


def wilcoxon(differences: Values) -> float | None:
    """Two-sided p of the signed-rank test; none below `FEWEST_DIFFERENCES` that are not 0.

    Exact up to `MOST_EXACT` differences without ties, else by the normal distribution, with its variance corrected for ties.
    """
    moved = differences[differences != 0]
    number = len(moved)
    if number < FEWEST_DIFFERENCES:
        return None
    ranks = ranks_of(np.abs(moved))
    positive = float(ranks[moved > 0].sum())
    _, sizes = np.unique(np.abs(moved), return_counts=True)
    if number <= MOST_EXACT and sizes.max() == 1:
        return min(1.0, 2 * _share_up_to(min(positive, number * (number + 1) / 2 - positive), number))
    variance = number * (number + 1) * (2 * number + 1) / 24 - float((sizes**3 - sizes).sum()) / 48
    return float(2 * ndtr(-abs(positive - number * (number + 1) / 4) / np.sqrt(variance)))


def ranks_of(values: Values, *, lowest: bool = False) -> Values:
    """Ranks from 1 on; equals have their mean rank, or the ``lowest``."""
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes).astype(np.float64)
    ranks: Values = (last - sizes + 1 if lowest else last - (sizes - 1) / 2)[place.reshape(-1)]
    return ranks


def _share_up_to(sum_of_ranks: float, number: int) -> float:
    """Share of all signs of the ranks 1 to ``number`` whose positive ones come to at most a sum."""
    ways = np.ones(1)
    for rank in range(1, number + 1):
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    return float(ways[: int(sum_of_ranks) + 1].sum() / 2.0**number)

"""Finds images with intensities unlike the others: another scale, not Hounsfield units, exchanged channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

from autoseg.data.checks.plausibility import all_but
from autoseg.data.checks.voxels import CaseMeasures
from autoseg.issues import Issue

MIN_OTHERS = 3
MAX_SCALE_RATIO = 20.0
"""To the nearest other case. Scanners of one collection differ by thousands, but several cases share each scale."""
HOUNSFIELD_AIR = -200.0
"""CT images with air around or inside go below this."""
MAX_PERMUTED = 4
"""Channels of which all orders are tried; of more, only those with two exchanged."""
MIN_GAIN = 5.0
"""By how much another order of channels must reduce the distance ..."""
MAX_SHARE = 0.72
"""... and to what share of it, to be reported. Real pairs of exchanged MR channels gain 7.8 and
more and keep at most 0.70; cases in order gain at most 0.8, beside an exchanged one 3.7 (docs/decisions/0071)."""
FLOOR = 0.03
"""Signatures differ by this much between any two cases."""
CAP = 8.0
"""One outlying number must not decide alone."""


def unusual_intensities(cases: Sequence[CaseMeasures], channels: Sequence[str]) -> list[Issue]:
    """Warnings on images whose scale or order of channels is unlike that of all other cases."""
    usable = [case for case in cases if len(case.channel_digests) == len(channels)]
    return [
        issue
        for index, name in enumerate(channels)
        for issue in (
            *_odd_scales(usable, index, name),
            *(_not_hounsfield(usable, index) if name.upper() == "CT" else ()),
        )
    ] + _swapped_channels(usable, channels)


def _odd_scales(cases: Sequence[CaseMeasures], channel: int, name: str) -> list[Issue]:
    """Images whose spread of intensities is far from that of every other one."""
    widths = [float(case.quantiles[channel, -1] - case.quantiles[channel, 0]) for case in cases]
    spread = [(case, math.log(width)) for case, width in zip(cases, widths, strict=True) if width > 0]
    issues = []
    for index, (case, own) in enumerate(spread):
        others = np.array([other for _, other in all_but(spread, index)])
        if len(others) < MIN_OTHERS or np.abs(others - own).min() <= math.log(MAX_SCALE_RATIO):
            continue
        issues.append(
            _warning(
                case,
                f"channel {channel} ({name}) spans {math.exp(own):.3g} between its 1st and 99th percentile, the {len(others)} others "
                f"{math.exp(others.min()):.3g} to {math.exp(others.max()):.3g}",
                "make sure that its intensities have the unit of the others",
                code="image.scale",
            )
        )
    return issues


def _not_hounsfield(cases: Sequence[CaseMeasures], channel: int) -> list[Issue]:
    """CT images without values below zero among others that have air."""
    with_air = [case for case in cases if case.minima[channel] < HOUNSFIELD_AIR]
    if len(with_air) <= len(cases) / 2:
        return []
    return [
        _warning(
            case,
            f"no value of this CT is below {case.minima[channel]:g}, but {len(with_air)} of {len(cases)} images have air "
            f"below {HOUNSFIELD_AIR:g}: not Hounsfield units",
            "apply the rescale slope and intercept (often -1024) of its source",
            code="image.not_hounsfield",
        )
        for case in cases
        if case.minima[channel] >= 0
    ]


def _swapped_channels(cases: Sequence[CaseMeasures], channels: Sequence[str]) -> list[Issue]:
    """Cases that are much more like the others when their channels are put into another order."""
    if len(channels) < 2 or len(cases) < 2:
        return []
    signatures = [_signature(case) for case in cases]
    issues = []
    for index, case in enumerate(cases):
        order = _better_order(signatures[index], all_but(signatures, index))
        if order is None:
            continue
        if len(cases) == 2:
            found = f"the channels of cases {cases[0].case_id} and {cases[1].case_id} seem to be in different orders"
        else:
            found = f"the channels seem to be in another order than in the {len(cases) - 1} others: " + ", ".join(
                f"{channels[found]} looks like {channels[place]}" for place, found in enumerate(order) if place != found
            )
        issues.append(_warning(case, found, "reorder the channels, or remove the case", code="image.channel_order"))
    return issues


def _better_order(own: _Signature, others: Sequence[_Signature]) -> tuple[int, ...] | None:
    """The order of the own channels that resembles the others much better than the present one, if any."""
    each, pairs = np.stack([o.each for o in others]), np.stack([o.pairs for o in others])
    usual = _Signature(np.median(each, axis=0), np.median(pairs, axis=0))
    count = len(own.each)
    above = np.triu_indices(count, 1)
    # Of few cases each spread is uncertain; the mean over channels is less so.
    width = np.maximum(1.4826 * np.median(np.abs(each - usual.each), axis=0).mean(axis=0), FLOOR)
    pair_width = max(1.4826 * float(np.median(np.abs(pairs - usual.pairs), axis=0)[above].mean()), FLOOR)

    def distance(order: tuple[int, ...]) -> float:
        single = np.abs(own.each[list(order)] - usual.each) / width
        joint = np.abs(own.pairs[np.ix_(order, order)] - usual.pairs)[above] / pair_width
        return float((np.minimum(single, CAP) ** 2).mean() + (np.minimum(joint, CAP) ** 2).mean())

    straight = tuple(range(count))
    best = min(_orders(count), key=distance)
    now, then = distance(straight), distance(best)
    return best if best != straight and then < MAX_SHARE * now and now - then > MIN_GAIN else None


@dataclass(frozen=True, slots=True)
class _Signature:
    """What distinguishes the channels of a case, whatever their scale: one row per channel, and their correlations."""

    each: NDArray[np.float64]
    pairs: NDArray[np.float64]


def _signature(case: CaseMeasures) -> _Signature:
    low, high = case.quantiles[:, 1], case.quantiles[:, 5]
    width = np.maximum(high - low, 1e-9)[:, None]
    shape = (case.quantiles[:, 2:5] - low[:, None]) / width
    small = case.thumbnail.image.astype(np.float32)
    flat = small.reshape(len(small), -1)
    labels = case.thumbnail.labels
    labelled = flat if labels is None or not labels.any() else flat[:, labels.ravel() > 0]
    inside = np.quantile(labelled, (0.05, 0.25, 0.5, 0.75, 0.95), axis=1).T
    brightness = np.log(np.maximum(case.quantiles[:, 3], 1e-9))
    each = np.column_stack(
        [shape, case.zero_share, inside, flat.mean(axis=1), np.clip(brightness - brightness.mean(), -2, 2)]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = np.nan_to_num(np.corrcoef(flat)).reshape(len(small), len(small))
    return _Signature(each.astype(np.float64), pairs)


def _orders(count: int) -> list[tuple[int, ...]]:
    if count <= MAX_PERMUTED:
        return list(permutations(range(count)))
    orders = [tuple(range(count))]
    for a, b in combinations(range(count), 2):
        order = list(range(count))
        order[a], order[b] = order[b], order[a]
        orders.append(tuple(order))
    return orders


def _warning(case: CaseMeasures, message: str, fix: str, *, code: str) -> Issue:
    return Issue(code=code, severity="warning", case=case.case_id, where=case.image_path, message=message, fix=fix)

"""What images look like, and which of them do not look like those of training: tilt, field of view, voxels, intensities, order of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.orientation import knows_directions
from planners import LOOKED_AT, CaseLook, ChannelNormalization, Document, Fingerprint, IntensityStatistics, Plan

Curve = tuple[float, ...]
"""Quantiles of a channel as the network sees them."""
SAMPLE = 2**18
"""Voxels of a channel that are looked at; a quantile is then off by a thousandth of the voxels."""
MIDDLE = slice(1, -1)
"""Of `LOOKED_AT`: the extremes are those of single voxels."""
LEAST_CASES = 3
"""Of a training set that tells what is usual."""
FLAT_STD = 1e-8
UNIT_OF_RESCALED = 0.25
"""Standard deviation of an image of values from 0 to 1, about."""
LEAST_REACH = 0.15
"""Standard deviations by which quantiles may differ even where training cases hardly did."""
WIDER = 2.0
"""Voxels or a field of view that are so many times as large as the largest in training, or as much smaller than the smallest. This and the
next two hold for many cases, and are larger for a few (`few`): those are not all that is usual."""
TILTED_DEG = 20.0
"""Beyond the most tilted grid in training: whole axes are turned, so the body lies at that angle in the network's windows."""
STRANGE = 2.25
"""Mean distance of quantiles from the median training case's, in units of the most distant training case's."""
SWAPPED = 0.7
"""By which channels in another order must be nearer than in their own, in the same units, all channels together."""


def few(limit: float, number: int) -> float:
    """A limit for a training set of so many cases: twice as large for three of them."""
    return limit * (1 + LEAST_CASES / number)


class UsualChannel(Document):
    """Quantiles of one channel in training, as the network sees them."""

    centre: Curve
    """Medians."""
    reach: Curve
    """Largest distances from these."""


class Usual(Document):
    """What training images looked like: all that a later one is compared with."""

    num_cases: int
    spacing_mm: tuple[tuple[float, float], ...]
    """Smallest and largest along (z, y, x), canonical axes."""
    extent_mm: tuple[tuple[float, float], ...]
    """The same of the non-zero box."""
    is_flat: tuple[bool, ...]
    """Axes along which all images have a single voxel."""
    tilt_deg: float
    has_directions: bool
    channels: tuple[UsualChannel, ...]

    @classmethod
    def of(cls, fingerprint: Fingerprint, plan: Plan) -> Self | None:
        """Of a training set; None where it has too few cases, or they were not looked at."""
        looks, cases = fingerprint.looks, fingerprint.cases
        if len(looks) < LEAST_CASES or len(looks) != len(cases):
            return None
        spacing = np.array([case.spacing_mm for case in cases])
        extent = spacing * np.array([case.shape for case in cases])
        schemes = plan.configurations[0].normalization
        curves = [
            np.array([_curve(look, i, scheme, told) for look in looks])
            for i, (scheme, told) in enumerate(zip(schemes, plan.intensities, strict=True))
        ]
        return cls(
            num_cases=len(cases),
            spacing_mm=_ranges(spacing),
            extent_mm=_ranges(extent),
            is_flat=tuple(bool((np.array([case.shape[axis] for case in cases]) == 1).all()) for axis in range(3)),
            tilt_deg=max(look.tilt_deg for look in looks),
            has_directions=all(look.has_directions for look in looks),
            channels=tuple(_usual(each) for each in curves),
        )


def _ranges(values: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    return tuple((float(low), float(high)) for low, high in zip(values.min(axis=0), values.max(axis=0), strict=True))


def _usual(curves: NDArray[np.float64]) -> UsualChannel:
    centre = np.median(curves, axis=0)
    return UsualChannel(centre=tuple(centre.tolist()), reach=tuple(np.abs(curves - centre).max(axis=0).tolist()))


def look_at(image: Image) -> CaseLook:
    """What an image looks like; of large ones a part of the voxels, evenly spaced, is looked at."""
    inside = [_above_smallest(channel) for channel in image.array]
    return CaseLook(
        tilt_deg=tilt_deg(image.geometry),
        has_directions=knows_directions(image.geometry),
        means=tuple(float(each.mean(dtype=np.float64)) for each in inside),
        stds=tuple(float(each.std(dtype=np.float64)) for each in inside),
        quantiles=tuple(tuple(np.quantile(each, LOOKED_AT).astype(float).tolist()) for each in inside),
    )


def _above_smallest(channel: NDArray[np.float32]) -> NDArray[np.float32]:
    picked = channel.reshape(-1)[:: max(1, channel.size // SAMPLE) | 1]  # an odd step meets every column
    picked = picked[np.isfinite(picked)]
    if not picked.size:
        return np.zeros(1, np.float32)
    above = picked[picked > picked.min()]
    return above if above.size else picked


def tilt_deg(geometry: Geometry) -> float:
    """Largest angle between an axis of the grid and the nearest axis of the body; 0 where directions are not known."""
    if not knows_directions(geometry):
        return 0.0
    nearest = np.abs(np.array(geometry.direction)).max(axis=0)
    return float(np.degrees(np.arccos(np.clip(nearest, 0, 1))).max())


def unlike(
    usual: Usual, look: CaseLook, plan: Plan, *, place: tuple[Sequence[float], Sequence[float]] | None
) -> list[str]:
    """In which ways an image differs from all of training, in words; none: it is like them.

    ``place``: its spacing and the extent of its non-zero box in mm along canonical axes (z, y, x); none: these are not compared.
    """
    words = [] if place is None else _far(usual, *place)
    if place is not None and usual.has_directions and not look.has_directions:  # a slice on its own has none
        words.append("its file stores no orientation, those of training did")
    elif look.tilt_deg > usual.tilt_deg + TILTED_DEG:
        words.append(
            f"its grid is tilted by {look.tilt_deg:.0f}° to the body, in training by {usual.tilt_deg:.0f}° at most"
        )
    return words + _strange(usual, look, plan)


def _far(usual: Usual, spacing_mm: Sequence[float], extent_mm: Sequence[float]) -> list[str]:
    words, wider = [], few(WIDER, usual.num_cases)
    for what, own, ranges in (("voxels", spacing_mm, usual.spacing_mm), ("field of view", extent_mm, usual.extent_mm)):
        for axis, found, (low, high), is_flat in zip("zyx", own, ranges, usual.is_flat, strict=True):
            if not is_flat and (found > high * wider or found < low / wider):
                words.append(f"{what} of {found:.3g} mm along {axis}, in training {low:.3g} to {high:.3g}")
    return words


def _strange(usual: Usual, look: CaseLook, plan: Plan) -> list[str]:
    """What is said of intensities: channels in another order, or else those that are unlike the same one in training."""
    distances = channel_distances(usual, look, plan)
    own = np.diag(distances)
    rows, order = linear_sum_assignment(distances)
    if own.sum() - distances[rows, order].sum() > few(SWAPPED, usual.num_cases):
        found = ", ".join(plan.channels[i] for i in order)
        return [f"channels look like {found}, expected {', '.join(plan.channels)}"]
    return [
        f"intensities of channel {name} are unlike those of training ({distance:.1f} times as far from usual as the farthest)"
        for name, distance in zip(plan.channels, own, strict=True)
        if distance > few(STRANGE, usual.num_cases)
    ]


def channel_distances(usual: Usual, look: CaseLook, plan: Plan) -> NDArray[np.float64]:
    """(C, C): how far each channel of an image is from each one of training; 1 is as far as the farthest training case, or nearer."""
    schemes = list(zip(plan.configurations[0].normalization, plan.intensities, usual.channels, strict=True))
    result = np.zeros((len(schemes), len(schemes)))
    for i in range(len(schemes)):
        for k, (scheme, statistics, channel) in enumerate(schemes):
            away = np.abs(np.array(_curve(look, i, scheme, statistics)) - np.array(channel.centre))
            result[i, k] = float((away / np.maximum(channel.reach, LEAST_REACH)).mean())
    return result


def _curve(look: CaseLook, i: int, normalization: ChannelNormalization, statistics: IntensityStatistics) -> Curve:
    """Quantiles of an image's channel as `normalise` would bring them to the network, in standard deviations."""
    values, scheme = np.array(look.quantiles[i]), normalization.scheme
    if scheme == "ct":
        clipped = np.clip(values, statistics.percentile_00_5, statistics.percentile_99_5)
        values = (clipped - statistics.mean) / max(statistics.std, FLAT_STD)
    elif scheme in ("zscore", "ct_or_zscore"):
        values = (values - look.means[i]) / max(look.stds[i], FLAT_STD)
    elif scheme == "rescale_to_0_1":
        values = (values - values[0]) / max(values[-1] - values[0], FLAT_STD) / UNIT_OF_RESCALED
    elif scheme == "rgb_to_0_1":
        values = values / 255 / UNIT_OF_RESCALED
    else:
        values = values / max(statistics.std, FLAT_STD)
    return tuple(float(value) if math.isfinite(value) else 0.0 for value in values[MIDDLE])

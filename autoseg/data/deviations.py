"""How far one value is from those of the others, for collections of four cases and of hundreds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
MAX_DEVIATIONS = 6.0
"""Robust standard deviations (1.4826 x median absolute deviation) of the others that are still usual."""
MANY = 10
"""From so many others on their spread is known; of fewer only their range is."""


def oddness(own: float, others: Sequence[float] | NDArray[Any], *, floor: float) -> float:
    """Distance of ``own`` from ``others`` in units of what is still usual: signed, beyond 1 or -1 it is unusual.

    Of many others the distance is that from their median, and `MAX_DEVIATIONS` robust standard deviations are usual. Of
    fewer it is that beyond the nearest of them, and a part of their range is usual that falls with their number: of
    normal values the next one is called unusual about once in a thousand times, of four as of nine. ``floor`` is the
    distance that is always usual. Zero where there are no others.
    """
    values = np.asarray(others, np.float64)
    if values.size == 0:
        return 0.0
    if values.size >= MANY:
        middle = float(np.median(values))
        usual = MAX_DEVIATIONS * 1.4826 * float(np.median(np.abs(values - middle)))
        return (own - middle) / max(usual, floor)
    low, high = float(values.min()), float(values.max())
    beyond = own - min(max(own, low), high)
    return beyond / max((0.4 + 6 / values.size) * (high - low), floor)


def all_but(values: Sequence[T], index: int) -> list[T]:
    """``values`` without that at ``index``."""
    return [value for other, value in enumerate(values) if other != index]

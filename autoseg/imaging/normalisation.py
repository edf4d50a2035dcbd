"""Scaling intensities, channel by channel (method section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.issues import AutosegError, Issue
from planners import ChannelNormalization, IntensityStatistics

Floats = NDArray[np.float32]
SMALLEST_DIVISOR = 1e-8
"""Constant images are divided by this instead of zero."""


def normalise(
    image: NDArray[Any],
    normalization: Sequence[ChannelNormalization],
    intensities: Sequence[IntensityStatistics],
    mask: NDArray[np.bool_],
) -> Floats:
    """``image`` (C, a0, a1, a2) with every channel scaled as ``normalization`` says; float32, a new array.

    ``intensities`` are those of the dataset's foreground, one entry a channel. ``mask`` (a0, a1, a2) marks the voxels
    that masked schemes take their statistics from and change; an empty mask leaves the channel as it is.
    Raises `AutosegError` when a channel said to be RGB has values outside 0 to 255.
    """
    result = np.array(image, np.float32, order="C")
    for channel, scheme, statistics in zip(result, normalization, intensities, strict=True):
        _normalise_channel(channel, scheme, statistics, mask)
    return result


def _normalise_channel(
    channel: Floats, normalization: ChannelNormalization, statistics: IntensityStatistics, mask: NDArray[np.bool_]
) -> None:
    """In place."""
    scheme = normalization.scheme
    if scheme == "ct":
        np.clip(channel, statistics.percentile_00_5, statistics.percentile_99_5, out=channel)
        channel -= np.float32(statistics.mean)
        channel /= np.float32(max(statistics.std, SMALLEST_DIVISOR))
    elif scheme == "zscore" and normalization.use_mask:
        inside = channel[mask]
        if inside.size:
            _standardise(inside)
            channel[mask] = inside
    elif scheme == "zscore":
        _standardise(channel)
    elif scheme == "rescale_to_0_1":
        channel -= channel.min()
        channel /= max(float(channel.max()), SMALLEST_DIVISOR)
    elif scheme == "rgb_to_0_1":
        _scale_rgb(channel)


def _standardise(values: Floats) -> None:
    """Mean 0 and standard deviation 1, in place; sums run in float64, which long float32 sums need."""
    values -= np.float32(values.mean(dtype=np.float64))
    rows = values.reshape(len(values), -1)
    squares = sum(float(np.dot(row, row)) for row in rows) if rows.shape[1] > 1 else float(np.dot(values, values))
    values /= np.float32(max((squares / values.size) ** 0.5, SMALLEST_DIVISOR))


def _scale_rgb(channel: Floats) -> None:
    low, high = float(channel.min()), float(channel.max())
    if low < 0 or high > 255:
        raise AutosegError(
            Issue(
                code="image.colour_range",
                where="",
                message=f"a colour channel has values from {low:g} to {high:g}, but colours run from 0 to 255",
                fix="convert the image to 8 bits, or name its channels by what they show instead of R, G, B",
            )
        )
    channel /= np.float32(255)

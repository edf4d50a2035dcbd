"""Several models' probabilities as one label map (method sections 8.2 and 9.4)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.resampling import write_overlaps
from autoseg.issues import AutosegError
from planners import Labels

THRESHOLD = 0.5
"""A voxel belongs to a region whose probability is above this (method section 8.2)."""


def mean_probabilities(members: Iterable[NDArray[np.floating]]) -> NDArray[np.float32]:
    """The plain mean of the members' probabilities, each (K, Z, Y, X) in [0, 1], as float32 of that shape.

    Members may be generated one by one; two arrays are in memory at a time. Raises `AutosegError` where shapes differ, and
    `ValueError` without members.
    """
    total: NDArray[np.float32] | None = None
    number = 0
    for member in members:
        if total is None:
            total = np.zeros(member.shape, dtype=np.float32)
        elif member.shape != total.shape:
            raise AutosegError(
                f"members disagree in shape, {total.shape} and {member.shape} (classes, z, y, x); "
                "predict the same image with all members, from the same plan"
            )
        total += member
        number += 1
    if total is None:
        raise ValueError("an ensemble needs at least one member")
    total /= number
    return total


def labels_from_probabilities(probabilities: NDArray[np.floating], labels: Labels) -> NDArray[np.uint8 | np.uint16]:
    """Internal label values, (Z, Y, X), from probabilities (K, Z, Y, X).

    Classes: the channel with the largest probability, the first of equals; channel 0 is the background. Regions: each region
    whose probability is above 0.5 writes its value of ``region_order``, later ones over earlier ones; combinations that this would
    lose have values of their own (`planners.Labels.overlaps`). ``uint8`` if there
    are fewer than 255 foreground values, else ``uint16``. Raises `AutosegError` where K does not fit the labels.
    """
    if probabilities.ndim != 4 or probabilities.shape[0] != labels.num_outputs:
        raise AutosegError(
            f"probabilities have shape {probabilities.shape}, but these labels need ({labels.num_outputs}, z, y, x); "
            "use the probabilities that a model of this dataset made"
        )
    result = np.zeros(probabilities.shape[1:], dtype=np.uint8 if max(labels.values) < 255 else np.uint16)
    if labels.region_order is not None:
        for probability, value in zip(probabilities, labels.region_order, strict=True):
            result[probability > THRESHOLD] = value
        if labels.overlaps:
            write_overlaps(result, [probability > THRESHOLD for probability in probabilities], labels.overlaps)
        return result
    for z in range(probabilities.shape[1]):  # slice by slice: argmax makes 64-bit numbers
        result[z] = probabilities[:, z].argmax(axis=0)
    return result

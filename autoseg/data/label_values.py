"""Label values: those of the user's files, and the consecutive ones used inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.issues import AutosegError

TABLE_SIZE = 2**16
"""Largest span of file values that is mapped through a table; wider ones are searched."""


def to_internal(array: NDArray[np.integer[Any]], file_values: Sequence[int]) -> NDArray[np.int16]:
    """Internal values (int16, same shape) of an array with file values; ``file_values[i]`` stands for i.

    Raises `AutosegError` that lists the values which are not among ``file_values``, with their number of voxels.
    """
    if array.size == 0:
        return array.astype(np.int16)
    low, high = int(array.min()), int(array.max())
    if high - low < TABLE_SIZE:
        table = np.full(high - low + 1, -1, np.int16)
        for internal, value in enumerate(file_values):
            if low <= value <= high:
                table[value - low] = internal
        result = table[array if low == 0 else array.astype(np.int64) - low]
    else:
        order = np.argsort(file_values)
        ascending = np.asarray(file_values)[order]
        place = np.searchsorted(ascending, array).clip(max=len(ascending) - 1)
        result = np.where(ascending[place] == array, order[place], -1).astype(np.int16)
    if int(result.min()) < 0:
        _refuse_unknown(array[result < 0], file_values)
    return result


def _refuse_unknown(unknown: NDArray[np.integer[Any]], file_values: Sequence[int]) -> None:
    values, counts = np.unique(unknown, return_counts=True)
    shown = ", ".join(f"{value} ({count} voxels)" for value, count in zip(values[:10], counts[:10], strict=True))
    more = f" and {len(values) - 10} more" if len(values) > 10 else ""
    raise AutosegError(
        f"label values {shown}{more} are not declared; declared are {', '.join(map(str, file_values))}: "
        "correct the label map, or declare the values in the dataset's labels"
    )


def to_file_values(array: NDArray[np.integer[Any]], file_values: Sequence[int]) -> NDArray[np.integer[Any]]:
    """File values of an array of internal values 0 ... ``len(file_values) - 1``, smallest integer type that fits."""
    low, high = min(file_values), max(file_values)
    for kind in (np.uint8, np.uint16, np.int16, np.int32, np.int64):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            table: NDArray[np.integer[Any]] = np.asarray(file_values, kind)
            values: NDArray[np.integer[Any]] = table[array]
            return values
    raise AutosegError(f"label values from {low} to {high} fit into no integer type; use smaller values")

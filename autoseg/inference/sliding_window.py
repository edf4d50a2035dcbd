"""Windows of a volume of any size for a network that sees one patch at a time, and their weights (method section 8.1)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

Triple = tuple[int, int, int]
STEP = 0.5
"""Distance of windows, as a share of the patch."""
SIGMA = 0.125
"""Of the Gaussian weights of a window, as a share of the patch."""


def window_starts(size: int, patch: int, *, step: float = STEP) -> list[int]:
    """First voxels of the windows along an axis of ``size`` >= ``patch`` voxels.

    Evenly spaced, at most ``patch * step`` apart; the last window ends at the border.
    """
    count = math.ceil((size - patch) / (patch * step)) + 1
    if count == 1:
        return [0]
    return [round(i * (size - patch) / (count - 1)) for i in range(count)]


def importance_map(patch: Sequence[int]) -> Tensor:
    """float32 (patch...): weight of a window's voxels, a Gaussian with sigma an eighth of the patch, maximum 1.

    Corners where the Gaussian is truncated get the smallest positive weight, so that every voxel has one.
    """
    axes = []
    for size in patch:
        impulse = np.zeros(size)
        impulse[size // 2] = 1
        axes.append(gaussian_filter1d(impulse, SIGMA * size, mode="constant"))
    weights = reduce(np.multiply.outer, axes)
    weights = weights / weights.max()
    weights[weights == 0] = weights[weights > 0].min()
    return torch.from_numpy(weights.astype(np.float32))


def half_importance_map(patch: Sequence[int]) -> Tensor:
    """float16 (patch...): the same with maximum 10, rounded as in nnU-Net (method section 8.1)."""
    weights = (10 * importance_map(patch)).half()
    weights[weights == 0] = weights[weights > 0].min()
    return weights


def count_windows(shape: Sequence[int], patch: Sequence[int]) -> int:
    """Number of windows of a volume of ``shape`` (a0, a1, a2)."""
    return WindowGrid.of(shape, patch).number


@dataclass(frozen=True)
class WindowGrid:
    """The windows of a volume, in the order of prediction: they move along the last axis first.

    Where the volume is smaller than a window, zeros are added on both sides; starts count from there.
    """

    shape: Triple
    """Of the volume (a0, a1, a2)."""
    patch: Triple
    """Of a window; a 2D one is a single slice of the first axis."""
    is_flat: bool
    step: float = STEP
    """Largest distance of windows, as a share of the patch."""

    @classmethod
    def of(cls, shape: Sequence[int], patch: Sequence[int], *, step: float = STEP) -> WindowGrid:
        """The windows of ``patch`` (two or three axes) in a volume of ``shape``."""
        a0, a1, a2 = shape
        p0, p1, p2 = (1,) * (3 - len(patch)) + tuple(patch)
        return cls((a0, a1, a2), (p0, p1, p2), len(patch) == 2, step)

    @cached_property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Zeros before and after, for each axis."""
        missing = [max(0, p - n) for n, p in zip(self.shape, self.patch, strict=True)]
        return tuple((each // 2, each - each // 2) for each in missing)

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """First voxels of windows, for each axis."""
        moved = [
            tuple(window_starts(max(n, p), p, step=self.step)) for n, p in zip(self.shape, self.patch, strict=True)
        ]
        return (tuple(range(self.shape[0])), *moved[1:]) if self.is_flat else tuple(moved)

    @cached_property
    def number(self) -> int:
        """Of all windows."""
        return math.prod(map(len, self.starts))

    def place(self, index: int) -> tuple[slice, slice, slice]:
        """Where a window is in the padded volume."""
        a, b, c = (
            slice(starts[i], starts[i] + p)
            for starts, i, p in zip(self.starts, self.steps(index), self.patch, strict=True)
        )
        return a, b, c

    def steps(self, index: int) -> Triple:
        """How many windows come before a window along each axis."""
        _, n1, n2 = map(len, self.starts)
        return index // (n1 * n2), index // n2 % n1, index % n2

    def index(self, steps: Sequence[int]) -> int:
        """The inverse of `steps`."""
        _, n1, n2 = map(len, self.starts)
        return (steps[0] * n1 + steps[1]) * n2 + steps[2]

    def complete_rows(self, done: int) -> int:
        """Rows of the padded first axis to which no window after the first ``done`` adds anything."""
        first = self.starts[0]
        rows = done * len(first) // self.number
        return first[rows] if rows < len(first) else first[-1] + self.patch[0]

    def edges(self, axis: int) -> tuple[int, ...]:
        """Where windows begin and end along an axis, in order: between two edges all voxels are in the same windows."""
        return tuple(sorted({edge for start in self.starts[axis] for edge in (start, start + self.patch[axis])}))

    def around(self, axis: int, start: int, stop: int) -> tuple[int, int]:
        """First and last window along an axis that reaches voxels [start, stop)."""
        starts = self.starts[axis]
        return bisect_left(starts, start - self.patch[axis] + 1), bisect_left(starts, stop) - 1

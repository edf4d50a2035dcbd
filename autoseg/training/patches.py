"""Which case and which place a patch comes from, and how it is cut out (method sections 6.1 and 7.2).

All shapes are those of preprocessed volumes, (a0, a1, a2) in plan axes. A 2D patch is cut as (1, a1, a2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

OUTSIDE_LABEL = -1
"""Label of voxels outside the image, and outside its non-zero region."""
ANNOTATED = "annotated"
"""Key of locations of voxels that carry any annotation; only datasets with an ignore label have it."""


class PatchSource(Protocol):
    """A preprocessed case as the sampler sees it; arrays read a slice without the whole."""

    @property
    def image(self) -> Sliceable:
        """float32 (C, a0, a1, a2)."""

    @property
    def labels(self) -> Sliceable:
        """int16 (a0, a1, a2)."""

    @property
    def locations(self) -> Mapping[str, NDArray[np.int32]]:
        """Some voxels (N, 3) of each class."""


class CascadeSource(PatchSource, Protocol):
    """A case of which a first stage has made a label map."""

    @property
    def previous(self) -> Sliceable:
        """Integers (a0, a1, a2)."""


class Sliceable(Protocol):
    """An array on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, where: Any) -> NDArray[np.generic]: ...


@dataclass(frozen=True, slots=True)
class Draw:
    """Where one patch comes from."""

    case: int
    """Index into the fold's cases."""
    start: tuple[int, int, int]
    """First voxel of the crop; may lie outside the image."""


def is_forced(sample: int, *, batch_size: int, foreground_share: float) -> bool:
    """Whether this sample of a batch must hold foreground (method section 7.2)."""
    return sample >= round(batch_size * (1 - foreground_share))


def draw_patch(
    rng: np.random.Generator,
    shape: Sequence[int],
    *,
    patch: Sequence[int],
    crop: Sequence[int],
    locations: Mapping[str, NDArray[np.int32]],
    forced: bool,
) -> tuple[int, int, int]:
    """Start of a crop of size ``crop`` around a patch of size ``patch`` in a volume of size ``shape``.

    A forced crop is centred on a voxel of a class that is drawn uniformly among the classes present; with an ignore
    label the others are centred on any annotated voxel. Unlike the reference, the upper border is kept as well as the
    lower one, so that no crop misses the image.
    """
    lowest, highest = _start_range(shape, patch=patch, crop=crop)
    centre = _draw_centre(rng, locations, forced=forced)
    if centre is None:
        start = [int(rng.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True)]
    else:
        start = [
            min(max(low, int(c) - size // 2), max(low, high))
            for c, size, low, high in zip(centre, crop, lowest, highest, strict=True)
        ]
    return start[0], start[1], start[2]


def _draw_centre(
    rng: np.random.Generator, locations: Mapping[str, NDArray[np.int32]], *, forced: bool
) -> NDArray[np.int32] | None:
    present = [name for name, voxels in locations.items() if len(voxels)]
    classes = [name for name in present if name != ANNOTATED]
    if forced and classes:
        voxels = locations[classes[int(rng.integers(len(classes)))]]
    elif ANNOTATED in present:
        voxels = locations[ANNOTATED]
    else:
        return None
    centre: NDArray[np.int32] = voxels[int(rng.integers(len(voxels)))]
    return centre


def _start_range(shape: Sequence[int], *, patch: Sequence[int], crop: Sequence[int]) -> tuple[list[int], list[int]]:
    """Lowest and highest start per axis, both included (method section 7.2)."""
    lowest, highest = [], []
    for size, inner, outer in zip(shape, patch, crop, strict=True):
        need = max(outer - inner, outer - size)
        lowest.append(math.floor(-need / 2))
        highest.append(max(lowest[-1], size + need // 2 + need % 2 - outer))
    return lowest, highest


def cut(array: Sliceable, start: Sequence[int], size: Sequence[int], *, outside: float) -> NDArray[np.generic]:
    """The box of ``size`` at ``start`` of the last three axes; voxels outside the array get ``outside``."""
    shape = array.shape[-3:]
    channels = array.shape[:-3]
    inside: list[slice] = [
        slice(min(max(0, s), n), max(0, min(n, s + k))) for s, k, n in zip(start, size, shape, strict=True)
    ]
    piece: NDArray[np.generic] = np.asarray(array[(*(slice(None) for _ in channels), *inside)])
    if piece.shape[-3:] == tuple(size):
        return piece
    result = np.full((*channels, *size), outside, dtype=piece.dtype)
    target = tuple(slice(i.start - s, i.stop - s) for i, s in zip(inside, start, strict=True))
    if piece.size:
        result[(slice(None),) * len(channels) + target] = piece
    return result


def crop_size(patch: Sequence[int], *, rotation: float, dummy_2d: bool) -> tuple[int, ...]:
    """Size of the crop that is loaded so that a rotated patch finds its corners in it (method section 6.1).

    ``rotation`` is the largest rotation angle in radians. ``patch`` has 2 or 3 axes.
    """
    angle = min(math.pi / 2, abs(rotation))
    c, s = math.cos(angle), math.sin(angle)
    if len(patch) == 2:
        x, y = patch
        spread = [max(x, x * c + y * s), max(y, abs(y * c - x * s))]
    else:
        x, y, z = patch
        spread = [
            max(x, x * c + y * s, abs(x * c - z * s)),
            max(y, y * c + z * s, abs(y * c - x * s)),
            max(z, x * s + z * c, abs(z * c - y * s)),
        ]
    size = [int(length / 0.85) for length in spread]
    if dummy_2d:
        size[0] = patch[0]
    return tuple(size)

"""Makes cases small enough to be compared with each other: about 16 000 voxels of each, in canonical axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.orientation import canonical_geometry, canonical_orientation, to_canonical
from autoseg.storage.cache import KEPT

MAX_VOXELS = 2**14
"""Enough to see an organ's outline; a thousand cases of four channels take 130 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A case at low resolution, canonical axes."""

    image: Annotated[NDArray[np.float16], KEPT]
    """(C, z, y, x), means over blocks of voxels, in robust units: `standardise`."""
    labels: Annotated[NDArray[np.int16] | None, KEPT]
    """(z, y, x), internal values of the voxel in the middle of each block; None without a label map."""
    spacing_mm: tuple[float, float, float]
    """Of the blocks, (z, y, x)."""


def make_thumbnail(volume: Image, labels: NDArray[np.integer[Any]] | None, file_values: Sequence[int]) -> Thumbnail:
    """Thumbnail of an image (finite voxels) and of its label map ``labels`` (Z, Y, X), in the axes of the image.

    Values that are not among ``file_values`` count as background. Borders that fill no block are left out.
    """
    orientation = canonical_orientation(volume.geometry)
    geometry = canonical_geometry(volume.geometry, orientation)
    blocks = block_shape(geometry)
    small = np.stack(
        [standardise(_block_means(channel, blocks)) for channel in to_canonical(volume.array, orientation)]
    )
    middle = None
    if labels is not None:
        turned = to_canonical(labels, orientation)
        ends = [size // step * step for size, step in zip(turned.shape, blocks, strict=True)]
        picked = turned[tuple(slice(step // 2, end, step) for step, end in zip(blocks, ends, strict=True))]
        middle = np.zeros(picked.shape, np.int16)
        for internal, value in enumerate(file_values[1:], 1):
            middle[picked == value] = internal
    z, y, x = (mm * step for mm, step in zip(geometry.spacing_mm, blocks, strict=True))
    return Thumbnail(image=small.astype(np.float16), labels=middle, spacing_mm=(z, y, x))


def block_shape(geometry: Geometry) -> tuple[int, int, int]:
    """Voxels (z, y, x) that become one: the axis with the finest blocks is made coarser until few enough are left."""
    steps = [1, 1, 1]
    shape = geometry.shape
    while math.prod(size // step for size, step in zip(shape, steps, strict=True)) > MAX_VOXELS:
        finest = min(
            (axis for axis in range(3) if shape[axis] // steps[axis] > 1),
            key=lambda a: geometry.spacing_mm[a] * steps[a],
        )
        steps[finest] += 1
    return steps[0], steps[1], steps[2]


def standardise(channel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero at the median and one between the 5th and 95th percentile of the non-zero voxels, clipped to -3 ... 3."""
    inside = channel[channel != 0]
    low, middle, high = np.percentile(inside if inside.size else channel, (5, 50, 95))
    scaled: NDArray[np.float32] = np.clip((channel - middle) / max(float(high - low), 1e-9), -3, 3)
    return scaled


def _block_means(channel: NDArray[np.float32], blocks: Sequence[int]) -> NDArray[np.float32]:
    shape = [size // step for size, step in zip(channel.shape, blocks, strict=True)]
    inner = channel[tuple(slice(0, n * step) for n, step in zip(shape, blocks, strict=True))]
    (z, y, x), (a, b, c) = shape, blocks
    means: NDArray[np.float32] = inner.reshape(z, a, y, b, x, c).mean(axis=(1, 3, 5))
    return means

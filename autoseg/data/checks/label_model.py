"""A small model of where labels are, fitted to all other cases of a dataset at low resolution.

It is a linear regression from intensities, their smoothed forms and the position in the image to the mask of each class,
mixed with the mean mask of the others. It costs milliseconds a case, and leaving one case out is a subtraction. It agrees
with a correct label map much less than a network would, but equally well for all cases of a dataset, so that a label map
that was moved, flipped, cropped or taken from another image stands out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

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


def make_thumbnail(image: Image, labels: NDArray[np.integer[Any]] | None, file_values: Sequence[int]) -> Thumbnail:
    """Thumbnail of an image (finite voxels) and of its label map ``labels`` (Z, Y, X), in the axes of the image.

    Values that are not among ``file_values`` count as background. Borders that fill no block are left out.
    """
    orientation = canonical_orientation(image.geometry)
    geometry = canonical_geometry(image.geometry, orientation)
    blocks = block_shape(geometry)
    small = np.stack([standardise(_block_means(channel, blocks)) for channel in to_canonical(image.array, orientation)])
    middle = None
    if labels is not None:
        reoriented = to_canonical(labels, orientation)
        ends = [size // step * step for size, step in zip(reoriented.shape, blocks, strict=True)]
        picked = reoriented[tuple(slice(step // 2, end, step) for step, end in zip(blocks, ends, strict=True))]
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


Array = Annotated[NDArray[Any], KEPT]
"""Floats; moments are kept in double precision."""

MAX_CLASSES = 4
"""Classes that are modelled one by one; all of them together are modelled too."""
ATLAS_SHAPE = (16, 16, 16)
ATLAS_WEIGHT = 0.3
"""Share of the mean mask in the prediction. With 0 the left-right flip of a hippocampus is missed, with 0.5 a wrong mask
of the brain stands out less among cases with different fields of view."""
RIDGE = 1e-4
NUM_INTENSITIES = 8
"""Features of a channel."""
USUAL_SHARE = 0.8
"""Classes that fewer cases have are not compared."""
FARTHEST_SHIFT = 0.3
"""Of the image's size: shifts that are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one case contributes to the model: sums over its voxels, and its masks on the common grid."""

    moments: Array
    """(F, F)"""
    products: Array
    """(F, M) with the masks"""
    atlas: Array
    """(M, 16, 16, 16)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How well a label map agrees with what the other cases predict; correlations, at most 1."""

    own: float
    """Mean over the compared classes that the case has, and their union."""
    flips: tuple[float, float, float]
    """The same for the label map flipped along z, y, x."""
    shift: tuple[int, int, int]
    """Blocks (z, y, x) by which moving the union fits best."""
    shifted: float
    """Gain in agreement of the union by this shift."""
    by_intensity: float
    """``own`` for a prediction from intensities alone, which another field of view does not change."""
    shifted_by_intensity: float
    """``shifted`` for that prediction."""


def masks(labels: NDArray[np.int16], num_classes: int) -> Array:
    """Masks (M, z, y, x) of the first classes and, last, of all ``num_classes`` together."""
    shown = range(1, min(num_classes, MAX_CLASSES) + 1)
    union = (labels > 0) & (labels <= num_classes)
    return np.stack([*(labels == value for value in shown), union]).astype(np.float32)


def gather(thumbnail: Thumbnail, num_classes: int) -> Evidence:
    """Evidence of a labelled case. ``num_classes``: internal values 1 ... that are classes, the ignore value left out."""
    if thumbnail.labels is None:
        raise ValueError("only a labelled case gives evidence")
    columns = _features(thumbnail)
    each = masks(thumbnail.labels, num_classes)
    widths = [
        size / target / 2 for size, target in zip(each.shape[1:], ATLAS_SHAPE, strict=True)
    ]  # what the grid can show
    return Evidence(
        moments=columns.T @ columns / len(columns),
        products=columns.T @ each.reshape(len(each), -1).T / len(columns),
        atlas=np.stack([_resized(ndimage.gaussian_filter(mask, widths), ATLAS_SHAPE) for mask in each]),
    )


def add_up(parts: Sequence[Evidence]) -> Evidence:
    """The sum of all evidence; `without` subtracts that of one case."""
    return Evidence(
        moments=reduce(np.add, (part.moments for part in parts)),
        products=reduce(np.add, (part.products for part in parts)),
        atlas=reduce(np.add, (part.atlas for part in parts)),
    )


def without(total: Evidence, part: Evidence, num_others: int) -> Evidence:
    """Mean evidence of the ``num_others`` other cases."""
    return Evidence(
        moments=(total.moments - part.moments) / num_others,
        products=(total.products - part.products) / num_others,
        atlas=(total.atlas - part.atlas) / num_others,
    )


def predict(thumbnail: Thumbnail, others: Evidence) -> tuple[Array, Array]:
    """Where the others' evidence expects the masks, and where by intensities alone: scores (M, z, y, x), standardised."""
    columns, shape = _features(thumbnail), thumbnail.image.shape[1:]
    of_intensity = [*range(NUM_INTENSITIES * len(thumbnail.image)), -1]
    whole, by_intensity = (
        _scores(columns, others, list(used), shape) for used in (range(columns.shape[1]), of_intensity)
    )
    atlas = np.stack([_standardised(_resized(mean, shape)) for mean in others.atlas])
    return (1 - ATLAS_WEIGHT) * whole + ATLAS_WEIGHT * atlas, by_intensity


def _scores(columns: Array, others: Evidence, used: Sequence[int], shape: Sequence[int]) -> Array:
    """The regression on the ``used`` features, cut off below 0."""
    moments = others.moments[np.ix_(used, used)].astype(np.float64)
    diagonal = np.diag(np.diag(moments) + 1e-6)
    weights = np.linalg.solve(moments + RIDGE * diagonal, others.products[used].astype(np.float64))
    scores = (columns[:, used] @ weights.astype(np.float32)).T.reshape(-1, *shape)
    return np.stack([_standardised(np.maximum(score, 0)) for score in scores])


def usual_masks(parts: Sequence[Evidence]) -> NDArray[np.bool_]:
    """Which masks most cases have: only those are compared, and always that of all classes together."""
    present = np.stack([part.products[-1] > 0 for part in parts])  # the last feature is 1: the size of each mask
    usual: NDArray[np.bool_] = present.mean(axis=0) >= USUAL_SHARE
    usual[-1] = True
    return usual


def fit_label_map(
    thumbnail: Thumbnail, predictions: tuple[Array, Array], num_classes: int, compared: NDArray[np.bool_]
) -> Fit | None:
    """How the ``compared`` masks of the label map fit those of `predict`, as they are, flipped, and moved.

    None where the label map is empty.
    """
    if thumbnail.labels is None or not thumbnail.labels.any():
        return None
    each = masks(thumbnail.labels, num_classes)[compared]
    predicted, by_intensity = (of[compared] for of in predictions)
    z, y, x = (agreement(np.flip(each, axis=axis + 1), predicted) for axis in range(3))
    shift = _best_shift(each[-1], predicted[-1])
    return Fit(
        own=agreement(each, predicted),
        flips=(z, y, x),
        shift=shift,
        shifted=_gain(each[-1], predicted[-1], shift),
        by_intensity=agreement(each, by_intensity),
        shifted_by_intensity=_gain(each[-1], by_intensity[-1], shift),
    )


def agreement(each: Array, predicted: Array) -> float:
    """Mean correlation of masks (M, z, y, x) with predictions, over the masks that are not empty or full."""
    return float(mean_correlations(predicted[None], each[None])[0, 0])


def mean_correlations(predicted: Array, each: Array) -> Array:
    """`agreement` of every prediction (N, M, z, y, x) with every case's masks (N, M, z, y, x): (N, N), predictions first."""

    def rows(array: Array) -> Array:
        flat = array.reshape(*array.shape[:2], -1).transpose(1, 0, 2)
        flat = flat - flat.mean(axis=2, keepdims=True)
        length = np.linalg.norm(flat, axis=2, keepdims=True)
        unit: Array = np.divide(flat, length, out=np.zeros_like(flat), where=length > 0)
        return unit

    units = rows(each)
    present = (np.abs(units).sum(axis=2) > 0).sum(axis=0)
    total: Array = (rows(predicted) @ units.transpose(0, 2, 1)).sum(axis=0) / np.maximum(present, 1)
    return total


def _features(thumbnail: Thumbnail) -> Array:
    """(voxels, F): of each channel `NUM_INTENSITIES`, at three scales, edges and squares; polynomials of the place; 1."""
    columns: list[NDArray[np.floating]] = []
    shape = thumbnail.image.shape[1:]
    for channel in thumbnail.image.astype(np.float32):
        near, wide = ndimage.gaussian_filter(channel, 1), ndimage.gaussian_filter(channel, 3)
        edges = ndimage.gaussian_gradient_magnitude(channel, 1)
        columns += [channel, near, wide, edges, channel**2, near**2, wide**2, near * wide]
    place = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    for i, first in enumerate(place):
        columns += [first, first**4]
        for j, second in enumerate(place[i:], i):
            columns.append(first * second)
            columns += [first * second * third for third in place[j:]]
    columns.append(np.ones(shape))
    return np.stack([column.ravel() for column in columns], axis=1).astype(np.float32)


def _resized(array: Array, shape: Sequence[int]) -> Array:
    factors = [target / size for size, target in zip(array.shape, shape, strict=True)]
    resized: Array = ndimage.zoom(array, factors, order=1, mode="nearest", grid_mode=True)
    return resized


def _standardised(array: Array) -> Array:
    standard: Array = (array - array.mean()) / (array.std() + 1e-9)
    return standard


def _best_shift(mask: Array, score: Array) -> tuple[int, int, int]:
    """The shift in blocks by which the mask agrees best with the score."""
    padded = [fft.next_fast_len(2 * size) for size in mask.shape]
    spectrum = fft.rfftn(score - score.mean(), padded) * np.conj(fft.rfftn(mask, padded))
    overlap = fft.irfftn(spectrum, padded)
    reach = [max(1, int(FARTHEST_SHIFT * size)) if size > 1 else 0 for size in mask.shape]
    tried = overlap[np.ix_(*(np.arange(-r, r + 1) for r in reach))]
    best = np.unravel_index(int(tried.argmax()), tried.shape)
    z, y, x = (int(index) - r for index, r in zip(best, reach, strict=True))
    return z, y, x


def _gain(mask: Array, score: Array, shift: tuple[int, int, int]) -> float:
    """By how much moving the mask improves its agreement with the score."""
    moved = ndimage.shift(mask, shift, order=0, prefilter=False)  # voxels that leave the image are lost
    return agreement(moved[None], score[None]) - agreement(mask[None], score[None])

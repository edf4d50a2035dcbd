"""Surfaces of masks: their area, and how far two of them are apart.

As in DeepMind's ``surface-distance`` (Nikolov et al. 2021): a surface has one element for each eight neighbouring voxels
that are not all inside or all outside of the mask. It lies at their common corner and has the area of the marching cubes
there, or their length along an image with an axis of size 1. Beyond the image is outside. Distances run from the elements
of one mask to the nearest of the other.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

IntArray = NDArray[np.integer]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
Spacing = tuple[float, float, float]

SHARE = 0.95
ROUNDING = 1e-6
"""Relative slack of the tolerance and of `SHARE`, so that three steps of 0.1 mm lie within 0.3 mm."""


def surface_scores(
    masks: tuple[BoolArray, BoolArray], ignored: BoolArray | None, spacing_mm: Spacing, tolerance_mm: float
) -> tuple[float | None, float | None]:
    """95 % Hausdorff distance in mm and normalised surface Dice of two masks (Z, Y, X) that are not both empty.

    The surface Dice is the share of both areas within ``tolerance_mm``; the distance is the larger of the two within
    which 95 % of a mask's area lie. Where one of eight voxels is ``ignored`` there is no surface. One empty: the distance is
    none and the surface Dice 0; a mask all of whose surface is next to ignored voxels: both are none.
    """
    unscored = None if ignored is None else _corner_codes(ignored) > 0
    area_of_code = area_of_codes(spacing_mm)
    surfaces, areas = [], []
    for mask in masks:
        codes = _corner_codes(mask)
        surface = (codes > 0) & (codes < 255)
        if unscored is not None:
            surface &= ~unscored
        surfaces.append(surface)
        areas.append(area_of_code[codes[surface]])
    if any(mask.any() and not len(area) for mask, area in zip(masks, areas, strict=True)):
        return None, None
    if not all(map(len, areas)):
        return None, 0.0
    distances = [_distances(surfaces[i], surfaces[1 - i], spacing_mm) for i in (0, 1)]
    near = [area[way <= tolerance_mm * (1 + ROUNDING)].sum() for area, way in zip(areas, distances, strict=True)]
    return max(map(_distance_within, distances, areas)), float(sum(near) / sum(area.sum() for area in areas))


def _corner_codes(mask: BoolArray) -> IntArray:
    """For each corner of voxels, the eight around it as bits of a number: bit 4 z + 2 y + x.

    The image ends with a corner on either side, along an axis of size 1 with none: both its neighbours are the voxel itself.
    """
    codes: IntArray = np.pad(mask.astype(np.uint8), [(int(size > 1),) * 2 for size in mask.shape])
    for bits in (1, 2, 4):  # x, y, z: each in turn is the last axis
        first, second = (codes, codes) if codes.shape[-1] == 1 else (codes[..., :-1], codes[..., 1:])
        codes = np.moveaxis(first | second << bits, -1, 0)
    return codes


@cache
def _triangles() -> tuple[NDArray[np.intp], FloatArray]:
    """Triangles of the surface in each of the 256 cells of eight voxels: code of its cell, and half the product of two sides,
    in voxels.

    Of each cell and its negative, the one with fewer voxels decides, so that both have the same surface and voxels which
    touch only along an edge are apart.
    """
    from skimage.measure import marching_cubes  # takes a third of a second to load

    bits = np.arange(256)[:, None] >> np.arange(8) & 1
    bits ^= bits.sum(axis=1, keepdims=True) > 4
    cells = bits.reshape(512, 2, 2).astype(float)  # one above the other; between two of them the surface means nothing
    vertices, faces, _, _ = marching_cubes(cells, 0.5, method="lorensen")  # type: ignore[no-untyped-call]
    corners = vertices[faces].astype(np.float64)
    layer = np.floor(corners[:, :, 0].mean(axis=1)).astype(np.intp)
    sides = corners[:, 1:] - corners[:, :1]
    inside = layer % 2 == 0
    return layer[inside] // 2, np.cross(sides[:, 0], sides[:, 1])[inside] / 2


def area_of_codes(spacing_mm: Spacing) -> FloatArray:
    """Area in mm² of the surface in a cell, by its code."""
    z, y, x = spacing_mm
    codes, products = _triangles()
    areas = np.linalg.norm(products * (y * x, z * x, z * y), axis=1)
    return np.bincount(codes, weights=areas, minlength=256).astype(np.float64)


def _distances(start: BoolArray, target: BoolArray, spacing_mm: Spacing) -> FloatArray:
    """Distance in mm from each element of ``start``, in the order of the array, to the nearest of ``target``."""
    distances = np.zeros(np.count_nonzero(start))
    apart = ~target[start]
    if apart.any():
        distances[apart] = _nearest(np.argwhere(start & ~target), target, spacing_mm)
    return distances


def _nearest(points: NDArray[np.intp], target: BoolArray, spacing_mm: Spacing) -> FloatArray:
    """Distance in mm from each of ``points`` (N, 3), none of which is in ``target``, to the nearest element there.

    Most have one beside them, which is looked up; a tree over the elements answers for the others. Time goes with the surface, not
    with the volume.
    """
    padded = np.pad(target, 1)
    places = np.ravel_multi_index(tuple((points + 1).T), padded.shape)
    elements, strides = padded.ravel(), np.array(padded.strides)
    found, left = np.zeros(len(points)), np.arange(len(points))
    z, y, x = map(float, spacing_mm)
    for step, length in _steps((z, y, x)):
        hit = elements[places[left] + int(strides @ step)]
        found[left[hit]] = length
        left = left[~hit]
        if not len(left):
            return found
    # an unbalanced tree gives the same answers and is built in half the time
    from scipy.spatial import cKDTree  # here: it takes long to load, and prediction needs no surfaces

    tree = cKDTree(np.argwhere(target) * spacing_mm, balanced_tree=False)
    found[left] = tree.query(points[left] * spacing_mm)[0]
    return found


@cache
def _steps(spacing_mm: Spacing) -> tuple[tuple[NDArray[np.intp], float], ...]:
    """Steps to neighbours, and their lengths in mm, from the shortest on; those that no step of two voxels undercuts."""
    steps = [step for step in np.argwhere(np.ones((3, 3, 3), bool)) - 1 if step.any()]
    lengths = [float(np.linalg.norm(step * spacing_mm)) for step in steps]
    order = sorted(range(len(steps)), key=lengths.__getitem__)
    return tuple((steps[i], lengths[i]) for i in order if lengths[i] <= 2 * min(spacing_mm))


def _distance_within(distances: FloatArray, areas: FloatArray) -> float:
    """The smallest distance within which `SHARE` of the area lies."""
    order = np.argsort(distances)
    covered = np.cumsum(areas[order])
    return float(distances[order[np.searchsorted(covered, SHARE * (1 - ROUNDING) * covered[-1])]])


def border_distance(prediction: BoolArray, reference: BoolArray, spacing_mm: Spacing) -> float | None:
    """95 % Hausdorff distance in mm of two masks (Z, Y, X) as medpy and panoptica measure it; none where one is empty.

    The 95th percentile of the distances of both ways together (`border_distances`).
    """
    ways = border_distances(prediction, reference, spacing_mm)
    return None if ways is None else float(np.percentile(np.concatenate(ways), 100 * SHARE))


def border_distances(
    prediction: BoolArray, reference: BoolArray, spacing_mm: Spacing, *, corners: bool = False
) -> tuple[FloatArray, FloatArray] | None:
    """Distances in mm from each border voxel of a mask (Z, Y, X) to the nearest of the other, both ways; none where one is empty.

    Between centres of voxels with a face, or with ``corners`` a face, edge or corner, outside of the mask or of the array.
    """
    neighbours = ndimage.generate_binary_structure(3, 3 if corners else 1)
    first, second = (mask & ~ndimage.binary_erosion(mask, neighbours) for mask in (prediction, reference))
    if not (first.any() and second.any()):
        return None
    return _distances(first, second, spacing_mm), _distances(second, first, spacing_mm)

"""Outlines of a mask as closed polygons, those of parts with holes cut open by a keyhole.

A keyhole is a way of no width from the outline of a part to that of its hole and back, so that one polygon encloses exactly the part:
for readers that fill polygons one over the other and for those that take an inner one for a hole alike.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours

Polygon = NDArray[np.float64]
"""(n, 2): row and column of each corner in voxels, the first not repeated."""


def outlines(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Polygons whose interiors hold the centres of exactly the voxels of ``mask`` (Y, X), and touch the centre of no voxel.

    Corners lie halfway between a voxel inside and its neighbour outside.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    part = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    found = [_with_crossings(contour[:-1]) for contour in find_contours(part.astype(np.uint8), 0.5)]
    corner = np.array([top - 1, left - 1])
    return [_corners(polygon) + corner for polygon in _cut_open(found)]


def _corners(polygon: Polygon) -> Polygon:
    """The polygon without the points at which it runs straight on; at the ends of a keyhole it turns round."""
    before, after = polygon - np.roll(polygon, 1, axis=0), np.roll(polygon, -1, axis=0) - polygon
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept: Polygon = polygon[turns | ((before * after).sum(axis=1) < 0)]
    return kept


def _with_crossings(contour: Polygon) -> Polygon:
    """The contour with a corner wherever it crosses a line halfway between two columns of voxels."""
    after = np.roll(contour, -1, axis=0)
    flat = (contour[:, 0] == after[:, 0]) & (np.abs(contour[:, 1] - after[:, 1]) == 1)
    places = np.flatnonzero(flat) + 1
    return np.insert(contour, places, (contour[flat] + after[flat]) / 2, axis=0)


def _is_hole(polygon: Polygon) -> bool:
    """Around the inside and around holes outlines run in opposite directions."""
    y, x = polygon.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) < 0


def _cut_open(contours: Sequence[Polygon]) -> list[Polygon]:
    """The outlines of parts, each hole joined to the outline straight above it: that of its part, or of another hole of the part.

    Ways lead up halfway between two columns, where they meet the centre of no voxel. Holes that begin furthest down come first: when
    one is joined, all that hang on it are.
    """
    crossings = _crossings(contours)
    hanging: dict[int, list[tuple[int, Polygon]]] = defaultdict(list)
    tops = {i: _top(contour) for i, contour in enumerate(contours) if _is_hole(contour)}
    for i in sorted(tops, key=lambda i: -contours[i][tops[i], 0]):
        row, column = contours[i][tops[i]]
        above = crossings[column]
        _, parent, corner = above[bisect_left(above, (row,)) - 1]
        hanging[parent].append((corner, _walk(contours[i], tops[i], hanging.pop(i, []))))
    return [_walk(contour, 0, hanging[i])[:-1] for i, contour in enumerate(contours) if i not in tops]


def _crossings(contours: Sequence[Polygon]) -> dict[float, list[tuple[float, int, int]]]:
    """For each line halfway between two columns the rows at which outlines cross it, ascending, with contour and corner."""
    found: dict[float, list[tuple[float, int, int]]] = defaultdict(list)
    for i, contour in enumerate(contours):
        for corner in np.flatnonzero(contour[:, 1] % 1 == 0.5):
            found[float(contour[corner, 1])].append((float(contour[corner, 0]), i, int(corner)))
    for places in found.values():
        places.sort()
    return found


def _top(hole: Polygon) -> int:
    """The uppermost of the corners that lie halfway between two columns."""
    own = np.flatnonzero(hole[:, 1] % 1 == 0.5)
    return int(own[hole[own, 0].argmin()])


def _walk(contour: Polygon, start: int, hanging: Sequence[tuple[int, Polygon]]) -> Polygon:
    """Once around ``contour`` from a corner back to it, with the walks that begin at other corners."""
    pieces, at = [], 0
    closed = np.concatenate([contour[start:], contour[: start + 1]])
    for corner, walk in sorted(((corner - start) % len(contour), k) for k, (corner, _) in enumerate(hanging)):
        pieces += [closed[at : corner + 1], hanging[walk][1]]
        at = corner
    return np.concatenate([*pieces, closed[at:]])

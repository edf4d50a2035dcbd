"""How sure networks are of an image, gathered from the stream of slabs while label maps are decided: nothing here changes these.

A sample of voxels serves to calibrate probabilities, features of each class to expect the quality of a case, maps to be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autoseg.evaluation.calibration import calibrated, entropy
from autoseg.evaluation.expected_quality import ClassFeatures
from autoseg.evaluation.label_maps import THRESHOLD
from autoseg.imaging.placement import Placement, inside_box
from planners import Labels

Floats = NDArray[np.float32]
MOST_VOXELS = 2**17
"""Of a case that are sampled, evenly over the part of its image that was preprocessed."""
MOST_VALUES = 2**20
"""Of all their classes together."""


class Taker(Protocol):
    """Gets the probabilities (K, rows, a1, a2) of rows of the crop, in plan axes; again, from the first row on, where they are computed again."""

    def __call__(self, rows: slice, p: Floats, /) -> None: ...


@dataclass(slots=True)
class Sample:
    """Probabilities of evenly spaced voxels of the crop: the same ones for every model of the image."""

    placement: Placement
    labels: Labels
    places: NDArray[np.intp] = field(init=False)
    """In the crop made flat, ascending."""
    p: Floats = field(init=False)
    """(K, n)."""

    def __post_init__(self) -> None:
        size, number = math.prod(self.placement.shape_after_cropping), self.labels.num_outputs
        wanted = max(1, min(MOST_VOXELS, MOST_VALUES // number))
        step = max(1, -(-size // wanted))
        while math.gcd(step, self.placement.shape_after_cropping[2]) > 1 and step > 1:
            step += 1  # else the same few columns of the image
        self.places = np.arange(step // 2, size, step)
        self.p = np.zeros((number, len(self.places)), np.float32)

    def __call__(self, rows: slice, p: Floats, /) -> None:
        size = math.prod(self.placement.shape_after_cropping[1:])
        low, high = np.searchsorted(self.places, (rows.start * size, rows.stop * size))
        self.p[:, low:high] = p.reshape(len(p), -1)[:, self.places[low:high] - rows.start * size]

    @property
    def voxels(self) -> NDArray[np.int64]:
        """Where the sampled voxels are in the image made flat (Z, Y, X)."""
        shape = self.placement.source.shape
        inside = np.unravel_index(self.places, self.placement.shape_after_cropping)
        along = [
            inside_box(
                np.broadcast_to(np.arange(size).reshape([-1 if i == axis else 1 for i in range(3)]), shape),
                self.placement,
            )[inside]
            for axis, size in enumerate(shape)
        ]
        return np.ravel_multi_index(along, shape).astype(np.int64)


@dataclass(slots=True)
class Features:
    """What is known of each class of a prediction without its truth; sums by rows, so that rows may come again."""

    placement: Placement
    labels: Labels
    likeness: tuple[float, ...]
    """Of the image: what is compared with the training images'."""
    sums: NDArray[np.float64] = field(init=False)
    """(rows, classes, 4): voxels of the prediction, their entropy, their probability, and the probability of all voxels."""

    def __post_init__(self) -> None:
        self.sums = np.zeros((self.placement.shape_after_cropping[0], len(self.labels.classes), 4))

    def __call__(self, rows: slice, p: Floats, /) -> None:
        doubt = entropy(p, has_regions=self.labels.has_regions)
        largest = None if self.labels.has_regions else p.argmax(axis=0)
        first = 0 if self.labels.has_regions else 1
        for i in range(len(self.labels.classes)):
            own = p[first + i]
            mask = own > THRESHOLD if largest is None else largest == first + i
            for j, values in enumerate((mask, doubt * mask, own * mask, own)):
                self.sums[rows, i, j] = values.sum(axis=(1, 2), dtype=np.float64)

    @property
    def of_classes(self) -> dict[str, ClassFeatures]:
        """By name of the class."""
        geometry = self.placement.source
        voxel_ml = geometry.voxel_volume_ml
        found = {}
        for each, (size, doubt, inside, whole) in zip(self.labels.classes, self.sums.sum(axis=0), strict=True):
            found[each.name] = ClassFeatures(
                volume_ml=float(size * voxel_ml),
                entropy=float(doubt / size) if size else 0.0,
                expected_dice=float(2 * inside / (size + whole)) if size else 0.0,
                likeness=self.likeness,
            )
        return found


@dataclass(slots=True)
class EntropyMap:
    """Entropy of calibrated probabilities, (Z, Y, X) of the image; 0 outside the crop."""

    placement: Placement
    labels: Labels
    temperatures: Sequence[float]
    whole: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.whole = np.zeros(self.placement.source.shape, np.float32)

    def __call__(self, rows: slice, p: Floats, /) -> None:
        has_regions = self.labels.has_regions
        right = calibrated(p, self.temperatures, has_regions=has_regions) if self.temperatures else p
        inside_box(self.whole, self.placement)[rows] = entropy(right, has_regions=has_regions)


def disagreement(label_maps: Sequence[NDArray[np.integer]]) -> Floats:
    """Share of the label maps (Z, Y, X) that are otherwise than the value that most of them have, at each voxel: 0 where all agree."""
    most = np.zeros(label_maps[0].shape, np.uint8)
    for one in label_maps:
        votes = np.zeros(one.shape, np.uint8)
        for other in label_maps:
            votes += one == other
        np.maximum(most, votes, out=most)
    result: Floats = (1 - most / np.float32(len(label_maps))).astype(np.float32)
    return result

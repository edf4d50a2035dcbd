"""What the second stage of a cascade sees of the first while it trains: its classes, disturbed so that they are not trusted
blindly (method sections 6.2, numbers 12 to 14, and 6.4).

Drawn first and then applied, like all augmentation. Components cannot be told apart on a GPU, so this is done by the
processes that read crops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from autoseg.training.augmentation_parameters import Parameters, Recipe
from autoseg.training.turning import turn

Classes = NDArray[np.bool_]
"""(K, axes...): where each foreground class of the first stage is."""
OperationName = Literal["dilate", "erode", "close", "open"]
OPERATIONS: tuple[OperationName, ...] = get_args(OperationName)
OPERATION_CHANCE = 0.4
REMOVAL_CHANCE = 0.2
CHANNEL_CHANCE = 0.5
RADIUS = (1.0, 8.0)
"""Of the ball, or disk, in voxels."""
REMOVABLE_SHARE = 0.15
"""Components that fill this share of the patch or more are kept."""
FAR = np.int16(10_000)
"""A squared distance beyond all that are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A change of one class's shape."""

    channel: int
    name: OperationName
    radius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One component of a class is deleted."""

    channel: int
    choice: float
    """In [0, 1): which of the components that may be deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """All that is done to the classes of one sample, in this order."""

    operations: tuple[Operation, ...] = ()
    removals: tuple[Removal, ...] = ()


def draw_disturbance(rng: np.random.Generator, num_channels: int) -> Disturbance:
    """Operations with probability 0.4, removals with 0.2; of the channels, in random order, each with 0.5."""
    operations: list[Operation] = []
    removals: list[Removal] = []
    if rng.random() < OPERATION_CHANCE:
        for channel in _draw_channels(rng, num_channels):
            name = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
            operations.append(Operation(channel=channel, name=name, radius=float(rng.uniform(*RADIUS))))
    if rng.random() < REMOVAL_CHANCE:
        removals = [Removal(channel=channel, choice=float(rng.random())) for channel in _draw_channels(rng, num_channels)]
    return Disturbance(operations=tuple(operations), removals=tuple(removals))


def _draw_channels(rng: np.random.Generator, number: int) -> list[int]:
    return [int(channel) for channel in rng.permutation(number) if rng.random() < CHANNEL_CHANCE]


def previous_classes(
    labels: NDArray[np.int16], values: Sequence[int], changes: Parameters, recipe: Recipe, disturbance: Disturbance
) -> Tensor:
    """bool (K, patch...): where the first stage found each of ``values``, as `augment` moves labels, then disturbed.

    ``labels`` (crop...) is the crop of the first stage's label map that belongs to the image's.
    """
    moved = turn(changes, recipe, torch.zeros((0, *labels.shape)), torch.from_numpy(labels)[None])[1]
    if changes.mirror:
        moved = moved.flip([axis + 1 for axis in changes.mirror])
    found = moved[0].numpy()
    return torch.from_numpy(disturb(np.stack([found == value for value in values]), disturbance))


def disturb(classes: Classes, disturbance: Disturbance) -> Classes:
    """The disturbed copy of ``classes``. Voxels that an operation adds to one class are taken from the others."""
    result = classes.copy()
    for operation in disturbance.operations:
        box = _box_around(result[operation.channel], math.floor(operation.radius) + 1)
        if box is None:
            continue
        part = result[(slice(None), *box)]
        before = part[operation.channel].copy()
        after = _change_shape(before, operation)
        part &= ~(after & ~before)
        part[operation.channel] = after
    for removal in disturbance.removals:
        _remove_component(result[removal.channel], removal.choice)
    return result


def _box_around(mask: NDArray[np.bool_], margin: int) -> tuple[slice, ...] | None:
    """The box of a mask, grown by ``margin`` voxels within the array; None for an empty mask.

    With a margin of more than the radius, a layer of the box stays empty whatever is done inside, unless it ends with the
    array: nothing outside the box matters.
    """
    box = []
    for axis, size in enumerate(mask.shape):
        places = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(places):
            return None
        box.append(slice(max(0, int(places[0]) - margin), min(size, int(places[-1]) + 1 + margin)))
    return tuple(box)


def _change_shape(mask: NDArray[np.bool_], operation: Operation) -> NDArray[np.bool_]:
    radius = operation.radius
    match operation.name:
        case "dilate":
            return dilate(mask, radius)
        case "erode":
            return erode(mask, radius)
        case "close":
            return erode(dilate(mask, radius), radius)
        case "open":
            return dilate(erode(mask, radius), radius)


def dilate(mask: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Voxels no further than ``radius`` voxels from one of the mask."""
    return squared_distance(mask, math.floor(radius)) <= radius**2


def erode(mask: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Voxels of the mask with no voxel outside it within ``radius`` voxels; the border of the array takes nothing away."""
    return ~dilate(~mask, radius)


def squared_distance(mask: NDArray[np.bool_], reach: int) -> NDArray[np.int16]:
    """Squared distance in voxels to the mask, exact where no axis of it is longer than ``reach`` voxels, else `FAR` or more.

    Axis by axis: the nearest of all neighbours at k voxels with their own squared distance plus k * k.
    """
    distance = np.where(mask, np.int16(0), FAR)
    for axis in range(mask.ndim):
        nearest = distance.copy()
        for k in range(1, min(reach, mask.shape[axis] - 1) + 1):
            lower, upper = _along(axis, slice(None, -k)), _along(axis, slice(k, None))
            shifted = distance + np.int16(k * k)
            np.minimum(nearest[upper], shifted[lower], out=nearest[upper])
            np.minimum(nearest[lower], shifted[upper], out=nearest[lower])
        distance = nearest
    return distance


def _along(axis: int, where: slice) -> tuple[Any, ...]:
    return (*(slice(None),) * axis, where)


def _remove_component(mask: NDArray[np.bool_], choice: float) -> None:
    """Delete one of the components (full connectivity) that are small enough. Changes ``mask``."""
    components, number = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    sizes = np.bincount(components.ravel(), minlength=number + 1)[1:]
    small = np.flatnonzero(sizes < REMOVABLE_SHARE * mask.size) + 1
    if len(small):
        mask[components == small[int(choice * len(small))]] = False

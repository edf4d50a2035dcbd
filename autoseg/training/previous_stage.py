"""What the second stage of a cascade sees of the first while it trains: its classes, disturbed so that they are not trusted
blindly (method sections 6.2, numbers 12 to 14, and 6.4).

Drawn first and then applied, on the device that holds the patch, like all augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

OperationName = Literal["dilate", "erode", "close", "open"]
OPERATIONS: tuple[OperationName, ...] = get_args(OperationName)
OPERATION_CHANCE = 0.4
REMOVAL_CHANCE = 0.2
CHANNEL_CHANCE = 0.5
RADIUS = (1.0, 8.0)
"""Of the ball, or disk, in voxels."""
REMOVABLE_SHARE = 0.15
"""Components that fill this share of the patch or more are kept."""
EXACT_FLOATS = 2**24
"""Whole numbers below this are exact in float32."""
FAR = 10_000
"""A squared distance above all that are searched for, which fits into 16 bits."""


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
        removals = [
            Removal(channel=channel, choice=float(rng.random())) for channel in _draw_channels(rng, num_channels)
        ]
    return Disturbance(operations=tuple(operations), removals=tuple(removals))


def _draw_channels(rng: np.random.Generator, number: int) -> list[int]:
    return [int(channel) for channel in rng.permutation(number) if rng.random() < CHANNEL_CHANCE]


def previous_classes(labels: Tensor, values: Sequence[int], disturbance: Disturbance) -> Tensor:
    """bool (K, axes...): where ``labels`` (axes...) has each of ``values``, then disturbed."""
    return disturb(torch.stack([labels == value for value in values]), disturbance)


def disturb(classes: Tensor, disturbance: Disturbance) -> Tensor:
    """The disturbed copy of ``classes``, bool (K, axes...). Voxels that an operation adds to one class leave the others."""
    result = classes.clone()
    for operation in disturbance.operations:
        box = _box_around(result[operation.channel], math.floor(operation.radius) + 1)
        if box is None:
            continue
        part = result[(slice(None), *box)]
        before = part[operation.channel].clone()
        after = _change_shape(before, operation)
        part &= ~(after & ~before)
        part[operation.channel] = after
    for removal in disturbance.removals:
        remove_component(result[removal.channel], removal.choice)
    return result


def _box_around(mask: Tensor, margin: int) -> tuple[slice, ...] | None:
    """The box of a mask, grown by ``margin`` voxels within the array; None for an empty mask.

    With a margin of more than the radius, a layer of the box stays empty whatever is done inside, unless it ends with the
    array: nothing outside the box matters.
    """
    box = []
    for axis, size in enumerate(mask.shape):
        others = [other for other in range(mask.ndim) if other != axis]
        places = torch.nonzero(mask.any(dim=others)).flatten().tolist()
        if not places:
            return None
        box.append(slice(max(0, places[0] - margin), min(size, places[-1] + 1 + margin)))
    return tuple(box)


def _change_shape(mask: Tensor, operation: Operation) -> Tensor:
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


def dilate(mask: Tensor, radius: float) -> Tensor:
    """Voxels no further than ``radius`` voxels from one of the mask."""
    return squared_distance(mask, math.floor(radius)) <= radius**2


def erode(mask: Tensor, radius: float) -> Tensor:
    """Voxels of the mask with no voxel outside it within ``radius`` voxels; the border of the array takes nothing away."""
    return ~dilate(~mask, radius)


def squared_distance(mask: Tensor, reach: int) -> Tensor:
    """int16: squared distance in voxels to the mask, exact where no axis of it is longer than ``reach`` voxels, else `FAR` or
    more.

    Axis by axis: the nearest of all neighbours at k voxels with their own squared distance plus k * k.
    """
    distance = torch.full(mask.shape, FAR, dtype=torch.int16, device=mask.device).masked_fill_(mask, 0)
    for axis, size in enumerate(mask.shape):
        nearest = distance.clone()
        for k in range(1, min(reach, size - 1) + 1):
            shifted = distance + k * k
            upper, lower = nearest.narrow(axis, k, size - k), nearest.narrow(axis, 0, size - k)
            torch.minimum(upper, shifted.narrow(axis, 0, size - k), out=upper)
            torch.minimum(lower, shifted.narrow(axis, k, size - k), out=lower)
        distance = nearest
    return distance


def remove_component(mask: Tensor, choice: float) -> None:
    """Delete one of the components (full connectivity) that are small enough, in the order of their first voxels.

    Changes ``mask``, bool (axes...).
    """
    on_cpu = mask.device.type == "cpu" or mask.numel() >= EXACT_FLOATS
    numbers = label_on_cpu(mask.cpu()).to(mask.device) if on_cpu else label_on_gpu(mask)
    found, sizes = torch.unique(numbers[mask], return_counts=True)
    small = found[sizes < REMOVABLE_SHARE * mask.numel()]
    if len(small):
        mask &= numbers != small[int(choice * len(small))]


def label_on_cpu(mask: Tensor) -> Tensor:
    """A number for each component, ascending with their first voxels; 0 outside."""
    return torch.from_numpy(ndimage.label(mask.numpy(), structure=np.ones((3,) * mask.ndim))[0])


def label_on_gpu(mask: Tensor) -> Tensor:
    """The same by neighbourhood maxima, which a GPU is fast at, with other numbers in the same order; for less than
    `EXACT_FLOATS` voxels.

    Every voxel starts with its own number, the first voxel with the highest. It takes the highest of its neighbours,
    then the one that the voxel of that number has by now; so numbers travel in leaps, and a dozen rounds do.
    """
    pool = functional.max_pool3d if mask.ndim == 3 else functional.max_pool2d
    size = mask.numel()
    numbers = torch.arange(size, 0, -1, device=mask.device, dtype=torch.float32).reshape(mask.shape) * mask
    while True:
        highest = (pool(numbers[None, None], 3, stride=1, padding=1)[0, 0] * mask).flatten()
        leap = highest[(size - highest.long()).clamp(max=size - 1)].reshape(mask.shape) * mask
        if torch.equal(leap, numbers):
            return ((size + 1 - numbers) * mask).long()
        numbers = leap

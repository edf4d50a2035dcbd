"""What the second stage of a cascade sees of the first while it trains: its classes, disturbed so that they are not trusted
blindly (method sections 6.2, numbers 12 to 14, and 6.4).

Drawn first and then applied, on the device that holds the patch, like all augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
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
ROUNDS_AT_ONCE = 3
"""Of numbering components, before a GPU is asked whether more are needed."""
ROWS_AT_ONCE = 8
"""Classes whose shapes a GPU changes in one turn, 50 bytes a voxel each at most: 1 GB for a patch of 128 x 128 x 128."""
FAR = 10_000
"""A squared distance above all that are searched for, which fits into 16 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A change of one class's shape."""

    channel: int
    name: OperationName
    radius: float

    @property
    def adds(self) -> bool:
        """Whether the class may grow, at the cost of others."""
        return self.name in ("dilate", "close")


NOTHING, NO_LABEL = Operation(channel=-1, name="dilate", radius=0.0), np.iinfo(np.int16).min
"""An operation on a class that no voxel has, by its label: the last after those of all classes."""


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


def take_turns(disturbances: Sequence[Disturbance]) -> list[list[tuple[int, Operation]]]:
    """The operations of all samples, each with its sample's number, in turns of those that may be done at once.

    Erosion and opening change their own class alone, so those of a sample share the turn of the next operation that takes voxels from
    other classes, unless it is of the same class: all of a turn start from what the turn before left.
    """
    turns: list[list[tuple[int, Operation]]] = []
    for i, each in enumerate(disturbances):
        turn, changed = 0, set[int]()
        for operation in each.operations:
            if operation.channel in changed:
                turn, changed = turn + 1, set()
            turns += [[] for _ in range(turn + 1 - len(turns))]
            turns[turn].append((i, operation))
            changed.add(operation.channel)
            if operation.adds:
                turn, changed = turn + 1, set()
    return [some[first : first + ROWS_AT_ONCE] for some in turns for first in range(0, len(some), ROWS_AT_ONCE)]


def disturbance_tables(
    disturbances: Sequence[Disturbance], values: Sequence[int], axes: int
) -> dict[str, NDArray[np.generic]]:
    """What `disturb_batch` needs to know, for `autoseg.training.batch_augmentation.send`; ``values`` are those of the classes."""
    ones, each_value = (1,) * axes, np.array([*values, NO_LABEL], np.int16)
    tables: dict[str, NDArray[np.generic]] = {"values": each_value[:-1].reshape(-1, *ones)}
    turns = [rows_of_turn(chosen) for chosen in take_turns(disturbances)]
    if turns:
        reach = max(math.floor(operation.radius) for _, rows in turns for _, operation in rows)
        squares = (np.arange(-reach, reach + 1) ** 2).astype(np.int16)
        tables["shape.squares"] = squares
    for turn, (growing, rows) in enumerate(turns):
        operations, name = [operation for _, operation in rows], f"shape.{turn}"
        limits = np.array([operation.radius**2 for operation in operations], np.float32).reshape(-1, *ones, 1)
        tables[f"{name}.limit"] = limits - squares
        twice = [operation.name in ("close", "open") for operation in operations]
        if any(twice):
            tables[f"{name}.again"] = limits * np.array(twice, np.float32).reshape(-1, *ones, 1) - squares
        chosen = each_value[[operation.channel for operation in operations]].reshape(-1, *ones)
        tables[f"{name}.values"] = chosen
        if len(rows) > len(growing):
            tables[f"{name}.samples"] = np.array([i for i, _ in rows])
            tables[f"{name}.grows"] = np.array([operation.adds for operation in operations]).reshape(-1, *ones)
            tables[f"{name}.lost"] = -chosen[len(growing) :]
    removals = [(i * len(values) + r.channel, r.choice) for i, each in enumerate(disturbances) for r in each.removals]
    if removals:
        tables["removal.rows"] = np.array([row for row, _ in removals])
        tables["removal.choices"] = np.array([[choice] for _, choice in removals])
    return tables


def rows_of_turn(chosen: Sequence[tuple[int, Operation]]) -> tuple[range, list[tuple[int, Operation]]]:
    """The samples in which a class grows, and all operations with their samples: first one for each of that range, then the others.

    A sample within the range in which none grows gets `NOTHING`.
    """
    grown = {i: operation for i, operation in chosen if operation.adds}
    growing = range(min(grown), max(grown) + 1) if grown else range(0)
    others = [(i, operation) for i, operation in chosen if not operation.adds]
    return growing, [*((i, grown.get(i, NOTHING)) for i in growing), *others]


def disturb_batch(labels: Tensor, disturbances: Sequence[Disturbance], tables: Mapping[str, Tensor]) -> Tensor:
    """`previous_classes` of all samples together, on a GPU: bool (N, K, axes...) of labels int16 (N, axes...), which are changed.

    The operations of each sample take their turns (`take_turns`), those of all samples in one turn at once. A label map holds the classes
    meanwhile: a class that grows takes voxels from others by being written last.
    """
    turns = [rows_of_turn(chosen) for chosen in take_turns(disturbances)]
    if turns:
        reach = len(tables["shape.squares"]) // 2
        padded = [size + 2 * reach for size in labels.shape[1:]]
        space = labels.new_ones(max(len(rows) for _, rows in turns), *padded)
    for turn, (growing, rows) in enumerate(turns):
        _take_turn(labels, growing, space[: len(rows)], tables, f"shape.{turn}")
    classes = labels[:, None] == tables["values"]
    if "removal.rows" in tables:
        masks, places = classes.flatten(0, 1), tables["removal.rows"]
        masks.index_copy_(0, places, remove_components(masks.index_select(0, places), tables["removal.choices"]))
    return classes


def _take_turn(labels: Tensor, growing: range, space: Tensor, tables: Mapping[str, Tensor], name: str) -> None:
    """Do the operations of a turn in ``labels`` (N, axes...), growing ones by the samples of that range, others by a table of samples.

    ``space`` (rows, axes...) has a border of ones as wide as the largest radius, which stays.
    """
    values, samples, squares = tables[f"{name}.values"], tables.get(f"{name}.samples"), tables["shape.squares"]
    inner = space
    for axis, size in enumerate(labels.shape[1:], 1):
        inner = inner.narrow(axis, len(squares) // 2, size)
    grown = labels[growing.start : growing.stop]
    if samples is None:
        torch.ne(grown, values, out=inner)
    else:
        masks = labels.index_select(0, samples) == values
        torch.ne(masks, tables[f"{name}.grows"], out=inner)
    beyond, again = _beyond(space, squares, tables[f"{name}.limit"]), tables.get(f"{name}.again")
    if again is not None:
        torch.logical_not(beyond, out=inner)
        beyond = _beyond(space, squares, again)
    if samples is not None:
        left, found = (each[len(growing) :] for each in (masks, beyond))
        lost = left > found if again is None else left & found
        labels.index_add_(0, samples[len(growing) :], lost * tables[f"{name}.lost"])
    if growing:
        chosen = (grown, values[: len(growing)])
        torch.where(beyond[: len(growing)], *(chosen if again is None else chosen[::-1]), out=grown)


def _beyond(space: Tensor, squares: Tensor, limits: Tensor) -> Tensor:
    """Voxels further from the zeros of ``space`` (R, axes...), else 1, than squared distances allow; ``limits`` (R, 1..., distances)
    are what they leave along the last axis. Computed as `squared_distance`; the border is left out.
    """
    for axis in range(1, space.ndim - 1):
        space = torch.add(squares, space.unfold(axis, len(squares), 1), alpha=FAR if axis == 1 else 1).amin(-1)
    return (space.unfold(space.ndim - 1, len(squares), 1) > limits).all(-1)


def remove_components(masks: Tensor, choices: Tensor) -> Tensor:
    """Masks (R, axes...) without one of their small components each, as `remove_component` chooses it by ``choices`` (R, 1)."""
    size = masks[0].numel()
    pool = functional.max_pool3d if masks.ndim == 4 else functional.max_pool2d
    backwards = masks.flip(
        [*range(1, masks.ndim)]
    )  # so that the number of a voxel is its place, and the first has the highest
    numbers = torch.arange(size, device=masks.device, dtype=torch.float32).view(masks.shape[1:]) * backwards
    while True:
        for _ in range(ROUNDS_AT_ONCE):
            before, places = numbers, numbers.flatten(1).long()
            highest = pool(numbers[:, None], 3, stride=1, padding=1)[:, 0] * backwards
            found = highest.flatten(1).scatter_reduce(
                1, places, highest.flatten(1), "amax"
            )  # by all voxels of a number
            numbers = found.gather(1, places).view_as(masks) * backwards
        if torch.equal(before, highest):  # waits for the device
            break
    roots = numbers.flatten(1).long()
    sizes = torch.zeros_like(roots).scatter_add_(1, roots, backwards.flatten(1).long())
    small = (sizes > 0) & (sizes < REMOVABLE_SHARE * size)
    ranks = small.cumsum(1)  # the first component has the highest number
    number = ranks[:, -1:]
    chosen = small & (number - (choices * number).floor() == ranks)
    kept = backwards > chosen.gather(1, roots).view_as(masks)
    return kept.flip([*range(1, masks.ndim)])

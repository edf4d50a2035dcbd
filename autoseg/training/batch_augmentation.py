"""Augmentation of a whole batch at once, for GPUs: in few kernels, without waiting for the device.

The same changes in the same order as `autoseg.training.augmentation.augment` makes sample by sample, from the same draws. What
differs is the order of sums: images agree within float32's accuracy, and label maps but for voxels where two labels tie within it.
All parameters of a batch are arrays in main memory first (tables), which one copy brings to the device.

Images of a batch are float32 (N, C, patch...), label maps int16 (N, M, patch...). The rows of an image tensor are its N * C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from autoseg.training.augmentation import (
    EPSILON,
    OUTSIDE_LABEL,
    Parameters,
    Recipe,
    affine_matrix,
    reflected,
)

LAST_LABEL = torch.iinfo(torch.int16).max
"""Stands for `OUTSIDE_LABEL` in a vote that equal scores let the smaller label win."""
VOTES_AT_ONCE = 2**24
"""Corners whose labels are held at once, 40 bytes each: those of a patch of 128 x 128 x 128."""
CORNERS_AT_ONCE = 4
"""Corners whose votes are counted together."""
Tables = dict[str, NDArray[np.generic]]
"""Parameters of a batch by name; what no sample needs is missing."""
Value = TypeVar("Value")
Stack = tuple[Tensor, Tensor]
"""Crops of one shape: images (n, C, crop...) and label maps (n, M, crop...)."""


def make_tables(samples: Sequence[Parameters], recipe: Recipe, crop: Sequence[int]) -> Tables:
    """What `augment_batch` needs to know of the samples, of which those that move come first, with crops of that shape."""
    first = 1 if recipe.dummy_2d else 0
    moving = [affine_matrix(p, recipe.patch[first:], crop[first:]) for p in samples if p.moves]
    tables: Tables = {"matrix": np.array(moving, np.float32)} if moving else {}
    if moving:
        _add_corners(tables, crop[first:])
    if noisy := [i for i, p in enumerate(samples) if p.noise_sigma is not None]:
        tables["noise"] = np.array(noisy)
    _add_blur(tables, samples, recipe)
    for name in ("brightness", "contrast", "inverted_gamma", "gamma"):
        rows, values = _rows([getattr(p, name) for p in samples], recipe)
        if rows:
            tables[name], tables[f"{name}.rows"] = np.array(values, np.float32)[:, None], np.array(rows)
    _add_low_resolution(tables, samples, recipe)
    for axis in recipe.mirror_axes:
        if any(mirrored := [axis in p.mirror for p in samples]):
            tables[f"mirror.{axis}"] = np.array(mirrored).reshape(-1, *[1] * (1 + len(recipe.patch)))
    return tables


def _rows(values: Sequence[Sequence[Value | None]], recipe: Recipe) -> tuple[list[int], list[Value]]:
    """The rows for which a value was drawn, with it."""
    pairs = [
        (i * recipe.num_channels + channel, value)
        for i, sample in enumerate(values)
        for channel, value in enumerate(sample)
        if value is not None
    ]
    return [row for row, _ in pairs], [value for _, value in pairs]


def _add_corners(tables: Tables, crop: Sequence[int]) -> None:
    """For each axis how torch's coordinates become voxels, which voxel of the padded crop is the last, and the two next to a place."""
    sizes = np.array(crop, np.float32)[::-1, None]  # torch's coordinates begin with the last axis
    tables |= {"vote.half": sizes / 2, "vote.middle": (sizes - 1) / 2, "vote.last": sizes[:, None] + 1}
    tables |= {"vote.next": np.array([[1], [2]], np.float32), "vote.none": np.array(0, np.float32)}


def _add_blur(tables: Tables, samples: Sequence[Parameters], recipe: Recipe) -> None:
    """For each axis the weights of each row, as many as the longest kernel has, and which voxels those of the padded row are."""
    rows, sigmas = _rows([p.blur_sigmas for p in samples], recipe)
    if not rows:
        return
    tables["blur.rows"] = np.array(rows)
    for axis, size in enumerate(recipe.patch):
        weights = gaussian_kernels(np.array([each[axis] for each in sigmas]))
        tables[f"blur.{axis}"] = weights.reshape(len(rows), *[1] * len(recipe.patch), -1)
        tables[f"blur.{axis}.sources"] = reflected(size, weights.shape[1] // 2)


def gaussian_kernels(sigmas: NDArray[np.float64]) -> NDArray[np.float32]:
    """`gaussian_kernel` of each, (R, n), those that are shorter than the longest with weights of 0 at both ends."""
    halves = np.round((6 * sigmas + 0.5 - 1) / 2)[:, None]
    places = np.arange(-halves.max(), halves.max() + 1)
    weights = np.exp(-0.5 * (places / sigmas[:, None]) ** 2) * (np.abs(places) <= halves)
    normalised: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return normalised


def _add_low_resolution(tables: Tables, samples: Sequence[Parameters], recipe: Recipe) -> None:
    """For each axis the two voxels that each voxel of a row is between, and how far from the first."""
    rows, factors = _rows([p.low_resolution for p in samples], recipe)
    if not rows:
        return
    tables["low.rows"] = np.array(rows)
    for axis, size in enumerate(recipe.patch):
        if axis == 0 and recipe.dummy_2d:
            continue
        shape = [len(rows), *[1] * len(recipe.patch)]
        shape[axis + 1] = size
        small = np.array([max(1, round(size * factor)) for factor in factors])
        first, second, share = coarse_neighbours(size, small)
        tables[f"low.{axis}.first"], tables[f"low.{axis}.second"] = first.reshape(shape), second.reshape(shape)
        tables[f"low.{axis}.share"] = share.reshape(shape)


def coarse_neighbours(
    size: int, small: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Taking ``small`` (R,) of ``size`` voxels by the nearest and going back linearly: between which two each one then is, (R, size).

    With how far it is from the first. In float32, like `torch.nn.functional.interpolate`: rounding decides which voxel is the nearest.
    """
    half, coarse = np.float32(0.5), small[:, None].astype(np.float32)
    there, back = np.float32(size) / coarse, coarse / np.float32(size)
    place = np.maximum((np.arange(size, dtype=np.float32) + half) * back - half, np.float32(0))
    low = np.minimum(place.astype(np.int64), small[:, None] - 1)
    share = np.clip(place - low.astype(np.float32), np.float32(0), np.float32(1))
    first, second = (
        np.minimum(((each.astype(np.float32) + half) * there).astype(np.int64), size - 1)
        for each in (low, np.minimum(low + 1, small[:, None] - 1))
    )
    return first, second, share


def send(tables: Tables, device: torch.device) -> dict[str, Tensor]:
    """All tables on a device, by a single copy, for which nothing waits."""
    if not tables:
        return {}
    arrays = [np.ascontiguousarray(array) for array in tables.values()]
    padded = [np.pad(array.reshape(-1).view(np.uint8), (0, -array.nbytes % 8)) for array in arrays]
    joined = torch.from_numpy(np.concatenate(padded))
    joined = (joined.pin_memory() if device.type == "cuda" else joined).to(device, non_blocking=True)
    parts = torch.split(joined, [len(each) for each in padded])
    return {
        name: part[: array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for name, array, part in zip(tables, arrays, parts, strict=True)
    }


def augment_batch(
    stacks: Sequence[Stack],
    noise: Tensor | None,
    samples: Sequence[Parameters],
    tables: Mapping[str, Tensor],
    recipe: Recipe,
) -> tuple[Tensor, Tensor]:
    """The augmented patches of crops, images (N, C, patch...) and label maps (N, M, patch...), outside set to background.

    ``stacks`` hold first the samples that move, if any, then the others; ``noise`` (n, C, patch...) is that of those that have some;
    ``tables`` are those of `make_tables`, on the device. The inputs stay as they are.
    """
    done = [rotate_and_scale(*stacks[0], tables, recipe)] if "matrix" in tables else []
    images, labels = (torch.cat(each) for each in zip(*done, *stacks[len(done) :], strict=True))
    if noise is not None:
        images.index_add_(0, tables["noise"], noise)
    rows = images.flatten(0, 1)
    _blur(rows, tables)
    _scale_intensity(rows, tables)
    _lower_resolution(rows, tables)
    _change_gamma(rows, tables, "inverted_gamma", sign=-1)
    _change_gamma(rows, tables, "gamma", sign=1)
    _apply_further(images, labels, samples, recipe)
    for axis in recipe.mirror_axes:
        if (mirrored := tables.get(f"mirror.{axis}")) is not None:
            images, labels = (torch.where(mirrored, each.flip(axis + 2), each) for each in (images, labels))
    outside = labels == OUTSIDE_LABEL
    for channel in recipe.masked_channels:
        images[:, channel].masked_fill_(outside[:, 0], 0)
    return images, labels.masked_fill(outside, 0)


def _apply_further(images: Tensor, labels: Tensor, samples: Sequence[Parameters], recipe: Recipe) -> None:
    """Installed augmentations know single samples. Changes both."""
    for i, sample in enumerate(samples):
        for augmentation, drawn in zip(recipe.further, sample.further, strict=False):
            if drawn is not None:
                image, label = augmentation.apply(drawn, images[i], labels[i])
                images[i], labels[i] = image, label


def _blur(rows: Tensor, tables: Mapping[str, Tensor]) -> None:
    if "blur.rows" not in tables:
        return
    some = rows.index_select(0, tables["blur.rows"])
    for axis in range(rows.ndim - 1):
        weights = tables[f"blur.{axis}"]
        padded = some.index_select(axis + 1, tables[f"blur.{axis}.sources"])
        some = (padded.unfold(axis + 1, weights.shape[-1], 1) * weights).sum(-1)
    rows.index_copy_(0, tables["blur.rows"], some)


def _scale_intensity(rows: Tensor, tables: Mapping[str, Tensor]) -> None:
    """Brightness, then contrast about the mean, kept within the channel's range."""
    if "brightness" in tables:
        some, places = rows.flatten(1), tables["brightness.rows"]
        some.index_copy_(0, places, some.index_select(0, places) * tables["brightness"])
    if "contrast" in tables:
        some = rows.flatten(1).index_select(0, tables["contrast.rows"])
        mean, (low, high) = some.mean(1, keepdim=True), torch.aminmax(some, dim=1, keepdim=True)
        some = torch.clamp((some - mean) * tables["contrast"] + mean, low, high)
        rows.flatten(1).index_copy_(0, tables["contrast.rows"], some)


def _lower_resolution(rows: Tensor, tables: Mapping[str, Tensor]) -> None:
    if "low.rows" not in tables:
        return
    some = rows.index_select(0, tables["low.rows"])
    for axis in range(rows.ndim - 1):
        if f"low.{axis}.first" in tables:
            first, second = (
                some.gather(axis + 1, tables[f"low.{axis}.{name}"].expand_as(some)) for name in ("first", "second")
            )
            some = torch.lerp(first, second, tables[f"low.{axis}.share"])
    rows.index_copy_(0, tables["low.rows"], some)


def _change_gamma(rows: Tensor, tables: Mapping[str, Tensor], name: str, *, sign: int) -> None:
    """``x ** gamma`` on the channel's range, mean and standard deviation restored."""
    if name not in tables:
        return
    flat, places = rows.flatten(1), tables[f"{name}.rows"]
    before = flat.index_select(0, places) * sign
    low, high = torch.aminmax(before, dim=1, keepdim=True)
    spread = high - low
    bent = ((before - low) / spread.clamp(min=EPSILON)) ** tables[name] * spread + low
    ratio = before.std(1, keepdim=True) / bent.std(1, keepdim=True).clamp(min=EPSILON)
    after = (bent - bent.mean(1, keepdim=True)) * ratio + before.mean(1, keepdim=True)
    flat.index_copy_(0, places, after * sign)


def rotate_and_scale(
    images: Tensor, labels: Tensor, tables: Mapping[str, Tensor], recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Patches of the crops (n, C, crop...) and (n, M, crop...), of which each is read through its own matrix.

    Slices of anisotropic patches, which move in plane, are channels.
    """
    patch, crop = recipe.patch, images.shape[2:]
    if recipe.dummy_2d:
        patch, crop = patch[1:], crop[1:]
    flat, maps = (each.flatten(1, each.ndim - 1 - len(patch)) for each in (images, labels))
    grid = functional.affine_grid(tables["matrix"], [len(images), 1, *patch], align_corners=False)
    sampled = functional.grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    corners = 2 ** len(patch) * sampled[0, 0].numel() * maps.shape[1]
    parts = (torch.split(each, max(1, VOTES_AT_ONCE // corners)) for each in (maps, grid))
    voted = torch.cat([vote(some, places, tables) for some, places in zip(*parts, strict=True)])
    return sampled.view(*images.shape[:2], *recipe.patch), voted.view(*labels.shape[:2], *recipe.patch)


def vote(labels: Tensor, grid: Tensor, tables: Mapping[str, Tensor]) -> Tensor:
    """The label that the voxels around each place of a grid give the most weight to, linearly; outside counts as -1.

    ``labels`` int16 (n, M, crop...) -> (n, M, patch...); ``grid`` (n, patch..., axes) as `grid_sample` wants it. Equal weights go to
    the smaller label, and to none outside.
    """
    axes, patch = grid.shape[-1], grid.shape[1:-1]
    hidden = labels.masked_fill(labels == OUTSIDE_LABEL, LAST_LABEL)
    padded = functional.pad(hidden, [1, 1] * axes, value=LAST_LABEL).flatten(2)
    place = torch.addcmul(tables["vote.middle"], grid.flatten(1, -2).transpose(1, 2), tables["vote.half"])
    low = place.floor()  # (n, axes, V)
    share = place - low
    both = (
        (low[:, :, None] + tables["vote.next"]).clamp_(min=0).minimum(tables["vote.last"]).long()
    )  # of the padded crop
    shares = torch.stack([1 - share, share], 2)
    index, weight = both[:, -1], shares[:, -1]
    for axis, size in enumerate(labels.shape[3:], 2):
        index = (torch.add(both[:, -axis, None], index[:, :, None], alpha=size + 2)).flatten(1, 2)
        weight = (weight[:, :, None] * shares[:, -axis, None]).flatten(1, 2)
    found = padded.gather(2, index.flatten(1)[:, None].expand(-1, labels.shape[1], -1))
    found = found.view(*labels.shape[:2], *index.shape[1:])
    scores = torch.empty(found.shape, device=grid.device)
    for first in range(0, found.shape[2], CORNERS_AT_ONCE):
        some = slice(first, first + CORNERS_AT_ONCE)
        alike = torch.where(found[:, :, None] == found[:, :, some, None], weight[:, None, None], tables["vote.none"])
        torch.sum(alike, 3, out=scores[:, :, some])
    winner: Tensor = found.masked_fill_(scores < scores.amax(2, keepdim=True), LAST_LABEL).amin(2)
    return winner.masked_fill_(winner == LAST_LABEL, OUTSIDE_LABEL).view(*labels.shape[:2], *patch)

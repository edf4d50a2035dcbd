"""Augmentation: parameters drawn first, so that a sample can be replayed, then applied on any device (method section 6).

Images are float32 tensors (C, axes...), label maps int16 tensors (M, axes...), with 2 or 3 axes. M is 1, or 2 where the label map
of a cascade's first stage is transformed with the first. Probabilities and ranges are those of method section 6.2; angles are
radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from batchgenerators.augmentations.utils import (
    create_matrix_rotation_2d,
    create_matrix_rotation_x_3d,
    create_matrix_rotation_y_3d,
    create_matrix_rotation_z_3d,
)
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from planners import AUGMENTATIONS

OUTSIDE_LABEL = -1
"""Label of voxels outside the image, and outside its non-zero region."""
LABELS_AT_ONCE = 4
"""Indicators that are sampled together: faster than one by one, while those of a hundred classes would take gigabytes."""
EPSILON = 1e-7
ANISOTROPIC_PATCH = 3.0
"""A 3D patch whose longest axis is more than this times its first is rotated in plane only (method section 6.1)."""
ELONGATED_PATCH = 1.5
"""A 2D patch whose longer edge is more than this times the shorter is hardly rotated."""
PerChannel = tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What may be done to the samples of one configuration."""

    patch: tuple[int, ...]
    """Shape of the final patch, 2 or 3 axes."""
    num_channels: int
    rotation: float
    """Largest angle about each axis."""
    dummy_2d: bool
    """Rotation, scaling and low resolution leave the first axis alone."""
    mirror_axes: tuple[int, ...]
    masked_channels: tuple[int, ...]
    """Channels normalised inside the non-zero mask: set to 0 outside it at the end."""
    augment: bool
    further: tuple[Augmentation, ...] = ()
    """Applied after the method's transforms, before mirroring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """One sample's changes; None and empty tuples mean not at all."""

    angles: tuple[float, ...] | None = None
    """About array axes 0, 1, 2; a single one in plane."""
    scale: float | None = None
    """Above 1 shrinks objects."""
    noise_sigma: float | None = None
    noise_seed: int = 0
    blur_sigmas: tuple[tuple[float, ...] | None, ...] = ()
    brightness: PerChannel = ()
    contrast: PerChannel = ()
    low_resolution: PerChannel = ()
    inverted_gamma: PerChannel = ()
    gamma: PerChannel = ()
    mirror: tuple[int, ...] = ()
    further: tuple[Any, ...] = ()
    """What each of the recipe's further augmentations drew."""

    @property
    def moves(self) -> bool:
        """Whether the sample is rotated or scaled, for which its crop must be larger than the patch."""
        return self.angles is not None or self.scale is not None


class Augmentation(Protocol):
    """A transform that an installed package adds (entry points ``autoseg.augmentations``) and a schedule names."""

    def draw(self, rng: np.random.Generator, recipe: Recipe) -> Any:
        """Parameters of one sample, picklable; None: it stays as it is."""

    def apply(self, drawn: Any, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The changed patch, (C, patch...) and (M, patch...), on the device of the given one, which it may change in place.

        Labels are -1 outside the image.
        """


def make_recipe(
    patch: Sequence[int],
    *,
    num_channels: int,
    mirror_axes: Sequence[int],
    masked_channels: Sequence[int],
    augment: bool | Sequence[str],
) -> Recipe:
    """Rotation range and dummy-2D by the shape of the patch (method section 6.1).

    ``augment``: not at all, by the method's transforms, or by these and the installed augmentations of the given names.
    """
    dummy_2d = len(patch) == 3 and max(patch) / patch[0] > ANISOTROPIC_PATCH
    elongated_2d = len(patch) == 2 and max(patch) / min(patch) > ELONGATED_PATCH
    in_plane = dummy_2d or len(patch) == 2
    degrees = 15 if elongated_2d else 180 if in_plane else 30
    return Recipe(
        patch=tuple(patch),
        num_channels=num_channels,
        rotation=math.radians(degrees),
        dummy_2d=dummy_2d,
        mirror_axes=tuple(mirror_axes),
        masked_channels=tuple(masked_channels),
        augment=augment is not False,
        further=() if isinstance(augment, bool) else tuple(AUGMENTATIONS.get(name) for name in augment),
    )


def draw_parameters(rng: np.random.Generator, recipe: Recipe) -> Parameters:
    """One sample's changes. The order of draws is part of what makes runs repeatable."""
    if not recipe.augment:
        return Parameters(mirror=_draw_mirror(rng, recipe))
    in_plane = recipe.dummy_2d or len(recipe.patch) == 2
    rotate, scale, noise = (_chance(rng, p) for p in (0.2, 0.2, 0.1))
    axes = len(recipe.patch)
    return Parameters(
        angles=tuple(float(a) for a in rng.uniform(-recipe.rotation, recipe.rotation, 1 if in_plane else 3))
        if rotate
        else None,
        scale=float(rng.uniform(0.7, 1.4)) if scale else None,
        noise_sigma=float(rng.uniform(0, 0.1)) if noise else None,
        noise_seed=int(rng.integers(2**32)),
        blur_sigmas=_draw_blur(rng, recipe.num_channels, axes) if _chance(rng, 0.2) else (),
        brightness=_each(rng, recipe, lambda: two_sided(rng, 0.75, 1.25)) if _chance(rng, 0.15) else (),
        contrast=_each(rng, recipe, lambda: two_sided(rng, 0.75, 1.25)) if _chance(rng, 0.15) else (),
        low_resolution=_each(rng, recipe, lambda: float(rng.uniform(0.5, 1)), share=0.5) if _chance(rng, 0.25) else (),
        inverted_gamma=_each(rng, recipe, lambda: two_sided(rng, 0.7, 1.5)) if _chance(rng, 0.1) else (),
        gamma=_each(rng, recipe, lambda: two_sided(rng, 0.7, 1.5)) if _chance(rng, 0.3) else (),
        mirror=_draw_mirror(rng, recipe),
        further=tuple(each.draw(rng, recipe) for each in recipe.further),
    )


def two_sided(rng: np.random.Generator, low: float, high: float) -> float:
    """Below 1 or above 1 with equal chance, uniform on either side."""
    return float(rng.uniform(low, 1) if _chance(rng, 0.5) else rng.uniform(1, high))


def _chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _each(
    rng: np.random.Generator, recipe: Recipe, draw: Callable[[], float], *, share: float | None = None
) -> PerChannel:
    """A draw for every channel, or for each with probability ``share``."""
    return tuple(draw() if share is None or _chance(rng, share) else None for _ in range(recipe.num_channels))


def _draw_blur(rng: np.random.Generator, channels: int, axes: int) -> tuple[tuple[float, ...] | None, ...]:
    return tuple(
        tuple(float(s) for s in rng.uniform(0.5, 1.0, axes)) if _chance(rng, 0.5) else None for _ in range(channels)
    )


def _draw_mirror(rng: np.random.Generator, recipe: Recipe) -> tuple[int, ...]:
    return tuple(axis for axis in recipe.mirror_axes if _chance(rng, 0.5))


def augment(
    parameters: Parameters, recipe: Recipe, image: Tensor, labels: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The augmented patch of a crop.

    ``image`` (C, crop...) and ``labels`` (M, crop...) are at least as large as the patch on every axis; returned are
    tensors of the patch's shape, the label -1 (outside) set to background. ``noise`` (C, patch...) is what
    `draw_noise` gives, drawn apart from the device so that every device adds the same. The inputs stay as they are.
    """
    image, labels = rotate_and_scale(parameters, recipe, image, labels)
    image = image.clone()
    if noise is not None:
        image += noise
    blur(image, parameters)
    scale_intensity(image, parameters)
    lower_resolution(image, parameters, keep_first_axis=recipe.dummy_2d)
    change_gamma(image, parameters.inverted_gamma, inverted=True)
    change_gamma(image, parameters.gamma, inverted=False)
    for augmentation, drawn in zip(recipe.further, parameters.further or [None] * len(recipe.further), strict=True):
        if drawn is not None:
            image, labels = augmentation.apply(drawn, image, labels)
    if parameters.mirror:
        axes = [axis + 1 for axis in parameters.mirror]
        image, labels = image.flip(axes), labels.flip(axes)
    outside = labels == OUTSIDE_LABEL
    for channel in recipe.masked_channels:
        image[channel].masked_fill_(outside[0], 0)
    return image, labels.masked_fill(outside, 0)


def draw_noise(parameters: Parameters, recipe: Recipe) -> Tensor | None:
    """Independent normal noise for every voxel of every channel, float32 (C, patch...); None where none is added."""
    if parameters.noise_sigma is None:
        return None
    rng = np.random.Generator(np.random.Philox(parameters.noise_seed))
    standard = rng.standard_normal((recipe.num_channels, *recipe.patch), dtype=np.float32)
    return parameters.noise_sigma * torch.from_numpy(standard)


def blur(image: Tensor, parameters: Parameters) -> None:
    """Gaussian blur with its own sigma (voxels) for each channel and axis. Changes ``image``."""
    for channel, sigmas in enumerate(parameters.blur_sigmas):
        for axis, sigma in enumerate(sigmas or ()):
            image[channel] = correlate(image[channel], gaussian_kernel(sigma), axis)


def correlate(x: Tensor, weights: NDArray[np.float64], axis: int) -> Tensor:
    """Sum of ``x`` shifted along ``axis`` times the odd number of ``weights``; mirrored at both ends, which do not repeat."""
    size, half = x.shape[axis], len(weights) // 2
    padded = x.index_select(axis, torch.from_numpy(reflected(size, half)).to(x.device))
    result = torch.zeros_like(x)
    for shift, weight in enumerate(weights):
        result.add_(padded.narrow(axis, shift, size), alpha=float(weight))
    return result


def reflected(size: int, half: int) -> NDArray[np.int64]:
    """Numbers of the voxels of an axis with so many more at both ends: mirrored, without the last one twice."""
    return np.pad(np.arange(size), half, mode="reflect")


def gaussian_kernel(sigma: float) -> NDArray[np.float64]:
    """Normalised weights; their number is the odd number nearest to 6 sigma + 0.5 (method section 6.2)."""
    half = round((6 * sigma + 0.5 - 1) / 2)
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised


def scale_intensity(image: Tensor, parameters: Parameters) -> None:
    """Brightness, then contrast about the mean, kept within the channel's range. Changes ``image``."""
    for x, factor in _changed(image, parameters.brightness):
        x *= factor
    for x, factor in _changed(image, parameters.contrast):
        mean, low, high = x.mean(), x.min(), x.max()
        x.copy_(((x - mean) * factor + mean).clamp(low, high))


def lower_resolution(image: Tensor, parameters: Parameters, *, keep_first_axis: bool) -> None:
    """Down to a fraction of the size by the nearest voxel and up again linearly. Changes ``image``."""
    for x, factor in _changed(image, parameters.low_resolution):
        small = [max(1, round(n * factor)) for n in x.shape]
        if keep_first_axis:
            small[0] = x.shape[0]
        coarse = functional.interpolate(x[None, None], size=small, mode="nearest-exact")
        mode = "trilinear" if x.ndim == 3 else "bilinear"
        x.copy_(functional.interpolate(coarse, size=x.shape, mode=mode, align_corners=False)[0, 0])


def change_gamma(image: Tensor, gammas: PerChannel, *, inverted: bool) -> None:
    """``x ** gamma`` on the channel's range, mean and standard deviation restored. Changes ``image``."""
    for x, gamma in _changed(image, gammas):
        before = -x if inverted else x
        low = before.min()
        spread = before.max() - low
        bent = ((before - low) / spread.clamp(min=EPSILON)) ** gamma * spread + low
        ratio = before.std() / bent.std().clamp(min=EPSILON)
        after = (bent - bent.mean()) * ratio + before.mean()
        x.copy_(-after if inverted else after)


def _changed(image: Tensor, values: PerChannel) -> Iterator[tuple[Tensor, float]]:
    """The channels for which a value was drawn, as views, with it."""
    return ((image[channel], value) for channel, value in enumerate(values) if value is not None)


def rotate_and_scale(parameters: Parameters, recipe: Recipe, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate and scale about the centre, or just cut the centre out if neither was drawn.

    ``image`` (C, crop...) and ``labels`` (M, crop...) become (C, patch...) and (M, patch...). Voxels from outside the crop
    are 0 in images and -1 in label maps.
    """
    if not parameters.moves:
        where = (slice(None), *centre(labels.shape[1:], recipe.patch))
        return image[where], labels[where]
    if not recipe.dummy_2d:
        grid = sampling_grid(parameters, recipe.patch, labels.shape[1:], image.device)
        return _sample_image(image, grid), torch.stack([_sample_labels(each, grid) for each in labels])
    grid = sampling_grid(parameters, recipe.patch[1:], labels.shape[2:], image.device)
    planes = _sample_image(image.flatten(0, 1), grid).reshape(*image.shape[:2], *recipe.patch[1:])
    maps = [torch.stack([_sample_labels(plane, grid) for plane in each]) for each in labels]
    return planes, torch.stack(maps)


def centre(shape: Sequence[int], patch: Sequence[int]) -> tuple[slice, ...]:
    """The central box of the patch's size."""
    starts = [n // 2 - p // 2 for n, p in zip(shape, patch, strict=True)]
    return tuple(slice(s, s + p) for s, p in zip(starts, patch, strict=True))


def rotation_matrix(angles: tuple[float, ...] | None, axes: int) -> NDArray[np.float64]:
    """``Rz Ry Rx`` of angles about array axes 0 (x), 1 (y), 2 (z); a plane rotation in 2D; identity for None."""
    if angles is None:
        return np.eye(axes)
    if axes == 2:
        plane: NDArray[np.float64] = create_matrix_rotation_2d(angles[-1])
        return plane
    x, y, z = angles
    matrix: NDArray[np.float64] = (
        create_matrix_rotation_z_3d(z) @ create_matrix_rotation_y_3d(y) @ create_matrix_rotation_x_3d(x)
    )
    return matrix


def affine_matrix(parameters: Parameters, patch: Sequence[int], crop: Sequence[int]) -> NDArray[np.float64]:
    """Where each patch voxel is read from, for `torch.nn.functional.affine_grid`: (axes, axes + 1).

    Voxel i of the patch (size p) is read at ``R S (i - (p - 1) / 2) + (n - 1) / 2`` of the crop (size n). In torch's
    coordinates, which run from -1 to 1 between the outer borders of the outermost voxels, that is the matrix
    ``diag(1 / n) R S diag(p)`` without a shift; the last axis comes first.
    """
    matrix = rotation_matrix(parameters.angles, len(patch)) * (parameters.scale or 1.0)
    matrix = matrix * np.array(patch) / np.array(crop)[:, None]
    return np.concatenate([matrix[::-1, ::-1], np.zeros((len(patch), 1))], axis=1)


def sampling_grid(
    parameters: Parameters, patch: Sequence[int], crop: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """The places of `affine_matrix`, as `torch.nn.functional.grid_sample` wants them: (1, patch..., axes)."""
    affine = torch.tensor(affine_matrix(parameters, patch, crop)[None], dtype=torch.float32).to(device)
    grid: Tensor = functional.affine_grid(affine, [1, 1, *patch], align_corners=False)
    return grid


def _sample_image(image: Tensor, grid: Tensor) -> Tensor:
    """Linearly, zero outside."""
    return functional.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def _sample_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """Each label's indicator linearly, the largest wins; what lies outside counts as -1. ``labels`` (crop...).

    What the labels inside leave of 1 is the score of -1. Equal scores go to the smaller label.
    """
    shape = grid.shape[1:-1]
    counts = torch.bincount(labels.flatten().long() - OUTSIDE_LABEL)
    present = [value + OUTSIDE_LABEL for value in counts.nonzero().flatten().tolist()]
    values = torch.tensor(
        [value for value in present if value != OUTSIDE_LABEL], dtype=labels.dtype, device=labels.device
    )
    best, total = (torch.zeros(shape, device=labels.device) for _ in range(2))
    result = torch.full(shape, OUTSIDE_LABEL, dtype=labels.dtype, device=labels.device)
    for few in torch.split(values, LABELS_AT_ONCE):
        indicators = labels == few.view(-1, *(1,) * labels.ndim)
        for value, score in zip(few, _sample_image(indicators.float(), grid), strict=True):
            total += score
            result = torch.where(score > best, value, result)
            best = torch.maximum(best, score)
    result[1 - total > best] = OUTSIDE_LABEL
    return result

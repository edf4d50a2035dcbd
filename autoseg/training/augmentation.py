"""Applies drawn augmentation parameters to a sample, on the device that holds it (method section 6.2).

Images are float32 tensors (C, axes...), label maps int16 tensors (M, axes...), with 2 or 3 axes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from autoseg.training.augmentation_parameters import Parameters, PerChannel, Recipe
from autoseg.training.patches import OUTSIDE_LABEL
from autoseg.training.turning import turn

EPSILON = 1e-7


def augment(
    parameters: Parameters, recipe: Recipe, image: Tensor, labels: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The augmented patch of a crop.

    ``image`` (C, crop...) and ``labels`` (M, crop...) are at least as large as the patch on every axis; returned are
    tensors of the patch's shape, the label -1 (outside) turned into background. ``noise`` (C, patch...) is what
    `draw_noise` gives, drawn apart from the device so that every device adds the same. The inputs stay as they are.
    """
    image, labels = turn(parameters, recipe, image, labels)
    image = image.clone()
    if parameters.noise_sigma is not None and noise is not None:
        image += parameters.noise_sigma * noise
    blur(image, parameters)
    scale_intensity(image, parameters)
    lower_resolution(image, parameters, keep_first_axis=recipe.dummy_2d)
    change_gamma(image, parameters.inverted_gamma, inverted=True)
    change_gamma(image, parameters.gamma, inverted=False)
    if parameters.mirror:
        axes = [axis + 1 for axis in parameters.mirror]
        image, labels = image.flip(axes), labels.flip(axes)
    outside = labels == OUTSIDE_LABEL
    for channel in recipe.masked_channels:
        image[channel].masked_fill_(outside[0], 0)
    return image, labels.masked_fill(outside, 0)


def draw_noise(parameters: Parameters, recipe: Recipe) -> Tensor | None:
    """Independent standard normal noise for every voxel of every channel, float32 (C, patch...); None where none is added."""
    if parameters.noise_sigma is None:
        return None
    rng = np.random.Generator(np.random.Philox(parameters.noise_seed))
    return torch.from_numpy(rng.standard_normal((recipe.num_channels, *recipe.patch), dtype=np.float32))


def blur(image: Tensor, parameters: Parameters) -> None:
    """Gaussian blur with its own sigma (voxels) for each channel and axis. Changes ``image``."""
    for channel, sigmas in enumerate(parameters.blur_sigmas):
        for axis, sigma in enumerate(sigmas or ()):
            image[channel] = correlate(image[channel], gaussian_kernel(sigma), axis)


def correlate(x: Tensor, weights: NDArray[np.float64], axis: int) -> Tensor:
    """Sum of ``x`` shifted along ``axis`` times the odd number of ``weights``; mirrored at both ends, which do not repeat."""
    size, half = x.shape[axis], len(weights) // 2
    sources = np.pad(np.arange(size), half, mode="reflect")
    padded = x.index_select(axis, torch.from_numpy(sources).to(x.device))
    result = torch.zeros_like(x)
    for shift, weight in enumerate(weights):
        result.add_(padded.narrow(axis, shift, size), alpha=float(weight))
    return result


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
    sign = -1.0 if inverted else 1.0
    for x, gamma in _changed(image, gammas):
        before = x * sign
        low = before.min()
        spread = before.max() - low
        bent = ((before - low) / spread.clamp(min=EPSILON)) ** gamma * spread + low
        ratio = before.std() / bent.std().clamp(min=EPSILON)
        x.copy_(((bent - bent.mean()) * ratio + before.mean()) * sign)


def _changed(image: Tensor, values: PerChannel) -> Iterator[tuple[Tensor, float]]:
    """The channels for which a value was drawn, as views, with it."""
    return ((image[channel], value) for channel, value in enumerate(values) if value is not None)

"""Applies drawn augmentation parameters to a sample; the one door to batchgenerators (method sections 6.2 and 6.3).

Images are float32 (C, axes...), label maps int16 (axes...), with 2 or 3 axes.
"""

from __future__ import annotations

import numpy as np
import torch
from batchgenerators.augmentations.utils import (
    create_matrix_rotation_2d,
    create_matrix_rotation_x_3d,
    create_matrix_rotation_y_3d,
    create_matrix_rotation_z_3d,
    create_zero_centered_coordinate_mesh,
    interpolate_img,
)
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from autoseg.training.augmentation_parameters import Parameters, PerChannel, Recipe
from autoseg.training.patches import OUTSIDE_LABEL

Image = NDArray[np.float32]
LabelArray = NDArray[np.int16]
EPSILON = 1e-7


def augment(parameters: Parameters, recipe: Recipe, image: Image, labels: LabelArray) -> tuple[Image, LabelArray]:
    """The augmented patch of a crop.

    ``image`` (C, crop...) and ``labels`` (crop...) are at least as large as the patch on every axis; returned are
    arrays of the patch's shape, the label -1 (outside) turned into background. The inputs stay as they are.
    """
    image, labels = transform_space(parameters, recipe, image, labels)
    image = np.array(image, dtype=np.float32)
    add_noise(image, parameters)
    blur(image, parameters)
    scale_intensity(image, parameters)
    lower_resolution(image, parameters, keep_first_axis=recipe.dummy_2d)
    change_gamma(image, parameters.inverted_gamma, inverted=True)
    change_gamma(image, parameters.gamma, inverted=False)
    if parameters.mirror:
        image = np.flip(image, tuple(axis + 1 for axis in parameters.mirror))
        labels = np.flip(labels, parameters.mirror)
    image, labels = np.ascontiguousarray(image), np.array(labels)
    for channel in recipe.masked_channels:
        image[channel][labels == OUTSIDE_LABEL] = 0
    labels[labels == OUTSIDE_LABEL] = 0
    return image, labels


def transform_space(
    parameters: Parameters, recipe: Recipe, image: Image, labels: LabelArray
) -> tuple[Image, LabelArray]:
    """Rotate and scale about the centre, or just cut the centre out when there is nothing to turn."""
    if parameters.angles is None and parameters.scale is None:
        where = centre(labels.shape, recipe.patch)
        return image[(slice(None), *where)], labels[where]
    if recipe.dummy_2d:
        return _transform_slices(parameters, recipe, image, labels)
    coordinates = source_coordinates(parameters, recipe.patch, labels.shape)
    return _sample_image(image, coordinates), _sample_labels(labels, coordinates)


def centre(shape: tuple[int, ...], patch: tuple[int, ...]) -> tuple[slice, ...]:
    """The central box of the patch's size."""
    starts = [n // 2 - p // 2 for n, p in zip(shape, patch, strict=True)]
    return tuple(slice(s, s + p) for s, p in zip(starts, patch, strict=True))


def source_coordinates(
    parameters: Parameters, patch: tuple[int, ...], crop: tuple[int, ...]
) -> NDArray[np.float64]:
    """Where each patch voxel is read from: ``R S (i - (p - 1) / 2) + (n - 1) / 2``, shape (axes, patch...)."""
    mesh = create_zero_centered_coordinate_mesh(patch)
    matrix = rotation_matrix(parameters.angles, len(patch)) * (parameters.scale or 1.0)
    turned = (matrix @ mesh.reshape(len(patch), -1)).reshape(mesh.shape)
    middle = (np.array(crop) - 1) / 2
    result: NDArray[np.float64] = turned + middle.reshape(-1, *([1] * len(patch)))
    return result


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


def _sample_image(image: Image, coordinates: NDArray[np.float64]) -> Image:
    return np.stack([interpolate_img(c, coordinates, order=1, mode="grid-constant", cval=0.0) for c in image])


def _sample_labels(labels: LabelArray, coordinates: NDArray[np.float64]) -> LabelArray:
    """Each label's indicator linearly, largest wins; what lies outside counts as a label of its own (-1)."""
    padded = np.pad(labels, 1, constant_values=OUTSIDE_LABEL)
    sampled: LabelArray = interpolate_img(padded, coordinates + 1, order=1, mode="nearest", is_seg=True)
    return sampled


def _transform_slices(
    parameters: Parameters, recipe: Recipe, image: Image, labels: LabelArray
) -> tuple[Image, LabelArray]:
    """The same in-plane change for every slice along the first axis."""
    coordinates = source_coordinates(parameters, recipe.patch[1:], labels.shape[1:])
    slices = image.reshape(-1, *image.shape[2:])
    turned = _sample_image(slices, coordinates).reshape(*image.shape[:2], *recipe.patch[1:])
    return turned, np.stack([_sample_labels(plane, coordinates) for plane in labels])


def add_noise(image: Image, parameters: Parameters) -> None:
    """Independent Gaussian noise, one standard deviation for all channels. Changes ``image``."""
    if parameters.noise_sigma is not None:
        rng = np.random.Generator(np.random.Philox(parameters.noise_seed))
        image += parameters.noise_sigma * rng.standard_normal(image.shape, dtype=np.float32)


def blur(image: Image, parameters: Parameters) -> None:
    """Gaussian blur with its own sigma (voxels) for each channel and axis. Changes ``image``."""
    for channel, sigmas in enumerate(parameters.blur_sigmas):
        for axis, sigma in enumerate(sigmas or ()):
            image[channel] = correlate1d(image[channel], gaussian_kernel(sigma), axis=axis, mode="mirror")


def gaussian_kernel(sigma: float) -> NDArray[np.float64]:
    """Normalised weights; their number is the odd number nearest to 6 sigma + 0.5 (method section 6.2)."""
    half = round((6 * sigma + 0.5 - 1) / 2)
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised


def scale_intensity(image: Image, parameters: Parameters) -> None:
    """Brightness, then contrast about the mean, kept within the channel's range. Changes ``image``."""
    for channel, factor in enumerate(parameters.brightness):
        if factor is not None:
            image[channel] *= factor
    for channel, factor in enumerate(parameters.contrast):
        if factor is not None:
            x = image[channel]
            mean, low, high = x.mean(), x.min(), x.max()
            image[channel] = np.clip((x - mean) * factor + mean, low, high)


def lower_resolution(image: Image, parameters: Parameters, *, keep_first_axis: bool) -> None:
    """Down to a fraction of the size by nearest neighbour and up again linearly. Changes ``image``."""
    for channel, factor in enumerate(parameters.low_resolution):
        if factor is None:
            continue
        x = image[channel]
        small = [max(1, round(n * factor)) for n in x.shape]
        if keep_first_axis:
            small[0] = x.shape[0]
        coarse = x[np.ix_(*(nearest_indices(n, m) for n, m in zip(x.shape, small, strict=True)))]
        mode = "trilinear" if x.ndim == 3 else "bilinear"
        fine = torch.nn.functional.interpolate(
            torch.from_numpy(np.ascontiguousarray(coarse))[None, None], size=x.shape, mode=mode, align_corners=False
        )
        image[channel] = fine[0, 0].numpy()


def nearest_indices(old: int, new: int) -> NDArray[np.int64]:
    """Index of the voxel whose cell holds the centre of each of ``new`` voxels."""
    indices: NDArray[np.int64] = np.floor((np.arange(new) + 0.5) * old / new).astype(np.int64)
    return indices


def change_gamma(image: Image, gammas: PerChannel, *, inverted: bool) -> None:
    """``x ** gamma`` on the channel's range, mean and standard deviation restored. Changes ``image``."""
    sign = np.float32(-1 if inverted else 1)
    for channel, gamma in enumerate(gammas):
        if gamma is None:
            continue
        x = image[channel] * sign
        mean, deviation = x.mean(), x.std(ddof=1)
        low = x.min()
        spread = x.max() - low
        x = ((x - low) / max(spread, EPSILON)) ** gamma * spread + low
        x = (x - x.mean()) * (deviation / max(x.std(ddof=1), EPSILON)) + mean
        image[channel] = x * sign

"""Patches turned and scaled about the centre of a crop, on the device that holds it (method section 6.3).

Arrays are tensors: images float32 (C, axes...), label maps int16 (M, axes...), with 2 or 3 axes. M is 1, or 2 where the
label map of a cascade's first stage goes the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

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

from autoseg.training.augmentation_parameters import Parameters, Recipe
from autoseg.training.patches import OUTSIDE_LABEL

LABELS_AT_ONCE = 4
"""Indicators that are sampled together: faster than one by one, while those of a hundred classes would take gigabytes."""


def turn(parameters: Parameters, recipe: Recipe, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate and scale about the centre, or just cut the centre out where there is nothing to turn.

    ``image`` (C, crop...) and ``labels`` (M, crop...) become (C, patch...) and (M, patch...). Voxels from outside the crop
    are 0 in images and -1 in label maps.
    """
    if parameters.angles is None and parameters.scale is None:
        where = (slice(None), *centre(labels.shape[1:], recipe.patch))
        return image[where], labels[where]
    if not recipe.dummy_2d:
        grid = sampling_grid(parameters, recipe.patch, labels.shape[1:], image.device)
        return _sample_image(image, grid), torch.stack([_sample_labels(each, grid) for each in labels])
    grid = sampling_grid(parameters, recipe.patch[1:], labels.shape[2:], image.device)
    turned = _sample_image(image.flatten(0, 1), grid).reshape(*image.shape[:2], *recipe.patch[1:])
    planes = [torch.stack([_sample_labels(plane, grid) for plane in each]) for each in labels]
    return turned, torch.stack(planes)


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


def sampling_grid(
    parameters: Parameters, patch: Sequence[int], crop: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Where each patch voxel is read from, as `torch.nn.functional.grid_sample` wants it: (1, patch..., axes).

    Voxel i of the patch (size p) is read at ``R S (i - (p - 1) / 2) + (n - 1) / 2`` of the crop (size n). In torch's
    coordinates, which run from -1 to 1 between the outer borders of the outermost voxels, that is the matrix
    ``diag(1 / n) R S diag(p)`` without a shift; the last axis comes first.
    """
    matrix = rotation_matrix(parameters.angles, len(patch)) * (parameters.scale or 1.0)
    matrix = matrix * np.array(patch) / np.array(crop)[:, None]
    theta = np.concatenate([matrix[::-1, ::-1], np.zeros((len(patch), 1))], axis=1)
    affine = torch.tensor(theta[None], dtype=torch.float32).to(device)
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

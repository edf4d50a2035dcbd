"""From logits on the preprocessed grid to labels and probabilities in the axes of the source image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.placement import Placement, restore_labels, restore_probabilities
from autoseg.imaging.resampling import (
    decide_separate_axis,
    resample_argmax,
    resample_probabilities,
    resample_regions,
)
from planners import Configuration, Labels

Floats = NDArray[np.float32]


def labels_from_logits(
    logits: Floats, placement: Placement, configuration: Configuration, labels: Labels
) -> NDArray[np.integer]:
    """Label map (Z, Y, X) with internal values from logits (K, a0, a1, a2) (method section 8.2).

    One slab at a time is resampled and decided, so all classes are never held at full size.
    """
    axis = _separate_axis(placement, configuration)
    return restore_labels(_decide(logits, placement.shape_after_cropping, axis, configuration, labels), placement)


def labels_for_next_stage(
    logits: Floats, placement: Placement, following: Placement, configuration: Configuration, labels: Labels
) -> NDArray[np.integer]:
    """Label map (a0, a1, a2) with internal values on the grid of a cascade's next stage (method section 8.4).

    ``logits`` (K, a0, a1, a2) are those of ``configuration``, on the grid of ``placement``; ``following`` is the placement of
    the same case in the next stage, so both fill the same box of the image. Training and prediction share this function.
    Raises `ValueError` if the boxes differ.
    """
    if placement.box != following.box or placement.transpose_forward != following.transpose_forward:
        raise ValueError("the two stages see different parts of the image")
    own_mm = placement.resampled_spacing_mm
    axis = decide_separate_axis(own_mm, own_mm, configuration.resample_logits.separate_z)
    return _decide(logits, following.resampled_shape, axis, configuration, labels)


def _decide(
    logits: Floats, shape: tuple[int, int, int], axis: int | None, configuration: Configuration, labels: Labels
) -> NDArray[np.integer]:
    """Internal label values on a grid of ``shape`` voxels."""
    resampling = configuration.resample_logits
    if labels.region_order is None:
        return resample_argmax(logits, shape, resampling=resampling, separate_axis=axis)
    return resample_regions(
        logits, shape, labels.region_order, resampling=resampling, separate_axis=axis, overlaps=labels.overlaps
    )


def probabilities_from_logits(
    logits: Floats, placement: Placement, configuration: Configuration, labels: Labels
) -> Floats:
    """Probabilities float32 (K, Z, Y, X), all at full size; background outside the crop."""
    probabilities = resample_probabilities(
        logits,
        placement.shape_after_cropping,
        resampling=configuration.resample_logits,
        separate_axis=_separate_axis(placement, configuration),
        has_regions=labels.has_regions,
    )
    return restore_probabilities(probabilities, placement, has_regions=labels.has_regions)


def _separate_axis(placement: Placement, configuration: Configuration) -> int | None:
    return decide_separate_axis(
        placement.resampled_spacing_mm, placement.spacing_mm, configuration.resample_logits.separate_z
    )

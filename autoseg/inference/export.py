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

    Never holds all classes at full size: a slab at a time is resampled and decided.
    """
    axis = _separate_axis(placement, configuration)
    shape, resampling = placement.shape_after_cropping, configuration.resample_logits
    box: NDArray[np.integer]
    if labels.region_order is None:
        box = resample_argmax(logits, shape, resampling=resampling, separate_axis=axis)
    else:
        box = resample_regions(
            logits, shape, labels.region_order, resampling=resampling, separate_axis=axis, overlaps=labels.overlaps
        )
    return restore_labels(box, placement)


def probabilities_from_logits(
    logits: Floats, placement: Placement, configuration: Configuration, labels: Labels
) -> Floats:
    """Probabilities float32 (K, Z, Y, X): background outside the crop. As large as that says."""
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

"""Bytes that preprocessed data take on disk, and a whole case takes in main memory while it is predicted."""

from __future__ import annotations

import math

from planners.fingerprint import CaseSize, Fingerprint
from planners.geometry import resampled_shape, transpose
from planners.plan import Configuration, Plan, configuration_spacing
from planners.rules.source_axes import in_acquisition_axes

IMAGE_BYTES = 4
"""Preprocessed images are float32."""
LABEL_BYTES = 2
"""Preprocessed label maps are 16-bit integers."""
STORED_SHARE = 0.95
"""Of the bytes of images that compression leaves at most; 0.44 to 0.78 were seen (docs/decisions/0003)."""
STORED_LABEL_SHARE = 0.05
"""Of the bytes of label maps that compression leaves: they are mostly constant."""
IMAGE_COPIES = 3
"""Of the preprocessed image while it is predicted: as it was made, padded, and one on the way."""
SOURCE_COPIES = 2
"""Of the source image: as it was read, and cropped and normalised."""
LOGIT_COPIES = 2
"""Of the logits of the whole case: the sum over windows, and its mean."""


def estimate_disk(plan: Plan, fingerprint: Fingerprint) -> dict[str, int]:
    """Bytes on disk of the preprocessed training cases, for each configuration that stores its own."""
    stored = [configuration for configuration in plan.configurations if configuration.data == configuration.name]
    return {configuration.name: _disk_bytes(plan, configuration, fingerprint) for configuration in stored}


def estimate_case_memory(plan: Plan, configuration: str, fingerprint: Fingerprint) -> int:
    """Main memory in bytes that predicting the largest training case takes beside the network.

    Source image, preprocessed image, and logits of all outputs at the configuration's resolution. The size of the
    source before cropping is not known; the median share that cropping leaves stands for it.
    """
    chosen = plan.configuration(configuration)
    return max(_case_bytes(plan, chosen, case, fingerprint) for case in fingerprint.cases)


def estimate_volume_memory(configuration: Configuration, voxels: int) -> int:
    """Main memory in bytes of a preprocessed image of so many voxels and of its logits, while windows are predicted."""
    network = configuration.network
    return IMAGE_BYTES * (network.num_inputs * IMAGE_COPIES + network.num_outputs * LOGIT_COPIES + 1) * voxels


def _disk_bytes(plan: Plan, configuration: Configuration, fingerprint: Fingerprint) -> int:
    voxels = sum(_resampled_voxels(plan, configuration, case) for case in fingerprint.cases)
    voxels = voxels * fingerprint.num_training_cases // len(fingerprint.cases)
    image = len(plan.channels) * IMAGE_BYTES * STORED_SHARE
    return int(voxels * (image + LABEL_BYTES * STORED_LABEL_SHARE))


def _case_bytes(plan: Plan, configuration: Configuration, case: CaseSize, fingerprint: Fingerprint) -> int:
    source = math.prod(case.shape) / fingerprint.median_relative_size_after_cropping
    resampled = _resampled_voxels(plan, configuration, case)
    return int(IMAGE_BYTES * len(plan.channels) * SOURCE_COPIES * source) + estimate_volume_memory(
        configuration, resampled
    )


def _resampled_voxels(plan: Plan, configuration: Configuration, case: CaseSize) -> int:
    case = in_acquisition_axes(case) if plan.source_axes == "acquisition" else case
    shape = transpose(case.shape, plan.transpose_forward)
    spacing = transpose(case.spacing_mm, plan.transpose_forward)
    return math.prod(resampled_shape(shape, spacing, configuration_spacing(configuration, spacing)))

"""What a prediction needs before it starts: memory, disk, windows, time. Pure: from shapes and free memory to numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoseg.imaging.resampling import SLAB_VOXELS
from autoseg.inference.sliding_window import WindowGrid
from planners import Configuration, Document, Training, estimate_configuration_memory, with_width

GB = 1e9
FLOAT = 4
"""Bytes of images, logits and sums of windows."""
SUPPORT_ROWS = 2
"""Rows of a slab's neighbours that linear resampling reads."""
LABEL_COPIES = 4
"""Of a label map of the whole image (one byte, two from 255 classes on): decided, in the image's axes, postprocessed, written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How one configuration of a model is used for an image."""

    configuration: Configuration
    training: Training
    networks: int
    """Folds."""
    mirror_axes: int
    """Axes of the patch that are mirrored."""
    half_sums: bool = False
    """Windows are summed in half precision, for each network on its own."""
    on_cpu: bool = True


class MemberNeeds(Document):
    """What one configuration needs for an image of a preprocessed shape. Bytes of main memory, where the device is a CPU."""

    windows: int
    passes: int
    """Of networks: windows times folds times mirror images."""
    batch_size: int
    """Windows that go through the network at once."""
    image_bytes: int
    """Preprocessed image, padded where it is smaller than a window."""
    network_bytes: int
    """Weights and maps of a batch of windows."""
    remembered_bytes: int
    """Logits of a window without contrast, computed once; 0: computed each time."""
    sums_bytes: int
    """Sums of windows that are kept in memory."""
    disk_bytes: int
    """Sums that are kept in a temporary file."""
    slab_bytes: int
    """Logits of the rows that are resampled and decided at once."""

    @property
    def memory_bytes(self) -> int:
        """Of the image and all that it takes at most, at once."""
        parts = self.image_bytes, self.network_bytes, self.remembered_bytes, self.sums_bytes, self.slab_bytes
        return sum(parts)


def member_needs(use: Use, shape: Sequence[int], available_bytes: int) -> MemberNeeds:
    """The fastest way to predict an image of ``shape`` (C, a0, a1, a2) that fits into main memory, or else the smallest.

    First all sums are kept in memory and a window without contrast is remembered; where that does not fit, one window at a time goes
    through the network; then nothing is remembered; then a part of the sums lies on disk, where they need not be computed again.
    """
    batch = use.training.batch_size
    options = [(batch, True), (1, True), (1, False)]
    for size, remembers in options if use.on_cpu else ():
        needs = _needs(use, shape, size, remembers=remembers)
        if needs.memory_bytes <= available_bytes:
            return needs
    if not use.on_cpu:
        return _needs(use, shape, batch, remembers=True)
    whole = _needs(use, shape, 1, remembers=False)
    rest = available_bytes - (whole.memory_bytes - whole.sums_bytes)
    kept = min(whole.sums_bytes, max(rest, least_sums(use)))
    return whole.model_copy(update={"sums_bytes": kept, "disk_bytes": whole.sums_bytes})


def least_sums(use: Use) -> int:
    """Bytes of the sums that one window is added to, of all networks that are summed on their own."""
    return _values_bytes(use) * (use.configuration.network.num_outputs + 1) * math.prod(use.configuration.patch_shape)


def _values_bytes(use: Use) -> int:
    """Of the sums of one class at one voxel."""
    return 2 * use.networks if use.half_sums else FLOAT


def _needs(use: Use, shape: Sequence[int], batch_size: int, *, remembers: bool) -> MemberNeeds:
    """With all sums in memory."""
    configuration, classes = use.configuration, use.configuration.network.num_outputs
    grid = WindowGrid.of(shape[1:], configuration.patch_shape)
    padded = [n + sum(sides) for n, sides in zip(grid.shape, grid.padding, strict=True)]
    voxels, plane = math.prod(padded), math.prod(padded[1:])
    estimate = estimate_configuration_memory(
        configuration,
        dtype=use.training.precision,
        window_batch_size=batch_size,
        network=with_width(configuration.network, use.training.base_features),
    )
    weights = estimate.num_parameters * FLOAT * (use.networks - 1)
    rows = max(1, SLAB_VOXELS // plane) + SUPPORT_ROWS
    deep = min(padded[0], grid.patch[0] + rows)
    remembered = math.prod(configuration.patch_shape) * classes * FLOAT * (use.networks if use.half_sums else 1)
    sets = use.networks if use.half_sums else 1
    return MemberNeeds(
        windows=grid.number,
        passes=grid.number * use.networks * 2**use.mirror_axes,
        batch_size=batch_size,
        image_bytes=FLOAT * shape[0] * (math.prod(shape[1:]) + (voxels if tuple(padded) != grid.shape else 0)),
        network_bytes=(estimate.inference_bytes + weights) if use.on_cpu else 0,
        remembered_bytes=remembered if remembers and use.on_cpu else 0,
        sums_bytes=(_values_bytes(use) * (classes + 1) * deep * plane) if use.on_cpu else 0,
        disk_bytes=0,
        slab_bytes=FLOAT * classes * min(rows, padded[0]) * plane * (1 + sets),
    )

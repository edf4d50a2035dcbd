"""What a prediction needs before it starts: memory, disk, windows, time. Pure: from shapes and free memory to numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoseg.imaging.resampling import slab_thickness
from autoseg.inference.sliding_window import STEP, WindowGrid
from planners import Configuration, Document, Training, estimate_configuration_memory, with_width

GB = 1e9
FLOAT = 4
"""Bytes of a number in images, logits and sums of windows."""
SUPPORT_ROWS = 2
"""Rows of a slab's neighbours that linear resampling reads."""
LABEL_COPIES = 4
"""Copies of a label map of the whole image (one byte a voxel, two from 255 classes on): decided, in the image's axes, postprocessed, written."""
RANKED_COPIES = 2
"""Copies of a label map that RankSEG adds: its own, and the mask of voxels that it is not sure of."""
MOST_RANKED = 10**9
"""Bytes of the probabilities of these voxels that are kept in memory; they are read a few times, which a file can bear."""
COMPONENT_BYTES = 24
"""Bytes that each voxel takes while components are labelled and counted, in 64 bits."""
READ_COPIES = 3
"""Copies of an image while its file is read: as stored, scaled, and in single precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How one configuration of a model is used for an image."""

    configuration: Configuration
    training: Training
    networks: int
    """Number of networks: one for each fold."""
    mirror_axes: int
    """Number of axes of the patch that are mirrored."""
    step: float = STEP
    """Largest distance of windows, as a share of the patch."""
    half_sums: bool = False
    """Whether windows are summed in half precision, for each network on its own."""
    on_cpu: bool = True


class MemberNeeds(Document):
    """What one configuration needs for an image of a preprocessed shape. Bytes of main memory, where the device is a CPU."""

    windows: int
    passes: int
    """Runs of a network: windows times folds times mirror images."""
    batch_size: int
    """Windows that go through the network at once."""
    padded_bytes: int
    """Size of the padded copy of an image that is smaller than a window."""
    network_bytes: int
    """Size of the feature maps of a batch of windows."""
    remembered_bytes: int
    """Size of the logits of a window without contrast, which are computed once; 0: computed each time."""
    sums_bytes: int
    """Size of the sums of windows that are kept in memory."""
    disk_bytes: int
    """Size of the sums that are kept in a temporary file."""
    slab_bytes: int
    """Size of the logits of the rows that are resampled and decided at once."""

    @property
    def memory_bytes(self) -> int:
        """Memory that is taken at most, beside the preprocessed image and the networks."""
        parts = self.padded_bytes, self.network_bytes, self.remembered_bytes, self.sums_bytes, self.slab_bytes
        return sum(parts)


def member_needs(use: Use, shape: Sequence[int], available_bytes: int) -> MemberNeeds:
    """The fastest way to predict an image of ``shape`` (C, a0, a1, a2) that fits into main memory, or else the smallest.

    First all sums are kept in memory and a window without contrast is remembered; where that does not fit, one window at a time goes
    through the network; then nothing is remembered; then a part of the sums lies on disk. The image itself is in memory already.
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
    """Bytes of the sums of one class at one voxel."""
    return 2 * use.networks if use.half_sums else FLOAT


def _needs(use: Use, shape: Sequence[int], batch_size: int, *, remembers: bool) -> MemberNeeds:
    """What is needed with all sums in memory."""
    configuration, classes = use.configuration, use.configuration.network.num_outputs
    grid = WindowGrid.of(shape[1:], configuration.patch_shape, step=use.step)
    padded = [n + sum(sides) for n, sides in zip(grid.shape, grid.padding, strict=True)]
    voxels, plane = math.prod(padded), math.prod(padded[1:])
    estimate = estimate_configuration_memory(
        configuration,
        dtype=use.training.precision,
        window_batch_size=batch_size,
        network=with_width(configuration.network, use.training.base_features),
    )
    rows = slab_thickness(padded) + SUPPORT_ROWS
    deep = min(padded[0], grid.patch[0] + rows)
    remembered = math.prod(configuration.patch_shape) * classes * FLOAT * (use.networks if use.half_sums else 1)
    sets = use.networks if use.half_sums else 1
    return MemberNeeds(
        windows=grid.number,
        passes=grid.number * use.networks * 2**use.mirror_axes,
        batch_size=batch_size,
        padded_bytes=FLOAT * shape[0] * voxels if tuple(padded) != grid.shape else 0,
        network_bytes=estimate.inference_bytes - estimate.num_parameters * FLOAT if use.on_cpu else 0,
        remembered_bytes=remembered if remembers and use.on_cpu else 0,
        sums_bytes=(_values_bytes(use) * (classes + 1) * deep * plane) if use.on_cpu else 0,
        disk_bytes=0,
        slab_bytes=FLOAT * classes * min(rows, padded[0]) * plane * (1 + sets),
    )


class CaseNeeds(Document):
    """What a model needs for one image, in bytes, the process as it is now included."""

    memory_bytes: int
    """Largest use of main memory."""
    disk_bytes: int
    """Largest size of temporary files; those of probabilities are compressed, and take less."""
    windows: int
    passes: dict[str, int]
    """Runs of networks by configuration."""
    ranked_bytes: int = 0
    """Size of what is kept in memory of the voxels that RankSEG is not sure of; more of them go to a file."""
    unsure_bytes: int = 0
    """Size of that file, if networks are sure of no voxel at all."""
    reads_ahead: bool
    """Whether there is memory to read the next image meanwhile."""


def case_needs(
    chains: Sequence[Sequence[Use]],
    shapes: Sequence[Sequence[Sequence[int]]],
    *,
    channels: int,
    voxels: int,
    resident_bytes: int,
    available_bytes: int,
    postprocesses: bool,
    kept_classes: int = 0,
    ranked_classes: int = 0,
) -> CaseNeeds:
    """Needs of an image of so many ``channels`` and ``voxels``, of which probabilities of ``kept_classes`` are written, and whose
    label map RankSEG decides from those of ``ranked_classes``.

    ``chains``: for each configuration of the model its stages, all but cascades have one; ``shapes`` the preprocessed ones
    (C, a0, a1, a2) of these. ``resident_bytes``: of the process, networks loaded; ``available_bytes``: what it may still take.
    """
    source = FLOAT * channels * voxels
    images = sum(FLOAT * math.prod(shape) for chain in shapes for shape in chain)
    largest = max(FLOAT * math.prod(shape[1:]) for chain in shapes for shape in chain)
    preparing = max(READ_COPIES * source, 2 * source + voxels + images + largest)
    labels = label_bytes(voxels, postprocesses=postprocesses)
    rest = available_bytes - labels - images
    needs = [
        [member_needs(use, shape, rest // len(chains)) for use, shape in zip(chain, of, strict=True)]
        for chain, of in zip(chains, shapes, strict=True)
    ]
    last = sum(chain[-1].memory_bytes for chain in needs)
    first = max((each.memory_bytes for chain in needs for each in chain[:-1]), default=0)
    computing = images + labels + max(last, first)
    unsure = FLOAT * ranked_classes * voxels
    if unsure:
        computing += RANKED_COPIES * voxels
    ranked = max(0, min(unsure, MOST_RANKED, available_bytes - computing))
    computing += ranked
    reads_ahead = computing + preparing <= available_bytes
    return CaseNeeds(
        memory_bytes=resident_bytes + (computing + preparing if reads_ahead else max(computing, preparing)),
        disk_bytes=sum(each.disk_bytes for chain in needs for each in chain) + FLOAT * kept_classes * voxels,
        windows=sum(each.windows for chain in needs for each in chain),
        passes={
            use.configuration.name: each.passes
            for chain, of in zip(chains, needs, strict=True)
            for use, each in zip(chain, of, strict=True)
        },
        ranked_bytes=ranked,
        unsure_bytes=unsure - ranked,
        reads_ahead=reads_ahead,
    )


def label_bytes(voxels: int, *, postprocesses: bool) -> int:
    """Bytes of label maps of an image, and of the components that postprocessing looks for."""
    return voxels * (LABEL_COPIES + (COMPONENT_BYTES if postprocesses else 0))

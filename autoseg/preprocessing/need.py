"""How much memory the largest cases take while they are read and prepared, so that no more are at work than fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from autoseg.data.dataset import Case
from autoseg.imaging.image import Geometry
from autoseg.imaging.orientation import canonical_geometry
from autoseg.imaging.readers import read_header, split_part
from autoseg.issues import AutosegError
from autoseg.preprocessing.source_axes import source_orientation
from planners import Configuration, Plan, configuration_spacing, resampled_shape, transpose

LOOKED_AT = 4
"""Cases with the largest files whose headers are read: for all of a large dataset that would take minutes."""
BYTES_PER_VOXEL = 15
"""Of each channel, before and after resampling: up to 12 were measured (`benchmarks/preprocess.py --growth`)."""


def largest_need(
    cases: Sequence[Case], *, plan: Plan | None = None, configurations: Sequence[Configuration] = ()
) -> int:
    """Bytes that reading the largest of ``cases`` takes and, with ``plan``, preparing it for ``configurations``.

    The largest are told by the sizes of their files. Files that cannot be read count as nothing here; whoever reads
    their voxels reports them.
    """
    largest = sorted(cases, key=_file_bytes, reverse=True)[:LOOKED_AT]
    return max((_need(case, plan, configurations) for case in largest), default=0)


def _file_bytes(case: Case) -> int:
    return sum(_size(split_part(Path(path))[0]) for path in case.images)


def _size(path: Path) -> int:
    try:
        return sum(_size(file) for file in path.iterdir()) if path.is_dir() else path.stat().st_size
    except OSError:
        return 0


def _need(case: Case, plan: Plan | None, configurations: Sequence[Configuration]) -> int:
    try:
        headers = [read_header(Path(path)) for path in case.images]
    except AutosegError:
        return 0
    channels = sum(header.num_channels for header in headers)
    geometry = headers[0].geometry
    voxels = math.prod(geometry.shape)
    if plan is not None:
        voxels += max((_prepared_voxels(geometry, plan, configuration) for configuration in configurations), default=0)
    return BYTES_PER_VOXEL * channels * voxels


def _prepared_voxels(geometry: Geometry, plan: Plan, configuration: Configuration) -> int:
    """After resampling of the whole image; cropping can only make it less."""
    turned = canonical_geometry(geometry, source_orientation(geometry, plan))
    spacing_mm = transpose(turned.spacing_mm, plan.transpose_forward)
    target_mm = configuration_spacing(configuration, spacing_mm)
    return math.prod(resampled_shape(transpose(turned.shape, plan.transpose_forward), spacing_mm, target_mm))

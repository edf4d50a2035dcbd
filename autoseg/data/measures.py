"""What the check keeps of a case's voxels, so that cases can be compared with each other afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from autoseg.data.label_fit import Evidence, gather
from autoseg.data.thumbnails import Thumbnail, make_thumbnail
from autoseg.imaging.image import Image
from autoseg.imaging.orientation import canonical_orientation, to_canonical
from autoseg.storage.cache import KEPT
from planners import Labels

QUANTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseMeasures:
    """One case: its voxels in a few numbers, and small."""

    case_id: str
    image_path: str
    label_path: str | None
    is_training: bool
    group: str | None
    channel_digests: tuple[bytes, ...]
    """Hash of the voxels of each channel in canonical axes: equal for equal images, however they are stored."""
    label_digest: bytes | None
    """The same of the label map; None where it is empty or missing."""
    num_foreground: int
    quantiles: Annotated[NDArray[np.float64], KEPT]
    """(C, 7) `QUANTILES` of the non-zero voxels of each channel; of all voxels where they all are zero."""
    minima: Annotated[NDArray[np.float64], KEPT]
    """(C,) of all voxels."""
    zero_share: Annotated[NDArray[np.float64], KEPT]
    """(C,) of voxels that are zero."""
    thumbnail: Thumbnail
    evidence: Evidence | None
    """For the model of `label_fit`; None where nothing is labelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFiles:
    """Where the voxels came from."""

    case_id: str
    image_path: str
    label_path: str | None
    is_training: bool
    group: str | None


def measure_case(
    files: CaseFiles,
    volume: Image,
    array: NDArray[np.integer[Any]] | None,
    *,
    file_values: Sequence[int],
    labels: Labels,
) -> CaseMeasures:
    """Measures of an image with finite voxels and its label map ``array`` (Z, Y, X), in the axes of the image."""
    thumbnail = make_thumbnail(volume, array, file_values)
    orientation = canonical_orientation(volume.geometry)
    foreground = 0 if array is None else int(np.count_nonzero(array != file_values[0]))
    has_classes = thumbnail.labels is not None and bool(thumbnail.labels.any())
    return CaseMeasures(
        case_id=files.case_id,
        image_path=files.image_path,
        label_path=files.label_path,
        is_training=files.is_training,
        group=files.group,
        channel_digests=tuple(_digest(channel) for channel in to_canonical(volume.array, orientation)),
        label_digest=_digest(to_canonical(array, orientation).astype(np.int64))
        if array is not None and foreground
        else None,
        num_foreground=foreground,
        quantiles=np.stack([_quantiles(channel) for channel in volume.array]),
        minima=volume.array.min(axis=(1, 2, 3)).astype(np.float64),
        zero_share=(volume.array == 0).mean(axis=(1, 2, 3)),
        thumbnail=thumbnail,
        evidence=gather(thumbnail, len(labels.values)) if has_classes else None,
    )


def _digest(array: NDArray[Any]) -> bytes:
    known = blake2b(repr(array.shape).encode(), digest_size=16)
    known.update(np.ascontiguousarray(array + 0).data.cast("B"))  # adding 0 makes minus zero zero
    return known.digest()


def _quantiles(channel: NDArray[np.float32]) -> NDArray[np.float64]:
    inside = channel[channel != 0]
    inside = inside if inside.size else channel.ravel()
    # Of very large images every n-th voxel: comparisons need no more than three digits.
    picked = inside[:: max(1, inside.size // 2**20)]
    return np.percentile(picked, QUANTILES).astype(np.float64)

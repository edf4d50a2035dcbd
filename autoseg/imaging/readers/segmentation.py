"""Named masks, which may overlap, on a grid that may be a part of the image's: what DICOM SEG and ``.seg.nrrd`` files hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.image import Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentNames:
    """What a file says of its segments, without their voxels."""

    by_number: Mapping[int, str]
    may_overlap: bool
    """False where the file holds one label map, in which numbers are values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One class of a file of segments."""

    number: int
    name: str
    slices: tuple[int, ...]
    """Slice of the grid that each frame of this segment lies in; the segment is empty elsewhere."""
    frames: NDArray[np.uint8]
    """(frames, bytes): a frame's voxels, row by row, eight to a byte: hundreds of organs would not fit otherwise."""
    geometry: Geometry

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which voxels (Z, Y, X) belong to the segment."""
        mask = np.zeros(self.geometry.shape, bool)
        for index, frame in self.planes():
            mask[index] |= frame
        return mask

    def planes(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Slice index and mask (Y, X) of each frame."""
        _, rows, columns = self.geometry.shape
        for index, frame in zip(self.slices, self.frames, strict=True):
            yield index, np.unpackbits(frame, count=rows * columns).reshape(rows, columns).astype(bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """What a file of segments holds; ``geometry`` may be a part of the grid of the image."""

    segments: tuple[Segment, ...]
    """In the order of their numbers."""
    geometry: Geometry
    notes: tuple[str, ...] = ()

    def overlaps(self) -> dict[tuple[int, int], int]:
        """Voxels that two segments share, by their numbers, the smaller one first; pairs without any are left out."""
        shared: dict[tuple[int, int], int] = {}
        planes: dict[int, list[tuple[int, NDArray[np.bool_]]]] = {}
        for segment in self.segments:
            for index, frame in segment.planes():
                for other, earlier in planes.get(index, []):
                    count = int((frame & earlier).sum())
                    if count and other != segment.number:
                        shared[other, segment.number] = shared.get((other, segment.number), 0) + count
                planes.setdefault(index, []).append((segment.number, frame))
        return shared

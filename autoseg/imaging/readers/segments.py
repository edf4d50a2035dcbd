"""Files of segments, DICOM SEG or ``.seg.nrrd``: all masks with their names, one of them, or one label map."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from autoseg.imaging.image import LabelMap, Segmentation, SegmentNames
from autoseg.imaging.readers.dicom import PART_MARK, split_part
from autoseg.imaging.readers.dicom_seg import (
    dicom_grid,
    dicom_segment_names,
    dicom_segments,
    is_dicom_segmentation,
)
from autoseg.imaging.readers.header import ImageHeader, reader_error
from autoseg.imaging.readers.nrrd import (
    NRRD,
    has_segments,
    nrrd_header,
    nrrd_segment_names,
    nrrd_segments,
    nrrd_voxels,
)
from autoseg.imaging.readers.payload import require_memory
from autoseg.imaging.readers.registry import image_ending
from autoseg.issues import AutosegError


def is_segmentation(path: Path | str) -> bool:
    """Whether ``path`` is a DICOM SEG file or an NRRD file with segments, or names a segment of one (``FILE#NUMBER``)."""
    file, _ = split_part(Path(path))
    return file.is_file() and (has_segments(file) if _is_nrrd(file) else is_dicom_segmentation(file))


def read_segments(path: Path | str) -> Segmentation:
    """All segments of a DICOM SEG or NRRD file, or the one that ``FILE#NUMBER`` names.

    Fractional segments count from half of the largest fraction on. Raises `AutosegError` when the file is damaged, holds
    no segments, or has no such segment.
    """
    file, part = split_part(Path(path))
    found = nrrd_segments(file) if _is_nrrd(file) else dicom_segments(file)
    if part is None:
        return found
    wanted = tuple(segment for segment in found.segments if str(segment.number) == part)
    if not wanted:
        raise reader_error(
            file,
            code="reader.no_such_segment",
            message=f"it has no segment {part}",
            fix=f"use one of {_listed(file, found)}",
        )
    return replace(found, segments=wanted)


def list_segments(file: Path | str) -> SegmentNames:
    """Names and numbers of the segments of a DICOM SEG or NRRD file; its voxels are not read."""
    file = Path(file)
    return nrrd_segment_names(file) if _is_nrrd(file) else dicom_segment_names(file)


def segments_header(path: Path) -> ImageHeader:
    """The header of a file of segments as that of one label map."""
    file, _ = split_part(path)
    header = nrrd_header(file) if _is_nrrd(file) else dicom_grid(file)
    return replace(header, num_channels=1, is_integer=True, may_be_part=True)


def segments_label_map(path: Path) -> LabelMap:
    """Segment numbers (Z, Y, X) of a file of segments; of ``FILE#NUMBER`` a mask of 0 and 1.

    Raises `AutosegError` when segments overlap: one number a voxel cannot say that.
    """
    file, part = split_part(path)
    if part is None and _is_nrrd(file) and not list_segments(file).may_overlap:  # values without a name are kept, too
        return LabelMap(array=nrrd_voxels(file)[0], geometry=nrrd_header(file).geometry, may_be_part=True)
    found = read_segments(path)
    require_memory(path, math.prod(found.geometry.shape) * 2)
    array = np.zeros(found.geometry.shape, np.uint16)
    for segment in found.segments:
        for index, frame in segment.planes():
            if array[index][frame].any():
                raise _overlapping(file, found)
            array[index][frame] = 1 if part is not None else segment.number
    return LabelMap(array=array, geometry=found.geometry, may_be_part=True)


def _is_nrrd(file: Path) -> bool:
    return image_ending(file) in NRRD.endings


def _overlapping(file: Path, found: Segmentation) -> AutosegError:
    names = {segment.number: segment.name for segment in found.segments}
    pairs = [f"{a} ({names[a]}) and {b} ({names[b]}) share {n} voxels" for (a, b), n in found.overlaps().items()]
    return reader_error(
        file,
        code="reader.overlapping_segments",
        message=f"its segments overlap ({', '.join(pairs[:4]) or 'a segment has two frames in one slice'}), which one label map "
        "cannot hold",
        fix=f"read each as a mask of its own: {_listed(file, found)}",
    )


def _listed(file: Path, found: Segmentation) -> str:
    return ", ".join(f"{file.name}{PART_MARK}{segment.number} ({segment.name})" for segment in found.segments[:10])

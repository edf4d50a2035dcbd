"""DICOM SEG: which frame is which slice of which segment."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID, SegmentationStorage

from autoseg.imaging.image import Geometry, Segment, Segmentation, SegmentNames
from autoseg.imaging.readers.dicom import is_dicom, number, read_tags, split_part, tags_of, vector
from autoseg.imaging.readers.header import (
    ImageHeader,
    damaged,
    make_geometry,
    reader_error,
    require_memory,
    unsupported,
)
from autoseg.issues import Issue

LABEL_MAP_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")
"""Label Map Segmentation Storage, younger than some releases of pydicom."""
OFF_GRID = 0.05
"""Share of a slice step by which a frame may miss its place."""
STEP_DIGITS = 3
"""Frames whose places agree to a micrometre are of one slice."""
MOST_SLICES = 10_000


def is_dicom_segmentation(file: Path) -> bool:
    """Whether ``file`` is a DICOM SEG file."""
    return is_dicom(file) and _kind(read_tags(file, ["SOPClassUID"])) is not None


def dicom_segments(file: Path) -> Segmentation:
    """All segments of a DICOM SEG file, those without a voxel among them.

    Fractional segments count from half of the largest fraction on. Raises `AutosegError` when the file is damaged or no
    DICOM SEG.
    """
    tags = read_tags(file, pixels=True)
    with tags_of(file):
        geometry, slices = _grid(file, tags)
        numbers, frames = _frames(file, tags, slices)
        names = _names(file, tags)
    segments = []
    for segment_number in sorted(names):
        own = np.flatnonzero(numbers[:, 0] == segment_number)
        segments.append(
            Segment(
                number=segment_number,
                name=names[segment_number],
                slices=tuple(int(z) for z in numbers[own, 1]),
                frames=frames[own],
                geometry=geometry,
            )
        )
    is_fractional = tags.get("SegmentationType") == "FRACTIONAL"
    note = Issue(
        code="reader.fractional_segments",
        severity="note",
        where=str(file),
        message="its fractional segments are thresholded at half of the largest fraction",
    )
    return Segmentation(segments=tuple(segments), geometry=geometry, notes=(note,) if is_fractional else ())


def dicom_segment_names(file: Path) -> SegmentNames:
    """Names of the segments of a DICOM SEG file by their numbers. Raises `AutosegError` when the file is damaged."""
    tags = read_tags(file)
    with tags_of(file):
        return SegmentNames(by_number=dict(sorted(_names(file, tags).items())), may_overlap=not _is_label_map(tags))


def referenced_series(path: Path | str) -> tuple[str, ...]:
    """SeriesInstanceUIDs of the images that a DICOM SEG file was drawn on; none where it, or another file, names none."""
    file, _ = split_part(Path(path))
    if not file.is_file() or not is_dicom(file):
        return ()
    tags = read_tags(file, ["ReferencedSeriesSequence"])
    with tags_of(file):
        return tuple(str(item.get("SeriesInstanceUID") or "") for item in tags.get("ReferencedSeriesSequence") or ())


def dicom_grid(file: Path) -> ImageHeader:
    """The grid that holds all frames of a DICOM SEG file."""
    tags = read_tags(file)
    with tags_of(file):
        geometry, _ = _grid(file, tags)
    return ImageHeader(geometry=geometry, num_channels=1, pixel_type="segments", is_integer=True)


def _kind(tags: Any) -> Any:
    uid = tags.get("SOPClassUID")
    return uid if uid in (SegmentationStorage, LABEL_MAP_STORAGE) else None


def _is_label_map(tags: Any) -> bool:
    return bool(_kind(tags) == LABEL_MAP_STORAGE or tags.get("SegmentationType") == "LABELMAP")


def _names(file: Path, tags: Any) -> dict[int, str]:
    names = {}
    for item in tags.get("SegmentSequence") or ():
        index = int(number(item, "SegmentNumber", -1))
        if index > 0 or (index == 0 and _kind(tags) != LABEL_MAP_STORAGE):
            names[index] = str(item.get("SegmentLabel") or f"segment_{index}").strip()
    if not names or not 0 < min(names) <= max(names) < 2**16:
        raise damaged(file, message=f"its segments have the numbers {sorted(names)}, expected positive numbers")
    return names


# --- the grid ---


def _grid(file: Path, tags: Any) -> tuple[Geometry, NDArray[np.int64]]:
    """The grid that holds all frames, and the slice in which each lies."""
    if _kind(tags) is None:
        kind = getattr(tags.get("SOPClassUID"), "name", "unknown")
        raise reader_error(
            file, code="reader.no_segments", message=f"its SOP class is {kind}", fix="use a DICOM SEG file"
        )
    frames = list(tags.get("PerFrameFunctionalGroupsSequence") or ())
    if not frames or len(frames) != int(number(tags, "NumberOfFrames", 1)):
        raise damaged(file, message=f"it describes {len(frames)} of {tags.get('NumberOfFrames')} frames")
    shared = (tags.get("SharedFunctionalGroupsSequence") or [{}])[0]

    def values(frame: Any, group: str, name: str, size: int) -> NDArray[np.float64]:
        for owner in (frame, shared):
            items = owner.get(group)
            if items and items[0].get(name) not in (None, ""):
                return vector(items[0], name, size)
        raise damaged(file, message=f"a frame has no {name}")

    planes = np.array([values(frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6) for frame in frames])
    spacings = np.array([values(frame, "PixelMeasuresSequence", "PixelSpacing", 2) for frame in frames])
    if not np.allclose(planes, planes[0], atol=1e-4) or not np.allclose(spacings, spacings[0], rtol=1e-4):
        raise damaged(file, message="its frames differ in orientation or pixel spacing")
    positions = np.array([values(frame, "PlanePositionSequence", "ImagePositionPatient", 3) for frame in frames])
    across, down = planes[0].reshape(2, 3)
    normal = np.cross(across, down)
    slices, step = _slices(file, positions @ normal, frames[0], shared)
    rows, columns = int(number(tags, "Rows", 0)), int(number(tags, "Columns", 0))
    geometry, _ = make_geometry(
        file,
        shape=(columns, rows, int(slices.max()) + 1),
        spacing_mm=(float(spacings[0, 1]), float(spacings[0, 0]), step),
        origin_mm=tuple(positions[int(slices.argmin())]),
        direction=np.stack([across, down, normal], axis=1),
        has_orientation=True,
    )
    return geometry, slices


def _slices(file: Path, along: NDArray[np.float64], frame: Any, shared: Any) -> tuple[NDArray[np.int64], float]:
    """Slice index of each frame from its distance along the normal in mm, and the step between slices.

    Frames may leave slices out, so the smallest distance of two frames may be several steps: what the file states is
    taken where the frames fit it. The thickness of slices is no step, and counts for a single slice only.
    """
    gaps = np.diff(np.unique(np.round(along, STEP_DIGITS)))
    if not len(gaps):
        step = _stated(frame, shared, "SpacingBetweenSlices") or _stated(frame, shared, "SliceThickness") or 1.0
        return np.zeros(len(along), np.int64), step
    for step in (_stated(frame, shared, "SpacingBetweenSlices"), float(gaps.min())):
        index = (along - along.min()) / step if step else np.full(1, np.inf)
        if index.max() < MOST_SLICES and np.abs(index - np.rint(index)).max() <= OFF_GRID:
            return np.rint(index).astype(np.int64), step
    raise damaged(
        file,
        message=f"its frames are not evenly spaced along their normal ({np.round(gaps[:5], STEP_DIGITS).tolist()} mm ...)",
    )


def _stated(frame: Any, shared: Any, name: str) -> float:
    """Slice measure in mm; 0 where neither the frame nor the frames together state it."""
    for owner in (frame, shared):
        items = owner.get("PixelMeasuresSequence")
        if items and items[0].get(name) not in (None, ""):
            return abs(number(items[0], name, 0.0))
    return 0.0


# --- the voxels ---


def _frames(file: Path, tags: Any, slices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(n, 2) segment number and slice of each frame, and the frames with eight voxels to a byte."""
    size = int(number(tags, "Rows", 0)) * int(number(tags, "Columns", 0))
    bits = int(number(tags, "BitsAllocated", 1))
    raw = _pixels(file, tags, size * len(slices), bits)
    if _is_label_map(tags):
        return _from_labels(raw.reshape(len(slices), size), slices)
    half = number(tags, "MaximumFractionalValue", 1.0) / 2 if tags.get("SegmentationType") == "FRACTIONAL" else 0.5
    owners = [_owner(file, frame, tags) for frame in tags.PerFrameFunctionalGroupsSequence]
    packed = np.empty((len(slices), math.ceil(size / 8)), np.uint8)
    for k in range(len(slices)):
        if bits == 1:  # frames follow one another without padding, the lowest bit first
            first = k * size
            part = np.unpackbits(raw[first // 8 : math.ceil((first + size) / 8)], bitorder="little")
            packed[k] = np.packbits(part[first % 8 : first % 8 + size])
        else:
            packed[k] = np.packbits(raw[k * size : (k + 1) * size] >= half)
    return np.stack([np.array(owners, np.int64), slices], axis=1), packed


def _from_labels(labels: NDArray[Any], slices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    places, packed = [], []
    for frame, index in zip(labels, slices, strict=True):
        for value in np.unique(frame[frame != 0]):
            places.append((int(value), int(index)))
            packed.append(np.packbits(frame == value))
    empty = np.empty((0, math.ceil(labels.shape[1] / 8)), np.uint8)
    return np.array(places, np.int64).reshape(-1, 2), np.stack(packed) if packed else empty


def _owner(file: Path, frame: Any, tags: Any) -> int:
    for owner in (frame, (tags.get("SharedFunctionalGroupsSequence") or [{}])[0]):
        items = owner.get("SegmentIdentificationSequence")
        if items:
            return int(vector(items[0], "ReferencedSegmentNumber", 1)[0])
    raise damaged(file, message="a frame does not name its segment")


def _pixels(file: Path, tags: Any, count: int, bits: int) -> NDArray[Any]:
    """All numbers of all frames in a row; for ``bits`` 1 the bytes that hold them."""
    if bits not in (1, 8, 16):
        raise damaged(file, message=f"it has {bits} bits per voxel, expected 1, 8 or 16")
    if tags.file_meta.TransferSyntaxUID.is_encapsulated:
        return _decompressed(file, tags, count, bits)
    raw = np.frombuffer(tags.get("PixelData") or b"", np.uint8)
    if len(raw) < math.ceil(count * bits / 8):
        raise damaged(
            file,
            code="reader.truncated",
            message=f"the header declares {math.ceil(count * bits / 8)} bytes of voxels, but the file has {len(raw)}",
        )
    if bits == 1:
        return raw
    kind = np.dtype(np.uint8 if bits == 8 else np.uint16).newbyteorder("<" if tags.original_encoding[1] else ">")
    return np.frombuffer(tags.PixelData, kind, count)


def _decompressed(file: Path, tags: Any, count: int, bits: int) -> NDArray[Any]:
    require_memory(file, count * max(1, bits // 8) * 2)
    try:
        values = tags.pixel_array
    except Exception as error:  # each decoder has its own errors
        packing = tags.file_meta.TransferSyntaxUID.name
        raise unsupported(
            file,
            message=f"its transfer syntax {packing} could not be decoded ({str(error)[:200]})",
            fix="store it uncompressed",
        ) from None
    if values.size != count:
        raise damaged(
            file, code="reader.corrupt", message=f"the header declares {count} voxels, but {values.size} were read"
        )
    return np.packbits(values.ravel(), bitorder="little") if bits == 1 else values.ravel()

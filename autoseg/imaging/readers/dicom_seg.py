"""DICOM SEG and RTSTRUCT: which frame is which slice of which segment, and which voxels lie inside contours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import RTStructureSetStorage, SegmentationStorage
from skimage.draw import polygon

from autoseg.imaging.image import Geometry, Segment, Segmentation, SegmentNames
from autoseg.imaging.readers.dicom import (
    PART_MARK,
    decoded,
    dicom_candidates,
    frame_owners,
    is_dicom,
    kind_of,
    number,
    owner_of,
    read_tags,
    series_uid,
    split_part,
    tags_of,
    vector,
)
from autoseg.imaging.readers.dicom_series import LABEL_MAP_STORAGE, ORIENTATION, PLACE_TAGS, POSITION, read_series
from autoseg.imaging.readers.header import ImageHeader, damaged, make_geometry, reader_error, require_memory
from autoseg.imaging.readers.registry import format_of, image_ending, is_debris, is_picture
from autoseg.issues import Issue
from autoseg.wording import shorten

OFF_GRID = 0.05
"""Share of a slice step by which a frame may miss its place."""
STEP_DIGITS = 3
"""Frames whose places agree to a micrometre are of one slice."""
MOST_SLICES = 10_000
OFF_PLANE = 0.5
"""Share of a slice step by which a contour may miss the slice that it is taken to lie in."""


def is_dicom_segmentation(file: Path) -> bool:
    """Whether ``file`` is a DICOM SEG or RTSTRUCT file."""
    return is_dicom(file) and _kind(read_tags(file, ["SOPClassUID"])) is not None


def is_structure_set(file: Path) -> bool:
    """Whether ``file`` is an RTSTRUCT file."""
    return is_dicom(file) and _kind(read_tags(file, ["SOPClassUID"])) == RTStructureSetStorage


def _kind(tags: Any) -> Any:
    uid = tags.get("SOPClassUID")
    return uid if uid in (SegmentationStorage, LABEL_MAP_STORAGE, RTStructureSetStorage) else None


def dicom_segments(file: Path) -> Segmentation:
    """All segments of a DICOM SEG or RTSTRUCT file, those without a voxel among them.

    Fractional segments count from half of the largest fraction on. Of an RTSTRUCT the grid is that of the series that it
    was drawn on, which lies in its folder or beside it. Raises `AutosegError` when the file is damaged or none of these.
    """
    tags = read_tags(file)
    with tags_of(file):
        geometry, slices = _grid(file, tags)
        names = _names(file, tags)
        if _kind(tags) == RTStructureSetStorage:
            owners, frames = _drawn(file, tags, geometry)
        else:
            owners, frames = _frames(file, tags, slices)
    segments = []
    for segment_number in sorted(names):
        own = np.flatnonzero(owners[:, 0] == segment_number)
        segments.append(
            Segment(
                number=segment_number,
                name=names[segment_number],
                slices=tuple(int(z) for z in owners[own, 1]),
                frames=frames[own],
                geometry=geometry,
            )
        )
    note = Issue(
        code="reader.fractional_segments",
        severity="note",
        where=str(file),
        message="its fractional segments are thresholded at half of the largest fraction",
    )
    is_fractional = tags.get("SegmentationType") == "FRACTIONAL"
    return Segmentation(segments=tuple(segments), geometry=geometry, notes=(note,) if is_fractional else ())


def dicom_segment_names(file: Path) -> SegmentNames:
    """Names of the segments of a file by their numbers. Raises `AutosegError` when the file is damaged."""
    tags = read_tags(file)
    with tags_of(file):
        return SegmentNames(by_number=dict(sorted(_names(file, tags).items())), may_overlap=not _is_label_map(tags))


def referenced_series(path: Path | str) -> tuple[str, ...]:
    """SeriesInstanceUIDs of the images that a DICOM SEG or RTSTRUCT file was drawn on; none where it, or another file, names none."""
    file, _ = split_part(Path(path))
    if not file.is_file() or not is_dicom(file):
        return ()
    tags = read_tags(file, ["ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"])
    with tags_of(file):
        studies = [
            study
            for frame in tags.get("ReferencedFrameOfReferenceSequence") or ()
            for study in frame.get("RTReferencedStudySequence") or ()
        ]
        items = [
            *(tags.get("ReferencedSeriesSequence") or ()),
            *(item for study in studies for item in study.get("RTReferencedSeriesSequence") or ()),
        ]
        return tuple(str(item.get("SeriesInstanceUID") or "") for item in items)


def dicom_grid(file: Path) -> ImageHeader:
    """The grid that holds all frames of a DICOM SEG file, or that of the series of an RTSTRUCT."""
    tags = read_tags(file)
    notes: tuple[Issue, ...] = ()
    with tags_of(file):
        geometry, _ = _grid(file, tags)
        if _kind(tags) == RTStructureSetStorage:
            notes = _open_contours(file, tags)
        if _kind(tags) == RTStructureSetStorage and (image := _series_of(file)).is_file():
            message = (
                f"the series that its contours were drawn on is missing; they were drawn on the grid of {image.name}"
            )
            fix = "put the folder of that series beside this file"
            notes += (Issue(code="dicom.other_grid", severity="note", where=str(file), message=message, fix=fix),)
    return ImageHeader(geometry=geometry, num_channels=1, pixel_type="segments", is_integer=True, notes=notes)


def _is_label_map(tags: Any) -> bool:
    return bool(_kind(tags) == LABEL_MAP_STORAGE or tags.get("SegmentationType") == "LABELMAP")


def _names(file: Path, tags: Any) -> dict[int, str]:
    if _kind(tags) == RTStructureSetStorage:
        items, index_tag, name_tag = tags.get("StructureSetROISequence") or (), "ROINumber", "ROIName"
    else:
        items, index_tag, name_tag = tags.get("SegmentSequence") or (), "SegmentNumber", "SegmentLabel"
    names = {}
    for item in items:
        index = int(number(item, index_tag, -1))
        if index > 0 or (index == 0 and _kind(tags) != LABEL_MAP_STORAGE):
            names[index] = str(item.get(name_tag) or f"segment_{index}").strip()
    if _kind(tags) == RTStructureSetStorage and 0 in names:  # allowed there, but in label maps 0 is the background
        names = {index + 1: name for index, name in names.items()}
    if not names or not 0 < min(names) <= max(names) < 2**16:
        raise damaged(file, message=f"its segments have the numbers {sorted(names)}, expected positive numbers")
    return names


# --- the grid ---


def _grid(file: Path, tags: Any) -> tuple[Geometry, NDArray[np.int64]]:
    """The grid that holds all frames, and the slice in which each lies."""
    if _kind(tags) is None:
        raise reader_error(
            file, code="reader.no_segments", message=f"it is a {kind_of(tags)}", fix="use a DICOM SEG file"
        )
    if _kind(tags) == RTStructureSetStorage:
        image = _series_of(file)
        header = format_of(image).read_header(image) if image.is_file() else read_series(image).header
        return header.geometry, np.empty(0, np.int64)
    owners = frame_owners(file, tags)
    if not tags.get("PerFrameFunctionalGroupsSequence"):
        raise damaged(file, message=f"it does not say which segments its {len(owners)} frames show")

    def values(name: str, size: int) -> NDArray[np.float64]:
        holders = [owner_of(each, PLACE_TAGS[name], name) for each in owners]
        if not any(holders):
            raise reader_error(
                file,
                code="dicom.flat_segmentation",
                message=f"its frames have no {name}: it was drawn on flat images or on a slide",
                fix="store its masks as PNG or TIFF like the images",
            )
        if None in holders:
            raise damaged(file, message=f"a frame has no {name}")
        return np.array([vector(holder, name, size) for holder in holders])

    planes, spacings, positions = values(ORIENTATION, 6), values("PixelSpacing", 2), values(POSITION, 3)
    if not np.allclose(planes, planes[0], atol=1e-4) or not np.allclose(spacings, spacings[0], rtol=1e-4):
        raise damaged(file, message="its frames differ in orientation or pixel spacing")
    across, down = planes[0].reshape(2, 3)
    normal = np.cross(across, down)
    slices, step = _slice_indices(file, positions @ normal, owners[0])
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


def _slice_indices(file: Path, along: NDArray[np.float64], owners: Sequence[Any]) -> tuple[NDArray[np.int64], float]:
    """Slice index of each frame from its distance along the normal in mm, and the step between slices.

    Frames may leave slices out, so the smallest distance of two frames may be several steps: what the file states is
    taken where the frames fit it. The thickness of slices is no step, and counts for a single slice only.
    """

    def stated(name: str) -> float:
        holder = owner_of(owners, "PixelMeasuresSequence", name)
        return 0.0 if holder is None else abs(number(holder, name, 0.0))

    gaps = np.diff(np.unique(np.round(along, STEP_DIGITS)))
    if not len(gaps):
        return np.zeros(len(along), np.int64), stated("SpacingBetweenSlices") or stated("SliceThickness") or 1.0
    for step in (stated("SpacingBetweenSlices"), float(gaps.min())):
        index = (along - along.min()) / step if step else np.full(1, np.inf)
        if index.max() < MOST_SLICES and np.abs(index - np.rint(index)).max() <= OFF_GRID:
            return np.rint(index).astype(np.int64), step
    raise damaged(
        file,
        message=f"its frames are not evenly spaced along their normal ({np.round(gaps[:5], STEP_DIGITS).tolist()} mm ...)",
    )


# --- the voxels ---


def _frames(file: Path, tags: Any, slices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(n, 2) segment number and slice of each frame, and the frames with eight voxels to a byte."""
    rows, columns = int(number(tags, "Rows", 0)), int(number(tags, "Columns", 0))
    size = rows * columns
    if tags.get("BitsAllocated") == 1 and not tags.file_meta.TransferSyntaxUID.is_encapsulated:
        packed = _repacked(file, size, len(slices))
    else:
        require_memory(file, size * len(slices) * 4)
        (voxels,) = decoded(file, {file: tags})
        voxels = voxels.reshape(len(slices), size)
        if _is_label_map(tags):
            return _from_labels(voxels, slices)
        is_fractional = tags.get("SegmentationType") == "FRACTIONAL"
        packed = np.packbits(
            voxels >= (number(tags, "MaximumFractionalValue", 1.0) / 2 if is_fractional else 0.5), axis=1
        )
    holders = [
        owner_of(each, "SegmentIdentificationSequence", "ReferencedSegmentNumber") for each in frame_owners(file, tags)
    ]
    if None in holders:
        raise damaged(file, message="a frame does not name its segment")
    owners = [int(vector(holder, "ReferencedSegmentNumber", 1)[0]) for holder in holders]
    return np.stack([np.array(owners, np.int64), slices], axis=1), packed


def _repacked(file: Path, size: int, count: int) -> NDArray[np.uint8]:
    """Frames of one bit a voxel that begin at a byte. In the file they follow one another without padding, the lowest bit first.

    pydicom would unpack all of them at once: hundreds of organs would not fit into the memory.
    """
    raw, expected = (
        np.frombuffer(read_tags(file, ["PixelData"], pixels=True).get("PixelData") or b"", np.uint8),
        math.ceil(count * size / 8),
    )
    if len(raw) < expected:
        message = f"the header declares {expected} bytes of voxels, but the file has {len(raw)}"
        raise damaged(file, code="reader.truncated", message=message)
    packed = np.empty((count, math.ceil(size / 8)), np.uint8)
    for k in range(count):
        first = k * size
        part = np.unpackbits(raw[first // 8 : math.ceil((first + size) / 8)], bitorder="little")
        packed[k] = np.packbits(part[first % 8 : first % 8 + size])
    return packed


def _from_labels(labels: NDArray[Any], slices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    places, packed = [], []
    for frame, index in zip(labels, slices, strict=True):
        for value in np.unique(frame[frame != 0]):
            places.append((int(value), int(index)))
            packed.append(np.packbits(frame == value))
    empty = np.empty((0, math.ceil(labels.shape[1] / 8)), np.uint8)
    return np.array(places, np.int64).reshape(-1, 2), np.stack(packed) if packed else empty


# --- RTSTRUCT ---


def _series_of(file: Path) -> Path:
    """The series that an RTSTRUCT was drawn on. Looks in its folder, in that folder's subfolders, then in those beside it.

    Where it is nowhere, the one volume of another format in its folder: the series, converted.
    """
    wanted = {uid for uid in referenced_series(file) if uid}
    home = file.parent
    beside = _folders(home.parent)
    folders = [home, *_folders(home), *beside, *(deeper for folder in beside for deeper in _folders(folder))]
    for folder in folders:
        for candidate in dicom_candidates(folder):
            if is_dicom(candidate) and candidate != file and (uid := series_uid(candidate)) in wanted:
                return Path(f"{folder}{PART_MARK}{uid}")
    volumes = [other for other in home.iterdir() if image_ending(other) not in ("", ".dcm") and not is_picture(other)]
    if len(volumes) == 1 and volumes[0].is_file() and not is_debris(volumes[0]):
        return volumes[0]
    raise reader_error(
        file,
        code="dicom.no_reference_series",
        message=f"the series that its contours were drawn on ({', '.join(sorted(wanted)) or 'not named'}) is not beside it",
        fix="put the folder of that series beside this file, or the one volume that it was converted to into its folder",
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_debris(entry))


def _encloses(contour: Any) -> bool:
    """Whether a contour is closed: points and lines enclose nothing."""
    return str(contour.get("ContourGeometricType") or "CLOSED").startswith("CLOSED")


def _open_contours(file: Path, tags: Any) -> tuple[Issue, ...]:
    """A note on the structures that have contours which are lines or points."""
    names = {int(number(i, "ROINumber", -1)): str(i.get("ROIName")) for i in tags.get("StructureSetROISequence") or ()}
    kinds = {
        names.get(int(number(structure, "ReferencedROINumber", -1)), "?"): str(contour.ContourGeometricType)
        for structure in tags.get("ROIContourSequence") or ()
        for contour in structure.get("ContourSequence") or ()
        if not _encloses(contour)
    }
    if not kinds:
        return ()
    shown = shorten([f"{name} ({kind})" for name, kind in sorted(kinds.items())])
    message = f"contours that are lines or points enclose nothing and are not used: {shown}"
    fix = "close them where they were drawn, if they are outlines"
    return (Issue(code="dicom.open_contours", severity="note", where=str(file), message=message, fix=fix),)


def _drawn(file: Path, tags: Any, geometry: Geometry) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(n, 2) structure and slice, and the voxels whose centres lie inside an odd number of its contours there.

    So a contour inside another one is a hole, and so is what a contour with a way in and out (keyhole) leaves out.
    """
    axes = np.array(geometry.direction) * np.array(geometry.spacing_mm)[::-1]
    places: list[tuple[int, int]] = []
    frames = [np.empty((0, math.ceil(math.prod(geometry.shape[1:]) / 8)), np.uint8)]
    if "ROIContourSequence" not in tags:
        raise damaged(file, code="reader.truncated", message="it names structures, but ends before their contours")
    shift = int(0 in [number(item, "ROINumber", 1) for item in tags.get("StructureSetROISequence") or ()])
    for structure in tags.get("ROIContourSequence") or ():
        masks: dict[int, NDArray[np.bool_]] = {}
        for contour in structure.get("ContourSequence") or ():
            numbers = np.array(contour.get("ContourData") or (), np.float64)
            if not _encloses(contour) or not numbers.size:
                continue
            if numbers.size % 3:
                raise damaged(file, message=f"a contour has {numbers.size} numbers, no multiple of three")
            x, y, along = np.linalg.solve(axes, (numbers.reshape(-1, 3) - geometry.origin_mm).T)
            z = round(float(along.mean()))
            is_beside = (
                min(x.max(), y.max()) < -0.5 or x.min() > geometry.shape[2] - 0.5 or y.min() > geometry.shape[1] - 0.5
            )
            if is_beside or not 0 <= z < geometry.shape[0] or np.abs(along - z).max() > OFF_PLANE:
                place = [f"{values.min():.2f} to {values.max():.2f}" for values in (along, y, x)]
                raise reader_error(
                    file,
                    code="dicom.contours_off_grid",
                    message=f"a contour lies at {', '.join(place)} (z, y, x) of the {geometry.shape} voxels of its series",
                    fix="use the series that it was drawn on",
                )
            mask = masks.setdefault(z, np.zeros(geometry.shape[1:], bool))
            mask[polygon(y, x, mask.shape)] ^= True
        places += [(int(number(structure, "ReferencedROINumber", -1)) + shift, z) for z in masks]
        frames += [np.packbits(mask)[None] for mask in masks.values()]
    return np.array(places, np.int64).reshape(-1, 2), np.concatenate(frames)

"""DICOM series: which files of a folder belong together, and the grid that their slices form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage

from autoseg.imaging.readers.dicom import (
    PART_MARK,
    begins_as_dicom,
    dicom_candidates,
    is_dicom,
    number,
    read_tags,
    rescaling,
    slice_voxels,
    split_part,
    vector,
)
from autoseg.imaging.readers.header import ImageHeader, damaged, make_geometry, reader_error, require_text, unreadable
from autoseg.imaging.readers.registry import Format, image_ending

UNEVEN_STEP = 0.05
"""Slices are evenly spaced when no step differs from the median step by more than this share of it."""
TILTED_STEP = 0.02
"""Share of a slice step that may lie in the plane; more is a tilted gantry, and the grid is no box."""
SAME_PLACE = 1e-4
SLICE_STORAGES = (CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage)
"""Files of these kinds are slices with a place in space, or cut."""
BEFORE_META = 144
"""Bytes up to the end of the element that says how long the information on the file itself is."""
MOSAIC = "MOSAIC"
"""In ImageType: Siemens scanners put all slices of a volume into one picture."""
POSITION, ORIENTATION = "ImagePositionPatient", "ImageOrientationPatient"
NEEDED_TAGS = [
    "SeriesInstanceUID",
    "SeriesDescription",
    "SeriesNumber",
    "Modality",
    POSITION,
    ORIENTATION,
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "BitsAllocated",
    "NumberOfFrames",
    "ImageType",
]


@dataclass(frozen=True, slots=True)
class Series:
    """Slices in the order of growing position along their normal, and what their headers say."""

    files: tuple[Path, ...]
    header: ImageHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesName:
    """A series in a folder."""

    path: Path
    """What to give to `read_header` and `read_image`: the folder, with ``#SeriesInstanceUID`` where it has several."""
    description: str
    number: str
    uid: str
    modality: str
    num_slices: int


@dataclass(frozen=True, slots=True)
class _Slice:
    file: Path
    tags: Any
    position: NDArray[np.float64]
    """x, y, z in mm of the first voxel's centre."""
    plane: NDArray[np.float64]
    """(2, 3): unit vectors along a row and along a column."""


def is_dicom_series(path: Path | str) -> bool:
    """Whether ``path`` is a folder that directly holds DICOM files, or names a series in one (``FOLDER#UID``).

    Files are recognised by content; their names may have any ending or none.
    """
    folder, _ = split_part(Path(path))
    return folder.is_dir() and any(is_dicom(file) for file in dicom_candidates(folder))


def list_series(folder: Path | str) -> tuple[SeriesName, ...]:
    """The image series directly in ``folder``, sorted by SeriesInstanceUID; none where it holds no slices.

    What has no position in space (reports, segmentations, scans of paper) is no image series.
    Raises `AutosegError` when a DICOM file of the folder is damaged.
    """
    folder = Path(folder)
    groups = _group(folder)
    return tuple(
        SeriesName(
            path=folder if len(groups) == 1 else Path(f"{folder}{PART_MARK}{uid}"),
            description=str(slices[0].tags.get("SeriesDescription") or "no description").strip(),
            number=f"{number(slices[0].tags, 'SeriesNumber', -1):g}" if slices[0].tags.get("SeriesNumber") else "",
            uid=uid,
            modality=str(slices[0].tags.get("Modality") or ""),
            num_slices=len(slices),
        )
        for uid, slices in sorted(groups.items())
    )


def read_series(path: Path) -> Series:
    """The series of slices that ``path`` names: a folder with one, or ``FOLDER#SeriesInstanceUID``.

    Raises `AutosegError` when there is none, when a folder has several and none is named, when slices are missing,
    doubled, of different size, or when the gantry was tilted.
    """
    return _stack(path, _only_series(path))


def _stack(path: Path, slices: Sequence[_Slice]) -> Series:
    first = slices[0]
    for item in slices:
        _check_one_slice(item.file, item.tags)
    _check_alike(path, slices)
    across, down = first.plane
    normal = np.cross(across, down)
    slices = sorted(slices, key=lambda item: float(normal @ item.position))
    step_mm = _slice_step(path, slices, normal)
    row_mm, column_mm = (float(value) for value in vector(first.tags, "PixelSpacing", 2))
    geometry, notes = make_geometry(
        path,
        shape=(int(number(first.tags, "Columns", 0)), int(number(first.tags, "Rows", 0)), len(slices)),
        spacing_mm=(column_mm, row_mm, step_mm),
        origin_mm=tuple(slices[0].position),
        direction=np.stack([across, down, normal], axis=1),
        has_orientation=True,
    )
    is_integer = all(value.is_integer() for item in slices for value in rescaling(item.tags))
    header = ImageHeader(
        geometry=geometry,
        num_channels=int(number(first.tags, "SamplesPerPixel", 1)),
        pixel_type=f"{number(first.tags, 'BitsAllocated', 16):g}-bit integer" if is_integer else "scaled integer",
        is_integer=is_integer,
        notes=notes,
    )
    return Series(tuple(item.file for item in slices), header)


def series_image(series: Series, path: Path) -> tuple[ImageHeader, NDArray[np.float32]]:
    """Header and voxels (C, Z, Y, X) of a series, rescaled as each slice says; ``path`` names it in errors."""
    shape, num_channels = series.header.geometry.shape, series.header.num_channels
    return series.header, slice_voxels(path, series.files, shape, num_channels)


def read_single(file: Path) -> Series:
    """One DICOM file as an image: a slice in space, or, without a position (X-ray, photograph), a flat image.

    Raises `AutosegError` for files with several frames.
    """
    tags = read_tags(file, NEEDED_TAGS)
    _check_one_slice(file, tags)
    if tags.get("Rows") in (None, "", 0):
        raise reader_error(
            file, code="dicom.no_pixels", message=f"its SOP class is {_kind(tags)}, without pixels", fix="use an image"
        )
    item = _slice(file, tags)
    if item is not None:
        return _stack(file, [item])
    geometry, _ = make_geometry(
        file,
        shape=(int(number(tags, "Columns", 0)), int(number(tags, "Rows", 0))),
        spacing_mm=(1.0, 1.0),
        origin_mm=(0.0, 0.0),
        direction=np.eye(2),
        has_orientation=False,
    )
    is_integer = all(value.is_integer() for value in rescaling(tags))
    channels = int(number(tags, "SamplesPerPixel", 1.0))
    return Series(
        (file,), ImageHeader(geometry=geometry, num_channels=channels, pixel_type="pixels", is_integer=is_integer)
    )


def _kind(tags: Any) -> str:
    return str(getattr(tags.file_meta.get("MediaStorageSOPClassUID"), "name", "") or "unknown")


def _check_one_slice(file: Path, tags: Any) -> None:
    frames = number(tags, "NumberOfFrames", 1.0)
    if frames > 1:
        raise reader_error(
            file,
            code="dicom.multiframe",
            message=f"it has {frames:g} frames in one file",
            fix="convert it to one file per slice or to NIfTI",
        )
    kinds = tags.get("ImageType") or ()
    if MOSAIC in ([kinds] if isinstance(kinds, str) else kinds):
        raise reader_error(
            file,
            code="dicom.mosaic",
            message="its slices are tiled in one image (mosaic)",
            fix="convert it to NIfTI",
        )


def _group(folder: Path) -> dict[str, list[_Slice]]:
    """Slices with a position, by SeriesInstanceUID."""
    groups: dict[str, list[_Slice]] = {}
    files = [file for file in dicom_candidates(folder) if _is_slice(file)]
    require_text(files)
    for file in files:
        item = _slice(file, read_tags(file, NEEDED_TAGS))
        if item is not None:
            groups.setdefault(str(item.tags.get("SeriesInstanceUID") or ""), []).append(item)
    return groups


def _is_slice(file: Path) -> bool:
    """Whether a candidate is DICOM; an image that lacks a slice must not pass for a whole one."""
    try:
        found = begins_as_dicom(file)
    except OSError as error:
        raise unreadable(file, error) from None
    if not found and image_ending(file):
        raise damaged(file, code="reader.unknown_format", message="it does not start like a DICOM file")
    return found


def _slice(file: Path, tags: Any) -> _Slice | None:
    """A file with its place in space; None where it is of a kind that has none."""
    missing = [name for name in (POSITION, ORIENTATION, "PixelSpacing", "Rows") if tags.get(name) in (None, "")]
    meta = tags.file_meta.get("FileMetaInformationGroupLength", 0)
    if missing and (not isinstance(meta, int) or BEFORE_META + meta >= file.stat().st_size):
        raise damaged(file, code="reader.truncated", message="it ends before its data")
    if missing and tags.file_meta.get("MediaStorageSOPClassUID") in SLICE_STORAGES:
        raise damaged(file, message=f"it is a slice without {', '.join(missing)}")
    if missing:
        return None
    return _Slice(file, tags, vector(tags, POSITION, 3), vector(tags, ORIENTATION, 6).reshape(2, 3))


def _only_series(path: Path) -> list[_Slice]:
    folder, uid = split_part(path)
    groups = _group(folder)
    if not groups:
        raise reader_error(
            folder,
            code="dicom.no_slices",
            message=f"it has {sum(map(is_dicom, dicom_candidates(folder)))} DICOM files, but none is a slice with a position",
            fix="use the folder of an image series, or convert it to NIfTI",
        )
    if uid is not None and uid in groups:
        return groups[uid]
    if len(groups) > 1 or uid is not None:
        names = "; ".join(
            f"{len(slices)} slices of {slices[0].tags.get('SeriesDescription') or 'no description'!r}, {folder}{PART_MARK}{name}"
            for name, slices in sorted(groups.items())
        )
        fault = f"no series {uid}, but {len(groups)} other" if uid else f"{len(groups)} series"
        raise reader_error(
            folder,
            code="dicom.no_such_series" if uid else "dicom.several_series",
            message=f"it has {fault} ({names})",
            fix="use one of these names, or put each series into its own folder",
        )
    return next(iter(groups.values()))


def _check_alike(path: Path, slices: Sequence[_Slice]) -> None:
    """All slices have one size, one pixel spacing and one orientation."""
    first = slices[0]
    sizes = {"Rows": 1, "Columns": 1, "PixelSpacing": 2, ORIENTATION: 6}
    for item in slices[1:]:
        for name, size in sizes.items():
            ours, theirs = (
                vector(s.tags, name, size) if size > 1 else np.array([number(s.tags, name, 0)]) for s in (first, item)
            )
            if not np.allclose(ours, theirs, atol=SAME_PLACE):
                raise reader_error(
                    path,
                    code="dicom.slices_differ",
                    message=f"{name} is {ours.tolist()} in {first.file.name} but {theirs.tolist()} in {item.file.name}",
                    fix="remove the slices that do not belong to the volume",
                )


def _slice_step(path: Path, slices: Sequence[_Slice], normal: NDArray[np.float64]) -> float:
    """Distance between neighbouring slices in mm, which must be the same for all."""
    if len(slices) == 1:
        tags = slices[0].tags
        return number(tags, "SpacingBetweenSlices", 0) or number(tags, "SliceThickness", 0) or 1.0
    steps = np.diff([item.position for item in slices], axis=0)
    along = steps @ normal
    usual = float(np.median(along))
    if usual <= 0 or (along < UNEVEN_STEP * usual).any():
        raise reader_error(
            path,
            code="dicom.slices_coincide",
            message="several slices have the same position: it contains more than one volume (time points, echoes)",
            fix="put each volume into its own folder",
        )
    odd = np.flatnonzero(np.abs(along - usual) > UNEVEN_STEP * usual)
    if len(odd):
        file, after = slices[int(odd[0])].file.name, slices[int(odd[0]) + 1].file.name
        raise reader_error(
            path,
            code="dicom.uneven_slices",
            message=f"slices are {usual:g} mm apart but {float(along[odd[0]]):g} mm between {file} and {after} "
            f"({len(odd)} such {'gap' if len(odd) == 1 else 'gaps'} in {len(slices)} slices)",
            fix="add the missing slices, or leave the case out",
        )
    _check_tilt(path, steps, normal, usual)
    return float(along.mean())


def _check_tilt(path: Path, steps: NDArray[np.float64], normal: NDArray[np.float64], usual: float) -> None:
    sideways = float(np.linalg.norm(steps.mean(axis=0) - usual * normal))
    if sideways > TILTED_STEP * usual:
        degrees = math.degrees(math.atan2(sideways, usual))
        raise reader_error(
            path,
            code="dicom.gantry_tilt",
            message=f"each slice is shifted sideways by {sideways:.2f} mm, a gantry tilt of {degrees:.1f} degrees",
            fix="resample the series to a rectangular grid",
        )


DICOM = Format(
    endings=(".dcm",),
    read_header=lambda path: read_single(path).header,
    read_voxels=lambda path: series_image(read_single(path), path)[1],
)

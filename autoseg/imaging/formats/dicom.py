"""DICOM series: which files of a folder belong together, and the grid that their slices form."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from autoseg.errors import AutosegError
from autoseg.imaging.formats.endings import image_ending
from autoseg.imaging.formats.header import ImageHeader, damaged, make_geometry

PREAMBLE = 128
MAGIC = b"DICM"
UNEVEN_STEP = 0.05
"""Slices are evenly spaced when no step differs from the median step by more than this share of it."""
TILTED_STEP = 0.02
"""Share of a slice step that may lie in the plane; more is a tilted gantry, and the grid is no box."""
NEEDED_TAGS = [
    "SeriesInstanceUID",
    "SeriesDescription",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "BitsAllocated",
    "PixelRepresentation",
]


@dataclass(frozen=True, slots=True)
class Series:
    """Slices in the order of growing position along their normal, and what their headers say."""

    files: tuple[Path, ...]
    header: ImageHeader


def is_dicom_series(folder: Path | str) -> bool:
    """Whether ``folder`` directly holds DICOM files (by content; their names may have any ending or none)."""
    path = Path(folder)
    return path.is_dir() and any(_is_dicom(file) for file in _candidates(path))


def _candidates(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if image_ending(file) in ("", ".dcm") and file.is_file())


def _is_dicom(file: Path) -> bool:
    try:
        with open(file, "rb") as stream:
            return stream.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC
    except OSError:
        return False


def read_series(folder: Path) -> Series:
    """The one series of slices in ``folder``.

    Raises `AutosegError` when there is none or more than one, when slices are missing, doubled, of different size, or
    when the gantry was tilted.
    """
    slices = _only_series(folder, [_read_tags(file) for file in _candidates(folder) if _is_dicom(file)])
    first = slices[0][1]
    _check_alike(folder, slices)
    across, down = (np.array(first.ImageOrientationPatient[i : i + 3], float) for i in (0, 3))
    normal = np.cross(across, down)
    slices = sorted(slices, key=lambda item: float(np.dot(normal, _position(item[1]))))
    step_mm = _slice_step(folder, slices, normal)
    row_mm, column_mm = (float(value) for value in first.PixelSpacing)
    geometry, repair = make_geometry(
        folder,
        shape=(int(first.Columns), int(first.Rows), len(slices)),
        spacing_mm=(column_mm, row_mm, step_mm),
        origin_mm=tuple(_position(slices[0][1])),
        direction=np.stack([across, down, normal], axis=1),
        has_orientation=True,
    )
    is_integer = all(float(value).is_integer() for _, tags in slices for value in _rescaling(tags))
    header = ImageHeader(
        geometry=geometry,
        num_channels=int(first.get("SamplesPerPixel", 1)),
        pixel_type=f"{first.get('BitsAllocated', 16)}-bit integer" if is_integer else "scaled integer",
        is_integer=is_integer,
        repair=repair,
    )
    return Series(tuple(file for file, _ in slices), header)


def _rescaling(tags: Any) -> tuple[float, float]:
    return float(tags.get("RescaleSlope", 1) or 1), float(tags.get("RescaleIntercept", 0) or 0)


def _read_tags(file: Path) -> tuple[Path, Any]:
    try:
        return file, pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(NEEDED_TAGS))
    except (InvalidDicomError, OSError, ValueError, KeyError, AttributeError, EOFError) as error:
        raise damaged(file, str(error)) from error


def _position(tags: Any) -> NDArray[np.float64]:
    return np.array(tags.ImagePositionPatient, float)


def _only_series(folder: Path, found: Sequence[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
    series = defaultdict(list)
    for file, tags in found:
        if all(tag in tags for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows")):
            series[str(tags.get("SeriesInstanceUID", ""))].append((file, tags))
    if not series:
        raise AutosegError(
            f"{folder} has {len(found)} DICOM files, but none is a slice with a position; "
            "give the folder of an image series, or convert it to NIfTI"
        )
    if len(series) > 1:
        names = ", ".join(
            f"{len(slices)} slices of {slices[0][1].get('SeriesDescription', 'no description')!r} ({uid})"
            for uid, slices in series.items()
        )
        raise AutosegError(f"{folder} has {len(series)} series: {names}; put each into a folder of its own")
    return next(iter(series.values()))


def _check_alike(folder: Path, slices: Sequence[tuple[Path, Any]]) -> None:
    """All slices have one size, one pixel spacing and one orientation."""
    first_file, first = slices[0]
    for file, tags in slices[1:]:
        for name in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
            ours, theirs = (np.array(item[name].value, float) for item in (first, tags))
            if not np.allclose(ours, theirs, atol=1e-4):
                raise AutosegError(
                    f"{folder}: {name} is {ours.tolist()} in {first_file.name} but {theirs.tolist()} in {file.name}; "
                    "remove the slices that do not belong to the volume"
                )


def _slice_step(folder: Path, slices: Sequence[tuple[Path, Any]], normal: NDArray[np.float64]) -> float:
    """Distance between neighbouring slices in mm, which must be the same for all."""
    if len(slices) == 1:
        tags = slices[0][1]
        return float(tags.get("SpacingBetweenSlices") or tags.get("SliceThickness") or 1.0)
    steps = np.diff([_position(tags) for _, tags in slices], axis=0)
    along = steps @ normal
    usual = float(np.median(along))
    if usual <= 0 or (along < UNEVEN_STEP * usual).any():
        raise AutosegError(
            f"{folder}: several slices lie at one position; it holds more than one volume (time points, echoes): "
            "put each into a folder of its own"
        )
    odd = np.flatnonzero(np.abs(along - usual) > UNEVEN_STEP * usual)
    if len(odd):
        file, after = slices[int(odd[0])][0].name, slices[int(odd[0]) + 1][0].name
        raise AutosegError(
            f"{folder}: slices are {usual:g} mm apart but {float(along[odd[0]]):g} mm between {file} and {after} "
            f"({len(odd)} such gaps in {len(slices)} slices); add the missing slices, or leave the case out"
        )
    _check_tilt(folder, steps, normal, usual)
    return float(along.mean())


def _check_tilt(folder: Path, steps: NDArray[np.float64], normal: NDArray[np.float64], usual: float) -> None:
    sideways = float(np.linalg.norm(steps.mean(axis=0) - usual * normal))
    if sideways > TILTED_STEP * usual:
        degrees = math.degrees(math.atan2(sideways, usual))
        raise AutosegError(
            f"{folder}: each slice is shifted sideways by {sideways:.2f} mm, a gantry tilt of {degrees:.1f} degrees; "
            "resample the series to a straight grid first"
        )

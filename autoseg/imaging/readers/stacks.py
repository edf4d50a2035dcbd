"""Label maps as a folder of pictures, one for each slice of a DICOM series, which belong together by the order of their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.image import Geometry
from autoseg.imaging.readers.dicom_series import is_dicom_series, read_series
from autoseg.imaging.readers.header import ImageHeader, reader_error
from autoseg.imaging.readers.registry import format_of, is_debris, is_flat
from autoseg.issues import AutosegError

DIGITS = re.compile("([0-9]+)")


def is_picture_stack(path: Path) -> bool:
    """Whether ``path`` is a folder of pictures such as PNG, and no DICOM series."""
    return path.is_dir() and not is_dicom_series(path) and bool(stacked_pictures(path))


def stacked_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names."""
    files = (each for each in folder.iterdir() if is_flat(each) and not is_debris(each) and each.is_file())
    return sorted(files, key=_by_name)


def _by_name(file: Path) -> list[tuple[int, str]]:
    """Numbers in names count as numbers: 2 comes before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in DIGITS.split(file.name)]


def stack_header(folder: Path) -> ImageHeader:
    """The header of a stack (slices, y, x) in the order of names, which says nothing of its place.

    Raises `AutosegError` for a picture of another size than the first.
    """
    files = stacked_pictures(folder)
    headers = [format_of(file).read_header(file) for file in files]
    first = headers[0].geometry.shape
    for file, header in zip(files, headers, strict=True):
        if header.geometry.shape != first:
            sizes = [f"{rows}x{columns}" for _, rows, columns in (header.geometry.shape, first)]
            raise reader_error(
                file,
                code="reader.picture_size",
                message=f"it has {sizes[0]} pixels (y, x), but {files[0].name} of the same stack has {sizes[1]}",
                fix="use pictures of one size, one for each slice of the image",
            )
    geometry = Geometry(shape=(len(files), *first[1:]), spacing_mm=(1.0, 1.0, 1.0), has_orientation=False)
    return ImageHeader(geometry=geometry, num_channels=1, pixel_type=headers[0].pixel_type, is_integer=True)


def slices_by_name(series: Path) -> tuple[int, ...] | None:
    """For each file of a DICOM series, in the order of their names, the index z of its slice; none where it is no such series.

    Series in files of several slices have none either.
    """
    if not is_dicom_series(series):
        return None
    files = [item.file for item in read_series(series).slices]
    if len({*files}) != len(files):
        return None
    return tuple(sorted(range(len(files)), key=lambda z: _by_name(files[z])))


def in_slice_order(array: NDArray[Any], folder: Path, series: Path) -> NDArray[Any]:
    """Pictures (slices, y, x) in the order of their names, brought to the order of the slices of the ``series`` that they were drawn on.

    The first file by name belongs to the first picture by name, whatever its position. Raises `AutosegError` where their numbers differ.
    """
    order = slices_by_name(series)
    if order is None:
        return array
    if len(order) != len(array):
        raise slice_count(folder, len(array), len(order))
    result = np.empty_like(array)
    result[list(order)] = array
    return result


def slice_count(folder: Path, found: int, expected: int) -> AutosegError:
    """The error about a number of pictures that is not that of the slices."""
    return reader_error(
        folder,
        code="labels.slice_count",
        message=f"it has {found} pictures, but its series has {expected} slices",
        fix="add or remove pictures; the first picture by name belongs to the first file of the series, and so on",
    )

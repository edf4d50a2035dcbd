"""Reading image files: their header, their voxels as an image, their voxels as a label map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.image import Geometry, Image, LabelMap
from autoseg.imaging.readers.dicom import is_dicom
from autoseg.imaging.readers.endings import METAIMAGE, NIFTI, NRRD, PICTURE_ENDINGS, image_ending
from autoseg.imaging.readers.gipl import check_gipl
from autoseg.imaging.readers.header import ImageHeader, damaged, reader_error, unreadable
from autoseg.imaging.readers.itk import itk_header, itk_reader, itk_voxels
from autoseg.imaging.readers.memory import LESS_MEMORY
from autoseg.imaging.readers.metaimage import metaimage_header, metaimage_voxels
from autoseg.imaging.readers.names import require_text
from autoseg.imaging.readers.nifti import nifti_header, nifti_voxels
from autoseg.imaging.readers.nrrd import nrrd_header, nrrd_voxels
from autoseg.imaging.readers.photographs import (
    check_photograph,
    grey_alpha_header,
    grey_alpha_voxels,
    is_tiled_tiff,
    read_png_head,
    tiled_header,
    tiled_voxels,
)
from autoseg.imaging.readers.segments import is_segmentation, segments_header, segments_label_map
from autoseg.imaging.readers.series import (
    is_dicom_series,
    read_series,
    read_single,
    series_image,
)
from autoseg.issues import AutosegError

WHOLE = 1e-4
"""Float label files may miss whole numbers by this much: what scaling by a slope in single precision leaves."""
SAME_PLACE = 1.0
"""Channels whose corners lie within this many voxels of each other are on one grid; headers round differently."""


def read_header(path: Path | str) -> ImageHeader:
    """What the header of ``path`` says, without reading voxels; ``path`` is a file, or a folder with one DICOM series.

    Raises `AutosegError` that names the file and the cause when it is missing, damaged, or no image.
    """
    path = Path(path)
    with _reading(path):
        if _is_series(path):
            return read_series(path).header
        return segments_header(path) if is_segmentation(path) else _format(path).header(path)


def read_image(paths: Path | str | Sequence[Path | str]) -> Image:
    """The image of one case, float32 (C, Z, Y, X): one file per channel, or one file (or DICOM folder) with all.

    Channels follow the order of ``paths``, then that inside a file (fourth axis, or colours). The geometry is that of
    the first file. Raises `AutosegError` when a file cannot be read, or when files lie on different grids.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    if not paths:
        raise reader_error("reader.no_input", "", "no image file was given", "give at least one")
    parts = [_read(Path(path)) for path in paths]
    first = parts[0][0].geometry
    for path, (header, _) in zip(paths[1:], parts[1:], strict=True):
        _check_same_grid(Path(paths[0]), first, Path(path), header.geometry)
    arrays = [_as_float(array) for _, array in parts]
    return Image(
        array=arrays[0] if len(arrays) == 1 else np.concatenate(arrays),
        geometry=first,
        notes=tuple(note for header, _ in parts for note in header.notes),
    )


def read_label_map(path: Path | str) -> LabelMap:
    """The label map in ``path``: integers (Z, Y, X) with the values of the file.

    Files of floating type are accepted when every value is whole (within 1e-4), and greys stored as colours when the
    three colours are equal. Raises `AutosegError` when values are fractional or not finite, saying which and where,
    when there are several different channels, or when the file is damaged.
    """
    path = Path(path)
    with _reading(path):
        if is_segmentation(path):
            return segments_label_map(path)
    header, array = _read(path)
    if len(array) in (3, 4) and image_ending(path) in PICTURE_ENDINGS and (array[1:3] == array[0]).all():
        array = array[:1]
    if len(array) != 1:
        raise reader_error(
            "reader.several_channels",
            path,
            f"it has {len(array)} channels, but a label map has one",
            "store one label number for each voxel",
        )
    values = array[0]
    if values.dtype.kind not in "iu":
        values = _as_whole(path, values)
    return LabelMap(array=np.ascontiguousarray(values), geometry=header.geometry)


def _check_there(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from None
    if size == 0:
        raise damaged(path, "the file is empty", "truncated")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name ``path`` where the system refuses to read it, or has no memory for it, and where its name is no text."""
    require_text([path])  # ITK would end the process
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from None
    except MemoryError:
        raise reader_error("reader.too_large", path, "it needs more memory than is free", LESS_MEMORY) from None


def _read(path: Path) -> tuple[ImageHeader, NDArray[Any]]:
    """Header and voxels (C, Z, Y, X) in the type of the file."""
    with _reading(path):
        if _is_series(path):
            header, voxels = series_image(read_series(path), path)
        else:
            way = _format(path)
            header = way.header(path)
            voxels = way.voxels(path)
        return header, _fitting(path, header, voxels[: header.num_channels])


def _is_series(path: Path) -> bool:
    return path.is_dir() or is_dicom_series(path)


@dataclass(frozen=True, slots=True)
class _Format:
    """The two ways to read files of one format."""

    header: Callable[[Path], ImageHeader]
    voxels: Callable[[Path], NDArray[Any]]


def _format(path: Path) -> _Format:
    """How the file ``path`` is read: DICOM is told by content, all others by their ending."""
    _check_there(path)
    if is_dicom(path):
        return _Format(lambda p: read_single(p).header, lambda p: series_image(read_single(p), p)[1])
    ending = image_ending(path)
    if ending in NIFTI:
        return _Format(_nifti_header, nifti_voxels)
    if ending in NRRD:
        return _Format(nrrd_header, nrrd_voxels)
    if ending in METAIMAGE:
        return _Format(metaimage_header, metaimage_voxels)
    if ending == ".png" and read_png_head(path).is_grey_with_alpha:
        return _Format(grey_alpha_header, grey_alpha_voxels)
    if is_tiled_tiff(path):
        return _Format(tiled_header, tiled_voxels)
    return _Format(_itk_header, _itk_voxels)


def _itk_header(path: Path) -> ImageHeader:
    if image_ending(path) in (".gipl", ".gipl.gz"):
        check_gipl(path)
    check_photograph(path)
    return itk_header(path, itk_reader(path))


def _itk_voxels(path: Path) -> NDArray[Any]:
    return itk_voxels(path, itk_reader(path))


def _nifti_header(path: Path) -> ImageHeader:
    """Geometry as ITK understands it; where ITK refuses the grid, as nibabel does, straightened."""
    own = nifti_header(path)
    try:
        header = itk_header(path, itk_reader(path))
    except AutosegError:
        return own
    return ImageHeader(
        geometry=header.geometry,
        num_channels=own.num_channels,
        pixel_type=own.pixel_type,
        is_integer=own.is_integer,
        notes=header.notes,
    )


def _fitting(path: Path, header: ImageHeader, array: NDArray[Any]) -> NDArray[Any]:
    if array.shape[1:] != header.geometry.shape:
        raise damaged(
            path,
            f"the header says {header.geometry.shape} voxels (z, y, x), but {array.shape[1:]} were read",
            "corrupt",
        )
    return array


def _as_float(array: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # values beyond single precision become infinite, which checks then name
        return np.ascontiguousarray(array, dtype=np.float32)


def _check_same_grid(first_path: Path, first: Geometry, path: Path, other: Geometry) -> None:
    """Same shape, and all corners of the grids within one voxel of each other."""
    if first.shape == other.shape:
        apart = float(np.abs(_corners(first) - _corners(other)).max())
        if apart <= SAME_PLACE * min(first.spacing_mm):
            return
    shown = [
        f"{g.shape} voxels of {_rounded(g.spacing_mm)} mm (z, y, x) from {_rounded(g.origin_mm)} mm (x, y, z)"
        for g in (other, first)
    ]
    raise reader_error(
        "reader.channel_grids_differ",
        path,
        f"it has {shown[0]}, but {first_path} of the same image has {shown[1]}",
        "resample the channels to one grid",
    )


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)


def _corners(geometry: Geometry) -> NDArray[np.float64]:
    """World positions (8, 3) of the corner voxels."""
    last = np.array(geometry.shape[::-1]) - 1
    corners = np.array(list(np.ndindex(2, 2, 2))) * last * np.array(geometry.spacing_mm[::-1])
    world: NDArray[np.float64] = np.array(geometry.origin_mm) + corners @ np.array(geometry.direction).T
    return world


def _as_whole(path: Path, values: NDArray[Any]) -> NDArray[np.integer[Any]]:
    """Floats as int64 or int32, or an error that says which are not whole."""
    with np.errstate(invalid="ignore"):
        rounded = np.rint(values)
        odd = ~(np.abs(values - rounded) <= WHOLE)
    if odd.any():
        shown = ", ".join(f"{value:g}" for value in np.unique(values[odd])[:5])
        where = tuple(int(i) for i in np.argwhere(odd)[0])
        raise reader_error(
            "reader.fractional_labels",
            path,
            f"{int(odd.sum())} of its values are not whole numbers, such as {shown}, first at {where} (z, y, x)",
            "give a label map with one whole number for each voxel, not probabilities or an image",
        )
    limit = float(np.abs(rounded).max(initial=0))
    whole: NDArray[np.integer[Any]] = rounded.astype(np.int32 if limit < 2**31 else np.int64)
    return whole

"""Writing label maps and images so that they lie where their source lies, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from autoseg.imaging.image import Geometry
from autoseg.imaging.readers.endings import FLAT, IMAGE_ENDINGS, LOSSY, NIFTI, PICTURE_ENDINGS, image_ending
from autoseg.imaging.readers.header import reader_error
from autoseg.imaging.readers.itk import itk_call
from autoseg.imaging.readers.names import require_text
from autoseg.imaging.readers.nifti import check_written
from autoseg.issues import AutosegError
from autoseg.storage.atomic import sync_folder, temporary_folder, write_error

LABEL_TYPES = (np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.int64)
WRITABLE = tuple(ending for ending in IMAGE_ENDINGS if ending not in (*LOSSY, ".dcm", ".seg.nrrd"))


def writable_ending(label_ending: str) -> str:
    """The ending itself, or the nearest one that label maps can be written with (PNG for JPEG, NIfTI for DICOM)."""
    if label_ending in LOSSY:
        return ".png"
    if label_ending == ".seg.nrrd":
        return ".nrrd"
    return label_ending if label_ending in WRITABLE else ".nii.gz"


def prediction_ending(image: Path | str, geometry: Geometry, label_ending: str) -> str:
    """The ending for a label map of ``image``: that of the dataset's label files where it can hold the image's grid.

    Otherwise, for a PNG, TIFF or BMP image its own, for a JPEG image PNG, for all others (DICOM among them) NIfTI.
    """
    own, ending = image_ending(image), writable_ending(label_ending)
    is_photograph = own in PICTURE_ENDINGS or not geometry.has_orientation
    holds_slices = ending not in FLAT or geometry.shape[0] == 1
    if (ending in PICTURE_ENDINGS) == is_photograph and holds_slices:
        return ending
    return writable_ending(own) if own in PICTURE_ENDINGS else ".nii.gz"


def write_label_map(path: Path | str, array: NDArray[Any], geometry: Geometry) -> None:
    """Write integers ``array`` (Z, Y, X) with the geometry of its source, in the format that the ending says.

    The smallest integer type that holds all values is used; what was 2D is written 2D. The file appears whole or not at
    all. Raises `AutosegError` when the format cannot hold the values or the shape, or the file cannot be written.
    """
    low, high = int(array.min()), int(array.max())
    kind = next(k for k in LABEL_TYPES if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    if image_ending(path) in FLAT and kind not in (np.uint8, np.uint16):
        raise _cannot_hold(path, f"{image_ending(path)} files cannot hold label values from {low} to {high}")
    _write(Path(path), array.astype(kind, copy=False), geometry)


def write_image(path: Path | str, array: NDArray[Any], geometry: Geometry) -> None:
    """Write intensities ``array`` (Z, Y, X) as float32 with the geometry of their source; else like `write_label_map`."""
    if image_ending(path) in FLAT:
        raise _cannot_hold(path, f"{image_ending(path)} files cannot hold fractions")
    _write(Path(path), array.astype(np.float32, copy=False), geometry)


def _cannot_hold(path: Path | str, message: str, fix: str = "use .nii.gz") -> AutosegError:
    return reader_error("reader.not_written", path, message, fix)


def _write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    require_text([path])  # ITK would end the process
    ending = image_ending(path)
    if ending not in WRITABLE:
        raise _cannot_hold(path, "files of this ending cannot be written", f"use one of {', '.join(WRITABLE)}")
    if array.shape != geometry.shape:
        raise ValueError(f"the array has {array.shape} voxels, but the geometry {geometry.shape}")
    is_flat = geometry.dimensions == 2 or ending in FLAT
    if is_flat and array.shape[0] != 1:
        raise _cannot_hold(path, f"{ending} files hold one slice, but there are {array.shape[0]}")
    image = _itk_image(array, geometry, 2 if is_flat else 3)
    # a folder of its own keeps the file's real name, which formats with a second file for the voxels store inside
    try:
        with temporary_folder(path) as temporary:
            with itk_call(path, lambda _, cause: OSError(cause)):
                SimpleITK.WriteImage(image, str(temporary / path.name), useCompression=ending != ".nii")
            _move(temporary, path, is_nifti=ending in NIFTI)
    except OSError as error:
        raise write_error(path, error) from error


def _move(temporary: Path, path: Path, *, is_nifti: bool) -> None:
    """Flush what was written and give it its place, the file that others look for last."""
    if is_nifti:
        check_written(temporary / path.name)
    for file in sorted(temporary.iterdir(), key=lambda file: file.name == path.name):
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(file, path.parent / file.name)
    sync_folder(path.parent)


def _itk_image(array: NDArray[Any], geometry: Geometry, dimensions: int) -> Any:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array[0] if dimensions == 2 else array))
    image.SetSpacing(geometry.spacing_mm[::-1][:dimensions])
    image.SetOrigin(geometry.origin_mm[:dimensions])
    image.SetDirection([value for row in geometry.direction[:dimensions] for value in row[:dimensions]])
    return image

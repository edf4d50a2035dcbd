"""Voxels of DICOM slices: plain ones taken from their bytes, run-length ones by pydicom, all others by a guarded worker.

The decoders of JPEG and JPEG 2000 have been seen to search for minutes in broken files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from autoseg.imaging.readers.dicom import number, read_tags, tags_of
from autoseg.imaging.readers.guarded import decode_slices
from autoseg.imaging.readers.header import damaged
from autoseg.imaging.readers.memory import require_memory

PIXEL_TAGS = [
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelData",
]
WORDS = {8: "1", 16: "2", 32: "4"}


def slice_voxels(
    path: Path, files: Sequence[Path], shape: tuple[int, int, int], num_channels: int
) -> NDArray[np.float32]:
    """Voxels of ``files``, one slice each, in the order given, rescaled each its own way: float32 (C, Z, Y, X).

    ``path`` names the series in errors. Raises `AutosegError` when pixels are missing or cannot be decoded.
    """
    require_memory(path, num_channels * math.prod(shape) * 4)
    result = np.empty((num_channels, *shape), np.float32)
    packed: list[_Packed] = []
    with TemporaryDirectory() as folder:
        for index, file in enumerate(files):
            tags = read_tags(file, PIXEL_TAGS, pixels=True)
            with tags_of(file):
                if num_channels > 1 or _is_packed(tags):
                    packed.append(_write_pixels_only(file, tags, Path(folder, f"{index}.dcm"), index))
                else:
                    result[0, index] = _plane(file, tags, shape[1:])
        if packed:
            voxels = decode_slices(path, [item.file for item in packed], (num_channels, len(packed), *shape[1:]))
            for index, item in enumerate(packed):
                result[:, item.place] = voxels[:, index] * np.float64(item.slope) + item.intercept
    return result


@dataclass(frozen=True, slots=True)
class _Packed:
    """A slice that ITK is to decode."""

    file: Path
    place: int
    """Its index along z."""
    slope: float
    intercept: float


def _is_packed(tags: Any) -> bool:
    """Whether the pixels are in a form that only ITK decodes."""
    syntax = tags.file_meta.get("TransferSyntaxUID")
    return syntax is not None and bool(syntax.is_encapsulated) and syntax != RLELossless


def _write_pixels_only(file: Path, tags: Any, copy: Path, place: int) -> _Packed:
    """Copy a slice with nothing but its pixels, well-formed.

    ITK's reader searches files with broken tags for minutes. It gets none of them to see.
    """
    pixels = tags.get("PixelData") or b""
    syntax = tags.file_meta.get("TransferSyntaxUID")
    if not pixels:
        raise damaged(file, "it has no pixels")
    if syntax.is_encapsulated:  # all parts are of the one frame; a new shell for them has no faults
        tags.PixelData = encapsulate([b"".join(generate_fragments(pixels))])
        tags["PixelData"].is_undefined_length = True
    slope, intercept = _rescaling(tags)
    for name in ("RescaleSlope", "RescaleIntercept"):
        if name in tags:
            del tags[name]
    tags.SOPClassUID, tags.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    tags.file_meta = FileMetaDataset()
    tags.file_meta.TransferSyntaxUID = syntax
    tags.file_meta.MediaStorageSOPClassUID = tags.SOPClassUID
    tags.file_meta.MediaStorageSOPInstanceUID = tags.SOPInstanceUID
    tags.save_as(copy, enforce_file_format=True)
    return _Packed(copy, place, slope, intercept)


def _rescaling(tags: Any) -> tuple[float, float]:
    return number(tags, "RescaleSlope", 1.0) or 1.0, number(tags, "RescaleIntercept", 0.0)


def _plane(file: Path, tags: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    syntax = tags.file_meta.get("TransferSyntaxUID")
    pixels = _decoded(file, tags, shape) if syntax == RLELossless else _plain(file, tags, shape, syntax)
    slope, intercept = _rescaling(tags)
    return pixels * slope + intercept


def _decoded(file: Path, tags: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    pixels: NDArray[Any] = tags.pixel_array
    if pixels.shape != shape:
        raise damaged(file, f"its header says {shape} voxels (y, x), but {pixels.shape} were read")
    return pixels


def _plain(file: Path, tags: Any, shape: tuple[int, ...], syntax: Any) -> NDArray[Any]:
    """Pixels that are stored as they are; bits above the stored ones belong to something else and are cleared."""
    bits = int(number(tags, "BitsAllocated", 16))
    stored = int(number(tags, "BitsStored", bits))
    high = int(number(tags, "HighBit", stored - 1))
    if bits not in WORDS or not 0 < stored <= bits or not stored - 1 <= high < bits:
        raise damaged(file, f"it stores {stored} of {bits} bits up to bit {high}")
    is_little = syntax is None or syntax == DeflatedExplicitVRLittleEndian or syntax.is_little_endian
    sign = "i" if number(tags, "PixelRepresentation", 0.0) else "u"
    kind = np.dtype(f"{'<' if is_little else '>'}{sign}{WORDS[bits]}")
    raw, expected = tags.get("PixelData") or b"", math.prod(shape) * kind.itemsize
    if len(raw) < expected:
        raise damaged(file, f"its header promises {expected} bytes of pixels, but it holds {len(raw)}")
    pixels = np.frombuffer(raw, kind, math.prod(shape)).reshape(shape).astype(kind.newbyteorder("="))
    if stored < bits:
        pixels = (pixels << (bits - 1 - high)) >> (bits - stored)
    return pixels

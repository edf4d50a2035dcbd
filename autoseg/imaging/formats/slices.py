"""Voxels of DICOM slices: plain ones taken from their bytes, run-length ones by pydicom, all others by a guarded worker.

The decoders of JPEG and JPEG 2000 have been seen to search for minutes in broken files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from autoseg.imaging.formats.dicom import number, read_tags, tags_of
from autoseg.imaging.formats.guarded import decode_series
from autoseg.imaging.formats.header import damaged
from autoseg.imaging.formats.memory import require_memory

PIXEL_TAGS = [
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PhotometricInterpretation", "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "PixelData",
]
WORDS = {8: "1", 16: "2", 32: "4"}


def slice_voxels(path: Path, files: Sequence[Path], shape: tuple[int, int, int], num_channels: int) -> NDArray[np.float32]:
    """Voxels of ``files``, one slice each, in the order given, rescaled each its own way: float32 (C, Z, Y, X).

    ``path`` names the series in errors. Raises `AutosegError` when pixels are missing or cannot be decoded.
    """
    require_memory(path, num_channels * math.prod(shape) * 4)
    read = [_syntax(file) for file in files]
    own = all(syntax is None or not syntax.is_encapsulated or syntax == RLELossless for syntax in read)
    if not own or num_channels > 1:
        return decode_series(path, files, (num_channels, *shape))
    result = np.empty((1, *shape), np.float32)
    for index, file in enumerate(files):
        result[0, index] = _plane(file, shape[1:])
    return result


def _syntax(file: Path) -> Any:
    tags = read_tags(file, ["Rows"])
    with tags_of(file):
        return tags.file_meta.get("TransferSyntaxUID")


def _plane(file: Path, shape: tuple[int, ...]) -> NDArray[np.float64]:
    tags = read_tags(file, PIXEL_TAGS, pixels=True)
    with tags_of(file):
        syntax = tags.file_meta.get("TransferSyntaxUID")
        pixels = _decoded(file, tags, shape) if syntax == RLELossless else _plain(file, tags, shape, syntax)
        return pixels * (number(tags, "RescaleSlope", 1.0) or 1.0) + number(tags, "RescaleIntercept", 0.0)


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

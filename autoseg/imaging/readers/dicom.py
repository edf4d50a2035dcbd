"""DICOM files: recognised by content, their tags read so that broken ones are named, and the pixels of slices.

Plain pixels are taken from their bytes, run-length ones decoded by pydicom, all others by ITK in a guarded worker: its
decoders of JPEG and JPEG 2000 can search for minutes in broken files.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage, generate_uid

from autoseg.imaging.readers.guarded import decode
from autoseg.imaging.readers.header import damaged, printable, require_memory, unreadable
from autoseg.imaging.readers.registry import image_ending
from autoseg.issues import AutosegError

PREAMBLE = 128
APPLE_DOUBLE = "._"
"""Begins the names of files in which macOS keeps what other file systems cannot; they have the ending of their file."""
MAGIC = b"DICM"
PART_MARK = "#"
"""``FOLDER#SeriesInstanceUID`` names one of several series in a folder, ``FILE#5`` segment 5 of a DICOM SEG file."""
MOST_INFLATED = 2**31
"""Bytes that a deflated file may grow to."""
CHUNK = 2**20
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


def split_part(path: Path) -> tuple[Path, str | None]:
    """What exists on disk, and the series or segment named behind ``#``; None where all of it is meant."""
    whole, mark, part = str(path).rpartition(PART_MARK)
    if not mark or "/" in part or path.exists():
        return path, None
    return Path(whole), part


def begins_as_dicom(file: Path) -> bool:
    """Whether ``file`` begins as a DICOM file does. Raises `OSError` where it cannot be read."""
    with open(file, "rb") as stream:
        return stream.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC


def is_dicom(file: Path) -> bool:
    """Whether ``file`` begins as a DICOM file does; one that cannot be read is none."""
    try:
        return begins_as_dicom(file)
    except OSError:
        return False


def dicom_candidates(folder: Path) -> list[Path]:
    """Files of a folder that may be DICOM by their names, which can have any ending or none.

    Links to files that are not there count, too: they may be slices whose content has not been fetched.
    """
    try:
        return sorted(
            file
            for file in folder.iterdir()
            if image_ending(file) in ("", ".dcm")
            and not file.name.startswith(APPLE_DOUBLE)
            and (file.is_file() or _leads_nowhere(file))
        )
    except OSError as error:
        raise unreadable(folder, error) from None


def _leads_nowhere(file: Path) -> bool:
    return file.is_symlink() and not file.exists() and not file.name.startswith(".")


def read_tags(file: Path, tags: Sequence[str] | None = None, *, pixels: bool = False) -> Any:
    """The data set of ``file`` (all of ``tags``, by default everything), with its pixels if asked for.

    Raises `AutosegError` for any fault of the file.
    """
    with tags_of(file):
        _check_inflated(file)
        found = pydicom.dcmread(file, stop_before_pixels=not pixels, specific_tags=None if tags is None else list(tags))
        list(found.file_meta)  # values are parsed when first asked for; here a broken one is named with its file
        for name in tags or ():
            found.get(name)
        return found


@contextmanager
def tags_of(file: Path) -> Iterator[None]:
    """Name ``file`` where parsing its tags fails: pydicom lets through whatever broken bytes cause."""
    try:
        with warnings.catch_warnings():  # values against the letter of the standard are common and do no harm
            warnings.simplefilter("ignore")
            yield
    except AutosegError as error:  # items of a sequence do not know their file
        where = printable(file)
        raise AutosegError(*[i.model_copy(update={"where": i.where or where}) for i in error.issues]) from None
    except OSError as error:
        raise unreadable(file, error) from None
    except Exception as error:
        raise damaged(file, message=_cause(error)) from None


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}"[:300].split())


def _check_inflated(file: Path) -> None:
    """Refuse a deflated file that grows without end: pydicom would inflate all of it at once."""
    with open(file, "rb") as stream:
        stream.seek(PREAMBLE + len(MAGIC))
        meta = pydicom.filereader.read_file_meta_info(file)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        stream.seek(PREAMBLE + len(MAGIC) + 12 + int(meta.get("FileMetaInformationGroupLength", 0)))
        inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        chunk = stream.read(CHUNK)
        while chunk and not inflater.eof:
            size += len(inflater.decompress(chunk, CHUNK))
            if size > MOST_INFLATED:
                raise damaged(
                    file, code="reader.corrupt", message=f"it decompresses to more than {MOST_INFLATED} bytes"
                )
            chunk = inflater.unconsumed_tail or stream.read(CHUNK)


def number(tags: Any, name: str, default: float) -> float:
    """A tag with one number; ``default`` where it is missing or empty."""
    return default if tags.get(name) in (None, "") else float(vector(tags, name, 1)[0])


def vector(tags: Any, name: str, size: int) -> NDArray[np.float64]:
    """A tag with ``size`` numbers, finite; `AutosegError` where it has others."""
    found = tags.get(name)
    try:
        values = np.atleast_1d(np.array(found, np.float64))
    except (TypeError, ValueError):
        values = np.array([])
    if values.shape != (size,) or not np.isfinite(values).all():
        raise damaged(
            getattr(tags, "filename", ""), message=f"{name} is {str(found)[:100]!r}, not {size} finite numbers"
        )
    return values


# --- pixels ---


def slice_voxels(
    path: Path, files: Sequence[Path], shape: tuple[int, int, int], num_channels: int
) -> NDArray[np.float32]:
    """Voxels of ``files``, one slice each, in the order given, each rescaled by its own slope and intercept: float32 (C, Z, Y, X).

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
            voxels = decode(path, [item.file for item in packed], (num_channels, len(packed), *shape[1:]), "slices")
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
        raise damaged(file, code="reader.truncated", message="it has no pixels")
    if syntax.is_encapsulated:  # all parts are of the one frame; a new shell for them has no faults
        tags.PixelData = encapsulate([next(generate_frames(pixels, number_of_frames=1))])
        tags["PixelData"].is_undefined_length = True
    slope, intercept = rescaling(tags)
    for name in ("RescaleSlope", "RescaleIntercept"):
        if name in tags:
            del tags[name]
    if tags.get("PhotometricInterpretation") == "MONOCHROME1":  # how to show it; ITK would invert the values
        tags.PhotometricInterpretation = "MONOCHROME2"
    tags.SOPClassUID, tags.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    tags.file_meta = FileMetaDataset()
    tags.file_meta.TransferSyntaxUID = syntax
    tags.file_meta.MediaStorageSOPClassUID = tags.SOPClassUID
    tags.file_meta.MediaStorageSOPInstanceUID = tags.SOPInstanceUID
    tags.save_as(copy, enforce_file_format=True)
    return _Packed(copy, place, slope, intercept)


def rescaling(tags: Any) -> tuple[float, float]:
    """Slope and intercept of the values of a slice."""
    return number(tags, "RescaleSlope", 1.0) or 1.0, number(tags, "RescaleIntercept", 0.0)


def _plane(file: Path, tags: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    syntax = tags.file_meta.get("TransferSyntaxUID")
    pixels = _decoded(file, tags, shape) if syntax == RLELossless else _plain(file, tags, shape, syntax)
    slope, intercept = rescaling(tags)
    return pixels * slope + intercept


def _decoded(file: Path, tags: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    pixels: NDArray[Any] = tags.pixel_array
    if pixels.shape != shape:
        raise damaged(
            file,
            code="reader.corrupt",
            message=f"the header declares {shape} voxels (y, x), but {pixels.shape} were read",
        )
    return pixels


def _plain(file: Path, tags: Any, shape: tuple[int, ...], syntax: Any) -> NDArray[Any]:
    """Pixels that are stored as they are; bits above the stored ones belong to something else and are cleared."""
    bits = int(number(tags, "BitsAllocated", 16))
    stored = int(number(tags, "BitsStored", bits))
    high = int(number(tags, "HighBit", stored - 1))
    if bits not in WORDS or not 0 < stored <= bits or not stored - 1 <= high < bits:
        raise damaged(file, message=f"it stores {stored} of {bits} bits up to bit {high}")
    is_little = syntax is None or syntax == DeflatedExplicitVRLittleEndian or syntax.is_little_endian
    sign = "i" if number(tags, "PixelRepresentation", 0.0) else "u"
    kind = np.dtype(f"{'<' if is_little else '>'}{sign}{WORDS[bits]}")
    raw, expected = tags.get("PixelData") or b"", math.prod(shape) * kind.itemsize
    if len(raw) < expected:
        raise damaged(
            file,
            code="reader.truncated",
            message=f"the header declares {expected} bytes of pixels, but the file has {len(raw)}",
        )
    pixels = np.frombuffer(raw, kind, math.prod(shape)).reshape(shape).astype(kind.newbyteorder("="))
    if stored < bits:
        pixels = (pixels << (bits - 1 - high)) >> (bits - stored)
    return pixels

"""DICOM files: recognised by content, their tags read so that broken ones are named, and the pixels of their frames.

pydicom decodes. Plain pixels are decoded here, compressed ones in a guarded worker, with imagecodecs where pydicom has no decoder of its own.
"""

from __future__ import annotations

import math
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from autoseg.imaging.readers.guarded import decode
from autoseg.imaging.readers.header import damaged, printable, unreadable, unsupported
from autoseg.imaging.readers.registry import image_ending, is_debris
from autoseg.imaging.readers.worker import FRAME_TAGS, complete
from autoseg.issues import AutosegError

PREAMBLE = 128
MAGIC = b"DICM"
BARE = re.compile(
    rb"\x02\0[\0-\x10]\0(?:UL|OB|UI)|\x08\0[\0-\x20]\0(?:UL|CS|UI|DA|TM)"
    rb"|\x08\0[\0\x01]\0\x04\0\0\0|\x08\0[\x05\x08\x12\x16\x18]\0[\x02-\x40]\0\0\0[0-9A-Z]"
)
"""How a file without the preamble begins: with the first elements of group 2 or 8, little endian, as old programs wrote it."""
DIRECTORY = "DICOMDIR"
"""The name of a table of contents, which holds no image."""
LEFTOVER = re.compile(r"(?i)~.*|.*(?:~|\.(?:bak|old|orig|tmp|temp|part|partial|crdownload))")
PART_MARK = "#"
"""``FOLDER#SeriesInstanceUID`` names one of several series in a folder, ``FILE#5`` segment 5 of a DICOM SEG file,
``FILE#frame5`` the fifth volume of a file with four axes."""
MOST_INFLATED = 2**31
"""Bytes that a deflated file may grow to."""
CHUNK = 2**20
PALETTE = "PALETTE COLOR"
UNDEFINED_LENGTH = 2**32 - 1
KNOWN_SLICES = 2**17
"""Slices whose series is remembered: some 50 MB."""


def split_part(path: Path) -> tuple[Path, str | None]:
    """What exists on disk, and the series or segment named behind ``#``; None where all of it is meant."""
    whole, mark, part = str(path).rpartition(PART_MARK)
    if not mark or "/" in part or path.exists():
        return path, None
    return Path(whole), part


def begins_as_dicom(file: Path) -> bool:
    """Whether ``file`` begins as a DICOM file does. Raises `OSError` where it cannot be read."""
    with open(file, "rb") as stream:
        head = stream.read(PREAMBLE + len(MAGIC))
    return head[PREAMBLE:] == MAGIC or BARE.match(head) is not None


def is_leftover(file: Path) -> bool:
    """Whether the name of a file is one that programs give to backups and unfinished copies."""
    return LEFTOVER.fullmatch(file.name) is not None


def is_dicom(file: Path) -> bool:
    """Whether ``file`` begins as a DICOM file does; one that cannot be read is none."""
    try:
        return begins_as_dicom(file)
    except OSError:
        return False


def dicom_candidates(folder: Path) -> list[Path]:
    """Files of a folder that may be DICOM by their names, which can have any ending or none; hidden ones (``._slice.dcm``) and backups are none.

    Links to files that are not there count, too: they may be slices whose content has not been fetched.
    """
    try:
        return sorted(
            file
            for file in folder.iterdir()
            if image_ending(file) in ("", ".dcm")
            and not is_debris(file)
            and not is_leftover(file)
            and file.name.upper() != DIRECTORY
            and (file.is_file() or (file.is_symlink() and not file.exists()))
        )
    except OSError as error:
        raise unreadable(folder, error) from None


def read_tags(file: Path, tags: Sequence[Any] | None = None, *, pixels: bool = False) -> Any:
    """The data set of ``file`` (all of ``tags``, by default everything), with its pixels if asked for.

    Raises `AutosegError` for any fault of the file.
    """
    with tags_of(file):
        if not begins_as_dicom(file):
            raise damaged(file, code="reader.unknown_format", message="it does not start like a DICOM file")
        _check_inflated(file)
        names = None if tags is None else list(tags)
        found = pydicom.dcmread(file, stop_before_pixels=not pixels, specific_tags=names, force=True)
        if "TransferSyntaxUID" not in found.file_meta:
            is_implicit, _ = found.original_encoding
            found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
        for element in map(
            found.get_item, found.keys()
        ):  # pydicom takes what it gets, and a sequence would lose its end
            if isinstance(element, RawDataElement) and len(element.value or b"") < element.length < UNDEFINED_LENGTH:
                raise damaged(file, code="reader.truncated", message="it ends before its data")
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
        raise damaged(file, message=" ".join(f"{type(error).__name__}: {error}"[:300].split())) from None


def _check_inflated(file: Path) -> None:
    """Refuse a deflated file that grows without end: pydicom would inflate all of it at once."""
    with open(file, "rb") as stream:
        if stream.read(PREAMBLE + len(MAGIC))[PREAMBLE:] != MAGIC:
            if DeflatedExplicitVRLittleEndian.encode() + b"\0" in stream.read(CHUNK):
                raise unsupported(
                    file, message="it is compressed as a whole and has no preamble", fix="store it uncompressed"
                )
            return
        meta = pydicom.filereader.read_file_meta_info(file)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        stream.seek(PREAMBLE + len(MAGIC) + 12 + int(meta.get("FileMetaInformationGroupLength", 0)))
        inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        chunk = stream.read(CHUNK)
        while chunk and not inflater.eof:
            size += len(inflater.decompress(chunk, CHUNK))
            if size > MOST_INFLATED:
                message = f"it decompresses to more than {MOST_INFLATED} bytes"
                raise damaged(file, code="reader.corrupt", message=message)
            chunk = inflater.unconsumed_tail or stream.read(CHUNK)


def series_uid(file: Path) -> str:
    """SeriesInstanceUID of a file; empty where it has none. Remembered: folders of many series are asked for one after the other."""
    status = file.stat()
    return _series_uid(file, status.st_size, status.st_mtime_ns)


@lru_cache(KNOWN_SLICES)
def _series_uid(file: Path, _size: int, _mtime_ns: int) -> str:
    return str(read_tags(file, ["SeriesInstanceUID"]).get("SeriesInstanceUID") or "")


def kind_of(tags: Any) -> str:
    """What a file is by its SOP class: ``CT Image``, ``RT Structure Set``."""
    uid = tags.get("SOPClassUID") or tags.file_meta.get("MediaStorageSOPClassUID")
    return str(getattr(uid, "name", None) or "file of unknown kind").removesuffix(" Storage")


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
        where = getattr(tags, "filename", "")
        raise damaged(where, message=f"{name} is {str(found)[:100]!r}, not {size} finite numbers")
    return values


def owner_of(owners: Sequence[Any], group: str, name: str) -> Any | None:
    """The first of ``owners`` (see `frame_owners`) that has the tag ``name``, in its sequence ``group`` or directly."""
    for owner in owners:
        for item in (*(owner.get(group) or ())[:1], owner):
            if item.get(name) not in (None, ""):
                return item
    return None


def num_frames(tags: Any) -> int:
    """How many frames a file declares."""
    return max(1, int(number(tags, "NumberOfFrames", 1)))


def frame_owners(file: Path, tags: Any) -> list[list[Any]]:
    """For each frame, where `owner_of` looks for its values: its own functional groups, the shared ones, the file."""
    count = num_frames(tags)
    frames = list(tags.get("PerFrameFunctionalGroupsSequence") or ())
    if frames and len(frames) != count:
        raise damaged(file, message=f"it describes {len(frames)} of {count} frames")
    shared = list(tags.get("SharedFunctionalGroupsSequence") or ())[:1]
    # volumes of nuclear medicine keep their place with the detector, as do planar images, where it is none in the patient
    shared += list(tags.get("DetectorInformationSequence") or ())[:1] if is_reconstructed(tags) else []
    return [[*frames[k : k + 1], *shared, tags] for k in range(count)]


def is_reconstructed(tags: Any) -> bool:
    """Whether an image of nuclear medicine is a volume."""
    return any(str(word).startswith("RECON") for word in image_type(tags))


def image_type(tags: Any) -> list[str]:
    """The words of ImageType."""
    found = tags.get("ImageType") or ()
    return [found] if isinstance(found, str) else list(found)


# --- pixels ---


def decoded(path: Path, files: Mapping[Path, Any]) -> Iterator[NDArray[Any]]:
    """Stored values (frames, Y, X, samples) of each of ``files``, given with their tags; all have the shape of the first.

    Colours are RGB, or the indices of a palette. ``path`` names the series in errors. Raises `AutosegError` when pixels
    are missing or cannot be decoded.
    """
    counts = {file: num_frames(tags) for file, tags in files.items()}
    first = next(iter(files.values()))
    plane = tuple(int(number(first, name, 1)) for name in ("Rows", "Columns", "SamplesPerPixel"))
    packed = {file: counts[file] for file, tags in files.items() if _is_packed(file, tags)}
    unpacked = decode(path, list(packed), (sum(packed.values()), *plane), "dicom") if packed else np.empty(0)
    parts = iter(np.split(unpacked, np.cumsum(list(packed.values()))))
    for file, count in counts.items():
        yield next(parts) if file in packed else _plain(file, (count, *plane))


def _is_packed(file: Path, tags: Any) -> bool:
    """Whether the pixels are compressed. Raises `AutosegError` where pydicom knows no way to decode them."""
    with tags_of(file):
        syntax = tags.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
        if not syntax.is_transfer_syntax:
            raise unsupported(file, message=f"its transfer syntax {syntax} is not known", fix="store it uncompressed")
        is_packed = bool(syntax.is_encapsulated)
        try:
            get_decoder(syntax)
        except NotImplementedError:
            raise unsupported(
                file, message=f"its transfer syntax is {syntax.name}", fix="store it uncompressed"
            ) from None
        return is_packed


def _plain(file: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """Pixels that are stored as they are; bits above the stored ones belong to something else and are cleared."""
    tags = read_tags(file, FRAME_TAGS.split(), pixels=True)
    complete(tags)
    with tags_of(file):
        held = len(tags.get("PixelData") or tags.get("FloatPixelData") or tags.get("DoubleFloatPixelData") or b"")
        if held < get_expected_length(tags):
            message = f"the header declares {get_expected_length(tags)} bytes of pixels, but the file has {held}"
            raise damaged(file, code="reader.truncated", message=message)
        options: Any = {"correct_unused_bits": False}  # pydicom would take no notice of HighBit
        pixels, _ = get_decoder(tags.file_meta.TransferSyntaxUID).as_array(tags, **options)
        if "PixelData" in tags and tags.BitsAllocated > 1:
            bits, stored = int(tags.BitsAllocated), int(tags.BitsStored)
            high = int(number(tags, "HighBit", stored - 1))
            if not 0 < stored <= bits or not stored - 1 <= high < bits:
                raise damaged(file, message=f"it stores {stored} of {bits} bits up to bit {high}")
            if stored < bits:
                pixels = (pixels << (bits - 1 - high)) >> (bits - stored)
        if pixels.size != math.prod(shape):
            message = f"the header declares {shape} voxels (frames, y, x, samples), but {pixels.shape} were read"
            raise damaged(file, code="reader.corrupt", message=message)
        return pixels.reshape(shape)


def table_values(file: Path, tags: Any, pixels: NDArray[Any], *, colours: bool) -> NDArray[Any]:
    """Stored values (frames, Y, X, samples) after the tables that the file may have: of the modality, and of a palette if ``colours``."""
    is_palette = colours and tags.get("PhotometricInterpretation") == PALETTE
    if not is_palette and not tags.get("ModalityLUTSequence"):
        return pixels
    whole = read_tags(file)
    with tags_of(file):
        return np.asarray(apply_color_lut(pixels[..., 0], whole) if is_palette else apply_modality_lut(pixels, whole))

"""What the readers of all formats share: the header of an image, their errors, and voxels as bytes within memory."""

from __future__ import annotations

import bz2
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from autoseg.compute.memory import free_memory_bytes
from autoseg.imaging.image import Geometry
from autoseg.issues import AutosegError, Issue
from planners import issues_of

Floats = Sequence[float] | NDArray[np.float64]
STRAY_BYTE = re.compile("[\udc80-\udcff]")
"""What Python writes for a byte of a name that is not UTF-8."""
STRAY_TEXT = re.compile("[\ud800-\udfff]")
FLAT_SPACING_FACTOR = 999.0
"""A 2D image is this many times as thick as its larger pixel side, so that planning finds its slice axis coarsest
(method section 1.5)."""
UNNOTICED_SKEW = 1e-4
"""Directions this far from orthonormal are rounding of single precision and stay as they are."""
REPAIRABLE_SKEW = 0.05
"""Cosine between two axes, about 3 degrees, up to which a skewed grid is straightened."""
LESS_MEMORY = "close other programs, use fewer workers, or leave the case out"
SMALL_BYTES = 10**8
"""Images below this size are read without looking."""
MILLIMETRES = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "?", "none", "")
"""Units of length that mean millimetres or nothing."""
GZIP_MAGIC = b"\x1f\x8b"
ANY_WINDOW = 47
"""Tells zlib to expect the gzip or its own format, whose check sum it then compares."""
CHUNK = 2**20
MOST_PACKED = {"raw": 1, "gzip": 1040, "zlib": 1040, "ascii": 4}
"""Bytes that one byte can stand for: deflate writes at most 258 bytes for 2 bits, and a number of 8 bytes takes 2 as text."""
BYTES_OF_WORD = 100
"""Memory for a number as text while it is read."""
MOST_BEYOND = 2**26
"""Bytes behind the last voxel that are still read for the check sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """An image file without its voxels."""

    geometry: Geometry
    num_channels: int
    """Components of a voxel times entries of a fourth axis."""
    num_volumes: int = 1
    """Entries of a fourth axis, which may be points in time as well as channels; 1 where voxels have components."""
    pixel_type: str
    is_integer: bool
    notes: tuple[Issue, ...] = ()
    """What was repaired in the header or left out of the image."""
    modality: str = ""
    """As DICOM names it; empty where the format does not tell."""
    may_be_part: bool = False
    """A label map whose grid may be a part of its image's, background around it, as DICOM SEG stores it."""


def damaged(path: Path | str, *, code: str = "reader.bad_header", message: str) -> AutosegError:
    """The error for a file that ends early, contradicts itself, or is not what its ending says."""
    return reader_error(
        path, code=code, message=message, fix="copy the file again from its source, or leave the case out"
    )


def unsupported(path: Path | str, *, code: str = "reader.unsupported", message: str, fix: str) -> AutosegError:
    """The error for a sound file that uses what no reader here understands."""
    return reader_error(path, code=code, message=message, fix=fix)


def unreadable(path: Path | str, error: OSError) -> AutosegError:
    """The error for a file or folder that the operating system refuses to give."""
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        message = f"a link to {printable(os.readlink(path))}, which does not exist"
        fix = "fetch it (datalad get, git annex get), or correct the link"
        return reader_error(path, code="reader.missing", message=message, fix=fix)
    return reader_error(
        path,
        code="reader.missing" if isinstance(error, FileNotFoundError) else "reader.unreadable",
        message=f"could not be read ({error.strerror or error})",
        fix="check the path and its permissions",
    )


def reader_error(path: Path | str, *, code: str, message: str, fix: str) -> AutosegError:
    """An error of one issue that names ``path``."""
    return AutosegError(Issue(code=code, where=printable(path), message=" ".join(message.split()), fix=fix))


def header_note(path: Path, *, code: str, message: str) -> Issue:
    """What was repaired or chosen in the header of ``path``."""
    return Issue(
        code=code, severity="note", where=printable(path), message=message, fix="correct the header of the file"
    )


def unit_notes(path: Path, units: Iterable[str]) -> tuple[Issue, ...]:
    """A note where lengths are in another unit than mm, which other programs do not convert either."""
    others = [unit for unit in dict.fromkeys(units) if unit.strip().lower() not in MILLIMETRES]
    message = f"its lengths are in {', '.join(others)}; they were read as mm"
    return (header_note(path, code="reader.unit_ignored", message=message),) if others else ()


def make_geometry(
    path: Path,
    *,
    shape: Sequence[int],
    spacing_mm: Floats,
    origin_mm: Floats,
    direction: NDArray[np.float64],
    has_orientation: bool = True,
) -> tuple[Geometry, tuple[Issue, ...]]:
    """Geometry, and a note of what was repaired in it, of a 2D or 3D grid given x first as ITK does.

    ``direction`` has one column an index axis. A slightly skewed direction is replaced by the nearest orthonormal
    one; `AutosegError` if it is skewed by more, or if sizes or spacings make no sense.
    """
    dimensions = len(shape)
    spacing = tuple(abs(value) for value in spacing_mm)
    matrix = np.eye(3)
    # a negative spacing runs against the direction of its axis
    matrix[:dimensions, :dimensions] = np.where(np.less(spacing_mm, 0), -direction, direction)
    matrix, notes = _orthonormal(path, matrix)
    if dimensions == 2:
        shape, origin_mm = (*shape, 1), (*origin_mm, 0.0)
        spacing = (*spacing, FLAT_SPACING_FACTOR * max(spacing))
    try:
        geometry = Geometry.model_validate(
            {
                "shape": tuple(int(size) for size in shape[::-1]),
                "spacing_mm": tuple(float(value) for value in spacing[::-1]),
                "origin_mm": tuple(float(value) for value in origin_mm),
                "direction": tuple(map(tuple, matrix.tolist())),
                "dimensions": dimensions,
                "has_orientation": has_orientation,
            }
        )
    except ValidationError as error:
        raise damaged(path, message=f"the header is invalid: {'; '.join(map(str, issues_of(error)))}") from error
    return geometry, notes


def _orthonormal(path: Path, direction: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[Issue, ...]]:
    """The direction itself, or the orthonormal one that is nearest to it (polar decomposition)."""
    if not np.isfinite(direction).all():
        raise damaged(path, message=f"the direction is not finite: {direction.tolist()}")
    skew = skew_of(direction)
    if skew <= UNNOTICED_SKEW:
        return direction, ()
    if skew > REPAIRABLE_SKEW:
        raise reader_error(
            path,
            code="reader.skewed_grid",
            message=f"the axes of the grid are not perpendicular (product of two unit axes {skew:.3g}, "
            f"direction {np.round(direction, 4).tolist()})",
            fix="resample the image to a rectangular grid",
        )
    left, _, right = np.linalg.svd(direction)
    degrees = math.degrees(math.asin(min(1.0, skew)))
    message = f"its axes were {degrees:.2f} degrees from perpendicular and were straightened"
    return left @ right, (header_note(path, code="reader.straightened", message=message),)


def skew_of(direction: NDArray[np.float64]) -> float:
    """Largest difference from 1 or 0 of the products of the columns; NaN where a column is none."""
    return float(np.abs(direction.T @ direction - np.eye(len(direction))).max())


# --- names of files ---


def require_text(paths: Iterable[Path | str]) -> None:
    """Raise `AutosegError` with each of ``paths``, or the folder on the way to it, whose name is not valid UTF-8."""
    wrong = [Path(path) for path in paths if not is_text(str(path))]
    # the outermost such folder: renaming it is enough for all below it
    found = dict.fromkeys(
        next(one for one in (*reversed(path.parents), path) if not is_text(str(one))) for path in wrong
    )
    if found:
        raise AutosegError(
            *[
                Issue(
                    code="reader.name_not_text",
                    where=printable(path),
                    message="its name is not valid UTF-8",
                    fix="rename it",
                )
                for path in found
            ]
        )


def printable(text: Path | str) -> str:
    r"""A path, or a text with paths in it, that can be printed and stored: bytes that are not UTF-8 are written as ``\xfc``."""
    escaped = STRAY_BYTE.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", str(text))
    return escaped.encode("utf-8", "backslashreplace").decode("utf-8")


def is_text(name: str) -> bool:
    return STRAY_TEXT.search(name) is None


def voxel_file(path: Path, name: str) -> Path:
    """The file of voxels that the header ``path`` calls ``name``, UTF-8 with stray bytes escaped: these make it Latin-1.

    Raises `AutosegError` for what no file can be called, and where the voxels are in several files.
    """
    if name.startswith("LIST") or "%" in name:
        raise unsupported(
            path, message=f"its voxels are stored in several files ({name[:60]})", fix="store them in one file"
        )
    if "\0" in name:
        raise damaged(path, message=f"the header names {name[:60]!r} as the file of its voxels")
    return path.parent / (name if is_text(name) else name.encode("utf-8", "surrogateescape").decode("latin-1"))


# --- bytes within memory ---


def require_memory(path: Path, num_bytes: int) -> None:
    """Raise `AutosegError` when ``num_bytes`` for the voxels of ``path`` are more than there is."""
    if num_bytes > SMALL_BYTES and num_bytes > (free := free_memory_bytes()):
        raise reader_error(
            path,
            code="reader.too_large",
            message=f"its voxels need {num_bytes / 1e9:.1f} GB of memory, but {free / 1e9:.1f} GB is free",
            fix=LESS_MEMORY,
        )


def check_promise(path: Path, expected: int, held: int, encoding: str) -> None:
    """Raise `AutosegError` when ``held`` bytes cannot be ``expected`` ones, or when these are more than the free memory."""
    if expected > held * MOST_PACKED.get(encoding, math.inf):
        raise _truncated(path, expected, held)
    require_memory(path, expected)


def require_held(file: Path, start: int, expected: int, encoding: str) -> None:
    """Raise `AutosegError` where ``file`` is too small for ``expected`` bytes of voxels from byte ``start`` on (-1: at its end).

    Read headers, too, tell it: memory and time are estimated from them. A missing file is named where voxels are read.
    """
    held = max(0, file.stat().st_size - max(start, 0)) if file.is_file() else math.inf
    if expected > held * MOST_PACKED.get(encoding, math.inf):
        raise _truncated(file, expected, int(held))


def _truncated(path: Path, expected: int, held: int) -> AutosegError:
    message = f"the header declares {expected} bytes of voxels, but the file has {held}"
    return damaged(path, code="reader.truncated", message=message)


def encoding_of(path: Path) -> str:
    """``gzip`` or ``raw``, by the first bytes of a file."""
    with open(path, "rb") as file:
        return "gzip" if file.read(len(GZIP_MAGIC)) == GZIP_MAGIC else "raw"


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    try:
        yield
    except (zlib.error, EOFError) as error:
        raise damaged(path, code="reader.corrupt", message=f"its compressed data are corrupt: {error}") from None
    except OSError as error:
        raise unreadable(path, error) from None


def read_bytes(path: Path, number: int, *, whole: bool = False) -> bytes:
    """The first ``number`` bytes of a file, decompressed if it is gzip; with ``whole`` its check sum is compared too."""
    with _faults_of(path), open(path, "rb") as file:
        if encoding_of(path) == "gzip":
            return _unpack(file.read(-1 if whole else CHUNK), number, "gzip", whole=whole)
        # never ask for more than there is: a header may promise anything
        return file.read(min(number, os.fstat(file.fileno()).st_size))


def read_payload(path: Path, start: int, count: int, kind: np.dtype[Any], encoding: str) -> NDArray[Any]:
    """``count`` numbers of type ``kind`` that begin at byte ``start`` of ``path`` (-1: end with the file), in this
    machine's byte order.

    ``encoding`` is ``raw``, ``gzip``, ``zlib``, ``bzip2`` or ``ascii``. Raises `AutosegError` when bytes are missing or a check sum is
    wrong, before memory is allocated, where the size of the file shows it.
    """
    expected = count * kind.itemsize
    if not path.is_file():  # a pipe or a device would never end
        raise reader_error(
            path,
            code="reader.missing",
            message="the file is missing, but a header names it as the file of its voxels",
            fix="restore it next to its header",
        )
    with _faults_of(path), open(path, "rb") as file:
        held = os.fstat(file.fileno()).st_size
        start = held - expected if start < 0 else start
        check_promise(path, expected, max(0, held - start) if start >= 0 else 0, encoding)
        file.seek(start)
        if encoding == "ascii":
            return _written_numbers(path, file.read(), count, kind)
        raw = file.read(expected) if encoding == "raw" else _unpack(file.read(), expected, encoding, whole=True)
    if len(raw) < expected:
        raise _truncated(path, expected, len(raw))
    return np.frombuffer(raw, kind, count).astype(kind.newbyteorder("="), copy=False)


def _written_numbers(path: Path, text: bytes, count: int, kind: np.dtype[Any]) -> NDArray[Any]:
    require_memory(path, count * BYTES_OF_WORD)
    words = text.split(maxsplit=count)[:count]
    if len(words) < count:
        message = f"the header declares {count} numbers, but the file has {len(words)}"
        raise damaged(path, code="reader.truncated", message=message)
    try:
        return np.array(words).astype(kind.newbyteorder("="))
    except (ValueError, OverflowError) as error:
        raise damaged(path, code="reader.corrupt", message=f"its voxels are no numbers: {str(error)[:200]}") from None


def _unpack(data: bytes, number: int, encoding: str, *, whole: bool) -> bytes:
    """The first ``number`` bytes of compressed ``data``, which may have several gzip members.

    What follows is unpacked for the check sum only, up to a limit: a hostile file fills neither memory nor time.
    """
    parts: list[bytes] = []
    missing, beyond = number, 0
    while data:
        stream: Any = bz2.BZ2Decompressor() if encoding == "bzip2" else zlib.decompressobj(ANY_WINDOW)
        while not stream.eof:
            part = stream.decompress(data, missing or CHUNK)
            data = getattr(stream, "unconsumed_tail", b"")  # bz2 keeps what it has not taken
            if not part and not data and not stream.eof:
                if whole:
                    raise zlib.error(f"it ends after {number - missing + beyond} bytes, before its check sum")
                return b"".join(parts)
            beyond += 0 if missing else len(part)
            if missing:
                parts.append(part)
                missing -= len(part)
            if not whole and beyond > CHUNK:  # enough is known
                return b"".join(parts)
            if beyond > MOST_BEYOND:
                raise zlib.error(f"it has more than {MOST_BEYOND} bytes after the last voxel")
        data = stream.unused_data if encoding == "gzip" and stream.unused_data.startswith(GZIP_MAGIC) else b""
    return b"".join(parts)

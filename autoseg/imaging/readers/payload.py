"""The bytes of voxels behind a header: decompressed, complete, their check sum compared, never more than expected."""

from __future__ import annotations

import bz2
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from autoseg.compute.memory import free_memory_bytes
from autoseg.imaging.readers.header import damaged, is_text, reader_error, unreadable

LESS_MEMORY = "close other programs, use fewer workers, or leave the case out"
SMALL_BYTES = 10**8
"""Images below this size are read without looking."""
GZIP_MAGIC = b"\x1f\x8b"
GZIP_WINDOW, ZLIB_WINDOW = 31, 15
"""Tell zlib to expect the gzip or its own format, whose check sum it then compares."""
CHUNK = 2**20
MOST_PACKED = {"raw": 1, "gzip": 1040, "zlib": 1040}
"""Bytes that one byte can stand for: deflate writes at most 258 bytes for 2 bits."""
MOST_BEYOND = 2**26
"""Bytes behind the last voxel that are still read for the check sum."""


def voxel_file(path: Path, name: str) -> Path:
    """The file of voxels that the header ``path`` calls ``name``, UTF-8 with stray bytes escaped: these make it Latin-1.

    Raises `AutosegError` for what no file can be called.
    """
    if "\0" in name:
        raise damaged(path, message=f"the header names {name[:60]!r} as the file of its voxels")
    if not is_text(name):
        name = name.encode("utf-8", "surrogateescape").decode("latin-1")
    return path.parent / name


def require_memory(path: Path, num_bytes: int) -> None:
    """Raise `AutosegError` when ``num_bytes`` for the voxels of ``path`` are more than there is."""
    if num_bytes <= SMALL_BYTES:
        return
    free = free_memory_bytes()
    if num_bytes > free:
        raise reader_error(
            path,
            code="reader.too_large",
            message=f"its voxels need {num_bytes / 1e9:.1f} GB of memory, but {free / 1e9:.1f} GB is free",
            fix=LESS_MEMORY,
        )


def encoding_of(path: Path) -> str:
    """``gzip`` or ``raw``, by the first bytes of a file."""
    with open(path, "rb") as file:
        return "gzip" if file.read(len(GZIP_MAGIC)) == GZIP_MAGIC else "raw"


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from None
    except (zlib.error, EOFError) as error:
        raise damaged(path, code="reader.corrupt", message=f"its compressed data are corrupt: {error}") from None


def read_bytes(path: Path, number: int, *, whole: bool = False) -> bytes | bytearray:
    """The first ``number`` bytes of a file, decompressed if it is gzip; with ``whole`` its check sum is compared too."""
    with _faults_of(path), open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)  # never ask for more than there is: a header may promise anything
        file.seek(0)
        if encoding_of(path) == "gzip":
            return _unpack(file, number, "gzip", whole=whole)
        return file.read(min(number, size))


def read_payload(path: Path, start: int, count: int, kind: np.dtype[Any], encoding: str) -> NDArray[Any]:
    """``count`` numbers of type ``kind`` that begin at byte ``start`` of ``path`` (-1: end with the file), in this
    machine's byte order.

    ``encoding`` is ``raw``, ``gzip``, ``zlib`` or ``bzip2``. Raises `AutosegError` when bytes are missing or a check sum is
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
        held = file.seek(0, os.SEEK_END)
        start = held - expected if start < 0 else start
        check_promise(path, expected, max(0, held - start) if start >= 0 else 0, encoding)
        file.seek(start)
        raw = file.read(expected) if encoding == "raw" else _unpack(file, expected, encoding, whole=True)
    if len(raw) < expected:
        raise damaged(
            path,
            code="reader.truncated",
            message=f"the header declares {expected} bytes of voxels, but the file has {len(raw)}",
        )
    voxels = np.frombuffer(raw, kind, count)
    return voxels.astype(kind.newbyteorder("="), copy=False)


def check_promise(path: Path, expected: int, held: int, encoding: str) -> None:
    """Raise `AutosegError` when ``held`` bytes cannot be ``expected`` ones, or when these are more than the free memory."""
    if expected > held * MOST_PACKED.get(encoding, math.inf):
        raise damaged(
            path,
            code="reader.truncated",
            message=f"the header declares {expected} bytes of voxels, but the file has {held}",
        )
    require_memory(path, expected)


def _unpack(file: BinaryIO, number: int, encoding: str, *, whole: bool) -> bytearray:
    """The first ``number`` bytes of a compressed stream, which may have several members.

    What follows is read for the check sum only, up to a limit: a hostile file fills neither memory nor time.
    """
    result, beyond, stream = bytearray(), 0, None
    while len(result) < number or whole:
        chunk = file.read(CHUNK)
        if not chunk:
            break
        while chunk:
            if stream is None:
                if (result or beyond) and not (encoding == "gzip" and chunk.startswith(GZIP_MAGIC)):
                    return result  # padding behind the last member
                stream = STREAMS[encoding]()
            missing = number - len(result)
            part = stream.decompress(chunk, missing or CHUNK)
            if missing:
                result += part
            else:
                beyond += len(part)
            if beyond > MOST_BEYOND:
                raise zlib.error(f"it has more than {MOST_BEYOND} bytes after the last voxel")
            chunk = stream.unused_data if stream.eof else _left_over(stream)
            stream = None if stream.eof else stream
    if whole and stream is not None:
        raise zlib.error(f"it ends after {len(result) + beyond} bytes, before its check sum")
    return result


def _left_over(stream: Any) -> bytes:
    """Input that a stream has not taken yet because its output was limited."""
    if isinstance(stream, _Bzip2):
        return stream.rest
    rest: bytes = stream.unconsumed_tail
    return rest


class _Bzip2:
    """bz2's decompressor, which keeps input to itself, in the manner of zlib's."""

    def __init__(self) -> None:
        self._stream = bz2.BZ2Decompressor()
        self.rest = b""

    def decompress(self, data: bytes, most: int) -> bytes:
        """At most ``most`` bytes."""
        part = self._stream.decompress(b"" if self.rest == b"\0" else data, most)
        # the one byte stands for "ask again": what is left lies inside the decompressor
        self.rest = b"" if self._stream.needs_input or self._stream.eof else b"\0"
        return part

    @property
    def eof(self) -> bool:
        """Whether the end of the stream was reached."""
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        """What follows the stream."""
        return self._stream.unused_data


STREAMS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(GZIP_WINDOW),
    "zlib": lambda: zlib.decompressobj(ZLIB_WINDOW),
    "bzip2": _Bzip2,
}

"""GIPL files: whether all their bytes are there, which ITK's reader does not ask."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from autoseg.imaging.readers.header import damaged
from autoseg.imaging.readers.payload import GZIP_MAGIC, check_promise, read_bytes

HEADER_BYTES = 256
BYTES_OF_TYPE = {1: 1, 7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
"""Size of a voxel by the header's number of its type."""


def check_gipl(path: Path) -> None:
    """Raise `AutosegError` where voxels are missing, or where the check sum of a packed file is wrong."""
    head = read_bytes(path, HEADER_BYTES)
    if len(head) < HEADER_BYTES:
        raise damaged(path, f"it has {len(head)} bytes, fewer than a header", "truncated")
    *sizes, kind = struct.unpack(">4HH", head[:10])
    if kind not in BYTES_OF_TYPE or min(sizes[:2]) < 1:
        raise damaged(path, f"its header gives the sizes {tuple(sizes)} and the type {kind}")
    expected = HEADER_BYTES + math.prod(max(1, size) for size in sizes) * BYTES_OF_TYPE[kind]
    with open(path, "rb") as file:
        encoding = "gzip" if file.read(2) == GZIP_MAGIC else "raw"
    check_promise(path, expected, path.stat().st_size, encoding)
    if len(read_bytes(path, expected, whole=True)) < expected:
        raise damaged(path, f"its header promises {expected} bytes, but the file has fewer", "truncated")

"""NRRD files, with their voxels inside or beside them, read here: ITK's reader can be crashed by a broken header."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.readers.header import ImageHeader, damaged, make_geometry
from autoseg.imaging.readers.payload import read_payload, voxel_file
from autoseg.issues import AutosegError

MAGIC = b"NRRD"
LONGEST_HEADER = 2**20
TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
SPATIAL_KINDS = ("domain", "space", "???", "none")
FLIPS = {
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
"""Signs that bring a named space to Left, Posterior, Superior; other spaces are taken as such."""
VECTOR = re.compile(r"none|\([^()]*\)")


@dataclass(frozen=True, slots=True)
class _Nrrd:
    header: ImageHeader
    kind: np.dtype[Any]
    sizes: tuple[int, ...]
    """Fastest axis first."""
    spatial: tuple[int, ...]
    """The axes of space among them."""
    data: Path
    start: int
    encoding: str


def nrrd_header(path: Path) -> ImageHeader:
    """The header of an NRRD file. Raises `AutosegError` for what makes no sense or is not read here."""
    return _parse(path).header


def nrrd_voxels(path: Path) -> NDArray[Any]:
    """All voxels of an NRRD file, (C, Z, Y, X), every byte there and, where compressed, its check sum compared."""
    found = _parse(path)
    flat = read_payload(found.data, found.start, math.prod(found.sizes), found.kind, found.encoding)
    array = flat.reshape(found.sizes[::-1])
    last = len(found.sizes) - 1
    others = [last - axis for axis in range(last + 1) if axis not in found.spatial]
    array = array.transpose(*others, *(last - axis for axis in reversed(found.spatial)))
    shape = found.header.geometry.shape
    return array.reshape(-1, *shape)


def _parse(path: Path) -> _Nrrd:
    fields, start = _read_fields(path)
    try:
        return _understand(path, fields, start)
    except (ValueError, OverflowError, KeyError, IndexError) as error:
        raise damaged(path, f"its header makes no sense ({str(error)[:200]})") from None


def nrrd_voxel_file(path: Path) -> Path:
    """The file with the voxels: ``path`` itself, or the one that its header names."""
    return _parse(path).data


def nrrd_pairs(path: Path) -> dict[str, str]:
    """Keys and values of the header (``key:=value``), which are no fields of the format; none of a file that is no NRRD."""
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return {}
    content, end, _ = _head(path)
    lines = content[:end].decode("utf-8", "replace").splitlines()[1:]
    return {
        key: value for key, mark, value in (line.partition(":=") for line in lines) if mark and not key.startswith("#")
    }


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """Fields of the header, names in lower case, and where the voxels begin in the same file."""
    content, end, start = _head(path)
    fields = {}
    for text in content[:end].splitlines()[1:]:  # of bytes: letters of UTF-8 would break lines, too
        line = text.decode("latin-1")
        name, colon, value = line.partition(": ") if ": " in line else line.partition(":")
        if colon and ":=" not in line and not line.startswith("#"):
            fields[name.strip().lower()] = value.strip()
    return fields, start


def _head(path: Path) -> tuple[bytes, int, int]:
    """The first bytes of a file, where its header ends in them, and where its voxels begin."""
    with open(path, "rb") as file:
        content = file.read(LONGEST_HEADER)
    if not content.startswith(MAGIC):
        raise damaged(path, "it does not begin as an NRRD file")
    end = re.search(rb"\r?\n\r?\n", content)
    return (content, end.start(), end.end()) if end else (content, len(content), len(content))


def _understand(path: Path, fields: Mapping[str, str], start: int) -> _Nrrd:
    sizes = tuple(int(word) for word in fields["sizes"].split())
    if len(sizes) != int(fields["dimension"]) or not 2 <= len(sizes) <= 4 or min(sizes) < 1:
        raise damaged(path, f"its header gives {fields['dimension']} axes with the sizes {sizes}")
    spatial, vectors = _axes(path, fields, len(sizes))
    header = _geometry(path, fields, tuple(sizes[axis] for axis in spatial), vectors)
    kind = _kind(path, fields)
    name = fields.get("data file", fields.get("datafile"))
    if name is not None and (name.startswith("LIST") or "%" in name):
        raise AutosegError(f"{path} keeps its voxels in several files ({name[:60]}); store them in one")
    if name is not None:
        start = 0
    encoding = fields["encoding"].lower()
    if encoding not in ENCODINGS:
        raise AutosegError(f"{path} has voxels encoded as {encoding!r}; store them as raw, gzip or bzip2")
    data = path if name is None else voxel_file(path, name)
    start = _skip(path, data, fields, start, ENCODINGS[encoding])
    return _Nrrd(
        ImageHeader(
            geometry=header.geometry,
            num_channels=math.prod(size for axis, size in enumerate(sizes) if axis not in spatial),
            pixel_type=kind.name,
            is_integer=kind.kind in "iu",
            notes=header.notes,
        ),
        kind,
        sizes,
        spatial,
        data,
        start,
        ENCODINGS[encoding],
    )


def _kind(path: Path, fields: Mapping[str, str]) -> np.dtype[Any]:
    name = fields["type"].lower()
    code = next((code for code, names in TYPES.items() if name in names), None)
    if code is None:
        raise AutosegError(f"{path} has voxels of type {name[:40]!r}; store whole or floating numbers")
    endian = fields.get("endian", "little" if code[1] == "1" else "").lower()
    if endian not in ("little", "big"):
        raise damaged(path, f"its header gives the byte order {endian[:40]!r}")
    return np.dtype(code).newbyteorder("<" if endian == "little" else ">")


def _axes(
    path: Path, fields: Mapping[str, str], num_axes: int
) -> tuple[tuple[int, ...], list[NDArray[np.float64]] | None]:
    """Which axes are those of space, and their steps in mm where the header places them in the world."""
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * num_axes
    directions = fields.get("space directions")
    vectors: list[NDArray[np.float64] | None] | None = None
    if directions is not None:
        words = VECTOR.findall(directions)
        vectors = [None if word == "none" else _numbers(word[1:-1].replace(",", " ")) for word in words]
        if len(vectors) != num_axes:
            raise damaged(path, f"it has {num_axes} axes, but {len(vectors)} space directions")
    if len(kinds) != num_axes:
        raise damaged(path, f"it has {num_axes} axes, but {len(kinds)} kinds")
    spatial = [a for a in range(num_axes) if kinds[a] in SPATIAL_KINDS and (vectors is None or vectors[a] is not None)]
    spatial = spatial[:3]  # a fourth axis of space is time or channels
    if len(spatial) < 2 or num_axes - len(spatial) > 1:
        raise AutosegError(
            f"{path} has {len(spatial)} axes of space among {num_axes}; store two or three, and one for channels"
        )
    if vectors is None:
        return tuple(spatial), None
    return tuple(spatial), [vector for axis in spatial if (vector := vectors[axis]) is not None]


def _numbers(text: str) -> NDArray[np.float64]:
    return np.array([float(word) for word in text.split()])


def _geometry(
    path: Path, fields: Mapping[str, str], shape: tuple[int, ...], vectors: list[NDArray[np.float64]] | None
) -> ImageHeader:
    """A header with the geometry alone."""
    axes = len(shape)
    if vectors is None:
        words = fields.get("spacings", "").split()
        spacings = [value if math.isfinite(value) else 1.0 for value in map(float, words)]
        spacing, direction, origin = tuple(spacings[-axes:]) if words else (1.0,) * axes, np.eye(axes), np.zeros(axes)
    else:
        signs = np.array(FLIPS.get(fields.get("space", "").lower().removesuffix("-time"), (1.0, 1.0, 1.0)))
        dimensions = min(3, len(vectors[0]))
        matrix = np.stack([vector[:dimensions] * signs[:dimensions] for vector in vectors], axis=1)
        place = (
            _numbers(fields["space origin"].strip("()").replace(",", " "))[:dimensions]
            if "space origin" in fields
            else None
        )
        origin = np.zeros(dimensions) if place is None else place * signs[:dimensions]
        lengths = np.linalg.norm(matrix, axis=0)
        if not np.isfinite(lengths).all() or (lengths == 0).any():
            raise damaged(path, f"its header gives the voxel size {lengths.tolist()} mm (x, y, z)")
        spacing, direction = tuple(float(value) for value in lengths), matrix / lengths
        if axes == 2 and dimensions == 3:  # one slice in the world
            shape, spacing = (*shape, 1), (*spacing, float(min(lengths)))
            direction = np.column_stack([direction, np.cross(direction[:, 0], direction[:, 1])])
    geometry, notes = make_geometry(
        path,
        shape=shape,
        spacing_mm=spacing,
        origin_mm=tuple(float(value) for value in origin),
        direction=direction,
        has_orientation=True,
    )
    return ImageHeader(geometry=geometry, num_channels=1, pixel_type="", is_integer=True, notes=notes)


def _skip(path: Path, data: Path, fields: Mapping[str, str], start: int, encoding: str) -> int:
    """Where voxels begin after the lines and bytes that the header tells to skip; -1: they end with the file."""
    lines = int(fields.get("line skip", fields.get("lineskip", "0")))
    skipped = int(fields.get("byte skip", fields.get("byteskip", "0")))
    if (lines or skipped) and encoding != "raw":
        raise AutosegError(f"{path} skips {lines} lines and {skipped} bytes of compressed voxels; store it without")
    if skipped < 0:
        return -1
    if lines:
        if not data.is_file():
            raise damaged(data, "it is missing, but a header names it as the file of its voxels")
        with open(data, "rb") as file:
            file.seek(start)
            for _ in range(min(lines, LONGEST_HEADER)):
                if not file.readline():
                    break
            start = file.tell()
    return start + skipped

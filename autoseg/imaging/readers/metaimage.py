"""MetaImage files (MHA, and MHD with its voxels next to it), read here: every byte is checked before memory is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.readers.header import ImageHeader, damaged, make_geometry, read_payload, unsupported, voxel_file
from autoseg.imaging.readers.itk import itk_write
from autoseg.imaging.readers.registry import Format

LONGEST_HEADER = 2**16
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""A long always has four bytes in this format."""
LAST_KEY = "elementdatafile"


@dataclass(frozen=True, slots=True)
class _MetaImage:
    header: ImageHeader
    kind: np.dtype[Any]
    sizes: tuple[int, ...]
    """Components of a voxel, then x, y, z and perhaps a fourth axis."""
    data: Path
    start: int
    encoding: str


def _header(path: Path) -> ImageHeader:
    """The header of a MetaImage file. Raises `AutosegError` for what makes no sense or is not read here."""
    return _parse(path).header


def _voxel_file(path: Path) -> Path:
    """The file with the voxels: ``path`` itself, or the one that the header names."""
    return _parse(path).data


def _voxels(path: Path) -> NDArray[Any]:
    """All voxels of a MetaImage file, (C, Z, Y, X); where compressed, the check sum is compared."""
    found = _parse(path)
    flat = read_payload(found.data, found.start, math.prod(found.sizes), found.kind, found.encoding)
    array = np.moveaxis(flat.reshape(-1, *found.header.geometry.shape, found.sizes[0]), -1, 1)
    return array.reshape(-1, *found.header.geometry.shape)


def _parse(path: Path) -> _MetaImage:
    fields, start = _read_fields(path)
    try:
        return _understand(path, fields, start)
    except (ValueError, OverflowError, KeyError) as error:
        raise damaged(path, message=f"the header is invalid ({str(error)[:200]})") from None


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """Keys (lower case) and values of the header, and where the voxels begin in the same file."""
    with open(path, "rb") as file:
        content = file.read(LONGEST_HEADER)
    fields: dict[str, str] = {}
    place = 0
    while place < len(content) and LAST_KEY not in fields:
        end = content.find(b"\n", place)
        line = content[place : end if end >= 0 else len(content)].decode("utf-8", "surrogateescape")
        key, _, value = line.partition("=")
        fields[key.strip().lower()] = value.strip()
        place = end + 1 if end >= 0 else len(content)
    if LAST_KEY not in fields:
        raise damaged(path, code="reader.unknown_format", message="the header does not end with ElementDataFile")
    return fields, place


def _understand(path: Path, fields: Mapping[str, str], start: int) -> _MetaImage:
    sizes = tuple(int(word) for word in fields["dimsize"].split())
    if len(sizes) != int(fields["ndims"]) or not 2 <= len(sizes) <= 4 or min(sizes) < 1:
        raise damaged(path, message=f"the header gives {fields['ndims']} axes with the sizes {sizes}")
    components = int(fields.get("elementnumberofchannels", "1"))
    if components < 1 or (components > 1 and len(sizes) > 3):
        raise unsupported(
            path, message=f"it has {components} components and the sizes {sizes}", fix="store only one of the two"
        )
    if _is_true(fields, "binarydata", default=True) is False:
        raise unsupported(path, message="its voxels are stored as text", fix="store them as binary data")
    name = fields["elementtype"].upper().removesuffix("_ARRAY")
    if name not in TYPES:
        raise unsupported(path, message=f"its voxels are of type {name[:40]!r}", fix=f"store one of {', '.join(TYPES)}")
    is_big = _is_true(fields, "binarydatabyteordermsb", "elementbyteordermsb", default=False)
    kind = np.dtype(TYPES[name]).newbyteorder(">" if is_big else "<")
    data, start = _place(path, fields, start)
    geometry, notes = _geometry(path, fields, sizes)
    header = ImageHeader(
        geometry=geometry,
        num_channels=components * math.prod(sizes[3:]),
        pixel_type=kind.name,
        is_integer=kind.kind in "iu",
        notes=notes,
    )
    encoding = "zlib" if _is_true(fields, "compresseddata", default=False) else "raw"
    return _MetaImage(header, kind, (components, *sizes), data, start, encoding)


def _is_true(fields: Mapping[str, str], *names: str, default: bool) -> bool:
    value = next((fields[name] for name in names if name in fields), None)
    return default if value is None else value[:1].lower() in ("t", "1", "y")


def _place(path: Path, fields: Mapping[str, str], start: int) -> tuple[Path, int]:
    """File and byte at which the voxels begin; -1: they end with the file."""
    name, skipped = fields[LAST_KEY], int(fields.get("headersize", "0"))
    if name.upper() == "LOCAL":
        return path, start
    if name.startswith("LIST") or "%" in name:
        raise unsupported(
            path, message=f"its voxels are stored in several files ({name[:60]})", fix="store them in one file"
        )
    return voxel_file(path, name), skipped


def _geometry(path: Path, fields: Mapping[str, str], sizes: tuple[int, ...]) -> Any:
    def numbers(names: tuple[str, ...], default: NDArray[np.float64]) -> NDArray[np.float64]:
        text = next((fields[name] for name in names if name in fields), None)
        values = default if text is None else np.array([float(word) for word in text.split()])
        if values.size != default.size:
            raise damaged(path, message=f"the header gives {values.size} numbers for {names[0]}, not {default.size}")
        return values

    count = len(sizes)
    axes = min(count, 3)
    spacing = numbers(("elementspacing", "elementsize"), np.ones(count))[:axes]
    origin = numbers(("offset", "position", "origin"), np.zeros(count))[:axes]
    rows = numbers(("transformmatrix", "rotation", "orientation"), np.eye(count).ravel()).reshape(count, count)
    return make_geometry(
        path,
        shape=sizes[:axes],
        spacing_mm=tuple(float(value) for value in spacing),
        origin_mm=tuple(float(value) for value in origin),
        direction=rows.T[:axes, :axes],  # a row of the file is the direction of one index axis
        has_orientation=True,
    )


METAIMAGE = Format(
    endings=(".mha", ".mhd"), read_header=_header, read_voxels=_voxels, write=itk_write, voxel_file=_voxel_file
)

"""MetaImage files (MHA, and MHD with its voxels next to it), read here: every byte is checked before memory is taken."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.readers.header import (
    ImageHeader,
    damaged,
    make_geometry,
    read_payload,
    require_held,
    unit_notes,
    unsupported,
    voxel_file,
)
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
    data: Path
    """The file with the voxels: the file itself, or the one that its header names."""
    voxels: Callable[[], NDArray[Any]]
    """Reads (C, Z, Y, X); where compressed, the check sum is compared."""


def _parse(path: Path) -> _MetaImage:
    """Raises `AutosegError` for what makes no sense or is not read here."""
    with open(path, "rb") as file:
        lines = io.BytesIO(file.read(LONGEST_HEADER))
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.decode("utf-8", "surrogateescape").partition("=")
        fields[key.strip().lower()] = value.strip()
        if LAST_KEY in fields:
            break
    else:
        raise damaged(path, code="reader.unknown_format", message="the header does not end with ElementDataFile")
    try:
        return _understand(path, fields, lines.tell())
    except (ValueError, OverflowError, KeyError) as error:
        raise damaged(path, message=f"the header is invalid ({str(error)[:200]})") from None


def _understand(path: Path, fields: Mapping[str, str], start: int) -> _MetaImage:
    sizes = tuple(int(word) for word in fields["dimsize"].split())
    if len(sizes) != int(fields["ndims"]) or not 2 <= len(sizes) <= 4 or min(sizes) < 1:
        raise damaged(path, message=f"the header gives {fields['ndims']} axes with the sizes {sizes}")
    components = int(fields.get("elementnumberofchannels", "1"))
    if components < 1 or (components > 1 and len(sizes) > 3):
        raise unsupported(
            path, message=f"it has {components} components and the sizes {sizes}", fix="store only one of the two"
        )
    name = fields["elementtype"].upper().removesuffix("_ARRAY")
    if name not in TYPES:
        raise unsupported(path, message=f"its voxels are of type {name[:40]!r}", fix=f"store one of {', '.join(TYPES)}")
    is_big = _is_true(fields, "binarydatabyteordermsb", "elementbyteordermsb", default=False)
    kind = np.dtype(TYPES[name]).newbyteorder(">" if is_big else "<")
    encoding = "zlib" if _is_true(fields, "compresseddata", default=False) else "raw"
    if not _is_true(fields, "binarydata", default=True):
        encoding = "ascii"
    data, skipped = fields[LAST_KEY], int(fields.get("headersize", "0"))
    file, start = (path, start) if data.upper() == "LOCAL" else (voxel_file(path, data), skipped)
    require_held(file, start, components * math.prod(sizes) * kind.itemsize, encoding)
    geometry, notes = _geometry(path, fields, sizes)
    header = ImageHeader(
        geometry=geometry,
        num_channels=components * math.prod(sizes[3:]),
        num_volumes=math.prod(sizes[3:]),
        pixel_type=kind.name,
        is_integer=kind.kind in "iu",
        notes=(*notes, *unit_notes(path, [fields.get("distanceunits", "")])),
    )

    def voxels() -> NDArray[Any]:
        flat = read_payload(file, start, components * math.prod(sizes), kind, encoding)
        return np.moveaxis(flat.reshape(-1, *geometry.shape, components), -1, 1).reshape(-1, *geometry.shape)

    return _MetaImage(header, file, voxels)


def _is_true(fields: Mapping[str, str], *names: str, default: bool) -> bool:
    value = next((fields[name] for name in names if name in fields), None)
    return default if value is None else value[:1].lower() in ("t", "1", "y")


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
        spacing_mm=spacing,
        origin_mm=origin,
        direction=rows.T[:axes, :axes],  # a row of the file is the direction of one index axis
    )


METAIMAGE = Format(
    endings=(".mha", ".mhd"),
    read_header=lambda path: _parse(path).header,
    read_voxels=lambda path: _parse(path).voxels(),
    write=itk_write,
    write_plain=partial(itk_write, compressed=False),
    voxel_file=lambda path: _parse(path).data,
)

"""NRRD files, with their voxels inside or next to them, and the segments that 3D Slicer names in their headers (``.seg.nrrd``).

pynrrd reads the header, for ITK's reader can be crashed by a broken one; the voxels are read here, for pynrrd decompresses without
a limit.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.image import Segment, Segmentation, SegmentNames
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
from autoseg.imaging.readers.registry import Format, format_of

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
ENCODINGS |= dict.fromkeys(("ascii", "text", "txt"), "ascii")
SPATIAL_KINDS = ("domain", "space", "???", "none")
VOLUME_KINDS = ("list", "time", *SPATIAL_KINDS)
FLIPS = {
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
"""Signs that bring a named space to Left, Posterior, Superior; other spaces are taken as such."""
SEGMENT_KEY = re.compile(r"Segment(\d{1,5})_(ID|Name|Layer|LabelValue)")
MOST_SEGMENT_VALUES = 2**16


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
    fields: Mapping[str, Any]

    def voxels(self) -> NDArray[Any]:
        """All voxels, (C, Z, Y, X), every byte there and, where compressed, its check sum compared."""
        flat = read_payload(self.data, self.start, math.prod(self.sizes), self.kind, self.encoding)
        last = len(self.sizes) - 1
        others = [last - axis for axis in range(last + 1) if axis not in self.spatial]
        array = flat.reshape(self.sizes[::-1]).transpose(*others, *(last - axis for axis in reversed(self.spatial)))
        return array.reshape(-1, *self.header.geometry.shape)


def read_nrrd(path: Path) -> _Nrrd:
    """The header of an NRRD file. Raises `AutosegError` for what makes no sense or is not supported."""
    format_of(path)
    fields, start = _read_fields(path)
    try:
        return _understand(path, fields, start)
    except (ValueError, OverflowError, IndexError, TypeError) as error:
        raise damaged(path, message=f"the header is invalid ({str(error)[:200]})") from None
    except KeyError as error:
        raise damaged(path, message=f"the header has no field {error}") from None


def _read_fields(path: Path) -> tuple[dict[str, Any], int]:
    """Fields and keys of the header as pynrrd understands them, and where the voxels begin in the same file."""
    with open(path, "rb") as file:
        content = file.read(LONGEST_HEADER)
    end = re.search(rb"\r?\n\r?\n|(?<=LIST)\r?\n", content)  # names of files follow a LIST
    lines = io.BytesIO(content[: end.start()] if end else content)  # bytes: letters of UTF-8 would break lines, too
    try:
        fields = nrrd.read_header([line.decode("utf-8", "surrogateescape") for line in lines])
    except Exception as error:  # pynrrd lets through whatever broken fields cause
        raise damaged(path, message=f"the header is invalid ({str(error)[:200] or type(error).__name__})") from None
    return dict(fields), end.end() if end else len(content)


def _understand(path: Path, fields: Mapping[str, Any], start: int) -> _Nrrd:
    sizes = tuple(int(size) for size in fields["sizes"])
    if len(sizes) != fields["dimension"] or not 2 <= len(sizes) <= 4 or min(sizes) < 1:
        raise damaged(path, message=f"the header gives {fields['dimension']} axes with the sizes {sizes}")
    encoding = ENCODINGS.get(fields["encoding"].lower())
    if encoding is None:
        raise unsupported(
            path,
            message=f"its voxels are encoded as {fields['encoding']!r}",
            fix="store them as raw, gzip, bzip2 or ascii",
        )
    kind, spatial = _kind(path, fields), _spatial_axes(path, fields, len(sizes))
    others = [axis for axis in range(len(sizes)) if axis not in spatial]
    kinds = fields.get("kinds", ())
    are_volumes = all(not kinds or kinds[axis].lower() in VOLUME_KINDS for axis in others)
    num_channels = math.prod(sizes[axis] for axis in others)
    header = replace(
        _header(path, fields, sizes, spatial),
        num_channels=num_channels,
        num_volumes=num_channels if are_volumes else 1,
        pixel_type=kind.name,
        is_integer=kind.kind in "iu",
    )
    data, start = _data_start(path, fields, start, encoding)
    require_held(data, start, math.prod(sizes) * kind.itemsize, encoding)
    return _Nrrd(header, kind, sizes, spatial, data, start, encoding, fields)


def _kind(path: Path, fields: Mapping[str, Any]) -> np.dtype[Any]:
    name = fields["type"].lower()
    code = next((code for code, names in TYPES.items() if name in names), None)
    if code is None:
        raise unsupported(
            path, message=f"its voxels are of type {name[:40]!r}", fix="store integers or floating-point numbers"
        )
    has_order = code[1] != "1" and ENCODINGS[fields["encoding"].lower()] != "ascii"
    endian = fields.get("endian", "" if has_order else "little").lower()
    if endian not in ("little", "big"):
        raise damaged(path, message=f"the header gives the byte order {endian[:40]!r}")
    return np.dtype(code).newbyteorder("<" if endian == "little" else ">")


def _spatial_axes(path: Path, fields: Mapping[str, Any], num_axes: int) -> tuple[int, ...]:
    kinds = [kind.lower() for kind in fields.get("kinds", ())] or ["domain"] * num_axes
    directions = fields.get("space directions")
    if len(kinds) != num_axes or (directions is not None and len(directions) != num_axes):
        counted = (
            f"{len(kinds)} kinds" if directions is None else f"{len(kinds)} kinds and {len(directions)} directions"
        )
        raise damaged(path, message=f"it has {num_axes} axes, but {counted}")
    lengths = fields.get("spacings", np.ones(num_axes)) if directions is None else directions
    spatial = [
        axis
        for axis in range(num_axes)
        # a missing spacing of three axes may still be that of space
        if kinds[axis] in SPATIAL_KINDS
        and not ((directions is not None or num_axes > 3) and np.isnan(lengths[axis]).all())
    ]
    spatial = spatial[:3]  # a fourth axis of space is time or channels
    if len(spatial) < 2 or num_axes - len(spatial) > 1:
        raise unsupported(
            path,
            message=f"{len(spatial)} of its {num_axes} axes are spatial",
            fix="store two or three, and at most one axis of channels",
        )
    return tuple(spatial)


def _header(path: Path, fields: Mapping[str, Any], sizes: tuple[int, ...], spatial: tuple[int, ...]) -> ImageHeader:
    """A header with the geometry alone."""
    axes, shape = len(spatial), tuple(sizes[axis] for axis in spatial)
    if "space directions" not in fields:
        spacings = fields.get("spacings", np.ones(len(sizes)))
        if len(spacings) != len(sizes):
            raise damaged(path, message=f"it has {len(sizes)} axes, but {len(spacings)} spacings")
        spacing = tuple(float(spacings[axis]) if math.isfinite(spacings[axis]) else 1.0 for axis in spatial)
        direction, origin = np.eye(axes), np.zeros(axes)
        if (lows := fields.get("axis mins", fields.get("axismins"))) is not None and len(lows) == len(sizes):
            centers = fields.get("centerings", fields.get("centers", "").split())
            halves = [0 if centers[axis:][:1] == ["node"] else spacing[i] / 2 for i, axis in enumerate(spatial)]
            origin = np.nan_to_num([lows[axis] + half for axis, half in zip(spatial, halves, strict=True)])
    else:
        vectors = np.array([fields["space directions"][axis] for axis in spatial], np.float64)
        dimensions = min(3, vectors.shape[1])
        signs = np.array(FLIPS.get(fields.get("space", "").lower().removesuffix("-time"), (1.0, 1.0, 1.0)))[:dimensions]
        matrix = (vectors[:, :dimensions] * signs).T
        place = fields.get("space origin")
        origin = np.zeros(dimensions) if place is None else np.asarray(place)[:dimensions] * signs
        lengths = np.linalg.norm(matrix, axis=0)
        if not np.isfinite(lengths).all() or (lengths == 0).any():
            raise damaged(path, message=f"the header gives the voxel size {lengths.tolist()} mm (x, y, z)")
        spacing, direction = tuple(float(value) for value in lengths), matrix / lengths
        if axes == 2 and dimensions == 3:  # one slice in the world
            shape, spacing = (*shape, 1), (*spacing, float(min(lengths)))
            direction = np.column_stack([direction, np.cross(direction[:, 0], direction[:, 1])])
    geometry, notes = make_geometry(
        path,
        shape=shape,
        spacing_mm=spacing,
        origin_mm=origin,
        direction=direction,
    )
    units = fields.get("space units") or [
        fields["units"][axis] for axis in spatial if axis < len(fields.get("units", ()))
    ]
    notes += unit_notes(path, units)
    return ImageHeader(geometry=geometry, num_channels=1, pixel_type="", is_integer=True, notes=notes)


def _data_start(path: Path, fields: Mapping[str, Any], start: int, encoding: str) -> tuple[Path, int]:
    """File and byte at which the voxels begin; -1: they end with the file."""
    name = fields.get("data file", fields.get("datafile"))
    data, start = (path, start) if name is None else (voxel_file(path, name), 0)
    lines = fields.get("line skip", fields.get("lineskip", 0))
    skipped = fields.get("byte skip", fields.get("byteskip", 0))
    if (lines or skipped) and encoding != "raw":
        raise unsupported(
            path,
            message=f"it skips {lines} lines and {skipped} bytes of compressed voxels",
            fix="store it without skipping",
        )
    if skipped < 0:
        return data, -1
    if lines:
        with open(data, "rb") as file:
            file.seek(start)
            for _ in range(min(lines, LONGEST_HEADER)):
                if not file.readline():
                    break
            start = file.tell()
    return data, start + skipped


NRRD = Format(
    endings=(".nrrd", ".seg.nrrd", ".nhdr"),
    read_header=lambda path: read_nrrd(path).header,
    read_voxels=lambda path: read_nrrd(path).voxels(),
    write=itk_write,
    magic=(MAGIC,),
    voxel_file=lambda path: read_nrrd(path).data,
)


# --- segments, as 3D Slicer writes them: a label map, or several in layers, with names in the header ---
#
# Each segment has keys Segment0_Name, Segment0_Layer, Segment0_LabelValue ...; older files have neither layers nor values, but one
# mask for each segment in its order.


def has_segments(file: Path) -> bool:
    """Whether the header of ``file`` names segments; not that of a file that is no NRRD."""
    with open(file, "rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            return False
    return bool(_entries(_read_fields(file)[0]))


def nrrd_segment_names(file: Path) -> SegmentNames:
    """Names of the segments of an NRRD file by their numbers.

    Numbers are the values in the file where no two segments share one, else places in the order of the file, from 1 on.
    Raises `AutosegError` when the header makes no sense or names no segments.
    """
    entries = _named(file, read_nrrd(file))
    are_values = all(each.number == each.value and each.layer == 0 for each in entries)
    return SegmentNames(by_number={each.number: each.name for each in entries}, may_overlap=not are_values)


def nrrd_segments(file: Path) -> Segmentation:
    """All segments of an NRRD file, numbered as by `nrrd_segment_names`, those without a voxel among them.

    Raises `AutosegError` when the file is damaged or names no segments.
    """
    found = read_nrrd(file)
    entries, layers, geometry = _named(file, found), found.voxels(), found.header.geometry
    segments = []
    for each in sorted(entries, key=lambda each: each.number):
        mask = layers[each.layer] == each.value
        slices = np.flatnonzero(mask.any(axis=(1, 2)))
        frames = np.packbits(mask[slices].reshape(len(slices), math.prod(mask.shape[1:])), axis=1)
        segments.append(
            Segment(
                number=each.number,
                name=each.name,
                slices=tuple(int(z) for z in slices),
                frames=frames,
                geometry=geometry,
            )
        )
    return Segmentation(segments=tuple(segments), geometry=geometry)


@dataclass(frozen=True, slots=True)
class _Named:
    number: int
    name: str
    layer: int
    value: int


def _named(file: Path, found: _Nrrd) -> list[_Named]:
    entries = _entries(found.fields)
    if not entries:
        raise damaged(file, message="the header names no segments")
    places, num_layers = [], found.header.num_channels
    for order, entry in enumerate(entries.values()):
        layer = entry.get("Layer", str(order if "LabelValue" not in entry else 0))
        if not layer.isdecimal() or int(layer) >= num_layers:
            raise damaged(file, message=f"the header places a segment in layer {layer[:20]!r}, but it has {num_layers}")
        value = entry.get("LabelValue", "1")
        if not value.isdecimal() or not 0 < int(value) < MOST_SEGMENT_VALUES:
            wrong = f"the header gives a segment the value {value[:20]!r}, expected a positive whole number"
            raise damaged(file, message=wrong)
        places.append((int(layer), int(value)))
    values = [value for _, value in places]
    numbers = values if len(set(values)) == len(values) else range(1, len(values) + 1)
    return [
        _Named(number, (entry.get("Name") or entry.get("ID") or f"segment_{number}").strip(), *place)
        for number, entry, place in zip(numbers, entries.values(), places, strict=True)
    ]


def _entries(fields: Mapping[str, Any]) -> dict[int, dict[str, str]]:
    """What the header says of each segment, in its order."""
    found: dict[int, dict[str, str]] = {}
    for key, value in fields.items():
        if match := SEGMENT_KEY.fullmatch(key):
            found.setdefault(int(match[1]), {})[match[2]] = value
    return dict(sorted(found.items()))

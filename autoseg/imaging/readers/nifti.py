"""NIfTI files: the grid as ITK understands it, where that is sound, and voxels with every byte checked.

ITK fills what a cut or damaged file lacks with zeros and reports nothing, takes the scale of ``pixdim`` whatever the transform says,
and writes no file named ``x.nii.nii.gz``; nibabel raises for small faults of a header. So both are read and written here.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from itertools import chain, product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from autoseg.imaging.image import Geometry
from autoseg.imaging.readers.header import (
    UNNOTICED_SKEW,
    ImageHeader,
    check_promise,
    damaged,
    encoding_of,
    header_note,
    make_geometry,
    read_bytes,
    require_held,
    skew_of,
    unsupported,
)
from autoseg.imaging.readers.registry import Format
from autoseg.issues import Issue

LONGEST_HEADER = 540
HEADER_BYTES, OFFSET_PLACE = 352, 108
"""Of a header with its extender, and where it says at which byte the voxels begin."""
GOLDEN_ANGLE = 0.381966
"""Shades of neighbouring values differ."""
DESCRIPTION = 79
"""Characters of the description in a header; the 80th byte ends it."""
GZIP_FORM = 31
"""Has zlib write the form of gzip, without a time."""
MOST_APART = 0.5
"""Voxels by which two statements of a header on the place or size of voxels may differ without a note."""
UNITS = {1: 1000.0, 3: 0.001}
"""Millimetres of a metre and of a micrometre, by ``xyzt_units``; all other numbers mean millimetres."""
SCANNER = 1
"""The ``sform_code`` with which ITK prefers the sform to the qform."""
FIELDS: Any = nibabel.Nifti1Header.template_dtype.names
PLACE = (*FIELDS[FIELDS.index("qform_code") : FIELDS.index("srow_z") + 1], "xyzt_units")
"""Fields that place an image in the world, with the first four of ``pixdim``."""


def _header(path: Path) -> ImageHeader:
    header, repairs = _parse(path)
    shape = header.get_data_shape()
    affine, spacing, notes = _grid(path, header, (*shape, 1, 1)[:3])
    affine[:2] *= -1  # NIfTI looks to Right and Anterior, we do not
    lengths = np.linalg.norm(affine[:, :3], axis=0)
    axes = 2 if len(shape) == 2 and skew_of(affine[:2, :2] / lengths[:2]) <= UNNOTICED_SKEW else 3
    geometry, straightened = make_geometry(
        path,
        shape=(*shape, 1)[:axes],
        spacing_mm=spacing[:axes],
        origin_mm=affine[:axes, 3],
        direction=(affine[:, :3] / lengths)[:axes, :axes],
    )
    kind = _voxel_type(path, header)
    require_held(path, 0, math.prod(shape) * _num_components(header) * kind.itemsize, encoding_of(path))
    return ImageHeader(
        geometry=geometry,
        num_channels=math.prod(shape[3:]) * _num_components(header),
        num_volumes=shape[3] if len(shape) == 4 and _num_components(header) == 1 else 1,
        pixel_type=str(kind),
        is_integer=kind.kind in "iu" and header.get_slope_inter() in ((None, None), (1.0, 0.0)),
        notes=(*repairs, *notes, *straightened),
    )


def _stored_header(path: Path) -> Any:
    """The header of a NIfTI file as it is."""
    raw = read_bytes(path, LONGEST_HEADER)
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if len(raw) >= kind.sizeof_hdr:
            header = kind(raw[: kind.sizeof_hdr], check=False)
            if header["sizeof_hdr"] == kind.sizeof_hdr:
                if not bytes(header["magic"].item())[:1]:
                    message = "it has a header of Analyze 7.5, which does not say how its voxels lie in the world"
                    raise unsupported(
                        path, message=message, fix="convert it to NIfTI with a program that knows its source"
                    )
                return header
    raise damaged(path, code="reader.unknown_format", message="it has no NIfTI header")


def _parse(path: Path) -> tuple[Any, list[Issue]]:
    """The header of a NIfTI file, small faults repaired, and a note on each of these."""
    header = _stored_header(path)
    shape, offset = header.get_data_shape(), float(header["vox_offset"])  # which may be no number
    if not 2 <= len(shape) <= 7 or min(shape) < 1:
        raise damaged(path, message=f"the header gives the sizes {shape}")
    if not 0 <= offset < 2**31:
        raise damaged(path, message=f"the header places the voxels at byte {offset}")
    repairs = []
    if offset < header.sizeof_hdr:
        repairs.append(f"it places the voxels at byte {offset:.0f}, inside the header; they were read behind it")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isfinite(slope) and slope != 0 and not math.isfinite(intercept):
        header["scl_inter"] = 0
        repairs.append(f"its values are scaled by {slope:g}, but shifted by {intercept}; they were not shifted")
    sizes = header["pixdim"][1:4]
    if (sizes < 0).any() and (header["qform_code"] > 0 or header["sform_code"] <= 0):
        repairs.append(f"its voxel size is negative, {sizes.tolist()} (x, y, z); the sign was ignored")
        header["pixdim"][1:4] = np.abs(sizes)
    if header["qform_code"] > 0:
        quaternion = [float(header[f"quatern_{axis}"]) for axis in "bcd"]
        if (length := math.hypot(*quaternion)) > 1:
            for axis, value in zip("bcd", quaternion, strict=True):
                header[f"quatern_{axis}"] = value / length
            if length > 1 + UNNOTICED_SKEW:
                repairs.append(f"its quaternion has the length {length:.4g}; it was scaled to 1")
        header["pixdim"][0] = header["pixdim"][0] or 1  # as the standard says
    return header, [header_note(path, code="reader.header_repaired", message=repair) for repair in repairs]


def _grid(
    path: Path, header: Any, shape: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[Issue]]:
    """From voxels (x, y, z) to RAS in mm (3, 4), the voxel size in mm, and notes.

    Of two transforms ITK's choice: the sform if it comes from a scanner, else the qform, and never one that is sheared.
    """
    notes = []

    def say(code: str, message: str) -> None:
        notes.append(header_note(path, code=code, message=message))

    zooms, sform, qform = header["pixdim"][1:4].astype(float), header.get_sform(coded=True)[0], None
    try:
        qform = header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError) as error:
        if sform is None:
            raise damaged(path, message=f"the header gives no orientation ({error})") from None
    chosen, other = (sform, qform) if qform is None or header["sform_code"] == SCANNER else (qform, sform)
    if chosen is None and other is None:
        say("reader.no_orientation", "it has neither qform nor sform: its axes run to Left, Posterior and Superior")
        chosen = np.diag([-zooms[0], -zooms[1], zooms[2], 1])
    elif chosen is None or (chosen is sform and qform is not None and not skew_of(_columns(sform)) <= UNNOTICED_SKEW):
        chosen, other = other, chosen
    used = "sform" if chosen is sform else "qform"
    lengths = np.linalg.norm(chosen[:3, :3], axis=0)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise damaged(path, message=f"the header gives the voxel size {lengths.tolist()} mm (x, y, z)")
    if other is not None:
        corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape))]).T
        apart = np.abs(((other - chosen) @ corners)[:3]).max() / lengths.min()
        if not apart <= MOST_APART:
            unused = "qform" if used == "sform" else "sform"
            fault = "its qform and its sform are {:.3g} voxels apart" if apart >= 0 else f"its {unused} is not finite"
            say("reader.transforms_differ", f"{fault.format(apart)}; the {used} was used")
    agrees = np.abs(zooms / lengths - 1) * shape <= MOST_APART
    if not agrees.all():
        sizes = f"{lengths.round(4).tolist()} mm (x, y, z), but pixdim gives {zooms.round(4).tolist()}"
        say("reader.spacing_differs", f"the voxels of its {used} measure {sizes}; the {used} was used")
    factor = UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    if factor != 1:
        say("reader.unit", f"its lengths are in {'metres' if factor > 1 else 'micrometres'}; they were converted to mm")
    # rounding apart, pixdim has the digits that were meant
    return chosen[:3] * factor, np.where(agrees, zooms, lengths) * factor, notes


def _columns(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vectors along the index axes."""
    unit: NDArray[np.float64] = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return unit


def _voxels(path: Path) -> NDArray[Any]:
    """All voxels of a NIfTI file, (C, Z, Y, X), scaled as the header says.

    Raises `AutosegError` if bytes are missing, the check sum of the compression is wrong, or the type is not a number.
    """
    header, _ = _parse(path)
    kind, components, shape = _voxel_type(path, header), _num_components(header), header.get_data_shape()
    start, number = int(header.get_data_offset()), math.prod(shape) * components
    is_inside = start < header.sizeof_hdr  # then the size of the file says whether four bytes for extensions follow
    start = header.sizeof_hdr if is_inside else start
    expected = start + number * kind.itemsize
    check_promise(path, expected, path.stat().st_size, encoding_of(path))
    raw = read_bytes(path, expected + 4 * is_inside, whole=True)
    start += 4 * (len(raw) > expected)
    if len(raw) < expected:
        raise damaged(
            path,
            code="reader.truncated",
            message=f"the header declares {expected} bytes for {shape} voxels, but the file has {len(raw)}",
        )
    x, y, z = (*shape, 1, 1)[:3]  # behind the components, and before further axes
    array = np.frombuffer(raw, kind, number, start).reshape(-1, z, y, x, components)
    voxels = np.moveaxis(array, -1, 1).reshape(-1, z, y, x).astype(kind.newbyteorder("="), copy=False)
    slope, intercept = header.get_slope_inter()
    if (slope, intercept) in ((None, None), (1.0, 0.0)):
        return voxels
    return voxels * np.float64(slope) + np.float64(intercept)


def _voxel_type(path: Path, header: Any) -> np.dtype[Any]:
    """The type of one number; colours are three or four of them."""
    try:
        kind = header.get_data_dtype()
    except Exception as error:  # nibabel raises its own kinds for codes it does not know
        raise damaged(path, message=f"the header names an unknown voxel type ({error})") from None
    kind = np.dtype("u1") if kind.names else kind
    if kind.kind not in "iuf":
        name, is_complex = header.get_value_label("datatype"), kind.kind == "c"
        fix = "store their magnitude instead" if is_complex else "store whole numbers or single precision"
        raise unsupported(path, message=f"its voxels are of type {name}", fix=fix)
    return kind


def _num_components(header: Any) -> int:
    return len(header.get_data_dtype().names or (None,))


def _write(
    path: Path, array: NDArray[Any], geometry: Geometry, source: Path | None = None, description: str = ""
) -> None:
    header = _new_header(array.dtype, array.shape, geometry, source, description)
    _write_parts(path, header, [array])


FULL_SCALE = 32767
"""Of shares from 0 to 1: NIfTI has no half precision, and every viewer reads 16-bit whole numbers with a slope."""


def write_shares(
    path: Path, volumes: Iterable[NDArray[np.floating]], number: int, geometry: Geometry, source: Path | None = None
) -> None:
    """Write ``number`` volumes (Z, Y, X) of values from 0 to 1 as one NIfTI file, one after the other: of several a fourth axis.

    They are rounded to multiples of 1 / `FULL_SCALE`.
    """
    header = _new_header(np.dtype(np.int16), geometry.shape, geometry, source, "")
    if number > 1:
        x, y, z = (*header.get_data_shape(), 1)[:3]
        header.set_data_shape((x, y, z, number))
        header["pixdim"][4] = 1
    header.set_slope_inter(1 / FULL_SCALE, 0)
    _write_parts(path, header, (np.rint(np.clip(each, 0, 1) * FULL_SCALE).astype(np.int16) for each in volumes))


def _new_header(
    kind: np.dtype[Any], shape: tuple[int, ...], geometry: Geometry, source: Path | None, description: str
) -> Any:
    """Both transforms say the same; those of ``source``, a NIfTI file of the same grid, are taken as they are."""
    affine, sizes = geometry.affine[:, [2, 1, 0, 3]], np.array(geometry.spacing_mm[::-1])
    if geometry.dimensions == 2:  # which says nothing of the thickness
        affine[:, 2], sizes[2] = (0, 0, 1, 0), 1
    header = nibabel.Nifti1Header()
    header.set_data_dtype(kind)
    header.set_data_shape(shape[::-1][: geometry.dimensions])
    header.set_xyzt_units("mm")
    header.set_qform(affine, SCANNER)
    header.set_sform(affine, SCANNER)
    header["pixdim"][1:4] = sizes  # not the lengths of rounded vectors
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    header["descrip"] = description.encode("ascii", errors="replace")[:DESCRIPTION]
    given = None if source is None else _stored_header(source)
    if given is not None and (*given.get_data_shape(), 1)[:3] == shape[::-1]:
        header["pixdim"][:4] = given["pixdim"][:4]
        for field in PLACE:
            header[field] = given[field]
    return header


def _write_parts(path: Path, header: Any, volumes: Iterable[NDArray[Any]]) -> None:
    """The header and what follows it, packed if the name says so."""
    with open(path, "wb") as file:
        parts = chain([header.binaryblock + bytes(4)], (np.ascontiguousarray(each).data for each in volumes))
        if not path.name.lower().endswith(".gz"):
            file.writelines(parts)
            return
        packer = zlib.compressobj(6, wbits=GZIP_FORM)  # a GzipFile writes again when it is removed after an error
        file.writelines(map(packer.compress, parts))
        file.write(packer.flush())


def store_label_names(path: Path, names: Mapping[int, str]) -> None:
    """Add the names of its values to a label map, as a table in an extension of the header (that of Caret and TotalSegmentator)."""
    table = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(table, "VolumeInformation", Index="0")
    labels = ElementTree.SubElement(volume, "LabelTable")
    for value, name in sorted(names.items()):
        shade = f"{(value * GOLDEN_ANGLE) % 1:.3f}"
        colours = {"Red": shade, "Green": shade, "Blue": shade, "Alpha": "1"}
        ElementTree.SubElement(labels, "Label", {"Key": str(value), **colours}).text = name
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    text = ElementTree.tostring(table, encoding="utf-8", xml_declaration=True)
    size = -(-(len(text) + 8) // 16) * 16
    extension = struct.pack("<ii", size, 0) + text.ljust(size - 8, b"\0")
    data = path.read_bytes()
    is_packed = path.name.lower().endswith(".gz")
    data = zlib.decompress(data, wbits=GZIP_FORM) if is_packed else data
    start = struct.pack("<f", HEADER_BYTES + size)
    data = (
        data[:OFFSET_PLACE]
        + start
        + data[OFFSET_PLACE + 4 : HEADER_BYTES - 4]
        + b"\1\0\0\0"
        + extension
        + data[HEADER_BYTES:]
    )
    packer = zlib.compressobj(6, wbits=GZIP_FORM)
    path.write_bytes(packer.compress(data) + packer.flush() if is_packed else data)


NIFTI = Format(endings=(".nii.gz", ".nii"), read_header=_header, read_voxels=_voxels, write=_write, write_like=_write)

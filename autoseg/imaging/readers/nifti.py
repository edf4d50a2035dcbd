"""NIfTI files: voxels read with every byte checked, and grids that ITK refuses.

ITK fills what a cut or damaged NIfTI file lacks with zeros and says nothing, so voxels are read here.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from autoseg.imaging.image import Geometry
from autoseg.imaging.readers.header import (
    GZIP_MAGIC,
    ImageHeader,
    check_promise,
    damaged,
    encoding_of,
    make_geometry,
    read_bytes,
    unsupported,
)
from autoseg.imaging.readers.itk import itk_header, itk_write
from autoseg.imaging.readers.registry import Format
from autoseg.issues import AutosegError

LONGEST_HEADER = 540


def _header(path: Path) -> ImageHeader:
    """Geometry as ITK understands it; where ITK refuses the grid, as nibabel does, straightened."""
    own = _own_header(path)
    with suppress(AutosegError):
        found = itk_header(path)
        return replace(own, geometry=found.geometry, notes=found.notes)
    return own


def _own_header(path: Path) -> ImageHeader:
    header = _parse(path, read_bytes(path, LONGEST_HEADER))
    affine = np.diag([-1.0, -1.0, 1.0]) @ _affine(path, header)[:3]  # NIfTI looks to Right and Anterior, we do not
    shape = (*header.get_data_shape(), 1, 1)[:3]
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    if not np.isfinite(spacing).all() or (spacing == 0).any():
        raise damaged(path, message=f"the header gives the voxel size {spacing.tolist()} mm (x, y, z)")
    geometry, notes = make_geometry(
        path,
        shape=tuple(int(size) for size in shape),
        spacing_mm=tuple(float(value) for value in spacing),
        origin_mm=tuple(float(value) for value in affine[:, 3]),
        direction=affine[:, :3] / spacing,
        has_orientation=True,
    )
    kind = _voxel_type(path, header)
    return ImageHeader(
        geometry=geometry,
        num_channels=math.prod(header.get_data_shape()[3:]) * _num_components(header),
        pixel_type=str(kind),
        is_integer=kind.kind in "iu" and _scaling(path, header) == (1.0, 0.0),
        notes=notes,
    )


def _voxels(path: Path) -> NDArray[Any]:
    """All voxels of a NIfTI file, (C, Z, Y, X), scaled as the header says.

    Raises `AutosegError` if bytes are missing, the check sum of the compression is wrong, or the type is not a number.
    """
    header = _parse(path, read_bytes(path, LONGEST_HEADER))
    kind, components = _voxel_type(path, header), _num_components(header)
    shape = header.get_data_shape()
    start = int(header.get_data_offset())
    expected = start + math.prod(shape) * components * kind.itemsize
    check_promise(path, expected, path.stat().st_size, encoding_of(path))
    raw = read_bytes(path, expected, whole=True)
    if len(raw) < expected:
        raise damaged(
            path,
            code="reader.truncated",
            message=f"the header declares {expected} bytes for {shape} voxels, but the file has {len(raw)}",
        )
    flat = np.frombuffer(raw, kind, math.prod(shape) * components, start)
    voxels = _to_channels_first(flat, shape, components)
    slope, intercept = _scaling(path, header)
    native = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    return native if (slope, intercept) == (1.0, 0.0) else native * np.float64(slope) + np.float64(intercept)


def check_written(path: Path) -> None:
    """Raise `OSError` when a NIfTI file just written lacks bytes: ITK does not notice a full disk.

    Cheap: only the header and the length that ends a gzip file are read.
    """
    raw = read_bytes(path, LONGEST_HEADER)
    if len(raw) < nibabel.Nifti1Header.template_dtype.itemsize:
        raise OSError("not even the header was written; the disk is probably full")
    header = _parse(path, raw)
    expected = int(header.get_data_offset()) + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    with open(path, "rb") as file:
        is_compressed = file.read(2) == GZIP_MAGIC
        size = file.seek(0, os.SEEK_END)
        if is_compressed:
            file.seek(-4, os.SEEK_END)
            size, expected = int.from_bytes(file.read(4), "little"), expected % 2**32
    if size != expected:
        raise OSError(f"{size} of {expected} bytes were written; the disk is probably full")


def _to_channels_first(flat: NDArray[Any], shape: tuple[int, ...], components: int) -> NDArray[Any]:
    """Voxels in file order (components, x, y, z, then further axes) as (C, Z, Y, X)."""
    x, y, z = (*shape, 1, 1)[:3]
    array = flat.reshape(math.prod(shape[3:]), z, y, x, components)
    return np.moveaxis(array, -1, 1).reshape(-1, z, y, x)


def _scaling(path: Path, header: Any) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where the header has none."""
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise damaged(path, message=f"the header gives no scaling ({error})") from None
    return 1.0 if slope is None else float(slope), float(intercept or 0.0)


def _parse(path: Path, raw: bytes | bytearray) -> Any:
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if len(raw) < kind.template_dtype.itemsize:
            continue
        header = kind(bytes(raw[: kind.template_dtype.itemsize]), check=False)
        if header["sizeof_hdr"] == kind.sizeof_hdr:
            _check_header(path, header)
            return header
    raise damaged(path, code="reader.unknown_format", message="it has no NIfTI header")


def _check_header(path: Path, header: Any) -> None:
    shape = header.get_data_shape()
    if not 2 <= len(shape) <= 7 or min(shape) < 1:
        raise damaged(path, message=f"the header gives the sizes {shape}")
    offset = float(header.get_data_offset())
    if not 0 <= offset < 2**31:
        raise damaged(path, message=f"the header places the voxels at byte {offset}")


def _affine(path: Path, header: Any) -> NDArray[np.float64]:
    try:
        affine: NDArray[np.float64] = header.get_best_affine()
    except (HeaderDataError, ValueError) as error:
        raise damaged(path, message=f"the header gives no orientation ({error})") from None
    return affine


def _voxel_type(path: Path, header: Any) -> np.dtype[Any]:
    """The type of one number; colours are three or four of them."""
    try:
        kind = header.get_data_dtype()
    except Exception as error:  # nibabel raises its own kinds for codes it does not know
        raise damaged(path, message=f"the header names an unknown voxel type ({error})") from None
    kind = np.dtype("u1") if kind.names else kind
    if kind.kind not in "iuf":
        raise unsupported(
            path, message=f"its voxels are of type {kind}, not real numbers", fix="store their magnitude instead"
        )
    return kind


def _num_components(header: Any) -> int:
    return len(header.get_data_dtype().names or (None,))


def _write(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    itk_write(path, array, geometry)
    check_written(path)


NIFTI = Format(endings=(".nii.gz", ".nii"), read_header=_header, read_voxels=_voxels, write=_write)

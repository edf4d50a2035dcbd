"""Reading and writing through SimpleITK, between its x-first and our z-first order; and the format GIPL.

SimpleITK is loaded for the formats that need it: no other part of a run does.
"""

from __future__ import annotations

import math
import os
import re
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.image import Geometry
from autoseg.imaging.readers.header import (
    ImageHeader,
    check_promise,
    damaged,
    encoding_of,
    make_geometry,
    read_bytes,
    require_memory,
    unsupported,
)
from autoseg.imaging.readers.registry import Format, image_ending

MAX_DIMENSIONS = 4
MOST_BYTES_EACH = 8
CORRUPT_JPEG, HARMLESS_JPEG = "Corrupt JPEG data", "extraneous bytes"
GIPL_HEADER_BYTES = 256
GIPL_TYPES = {1: 1, 7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
"""Size of a voxel by the GIPL header's number of its type."""
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def _captured_output(into: list[str]) -> Iterator[None]:
    """Keep what image libraries write to the standard streams; they know causes that their exceptions lack.

    Their C code writes to the file descriptors, so those are redirected for the time of one call.
    """
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as file:
        saved: dict[int, int] = {}
        try:
            for stream in (1, 2):  # the JPEG decoder complains on the standard output
                with suppress(OSError):  # no such stream, as in services without a terminal: nothing to keep
                    saved[stream] = os.dup(stream)
                    os.dup2(file.fileno(), stream)
            yield
        finally:
            for stream, copy in saved.items():
                os.dup2(copy, stream)
                os.close(copy)
            file.seek(0)
            into.append(file.read(4000).decode(errors="replace"))


@contextmanager
def _itk_call(refusal: Callable[[str], Exception]) -> Iterator[None]:
    """Turn what ITK raises into ``refusal(cause)``; what it only prints of damaged JPEG data is an error, too."""
    output: list[str] = []
    try:
        with _captured_output(output):
            yield
    except RuntimeError as error:
        raise refusal(_cause(f"{error}\n{''.join(output)}")) from None
    lost = [line for line in "".join(output).splitlines() if CORRUPT_JPEG in line and HARMLESS_JPEG not in line]
    if lost:
        raise refusal(lost[0])


def _cause(text: str) -> str:
    """The telling lines of an ITK exception, without source files and addresses."""
    text = re.sub(r"\(0x[0-9a-f]+\)", "", text)
    lines = [re.sub(r"^(sitk::ERROR|ITK ERROR|\*\* ERROR)[: ]*", "", line.strip()) for line in text.splitlines()]
    telling = [line for line in lines if line and not line.startswith("Exception thrown") and ".cxx" not in line]
    return "; ".join(dict.fromkeys(telling))[:400] or "ITK gave no reason"


# --- reading ---


def itk_header(path: Path, io: str = "") -> ImageHeader:
    """The header of ``path`` as ITK reads it, by its ``io`` of that name whatever the ending."""
    import SimpleITK

    reader = _reader(path, io)
    size, dimensions = reader.GetSize(), reader.GetDimension()
    if not 2 <= dimensions <= MAX_DIMENSIONS:
        raise unsupported(
            path, message=f"it has {dimensions} axes (sizes {size})", fix="store it with two to four axes"
        )
    axes = min(dimensions, 3)
    direction = np.array(reader.GetDirection()).reshape(dimensions, dimensions)[:axes, :axes]
    geometry, notes = make_geometry(
        path,
        shape=tuple(size[:axes]),
        spacing_mm=tuple(reader.GetSpacing()[:axes]),
        origin_mm=tuple(reader.GetOrigin()[:axes]),
        direction=direction,
    )
    pixel_type = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    return ImageHeader(
        geometry=geometry,
        num_channels=reader.GetNumberOfComponents() * math.prod(size[3:]),
        pixel_type=pixel_type,
        is_integer="integer" in pixel_type,
        notes=notes,
    )


def itk_voxels(path: Path, io: str = "") -> NDArray[Any]:
    """All voxels of ``path``, (C, Z, Y, X), in the type of the file."""
    import SimpleITK

    reader = _reader(path, io)
    require_memory(path, math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * MOST_BYTES_EACH)
    with _itk_call(lambda cause: damaged(path, code="reader.corrupt", message=cause)):
        image = reader.Execute()
    array = SimpleITK.GetArrayFromImage(image)
    if "complex" in image.GetPixelIDTypeAsString():
        raise unsupported(path, message="its voxels are complex numbers", fix="store their magnitude instead")
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    elif image.GetDimension() < MAX_DIMENSIONS:
        array = array[None]
    if image.GetDimension() == 2:
        array = array[:, None]
    if array.ndim != 4:
        raise unsupported(
            path, message=f"it has components and a fourth axis ({array.shape})", fix="store only one of the two"
        )
    return array


def _reader(path: Path, io: str) -> Any:
    """A SimpleITK reader that has read the header of ``path``."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    with _itk_call(lambda cause: damaged(path, message=cause)):
        reader.SetFileName(str(path))
        reader.SetImageIO(io)
        reader.ReadImageInformation()
    return reader


# --- writing ---


def itk_write(path: Path, array: NDArray[Any], geometry: Geometry, *, compressed: bool = True) -> None:
    """Write ``array`` (Z, Y, X) in the format that the ending names, ``compressed`` where that can be; 2D where the geometry is.

    (N, Z, Y, X) becomes a file of four axes. Raises `OSError` with ITK's reason.
    """
    import SimpleITK

    more = array.ndim - 3
    dimensions = 3 if more else geometry.dimensions
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array[0] if dimensions == 2 else array), isVector=False)
    direction = np.eye(dimensions + more)
    direction[:dimensions, :dimensions] = np.array(geometry.direction)[:dimensions, :dimensions]
    image.SetSpacing((*geometry.spacing_mm[::-1][:dimensions], *[1.0] * more))
    image.SetOrigin((*geometry.origin_mm[:dimensions], *[0.0] * more))
    image.SetDirection(direction.ravel().tolist())
    with _itk_call(OSError):
        SimpleITK.WriteImage(image, str(path), useCompression=compressed and image_ending(path) != ".nii")


# --- GIPL ---


def _gipl_header(path: Path) -> ImageHeader:
    """Raises `AutosegError` where voxels are missing or the check sum of a packed file is wrong, which ITK does not check."""
    head = read_bytes(path, GIPL_HEADER_BYTES)
    if len(head) < GIPL_HEADER_BYTES:
        raise damaged(path, code="reader.truncated", message=f"it has {len(head)} bytes, fewer than a header")
    *sizes, kind = struct.unpack(">4HH", head[:10])
    if kind not in GIPL_TYPES or min(sizes[:2]) < 1:
        raise damaged(path, message=f"the header gives the sizes {tuple(sizes)} and the type {kind}")
    expected = GIPL_HEADER_BYTES + math.prod(max(1, size) for size in sizes) * GIPL_TYPES[kind]
    check_promise(path, expected, path.stat().st_size, encoding_of(path))
    if len(read_bytes(path, expected, whole=True)) < expected:
        raise damaged(
            path, code="reader.truncated", message=f"the header declares {expected} bytes, but the file has fewer"
        )
    return itk_header(path)


GIPL = Format(endings=(".gipl", ".gipl.gz"), read_header=_gipl_header, read_voxels=itk_voxels, write=itk_write)

"""Reading through SimpleITK: headers and voxels of one file, x first turned round to z first."""

from __future__ import annotations

import math
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from autoseg.imaging.readers.endings import DETACHED, LOSSY, PICTURE_ENDINGS, image_ending
from autoseg.imaging.readers.header import ImageHeader, damaged, make_geometry
from autoseg.imaging.readers.memory import require_memory
from autoseg.imaging.readers.photographs import has_alpha, transparency_note
from autoseg.issues import AutosegError

MAX_DIMENSIONS = 4
MOST_PACKED = 5000
"""No format here packs its voxels into less than this fraction of their bytes, not even constant images."""
CORRUPT_JPEG, HARMLESS_JPEG = "Corrupt JPEG data", "extraneous bytes"
MOST_BYTES_EACH = 8
SMALL_BYTES = 10**8
"""Images below this size are read whatever their header says; they do no harm."""
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def captured_noise(into: list[str], streams: Sequence[int] = (2,)) -> Iterator[None]:
    """Keep what image libraries write to the standard streams; they know causes that their exceptions lack.

    Their C code writes to the file descriptor, so that is what is turned aside, for the time of one call.
    """
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as file:
        saved: dict[int, int] = {}
        try:
            for stream in streams:
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
def itk_call(path: Path, refusal: Callable[[Path, str], Exception] = damaged) -> Iterator[None]:
    """Turn what ITK raises about ``path`` into ``refusal(path, cause)``, the cause in words that a person can read.

    What ITK only says of damaged JPEG data, and fills with grey, is an error too.
    """
    noise: list[str] = []
    is_jpeg = image_ending(path) in LOSSY  # its decoder complains on the standard output
    try:
        with captured_noise(noise, (1, 2) if is_jpeg else (2,)):
            yield
    except RuntimeError as error:
        raise refusal(path, _cause(f"{error}\n{''.join(noise)}")) from None
    lost = [line for line in "".join(noise).splitlines() if CORRUPT_JPEG in line and HARMLESS_JPEG not in line]
    if is_jpeg and lost:
        raise refusal(path, lost[0])


def _cause(text: str) -> str:
    """The telling lines of an ITK exception, without source files and addresses."""
    text = re.sub(r"\(0x[0-9a-f]+\)", "", text)
    lines = [re.sub(r"^(sitk::ERROR|ITK ERROR|\*\* ERROR)[: ]*", "", line.strip()) for line in text.splitlines()]
    telling = [line for line in lines if line and not line.startswith("Exception thrown") and ".cxx" not in line]
    return "; ".join(dict.fromkeys(telling))[:400] or "no cause was given"


def itk_reader(path: Path) -> Any:
    """A SimpleITK reader that has read the header of ``path``."""
    reader = SimpleITK.ImageFileReader()
    with itk_call(path):
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    return reader


def itk_header(path: Path, reader: Any) -> ImageHeader:
    """The header that ``reader`` has read."""
    size, dimensions = reader.GetSize(), reader.GetDimension()
    if dimensions > MAX_DIMENSIONS or dimensions < 2:
        raise AutosegError(f"{path} has {dimensions} axes (sizes {size}); store it with two to four")
    axes = min(dimensions, 3)
    is_photograph = image_ending(path) in PICTURE_ENDINGS
    direction = np.array(reader.GetDirection()).reshape(dimensions, dimensions)[:axes, :axes]
    geometry, notes = make_geometry(
        path,
        shape=tuple(size[:axes]),
        spacing_mm=(1.0,) * axes if is_photograph else tuple(reader.GetSpacing()[:axes]),
        origin_mm=(0.0,) * axes if is_photograph else tuple(reader.GetOrigin()[:axes]),
        direction=np.eye(axes) if is_photograph else direction,
        has_orientation=not is_photograph,
    )
    pixel_type = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    extra = size[3] if dimensions == 4 else 1
    components = reader.GetNumberOfComponents()
    is_transparent = is_photograph and has_alpha(path, components)
    return ImageHeader(
        geometry=geometry,
        num_channels=(components - is_transparent) * extra,
        pixel_type=pixel_type,
        is_integer="integer" in pixel_type,
        notes=(*notes, *([transparency_note(path)] if is_transparent else [])),
    )


def itk_voxels(path: Path, reader: Any) -> NDArray[Any]:
    """All voxels of ``path``, (C, Z, Y, X), in the type of the file."""
    _check_promise(path, reader)
    with itk_call(path):
        image = reader.Execute()
    return channels_first(image)


def _check_promise(path: Path, reader: Any) -> None:
    """Refuse a header that promises more than the file can hold, before memory is taken for it."""
    promised = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
    held = path.stat().st_size
    if image_ending(path) not in DETACHED and promised > max(SMALL_BYTES, MOST_PACKED * held):
        raise damaged(
            path, f"its header promises {promised} voxels (sizes {reader.GetSize()}), but it has {held} bytes"
        )
    require_memory(path, promised * MOST_BYTES_EACH)


def channels_first(image: Any) -> NDArray[Any]:
    """Voxels of a SimpleITK image as (C, Z, Y, X), a copy."""
    array = SimpleITK.GetArrayFromImage(image)
    if "complex" in image.GetPixelIDTypeAsString():
        raise AutosegError("the image has complex numbers; store their magnitude instead")
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    elif image.GetDimension() < MAX_DIMENSIONS:
        array = array[None]
    if image.GetDimension() == 2:
        array = array[:, None]
    if array.ndim != 4:
        raise AutosegError(f"the image has components and a fourth axis ({array.shape}); store only one of the two")
    return array

"""PNG, JPEG, BMP and TIFF: what ITK does not tell of them (transparency, missing ends) before it reads them."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.readers.endings import image_ending
from autoseg.imaging.readers.header import ImageHeader, damaged, make_geometry
from autoseg.imaging.readers.memory import SMALL_BYTES
from autoseg.imaging.readers.payload import MOST_PACKED, check_promise
from autoseg.imaging.readers.tiff import read_tiff_pages
from autoseg.issues import AutosegError, Issue

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, GREY_ALPHA = 0, 4
"""Colour types of PNG."""
JPEG_BEGIN, JPEG_END = b"\xff\xd8", b"\xff\xd9"
TAIL = 2**16
"""Bytes in which the end of a JPEG file must be: cameras add something behind it."""
BMP_HEAD = struct.Struct("<2sIHHI I ii HH I I")
PALETTE_BITS = (1, 4, 8)


@dataclass(frozen=True, slots=True)
class Png:
    """The beginning of a PNG file."""

    width: int
    height: int
    bits: int
    colour_type: int
    has_transparency: bool
    """A chunk gives one colour, or each entry of a palette, a transparency."""

    @property
    def is_grey_with_alpha(self) -> bool:
        """Two numbers a pixel, which ITK cannot read."""
        return self.colour_type == GREY_ALPHA or (self.colour_type == GREY and self.has_transparency)


def transparency_note(path: Path) -> Issue:
    """The note for an image whose last channel is transparency."""
    return Issue(
        code="reader.transparency_ignored",
        severity="note",
        where=str(path),
        message="its transparency is left out: it says how to show the image, not what was measured",
        fix="save the image without transparency",
    )


def check_photograph(path: Path) -> None:
    """Raise `AutosegError` where the file is cut or its parts lie outside of it: not every reader would notice."""
    ending = image_ending(path)
    if ending in (".tif", ".tiff"):
        expected = read_tiff_pages(path).num_bytes
        check_promise(path, expected, max(path.stat().st_size, SMALL_BYTES // MOST_PACKED["gzip"]), "gzip")
    elif ending in (".jpg", ".jpeg"):
        _check_jpeg(path)
    elif ending == ".bmp":
        _check_bmp(path)


def has_alpha(path: Path, num_components: int) -> bool:
    """Whether the last of the components that ITK reads is transparency."""
    ending = image_ending(path)
    if ending in (".tif", ".tiff"):
        return read_tiff_pages(path).has_alpha and num_components > 1
    return num_components in (2, 4) and ending in (".png", ".bmp")


def read_png_head(path: Path) -> Png:
    """What lies before the pixels of a PNG file; `AutosegError` where that is broken."""
    with open(path, "rb") as file:
        if file.read(len(PNG_MAGIC)) != PNG_MAGIC:
            raise damaged(path, "it does not begin as a PNG file")
        head, has_transparency = None, False
        while True:
            start = file.read(8)
            if len(start) < 8:
                raise damaged(path, "it ends before its pixels")
            length, kind = int.from_bytes(start[:4], "big"), start[4:]
            if kind in (b"IDAT", b"IEND") and head is not None:
                break
            content = file.read(min(length, TAIL))
            if kind == b"IHDR" and length == 13:
                if zlib.crc32(kind + content) != int.from_bytes(file.read(4), "big"):
                    raise damaged(path, "the check sum of its header is wrong")
                head = struct.unpack(">IIBB", content[:10])
            else:
                has_transparency |= kind == b"tRNS"
                file.seek(length - len(content) + 4, 1)
    width, height, bits, colour_type = head
    return Png(width, height, bits, colour_type, has_transparency)


def grey_alpha_header(path: Path) -> ImageHeader:
    """The header of a grey PNG with transparency."""
    png = read_png_head(path)
    geometry, _ = make_geometry(
        path,
        shape=(png.width, png.height),
        spacing_mm=(1.0, 1.0),
        origin_mm=(0.0, 0.0),
        direction=np.eye(2),
        has_orientation=False,
    )
    return ImageHeader(
        geometry=geometry,
        num_channels=1,
        pixel_type=f"{png.bits}-bit unsigned integer",
        is_integer=True,
        notes=(transparency_note(path),),
    )


def grey_alpha_voxels(path: Path) -> NDArray[Any]:
    """The greys (1, 1, Y, X) of a grey PNG with transparency."""
    png = read_png_head(path)
    if png.bits > 8:
        raise AutosegError(f"{path} has greys of {png.bits} bits with transparency; store it without transparency")
    from skimage.io import imread  # here: slow to load, and few files need it

    try:
        array = np.asarray(imread(path))
    except Exception as error:  # whatever its decoder raises for broken bytes
        raise damaged(path, f"{type(error).__name__}: {error}"[:200]) from None
    if array.shape[:2] != (png.height, png.width):
        raise damaged(path, f"its header says {png.width} x {png.height} pixels, but {array.shape[1::-1]} were read")
    return array.reshape(png.height, png.width, -1)[None, None, :, :, 0]


def is_tiled_tiff(path: Path) -> bool:
    """Whether ``path`` is a TIFF file of the kind that ITK reads with fewer bits."""
    return image_ending(path) in (".tif", ".tiff") and read_tiff_pages(path).is_tiled


def tiled_header(path: Path) -> ImageHeader:
    """The header of a tiled TIFF file."""
    check_photograph(path)
    pages = read_tiff_pages(path)
    shape = (pages.width, pages.height) if pages.num_pages == 1 else (pages.width, pages.height, pages.num_pages)
    geometry, _ = make_geometry(
        path,
        shape=shape,
        spacing_mm=(1.0,) * len(shape),
        origin_mm=(0.0,) * len(shape),
        direction=np.eye(len(shape)),
        has_orientation=False,
    )
    return ImageHeader(
        geometry=geometry,
        num_channels=pages.samples - pages.has_alpha,
        pixel_type=f"{pages.bits} bits",
        is_integer=pages.is_integer,
        notes=(transparency_note(path),) if pages.has_alpha else (),
    )


def tiled_voxels(path: Path) -> NDArray[Any]:
    """Voxels (C, Z, Y, X) of a tiled TIFF file, transparency among the channels."""
    from skimage.io import imread  # here: slow to load, and few files need it

    pages = read_tiff_pages(path)
    try:
        array = np.asarray(imread(path))
    except Exception as error:  # whatever its decoder raises for broken bytes, or for packing that it does not know
        raise AutosegError(
            f"{path} is stored in tiles and could not be read ({str(error)[:200]}); store it in strips"
        ) from None
    expected = (pages.num_pages, pages.height, pages.width, pages.samples)
    if array.size != math.prod(expected):
        raise damaged(path, f"its tags say {expected} numbers (pages, y, x, samples), but {array.shape} were read")
    return np.moveaxis(array.reshape(expected), -1, 0)


def _check_jpeg(path: Path) -> None:
    """A JPEG decoder fills what is missing with grey and says nothing."""
    with open(path, "rb") as file:
        if file.read(2) != JPEG_BEGIN:
            raise damaged(path, "it does not begin as a JPEG file")
        file.seek(max(2, file.seek(0, 2) - TAIL))
        if JPEG_END not in file.read():
            raise damaged(path, "its end is missing")


def _check_bmp(path: Path) -> None:
    """Uncompressed pixels must all be there."""
    with open(path, "rb") as file:
        head = file.read(BMP_HEAD.size)
        size = file.seek(0, 2)
    if len(head) < BMP_HEAD.size or head[:2] != b"BM":
        raise damaged(path, "it does not begin as a BMP file")
    _, _, _, _, start, _, width, height, planes, bits, compression, _ = BMP_HEAD.unpack(head)
    if planes != 1 or width < 1 or height == 0 or bits not in (*PALETTE_BITS, 16, 24, 32):
        raise damaged(path, f"its header says {width} x {height} pixels of {bits} bits in {planes} planes")
    line = (width * bits + 31) // 32 * 4
    if compression == 0 and start + line * abs(height) > size:
        raise damaged(path, f"its header promises {start + line * abs(height)} bytes, but it has {size}")

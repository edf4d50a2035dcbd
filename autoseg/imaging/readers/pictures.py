"""TIFF, PNG and BMP files: read by tifffile, Pillow and imagecodecs, after their headers were compared with their size."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import tifffile
from numpy.typing import NDArray

from autoseg.imaging.readers.guarded import decode
from autoseg.imaging.readers.header import (
    ImageHeader,
    damaged,
    make_geometry,
    printable,
    reader_error,
    require_memory,
    unsupported,
)
from autoseg.imaging.readers.itk import itk_write
from autoseg.imaging.readers.registry import Format
from autoseg.issues import AutosegError, Issue

MOST_PACKED = 1040
"""Bytes that one byte of a deflated file can stand for; run lengths and LZW pack less."""
SMALL_BYTES = 10**8
"""Pictures below this size are read whatever they promise; they do no harm."""
MOST_PAGES = 65_536
DEPTH_AXES = "ZIQR"
"""Letters of tifffile for pages that follow one another: depth, a series of images, unknown, and record; time is none."""
CHANNEL_AXES = "CS"
"""Channels in planes or pages, and samples of a pixel."""
ALPHA = (1, 2)
"""Values of ExtraSamples that mean transparency."""
SIMPLE_COMPRESSIONS = {1, 5, 8, 32773, 32946}
"""None, LZW, deflate (twice) and PackBits: unpacked here, by loops that end with their input; all others by a worker."""
WIDE = "16B"
"""Ends the raw mode of PNG files with 16 bits for each colour, of which Pillow keeps 8."""


def _picture_header(
    path: Path,
    shape: tuple[int, int, int],
    *,
    dimensions: int,
    samples: int,
    kind: np.dtype[Any],
    has_alpha: bool,
    turned: int = 1,
) -> ImageHeader:
    """Header of a picture of ``shape`` (z, y, x) whose last sample is transparency if ``has_alpha``.

    ``turned`` is its orientation tag, which viewers obey (1: as stored).
    """
    geometry, _ = make_geometry(
        path,
        shape=shape[::-1][:dimensions],
        spacing_mm=(1.0,) * dimensions,
        origin_mm=(0.0,) * dimensions,
        direction=np.eye(dimensions),
        has_orientation=False,
    )
    ignored = {
        "transparency": (has_alpha, "its transparency is ignored: it controls the display and is not measured data"),
        "orientation": (
            turned != 1,
            f"its orientation tag {turned} is ignored: pixels are read in the order of the file",
        ),
    }
    return ImageHeader(
        geometry=geometry,
        num_channels=samples - has_alpha,
        pixel_type=kind.name,
        is_integer=kind.kind in "iu",
        notes=tuple(
            Issue(
                code=f"reader.{name}_ignored",
                severity="note",
                where=printable(path),
                message=message,
                fix=f"save the image without {name}",
            )
            for name, (is_there, message) in ignored.items()
            if is_there
        ),
    )


def _check_promise(path: Path, num_bytes: int) -> None:
    """Refuse decompression bombs."""
    held = path.stat().st_size
    if num_bytes > max(SMALL_BYTES, MOST_PACKED * held):
        raise damaged(
            path,
            code="reader.truncated",
            message=f"the header declares {num_bytes} bytes of pixels, but the file has {held}",
        )
    require_memory(path, num_bytes)


# --- TIFF ---


class _Records(logging.Handler):
    """What tifffile logs instead of raising."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _opened_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """The file with all its faults as errors: those raised, of many kinds, and those only logged."""
    records = _Records()
    logger = logging.getLogger("tifffile")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(records)
    try:
        with tifffile.TiffFile(path, _multifile=False) as file:
            yield file
        if records.messages:
            raise damaged(path, message=records.messages[0][:300])
    except (AutosegError, OSError, MemoryError):
        raise
    except Exception as error:
        raise damaged(
            path, code="reader.corrupt", message=f"tifffile: {str(error)[:300] or type(error).__name__}"
        ) from None
    finally:
        logger.removeHandler(records)
        logger.propagate = propagates


def _tiff_series(path: Path, file: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The one image of a file, its pages all there; thumbnails and lower resolutions are ignored."""
    if len(file.pages) > MOST_PAGES:
        raise damaged(path, message=f"it has more than {MOST_PAGES} pages")
    first = file.pages.first
    num_bytes = first.nbytes * len(file.pages)
    _check_promise(path, num_bytes)
    images = [series for series in file.series if not series.keyframe.is_reduced and not series.keyframe.is_subifd]
    if not images:
        raise damaged(path, message="it has no image")
    if len(images) > 1:
        shown = " and ".join(f"{series.shape} {series.dtype}" for series in images[:2])
        raise unsupported(
            path, message=f"its pages differ in size or type ({shown})", fix="store each in a separate file"
        )
    for page in images[0].pages:
        if page is None:
            raise damaged(path, code="reader.truncated", message="a page of its image is missing")
        _check_page(path, page, file.filehandle.size)
    return images[0]


def _check_page(path: Path, page: Any, size: int) -> None:
    """Raise `AutosegError` where pixels of a page are missing, for which tifffile would put zeros."""
    places, lengths = page.dataoffsets, page.databytecounts
    promised = math.prod(page.keyframe.chunked)
    if len(places) != len(lengths) or len(places) < promised or min(*lengths, *places, 1) < 1:
        raise damaged(
            path,
            code="reader.truncated",
            message=f"a page has {len(places)} parts of {len(lengths)} lengths, expected {promised}",
        )
    if max(place + length for place, length in zip(places, lengths, strict=True)) > size:
        raise damaged(path, code="reader.truncated", message="pixels of a page are beyond the end of the file")
    keyframe = page.keyframe
    if keyframe.compression == 1 and not keyframe.is_tiled:
        bits = math.prod(keyframe.shape) * keyframe.bitspersample
        if sum(lengths) * 8 < bits:
            raise damaged(path, code="reader.truncated", message=f"a page of {bits // 8} bytes has {sum(lengths)}")


@dataclass(frozen=True, slots=True)
class _Axes:
    """How the axes of a series become (C, Z, Y, X)."""

    order: tuple[int, ...]
    """Axes of the series: those of length 1 that mean nothing, channels, depth if there is any, y, x."""
    num_samples: int
    shape: tuple[int, int, int]
    dimensions: int
    has_alpha: bool
    """The last sample of a pixel is its transparency."""


def _tiff_axes(path: Path, series: tifffile.TiffPageSeries) -> _Axes:
    sizes = dict(enumerate(series.shape))
    letters = {axis: series.axes[axis] for axis, size in sizes.items() if size > 1 or series.axes[axis] in "YX"}
    rest = [axis for axis in sizes if axis not in letters]
    channels = [axis for axis, letter in letters.items() if letter in CHANNEL_AXES]
    depth = [axis for axis, letter in letters.items() if letter in DEPTH_AXES]
    plane = sorted((axis for axis, letter in letters.items() if letter in "YX"), key=lambda axis: letters[axis] == "X")
    if len(plane) != 2 or len(depth) > 1 or len(plane) + len(channels) + len(depth) != len(letters):
        shown = ", ".join(f"{letter} {size}" for letter, size in zip(series.axes, series.shape, strict=True))
        fix = "store one volume or picture in each file, with slices as depth (Z)"
        raise unsupported(path, message=f"its axes are {shown}", fix=fix)
    extra = series.keyframe.extrasamples
    return _Axes(
        order=(*rest, *channels, *depth, *plane),
        num_samples=math.prod(sizes[axis] for axis in channels),
        shape=(math.prod(sizes[axis] for axis in depth), sizes[plane[0]], sizes[plane[1]]),
        dimensions=2 + len(depth),
        has_alpha=bool(extra) and int(extra[-1]) in ALPHA and [letters[axis] for axis in channels] == ["S"],
    )


def _tiff_kind(path: Path, series: tifffile.TiffPageSeries) -> np.dtype[Any]:
    kind = np.dtype(np.uint8) if series.dtype == bool else series.dtype
    if kind is None or kind.kind not in "iuf":
        raise unsupported(
            path, message=f"its pixels are of type {kind}", fix="store integers or floating-point numbers"
        )
    return kind


def _tiff_header(path: Path) -> ImageHeader:
    with _opened_tiff(path) as file:
        series = _tiff_series(path, file)
        axes = _tiff_axes(path, series)
        return _picture_header(
            path,
            axes.shape,
            dimensions=axes.dimensions,
            samples=axes.num_samples,
            kind=_tiff_kind(path, series),
            has_alpha=axes.has_alpha,
            turned=int(tag.value) if (tag := series.keyframe.tags.get("Orientation")) is not None else 1,
        )


def _tiff_voxels(path: Path) -> NDArray[Any]:
    with _opened_tiff(path) as file:
        series = _tiff_series(path, file)
        axes = _tiff_axes(path, series)
        require_memory(path, 2 * series.nbytes)
        is_simple = series.keyframe.compression in SIMPLE_COMPRESSIONS
        array = series.asarray(maxworkers=1) if is_simple else decode(path, [path], series.shape, "tiff")
        return array.transpose(axes.order).reshape(-1, *axes.shape).astype(_tiff_kind(path, series), copy=False)


TIFF = Format(
    endings=(".tif", ".tiff"),
    read_header=_tiff_header,
    read_voxels=_tiff_voxels,
    write=itk_write,
    magic=(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    is_picture=True,
)


# --- PNG and BMP ---


@contextmanager
def _opened_picture(path: Path, name: str) -> Iterator[PIL.Image.Image]:
    """The picture opened by Pillow's reader ``name``; any fault of it is an `AutosegError`."""
    try:
        with PIL.Image.open(path, formats=(name,)) as picture:
            _check_promise(path, picture.width * picture.height * 8)
            yield picture
    except (AutosegError, MemoryError):
        raise
    except PIL.Image.DecompressionBombError as error:
        raise reader_error(
            path, code="reader.too_large", message=str(error), fix="cut the picture into tiles"
        ) from None
    except Exception as error:  # whatever its decoders raise for broken bytes
        cause = str(error)[:300] or type(error).__name__
        raise damaged(
            path, code="reader.truncated" if "truncated" in cause else "reader.corrupt", message=f"Pillow: {cause}"
        ) from None


def _bands(picture: PIL.Image.Image) -> tuple[int, bool]:
    """Samples of a pixel as `_pixels` gives them, and whether the last is transparency."""
    if _is_wide(picture) and picture.mode != "I;16":
        letters = _raw_mode(picture).partition(";")[0]
        return len(letters), letters.endswith("A")
    if picture.mode == "P":
        has_alpha = "transparency" in picture.info
        return 3 + has_alpha, has_alpha
    has_alpha = picture.mode in ("LA", "PA", "RGBA")
    return len(picture.getbands()), has_alpha


def _flat_header(name: str) -> Callable[[Path], ImageHeader]:
    def read(path: Path) -> ImageHeader:
        with _opened_picture(path, name) as picture:
            samples, has_alpha = _bands(picture)
            wide = picture.mode.startswith("I") or _is_wide(picture)
            return _picture_header(
                path,
                (1, picture.height, picture.width),
                dimensions=2,
                samples=samples,
                kind=np.dtype(np.uint16 if wide else np.uint8),
                has_alpha=has_alpha,
            )

    return read


def _raw_mode(picture: Any) -> str:
    """How the file stores its pixels, in Pillow's words."""
    return str(picture.tile[0][3]) if picture.tile else ""


def _is_wide(picture: PIL.Image.Image) -> bool:
    return _raw_mode(picture).endswith(WIDE)


def _flat_voxels(name: str, *, as_labels: bool = False) -> Callable[[Path], NDArray[Any]]:
    def read(path: Path) -> NDArray[Any]:
        with _opened_picture(path, name) as picture:
            if name == "PNG":
                picture.verify()  # the check sums, which reading alone does not look at; it leaves nothing to read
        with _opened_picture(path, name) as picture:
            pixels = _pixels(path, picture, as_labels=as_labels)
            return np.moveaxis(pixels.reshape(picture.height, picture.width, -1), -1, 0)[:, None]

    return read


def _pixels(path: Path, picture: PIL.Image.Image, *, as_labels: bool) -> NDArray[Any]:
    """(Y, X) or (Y, X, samples). A palette stands for its colours in images, for its indices in label maps, unless it is grey."""
    if _is_wide(picture) and picture.mode != "I;16":
        return np.asarray(imagecodecs.png_decode(path.read_bytes()))
    if picture.mode == "P":
        colours = np.asarray(picture.convert("RGBA" if "transparency" in picture.info else "RGB"))
        is_grey = (colours[..., 1:3] == colours[..., :1]).all()
        return np.asarray(picture) if as_labels and not is_grey else colours
    if picture.mode == "1":
        picture = picture.convert("L")
    return np.asarray(picture)


def _flat_format(name: str, ending: str, magic: bytes) -> Format:
    return Format(
        endings=(ending,),
        read_header=_flat_header(name),
        read_voxels=_flat_voxels(name),
        read_labels=_flat_voxels(name, as_labels=True),
        write=itk_write,
        magic=(magic,),
        is_picture=True,
        is_flat=True,
    )


PNG = _flat_format("PNG", ".png", b"\x89PNG\r\n\x1a\n")
BMP = _flat_format("BMP", ".bmp", b"BM")

"""TIFF, PNG, BMP and JPEG files: read by tifffile, Pillow, imagecodecs and ITK, after their headers were compared with their size."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from autoseg.imaging.readers.itk import itk_header, itk_voxels, itk_write
from autoseg.imaging.readers.registry import Format
from autoseg.imaging.readers.worker import tiff_images
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
SHOWN_INVERTED, PALETTE = 0, 3
"""Photometric interpretations of TIFF: small values are shown bright, and values stand for colours."""
OTHER_COLOURS = (6, 8, 9, 10, 32803, 32844, 32845, 34892)
"""Those whose values are neither grey nor red, green and blue: of YCbCr, Lab, single sensors, and logarithms."""
JPEG_CODECS = (6, 7, 33007, 34892)
"""Compressions of TIFF whose decoders turn YCbCr into red, green and blue."""
ORIENTATION_TAG = 274
WIDE = "16B"
"""Ends the raw mode of PNG files with 16 bits for each colour, of which Pillow keeps 8."""


def _picture_header(
    path: Path,
    shape: tuple[int, int, int],
    *,
    dimensions: int,
    samples: int,
    kind: np.dtype[Any],
    has_alpha: bool = False,
    turned: int = 1,
    is_inverted: bool = False,
) -> ImageHeader:
    """Header of a picture of ``shape`` (z, y, x) whose last sample is transparency if ``has_alpha``.

    ``turned`` is its orientation tag (1: as stored), and ``is_inverted`` says that small values are bright; viewers obey both.
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
            f"its orientation tag {turned} (EXIF) is ignored: rows and columns are used as stored, viewers may show it rotated",
        ),
        "inversion": (is_inverted, "it is shown inverted, small values bright: values are read as they are stored"),
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
    images = tiff_images(file)
    if not images:
        raise damaged(path, message="it has no image")
    if len(images) > 1:
        shown = " and ".join(f"{series.name} {series.shape} {series.dtype}".strip() for series in images[:2])
        raise unsupported(path, message=f"it has {len(images)} images ({shown})", fix="store each in a separate file")
    series: tifffile.TiffPageSeries = images[0]
    for page in series.pages:
        if page is None:
            raise damaged(path, code="reader.truncated", message="a page of its image is missing")
        _check_page(path, page, file.filehandle.size)
    kind = series.keyframe.photometric
    if kind in OTHER_COLOURS and series.keyframe.compression not in JPEG_CODECS:
        raise unsupported(
            path, message=f"its colours are stored as {tifffile.PHOTOMETRIC(kind).name}", fix="store them as RGB"
        )
    return series


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


def _colours(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> NDArray[np.uint8] | None:
    """The palette (3, colours) of a file; None where values are measured: ImageJ and OME colour them for display only."""
    table = series.keyframe.colormap
    if series.keyframe.photometric != PALETTE or table is None or file.is_imagej or file.is_ome:
        return None
    return np.asarray(table >> 8 if table.max() > 255 else table, np.uint8)


def _tiff_header(path: Path) -> ImageHeader:
    with _opened_tiff(path) as file:
        series = _tiff_series(path, file)
        axes, has_colours = _tiff_axes(path, series), _colours(file, series) is not None
        return _picture_header(
            path,
            axes.shape,
            dimensions=axes.dimensions,
            samples=3 if has_colours else axes.num_samples,
            kind=np.dtype(np.uint8) if has_colours else _tiff_kind(path, series),
            has_alpha=axes.has_alpha,
            turned=int(tag.value) if (tag := series.keyframe.tags.get("Orientation")) is not None else 1,
            is_inverted=series.keyframe.photometric == SHOWN_INVERTED,
        )


def _tiff_voxels(path: Path, *, as_labels: bool = False) -> NDArray[Any]:
    with _opened_tiff(path) as file:
        series = _tiff_series(path, file)
        axes, colours = _tiff_axes(path, series), _colours(file, series)
        require_memory(path, 2 * series.nbytes)
        is_simple = series.keyframe.compression in SIMPLE_COMPRESSIONS
        array = series.asarray(maxworkers=1) if is_simple else decode(path, [path], series.shape, "tiff")
        voxels = array.transpose(axes.order).reshape(-1, *axes.shape).astype(_tiff_kind(path, series), copy=False)
        if colours is None or (as_labels and (colours != colours[0]).any()):
            return voxels
        return colours[:, voxels[0]]


TIFF = Format(
    endings=(".tif", ".tiff"),
    read_header=_tiff_header,
    read_voxels=_tiff_voxels,
    read_labels=lambda path: _tiff_voxels(path, as_labels=True),
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
            if (count := getattr(picture, "n_frames", 1)) > 1:
                raise unsupported(path, message=f"it is an animation of {count} pictures", fix="store each in a file")
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
                turned=_turned(picture),
            )

    return read


def _turned(picture: PIL.Image.Image) -> int:
    """The orientation tag of a picture; 1 where it has none, or none that can be read."""
    try:
        return int(picture.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF does no harm to pixels
        return 1


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
        import imagecodecs

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


# --- JPEG: ITK prints what its decoder finds damaged; Pillow and imagecodecs fill it with grey and report nothing ---

JPEG_IO = "JPEGImageIO"
JPEG_BEGIN, JPEG_END, JPEG_SCAN = b"\xff\xd8", b"\xff\xd9", b"\xda"
JPEG_KINDS = {kind: "baseline" for kind in (0xC0, 0xC1, 0xC2)}
JPEG_KINDS |= dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless") | dict.fromkeys((0xC5, 0xC6), "hierarchical")
JPEG_KINDS |= dict.fromkeys((0xC9, 0xCA, 0xCD, 0xCE), "arithmetic coding") | {0xF7: "JPEG-LS"}
"""Kinds of JPEG by the marker of their frame."""
JPEG_BITS = 8
MOST_JPEG_PACKED = 5000
"""No JPEG file packs its pixels into less than this fraction of their bytes, not even constant images."""


def _check_jpeg(path: Path) -> None:
    """Raise `AutosegError` for a file without its end, which something else may follow, or of a kind that ITK does not read."""
    content = path.read_bytes()
    place = len(JPEG_BEGIN)
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] != JPEG_SCAN:
        marker, length, bits = (
            content[place + 1 : place + 2],
            content[place + 2 : place + 4],
            content[place + 4 : place + 5],
        )
        kind = JPEG_KINDS.get(int.from_bytes(marker), "")
        if kind and (kind != "baseline" or int.from_bytes(bits) != JPEG_BITS):
            message = f"it is a JPEG file of {int.from_bytes(bits)} bits, {kind}"
            raise unsupported(path, message=message, fix="convert it to PNG or TIFF")
        place += (
            1 if marker == b"\xff" else 2 + int.from_bytes(length)
        )  # any number of these bytes may come before a marker
    if content.find(JPEG_END, place) < 0:  # thumbnails before the first scan have ends of their own
        raise damaged(path, code="reader.truncated", message="its end is missing")


def _jpeg_header(path: Path) -> ImageHeader:
    _check_jpeg(path)
    found = itk_header(path, JPEG_IO)
    promised, held = math.prod(found.geometry.shape) * found.num_channels, path.stat().st_size
    if promised > max(SMALL_BYTES, MOST_JPEG_PACKED * held):
        message = f"the header declares {promised} values, but the file has {held} bytes"
        raise damaged(path, code="reader.truncated", message=message)
    with PIL.Image.open(path, formats=("JPEG",)) as picture:
        turned = _turned(picture)
    shape = found.geometry.shape
    return _picture_header(
        path, shape, dimensions=2, samples=found.num_channels, kind=np.dtype(np.uint8), turned=turned
    )


JPEG = Format(
    endings=(".jpg", ".jpeg", ".jpe", ".jfif"),
    read_header=_jpeg_header,
    read_voxels=lambda path: itk_voxels(path, JPEG_IO),
    magic=(JPEG_BEGIN,),
    is_picture=True,
    is_flat=True,
    is_lossy=True,
)

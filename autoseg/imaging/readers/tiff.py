"""TIFF structure: pages, their sizes and whether their pixels are all there, told from the tags before ITK reads them."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from autoseg.imaging.readers.header import damaged
from autoseg.issues import AutosegError

MOST_PAGES = 65_536
MOST_TAGS = 4096
MOST_VALUES = 10**7
SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, STRIP_OFFSETS, SAMPLES, STRIP_SIZES = 254, 256, 257, 258, 259, 273, 277, 279
TILE_OFFSETS, TILE_SIZES, EXTRA_SAMPLES, SAMPLE_FORMAT = 324, 325, 338, 339
WANTED = (
    SUBFILE,
    WIDTH,
    HEIGHT,
    BITS,
    COMPRESSION,
    STRIP_OFFSETS,
    SAMPLES,
    STRIP_SIZES,
    TILE_OFFSETS,
    TILE_SIZES,
    EXTRA_SAMPLES,
    SAMPLE_FORMAT,
)
LETTERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""Field types of whole numbers: byte, short, long, and the long ones of BigTIFF."""
UNCOMPRESSED = 1
WHOLE_NUMBERS = (1, 2)
"""Values of SampleFormat: unsigned and signed."""
ALPHA = (1, 2)
"""Values of ExtraSamples that mean transparency."""

Tags = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class TiffPages:
    """What the pages of a TIFF file have in common."""

    num_pages: int
    width: int
    height: int
    samples: int
    """Numbers of a pixel."""
    bits: int
    has_alpha: bool
    """The last sample of a pixel is its transparency."""
    is_tiled: bool
    """Pixels lie in tiles instead of strips; ITK makes 8 bits of 16 there."""
    is_integer: bool

    @property
    def num_bytes(self) -> int:
        """Size of all voxels in memory."""
        return self.num_pages * self.width * self.height * self.samples * math.ceil(self.bits / 8)


def read_tiff_pages(path: Path) -> TiffPages:
    """The structure of a TIFF or BigTIFF file.

    Raises `AutosegError` when pages differ in size, or when a page or its pixels lie outside of the file.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            pages = _all_pages(path, file, size)
    except (struct.error, OSError) as error:
        raise damaged(path, f"its list of pages is broken: {error}") from None
    sizes = [_shape(path, page, size) for page in pages]
    for number, other in enumerate(sizes):
        if other != sizes[0]:
            raise AutosegError(
                f"{path} has pages of different size: page 1 has {_words(sizes[0])}, page {number + 1} {_words(other)}; "
                "store each in a file of its own"
            )
    width, height, samples, bits = sizes[0]
    extra = pages[0].get(EXTRA_SAMPLES, ())
    return TiffPages(
        len(pages),
        width,
        height,
        samples,
        bits,
        has_alpha=bool(extra) and extra[-1] in ALPHA,
        is_tiled=TILE_OFFSETS in pages[0],
        is_integer=(pages[0].get(SAMPLE_FORMAT) or (1,))[0] in WHOLE_NUMBERS,
    )


def _words(size: tuple[int, int, int, int]) -> str:
    width, height, samples, bits = size
    return f"{width} x {height} pixels of {samples} x {bits} bits"


def _all_pages(path: Path, file: BinaryIO, size: int) -> list[Tags]:
    file.seek(0)
    mark = file.read(4)
    order = {b"II": "<", b"MM": ">"}.get(mark[:2])
    version = int.from_bytes(mark[2:], "little" if order == "<" else "big")
    if order is None or version not in (42, 43):
        raise damaged(path, "it does not begin as a TIFF file")
    is_big = version == 43
    if is_big:
        file.read(4)
    place = _number(file, order, is_big)
    pages: list[Tags] = []
    seen: set[int] = set()
    while place:
        if place in seen or place >= size or len(pages) >= MOST_PAGES:
            raise damaged(path, f"page {len(pages) + 1} should lie at byte {place} of {size}")
        seen.add(place)
        tags, place = _page(path, file, place, order, is_big, size)
        pages.append(tags)
    # thumbnails of a smaller size, marked as such or packed as pictures of their own, are no slices
    whole = [page for page in pages if not (page.get(SUBFILE) or (0,))[0] & 1]
    whole = whole[:1] + [page for page in whole[1:] if STRIP_OFFSETS in page or TILE_OFFSETS in page]
    if not whole:
        raise damaged(path, "it has no page")
    return whole


def _number(file: BinaryIO, order: str, is_big: bool) -> int:
    return int(struct.unpack(order + ("Q" if is_big else "I"), file.read(8 if is_big else 4))[0])


def _page(path: Path, file: BinaryIO, place: int, order: str, is_big: bool, size: int) -> tuple[Tags, int]:
    """The wanted tags of the page at ``place``, and where the next page lies."""
    file.seek(place)
    (count,) = struct.unpack(order + ("Q" if is_big else "H"), file.read(8 if is_big else 2))
    if count > MOST_TAGS:
        raise damaged(path, f"a page claims {count} tags")
    length = 20 if is_big else 12
    entries = file.read(count * length)
    following = _number(file, order, is_big)
    tags = {}
    for k in range(count):
        entry = entries[k * length : (k + 1) * length]
        tag, kind, number = struct.unpack(order + ("HHQ" if is_big else "HHI"), entry[: length - (8 if is_big else 4)])
        if tag in WANTED and kind in LETTERS:
            tags[tag] = _values(path, file, entry[-(8 if is_big else 4) :], order + LETTERS[kind], number, size, is_big)
    return tags, following


def _values(
    path: Path, file: BinaryIO, field: bytes, letter: str, number: int, size: int, is_big: bool
) -> tuple[int, ...]:
    """Values of a tag: in its own field, or where that points to."""
    one = struct.calcsize(letter)
    raw = field
    if one * number > len(field):
        (place,) = struct.unpack(letter[0] + ("Q" if is_big else "I"), field)
        if number > MOST_VALUES or place + one * number > size:
            raise damaged(path, f"a tag with {number} values lies outside of the file")
        file.seek(place)
        raw = file.read(one * number)
    return struct.unpack(f"{letter[0]}{number}{letter[1]}", raw[: one * number])


def _shape(path: Path, page: Tags, size: int) -> tuple[int, int, int, int]:
    """Width, height, samples and bits of a page whose pixels are all in the file."""
    width, height = (page.get(tag, (0,))[0] if page.get(tag) else 0 for tag in (WIDTH, HEIGHT))
    samples = (page.get(SAMPLES) or (1,))[0]
    bits = max(page.get(BITS) or (1,))
    if min(width, height, samples, bits) < 1:
        raise damaged(path, f"a page has {_words((width, height, samples, bits))}")
    offsets = page.get(STRIP_OFFSETS) or page.get(TILE_OFFSETS) or ()
    lengths = page.get(STRIP_SIZES) or page.get(TILE_SIZES) or ()
    if not offsets or len(offsets) != len(lengths):
        raise damaged(path, f"a page says where {len(offsets)} parts lie and how long {len(lengths)} are")
    if max(place + length for place, length in zip(offsets, lengths, strict=True)) > size:
        raise damaged(path, "pixels of a page lie behind the end of the file")
    promised = width * height * samples * bits // 8
    if (page.get(COMPRESSION) or (UNCOMPRESSED,))[0] == UNCOMPRESSED and sum(lengths) < promised:
        raise damaged(path, f"a page of {_words((width, height, samples, bits))} has {sum(lengths)} bytes")
    return width, height, samples, bits

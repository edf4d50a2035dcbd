"""DICOM files: recognised by content, their tags read so that broken ones are named, and the names of parts of them."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import DeflatedExplicitVRLittleEndian

from autoseg.imaging.readers.endings import image_ending
from autoseg.imaging.readers.header import damaged, unreadable
from autoseg.issues import AutosegError

PREAMBLE = 128
MAGIC = b"DICM"
PART_MARK = "#"
"""``FOLDER#SeriesInstanceUID`` names one of several series in a folder, ``FILE#5`` segment 5 of a DICOM SEG file."""
MOST_INFLATED = 2**31
"""Bytes that a deflated file may grow to."""
CHUNK = 2**20


def split_part(path: Path) -> tuple[Path, str | None]:
    """What exists on disk, and the series or segment named behind ``#``; None where all of it is meant."""
    whole, mark, part = str(path).rpartition(PART_MARK)
    if not mark or "/" in part or path.exists():
        return path, None
    return Path(whole), part


def begins_as_dicom(file: Path) -> bool:
    """Whether ``file`` begins as a DICOM file does. Raises `OSError` where it cannot be read."""
    with open(file, "rb") as stream:
        return stream.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC


def is_dicom(file: Path) -> bool:
    """Whether ``file`` begins as a DICOM file does; one that cannot be read is none."""
    try:
        return begins_as_dicom(file)
    except OSError:
        return False


def dicom_candidates(folder: Path) -> list[Path]:
    """Files of a folder that may be DICOM by their names, which can have any ending or none.

    Links to files that are not there count, too: they may be slices whose content has not been fetched.
    """
    try:
        return sorted(
            file
            for file in folder.iterdir()
            if image_ending(file) in ("", ".dcm") and (file.is_file() or _leads_nowhere(file))
        )
    except OSError as error:
        raise unreadable(folder, error) from None


def _leads_nowhere(file: Path) -> bool:
    return file.is_symlink() and not file.exists() and not file.name.startswith(".")


def read_tags(file: Path, tags: Sequence[str] | None = None, *, pixels: bool = False) -> Any:
    """The data set of ``file`` (all of ``tags``, by default everything), with its pixels if asked for.

    Raises `AutosegError` for whatever is wrong with the file.
    """
    try:
        with warnings.catch_warnings():  # values against the letter of the standard are common and do no harm
            warnings.simplefilter("ignore")
            _check_inflated(file)
            found = pydicom.dcmread(
                file, stop_before_pixels=not pixels, specific_tags=None if tags is None else list(tags)
            )
            with tags_of(file):  # values are parsed when first asked for; here a broken one is named with its file
                list(found.file_meta)
                for name in tags or ():
                    found.get(name)
            return found
    except AutosegError:
        raise
    except Exception as error:
        raise damaged(file, _cause(error)) from None


@contextmanager
def tags_of(file: Path) -> Iterator[None]:
    """Name ``file`` where looking at its tags fails: pydicom lets through whatever broken bytes cause."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except AutosegError:
        raise
    except Exception as error:
        raise damaged(file, _cause(error)) from None


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}"[:300].split())


def _check_inflated(file: Path) -> None:
    """Refuse a deflated file that grows without end: pydicom would inflate all of it at once."""
    with open(file, "rb") as stream:
        stream.seek(PREAMBLE + len(MAGIC))
        meta = pydicom.filereader.read_file_meta_info(file)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        stream.seek(PREAMBLE + len(MAGIC) + 12 + int(meta.get("FileMetaInformationGroupLength", 0)))
        inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        chunk = stream.read(CHUNK)
        while chunk and not inflater.eof:
            size += len(inflater.decompress(chunk, CHUNK))
            if size > MOST_INFLATED:
                raise damaged(file, f"it inflates to more than {MOST_INFLATED} bytes", "corrupt")
            chunk = inflater.unconsumed_tail or stream.read(CHUNK)


def number(tags: Any, name: str, default: float) -> float:
    """A tag with one number; ``default`` where it is missing or empty."""
    return default if tags.get(name) in (None, "") else float(vector(tags, name, 1)[0])


def vector(tags: Any, name: str, size: int) -> NDArray[np.float64]:
    """A tag with ``size`` numbers, finite; `AutosegError` where it has others."""
    found = tags.get(name)
    try:
        values = np.atleast_1d(np.array(found, np.float64))
    except (TypeError, ValueError):
        values = np.array([])
    if values.shape != (size,) or not np.isfinite(values).all():
        raise damaged(Path(getattr(tags, "filename", "")), f"{name} is {str(found)[:100]!r}, not {size} finite numbers")
    return values

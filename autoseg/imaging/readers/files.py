"""Which files on the disk an image is read from: what must be unchanged for it to be the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from autoseg.imaging.readers.dicom import begins_as_dicom, dicom_candidates, read_tags, split_part
from autoseg.imaging.readers.endings import METAIMAGE, NRRD, image_ending
from autoseg.imaging.readers.metaimage import metaimage_voxel_file
from autoseg.imaging.readers.nrrd import nrrd_voxel_file
from autoseg.issues import AutosegError

KNOWN_SLICES = 2**17
"""Slices whose series is remembered: some 50 MB."""


def files_of(path: Path | str) -> tuple[Path, ...]:
    """The file itself, and the one with its voxels if its header names another; of a series those that reading it looks at, sorted.

    ``FOLDER#UID`` has the files of that series alone. What else lies in a folder of slices counts for nothing; of a folder
    without any, all files are named. A segment of a file stands for the whole. Files that are missing or damaged are named
    all the same: reading them says what is wrong. Raises `AutosegError` where a folder cannot be listed.
    """
    here, part = split_part(Path(path))
    if here.is_dir():
        return _slice_files(here, part)
    try:
        voxels = _voxel_file(here)
    except (AutosegError, OSError):
        return (here,)
    return (here,) if voxels == here else (here, voxels)


def _slice_files(folder: Path, uid: str | None) -> tuple[Path, ...]:
    slices = tuple(file for file in dicom_candidates(folder) if _counts(file))
    if not slices:
        return tuple(sorted(file for file in folder.iterdir() if file.is_file()))
    if uid is None:
        return slices
    return tuple(file for file in slices if _is_of_series(file, uid)) or slices


def _counts(file: Path) -> bool:
    """Whether a candidate is DICOM or makes reading its folder fail: that holds for all that is named .dcm, which is not opened."""
    try:
        return bool(image_ending(file)) or begins_as_dicom(file)
    except OSError:
        return True


def _is_of_series(file: Path, uid: str) -> bool:
    """Whether a slice is of the series ``uid``; one that does not say is of all, for a broken one makes reading any of them fail."""
    try:
        return _series_uid(*_state(file)) in (uid, "")
    except AutosegError:
        return True


@lru_cache(KNOWN_SLICES)
def _series_uid(file: str, _size: int, _mtime_ns: int) -> str:
    """SeriesInstanceUID of a slice of this size and time: folders of many series are asked for one after the other."""
    return str(read_tags(Path(file), ["SeriesInstanceUID"]).get("SeriesInstanceUID") or "")


def file_states(paths: Sequence[Path | str]) -> tuple[tuple[str, int, int], ...]:
    """Path, size and modification time in ns of each of the `files_of` all ``paths``; -1 for what is missing or cannot be listed."""
    return tuple(_state(file) for path in paths for file in _listed(path))


def _listed(path: Path | str) -> tuple[Path, ...]:
    try:
        return files_of(path)
    except AutosegError:
        return (Path(path),)


def _state(file: Path) -> tuple[str, int, int]:
    try:
        status = file.stat()
    except OSError:
        return str(file), -1, -1
    return str(file), status.st_size, status.st_mtime_ns


def _voxel_file(path: Path) -> Path:
    ending = image_ending(path)
    if ending in NRRD:
        return nrrd_voxel_file(path)
    return metaimage_voxel_file(path) if ending in METAIMAGE else path

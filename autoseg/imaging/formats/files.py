"""Which files on the disk an image is read from: what must be unchanged for it to be the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoseg.errors import AutosegError
from autoseg.imaging.formats.dicom import split_part
from autoseg.imaging.formats.endings import METAIMAGE, NRRD, image_ending
from autoseg.imaging.formats.metaimage import metaimage_voxel_file
from autoseg.imaging.formats.nrrd import nrrd_voxel_file


def files_of(path: Path | str) -> tuple[Path, ...]:
    """The file itself, and the one with its voxels if its header names another; of a series all files of its folder, sorted.

    A named part of a file or folder stands for the whole. Files that are missing or damaged are named all the same:
    reading them says what is wrong. Raises `AutosegError` where a folder cannot be listed.
    """
    here, _ = split_part(Path(path))
    if here.is_dir():
        try:
            return tuple(sorted(file for file in here.iterdir() if file.is_file()))
        except OSError as error:
            raise AutosegError(f"{here} could not be listed ({error.strerror or error}); make it readable") from None
    try:
        voxels = _voxel_file(here)
    except (AutosegError, OSError):
        return (here,)
    return (here,) if voxels == here else (here, voxels)


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

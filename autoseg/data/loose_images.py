"""Images in a folder that has no labels: files, DICOM series, and those in folders below."""

from __future__ import annotations

from pathlib import Path

from autoseg.imaging.readers import (
    IMAGE_ENDINGS,
    PART_MARK,
    image_ending,
    image_stem,
    is_dicom_series,
    list_series,
    require_text,
)
from autoseg.issues import AutosegError

MOST_NESTED = 3
"""Folders between the one given and an image: patient, study, series; subject, session, kind."""

NamedImage = tuple[str, Path]
"""Name and path of an image; the path may name one of several series of a folder."""


def find_loose_images(source: Path) -> list[NamedImage]:
    """The image that ``source`` is, or those in the folder, by path; names that begin with a dot or ``_`` are passed over.

    Several series in one folder are several images, named by folder and SeriesInstanceUID. Images further down are named by
    the folders that lead to them; files further down only count where nothing lies higher up, for beside images they are
    mostly something else. Raises `AutosegError` that names all whose names are no text.
    """
    found = _find(source)
    require_text([path for _, path in found])
    return found


def _find(source: Path) -> list[NamedImage]:
    if not source.is_dir():
        return [(source.name.replace(PART_MARK, "_") if is_dicom_series(source) else image_stem(source), source)]
    if is_dicom_series(source):
        require_text([source.resolve()])
        return _series(source, source.resolve().name)
    below = [entry for entry in _visible(source) if entry.is_dir()]
    series = [found for entry in below for found in _nested_series(entry, entry.name, MOST_NESTED)]
    files = _files(source, "")
    if not files and not series:
        files = [found for entry in below for found in _nested_files(entry, f"{entry.name}_", MOST_NESTED)]
    return sorted([*files, *series], key=lambda named: named[1])


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))


def _files(folder: Path, prefix: str) -> list[NamedImage]:
    return [
        (prefix + image_stem(entry), entry)
        for entry in _visible(folder)
        if entry.is_file() and image_ending(entry) in IMAGE_ENDINGS
    ]


def _nested_files(folder: Path, prefix: str, depth: int) -> list[NamedImage]:
    """Image files in a folder and in those below it, of several levels."""
    below = [entry for entry in _visible(folder) if entry.is_dir()] if depth else []
    deeper = [found for entry in below for found in _nested_files(entry, f"{prefix}{entry.name}_", depth - 1)]
    return [*_files(folder, prefix), *deeper]


def _nested_series(folder: Path, name: str, depth: int) -> list[NamedImage]:
    """Series in a folder, or in those below it: archives lie as PATIENT/STUDY/SERIES."""
    if is_dicom_series(folder):
        return _series(folder, name)
    below = [entry for entry in _visible(folder) if entry.is_dir()] if depth else []
    return [found for entry in below for found in _nested_series(entry, f"{name}_{entry.name}", depth - 1)]


def _series(folder: Path, name: str) -> list[NamedImage]:
    """The series of a folder; a folder that cannot be understood is one image, of which reading will say what is wrong."""
    try:
        series = list_series(folder)
    except AutosegError:
        series = ()
    if len(series) <= 1:
        return [(name, folder)]
    return [(f"{name}_{each.uid}", each.path) for each in series]

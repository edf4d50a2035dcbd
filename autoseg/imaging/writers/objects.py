"""Writing label maps as DICOM objects that refer to the series they were predicted from."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from autoseg.imaging.writers.maker import DrawnClass, Maker, name_private_scheme
from autoseg.imaging.writers.source import Source, copy_patient_and_study, open_source
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import atomic_write

Kind = Literal["dicom-seg", "dicom-labelmap", "rtstruct"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def parse_kind(kind: str) -> Kind:
    """One of `KINDS`. Raises `AutosegError` for others, and where a package for it is missing."""
    for known in KINDS:
        if kind == known:
            if kind != "rtstruct" and importlib.util.find_spec("highdicom") is None:
                message, fix = "needs the package highdicom", "install it: pip install 'autoseg[dicom]'"
                raise AutosegError(Issue(code="dicom.not_installed", where=f"--as {kind}", message=message, fix=fix))
            return known
    fix = f"use one of {', '.join(KINDS)}"
    raise AutosegError(Issue(code="dicom.unknown_kind", where="--as", message=f"{kind!r} is not a format", fix=fix))


def require_classes(classes: Sequence[DrawnClass], kind: Kind) -> None:
    """Raise `AutosegError` for classes that an object of ``kind`` cannot hold: one label map has no place for overlaps."""
    values = [value for each in classes for value in each.values]
    if kind == "dicom-labelmap" and len(set(values)) < len(values):
        message, fix = "the classes of the model overlap, and a label map has one class per voxel", "use --as dicom-seg"
        raise AutosegError(Issue(code="dicom.overlap", where=f"--as {kind}", message=message, fix=fix))


def require_source(path: Path) -> None:
    """Raise `AutosegError` unless an object can refer to ``path``: a DICOM series whose slices form a grid."""
    open_source(path)


def write_object(
    path: Path,
    labels: NDArray[np.integer],
    classes: Sequence[DrawnClass],
    *,
    kind: Kind,
    images: Sequence[Path],
    maker: Maker,
) -> None:
    """Write a label map (Z, Y, X) of the series ``images``, one per channel, in the axes of the first.

    Segments and structures are numbered 1, 2, 3 … in the order of ``classes``. Patient and study are those of the first series; it is
    new: its instance has a new identity and the time at which it was made. The file appears whole or not at all. Raises
    `AutosegError` where it cannot be written, and for a series that cannot be referred to.
    """
    source = open_source(images[0])
    texts = [maker.model, *(text for each in classes for text in (each.coded.name, each.coded.meaning))]
    with warnings.catch_warnings():  # values of the source against the letter of the standard stay as they are
        warnings.simplefilter("ignore")
        target = _object(labels, classes, kind, source, images[1:], maker)
        copy_patient_and_study(target, source, texts)
        name_private_scheme(target, classes)
        with atomic_write(path) as file:
            target.save_as(file, enforce_file_format=True)


def _object(
    labels: NDArray[np.integer],
    classes: Sequence[DrawnClass],
    kind: Kind,
    source: Source,
    others: Sequence[Path],
    maker: Maker,
) -> Dataset:
    if kind == "rtstruct":
        from autoseg.imaging.writers.structure_set import structure_set  # scikit-image's measures take long to load

        return structure_set(labels, classes, source, maker)
    from autoseg.imaging.writers.segmentation import segmentation  # highdicom is an extra

    return segmentation(
        labels, classes, source, _of_one_study(others, source), maker, as_label_map=kind == "dicom-labelmap"
    )


def _of_one_study(paths: Sequence[Path], source: Source) -> list[Source]:
    """The series of the other channels that are DICOM, and of the same study, as far as they can be referred to."""
    found = []
    for path in paths:
        try:
            other = open_source(path)
        except AutosegError:
            continue
        if other.uid("StudyInstanceUID") == source.uid("StudyInstanceUID"):
            found.append(other)
    return found

"""What the second stage of a cascade sees beside the image: the first stage's label map on its own grid (method section 8.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.issues import AutosegError, Issue
from autoseg.preprocessing.store import StoredArray, StoredCase, array_made_from, open_array, pack_array
from autoseg.storage.atomic import write_together


@dataclass(frozen=True, slots=True)
class CascadeCase:
    """A stored case with the first stage's label map. Holds paths only, so it can be sent to other processes."""

    case: StoredCase
    folder: Path | None
    """Of the label maps; none: the case's own labels replace them, to time steps before a first stage is trained."""

    @property
    def image(self) -> StoredArray:
        """float32 (C, a0, a1, a2), without the classes of the first stage."""
        return self.case.image

    @property
    def labels(self) -> StoredArray:
        """int16 (a0, a1, a2)."""
        return self.case.labels

    @property
    def locations(self) -> Mapping[str, NDArray[np.int32]]:
        """Sampled voxels (N, 3) of each class."""
        return self.case.locations

    @property
    def previous(self) -> StoredArray:
        """Integers (a0, a1, a2): see `open_previous`."""
        return self.case.labels if self.folder is None else open_previous(self.folder, self.case)


def store_previous(
    folder: Path, case_id: str, labels: NDArray[np.integer[Any]], *, made_from: str, patch_shape: Sequence[int]
) -> None:
    """Store a label map (a0, a1, a2) of the first stage on the second's grid as ``CASE.b2nd``, replacing an older one.

    ``made_from`` is the key of everything it was made from, and is kept in the same file. Numbers are stored, not one
    channel per class: patches are encoded when they are read.
    """
    write_together({_path(folder, case_id): pack_array(labels, tuple(patch_shape), made_from=made_from)})


def has_previous(folder: Path, case_id: str, made_from: str) -> bool:
    """Whether the label map of a case is stored and was made from the same."""
    path = _path(folder, case_id)
    try:
        return path.is_file() and array_made_from(path) == made_from
    except AutosegError:
        return False


def open_previous(folder: Path, case: StoredCase) -> StoredArray:
    """The stored label map (a0, a1, a2) of a case, sliced like an array; only the chunks that are touched are read.

    Raises `AutosegError` when it is missing or lies on another grid than ``case``.
    """
    path, expected = _path(folder, case.case_id), case.record.image_shape[1:]
    array = open_array(path)
    if array.shape != expected:
        message = f"{array.shape} voxels, but its case has {expected}"
        fix = "predict the previous stage again"
        raise AutosegError(
            Issue(code="store.previous_stage_shape", where=str(path), message=message, fix=fix, case=case.case_id)
        )
    return array


def with_classes(
    image: NDArray[np.float32], labels: NDArray[np.integer[Any]], values: Sequence[int]
) -> NDArray[np.float32]:
    """An image (C, ...) with one more channel for each of ``values``: 1 where ``labels`` (...) has it, else 0."""
    result = np.empty((len(image) + len(values), *image.shape[1:]), np.float32)
    result[: len(image)] = image
    for channel, value in zip(result[len(image) :], values, strict=True):
        channel[...] = labels == value
    return result


def _path(folder: Path, case_id: str) -> Path:
    return folder / f"{case_id}.b2nd"

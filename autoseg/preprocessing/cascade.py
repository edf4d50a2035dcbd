"""What the second stage of a cascade sees beside the image: the first stage's label map on its own grid (method section 8.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.issues import AutosegError
from autoseg.preprocessing.store import StoredArray, StoredCase, array_note, open_array, pack_array
from autoseg.storage.atomic import write_together


@dataclass(frozen=True, slots=True)
class CascadeCase:
    """A stored case with the first stage's label map. Holds paths only, so it travels between processes."""

    case: StoredCase
    folder: Path | None
    """Of the label maps; none: the case's own labels stand in for them, to time steps before a first stage is trained."""

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
    folder: Path, case_id: str, labels: NDArray[np.integer[Any]], consumed: str, *, patch_shape: Sequence[int]
) -> None:
    """Keep a label map of the first stage, already on the second's grid, as ``CASE.b2nd``; replaces what is there.

    ``consumed`` is a digest of all it was made from, and lies in the same file. Numbers are stored, not one channel a
    class: patches are told apart by class when they are read.
    """
    write_together({_path(folder, case_id): pack_array(labels, tuple(patch_shape), note=consumed)})


def has_previous(folder: Path, case_id: str, consumed: str) -> bool:
    """Whether the label map of a case is there and was made from what the digest ``consumed`` stands for."""
    path = _path(folder, case_id)
    try:
        return path.is_file() and array_note(path) == consumed
    except AutosegError:
        return False


def open_previous(folder: Path, case: StoredCase) -> StoredArray:
    """The stored label map of a case, sliced like an array; only the chunks that are touched are read.

    Raises `AutosegError` when it is not there or lies on another grid than ``case``.
    """
    array = open_array(_path(folder, case.case_id))
    if array.shape != case.record.image_shape[1:]:
        raise AutosegError(
            f"{_path(folder, case.case_id)} has {array.shape} voxels, but its case {case.record.image_shape[1:]}; "
            "predict the previous stage again"
        )
    return array


def with_classes(
    image: NDArray[np.float32], labels: NDArray[np.integer[Any]], values: Sequence[int]
) -> NDArray[np.float32]:
    """An image (C, ...) with one channel behind it for each of ``values``: 1 where ``labels`` (...) has it, else 0."""
    result = np.empty((len(image) + len(values), *image.shape[1:]), np.float32)
    result[: len(image)] = image
    for channel, value in zip(result[len(image) :], values, strict=True):
        channel[...] = labels == value
    return result


def _path(folder: Path, case_id: str) -> Path:
    return folder / f"{case_id}.b2nd"

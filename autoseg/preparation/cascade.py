"""What the second stage of a cascade sees beside the image: the first stage's label map on its own grid (method section 8.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import AutosegError
from autoseg.imaging.placement import Placement
from autoseg.imaging.resampling import decide_separate_axis, resample_labels
from autoseg.preparation.storage import StoredCase, open_array, pack_array
from autoseg.run_folder import write_together
from planners import Resampling


def to_next_stage(
    labels: NDArray[np.integer[Any]], previous: Placement, following: Placement, *, resampling: Resampling
) -> NDArray[np.integer[Any]]:
    """A label map (a0, a1, a2) on the grid of one stage, on the grid of the next; the same type.

    Both placements are those of one case, so both arrays fill the same box of the image. Training and prediction both go
    this way. Raises `ValueError` when the shape of ``labels`` is not that of ``previous``, or the boxes differ.
    """
    if labels.shape != previous.resampled_shape:
        raise ValueError(f"the label map has {labels.shape} voxels, but its stage {previous.resampled_shape}")
    if previous.box != following.box or previous.transpose_forward != following.transpose_forward:
        raise ValueError("the two stages look at different parts of the image")
    axis = decide_separate_axis(previous.resampled_spacing_mm, following.resampled_spacing_mm, resampling.separate_z)
    return resample_labels(labels, following.resampled_shape, resampling=resampling, separate_axis=axis)


def store_previous(folder: Path, case_id: str, labels: NDArray[np.integer[Any]], *, patch_shape: Sequence[int]) -> None:
    """Keep a label map of the previous stage, already on this stage's grid, as ``CASE.b2nd``; replaces what is there.

    Numbers are stored, not one channel a class: patches are told apart by class when they are read.
    """
    write_together({_path(folder, case_id): pack_array(labels, tuple(patch_shape))})


def open_previous(folder: Path, case: StoredCase) -> Any:
    """The stored label map of a case, sliced like an array; only the chunks that are touched are read.

    Raises `AutosegError` when it is not there or lies on another grid than ``case``.
    """
    array = open_array(_path(folder, case.case_id))
    if tuple(array.shape) != case.record.image_shape[1:]:
        raise AutosegError(
            f"{_path(folder, case.case_id)} has {tuple(array.shape)} voxels, but its case {case.record.image_shape[1:]}; "
            "predict the previous stage again"
        )
    return array


def one_hot(labels: NDArray[np.integer[Any]], values: Sequence[int]) -> NDArray[np.float32]:
    """A patch of labels (...) as float32 (len(values), ...): 1 where the label is ``values[k]``, else 0."""
    return np.stack([labels == value for value in values]).astype(np.float32)


def _path(folder: Path, case_id: str) -> Path:
    return folder / f"{case_id}.b2nd"

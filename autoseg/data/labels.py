"""Labels of a case, from whichever files they lie in: values of the files, and the consecutive ones used inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.data.dataset import Case, LabelCoding, MaskFile
from autoseg.imaging.image import Geometry, LabelMap
from autoseg.imaging.orientation import align_label_map
from autoseg.imaging.readers import Segmentation, read_label_map, read_segments, split_part
from autoseg.issues import AutosegError

TABLE_SIZE = 2**16
"""Largest span of file values that is mapped through a table; wider ones are searched."""


def to_internal(array: NDArray[np.integer[Any]], file_values: Sequence[int]) -> NDArray[np.int16]:
    """Internal values (int16, same shape) of an array with file values; ``file_values[i]`` stands for i.

    Raises `AutosegError` that lists the values which are not among ``file_values``, with their number of voxels.
    """
    if array.size == 0:
        return array.astype(np.int16)
    low, high = int(array.min()), int(array.max())
    if high - low < TABLE_SIZE:
        table = np.full(high - low + 1, -1, np.int16)
        for internal, value in enumerate(file_values):
            if low <= value <= high:
                table[value - low] = internal
        result = table[array if low == 0 else array.astype(np.int64) - low]
    else:
        order = np.argsort(file_values)
        ascending = np.asarray(file_values)[order]
        place = np.searchsorted(ascending, array).clip(max=len(ascending) - 1)
        result = np.where(ascending[place] == array, order[place], -1).astype(np.int16)
    if int(result.min()) < 0:
        _refuse_unknown(array[result < 0], file_values)
    return result


def _refuse_unknown(unknown: NDArray[np.integer[Any]], file_values: Sequence[int]) -> None:
    values, counts = np.unique(unknown, return_counts=True)
    shown = ", ".join(f"{value} ({count} voxels)" for value, count in zip(values[:10], counts[:10], strict=True))
    more = f" and {len(values) - 10} more" if len(values) > 10 else ""
    raise AutosegError(
        f"label values {shown}{more} are not declared; declared are {', '.join(map(str, file_values))}: "
        "correct the label map, or declare the values in the dataset's labels"
    )


def to_file_values(array: NDArray[np.integer[Any]], file_values: Sequence[int]) -> NDArray[np.integer[Any]]:
    """File values of an array of internal values 0 ... ``len(file_values) - 1``, smallest integer type that fits."""
    low, high = min(file_values), max(file_values)
    for kind in (np.uint8, np.uint16, np.int16, np.int32, np.int64):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            table: NDArray[np.integer[Any]] = np.asarray(file_values, kind)
            values: NDArray[np.integer[Any]] = table[array]
            return values
    raise AutosegError(f"label values from {low} to {high} fit into no integer type; use smaller values")


Combination = frozenset[str]
"""Names of the classes that a voxel belongs to."""


def read_case_labels(
    case: Case, coding: LabelCoding, *, onto: Geometry | None = None, missing_as_ignore: bool = True
) -> LabelMap:
    """Labels (Z, Y, X) of a case, int16, with internal values.

    Turned to the grid ``onto``, the geometry of the image; with none, in the axes of the label file. Where the case is
    annotated for some classes only and the dataset has an ignore label, background becomes ignored: it may hold any of
    the other classes. ``missing_as_ignore=False`` leaves it, as scoring the annotated classes needs it.

    Raises `AutosegError` that names the file where it cannot be read or holds undeclared values, and `ValueError` for a
    case without labels.
    """
    found = read_file_labels(case, coding, onto=onto)
    try:
        array = found.array.astype(np.int16) if coding.classes else to_internal(found.array, coding.file_values)
    except AutosegError as error:
        raise AutosegError(f"{case.label}: {error}") from error
    ignore = coding.labels.ignore
    if missing_as_ignore and ignore is not None and is_partly_annotated(case, coding):
        array[array == 0] = ignore
    return LabelMap(array=array, geometry=found.geometry)


def read_file_labels(case: Case, coding: LabelCoding, *, onto: Geometry | None = None) -> LabelMap:
    """Labels (Z, Y, X) of a case with the values of the file; of masks, with internal values.

    Greys of a dataset with a threshold have become its one foreground value. Nothing is said of undeclared values.
    """
    if case.masks:
        return _combined(case, coding, onto)
    if case.label is None:
        raise ValueError(f"case {case.case_id} has no labels")
    label_map = _read(Path(case.label), onto)
    if coding.threshold is None:
        return label_map
    background, inside = coding.file_values[:2]
    array = np.where(label_map.array >= coding.threshold, inside, background)
    return LabelMap(array=array, geometry=label_map.geometry)


def is_partly_annotated(case: Case, coding: LabelCoding) -> bool:
    """Whether nothing is known of some class in this case."""
    return case.annotated is not None and not {label.name for label in coding.labels.classes} <= set(case.annotated)


def mask_combinations(case: Case, coding: LabelCoding) -> frozenset[Combination]:
    """Which classes occur together in the masks of a case; the background is the empty combination."""
    _, combinations, _ = _overlaid(case, coding, None)
    return frozenset(combinations)


def combination_values(coding: LabelCoding) -> dict[Combination, int]:
    """Internal value of each combination of classes that the dataset has."""
    table = {frozenset[str](): 0}
    for value in coding.labels.values:
        table[frozenset(label.name for label in coding.labels.classes if value in label.values)] = value
    return table


def read_mask(
    mask: MaskFile,
    *,
    threshold: int | None,
    onto: Geometry | None = None,
    opened: dict[Path, Segmentation] | None = None,
) -> tuple[NDArray[np.bool_], Geometry]:
    """Where a class is: bool (Z, Y, X), turned to ``onto`` if given, and the geometry that it then has.

    Files of segments that are in ``opened`` are not read again, others are added to it. Raises `AutosegError` where there are
    several values besides 0 and no threshold says which of them are inside.
    """
    label_map = _aligned(Path(mask.file), _read_segment(Path(mask.file), {} if opened is None else opened), onto)
    array = label_map.array
    if threshold is not None:
        return array >= threshold, label_map.geometry
    inside = array != 0
    if inside.any():
        values = array[inside]
        low, high = int(values.min()), int(values.max())
        if low != high:
            raise AutosegError(_several_values(mask.file, np.unique(values)))
    return inside, label_map.geometry


def _several_values(file: str, values: NDArray[Any]) -> str:
    shown = ", ".join(str(value) for value in values[:8]) + (" ..." if len(values) > 8 else "")
    if int(values.max()) == 255:
        return (
            f"{file} has greys between 0 and 255 ({shown}), but a mask has one value inside; save it as a mask, or give "
            "a spec file with threshold = 128 (--spec)"
        )
    return (
        f"{file} has the values {shown} besides 0, but a mask of one class has one; give one file for each class, or a "
        "spec file that takes this file as a label map (--spec)"
    )


def _combined(case: Case, coding: LabelCoding, onto: Geometry | None) -> LabelMap:
    state, combinations, geometry = _overlaid(case, coding, onto)
    known = combination_values(coding)
    unknown = [names for names in combinations if names not in known]
    if unknown:
        shown = " and ".join(sorted(unknown[0]))
        raise AutosegError(
            f"{case.masks[0].file}: {shown} overlap, which they did in no case when the dataset was looked "
            "through; run autoseg check again"
        )
    table = np.array([known[names] for names in combinations], np.int16)
    return LabelMap(array=table[state], geometry=geometry)


def _overlaid(
    case: Case, coding: LabelCoding, onto: Geometry | None
) -> tuple[NDArray[np.int32], Sequence[Combination], Geometry]:
    """For each voxel the number of its combination, the combinations, and the geometry."""
    combinations: list[Combination] = [frozenset()]
    state: NDArray[np.int32] | None = None
    grid = onto
    opened: dict[Path, Segmentation] = {}
    for mask in _in_order(case.masks, coding.classes):
        inside, geometry = read_mask(mask, threshold=coding.threshold, onto=grid, opened=opened)
        if state is None:
            state, grid = np.zeros(inside.shape, np.int32), onto or geometry
        if inside.shape != state.shape:
            raise AutosegError(
                f"{mask.file} has {inside.shape} voxels (z, y, x), but the masks before it {state.shape}; "
                "resample the masks of a case to one grid"
            )
        before = state[inside]
        table = np.zeros(len(combinations), np.int32)
        for number in np.unique(before):
            names = frozenset([mask.label]) | (frozenset() if coding.later_wins else combinations[number])
            if names not in combinations:
                combinations.append(names)
            table[number] = combinations.index(names)
        state[inside] = table[before]
    if state is None or grid is None:
        raise ValueError(f"case {case.case_id} has no masks")
    present = np.unique(state)
    numbers = np.zeros(len(combinations), np.int32)
    numbers[present] = np.arange(len(present))
    return numbers[state], [combinations[number] for number in present], grid


def _in_order(masks: Iterable[MaskFile], classes: Sequence[str]) -> list[MaskFile]:
    return sorted(masks, key=lambda mask: classes.index(mask.label))


def _read(path: Path, onto: Geometry | None) -> LabelMap:
    return _aligned(path, read_label_map(path), onto)


def _read_segment(path: Path, opened: dict[Path, Segmentation]) -> LabelMap:
    """A mask from its file, or as one segment of a file that is read once for all its segments."""
    file, part = split_part(path)
    if part is None:
        return read_label_map(path)
    if file not in opened:
        opened[file] = read_segments(file)
    for segment in opened[file].segments:
        if str(segment.number) == part:
            return LabelMap(array=segment.mask.astype(np.uint8), geometry=segment.geometry, may_be_part=True)
    return read_label_map(path)  # which says what there is


def _aligned(path: Path, label_map: LabelMap, onto: Geometry | None) -> LabelMap:
    if onto is None:
        return label_map
    try:
        return LabelMap(array=align_label_map(label_map, onto), geometry=onto)
    except AutosegError as error:
        raise AutosegError(str(error) if str(path) in str(error) else f"{path}: {error}") from error

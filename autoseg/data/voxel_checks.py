"""What the voxels of an item's files say: values that are not declared or not finite, empty images and labels; with measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.data.case_labels import read_file_labels
from autoseg.data.check_items import CheckItem, item_finding, unreadable
from autoseg.data.dataset import LabelCoding
from autoseg.data.measures import CaseFiles, CaseMeasures, measure_case
from autoseg.imaging.image import Image, LabelMap
from autoseg.imaging.readers import file_states, read_image, read_label_map
from autoseg.issues import AutosegError, Issue

NUM_SHOWN_VALUES = 10
MANY_VALUES = 20
"""So many undeclared values are those of an image or of an interpolated mask."""
EMPTY = "the label map is empty: background only"


@dataclass(frozen=True, slots=True, kw_only=True)
class VoxelReport:
    """What was found, and what comparisons with other cases need."""

    issues: tuple[Issue, ...]
    is_read: bool
    """Whether all files could be read; what prevented it may have been a lack of memory, or a drive that was away."""
    counts: Mapping[int, int] | None
    """Voxels of each file value in the labels; None: they could not be read."""
    measures: CaseMeasures | None = None
    """None: the image could not be read, has one value only, or NaN or infinite voxels."""


def item_state(item: CheckItem) -> object:
    """What a kept report depends on: the item, and the states of its files."""
    return item, file_states([*item.images, *item.labels])


def is_read_whole(report: VoxelReport) -> bool:
    """Whether the report may be kept: a failure to read may pass."""
    return report.is_read


def check_voxels(item: CheckItem, *, coding: LabelCoding) -> VoxelReport:
    """Read all voxels of image and labels; measures where image, or image and labels, are fit for comparisons."""
    findings: list[Issue] = []
    failures: list[Issue] = []
    volume = _read_image(item, findings, failures) if item.images else None
    counts, aligned = None, None
    if item.labels:
        try:
            label_map = _read_labels(item, coding, volume)
        except AutosegError as error:
            failures.append(unreadable(item, item.labels[0], error))
        else:
            counts = _count_values(label_map.array)
            findings += _value_faults(item, counts, coding.file_values)
            aligned = label_map.array if item.case is not None else None
    measures = None
    shows_something = volume is not None and all(np.ptp(channel) > 0 for channel in volume.array)
    if volume is not None and shows_something and (item.case is not None or not item.labels):
        measures = measure_case(
            CaseFiles(
                case_id=item.case_id,
                image_path=item.images[0],
                label_path=item.labels[0] if item.labels else None,
                is_training=item.is_training,
                group=item.case.group if item.case else None,
            ),
            volume,
            aligned,
            file_values=coding.file_values,
            labels=coding.labels,
        )
    return VoxelReport(issues=(*failures, *findings), is_read=not failures, counts=counts, measures=measures)


def _read_labels(item: CheckItem, coding: LabelCoding, volume: Image | None) -> LabelMap:
    """In the axes of the image where both are fit for use, else as the file has it."""
    if item.case is not None:
        return read_file_labels(item.case, coding, onto=None if volume is None else volume.geometry)
    return read_label_map(Path(item.labels[0]))


def _read_image(item: CheckItem, findings: list[Issue], failures: list[Issue]) -> Image | None:
    """The image with finite voxels; None where there is none, with the reason among ``findings`` or ``failures`` to read."""
    where = item.images[0]
    try:
        volume = read_image([Path(path) for path in item.images])
    except AutosegError as error:
        failures.append(unreadable(item, where, error))
        return None
    for channel, voxels in enumerate(volume.array):
        path = item.images[channel] if len(item.images) == len(volume.array) else where
        findings += _intensity_faults(item, path, channel, voxels)
    return volume if np.isfinite(volume.array).all() else None


def _intensity_faults(item: CheckItem, path: str, channel: int, voxels: NDArray[np.float32]) -> list[Issue]:
    low, high = float(voxels.min()), float(voxels.max())
    if np.isfinite(low) and np.isfinite(high):
        if low < high:
            return []
        return [
            item_finding(
                item,
                "warning",
                path,
                f"all voxels of channel {channel} are {low:g}",
                "look at the image; remove the case if it is empty",
            )
        ]
    bad = ~np.isfinite(voxels)
    first = tuple(int(index) for index in np.argwhere(bad)[0])
    num_nan = int(np.isnan(voxels).sum())
    counts = {"NaN": num_nan, "infinite": int(bad.sum()) - num_nan}
    kinds = [f"{count} {kind}" for kind, count in counts.items() if count]
    return [
        item_finding(
            item,
            "error",
            path,
            f"{' and '.join(kinds)} voxels in channel {channel}, the first at (z, y, x) = {first}",
            "give these voxels a value, such as that of the air around, or remove the case",
        )
    ]


def _count_values(array: NDArray[np.integer]) -> dict[int, int]:
    values, counts = np.unique(array, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def _value_faults(item: CheckItem, counts: Mapping[int, int], file_values: Sequence[int]) -> list[Issue]:
    where = item.labels[0]
    unknown = {value: count for value, count in counts.items() if value not in file_values}
    if unknown:
        shown = ", ".join(f"{value} ({count} voxels)" for value, count in list(unknown.items())[:NUM_SHOWN_VALUES])
        more = f" and {len(unknown) - NUM_SHOWN_VALUES} more" if len(unknown) > NUM_SHOWN_VALUES else ""
        greys = (
            ""
            if len(unknown) < MANY_VALUES
            else f": with {len(counts)} values from {min(counts)} to {max(counts)} it holds greys"
        )
        return [
            item_finding(
                item,
                "error",
                where,
                f"label values that are not declared: {shown}{more}; declared are {_list(file_values)}{greys}",
                "give the label map itself, not an image or an interpolated mask"
                if greys
                else "correct the label map, or declare the values in the dataset's description",
            )
        ]
    if set(counts) <= {file_values[0]}:
        return [item_finding(item, "warning", where, EMPTY, "make sure that this case really shows no structure")]
    return []


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))

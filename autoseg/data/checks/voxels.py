"""Checks the voxels of a case, and measures it for comparisons with the other cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from autoseg.data.checks.headers import CheckItem, item_finding, unreadable
from autoseg.data.checks.label_model import Evidence, Thumbnail, gather, make_thumbnail
from autoseg.data.dataset import LabelCoding
from autoseg.data.labels import read_file_labels
from autoseg.imaging.image import Image, LabelMap
from autoseg.imaging.orientation import canonical_orientation, to_canonical
from autoseg.imaging.readers import file_states, read_image, read_label_map
from autoseg.issues import AutosegError, Issue
from autoseg.storage.cache import KEPT
from planners import Labels

QUANTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseMeasures:
    """One case: its voxels in a few numbers, and small."""

    case_id: str
    image_path: str
    label_path: str | None
    is_training: bool
    group: str | None
    channel_digests: tuple[bytes, ...]
    """Hash of the voxels of each channel in canonical axes: equal for equal images, however they are stored."""
    label_digest: bytes | None
    """The same of the label map; None where it is empty or missing."""
    num_foreground: int
    quantiles: Annotated[NDArray[np.float64], KEPT]
    """(C, 7) `QUANTILES` of the non-zero voxels of each channel; of all voxels where they all are zero."""
    minima: Annotated[NDArray[np.float64], KEPT]
    """(C,) of all voxels."""
    zero_share: Annotated[NDArray[np.float64], KEPT]
    """(C,) of voxels that are zero."""
    thumbnail: Thumbnail
    evidence: Evidence | None
    """For the model of `label_fit`; None where nothing is labelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFiles:
    """Where the voxels came from."""

    case_id: str
    image_path: str
    label_path: str | None
    is_training: bool
    group: str | None


def measure_case(
    files: CaseFiles,
    volume: Image,
    array: NDArray[np.integer[Any]] | None,
    *,
    file_values: Sequence[int],
    labels: Labels,
) -> CaseMeasures:
    """Measures of an image with finite voxels and its label map ``array`` (Z, Y, X), in the axes of the image."""
    thumbnail = make_thumbnail(volume, array, file_values)
    orientation = canonical_orientation(volume.geometry)
    foreground = 0 if array is None else int(np.count_nonzero(array != file_values[0]))
    has_classes = thumbnail.labels is not None and bool(thumbnail.labels.any())
    return CaseMeasures(
        case_id=files.case_id,
        image_path=files.image_path,
        label_path=files.label_path,
        is_training=files.is_training,
        group=files.group,
        channel_digests=tuple(_digest(channel) for channel in to_canonical(volume.array, orientation)),
        label_digest=_digest(to_canonical(array, orientation).astype(np.int64))
        if array is not None and foreground
        else None,
        num_foreground=foreground,
        quantiles=np.stack([_quantiles(channel) for channel in volume.array]),
        minima=volume.array.min(axis=(1, 2, 3)).astype(np.float64),
        zero_share=(volume.array == 0).mean(axis=(1, 2, 3)),
        thumbnail=thumbnail,
        evidence=gather(thumbnail, len(labels.values)) if has_classes else None,
    )


def _digest(array: NDArray[Any]) -> bytes:
    known = blake2b(repr(array.shape).encode(), digest_size=16)
    known.update(np.ascontiguousarray(array + 0).data.cast("B"))  # adding 0 makes minus zero zero
    return known.digest()


def _quantiles(channel: NDArray[np.float32]) -> NDArray[np.float64]:
    inside = channel[channel != 0]
    inside = inside if inside.size else channel.ravel()
    # Of very large images every n-th voxel: comparisons need no more than three digits.
    picked = inside[:: max(1, inside.size // 2**20)]
    return np.percentile(picked, QUANTILES).astype(np.float64)


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

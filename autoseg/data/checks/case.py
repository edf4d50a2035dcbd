"""Checks the files of one case: headers, grids and channels, then every voxel and label value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from autoseg.data.checks.label_model import Evidence, Thumbnail, gather, make_thumbnail
from autoseg.data.dataset import Case, LabelCoding
from autoseg.data.labels import is_channel_first, read_file_labels, undeclared_values, with_way_out
from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.orientation import (
    SAME_GRID,
    canonical_orientation,
    grid_differences,
    oriented_differences,
    to_canonical,
)
from autoseg.imaging.readers import (
    ImageHeader,
    file_states,
    is_picture_stack,
    is_resampled,
    read_header,
    read_image,
    read_label_map,
    slice_count,
)
from autoseg.imaging.resampling import share_inside
from autoseg.issues import AutosegError, Issue, Severity
from autoseg.storage.cache import KEPT
from autoseg.wording import count_noun
from planners import Labels

LEAST_COVERED = 0.5
"""Share of the first channel's grid that a resampled channel covers; beyond its border it has the value of its nearest voxel."""
QUANTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckItem:
    """Files that are checked together: those of a case, or an image or a label map without the other."""

    case_id: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    """Files of label map or masks."""
    case: Case | None = None
    """The case, if the files are those of a whole one."""
    is_training: bool = False

    def issue(self, where: str, message: str, fix: str, *, code: str, severity: Severity = "error") -> Issue:
        """An issue about the file or folder ``where`` of this item."""
        return Issue(code=code, severity=severity, case=self.case_id, where=where, message=message, fix=fix)

    def unreadable(self, path: str, error: AutosegError) -> tuple[Issue, ...]:
        """The issues of a reader about the file ``path``."""
        return tuple(
            issue.model_copy(update={"case": self.case_id, "where": issue.where or path}) for issue in error.issues
        )


def item_name(item: CheckItem) -> str:
    """Its name in errors and progress."""
    return f"case {item.case_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderReport:
    """Issues, and the files whose voxels can be checked."""

    issues: tuple[Issue, ...]
    readable: CheckItem
    """The item without the files whose voxels need not be read."""
    label: Geometry | None
    num_voxels: int
    """Of all channels of the image."""


def check_headers(item: CheckItem, *, channels: Sequence[str]) -> HeaderReport:
    """Read the headers of all files. A case must have as many channels as ``channels``, all of them on one grid."""
    issues: list[Issue] = []
    images = [_header(item, path, issues) for path in item.images]
    read = [header for header in images if header is not None]
    images_usable = len(read) == len(images) > 0
    if images_usable:
        faults = _channel_faults(item, read, channels)
        issues += faults
        images_usable = not faults
    labels = [(path, _header(item, path, issues)) for path in item.labels]
    found = [(path, header) for path, header in labels if header is not None]
    faults = [fault for path, header in found for fault in _label_grid(item, path, header, read[0] if read else None)]
    issues += faults
    labels_usable = len(found) == len(item.labels) > 0
    return HeaderReport(
        issues=tuple(issues),
        readable=replace(
            item,
            images=item.images if images_usable else (),
            labels=item.labels if labels_usable else (),
            # A label map on another grid does not belong to its case, but is compared with the other label maps.
            case=item.case if images_usable and labels_usable and not faults else None,
        ),
        label=found[0][1].geometry if found else None,
        num_voxels=sum(math.prod(header.geometry.shape) * header.num_channels for header in read),
    )


def _header(item: CheckItem, path: str, issues: list[Issue]) -> ImageHeader | None:
    try:
        header = read_header(Path(path))
    except AutosegError as error:
        issues += item.unreadable(path, error)
        return None
    issues += [note.model_copy(update={"case": item.case_id}) for note in header.notes]
    return header


def _channel_faults(item: CheckItem, headers: Sequence[ImageHeader], channels: Sequence[str]) -> list[Issue]:
    """Channels that a case lacks or has too many of, and those on another grid than the first; of resampled ones those far from it."""
    issues = []
    found = sum(header.num_channels for header in headers)
    if item.case and found != len(channels):
        message = f"{count_noun(found, 'channel')}, but the dataset has {len(channels)} ({', '.join(channels)})"
        fix = "add the missing files, correct the channels in the dataset's description, or remove the case"
        issues.append(item.issue(item.images[0], message, fix, code="image.channel_count"))
    for path, header in zip(item.images[1:], headers[1:], strict=True):
        first = Path(item.images[0]).name
        if is_resampled(path):
            issues += _coverage(item, path, share_inside(headers[0].geometry, header.geometry), first)
        elif differences := grid_differences(header.geometry, headers[0].geometry, SAME_GRID):
            message = f"not on the grid of channel {first}: {'; '.join(differences)}"
            fix = "resample it (or set resample_channels = true in a spec file), list only the other channels in a spec file "
            fix += "(--spec), or remove the case"
            issues.append(item.issue(path, message, fix, code="image.channel_grid"))
    return issues


def _coverage(item: CheckItem, path: str, share: float, first: str) -> list[Issue]:
    """An error where a channel that is resampled lies elsewhere than the first one, a warning where it covers little of it."""
    if share >= LEAST_COVERED:
        return []
    message = f"covers only {100 * share:.0f} % of {first}, onto whose grid it is resampled"
    fix = "make sure that both are of the same scan, and that their headers place them in the same world"
    severity: Severity = "warning" if share > 0 else "error"
    return [item.issue(path, message, fix, code="image.channel_coverage", severity=severity)]


def _label_grid(item: CheckItem, where: str, label: ImageHeader, image: ImageHeader | None) -> list[Issue]:
    if image is None or label.may_be_part or is_channel_first(label, image):  # reading its voxels says so
        return []
    if is_picture_stack(Path(where)):  # in the axes of the image, which it does not store
        num_pictures, num_slices = label.geometry.shape[0], image.geometry.shape[0]
        if num_pictures != num_slices:
            return list(item.unreadable(where, slice_count(Path(where), num_pictures, num_slices)))
        differences = grid_differences(label.geometry, image.geometry, SAME_GRID)
    else:
        differences = oriented_differences(label.geometry, image.geometry)
    if not differences:
        return []
    message = f"the label map is not on the grid of its image: {'; '.join(differences)}"
    return [item.issue(where, message, "resample the label map to the image, or remove the case", code="labels.grid")]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseMeasures:
    """One case in a few numbers and at low resolution."""

    case_id: str
    image_path: str
    label_path: str | None
    is_training: bool
    group: str | None
    channel_digests: tuple[bytes, ...]
    """Hash of the voxels of each channel in canonical axes: equal for equal images in any orientation."""
    label_digest: bytes | None
    """The same of the label map; None where it is empty or missing."""
    num_foreground: int
    quantiles: Annotated[NDArray[np.float64], KEPT]
    """(C, 7) `QUANTILES` of the non-zero voxels of each channel; of all voxels where they all are zero."""
    minima: Annotated[NDArray[np.float64], KEPT]
    """(C,) of all voxels."""
    zero_share: Annotated[NDArray[np.float64], KEPT]
    """(C,) of voxels that are zero."""
    ct_evidence: tuple[tuple[bool | None, bool], ...]
    """Of each channel: see `autoseg.imaging.image.Image.ct_evidence`."""
    repeats_file: bool
    """Whether one file was given for several channels."""
    thumbnail: Thumbnail
    evidence: Evidence | None
    """For the model of `label_fit`; None where nothing is labelled."""


def measure_case(
    item: CheckItem,
    image: Image,
    array: NDArray[np.integer[Any]] | None,
    *,
    file_values: Sequence[int],
    labels: Labels,
) -> CaseMeasures:
    """Measures of an image with finite voxels and its label map ``array`` (Z, Y, X), in the axes of the image."""
    thumbnail = make_thumbnail(image, array, file_values)
    orientation = canonical_orientation(image.geometry)
    foreground = 0 if array is None else int(np.count_nonzero(array != file_values[0]))
    has_classes = thumbnail.labels is not None and bool(thumbnail.labels.any())
    return CaseMeasures(
        case_id=item.case_id,
        image_path=item.images[0],
        label_path=item.labels[0] if item.labels else None,
        is_training=item.is_training,
        group=item.case.group if item.case else None,
        channel_digests=tuple(_digest(channel) for channel in to_canonical(image.array, orientation)),
        label_digest=_digest(to_canonical(array, orientation).astype(np.int64))
        if array is not None and foreground
        else None,
        num_foreground=foreground,
        quantiles=np.stack([_quantiles(channel) for channel in image.array]),
        minima=image.array.min(axis=(1, 2, 3)).astype(np.float64),
        ct_evidence=image.ct_evidence(),
        repeats_file=len({*item.images}) < len(item.images),
        zero_share=(image.array == 0).mean(axis=(1, 2, 3)),
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


MANY_VALUES = 20
"""So many undeclared values are grey values of an image or an interpolated mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VoxelReport:
    """Issues, and what comparisons with other cases need."""

    issues: tuple[Issue, ...]
    is_read: bool
    """Whether all files could be read; a failure may be temporary (memory, network drive)."""
    counts: Mapping[int, int] | None
    """Voxels of each file value in the labels; None: they could not be read."""
    measures: CaseMeasures | None = None
    """None: the image could not be read, is constant, or has NaN or infinite voxels."""


def item_state(item: CheckItem) -> object:
    """What a cached report depends on: the item, and the states of its files."""
    return item, file_states([*item.images, *item.labels])


def is_read_whole(report: VoxelReport) -> bool:
    """Whether the report may be cached: failures to read may be temporary."""
    return report.is_read


def check_voxels(item: CheckItem, *, coding: LabelCoding) -> VoxelReport:
    """Read all voxels of image and labels; measures where image, or image and labels, can be compared with others."""
    issues: list[Issue] = []
    failures: list[Issue] = []
    image = _read_image(item, issues, failures) if item.images else None
    counts, aligned = None, None
    if item.labels:
        try:
            # in the axes of the image if both are usable, else as stored in the file
            onto = None if image is None else image.geometry
            label_map = (
                read_file_labels(item.case, coding, onto=onto) if item.case else read_label_map(Path(item.labels[0]))
            )
        except AutosegError as error:
            first = item.images[0] if item.images else None
            failures += [with_way_out(issue, first) for issue in item.unreadable(item.labels[0], error)]
        else:
            values, numbers = np.unique(label_map.array, return_counts=True)
            counts = dict(zip(values.tolist(), numbers.tolist(), strict=True))
            issues += _label_issues(item, counts, coding.file_values)
            aligned = label_map.array if item.case is not None else None
    measures = None
    varies = image is not None and all(np.ptp(channel) > 0 for channel in image.array)
    if image is not None and varies and (item.case is not None or not item.labels):
        measures = measure_case(item, image, aligned, file_values=coding.file_values, labels=coding.labels)
    return VoxelReport(issues=(*failures, *issues), is_read=not failures, counts=counts, measures=measures)


def _read_image(item: CheckItem, issues: list[Issue], failures: list[Issue]) -> Image | None:
    """The image if all its voxels are finite; else None, with the reason in ``issues`` or ``failures``."""
    where = item.images[0]
    try:
        image = read_image([Path(path) for path in item.images])
    except AutosegError as error:
        failures += item.unreadable(where, error)
        return None
    for channel, voxels in enumerate(image.array):
        path = item.images[channel] if len(item.images) == len(image.array) else where
        issues += _intensity_issues(item, path, channel, voxels)
    known = item.case.modality if item.case is not None else ""
    return image.of_modality(known) if np.isfinite(image.array).all() else None


def _intensity_issues(item: CheckItem, path: str, channel: int, voxels: NDArray[np.float32]) -> list[Issue]:
    low, high = float(voxels.min()), float(voxels.max())
    if np.isfinite(low) and np.isfinite(high):
        message, fix = (
            f"all voxels of channel {channel} are {low:g}",
            "view the image, and make sure that it is not empty",
        )
        return [] if low < high else [item.issue(path, message, fix, severity="warning", code="image.constant")]
    bad = ~np.isfinite(voxels)
    first = tuple(int(index) for index in np.argwhere(bad)[0])
    num_nan = int(np.isnan(voxels).sum())
    counts = {"NaN": num_nan, "infinite": int(bad.sum()) - num_nan}
    kinds = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    message = f"{kinds} voxels in channel {channel}, the first at (z, y, x) = {first}"
    fix = "replace these values, for example by the value of air, or remove the case"
    return [item.issue(path, message, fix, code="image.nan" if num_nan else "image.infinite")]


def _label_issues(item: CheckItem, counts: Mapping[int, int], file_values: Sequence[int]) -> list[Issue]:
    where = item.labels[0]
    undeclared = {value: count for value, count in counts.items() if value not in file_values}
    if len(undeclared) >= MANY_VALUES:
        message = f"{len(counts)} values from {min(counts)} to {max(counts)}: grey values, not labels"
        fix = "replace it by a label map, not an image or an interpolated mask"
        return [item.issue(where, message, fix, code="labels.grey_values")]
    if undeclared:
        return [undeclared_values(undeclared, file_values, where=where, case=item.case_id)]
    if set(counts) <= {file_values[0]}:
        fix = "make sure that this case has nothing to label"
        return [item.issue(where, "the label map is empty", fix, severity="warning", code="labels.empty")]
    return []

"""Checks the headers of a case: unreadable files, missing channels, grids that differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg.data.dataset import Case
from autoseg.data.grids import SAME_GRID, grid_differences, oriented_differences
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import ImageHeader, read_header
from autoseg.issues import AutosegError, Issue, Severity
from autoseg.wording import count_noun


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
    """The item without the files whose voxels are not worth reading."""
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
        faults = [*(_channel_count(item, read, channels) if item.case else ()), *_channel_grids(item, read)]
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


def _channel_count(item: CheckItem, headers: Sequence[ImageHeader], channels: Sequence[str]) -> list[Issue]:
    found = sum(header.num_channels for header in headers)
    if found == len(channels):
        return []
    message = f"{count_noun(found, 'channel')}, but the dataset has {len(channels)} ({', '.join(channels)})"
    fix = "add the missing files, correct the channels in the dataset's description, or remove the case"
    return [item.issue(item.images[0], message, fix, code="image.channel_count")]


def _channel_grids(item: CheckItem, headers: Sequence[ImageHeader]) -> list[Issue]:
    issues = []
    for path, header in zip(item.images[1:], headers[1:], strict=True):
        differences = grid_differences(header.geometry, headers[0].geometry, SAME_GRID)
        if differences:
            message = f"not on the grid of channel {Path(item.images[0]).name}: {'; '.join(differences)}"
            fix = "resample the channels to one grid, or remove the case"
            issues.append(item.issue(path, message, fix, code="image.channel_grid"))
    return issues


def _label_grid(item: CheckItem, where: str, label: ImageHeader, image: ImageHeader | None) -> list[Issue]:
    if image is None or label.may_be_part:
        return []
    differences = oriented_differences(label.geometry, image.geometry)
    if not differences:
        return []
    message = f"the label map is not on the grid of its image: {'; '.join(differences)}"
    return [item.issue(where, message, "resample the label map to the image, or remove the case", code="labels.grid")]

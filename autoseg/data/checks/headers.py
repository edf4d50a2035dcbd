"""Checks the headers of a case: unreadable files, missing channels, grids that differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg.data.dataset import Case
from autoseg.data.grids import SAME_GRID, grid_differences, turned_differences
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import ImageHeader, read_header
from autoseg.issues import UNNAMED, AutosegError, Issue


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckItem:
    """The files of one, by path; ``case`` only where they are those of a whole case."""

    case_id: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    """Files of label map or masks."""
    case: Case | None = None
    is_training: bool = False


def item_name(item: CheckItem) -> str:
    """What errors and progress call it."""
    return f"case {item.case_id}"


def item_finding(item: CheckItem, severity: str, where: str, found: str, mend: str) -> Issue:
    """A finding on the file or folder ``where`` of the item; ``severity`` is error, warning or note."""
    return Issue.model_validate(
        {"code": UNNAMED, "severity": severity, "case": item.case_id, "where": where, "message": found, "fix": mend}
    )


def unreadable(item: CheckItem, path: str, error: AutosegError) -> Issue:
    """What a reader said of the file ``path``, as an error, in its own words: after the last semicolon it says what to do, perhaps behind a cause and a colon."""
    text = str(error).removeprefix(path).removeprefix(":").strip()
    found, _, rest = text.rpartition("; ")
    cause, _, mend = rest.rpartition(": ")
    if not found:
        found, cause, mend = text, "", "replace the file, or remove the case"
    return item_finding(item, "error", path, f"{found}; {cause}" if cause else found, mend)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderReport:
    """What was found, and what is worth reading further."""

    issues: tuple[Issue, ...]
    readable: CheckItem
    """The item without the files whose voxels need not be read any more."""
    label: Geometry | None
    num_voxels: int
    """Of all channels of the image."""


def check_headers(item: CheckItem, *, channels: Sequence[str]) -> HeaderReport:
    """Read the headers of all files; a case must have as many channels as ``channels``, and one grid for all of them."""
    findings: list[Issue] = []
    images = [_header(item, path, findings) for path in item.images]
    read = [header for header in images if header is not None]
    images_whole = len(read) == len(images) > 0
    if images_whole:
        faults = [*(_channel_faults(item, read, channels) if item.case else ()), *_channel_grid_faults(item, read)]
        findings += faults
        images_whole = not faults
    labels = [(path, _header(item, path, findings)) for path in item.labels]
    found = [(path, header) for path, header in labels if header is not None]
    faults = [fault for path, header in found for fault in _label_faults(item, path, header, read[0] if read else None)]
    findings += faults
    labels_whole = len(found) == len(item.labels) > 0
    return HeaderReport(
        issues=tuple(findings),
        readable=replace(
            item,
            images=item.images if images_whole else (),
            labels=item.labels if labels_whole else (),
            # A label map on another grid is no part of its case, but is compared with the other label maps.
            case=item.case if images_whole and labels_whole and not faults else None,
        ),
        label=found[0][1].geometry if found else None,
        num_voxels=sum(math.prod(header.geometry.shape) * header.num_channels for header in read),
    )


def _header(item: CheckItem, path: str, findings: list[Issue]) -> ImageHeader | None:
    try:
        header = read_header(Path(path))
    except AutosegError as error:
        findings.append(unreadable(item, path, error))
        return None
    findings += [note.model_copy(update={"case": item.case_id}) for note in header.notes]
    return header


def _channel_faults(item: CheckItem, headers: Sequence[ImageHeader], channels: Sequence[str]) -> list[Issue]:
    found = sum(header.num_channels for header in headers)
    if found == len(channels):
        return []
    return [
        item_finding(
            item,
            "error",
            item.images[0],
            f"{found} channels, but the dataset has {len(channels)} ({', '.join(channels)})",
            "add what is missing, correct the channels in the dataset's description, or remove the case",
        )
    ]


def _channel_grid_faults(item: CheckItem, headers: Sequence[ImageHeader]) -> list[Issue]:
    findings = []
    for path, header in zip(item.images[1:], headers[1:], strict=True):
        differences = grid_differences(header.geometry, headers[0].geometry, SAME_GRID)
        if differences:
            findings.append(
                item_finding(
                    item,
                    "error",
                    path,
                    f"another grid than the channel {Path(item.images[0]).name}: {'; '.join(differences)}",
                    "resample the channels to one grid, or remove the case",
                )
            )
    return findings


def _label_faults(item: CheckItem, where: str, label: ImageHeader, image: ImageHeader | None) -> list[Issue]:
    if image is None or label.may_be_part:
        return []
    differences = turned_differences(label.geometry, image.geometry)
    if not differences:
        return []
    return [
        item_finding(
            item,
            "error",
            where,
            f"the label map lies on another grid than its image: {'; '.join(differences)}",
            "resample the label map to the image, or remove the case",
        )
    ]

"""Checks a dataset before any long work: every fault of every file, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.datasets.dataset import Case, DatasetDescription, Finding
from autoseg.datasets.grids import GridTolerances, grid_differences
from autoseg.datasets.plausibility import LabelFacts, implausible_labels, rare_classes
from autoseg.errors import AutosegError, Problem, ProblemsError
from autoseg.execution.jobs import run_jobs
from autoseg.imaging.formats import ImageHeader, read_header, read_label_map, read_volume
from autoseg.imaging.orientation import canonical_geometry, canonical_orientation
from autoseg.imaging.volume import Geometry
from autoseg.progress import Reporter

SAME_GRID = GridTolerances(spacing=1e-3, origin=0.1, direction=1e-3)
"""Label map against image. Headers that other programs wrote differ by rounding, to about 1e-5; a thousandth in spacing
or direction is a quarter of a voxel at the end of 256, a tenth of a voxel in origin moves no voxel to its neighbour."""
NUM_SHOWN_VALUES = 10
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """What is looked at together: a case, or a label map without an image."""

    case_id: str
    images: tuple[str, ...]
    label: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeaderReport:
    findings: tuple[Finding, ...]
    readable: _Item
    """The item without the files whose voxels need not be read any more."""
    label: Geometry | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _VoxelReport:
    findings: tuple[Finding, ...]
    counts: Mapping[int, int] | None
    """Voxels of each file value in the label map; None: it could not be read."""


def check_dataset(dataset: DatasetDescription, *, num_workers: int, reporter: Reporter) -> tuple[Finding, ...]:
    """All findings on a dataset, errors first, then warnings and notes, each sorted by case; nothing is changed.

    Those of the discovery come along. Headers are read first, then voxels, by ``num_workers`` processes, a case at a
    time; voxels of files whose header is faulty are left alone.

    Errors: a file that cannot be read; channels that are missing or on different grids; a label map on another grid than
    its image (tolerances `SAME_GRID`; stored in another orientation it is the same grid); NaN or infinite voxels; label
    values that are not whole or not declared; a label map that differs from the others in three ways or more.
    Warnings: an empty label map, an image of one value, a class that no case has, a label map unlike the others.
    Notes: a class that only one or two cases have, a header that was repaired while reading.
    """
    items = [_Item(case_id=c.case_id, images=c.images, label=c.label) for c in _cases(dataset)]
    items += [_Item(case_id=Path(path).name, images=(), label=path) for path in dataset.unpaired_labels]
    with reporter.track("check headers", len(items)) as tracker:
        headers = run_jobs(
            partial(_check_headers, channels=dataset.channels), items, name=_name, tracker=tracker
        )
    readable = [report.readable for report in headers if report.readable.images or report.readable.label]
    with reporter.track("check voxels", len(readable)) as tracker:
        voxels = run_jobs(
            partial(_check_voxels, file_values=dataset.file_values), readable, name=_name,
            num_workers=num_workers, tracker=tracker,
        )
    facts = _label_facts(dataset, headers, dict(zip(readable, voxels, strict=True)))
    findings = [
        *dataset.findings,
        *(finding for report in headers for finding in report.findings),
        *(finding for report in voxels for finding in report.findings),
        *implausible_labels(facts, dataset),
        *rare_classes(facts, dataset),
    ]
    return tuple(sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.case_id or "", f.where)))


def require_clean(findings: Iterable[Finding]) -> None:
    """Raise `ProblemsError` with all findings that are errors, in order; do nothing where there is none."""
    problems = [Problem(where=f.where, found=f.found, mend=f.mend) for f in findings if f.severity == "error"]
    if problems:
        faults = "1 fault" if len(problems) == 1 else f"{len(problems)} faults"
        raise ProblemsError(f"the dataset has {faults} that must be mended first:", problems)


def _cases(dataset: DatasetDescription) -> tuple[Case, ...]:
    return (*dataset.training, *dataset.test)


def _name(item: _Item) -> str:
    return f"case {item.case_id}"


def _finding(item: _Item, severity: str, where: str, found: str, mend: str) -> Finding:
    return Finding.model_validate(
        {"severity": severity, "case_id": item.case_id, "where": where, "found": found, "mend": mend}
    )


def _unreadable(item: _Item, path: str, error: AutosegError) -> Finding:
    """The reader's own words: after the last semicolon it says what to do, perhaps behind a cause and a colon."""
    text = str(error).removeprefix(path).removeprefix(":").strip()
    found, _, rest = text.rpartition("; ")
    cause, _, mend = rest.rpartition(": ")
    if not found:
        found, cause, mend = text, "", "replace the file, or remove the case"
    return _finding(item, "error", path, f"{found}; {cause}" if cause else found, mend)


# --- headers ---


def _check_headers(item: _Item, *, channels: Sequence[str]) -> _HeaderReport:
    findings: list[Finding] = []
    images = [_header(item, path, findings) for path in item.images]
    read = [header for header in images if header is not None]
    images_whole = len(read) == len(images) > 0
    if images_whole:
        faults = [*_channel_faults(item, read, channels), *_channel_grid_faults(item, read)]
        findings += faults
        images_whole = not faults
    label = None if item.label is None else _header(item, item.label, findings)
    if label is not None:
        findings += _label_faults(item, label, read[0] if read else None)
    return _HeaderReport(
        findings=tuple(findings),
        readable=_Item(
            case_id=item.case_id,
            images=item.images if images_whole else (),
            label=item.label if label is not None and label.num_channels == 1 else None,
        ),
        label=None if label is None else label.geometry,
    )


def _header(item: _Item, path: str, findings: list[Finding]) -> ImageHeader | None:
    try:
        header = read_header(Path(path))
    except AutosegError as error:
        findings.append(_unreadable(item, path, error))
        return None
    if header.repair:
        findings.append(_finding(item, "note", path, header.repair, "correct the file's header to be rid of this note"))
    return header


def _channel_faults(item: _Item, headers: Sequence[ImageHeader], channels: Sequence[str]) -> list[Finding]:
    found = sum(header.num_channels for header in headers)
    if found == len(channels):
        return []
    return [_finding(
        item, "error", item.images[0],
        f"{found} channels, but the dataset has {len(channels)} ({', '.join(channels)})",
        "add what is missing, correct the channels in the dataset's description, or remove the case",
    )]


def _channel_grid_faults(item: _Item, headers: Sequence[ImageHeader]) -> list[Finding]:
    findings = []
    for path, header in zip(item.images[1:], headers[1:], strict=True):
        differences = grid_differences(header.geometry, headers[0].geometry, SAME_GRID)
        if differences:
            findings.append(_finding(
                item, "error", path, f"another grid than the channel {Path(item.images[0]).name}: {'; '.join(differences)}",
                "resample the channels to one grid, or remove the case",
            ))
    return findings


def _label_faults(item: _Item, label: ImageHeader, image: ImageHeader | None) -> list[Finding]:
    where = item.label or ""
    if label.num_channels != 1:
        return [_finding(item, "error", where, f"the label map has {label.num_channels} channels",
                         "give a label map with one channel")]
    if image is None:
        return []
    differences = grid_differences(_turned(label.geometry), _turned(image.geometry), SAME_GRID)
    if not differences:
        return []
    return [_finding(
        item, "error", where, f"the label map lies on another grid than its image: {'; '.join(differences)}",
        "resample the label map to the image, or remove the case",
    )]


def _turned(geometry: Geometry) -> Geometry:
    return canonical_geometry(geometry, canonical_orientation(geometry))


# --- voxels ---


def _check_voxels(item: _Item, *, file_values: Sequence[int]) -> _VoxelReport:
    findings = _check_image(item) if item.images else []
    counts = None
    if item.label is not None:
        try:
            array = read_label_map(Path(item.label)).array
        except AutosegError as error:
            findings.append(_unreadable(item, item.label, error))
        else:
            counts = _count_values(array)
            findings += _value_faults(item, counts, file_values)
    return _VoxelReport(findings=tuple(findings), counts=counts)


def _check_image(item: _Item) -> list[Finding]:
    where = item.images[0]
    try:
        array = read_volume([Path(path) for path in item.images]).array
    except AutosegError as error:
        return [_unreadable(item, where, error)]
    findings = []
    for channel, voxels in enumerate(array):
        path = item.images[channel] if len(item.images) == len(array) else where
        findings += _intensity_faults(item, path, channel, voxels)
    return findings


def _intensity_faults(item: _Item, path: str, channel: int, voxels: NDArray[np.float32]) -> list[Finding]:
    low, high = float(voxels.min()), float(voxels.max())
    if np.isfinite(low) and np.isfinite(high):
        if low < high:
            return []
        return [_finding(item, "warning", path, f"all voxels of channel {channel} are {low:g}",
                         "look at the image; remove the case if it is empty")]
    bad = ~np.isfinite(voxels)
    first = tuple(int(index) for index in np.argwhere(bad)[0])
    num_nan = int(np.isnan(voxels).sum())
    counts = {"NaN": num_nan, "infinite": int(bad.sum()) - num_nan}
    kinds = [f"{count} {kind}" for kind, count in counts.items() if count]
    return [_finding(
        item, "error", path, f"{' and '.join(kinds)} voxels in channel {channel}, the first at (z, y, x) = {first}",
        "give these voxels a value, such as that of the air around, or remove the case",
    )]


def _count_values(array: NDArray[np.integer]) -> dict[int, int]:
    values, counts = np.unique(array, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def _value_faults(item: _Item, counts: Mapping[int, int], file_values: Sequence[int]) -> list[Finding]:
    where = item.label or ""
    unknown = {value: count for value, count in counts.items() if value not in file_values}
    if unknown:
        shown = ", ".join(f"{value} ({count} voxels)" for value, count in list(unknown.items())[:NUM_SHOWN_VALUES])
        more = f" and {len(unknown) - NUM_SHOWN_VALUES} more" if len(unknown) > NUM_SHOWN_VALUES else ""
        return [_finding(
            item, "error", where, f"label values that are not declared: {shown}{more}; declared are {_list(file_values)}",
            "correct the label map, or declare the values in the dataset's description",
        )]
    if set(counts) <= {file_values[0]}:
        return [_finding(item, "warning", where, "the label map is empty: background only",
                         "make sure that this case really shows no structure")]
    return []


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _label_facts(
    dataset: DatasetDescription, headers: Sequence[_HeaderReport], voxels: Mapping[_Item, _VoxelReport]
) -> list[LabelFacts]:
    """What is known of every label map that could be read."""
    facts = []
    for report in headers:
        read = voxels.get(report.readable)
        if report.label is None or read is None or read.counts is None:
            continue
        facts.append(LabelFacts(
            case_id=report.readable.case_id,
            path=report.readable.label or "",
            paired=report.readable.label not in dataset.unpaired_labels,
            geometry=_turned(report.label),
            counts=read.counts,
        ))
    return facts

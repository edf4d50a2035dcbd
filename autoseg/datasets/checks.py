"""Checks a dataset before any long work: every fault of every file, with what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.datasets.case_labels import read_file_labels
from autoseg.datasets.dataset import Case, DatasetDescription, Finding, LabelCoding
from autoseg.datasets.duplicates import find_duplicates
from autoseg.datasets.grids import SAME_GRID, grid_differences, turned_differences, turned_grid
from autoseg.datasets.intensities import unusual_intensities
from autoseg.datasets.loose_images import NamedImage
from autoseg.datasets.measures import CaseFiles, CaseMeasures, measure_case
from autoseg.datasets.misfits import Misfit, as_finding, find_misfits
from autoseg.datasets.patients import leaking_patients
from autoseg.datasets.plausibility import (
    LabelFacts,
    rare_classes,
    signs_finding,
    stray_values,
    unusual_signs,
    wrong_units,
)
from autoseg.errors import AutosegError, Problem, ProblemsError
from autoseg.execution.jobs import run_jobs, workers_worth_starting
from autoseg.imaging.formats import (
    ImageHeader,
    file_states,
    image_stem,
    read_header,
    read_label_map,
    read_volume,
)
from autoseg.imaging.volume import Geometry, LabelMap, Volume
from autoseg.kept_results import Remembered
from autoseg.progress import Reporter
from planners import LabelClass, Labels

NUM_SHOWN_VALUES = 10
MANY_VALUES = 20
"""So many undeclared values are those of an image or of an interpolated mask."""
EMPTY = "the label map is empty: background only"
MANY_EMPTY, COMMON_EMPTY = 3, 0.05
"""More empty label maps than this number and this share of all are no accident."""
CASE_S, VOXEL_S = 0.015, 6e-8
"""Processor time of the check for each case and each voxel of an image: 60 cases of the hippocampus take 1.4 s, 28 million
voxels of MR 1.6 s."""
UNLABELLED = LabelCoding(labels=Labels(classes=(LabelClass(name="any", values=(1,)),)), file_values=(0, 1))
"""How to read labels where there are none."""
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """What is looked at together: a case, or an image or a label map without the other."""

    case_id: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    """Files of label map or masks."""
    case: Case | None = None
    is_training: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeaderReport:
    findings: tuple[Finding, ...]
    readable: _Item
    """The item without the files whose voxels need not be read any more."""
    label: Geometry | None
    num_voxels: int
    """Of all channels of the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _VoxelReport:
    findings: tuple[Finding, ...]
    is_read: bool
    """Whether all files could be read; what prevented it may have been a lack of memory, or a drive that was away."""
    counts: Mapping[int, int] | None
    """Voxels of each file value in the labels; None: they could not be read."""
    measures: CaseMeasures | None = None
    """None: the image could not be read, has one value only, or NaN or infinite voxels."""


def check_dataset(
    dataset: DatasetDescription, *, num_workers: int, reporter: Reporter, keep_in: Path | None = None
) -> tuple[Finding, ...]:
    """All findings on a dataset, errors first, then warnings and notes, each sorted by case; nothing is changed.

    Those of the discovery come along. Headers are read first, then voxels, by ``num_workers`` processes, a case at a
    time; voxels of files whose header is faulty are left alone. What is found in the voxels of a case lies in the folder
    ``keep_in`` for a call that goes on after this one was killed. Then cases are compared with each other.

    Errors: a file that cannot be read; channels that are missing, alike, or on different grids; labels on another grid
    than their image (tolerances `SAME_GRID`; stored in another orientation it is the same grid); NaN or infinite voxels;
    label values that are not whole or not declared; a spacing in another unit; one image with two label maps; a label map
    that differs from the others in three ways or more, or that visibly belongs elsewhere.
    Warnings: an empty label map, an image of one value, a class that no case has, images and label maps unlike the others
    or like another one, patients that may come into two folds.
    Notes: a class that only one or two cases have, what was repaired or remarkable while reading.
    """
    headers, voxels = _read(
        _items(dataset), channels=dataset.channels, coding=dataset.coding, num_workers=num_workers, reporter=reporter,
        keep_in=keep_in,
    )
    findings = [
        *dataset.findings,
        *(finding for report in headers for finding in report.findings),
        *_few_empty([finding for report in voxels.values() for finding in report.findings], dataset),
        *_comparisons(dataset, headers, voxels, num_workers=num_workers, reporter=reporter),
    ]
    return _in_order(findings)


def check_images(images: Sequence[NamedImage], *, num_workers: int, reporter: Reporter) -> tuple[Finding, ...]:
    """All findings on images without labels, in the order of `check_dataset`: what cannot be read or predicted, what is there twice."""
    items = [_Item(case_id=name, images=(str(path),), labels=()) for name, path in images]
    headers, voxels = _read(items, channels=(), coding=UNLABELLED, num_workers=num_workers, reporter=reporter)
    measures = [report.measures for report in voxels.values() if report.measures is not None]
    return _in_order([
        *(finding for report in headers for finding in report.findings),
        *(finding for report in voxels.values() for finding in report.findings),
        *find_duplicates(measures),
    ])


def _in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    unique = dict.fromkeys(findings)
    return tuple(sorted(unique, key=lambda f: (SEVERITIES.index(f.severity), f.case_id or "", f.where)))


def _read(
    items: Sequence[_Item], *, channels: Sequence[str], coding: LabelCoding, num_workers: int, reporter: Reporter,
    keep_in: Path | None = None,
) -> tuple[list[_HeaderReport], dict[_Item, _VoxelReport]]:
    """What headers say, and the voxels of all whose headers are sound, by item."""
    with reporter.track("check headers", len(items)) as tracker:
        headers = run_jobs(partial(_check_headers, channels=channels), items, name=_name, tracker=tracker)
    readable = [report.readable for report in headers if report.readable.images or report.readable.labels]
    seconds = CASE_S * len(readable) + VOXEL_S * sum(report.num_voxels for report in headers)
    workers = workers_worth_starting(num_workers, seconds)
    check = partial(_check_voxels, coding=coding)
    remembered = check if keep_in is None else Remembered(
        function=check, kind=_VoxelReport, state=_state, folder=keep_in, worth_keeping=_is_read
    )
    with reporter.track("check voxels", len(readable)) as tracker:
        voxels = run_jobs(remembered, readable, name=_name, num_workers=workers, tracker=tracker)
    return headers, dict(zip(readable, voxels, strict=True))


def require_clean(findings: Iterable[Finding]) -> None:
    """Raise `ProblemsError` with all findings that are errors, in order; do nothing where there is none."""
    problems = [Problem(where=f.where, found=f.found, mend=f.mend) for f in findings if f.severity == "error"]
    if problems:
        faults = "1 fault" if len(problems) == 1 else f"{len(problems)} faults"
        raise ProblemsError(
            f"the dataset has {faults} that must be mended first (or leave these cases out with --skip-bad):", problems
        )


def _items(dataset: DatasetDescription) -> list[_Item]:
    items = [
        _Item(case_id=case.case_id, images=case.images, labels=case.label_files, case=case, is_training=is_training)
        for is_training, cases in ((True, dataset.training), (False, dataset.test))
        for case in cases
    ]
    items += [_Item(case_id=image_stem(path), images=(path,), labels=()) for path in dataset.unpaired_images]
    return items + [_Item(case_id=image_stem(path), images=(), labels=(path,)) for path in dataset.unpaired_labels]


def _comparisons(
    dataset: DatasetDescription,
    headers: Sequence[_HeaderReport],
    voxels: Mapping[_Item, _VoxelReport],
    *,
    num_workers: int,
    reporter: Reporter,
) -> list[Finding]:
    """What shows when cases are held against each other."""
    facts = _label_facts(dataset, headers, voxels)
    num_workers = workers_worth_starting(num_workers, CASE_S * len(voxels))
    measures = [report.measures for report in voxels.values() if report.measures is not None]
    misfits = find_misfits(
        [case for case in measures if case.is_training], len(dataset.labels.values), num_workers=num_workers, reporter=reporter
    )
    return [
        *_label_findings(facts, misfits, dataset),
        *wrong_units(facts),
        *stray_values(facts, dataset),
        *rare_classes(facts, dataset),
        *unusual_intensities(measures, dataset.channels),
        *find_duplicates(measures),
        *leaking_patients(dataset.training, dataset.root),
    ]


def _label_findings(facts: Sequence[LabelFacts], misfits: Sequence[Misfit], dataset: DatasetDescription) -> list[Finding]:
    """One finding for each label map that is unlike the others or does not fit its image, with all signs."""
    by_case = {misfit.case_id: misfit for misfit in misfits}
    num_paired = sum(fact.paired for fact in facts)
    findings = []
    for fact, signs in zip(facts, unusual_signs(facts, dataset), strict=True):
        misfit = by_case.get(fact.case_id) if fact.paired else None
        if misfit is not None:
            findings.append(as_finding(misfit, fact.path, more=signs))
        elif signs:
            findings.append(signs_finding(fact, signs, num_others=num_paired - fact.paired))
    return findings


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
        faults = [*(_channel_faults(item, read, channels) if item.case else ()), *_channel_grid_faults(item, read)]
        findings += faults
        images_whole = not faults
    labels = [(path, _header(item, path, findings)) for path in item.labels]
    found = [(path, header) for path, header in labels if header is not None]
    faults = [fault for path, header in found for fault in _label_faults(item, path, header, read[0] if read else None)]
    findings += faults
    labels_whole = len(found) == len(item.labels) > 0
    return _HeaderReport(
        findings=tuple(findings),
        readable=replace(
            item, images=item.images if images_whole else (), labels=item.labels if labels_whole else (),
            # A label map on another grid is no part of its case, but is compared with the other label maps.
            case=item.case if images_whole and labels_whole and not faults else None,
        ),
        label=found[0][1].geometry if found else None,
        num_voxels=sum(math.prod(header.geometry.shape) * header.num_channels for header in read),
    )


def _header(item: _Item, path: str, findings: list[Finding]) -> ImageHeader | None:
    try:
        header = read_header(Path(path))
    except AutosegError as error:
        findings.append(_unreadable(item, path, error))
        return None
    if header.repair:
        findings.append(_finding(item, "note", path, header.repair, "correct the file's header to be rid of this note"))
    findings += [_finding(item, "note", path, note, "make sure that this is what you expect") for note in header.notes]
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


def _label_faults(item: _Item, where: str, label: ImageHeader, image: ImageHeader | None) -> list[Finding]:
    if image is None or label.may_be_part:
        return []
    differences = turned_differences(label.geometry, image.geometry)
    if not differences:
        return []
    return [_finding(
        item, "error", where, f"the label map lies on another grid than its image: {'; '.join(differences)}",
        "resample the label map to the image, or remove the case",
    )]


# --- voxels ---


def _state(item: _Item) -> object:
    return item, file_states([*item.images, *item.labels])


def _is_read(report: _VoxelReport) -> bool:
    return report.is_read


def _check_voxels(item: _Item, *, coding: LabelCoding) -> _VoxelReport:
    findings: list[Finding] = []
    failures: list[Finding] = []
    volume = _read_image(item, findings, failures) if item.images else None
    counts, aligned = None, None
    if item.labels:
        try:
            label_map = _read_labels(item, coding, volume)
        except AutosegError as error:
            failures.append(_unreadable(item, item.labels[0], error))
        else:
            counts = _count_values(label_map.array)
            findings += _value_faults(item, counts, coding.file_values)
            aligned = label_map.array if item.case is not None else None
    measures = None
    shows_something = volume is not None and all(np.ptp(channel) > 0 for channel in volume.array)
    if volume is not None and shows_something and (item.case is not None or not item.labels):
        measures = measure_case(
            CaseFiles(
                case_id=item.case_id, image_path=item.images[0], label_path=item.labels[0] if item.labels else None,
                is_training=item.is_training, group=item.case.group if item.case else None,
            ),
            volume, aligned, file_values=coding.file_values, labels=coding.labels,
        )
    return _VoxelReport(findings=(*failures, *findings), is_read=not failures, counts=counts, measures=measures)


def _read_labels(item: _Item, coding: LabelCoding, volume: Volume | None) -> LabelMap:
    """In the axes of the image where both are fit for use, else as the file has it."""
    if item.case is not None:
        return read_file_labels(item.case, coding, onto=None if volume is None else volume.geometry)
    return read_label_map(Path(item.labels[0]))


def _read_image(item: _Item, findings: list[Finding], failures: list[Finding]) -> Volume | None:
    """The image with finite voxels; None where there is none, with the reason among ``findings`` or ``failures`` to read."""
    where = item.images[0]
    try:
        volume = read_volume([Path(path) for path in item.images])
    except AutosegError as error:
        failures.append(_unreadable(item, where, error))
        return None
    for channel, voxels in enumerate(volume.array):
        path = item.images[channel] if len(item.images) == len(volume.array) else where
        findings += _intensity_faults(item, path, channel, voxels)
    return volume if np.isfinite(volume.array).all() else None


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
    where = item.labels[0]
    unknown = {value: count for value, count in counts.items() if value not in file_values}
    if unknown:
        shown = ", ".join(f"{value} ({count} voxels)" for value, count in list(unknown.items())[:NUM_SHOWN_VALUES])
        more = f" and {len(unknown) - NUM_SHOWN_VALUES} more" if len(unknown) > NUM_SHOWN_VALUES else ""
        greys = "" if len(unknown) < MANY_VALUES else f": with {len(counts)} values from {min(counts)} to {max(counts)} it holds greys"
        return [_finding(
            item, "error", where,
            f"label values that are not declared: {shown}{more}; declared are {_list(file_values)}{greys}",
            "give the label map itself, not an image or an interpolated mask" if greys
            else "correct the label map, or declare the values in the dataset's description",
        )]
    if set(counts) <= {file_values[0]}:
        return [_finding(item, "warning", where, EMPTY,
                         "make sure that this case really shows no structure")]
    return []


def _few_empty(findings: Sequence[Finding], dataset: DatasetDescription) -> list[Finding]:
    """Empty label maps one by one, or, where they are common, as one note: then they belong to the dataset."""
    empty = [finding for finding in findings if finding.found == EMPTY]
    if len(empty) <= max(MANY_EMPTY, COMMON_EMPTY * len(dataset.training)):
        return list(findings)
    ids = ", ".join(str(finding.case_id) for finding in empty[:NUM_SHOWN_VALUES])
    return [*(finding for finding in findings if finding.found != EMPTY), Finding(
        severity="note", case_id=None, where=dataset.root,
        found=f"{len(empty)} of {len(dataset.training)} label maps are empty: {ids}{' ...' if len(empty) > NUM_SHOWN_VALUES else ''}",
        mend=empty[0].mend.replace("this case", "these cases").replace("shows", "show"),
    )]


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _label_facts(
    dataset: DatasetDescription, headers: Sequence[_HeaderReport], voxels: Mapping[_Item, _VoxelReport]
) -> list[LabelFacts]:
    """What is known of all labels that could be read."""
    facts = []
    for report in headers:
        read = voxels.get(report.readable)
        if report.label is None or read is None or read.counts is None:
            continue
        path = report.readable.labels[0]
        facts.append(LabelFacts(
            case_id=report.readable.case_id,
            path=path,
            paired=path not in dataset.unpaired_labels,
            geometry=turned_grid(report.label),
            counts=read.counts,
        ))
    return facts

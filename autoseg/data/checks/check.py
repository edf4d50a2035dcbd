"""Checks a dataset before any long work: every fault of every file, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from autoseg.compute.executor import run_jobs, workers_worth_starting
from autoseg.data.checks.duplicates import find_duplicates, leaking_patients
from autoseg.data.checks.headers import CheckItem, HeaderReport, check_headers, item_name
from autoseg.data.checks.intensities import unusual_intensities
from autoseg.data.checks.label_fit import Misfit, as_finding, find_misfits
from autoseg.data.checks.plausibility import (
    LabelFacts,
    rare_classes,
    signs_finding,
    stray_values,
    unusual_signs,
    wrong_units,
)
from autoseg.data.checks.voxels import EMPTY, VoxelReport, check_voxels, is_read_whole, item_state
from autoseg.data.dataset import DatasetDescription, LabelCoding
from autoseg.data.discovery.unlabelled import NamedImage
from autoseg.data.grids import turned_grid
from autoseg.imaging.readers import image_stem
from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.storage.cache import Cached
from autoseg.tracking.progress import Reporter
from planners import LabelClass, Labels

NUM_SHOWN_CASES = 10
MANY_EMPTY, COMMON_EMPTY = 3, 0.05
"""More empty label maps than this number and this share of all are no accident."""
CASE_S, VOXEL_S = 0.015, 6e-8
"""Processor time of the check for each case and each voxel of an image: 60 cases of the hippocampus take 1.4 s, 28 million
voxels of MR 1.6 s."""
UNLABELLED = LabelCoding(labels=Labels(classes=(LabelClass(name="any", values=(1,)),)), file_values=(0, 1))
"""How to read labels where there are none."""
SEVERITIES = ("error", "warning", "note")


def check_dataset(
    dataset: DatasetDescription, *, num_workers: int, reporter: Reporter, keep_in: Path | None = None
) -> tuple[Issue, ...]:
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
        _items(dataset),
        channels=dataset.channels,
        coding=dataset.coding,
        num_workers=num_workers,
        reporter=reporter,
        keep_in=keep_in,
    )
    findings = [
        *dataset.issues,
        *(finding for report in headers for finding in report.issues),
        *_few_empty([finding for report in voxels.values() for finding in report.issues], dataset),
        *_comparisons(dataset, headers, voxels, num_workers=num_workers, reporter=reporter),
    ]
    return _in_order(findings)


def check_images(images: Sequence[NamedImage], *, num_workers: int, reporter: Reporter) -> tuple[Issue, ...]:
    """All findings on images without labels, in the order of `check_dataset`: what cannot be read or predicted, what is there twice."""
    items = [CheckItem(case_id=name, images=(str(path),), labels=()) for name, path in images]
    headers, voxels = _read(items, channels=(), coding=UNLABELLED, num_workers=num_workers, reporter=reporter)
    measures = [report.measures for report in voxels.values() if report.measures is not None]
    return _in_order(
        [
            *(finding for report in headers for finding in report.issues),
            *(finding for report in voxels.values() for finding in report.issues),
            *find_duplicates(measures),
        ]
    )


def _in_order(findings: Iterable[Issue]) -> tuple[Issue, ...]:
    unique = dict.fromkeys(findings)
    return tuple(sorted(unique, key=lambda f: (SEVERITIES.index(f.severity), f.case or "", f.where)))


def _read(
    items: Sequence[CheckItem],
    *,
    channels: Sequence[str],
    coding: LabelCoding,
    num_workers: int,
    reporter: Reporter,
    keep_in: Path | None = None,
) -> tuple[list[HeaderReport], dict[CheckItem, VoxelReport]]:
    """What headers say, and the voxels of all whose headers are sound, by item."""
    with reporter.track("check headers", len(items)) as tracker:
        headers = run_jobs(partial(check_headers, channels=channels), items, name=item_name, tracker=tracker)
    readable = [report.readable for report in headers if report.readable.images or report.readable.labels]
    seconds = CASE_S * len(readable) + VOXEL_S * sum(report.num_voxels for report in headers)
    workers = workers_worth_starting(num_workers, seconds)
    check = partial(check_voxels, coding=coding)
    remembered = (
        check
        if keep_in is None
        else Cached(function=check, kind=VoxelReport, state=item_state, folder=keep_in, worth_keeping=is_read_whole)
    )
    with reporter.track("check voxels", len(readable)) as tracker:
        voxels = run_jobs(remembered, readable, name=item_name, num_workers=workers, tracker=tracker)
    return headers, dict(zip(readable, voxels, strict=True))


def require_clean(findings: Iterable[Issue]) -> None:
    """Raise `AutosegError` with all findings that are errors, in order; do nothing where there is none."""
    problems = [
        Issue(code=UNNAMED, where=f.where, message=f.message, fix=f.fix) for f in findings if f.severity == "error"
    ]
    if problems:
        faults = "1 fault" if len(problems) == 1 else f"{len(problems)} faults"
        raise AutosegError(
            *problems,
            headline=(
                f"the dataset has {faults} that must be mended first (or leave these cases out with --skip-bad):"
            ),
        )


def _items(dataset: DatasetDescription) -> list[CheckItem]:
    items = [
        CheckItem(case_id=case.case_id, images=case.images, labels=case.label_files, case=case, is_training=is_training)
        for is_training, cases in ((True, dataset.training), (False, dataset.test))
        for case in cases
    ]
    items += [CheckItem(case_id=image_stem(path), images=(path,), labels=()) for path in dataset.unpaired_images]
    return items + [CheckItem(case_id=image_stem(path), images=(), labels=(path,)) for path in dataset.unpaired_labels]


def _comparisons(
    dataset: DatasetDescription,
    headers: Sequence[HeaderReport],
    voxels: Mapping[CheckItem, VoxelReport],
    *,
    num_workers: int,
    reporter: Reporter,
) -> list[Issue]:
    """What shows when cases are held against each other."""
    facts = _label_facts(dataset, headers, voxels)
    num_workers = workers_worth_starting(num_workers, CASE_S * len(voxels))
    measures = [report.measures for report in voxels.values() if report.measures is not None]
    misfits = find_misfits(
        [case for case in measures if case.is_training],
        len(dataset.labels.values),
        num_workers=num_workers,
        reporter=reporter,
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


def _label_findings(facts: Sequence[LabelFacts], misfits: Sequence[Misfit], dataset: DatasetDescription) -> list[Issue]:
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


def _few_empty(findings: Sequence[Issue], dataset: DatasetDescription) -> list[Issue]:
    """Empty label maps one by one, or, where they are common, as one note: then they belong to the dataset."""
    empty = [finding for finding in findings if finding.message == EMPTY]
    if len(empty) <= max(MANY_EMPTY, COMMON_EMPTY * len(dataset.training)):
        return list(findings)
    ids = ", ".join(str(finding.case) for finding in empty[:NUM_SHOWN_CASES])
    return [
        *(finding for finding in findings if finding.message != EMPTY),
        Issue(
            code=UNNAMED,
            severity="note",
            case=None,
            where=dataset.root,
            message=f"{len(empty)} of {len(dataset.training)} label maps are empty: {ids}{' ...' if len(empty) > NUM_SHOWN_CASES else ''}",
            fix=empty[0].fix.replace("this case", "these cases").replace("shows", "show"),
        ),
    ]


def _label_facts(
    dataset: DatasetDescription, headers: Sequence[HeaderReport], voxels: Mapping[CheckItem, VoxelReport]
) -> list[LabelFacts]:
    """What is known of all labels that could be read."""
    facts = []
    for report in headers:
        read = voxels.get(report.readable)
        if report.label is None or read is None or read.counts is None:
            continue
        path = report.readable.labels[0]
        facts.append(
            LabelFacts(
                case_id=report.readable.case_id,
                path=path,
                paired=path not in dataset.unpaired_labels,
                geometry=turned_grid(report.label),
                counts=read.counts,
            )
        )
    return facts

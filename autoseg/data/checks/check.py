"""Checks a dataset before any long work: every fault of every file, with how to fix it, as a document too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from autoseg.compute.executor import run_jobs, workers_worth_starting
from autoseg.data.checks.case import (
    CheckItem,
    HeaderReport,
    VoxelReport,
    check_headers,
    check_voxels,
    is_read_whole,
    item_name,
    item_state,
)
from autoseg.data.checks.duplicates import find_duplicates, patients_in_names
from autoseg.data.checks.label_fit import Misfit, find_misfits, misfit_issue
from autoseg.data.checks.plausibility import (
    LabelFacts,
    rare_classes,
    stray_values,
    unusual_intensities,
    unusual_issue,
    unusual_signs,
    wrong_units,
)
from autoseg.data.dataset import DatasetDescription, LabelCoding
from autoseg.data.discovery.inputs import NamedImage
from autoseg.imaging.orientation import canonical_grid
from autoseg.imaging.readers import image_stem
from autoseg.issues import AutosegError, Issue
from autoseg.storage.cache import Cached
from autoseg.tracking.progress import Reporter
from autoseg.wording import count_noun, shorten
from planners import LabelClass, Labels

MANY_EMPTY, COMMON_EMPTY = 3, 0.05
"""More empty label maps than this number and this share of all cases are not an accident."""
CASE_S, VOXEL_S = 0.015, 6e-8
"""Processor time of the check for each case and each voxel of an image: 60 cases of the hippocampus take 1.4 s, 28 million
voxels of MR 1.6 s."""
NO_LABELS = LabelCoding(labels=Labels(classes=(LabelClass(name="any", values=(1,)),)), file_values=(0, 1))
"""A coding for images without labels."""
SEVERITIES = ("error", "warning", "note")


def check_dataset(
    dataset: DatasetDescription, *, num_workers: int, reporter: Reporter, keep_in: Path | None = None
) -> tuple[Issue, ...]:
    """`examine_dataset` for its issues alone."""
    return examine_dataset(dataset, num_workers=num_workers, reporter=reporter, keep_in=keep_in)[0]


def examine_dataset(
    dataset: DatasetDescription, *, num_workers: int, reporter: Reporter, keep_in: Path | None = None
) -> tuple[tuple[Issue, ...], dict[str, tuple[str, ...]]]:
    """All issues of a dataset, those of its discovery included: errors, then warnings, then notes, each sorted by case.

    Headers are read first, then the voxels of files with a sound header, by ``num_workers`` processes, one case at a time.
    The folder ``keep_in`` caches what is found in each case, for a call that continues after this one was killed. Then
    cases are compared with each other.

    Errors: unreadable files; channels that are missing, repeated, or on different grids; labels on another grid than their
    image (tolerances `SAME_GRID`; another orientation is the same grid); NaN or infinite voxels; label values that are not
    whole or not declared; spacings in another unit; one image with two label maps; a label map that differs from the others
    in three ways or more, or that clearly belongs elsewhere.
    Warnings: an empty label map, a constant image, a class that no case has, images and label maps unlike the others or
    equal to another one, patients that may be in both training and validation.
    Notes: a class that only one or two cases have, what a reader repaired.

    The second result is a hash of the voxels of each channel of a training case, in canonical axes and whatever its format.
    """
    headers, voxels = _read(
        _items(dataset),
        channels=dataset.channels,
        coding=dataset.coding,
        num_workers=num_workers,
        reporter=reporter,
        keep_in=keep_in,
    )
    issues = [
        *dataset.issues,
        *(issue for report in headers for issue in report.issues),
        *_summarise_empty([issue for report in voxels.values() for issue in report.issues], dataset),
        *_comparisons(dataset, headers, voxels, num_workers=num_workers, reporter=reporter),
    ]
    measured = [report.measures for report in voxels.values() if report.measures is not None]
    hashes = {
        each.case_id: tuple(digest.hex() for digest in each.channel_digests) for each in measured if each.is_training
    }
    return _in_order(issues), hashes


def check_images(images: Sequence[NamedImage], *, num_workers: int, reporter: Reporter) -> tuple[Issue, ...]:
    """All issues of images without labels, in the order of `check_dataset`: unreadable ones, duplicates, bad voxels."""
    items = [CheckItem(case_id=name, images=(str(path),), labels=()) for name, path in images]
    headers, voxels = _read(items, channels=(), coding=NO_LABELS, num_workers=num_workers, reporter=reporter)
    measures = [report.measures for report in voxels.values() if report.measures is not None]
    return _in_order(
        [
            *(issue for report in headers for issue in report.issues),
            *(issue for report in voxels.values() for issue in report.issues),
            *find_duplicates(measures),
        ]
    )


def _in_order(issues: Iterable[Issue]) -> tuple[Issue, ...]:
    unique = dict.fromkeys(issues)
    return tuple(sorted(unique, key=lambda i: (SEVERITIES.index(i.severity), i.case or "", i.where)))


def _read(
    items: Sequence[CheckItem],
    *,
    channels: Sequence[str],
    coding: LabelCoding,
    num_workers: int,
    reporter: Reporter,
    keep_in: Path | None = None,
) -> tuple[list[HeaderReport], dict[CheckItem, VoxelReport]]:
    """Reports on headers, and on the voxels of items with sound headers."""
    with reporter.track("Checking headers", len(items)) as tracker:
        headers = run_jobs(partial(check_headers, channels=channels), items, name=item_name, tracker=tracker)
    readable = [report.readable for report in headers if report.readable.images or report.readable.labels]
    seconds = CASE_S * len(readable) + VOXEL_S * sum(report.num_voxels for report in headers)
    workers = workers_worth_starting(num_workers, seconds)
    check = partial(check_voxels, coding=coding)
    cached = (
        check
        if keep_in is None
        else Cached(function=check, kind=VoxelReport, state=item_state, folder=keep_in, worth_keeping=is_read_whole)
    )
    with reporter.track("Checking voxels", len(readable)) as tracker:
        voxels = run_jobs(cached, readable, name=item_name, num_workers=workers, tracker=tracker)
    return headers, dict(zip(readable, voxels, strict=True))


def require_clean(issues: Iterable[Issue]) -> None:
    """Raise `AutosegError` with all issues that are errors, in order; do nothing if there is none."""
    errors = [issue for issue in issues if issue.severity == "error"]
    if errors:
        headline = (
            f"The dataset has {count_noun(len(errors), 'error')}. Fix them, or leave these cases out with --skip-bad:"
        )
        raise AutosegError(*errors, headline=headline)


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
    """Issues that show when cases are compared with each other."""
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
        *_label_issues(facts, misfits, dataset),
        *wrong_units(facts),
        *stray_values(facts, dataset),
        *rare_classes(facts, dataset),
        *unusual_intensities(measures, dataset.channels),
        *find_duplicates(measures),
        *patients_in_names(dataset.training, dataset.root),
    ]


def _label_issues(facts: Sequence[LabelFacts], misfits: Sequence[Misfit], dataset: DatasetDescription) -> list[Issue]:
    """One issue for each label map that is unlike the others or does not fit its image, with all signs."""
    by_case = {misfit.case_id: misfit for misfit in misfits}
    num_paired = sum(fact.paired for fact in facts)
    issues = []
    for fact, signs in zip(facts, unusual_signs(facts, dataset), strict=True):
        misfit = by_case.get(fact.case_id) if fact.paired else None
        if misfit is not None and (misfit.is_sure or signs):
            issues.append(misfit_issue(misfit, fact.path, more=signs))
        elif signs:
            issues.append(unusual_issue(fact, signs, num_others=num_paired - fact.paired))
    return issues


def _summarise_empty(issues: Sequence[Issue], dataset: DatasetDescription) -> list[Issue]:
    """The issues, with one note in place of those about empty label maps if these are common: then they are intended."""
    empty = [issue for issue in issues if issue.code == "labels.empty"]
    if len(empty) <= max(MANY_EMPTY, COMMON_EMPTY * len(dataset.training)):
        return list(issues)
    cases = shorten([issue.case or "" for issue in empty])
    note = Issue(
        code="labels.empty",
        severity="note",
        where=dataset.root,
        message=f"{len(empty)} of {count_noun(len(dataset.training), 'label map')} are empty: {cases}",
        fix="make sure that these cases have nothing to label",
    )
    return [*(issue for issue in issues if issue.code != "labels.empty"), note]


def _label_facts(
    dataset: DatasetDescription, headers: Sequence[HeaderReport], voxels: Mapping[CheckItem, VoxelReport]
) -> list[LabelFacts]:
    """Facts about all labels that could be read."""
    return [
        LabelFacts(
            case_id=report.readable.case_id,
            path=report.readable.labels[0],
            paired=report.readable.labels[0] not in dataset.unpaired_labels,
            geometry=canonical_grid(report.label),
            counts=read.counts,
        )
        for report in headers
        if report.label and (read := voxels.get(report.readable)) and read.counts is not None
    ]

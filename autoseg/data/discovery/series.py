"""Chooses one DICOM series for each image whose folders hold several, and says which and why."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from autoseg.compute.executor import run_jobs, workers_worth_starting
from autoseg.data.discovery.files import FoundFile
from autoseg.data.discovery.layouts import Files, Match
from autoseg.imaging.orientation import canonical_grid, oriented_differences, part_indices
from autoseg.imaging.readers import (
    PART_MARK,
    ImageHeader,
    SeriesName,
    files_of,
    is_structure_set,
    list_series,
    read_header,
    referenced_series,
)
from autoseg.issues import AutosegError, Issue
from autoseg.wording import count_noun, shorten

SLICE_S = 0.002
"""Processor time to read the header of a slice."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    file: FoundFile
    """The series in place of its folder."""
    name: SeriesName
    fits: bool
    """The label map was drawn on it, or has its grid."""


@dataclass(frozen=True, slots=True)
class _Several:
    """The folders of one image of one case."""

    case_id: str
    channel: str
    folders: tuple[FoundFile, ...]
    labels: tuple[str, ...]


def choose_series(root: Path, match: Match, *, num_workers: int) -> tuple[Match, list[Issue]]:
    """``match`` with one series for each image whose folders hold several, and issues that say which were chosen.

    The layout's ``series`` decides. Without it, of the series that the case's DICOM SEG refers to, or on whose grid its
    label map lies, or else of all: the one with the most common description, then the one with most slices, then the
    first. A choice by these last rules is a warning (``series.guessed``), else a note (``series.chosen``). A case that
    does not have exactly one series of the given name is an error (``series.not_found``, ``series.several``).
    Of a case with label maps and RTSTRUCT files the label maps are taken (``series.structures``, a note).
    """
    match, issues = _without_structures(root, match)
    asked = [*_several(match.images, match.labels), *_several(match.test, {})]
    slices = sum(1 for each in asked for folder in each.folders for _ in files_of(root / folder.path))
    found = run_jobs(
        partial(_candidates, root),
        asked,
        name=lambda each: f"case {each.case_id}",
        num_workers=workers_worth_starting(num_workers, SLICE_S * slices),
    )
    # how many images have each description, counted over series that fit, or over all if none does
    fitting = [{each.name.description for each in of if each.fits or len(of) == 1} for of in found]
    every = [{each.name.description for each in of} for of in found]
    usual = Counter(name for names in (fitting if any(fitting) else every) for name in names)
    chosen: dict[tuple[str, str], FoundFile] = {}
    choices: dict[tuple[str, bool, tuple[str, ...]], list[_Several]] = {}
    wanted = match.layout.series
    for several, candidates in zip(asked, found, strict=True):
        if not candidates or (len(candidates) == 1 and wanted is None):
            continue
        named = [each for each in candidates if wanted is None or _is_named(each, wanted)]
        if wanted is not None and len(named) != 1:
            issues.append(_not_one(root, several, candidates, len(named), wanted))
        pool = [each for each in named or candidates if each.fits] or named or candidates
        best = min(pool, key=lambda each: (-usual[each.name.description], -each.name.num_slices, each.name.uid))
        chosen[several.case_id, several.channel] = best.file
        if wanted is None:
            others = sorted({each.name.description for each in candidates if each is not best})
            choices.setdefault((best.name.description, len(pool) == 1, tuple(others)), []).append(several)
    issues += [_chosen(root, match, *choice, cases) for choice, cases in choices.items()]
    return replace(match, images=_with_chosen(match.images, chosen), test=_with_chosen(match.test, chosen)), issues


def _without_structures(root: Path, match: Match) -> tuple[Match, list[Issue]]:
    """``match`` without the RTSTRUCT files of cases that have label maps, too: archives often hold both of one drawing."""
    kept, left = dict(match.labels), []
    for case_id, files in match.labels.items():
        maps = [file for file in files if len(files) > 1 and not _is_structures(root / file.path)]
        if maps and len(maps) < len(files):
            kept[case_id] = maps
            left.append(str(root / next(file.path for file in files if file not in maps)))
    if not left:
        return match, []
    note = Issue(
        code="series.structures",
        severity="note",
        where=left[0],
        message=f"{count_noun(len(left), 'case')} with label maps and RTSTRUCT files: took the label maps",
        fix="to take the RTSTRUCT files, name them in a spec file (--spec)",
    )
    return replace(match, labels=kept), [note]


def _is_structures(file: Path) -> bool:
    try:
        return is_structure_set(file)
    except AutosegError:
        return False


def _several(files: Files, labels: Files) -> list[_Several]:
    """The files of each image; those that are no folder are dropped by `_candidates`."""
    asked = []
    for case_id, images in sorted(files.items()):
        by_channel: dict[str, list[FoundFile]] = {}
        for image in images:
            by_channel.setdefault(image.channel, []).append(image)
        own_labels = tuple(label.path for label in labels.get(case_id, ()))
        asked += [_Several(case_id, channel, tuple(found), own_labels) for channel, found in by_channel.items()]
    return asked


def _candidates(root: Path, several: _Several) -> tuple[_Candidate, ...]:
    """The series of all folders; none where one is a file or cannot be read, which the check reports."""
    paths = [root / folder.path for folder in several.folders]
    if not all(path.is_dir() for path in paths):
        return ()
    try:
        named = [
            (folder, name) for folder, path in zip(several.folders, paths, strict=True) for name in list_series(path)
        ]
        uids = (
            {uid for label in several.labels[:1] for uid in referenced_series(root / label)}
            if len(named) > 1
            else set()
        )
        label = read_header(root / several.labels[0]) if several.labels and len(named) > 1 else None
    except AutosegError:
        return ()
    referred = [name.uid in uids for _, name in named]
    fits = referred if any(referred) else [label is not None and _fits(label, name) for _, name in named]
    return tuple(
        _Candidate(_in_place_of(folder, name), name, fit) for (folder, name), fit in zip(named, fits, strict=True)
    )


def _fits(label: ImageHeader, series: SeriesName) -> bool:
    """Whether a label map lies on the grid of a series in any orientation, or on a part of it where its format allows that."""
    try:
        image = read_header(series.path).geometry
    except AutosegError:
        return False
    if label.may_be_part:
        return part_indices(canonical_grid(label.geometry), canonical_grid(image)) is not None
    return not oriented_differences(label.geometry, image)


def _in_place_of(folder: FoundFile, name: SeriesName) -> FoundFile:
    part = str(name.path).rpartition(PART_MARK)[2] if str(name.path).endswith(f"{PART_MARK}{name.uid}") else None
    return folder if part is None else replace(folder, path=f"{folder.path}{PART_MARK}{part}")


def _is_named(candidate: _Candidate, wanted: str) -> bool:
    name, folder = candidate.name, Path(candidate.file.path).name
    return wanted in (name.number, name.uid, folder) or fnmatch.fnmatchcase(
        name.description.casefold(), wanted.casefold()
    )


def _with_chosen(files: Files, chosen: dict[tuple[str, str], FoundFile]) -> Files:
    result: Files = {}
    for case_id, images in files.items():
        kept = []
        for image in images:
            taken = chosen.get((case_id, image.channel))
            if taken is None or taken not in kept:
                kept.append(image if taken is None else taken)
        result[case_id] = kept
    return result


def _chosen(
    root: Path, match: Match, chosen: str, is_certain: bool, others: Sequence[str], cases: Sequence[_Several]
) -> Issue:
    """``is_certain``: the labels decided, not how many cases have the series."""
    number = "1 case has" if len(cases) == 1 else f"{len(cases)} cases have"
    reason = "its labels match it" if is_certain else "most cases have it, or it has the most slices"
    return Issue(
        code="series.chosen" if is_certain else "series.guessed",
        severity="note" if is_certain else "warning",
        case=cases[0].case_id if len(cases) == 1 else None,
        where=str(root / cases[0].folders[0].path),
        message=f"{number} several DICOM series: chose {chosen!r} ({reason}) over {shorten(list(map(repr, others)))}",
        fix=f'to choose another, write extends = "{match.layout.name}" and series = "description or number" in a spec file '
        "(--spec)",
    )


def _not_one(root: Path, several: _Several, candidates: Sequence[_Candidate], num_named: int, wanted: str) -> Issue:
    titles = [
        (each.name.description, f"number {each.name.number}, " if each.name.number else "", each.name.num_slices)
        for each in candidates
    ]
    shown = shorten([f"{description!r} ({number}{slices} slices)" for description, number, slices in titles])
    return Issue(
        code="series.several" if num_named else "series.not_found",
        case=several.case_id,
        where=str(root / several.folders[0].path),
        message=f"{num_named or 'none'} of its series match series = {wanted!r}: {shown}",
        fix="correct the spec file, or leave the case out (--exclude)",
    )

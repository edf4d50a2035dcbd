"""Chooses one DICOM series for each image whose folders hold several, and says which and why; tells apart patients in one folder."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from autoseg.compute.executor import run_jobs, workers_worth_starting
from autoseg.data.discovery.files import FoundFile
from autoseg.data.discovery.layouts import Files, Match, segmentations_in
from autoseg.imaging.orientation import canonical_grid, oriented_differences, part_indices
from autoseg.imaging.readers import (
    PART_MARK,
    ImageHeader,
    SeriesName,
    files_of,
    is_dicom_series,
    is_structure_set,
    list_series,
    read_header,
    referenced_series,
)
from autoseg.issues import AutosegError, Issue
from autoseg.wording import count_noun, shorten
from datasets_spec import Layout

NO_NAME = re.compile(r"[^\w.-]")
"""What is replaced in PatientIDs, which name cases and so files."""
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


def find_flat(root: Path, layouts: Iterable[Layout]) -> Match | None:
    """The series of several patients that lie in the folder ``root`` itself, with the labels drawn on them; None if it has none."""
    layout = next((each for each in layouts if each.labels_by_content), None)
    if layout is None or not is_dicom_series(root):
        return None
    labels = [FoundFile(path=str(file), fields={}) for file in segmentations_in(root)]
    match = Match(
        layout=layout, images={root.name: [FoundFile(path=str(root), fields={})]}, labels={root.name: labels}, test={}
    )
    return match if _series_drawn_on(root, match, root.name) else None


def tell_apart(root: Path, match: Match) -> tuple[Match, list[Issue]]:
    """``match`` with a case for each series of a folder whose labels were drawn on several of its series, and a note on it.

    Such a case is named after its patient, or series, if several of a patient have labels. Labels of a series that is not
    there stay without an image; series without labels are left out.
    """
    images, labels, issues = dict(match.images), dict(match.labels), []
    for case_id, (folder, *_) in sorted(match.images.items()):
        series = _series_drawn_on(root, match, case_id)
        if not series:
            continue
        of_series: dict[str, list[FoundFile]] = {}
        for file in labels.pop(case_id):
            of_series.setdefault(_drawn_on(root / file.path), []).append(file)
        del images[case_id]
        drawn = {uid: each for uid, each in series.items() if uid in of_series}
        patients = Counter(each.patient for each in drawn.values())
        for uid, files in of_series.items():
            if uid not in series:
                labels |= {f"{case_id}_{Path(file.path).name}": [file] for file in files}
                continue
            patient = drawn[uid].patient
            name = NO_NAME.sub("_", patient if patient and patients[patient] == 1 else f"{patient or case_id}_{uid}")
            fields = {**folder.fields, **({"patient": patient} if patient else {})}
            images[name], labels[name] = [replace(folder, path=str(series[uid].path), fields=fields)], files
        left = len(series) - len(drawn)
        more = f"; not used: {left} without labels" if left else ""
        message = f"{len(drawn)} DICOM series with labels in one folder: each is a case{more}"
        fix = "put the files of each patient into a folder of its own if that is wrong"
        where = str(root / folder.path)
        issues.append(Issue(code="series.one_folder", severity="note", where=where, message=message, fix=fix))
    return replace(match, images=images, labels=labels), issues


def _series_drawn_on(root: Path, match: Match, case_id: str) -> dict[str, SeriesName]:
    """All series in the one image folder of a case, by UID, where its labels were drawn on several of them; else none."""
    folders, labels = match.images[case_id], match.labels.get(case_id, ())
    if len(folders) != 1 or len(labels) < 2 or not (root / folders[0].path).is_dir():
        return {}
    drawn_on = {_drawn_on(root / file.path) for file in labels} - {""}
    try:
        found = {each.uid: each for each in list_series(root / folders[0].path)} if len(drawn_on) > 1 else {}
    except AutosegError:  # the check reports it
        return {}
    return found if len(found.keys() & drawn_on) > 1 else {}


def _drawn_on(file: Path) -> str:
    """UID of the series that a file of segments was drawn on; empty if it tells none, or cannot be read."""
    try:
        return next(iter(referenced_series(file)), "")
    except AutosegError:
        return ""


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

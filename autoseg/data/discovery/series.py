"""Chooses one DICOM series for each case that has several, and says which and why."""

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
from autoseg.data.grids import fits_grid
from autoseg.imaging.readers import (
    PART_MARK,
    ImageHeader,
    SeriesName,
    files_of,
    list_series,
    read_header,
    referenced_series,
)
from autoseg.issues import UNNAMED, AutosegError, Issue

NUM_SHOWN = 4
SLICE_S = 0.002
"""Processor time to read the header of a slice."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    file: FoundFile
    """The series in place of its folder."""
    name: SeriesName
    fits: bool
    """The label map was drawn on it, or lies on its grid."""


@dataclass(frozen=True, slots=True)
class _Several:
    """All that may be meant by one image of one case."""

    case_id: str
    channel: str
    folders: tuple[FoundFile, ...]
    labels: tuple[str, ...]


def choose_series(root: Path, match: Match, *, num_workers: int) -> tuple[Match, list[Issue]]:
    """``match`` with one series for each image whose folders hold several, and findings that say which were taken.

    What the layout's ``series`` names is taken. Without it, of the series that a case's DICOM SEG refers to, or on whose grid
    its label map lies, or else of all: the one with the description that most cases have, then the one with most slices, then
    the first. Where nothing but these last rules decided, the finding is a warning. A case that has not exactly one series of
    the name that was given is an error.
    """
    asked = [*_several(match.images, match.labels), *_several(match.test, {})]
    slices = sum(1 for each in asked for folder in each.folders for _ in files_of(root / folder.path))
    found = run_jobs(
        partial(_candidates, root),
        asked,
        name=lambda each: f"case {each.case_id}",
        num_workers=workers_worth_starting(num_workers, SLICE_S * slices),
    )
    usual = Counter(
        text
        for each in found
        for text in {candidate.name.description for candidate in each if candidate.fits or len(each) == 1}
    ) or Counter(text for each in found for text in {candidate.name.description for candidate in each})
    chosen: dict[tuple[str, str], FoundFile] = {}
    findings: list[Issue] = []
    told: dict[tuple[str, str, str], list[tuple[_Several, Sequence[_Candidate]]]] = {}
    for several, candidates in zip(asked, found, strict=True):
        if not candidates or (len(candidates) == 1 and match.layout.series is None):
            continue
        wanted = [each for each in candidates if match.layout.series is None or _is_named(each, match.layout.series)]
        if match.layout.series is not None and len(wanted) != 1:
            findings.append(_not_one(root, several, candidates, len(wanted), match.layout.series))
        pool = [each for each in wanted or candidates if each.fits] or wanted or candidates
        best = min(pool, key=lambda each: (-usual[each.name.description], -each.name.num_slices, each.name.uid))
        chosen[several.case_id, several.channel] = best.file
        if match.layout.series is None:
            reason = "on which its labels lie" if len(pool) == 1 else "which more cases have, or which has more slices"
            told.setdefault((best.name.description, reason, _others(best, candidates)), []).append(
                (several, candidates)
            )
    findings += [_taken(root, match, key, cases) for key, cases in told.items()]
    return replace(match, images=_with_chosen(match.images, chosen), test=_with_chosen(match.test, chosen)), findings


def _several(files: Files, labels: Files) -> list[_Several]:
    """Images that are folders; where another file competes for the same place, discovery says so."""
    asked = []
    for case_id, images in sorted(files.items()):
        by_channel: dict[str, list[FoundFile]] = {}
        for image in images:
            by_channel.setdefault(image.fields.get("channel") or "", []).append(image)
        own_labels = tuple(label.path for label in labels.get(case_id, ()))
        asked += [_Several(case_id, channel, tuple(found), own_labels) for channel, found in by_channel.items()]
    return asked


def _candidates(root: Path, several: _Several) -> tuple[_Candidate, ...]:
    """The series of all folders; none where a file competes with them, or a folder cannot be understood."""
    paths = [root / folder.path for folder in several.folders]
    if not all(path.is_dir() for path in paths):
        return ()
    try:
        named = [
            (folder, name) for folder, path in zip(several.folders, paths, strict=True) for name in list_series(path)
        ]
        uids = {uid for label in several.labels for uid in referenced_series(root / label)} if len(named) > 1 else set()
        label = read_header(root / several.labels[0]) if several.labels and len(named) > 1 else None
    except AutosegError:  # the check says what is wrong
        return ()
    referred = [name.uid in uids for _, name in named]
    fits = referred if any(referred) else [label is not None and _fits(label, name) for _, name in named]
    return tuple(
        _Candidate(_in_place_of(folder, name), name, fit) for (folder, name), fit in zip(named, fits, strict=True)
    )


def _fits(label: ImageHeader, series: SeriesName) -> bool:
    try:
        return fits_grid(label, read_header(series.path).geometry)
    except AutosegError:
        return False


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
            taken = chosen.get((case_id, image.fields.get("channel") or ""))
            if taken is None or taken not in kept:
                kept.append(image if taken is None else taken)
        result[case_id] = kept
    return result


# --- what people should know ---


def _said(candidate: _Candidate) -> str:
    number = f"number {candidate.name.number}, " if candidate.name.number else ""
    return f"{candidate.name.description!r} ({number}{candidate.name.num_slices} slices)"


def _others(best: _Candidate, candidates: Sequence[_Candidate]) -> str:
    others = sorted({each.name.description for each in candidates if each is not best})
    return ", ".join(map(repr, others[:NUM_SHOWN])) + (" ..." if len(others) > NUM_SHOWN else "")


def _taken(
    root: Path, match: Match, key: tuple[str, str, str], cases: Sequence[tuple[_Several, Sequence[_Candidate]]]
) -> Issue:
    description, reason, others = key
    several = cases[0][0]
    number = "1 case has" if len(cases) == 1 else f"{len(cases)} cases have"
    return Issue(
        code=UNNAMED,
        severity="note" if reason.startswith("on which") else "warning",
        case=several.case_id if len(cases) == 1 else None,
        where=str(root / several.folders[0].path),
        message=f"{number} several DICOM series: taken is {description!r}, {reason}; the others are {others}",
        fix=f'to take another, write extends = "{match.layout.name}" and series = "its description or number" into a spec file (--spec)',
    )


def _not_one(root: Path, several: _Several, candidates: Sequence[_Candidate], number: int, wanted: str) -> Issue:
    shown = ", ".join(_said(each) for each in candidates[:NUM_SHOWN]) + (" ..." if len(candidates) > NUM_SHOWN else "")
    return Issue(
        code=UNNAMED,
        severity="error",
        case=several.case_id,
        where=str(root / several.folders[0].path),
        message=f"{number or 'none'} of its series is what series = {wanted!r} names: {shown}",
        fix="correct the spec file, or leave the case out",
    )

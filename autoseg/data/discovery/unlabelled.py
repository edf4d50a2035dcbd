"""Folders without labelled cases: which images they hold, and why no dataset was recognised."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from autoseg.data.discovery.files import FoundFile
from autoseg.data.discovery.layouts import Match, best_match, candidate_layouts, match_layouts
from autoseg.imaging.readers import (
    PART_MARK,
    image_ending,
    image_stem,
    is_dicom_series,
    list_series,
    require_text,
)
from autoseg.issues import AutosegError, Issue
from autoseg.wording import count_noun, shorten
from datasets_spec import Layout

LABEL_WORD = re.compile(r"(?i)seg|label|mask|gt|annot|truth|roi|manual")
UNLABELLED = "dataset.unlabelled"
"""Code of the issue that a folder holds images but no labels."""
MOST_AROUND = 50
"""Folders below, or entries of the folder above, that are searched for the dataset that was meant."""


def explain_nothing(root: Path, matches: Sequence[Match]) -> AutosegError:
    """The error about a folder without a labelled case: what was looked for, and what is there.

    ``dataset.unlabelled``: nothing is named like labels, so that the images can be checked and predicted.
    ``dataset.unrecognised``: there are labels that fit no layout. Faults of a list of cases are given instead.
    """
    faults = [issue for match in matches for issue in match.issues]
    if faults:
        return AutosegError(*faults, headline=f"{root} lists no usable case:")
    generic = [match for match in matches if match.layout.known is None]
    looked_for = "".join(f"\n  - {_expectation(match)}" for match in sorted(generic, key=_num_seen, reverse=True))
    unlabelled = _is_unlabelled(root, generic)
    fix = _suggestion(root, [match.layout for match in generic]) or (
        "add label maps, or say in a spec file where they are (--spec)"
        if unlabelled
        else "use one of these layouts, describe yours in a spec file (--spec), or give another folder"
    )
    return AutosegError(
        Issue(
            code="dataset.unlabelled" if unlabelled else "dataset.unrecognised",
            where=str(root),
            message=f"contains no labelled dataset: looked for{looked_for}\nfound {_summary(root)}",
            fix=fix,
        )
    )


def _is_unlabelled(root: Path, generic: Sequence[Match]) -> bool:
    """Whether no file is named like labels. Beside folders of slices labels may have any name, and so may images."""
    labels = [
        file.path
        for match in generic
        for files in match.labels.values()
        for file in files
        if not _takes_any_name(match.layout) or LABEL_WORD.search(file.path)
    ]
    return is_dicom_series(root) or not labels


def _takes_any_name(layout: Layout) -> bool:
    return layout.training is not None and all(pattern.endswith("/") for pattern in layout.training.images)


def _num_seen(match: Match) -> tuple[int, int]:
    return len(match.images) * len(match.labels), match.layout.preference


def _expectation(match: Match) -> str:
    images = f"{count_noun(len(match.images), 'image')} and {count_noun(len(match.labels), 'label map')}"
    seen = f" (found {images}, none of the same case)" if match.images or match.labels else ""
    return f"{match.layout.title}: {match.layout.expects}{seen}"


def _summary(root: Path) -> str:
    """The folders (with how many entries) and files of a folder, in a few words."""
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    names = [f"{entry.name}/ ({_num_entries(entry)})" if entry.is_dir() else entry.name for entry in entries]
    return shorten(names) or "hidden files only"


def _num_entries(folder: Path) -> str:
    try:
        return count_noun(sum(1 for _ in folder.iterdir()), "file")
    except OSError:
        return "not readable"


def _suggestion(root: Path, layouts: Sequence[Layout]) -> str:
    """The fix if a dataset lies one folder below or above; else empty."""
    below = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for folder in (*below[:MOST_AROUND], *([root.parent] if _is_small(root.parent) else [])):
        try:
            matches = match_layouts(folder, layouts)
        except (OSError, AutosegError):
            continue
        if any(_is_part_of(match, root) if folder == root.parent else match.paired for match in matches):
            return f"give {folder} instead, which holds a dataset"
    return ""


def _is_small(folder: Path) -> bool:
    try:
        return sum(1 for _ in islice(folder.iterdir(), MOST_AROUND + 1)) <= MOST_AROUND
    except OSError:
        return False


def _is_part_of(match: Match, folder: Path) -> bool:
    """Whether all images, or all labels, of several cases lie in ``folder``."""

    def all_inside(files: Mapping[str, Sequence[FoundFile]]) -> bool:
        return all(Path(file.path).parts[0] == folder.name for case_id in match.paired for file in files[case_id])

    return len(match.paired) > 1 and (all_inside(match.images) != all_inside(match.labels))


MOST_NESTED = 3
"""Folders between the one given and an image: patient, study, series; subject, session, kind."""

NamedImage = tuple[str, Path]
"""Name and path of an image; the path may name one of several series of a folder."""


def find_loose_images(source: Path) -> list[NamedImage]:
    """The image ``source``, or all images in that folder, sorted by path; names that begin with a dot or ``_`` are skipped.

    Several series in one folder are several images, named by folder and SeriesInstanceUID. Images in deeper folders are
    named by these folders; files there only count if there is no image higher up. Raises `AutosegError` with all names
    that are not text.
    """
    found = _find(source)
    require_text([path for _, path in found])
    return found


def _find(source: Path) -> list[NamedImage]:
    if not source.is_dir():
        return [(source.name.replace(PART_MARK, "_") if is_dicom_series(source) else image_stem(source), source)]
    if is_dicom_series(source):
        require_text([source.resolve()])
        return _series(source, source.resolve().name)
    below = [entry for entry in _visible(source) if entry.is_dir()]
    series = [found for entry in below for found in _nested_series(entry, entry.name, MOST_NESTED)]
    files = _files(source, "")
    if not files and not series:
        files = [found for entry in below for found in _nested_files(entry, f"{entry.name}_", MOST_NESTED)]
    return sorted([*files, *series], key=lambda named: named[1])


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))


def _files(folder: Path, prefix: str) -> list[NamedImage]:
    return [
        (prefix + image_stem(entry), entry) for entry in _visible(folder) if entry.is_file() and image_ending(entry)
    ]


def _nested_files(folder: Path, prefix: str, depth: int) -> list[NamedImage]:
    """Image files in a folder and in those below it, of several levels."""
    below = [entry for entry in _visible(folder) if entry.is_dir()] if depth else []
    deeper = [found for entry in below for found in _nested_files(entry, f"{prefix}{entry.name}_", depth - 1)]
    return [*_files(folder, prefix), *deeper]


def _nested_series(folder: Path, name: str, depth: int) -> list[NamedImage]:
    """Series in a folder, or in those below it: archives lie as PATIENT/STUDY/SERIES."""
    if is_dicom_series(folder):
        return _series(folder, name)
    below = [entry for entry in _visible(folder) if entry.is_dir()] if depth else []
    return [found for entry in below for found in _nested_series(entry, f"{name}_{entry.name}", depth - 1)]


def _series(folder: Path, name: str) -> list[NamedImage]:
    """The series of a folder; a folder that cannot be read is one image, and reading it raises the error."""
    try:
        series = list_series(folder)
    except AutosegError:
        series = ()
    if len(series) <= 1:
        return [(name, folder)]
    return [(f"{name}_{each.uid}", each.path) for each in series]


def labels_beside_images(folder: Path) -> frozenset[Path]:
    """Label files of the cases that the best layout finds, symbolic links resolved; no file is read.

    Empty if no image has a label, or if the folder cannot be listed, which reading its images reports.
    """
    try:
        root, layouts = candidate_layouts(folder, None, None)
        match = best_match(match_layouts(root, layouts))
    except AutosegError:
        return frozenset()
    return frozenset((root / path).resolve() for path in match.label_files)

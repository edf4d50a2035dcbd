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
from autoseg.issues import AutosegError
from autoseg.wording import count_noun, shorten
from datasets_spec import Layout

LABEL_WORD = re.compile(r"(?i)seg|label|mask|gt|annot|truth|roi|manual")
MOST_AROUND = 50
"""Folders below, or entries of the folder above, that are looked at for a dataset that was meant."""


class NothingLabelledError(AutosegError):
    """A folder without anything that looks like labels; images in it can be checked and predicted."""

    def __init__(self, message: str, elsewhere: str = "") -> None:
        super().__init__(message)
        self.elsewhere = elsewhere
        """Where a labelled dataset lies instead, in words; empty where none is near."""


def explain_nothing(root: Path, matches: Sequence[Match]) -> AutosegError:
    """The error that says what was looked for and what is there; a `NothingLabelledError` where nothing is named like labels."""
    elsewhere = _suggestion(root, [each.layout for each in matches if each.layout.known is None])
    message = _nothing_found(root, matches, elsewhere)
    return NothingLabelledError(message, elsewhere) if _is_unlabelled(root, matches) else AutosegError(message)


def _is_unlabelled(root: Path, matches: Sequence[Match]) -> bool:
    """Whether no file is named like labels. Beside folders of slices labels may have any name, and so does any image."""
    generic = [match for match in matches if match.layout.known is None]
    labels = [
        file.path
        for match in generic
        for files in match.labels.values()
        for file in files
        if not _takes_any_name(match.layout) or LABEL_WORD.search(file.path)
    ]
    return is_dicom_series(root) or not (labels or any(match.problems for match in generic))


def _takes_any_name(layout: Layout) -> bool:
    return layout.training is not None and all(pattern.endswith("/") for pattern in layout.training.images)


def _nothing_found(root: Path, matches: Sequence[Match], elsewhere: str) -> str:
    problems = [problem for match in matches for problem in match.problems]
    if problems:
        return str(AutosegError(*problems, headline=(f"{root} lists no case that can be used")))
    generic = [match for match in matches if match.layout.known is None]
    looked_for = "".join(f"\n  - {_expectation(match)}" for match in sorted(generic, key=_num_seen, reverse=True))
    return (
        f"{root} holds no dataset: looked for{looked_for}\nfound {_summary(root)}; "
        f"{elsewhere or 'arrange the files in one of these ways, describe them in a spec file (--spec), or give another folder'}"
    )


def _num_seen(match: Match) -> tuple[int, int]:
    return len(match.images) * len(match.labels), match.layout.preference


def _expectation(match: Match) -> str:
    images = f"{count_noun(len(match.images), 'image')} and {count_noun(len(match.labels), 'label map')}"
    seen = f" (here {images}, none of the same case)" if match.images or match.labels else ""
    return f"{match.layout.title}: {match.layout.expects}{seen}"


def _summary(root: Path) -> str:
    """The folders (with how many entries) and files of a folder, in a few words."""
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    names = [f"{entry.name}/ ({_num_entries(entry)})" if entry.is_dir() else entry.name for entry in entries]
    return shorten(names) or "hidden files only"


def _num_entries(folder: Path) -> str:
    try:
        return count_noun(sum(1 for _ in folder.iterdir()), "entry").replace("entrys", "entries")
    except OSError:
        return "not readable"


def _suggestion(root: Path, layouts: Sequence[Layout]) -> str:
    """Where a dataset lies one folder below or above, say so."""
    below = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for folder in (*below[:MOST_AROUND], *([root.parent] if _is_small(root.parent) else [])):
        try:
            matches = match_layouts(folder, layouts)
        except (OSError, AutosegError):
            continue
        if any(_goes_through(match, root) if folder == root.parent else match.paired for match in matches):
            return f"{folder} holds one: give that folder"
    return ""


def _is_small(folder: Path) -> bool:
    try:
        return sum(1 for _ in islice(folder.iterdir(), MOST_AROUND + 1)) <= MOST_AROUND
    except OSError:
        return False


def _goes_through(match: Match, folder: Path) -> bool:
    """Whether all images, or all labels, of several cases lie in ``folder``."""

    def all_inside(files: Mapping[str, Sequence[FoundFile]]) -> bool:
        return all(Path(file.path).parts[0] == folder.name for case_id in match.paired for file in files[case_id])

    return len(match.paired) > 1 and (all_inside(match.images) != all_inside(match.labels))


MOST_NESTED = 3
"""Folders between the one given and an image: patient, study, series; subject, session, kind."""

NamedImage = tuple[str, Path]
"""Name and path of an image; the path may name one of several series of a folder."""


def find_loose_images(source: Path) -> list[NamedImage]:
    """The image that ``source`` is, or those in the folder, by path; names that begin with a dot or ``_`` are passed over.

    Several series in one folder are several images, named by folder and SeriesInstanceUID. Images further down are named by
    the folders that lead to them; files further down only count where nothing lies higher up, for beside images they are
    mostly something else. Raises `AutosegError` that names all whose names are no text.
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
    """The series of a folder; a folder that cannot be understood is one image, of which reading will say what is wrong."""
    try:
        series = list_series(folder)
    except AutosegError:
        series = ()
    if len(series) <= 1:
        return [(name, folder)]
    return [(f"{name}_{each.uid}", each.path) for each in series]


def labels_beside_images(folder: Path) -> frozenset[Path]:
    """Label files of the cases that the best fitting layout finds, symbolic links resolved; no file is read.

    Nothing where no image has a label, and where the folder cannot be listed: whoever reads its images says so.
    """
    try:
        root, layouts = candidate_layouts(folder, None, None)
        match = best_match(match_layouts(root, layouts))
    except AutosegError:
        return frozenset()
    return frozenset((root / path).resolve() for path in match.label_files)

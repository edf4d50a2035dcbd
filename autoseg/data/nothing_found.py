"""What to say of a folder in which no layout finds a labelled case."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from autoseg.data.matching import Match, match_layouts
from autoseg.data.patterns import FoundFile
from autoseg.imaging.readers import is_dicom_series
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

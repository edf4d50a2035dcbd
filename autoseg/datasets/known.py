"""Public datasets: recognised by the names of their cases and by their content, and held against what is known of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from autoseg.datasets.dataset import DatasetDescription, Finding
from autoseg.datasets.declaration import declared_by_layout, read_decathlon
from autoseg.datasets.matching import Match, match_layout
from datasets_spec import Layout


def choose_known(root: Path, match: Match, known: Iterable[Layout]) -> Match:
    """``match`` as that of a public dataset, where all its case ids and what it declares are those of one.

    A dataset with files of its own is found by `match_layout` like any layout; it is told from others with such files by
    the same. Where several fit, the one whose case ids are described most narrowly is taken.
    """
    fitting = [each for each in (_as_known(root, match, layout) for layout in known) if each is not None]
    if not fitting:
        return match
    return max(fitting, key=lambda each: (len(each.paired), len(each.layout.known.case) if each.layout.known else 0))


def _as_known(root: Path, match: Match, layout: Layout) -> Match | None:
    found = match_layout(root, layout)
    expected = layout.known
    if expected is None or not found.paired or not set(match.paired) or len(found.paired) < len(match.paired):
        return None
    if not all(re.fullmatch(expected.case, case_id) for case_id in found.paired):
        return None
    return found if _says_nothing_else(root, found) else None


def _says_nothing_else(root: Path, match: Match) -> bool:
    """Whether the folder's own description, if it has one, has the channels and labels of the known dataset."""
    description = match.layout.description
    if description is None or not (root / description.file).is_file():
        return True
    own, known = read_decathlon(root / description.file), declared_by_layout(match.layout)
    if own.channels and known.channels and len(own.channels) != len(known.channels):
        return False
    if own.label_values is None or known.label_values is None:
        return True
    return _foreground(own.label_values.file_values) == _foreground(known.label_values.file_values)


def _foreground(file_values: Sequence[int]) -> set[int]:
    return set(file_values[1:])


def expectations(dataset: DatasetDescription, layout: Layout) -> list[Finding]:
    """Notes on what differs from what is known: fewer cases are a part of the dataset, more are a warning."""
    known = layout.known
    if known is None:
        return []
    findings = []
    for kind, found, expected in (("labelled", len(dataset.training), known.training), ("test", len(dataset.test), known.test)):
        if expected is None or found == expected or (kind == "test" and found == 0):
            continue
        more = found > expected
        findings.append(Finding(
            severity="warning" if more else "note", case_id=None, where=dataset.root,
            found=f"{layout.title} has {expected} {kind} cases, here are {found}",
            mend="make sure that no cases of other datasets or copies lie here" if more else
            "nothing needs to be done if a part of it is meant, else fetch the rest",
        ))
    return findings

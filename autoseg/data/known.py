"""Public datasets: recognised by the names of their cases and by their content, and held against what is known of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from autoseg.data.dataset import DatasetDescription
from autoseg.data.declaration import declared_by_layout, read_decathlon
from autoseg.data.matching import Match
from autoseg.issues import UNNAMED, Issue
from datasets_spec import Layout


def choose_known(root: Path, match: Match, matches: Iterable[Match]) -> Match:
    """The one of ``matches`` that is a public dataset and finds as much as ``match``, the best of all layouts; else that.

    All its case ids must be as those of the dataset, and what the folder's own description declares must not differ.
    Where several fit, the one that finds most cases is taken, then the one whose case ids are described most narrowly.
    """
    fitting = [each for each in matches if each.layout.known is not None and _is_known(root, each, match)]
    if not fitting:
        return match
    return max(fitting, key=lambda each: (len(each.paired), len(each.layout.known.case) if each.layout.known else 0))


def _is_known(root: Path, found: Match, best: Match) -> bool:
    known = found.layout.known
    if known is None or not found.paired or len(found.paired) < len(best.paired):
        return False
    return all(re.fullmatch(known.case, case_id) for case_id in found.paired) and _says_nothing_else(root, found)


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


def expectations(dataset: DatasetDescription, layout: Layout) -> list[Issue]:
    """Notes on what differs from what is known: fewer cases are a part of the dataset, more are a warning."""
    known = layout.known
    if known is None:
        return []
    findings = []
    for kind, found, expected in (
        ("labelled", len(dataset.training), known.training),
        ("test", len(dataset.test), known.test),
    ):
        if expected is None or found == expected or (kind == "test" and found == 0):
            continue
        more = found > expected
        findings.append(
            Issue(
                code=UNNAMED,
                severity="warning" if more else "note",
                case=None,
                where=dataset.root,
                message=f"{layout.title} has {expected} {kind} cases, here are {found}",
                fix="make sure that no cases of other datasets or copies lie here"
                if more
                else "nothing needs to be done if a part of it is meant, else fetch the rest",
            )
        )
    return findings

"""Tables of users in CSV files, and what they say of cases or patients: groups that scores are compared between."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from autoseg.issues import AutosegError, Issue
from autoseg.wording import count_noun, shorten

NAMES_OF_CASES = ("case", "case_id", "patient", "participant_id")
"""Columns that say whom a line is about, in any case; the last is that of BIDS."""
UNKNOWN = frozenset({"", "n/a", "na", "nan", "none", "unknown", "?"})
"""Values, in lower case, that say nothing."""
MOST_WHOLE = 5
"""Different numbers up to which each is a group of its own: stages, field strengths. More are cut at quantiles."""
QUANTILES = (1 / 3, 2 / 3)
"""Where the numbers of a column are cut: three groups of about one size."""
MOST_GROUPS = 0.5
"""Share of the cases: a column of words with more different ones names cases, and makes no groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupsTable:
    """What a user knows of cases or patients: any columns of words or numbers."""

    path: Path
    columns: tuple[str, ...]
    values: Mapping[str, Mapping[str, str]]
    """Case or patient -> column -> value, without those that say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """One column as groups of cases."""

    column: str
    groups: tuple[str, ...]
    """In the order of their names, or of their numbers."""
    of_case: Mapping[str, str]
    """Group of each case that has one."""
    cuts: tuple[float, ...] = ()
    """Numbers at which a column was cut, at `QUANTILES` of its cases; none: its values are the groups."""


def read_lines(path: Path, option: str) -> tuple[tuple[str, ...], list[tuple[int, dict[str, str]]]]:
    """Columns, and number and entries of each line that is not blank; separated by commas, semicolons or tabs, as the header is.

    Each line is parsed by itself, so that a quote that is not closed does not swallow the next ones. Raises `AutosegError` for
    what is no table, naming ``option``.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fix = f"pass a CSV file in UTF-8 with {option}"
        raise _invalid(path, f"could not be read ({error})", fix, code="groups.unreadable") from error
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    header = numbered[0][1] if numbered else ""
    separator = max(",;\t", key=header.count)
    rows, issues = [], []
    for number, line in numbered:
        try:
            (entries,) = csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True)
            rows.append((number, [entry.strip() for entry in entries]))
        except csv.Error as error:
            message, fix = f"not a line of a table ({error})", "correct it; a quote must be closed on its line"
            issues.append(Issue(code="groups.invalid_line", where=f"{path}, line {number}", message=message, fix=fix))
    if issues:
        raise AutosegError(*issues, headline=f"{path} cannot be used:")
    columns = tuple(rows[0][1]) if rows else ()
    return columns, [
        (number, dict(zip(columns, entries, strict=False))) for number, entries in rows[1:] if any(entries)
    ]


def require_columns(path: Path, columns: Sequence[str], names: Sequence[str]) -> None:
    """Raise `AutosegError` where one of the ``names`` is not there exactly once."""
    for name in names:
        if columns.count(name) != 1:
            message = f"{count_noun(columns.count(name), 'column')} {name} in the first line {','.join(columns)!r:.200}"
            fix = f"name the columns {' and '.join(names)} once each in the first line"
            raise _invalid(path, message, fix, code="groups.columns")


def require_entries(path: Path, rows: Sequence[object], option: str) -> None:
    """Raise `AutosegError` for a table of no lines."""
    if not rows:
        message, fix = "lists no cases", f"write one line for each case, or omit {option}"
        raise _invalid(path, message, fix, code="groups.empty")


def read_groups_table(path: Path) -> GroupsTable:
    """A table with a column ``case`` or ``patient`` (or ``participant_id``) and any others.

    Raises `AutosegError` with all that is wrong: no such column, none beside it, columns or lines that are there twice.
    """
    option = "--groups-table"
    columns, rows = read_lines(path, option)
    whom = [name for name in columns if name.lower() in NAMES_OF_CASES]
    others = [name for name in columns if name and name not in whom]
    if len(whom) != 1 or not others:
        message = (
            f"{count_noun(len(whom), 'column')} of cases or patients and {len(others)} of groups in the first line"
        )
        fix = "name one column case or patient, and others as you like: site, scanner, sex, age"
        raise _invalid(path, message, fix, code="groups.columns")
    require_columns(path, columns, others)
    require_entries(path, rows, option)
    values: dict[str, dict[str, str]] = {}
    issues = []
    for number, row in rows:
        name = row[whom[0]]
        own = {column: value for column in others if (value := row.get(column, "")).lower() not in UNKNOWN}
        if values.setdefault(name, own) != own:
            message, fix = f"{whom[0]} {name!r} has another line with other values", "keep one of the lines"
            issues.append(Issue(code="groups.contradiction", where=f"{path}, line {number}", message=message, fix=fix))
    if issues:
        raise AutosegError(*issues, headline=f"{path} cannot be used:")
    return GroupsTable(path=path, columns=tuple(others), values=values)


def groupings_of(
    table: GroupsTable, patients: Mapping[str, str | None]
) -> tuple[tuple[Grouping, ...], tuple[Issue, ...]]:
    """Columns as groups of the cases of ``patients`` (case -> its patient, if known), and notes on those that are none.

    A line is that of a case, or else of its patient. Words are groups as they are; of numbers, more than `MOST_WHOLE` different
    ones are cut at `QUANTILES` of the cases. Raises `AutosegError` where no line is of any case.
    """
    rows = {case: table.values.get(case) or table.values.get(patient or case) for case, patient in patients.items()}
    known = {case: row for case, row in rows.items() if row}
    if not known:
        message = (
            f"no line is of a case ({shorten(sorted(table.values))}, but the cases are {shorten(sorted(patients))})"
        )
        raise _invalid(table.path, message, "name cases or patients as they are named here", code="groups.no_case")
    found, notes = [], []
    for column in table.columns:
        own = {case: row[column] for case, row in known.items() if column in row}
        grouping = _grouping(column, own)
        if len(grouping.groups) < 2 or len(grouping.groups) > max(2, MOST_GROUPS * len(own)):
            message = (
                f"{count_noun(len(set(own.values())), 'value')} in {count_noun(len(own), 'case')}: no groups to compare"
            )
            notes.append(Issue(code="groups.none", severity="note", where=f"column {column}", message=message))
            continue
        found.append(grouping)
        if missing := sorted(patients.keys() - own.keys()):
            message = f"{count_noun(len(missing), 'case')} without a value: {shorten(missing)}"
            notes.append(Issue(code="groups.no_value", severity="note", where=f"column {column}", message=message))
    return tuple(found), tuple(notes)


def _grouping(column: str, of_case: Mapping[str, str]) -> Grouping:
    """The groups of one column: its words, its few numbers, or ranges of its many."""
    numbers = {case: _number(value) for case, value in of_case.items()}
    known = np.array([number for number in numbers.values() if number is not None], np.float64)
    counts = Counter(of_case.values())
    if len(known) < len(of_case) or not len(known):
        return Grouping(column=column, groups=tuple(sorted(counts)), of_case=of_case)
    if len(set(known.tolist())) <= MOST_WHOLE:
        names = {case: f"{number:g}" for case, number in numbers.items()}
        return Grouping(column=column, groups=tuple(sorted(set(names.values()), key=float)), of_case=names)
    cuts = tuple(dict.fromkeys(float(cut) for cut in np.quantile(known, QUANTILES, method="higher")))
    places = {
        case: int(np.searchsorted(cuts, number, side="right")) for case, number in numbers.items() if number is not None
    }
    titles = [
        f"below {cuts[0]:g}",
        *(f"{low:g} to below {high:g}" for low, high in pairwise(cuts)),
        f"from {cuts[-1]:g}",
    ]
    there = sorted(set(places.values()))
    return Grouping(
        column=column,
        groups=tuple(titles[place] for place in there),
        of_case={case: titles[place] for case, place in places.items()},
        cuts=cuts,
    )


def _number(value: str) -> float | None:
    try:
        number = float(value.replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _invalid(path: Path, message: str, fix: str, *, code: str) -> AutosegError:
    return AutosegError(Issue(code=code, where=str(path), message=message, fix=fix))

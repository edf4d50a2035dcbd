"""Counts, long lists, errors of libraries and issues of one kind in messages, and how names are compared."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from itertools import takewhile

from planners import Issue

NUM_SHOWN = 6
"""Names shown of a longer list in a message."""
GROUPED = 3
"""Issues of one kind from which on they are said together."""


def count_noun(number: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_duration(seconds: float) -> str:
    """A duration as text: ``8 s``, ``3 min 20 s``, ``1 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or its type if none does."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)


def as_line(issue: Issue) -> str:
    """``Warning: where: what; fix``."""
    return f"{issue.severity.capitalize()}: {issue}"


def shorten(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more


def grouped(issues: Sequence[Issue]) -> list[Issue]:
    """Issues in order; three or more with the same code and fix become one that names their places.

    What all places begin with is said once: ``3d_fullres, fold 0, class liver, class spleen … and 6 more``.
    """
    kinds: dict[tuple[str, ...], list[Issue]] = {}
    for issue in issues:
        kinds.setdefault((issue.code, issue.severity, issue.fix), []).append(issue)
    result = []
    for same in kinds.values():
        if len(same) < GROUPED:
            result += same
            continue
        places = [issue.where.split(", ") for issue in same]
        common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*places, strict=False))]
        names = shorten(list(filter(None, dict.fromkeys(", ".join(place[len(common) :]) for place in places))))
        messages = {issue.message for issue in same}
        changes = {
            "where": ", ".join([*common, *filter(None, [names])]),
            "message": same[0].message if len(messages) == 1 else f"for example, {same[0].message}",
        }
        result.append(same[0].model_copy(update=changes))
    return result


def condensed(issues: Iterable[Issue]) -> list[Issue]:
    """Issues with those of one kind together: of many, the first `GROUPED` in full, and one that counts the others.

    Issues of cases are of one kind if they have the same code, others if they have the same code and fix. Several of one place are
    different ones, and stay.
    """
    kinds: dict[tuple[str, ...], list[Issue]] = {}
    for issue in issues:
        kind = ("",) if issue.case is not None else (issue.fix, "" if issue.fix else issue.message)
        kinds.setdefault((issue.code, issue.severity, *kind), []).append(issue)
    result = []
    for same in kinds.values():
        places = {issue.case or issue.where for issue in same}
        if len(same) <= GROUPED + 1 or len(places) < len(same):
            result += same
            continue
        rest = same[GROUPED:]
        names = shorten([issue.case or issue.where for issue in rest])
        changes = {"where": f"{len(rest)} more like it", "message": names, "fix": "", "case": None}
        result += [*same[:GROUPED], rest[0].model_copy(update=changes)]
    return result


def bare_name(name: str) -> str:
    """A name without case, spaces and signs: two names that agree in this are meant to be the same."""
    return re.sub(r"[\W_]+", "", name.casefold())


def suggest(name: str, known: Collection[str]) -> str:
    """A fix for an unknown name: the nearest of the ``known`` ones, or the first of them."""
    close = [each for each in known if name.startswith(f"{each}.")] or get_close_matches(name, known, n=2)
    return f"did you mean {' or '.join(close)}?" if close else f"use one of {shorten(sorted(known))}"

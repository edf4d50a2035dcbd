"""Counts and long lists in messages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches

NUM_SHOWN = 6
"""Names shown of a longer list in a message."""


def count_noun(number: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shorten(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more


def suggest(name: str, known: Collection[str]) -> str:
    """A fix for an unknown name: the nearest of the ``known`` ones, or the first of them."""
    close = [each for each in known if name.startswith(f"{each}.")] or get_close_matches(name, known, n=2)
    return f"did you mean {' or '.join(close)}?" if close else f"use one of {shorten(sorted(known))}"

"""Finds the files of a folder that the patterns of a layout name."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets_spec.layout import ENDING, FIELD


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """One file, relative to the dataset's folder, with the text of each field of the pattern that it matched."""

    path: str
    fields: Mapping[str, str]


def list_files(
    folder: Path, patterns: Iterable[str], *, fields: Mapping[str, str], skip: Sequence[str] = ()
) -> tuple[str, ...]:
    """Files in ``folder`` and in those folders below it that ``patterns`` lead into, as paths relative to it, sorted.

    Folders that a pattern ending in ``/`` names are listed too, with that ``/``. Other folders are not opened, so that a wrong folder with a million files is seen to be wrong at once. A file or
    folder whose name matches one of the shell patterns ``skip`` is passed over. Raises `OSError` where a folder cannot
    be listed.
    """
    parts = [pattern.split("/") for pattern in patterns]
    parents = {"/".join(names[:depth]) for names in parts for depth in range(1, len(names))}
    ways = [compile_pattern(parent, fields=fields, endings=()) for parent in sorted(parents)]
    series = [compile_pattern("/".join(names), fields=fields, endings=()) for names in parts if names[-1] == ""]
    return tuple(sorted(_walk(folder, "", ways, series, skip)))


def _walk(
    folder: Path, prefix: str, ways: Sequence[re.Pattern[str]], series: Sequence[re.Pattern[str]], skip: Sequence[str]
) -> Iterator[str]:
    for entry in os.scandir(folder):
        path = prefix + entry.name
        if any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in skip):
            continue
        if not entry.is_dir():
            yield path
            continue
        if any(pattern.fullmatch(f"{path}/") for pattern in series):
            yield f"{path}/"
        if any(way.fullmatch(path) for way in ways):
            yield from _walk(Path(entry.path), f"{path}/", ways, series, skip)


def match_files(
    files: Iterable[str], patterns: Iterable[str], *, fields: Mapping[str, str], endings: Sequence[str]
) -> tuple[FoundFile, ...]:
    """The ``files`` that match one of ``patterns`` as a whole, each by the first that it matches, in order of ``files``.

    ``fields`` gives the regular expression of a field, ``endings`` what ``{ending}`` stands for, in any case of letters.
    """
    expressions = [compile_pattern(pattern, fields=fields, endings=endings) for pattern in patterns]
    found = []
    for path in files:
        matches = (expression.fullmatch(path) for expression in expressions)
        match = next((match for match in matches if match is not None), None)
        if match is not None:
            found.append(FoundFile(path=path, fields=match.groupdict()))
    return tuple(found)


def compile_pattern(pattern: str, *, fields: Mapping[str, str], endings: Sequence[str]) -> re.Pattern[str]:
    """The regular expression of a path pattern as `datasets_spec.CaseFiles` explains it."""
    any_ending = "|".join(re.escape(ending) for ending in sorted(endings, key=len, reverse=True))
    parts, seen = [], set()
    for position, text in enumerate(FIELD.split(pattern)):
        if position % 2 == 0:
            parts.append(re.escape(text))
        elif text in seen:
            parts.append(f"(?P={text})")
        else:
            # The shortest text is taken, so that of `a.nii.gz` the ending is `.nii.gz` and the case `a`.
            parts.append(
                f"(?P<{text}>(?i:{any_ending}))" if text == ENDING else f"(?P<{text}>{fields.get(text, '[^/]+?')})"
            )
            seen.add(text)
    return re.compile("".join(parts))

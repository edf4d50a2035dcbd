"""Files of cases: those that match the patterns of a layout, or that a table or JSON file lists."""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from autoseg.imaging.readers import image_stem, is_debris, split_part
from autoseg.issues import AutosegError, Issue
from autoseg.wording import shorten
from datasets_spec import CaseList
from datasets_spec.layout import ENDING, FIELD


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """One file, relative to the dataset's folder, with the text of each field of the pattern that it matched."""

    path: str
    fields: Mapping[str, str]
    num_free: int = 0
    """Fields of the pattern that may be any text."""

    @property
    def channel(self) -> str:
        """Text of its ``{channel}``; empty where the layout has none."""
        return self.fields.get("channel") or ""


def list_files(
    folder: Path, patterns: Iterable[str], *, fields: Mapping[str, str], skip: Sequence[str] = ()
) -> tuple[str, ...]:
    """Files in ``folder`` and in the folders that ``patterns`` lead into, as sorted paths relative to it.

    Folders that a pattern ending in ``/`` names are listed too, with that ``/``. Other folders are not opened: pointing at a
    folder of a million other files costs nothing. Names that `is_debris`, and those that match a shell pattern of ``skip``, are skipped. Raises
    `OSError` where a folder cannot be listed.
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
        if is_debris(entry.name) or any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in skip):
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
    matches = ((path, next(filter(None, (each.fullmatch(path) for each in expressions)), None)) for path in files)
    return tuple(
        FoundFile(path=path, fields=found, num_free=len(found.keys() - {*fields, ENDING}))
        for path, match in matches
        if match is not None
        for found in [match.groupdict()]
    )


def compile_pattern(pattern: str, *, fields: Mapping[str, str], endings: Sequence[str]) -> re.Pattern[str]:
    """The regular expression of a path pattern as `datasets_spec.CaseFiles` explains it."""
    used = ((name, fields[name]) for name in dict.fromkeys(FIELD.findall(pattern)) if name in fields)
    return _compiled(pattern, tuple(used), tuple(endings))


@lru_cache(4096)  # patterns of all layouts, which every search looks for
def _compiled(pattern: str, used: tuple[tuple[str, str], ...], endings: tuple[str, ...]) -> re.Pattern[str]:
    fields = dict(used)
    any_ending = "|".join(re.escape(ending) for ending in sorted(endings, key=len, reverse=True))
    parts, seen = [], set()
    for position, text in enumerate(FIELD.split(pattern)):
        if position % 2 == 0:
            parts.append(re.escape(text))
        elif text in seen:
            parts.append(f"(?P={text})")
        else:
            # Non-greedy: of `a.nii.gz` the ending is `.nii.gz` and the case `a`.
            parts.append(
                f"(?P<{text}>(?i:{any_ending}))" if text == ENDING else f"(?P<{text}>{fields.get(text, '[^/]+?')})"
            )
            seen.add(text)
    return re.compile("".join(parts))


IMAGE = re.compile(r"(?i:images?|img|scan|volume)(?:[_ -](?P<channel>.+))?")
LABEL = re.compile(r"(?i:labels?|masks?|seg|segmentation|annotation|gt)(?:[_ -](?P<name>.+))?")
CASE = re.compile(r"(?i:case|id|name|case[_ -]?id)")
PATIENT = re.compile(r"(?i:patient|group|subject)(?:[_ -]?id)?")
SPLIT = re.compile(r"(?i:split|set|subset|fold)")
TEST = re.compile(r"(?i:tests?|testing|ts|predict|unlabell?ed)")
SECTIONS = {"training": False, "train": False, "validation": False, "val": False, "test": True, "testing": True}
"""Lists in a JSON object, and whether they hold cases to predict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCases:
    """Files of a list: paths relative to its folder, absolute ones outside it; fields ``case``, ``channel``, ``class``, ``patient``."""

    images: list[FoundFile] = field(default_factory=list)
    labels: list[FoundFile] = field(default_factory=list)
    test: list[FoundFile] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Row:
    where: str
    entries: Mapping[str, Any]
    is_test: bool


def find_list(root: Path, listing: CaseList) -> Path | None:
    """The first file of ``root`` that ``listing`` names and that is a list of cases, if any."""
    for pattern in listing.files:
        for path in sorted(root.glob(pattern)):
            if path.is_file() and not is_debris(path) and _rows(path, listing.form, strict=False):
                return path
    return None


def read_case_list(path: Path, form: str) -> ListedCases:
    """The cases that ``path`` lists; files are named relative to its folder, or absolutely.

    Columns (entries) are ``image`` or ``image_NAME`` (one for each channel, in their order; or a list), ``label`` or
    ``mask``, or ``label_NAME`` (one mask for each class), and optionally ``case``, ``patient`` and ``split``, where
    ``test`` marks cases to predict. The default id of a case is the name of its image. Rows without a label are cases to
    predict. Faulty rows and missing files become ``issues``. Raises `AutosegError` for a file that cannot be read.
    """
    cases = ListedCases()
    seen: dict[str, str] = {}
    for row in _rows(path, form, strict=True):
        row_images, row_labels, fields = _files_of(row.entries)
        case_id = fields.get("case") or (image_stem(row_images[0][1]) if row_images else "")
        common = {"case": case_id} | ({"patient": fields["patient"]} if fields.get("patient") else {})
        several = len(row_images) > 1
        images = [_found(path, file, common | ({"channel": key} if several else {})) for key, file in row_images]
        masks = [_found(path, file, common | ({"class": key} if key else {})) for key, file in row_labels]
        issue = _row_issue(path, row, images, masks, seen)
        if issue is not None:
            cases.issues.append(issue)
            continue
        seen[case_id] = row.where
        if row.is_test or not masks:
            cases.test.extend(images)
        else:
            cases.images.extend(images)
            cases.labels.extend(masks)
    return cases


def _row_issue(
    path: Path, row: _Row, images: Sequence[FoundFile], masks: Sequence[FoundFile], seen: Mapping[str, str]
) -> Issue | None:
    if not images:
        return Issue(code="list.no_image", where=row.where, message="has no image", fix="add its image")
    case_id = images[0].fields["case"]
    if case_id in seen:
        message = f"case {case_id} is already listed ({seen[case_id]})"
        fix = "list every case once, or add a column named case with different names"
        return Issue(code="list.repeated_case", where=row.where, message=message, fix=fix)
    missing = [file.path for file in (*images, *masks) if not split_part(path.parent / file.path)[0].exists()]
    message = f"case {case_id}: {shorten(missing)} does not exist"
    fix = "correct the path, which is relative to the folder of the list, or remove the case"
    return Issue(code="list.missing_file", where=row.where, message=message, fix=fix) if missing else None


def _found(path: Path, file: str, fields: Mapping[str, str]) -> FoundFile:
    absolute = os.path.normpath(path.parent / file)
    inside = os.path.relpath(absolute, path.parent)
    return FoundFile(path=absolute if inside.startswith("..") else inside, fields=fields)


def _files_of(entries: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]], dict[str, str]]:
    """Images by channel, labels by class, and the other fields of one row."""
    images: list[tuple[str, str]] = []
    labels: list[tuple[str, str]] = []
    fields: dict[str, str] = {}
    for key, value in entries.items():
        name = str(key).strip()
        if value is None or value == "" or value == []:
            continue
        if (match := IMAGE.fullmatch(name)) is not None:
            images += _named(match["channel"], value)
        elif (match := LABEL.fullmatch(name)) is not None:
            labels += _named(match["name"], value)
        elif CASE.fullmatch(name):
            fields["case"] = str(value).strip()
        elif PATIENT.fullmatch(name):
            fields["patient"] = str(value).strip()
    return images, labels, fields


def _named(name: str | None, value: Any) -> list[tuple[str, str]]:
    """One file, several in order, or several by name."""
    if isinstance(value, Mapping):
        return [(str(key), str(file)) for key, file in value.items()]
    if isinstance(value, list):
        return [(f"{index:04d}", str(file)) for index, file in enumerate(value)]
    return [(name or "", str(value).strip())]


def _rows(path: Path, form: str, *, strict: bool) -> list[_Row]:
    """Rows of a list. A file that is not one has none; with ``strict``, one that cannot be read is an error."""
    try:
        text = path.read_text("utf-8-sig")
        return _table_rows(path, text) if form == "table" else _json_rows(path, json.loads(text), form)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError, csv.Error) as error:
        if not strict:
            return []
        message = f"could not be read as a list of cases ({error})"
        raise AutosegError(
            Issue(code="list.unreadable", where=str(path), message=message, fix="correct the file")
        ) from error


def _table_rows(path: Path, text: str) -> list[_Row]:
    header = text.partition("\n")[0]
    delimiter = max("\t;,", key=header.count)
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    if not any(IMAGE.fullmatch(name) for name in names) or not any(LABEL.fullmatch(name) for name in names):
        return []
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    split = next((name for name in rows.fieldnames or () if SPLIT.fullmatch(name.strip())), None)
    return [
        _Row(
            f"{path}, line {rows.line_num}",
            {k: v for k, v in row.items() if isinstance(k, str)},
            split is not None and bool(TEST.fullmatch((row[split] or "").strip())),
        )
        for row in rows
    ]


def _json_rows(path: Path, content: Any, form: str) -> list[_Row]:
    if isinstance(content, list) and form != "nnunet":
        return list(_section(path, "", content, is_test=False))
    if not isinstance(content, dict):
        return []
    if form == "nnunet":
        listed = content.get("dataset")
        entries = listed.items() if isinstance(listed, dict) else ()
        return [
            _Row(f"{path}, dataset.{case}", {"case": case, **entry}, is_test=False)
            for case, entry in entries
            if isinstance(entry, dict)
        ]
    return [
        row
        for name, is_test in SECTIONS.items()
        if isinstance(content.get(name), list)
        for row in _section(path, name, content[name], is_test=is_test)
    ]


def _section(path: Path, name: str, entries: list[Any], *, is_test: bool) -> Iterable[_Row]:
    for number, entry in enumerate(entries):
        found = entry if isinstance(entry, dict) else {"image": entry} if isinstance(entry, str) else {}
        yield _Row(f"{path}, {name}[{number}]", found, is_test or bool(TEST.fullmatch(str(found.get("split", "")))))

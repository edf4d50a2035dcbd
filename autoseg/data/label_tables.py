"""Names of label values in the tables of BIDS: ``dseg.tsv`` beside a label map or above it, with columns ``index`` and ``name``."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from autoseg.imaging.readers import image_stem
from autoseg.issues import UNNAMED, Issue

SUFFIX = "dseg"
"""Last word of the name of a discrete segmentation, and of the table that belongs to it."""
BACKGROUND = 0


def find_label_names(root: Path, label_files: Iterable[Path]) -> tuple[dict[int, str], list[Issue]]:
    """Names by value from the tables of all ``label_files`` that have one, and what is wrong with these tables.

    As everywhere in BIDS, a table belongs to the label maps whose names have all words of its own, in its folder and below;
    of several the nearest one counts, then that with the most words. Tables that cannot be used are a warning, two names
    for one value an error: the label maps mean different things.
    """
    names: dict[int, str] = {}
    origin: dict[int, Path] = {}
    findings = []
    tables = {_table_of(root, file) for file in label_files}
    for path in sorted(table for table in tables if table is not None):
        try:
            named = _read_table(path)
        except (OSError, ValueError, csv.Error) as error:
            findings.append(
                _finding(
                    "warning",
                    path,
                    f"names no labels ({error}): they are named by their values",
                    "write a column index and a column name, parted by tabulators",
                )
            )
            continue
        for value, name in named.items():
            if names.setdefault(value, name) != name:
                findings.append(
                    _finding(
                        "error",
                        path,
                        f"value {value} is {name}, but {names[value]} in {origin[value]}",
                        "correct the tables, or give the label maps the same values for the same structures",
                    )
                )
            origin.setdefault(value, path)
    return names, findings


def _table_of(root: Path, file: Path) -> Path | None:
    words = image_stem(file).split("_")
    if words[-1] != SUFFIX:
        return None
    folder = file.parent
    while folder.is_relative_to(root):
        fitting = [path for path in _tables(folder) if set(path.stem.split("_")) <= set(words)]
        if fitting:
            return max(fitting, key=lambda path: len(path.stem.split("_")))
        folder = folder.parent
    return None


def _tables(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob(f"*{SUFFIX}.tsv")) if path.stem.split("_")[-1] == SUFFIX)


def _read_table(path: Path) -> Mapping[int, str]:
    """Names of the values above 0. Raises `ValueError` where that is no such table."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        missing = [column for column in ("index", "name") if column not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"there is no column {' and no column '.join(missing)}")
        entries = [(_whole(row["index"], rows.line_num), (row["name"] or "").strip()) for row in rows]
    return {value: name for value, name in entries if value != BACKGROUND and name not in ("", "n/a")}


def _whole(text: str | None, line: int) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise ValueError(f"line {line} has the index {text!r}, which is no whole number") from None


def _finding(severity: str, path: Path, found: str, mend: str) -> Issue:
    return Issue.model_validate(
        {"code": UNNAMED, "severity": severity, "case": None, "where": str(path), "message": found, "fix": mend}
    )

"""What classes are called in DICOM: codes and colours of structures of the body, findings and objects, from ``structures.csv``.

Codes are those of SNOMED CT that the DICOM standard lists, with its wording. A class that the table does not name gets a private code.
"""

from __future__ import annotations

import colorsys
import csv
import re
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from planners import Document, DocumentError, Issue

Category = Literal["anatomy", "abnormality", "object", "unspecified"]
Side = Literal["left", "right"]
PRIVATE = "99AUTOSEG"
"""Scheme of the codes of classes that no table names."""
SIDES: Mapping[str, Side] = {"left": "left", "right": "right", "l": "left", "r": "right"}
SHORT_TEXT = 16
"""Characters of a code in DICOM."""
COLUMNS = ("name", "category", "scheme", "code", "meaning", "colour")
GOLDEN = 0.618034
"""Hues at this share of the circle from one another differ however many there are."""

Short = Annotated[str, Field(min_length=1, max_length=SHORT_TEXT, pattern=r"^[^\\]+$")]


class Structure(Document):
    """A row of the table."""

    name: Annotated[str, Field(min_length=1)]
    """As `plain_name` writes it, without ``left`` and ``right`` where both sides have one code."""
    category: Literal["anatomy", "abnormality", "object"]
    scheme: Short
    """``SCT`` (SNOMED CT), ``FMA``, ``DCM`` …, or a private one that begins with 99."""
    code: Short
    meaning: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\\]+$")]
    colour: Annotated[str, Field(pattern=r"^(#[0-9a-fA-F]{6})?$")] = ""
    """``#rrggbb``; empty: one of a series of hues."""


class CodedClass(Document):
    """A class with the code and the colour that DICOM objects show it with."""

    name: str
    category: Category
    scheme: str
    code: str
    meaning: str
    side: Side | None = None
    rgb: tuple[int, int, int]

    @property
    def is_private(self) -> bool:
        """Whether no table names it."""
        return self.scheme == PRIVATE


def plain_name(name: str) -> str:
    """Lower case, with single spaces for ``_`` and ``-``."""
    return " ".join(re.split(r"[\s_\-]+", name.strip().lower()))


@cache
def load_structures() -> Mapping[str, Structure]:
    """The table of the package, by name."""
    return read_structures(Path(__file__).with_name("structures.csv"))


def read_structures(path: Path) -> Mapping[str, Structure]:
    """The table in a CSV file with the columns `COLUMNS`, by name.

    Raises `DocumentError` with all faults and their lines, and `OSError` if the file cannot be read.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS[:-1] if name not in (reader.fieldnames or ())]
        if missing:
            message, fix = f"no column {', '.join(missing)}", f"begin it with {','.join(COLUMNS)}"
            raise DocumentError(str(path), [_fault("line 1", message, fix)])
        found: dict[str, Structure] = {}
        faults: list[Issue] = []
        for row in reader:
            place = f"line {reader.line_num}"
            try:
                structure = Structure.model_validate({name: (row.get(name) or "").strip() for name in COLUMNS})
            except ValidationError as error:
                faults += [_fault(place, f"{each['loc'][0]}: {each['msg']}", "correct it") for each in error.errors()]
                continue
            name = plain_name(structure.name)
            if name in found:
                faults.append(_fault(place, f"a second {structure.name}", "remove one"))
            found[name] = structure
    if faults:
        raise DocumentError(str(path), faults)
    return found


def _fault(where: str, message: str, fix: str) -> Issue:
    return Issue(code="structures.bad_row", where=where, message=message, fix=fix)


def coded_classes(names: tuple[str, ...], more: Mapping[str, Structure] | None = None) -> tuple[CodedClass, ...]:
    """Codes of classes of these names; rows of the table ``more`` come before those of the package."""
    table = {**load_structures(), **(more or {})}
    return tuple(_coded(name, index, table) for index, name in enumerate(names))


def _coded(name: str, index: int, table: Mapping[str, Structure]) -> CodedClass:
    plain = plain_name(name)
    for found, side in _readings(plain):
        if found in table:
            row = table[found]
            fields = row.model_dump(include={"category", "scheme", "code", "meaning"})
            return CodedClass(name=name, side=side, rgb=_rgb(row.colour, index), **fields)
    code = plain if len(plain) <= SHORT_TEXT and "\\" not in plain else sha256(plain.encode()).hexdigest()[:SHORT_TEXT]
    return CodedClass(name=name, category="unspecified", scheme=PRIVATE, code=code, meaning=plain, rgb=_rgb("", index))


def _readings(plain: str) -> Iterator[tuple[str, Side | None]]:
    """The name itself, and, where one word is a side, the rest and that side; ``l`` and ``r`` count in front only."""
    yield plain, None
    words = plain.split(" ")
    sides = [k for k, word in enumerate(words) if word in SIDES and (len(word) > 1 or k == 0)]
    if len(sides) == 1 and len(words) > 1:
        (k,) = sides
        yield " ".join(words[:k] + words[k + 1 :]), SIDES[words[k]]


def _rgb(colour: str, index: int) -> tuple[int, int, int]:
    if colour:
        red, green, blue = bytes.fromhex(colour[1:])
    else:
        red, green, blue = (round(255 * each) for each in colorsys.hsv_to_rgb(index * GOLDEN % 1, 0.65, 0.9))
    return red, green, blue

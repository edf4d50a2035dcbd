"""What DICOM objects say of themselves: what was drawn, and what drew it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from datasets_spec import CodedClass
from datasets_spec.structures import PRIVATE

NAME = "autoseg"
LONG, SHORT = 64, 16
"""Characters of a long and of a short text in DICOM."""
SERIES_NUMBER = 1000
"""Of the new series, plus that of the source: viewers sort by it."""
MOST_SERIES_NUMBER = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnClass:
    """A class and the values that it has in label maps, several where classes overlap."""

    coded: CodedClass
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """The model and how it was used."""

    version: str
    """Of autoseg."""
    model: str
    """Name of the model."""
    key: str
    """Changes with the weights of the model and with their use."""
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        """Description of the new series."""
        return line(f"{NAME} {self.model}")

    @property
    def short(self) -> str:
        """For formats that leave 80 characters."""
        return f"{NAME} {self.version}, model {self.key[:16]}"

    @property
    def told(self) -> str:
        """Everything in one line."""
        return ", ".join(f"{name}={value}" for name, value in (("model", self.key), *self.parameters))


def line(text: str, size: int = LONG) -> str:
    """``text`` as one value of a DICOM text of at most ``size`` characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).replace("\\", "/").split())[:size].strip()


def numbered(labels: NDArray[np.integer], classes: Sequence[DrawnClass]) -> NDArray[np.integer] | None:
    """The label map with the numbers 1, 2, 3 … of classes in their order as values; None where classes overlap."""
    values = [value for each in classes for value in each.values]
    if len(set(values)) < len(values):
        return None
    table = np.zeros(max(int(labels.max()), *values) + 1, np.uint8 if len(classes) < 2**8 else np.uint16)
    for number, each in enumerate(classes, start=1):
        table[list(each.values)] = number
    found: NDArray[np.integer] = table[labels]
    return found


def series_number(about: Any) -> int:
    """Of the new series: that of its source and `SERIES_NUMBER`."""
    found = str(about.get("SeriesNumber") or 0)
    own = int(found) if found.isdecimal() else 0
    return own + SERIES_NUMBER if own <= MOST_SERIES_NUMBER - SERIES_NUMBER else SERIES_NUMBER


def name_private_scheme(target: Dataset, classes: Sequence[DrawnClass]) -> None:
    """Say in ``target`` what the private codes of its classes are, if it has any."""
    if any(each.coded.is_private for each in classes):
        scheme = Dataset()
        scheme.CodingSchemeDesignator, scheme.CodingSchemeName = PRIVATE, "Names of classes of autoseg models, private"
        target.CodingSchemeIdentificationSequence = [scheme]

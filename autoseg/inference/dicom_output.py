"""Predictions as DICOM objects: what a model's classes are called there, and which cases can be written."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery.inputs import Inputs
from autoseg.evaluation.metrics import evaluated_classes
from autoseg.imaging.writers import DrawnClass, Kind, Maker, parse_kind, require_classes, require_source, write_object
from autoseg.issues import AutosegError, Issue
from autoseg.wording import shorten
from datasets_spec import Structure, coded_classes, read_structures
from planners import DocumentError

ENDING = ".dcm"


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomOutput:
    """How the label maps of a model are written as DICOM objects."""

    kind: Kind
    classes: tuple[DrawnClass, ...]
    maker: Maker

    def write(self, path: Path, labels: NDArray[np.integer], images: Sequence[Path]) -> None:
        """Write a label map (Z, Y, X), with the values of the dataset's files, of the series ``images``."""
        write_object(path, labels, self.classes, kind=self.kind, images=images, maker=self.maker)

    def require_place(self, path: Path) -> None:
        """Raise `AutosegError` for a file that does not end as DICOM files do."""
        if not path.name.lower().endswith(ENDING):
            message, fix = f"--as {self.kind} writes a DICOM file", f"choose a name that ends in {ENDING}, or a folder"
            raise AutosegError(Issue(code="predict.one_file", where=str(path), message=message, fix=fix))

    def fitting(self, inputs: Inputs, *, skip_bad: bool) -> Inputs:
        """The cases that are DICOM series to which an object can refer.

        Raises `AutosegError` with the faults of all others, before anything is predicted; with ``skip_bad`` they are issues.
        """
        cases, faults = [], []
        for case in inputs.cases:
            try:
                require_source(case.images[0])
                cases.append(case)
            except AutosegError as error:
                faults += [issue.model_copy(update={"case": case.case_id}) for issue in error.issues]
        found = Inputs(cases=tuple(cases), issues=(*inputs.issues, *faults))
        if faults and not skip_bad:
            errors = [issue for issue in found.issues if issue.severity == "error"]
            raise AutosegError(
                *errors, headline="nothing was predicted: not all images can be written as DICOM objects"
            )
        return found

    def file_values(self, dataset: DatasetDescription) -> tuple[int, ...]:
        """The number of a segment for each internal label value; of classes that overlap, the values of the dataset."""
        if dataset.labels.has_regions:
            return dataset.file_values
        numbers = {label.values[0]: k for k, label in enumerate(dataset.labels.classes, start=1)}
        return tuple(numbers.get(value, value) for value in range(len(dataset.file_values)))


def dicom_output(
    kind: str, terms: Path | None, dataset: DatasetDescription, maker: Maker, say: Callable[[str], None]
) -> DicomOutput:
    """The output of ``kind``, with the codes of the table ``terms`` before those of the package; says which classes have none.

    Raises `AutosegError` for an unknown kind, a bad table, and classes that ``kind`` cannot hold.
    """
    parsed, more = parse_kind(kind), None if terms is None else read_terms(terms)
    classes = evaluated_classes(dataset.labels, dataset.file_values)
    coded = coded_classes(tuple(each.name for each in classes), more)
    drawn = tuple(DrawnClass(coded=c, values=each.values) for c, each in zip(coded, classes, strict=True))
    require_classes(drawn, parsed)
    if private := [each.name for each in coded if each.is_private]:
        say(f"Private codes for {shorten(private)}: no standard code is known (add some with --terms FILE)")
    return DicomOutput(kind=parsed, classes=drawn, maker=maker)


def read_terms(path: Path) -> Mapping[str, Structure]:
    """A table of codes of classes, by name. Raises `AutosegError` with all its faults, and where it cannot be read."""
    try:
        return read_structures(path)
    except DocumentError as error:
        where = str(path)
        raise AutosegError(
            *(each.model_copy(update={"where": f"{where}, {each.where}"}) for each in error.issues)
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message, fix = f"could not be read ({getattr(error, 'strerror', None) or error})", "pass a CSV file in UTF-8"
        raise AutosegError(Issue(code="structures.unreadable", where=str(path), message=message, fix=fix)) from error

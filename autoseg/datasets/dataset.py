"""A dataset as it was found: its cases with their files, its channels and its labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from planners import Document, Labels


class Case(Document):
    """Files of one case, as absolute paths."""

    case_id: str
    images: Annotated[tuple[str, ...], Field(min_length=1)]
    """One file a channel, in channel order; a single file may hold all channels (4D, RGB). A folder: a DICOM series."""
    label: str | None = None
    """None: an unlabelled (test) case."""
    group: str | None = None
    """Cases of one group (patient) stay together in splits."""

    @property
    def image_paths(self) -> tuple[Path, ...]:
        return tuple(Path(path) for path in self.images)


class Finding(Document):
    """Something that the check noticed."""

    severity: Literal["error", "warning", "note"]
    case_id: str | None
    where: str
    found: str
    mend: str


class DatasetDescription(Document):
    """``dataset.json`` of a run folder."""

    schema_version: Literal[1] = 1
    name: str
    root: str
    layout: str
    """Name of the layout that was recognised."""
    channels: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: Labels
    file_values: tuple[int, ...]
    """Value in the user's files of each internal label value; index 0 is the background."""
    file_ending: str
    """Ending of label files, with the dot, e.g. ``.nii.gz``: predictions are written the same way."""
    training: tuple[Case, ...]
    """Labelled cases, sorted by id."""
    test: tuple[Case, ...] = ()
    """Unlabelled cases, sorted by id."""
    unpaired_labels: tuple[str, ...] = ()
    """Label files without an image, as absolute paths: no case, but the check compares them with the others."""
    findings: tuple[Finding, ...] = ()
    content: str | None = None
    """Hash of the content of all files; none where nobody has read them."""

"""What clients of the service ask for and are told, and what the state folder keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from autoseg.issues import Issue
from planners import Document

Format = Literal["nifti", "dicom-seg", "dicom-labelmap", "rtstruct", "image"]
"""A file of an answer: the label map on the grid of the image, DICOM objects of a series, or the first channel of the image itself."""
Wish = Literal["json", "nifti", "dicom-seg", "dicom-labelmap", "rtstruct", "image"]
"""What can be asked for; ``json`` is no file: every job has volumes and notes."""
State = Literal["waiting", "running", "done", "failed"]
FILE_NAMES: dict[Format, str] = {
    "nifti": "mask.nii.gz",
    "dicom-seg": "dicom-seg.dcm",
    "dicom-labelmap": "dicom-labelmap.dcm",
    "rtstruct": "rtstruct.dcm",
    "image": "image.nii.gz",
}
MEDIA_TYPES: dict[Format, str] = {
    **dict.fromkeys(FILE_NAMES, "application/dicom"),
    "nifti": "application/gzip",
    "image": "application/gzip",
}
DICOM = frozenset({"dicom-seg", "dicom-labelmap", "rtstruct"})
"""Formats that only DICOM series have."""
ID_PATTERN = r"^[0-9a-f]{32}$"


class ClassInfo(Document):
    """A class of a model."""

    name: str
    values: tuple[int, ...]
    """In label maps; several where classes overlap."""
    colour: str
    """``#rrggbb``, as in DICOM objects."""


class ModelInfo(Document):
    """A model that is loaded."""

    name: str
    """To be passed as ``model``."""
    channels: tuple[str, ...]
    """In the order in which images must have them."""
    classes: tuple[ClassInfo, ...]
    configurations: tuple[str, ...]
    folds: int
    dice: float | None
    """Cross-validated mean foreground Dice, if it is known."""
    key: str
    """Changes with the weights of the model and with their use."""


class Health(Document):
    """Whether the service works, and how busy it is."""

    status: Literal["ok"] = "ok"
    version: str
    devices: tuple[str, ...]
    uploading: int
    waiting: int
    running: int


class ClassVolume(Document):
    """How much of an image is one class."""

    name: str
    values: tuple[int, ...]
    volume_ml: float | None
    """None for 2D images, which have no thickness."""


class JobStatus(Document):
    """A job: what was asked for, how far it is, and its answer."""

    schema_version: Literal[1] = 1
    id: Annotated[str, Field(pattern=ID_PATTERN)]
    """Whoever knows it can read and remove the answer."""
    state: State
    model: str
    wishes: tuple[Wish, ...]
    ahead: int = 0
    """Jobs that are waiting before this one."""
    progress: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the windows of the image that are computed."""
    seconds: float = 0.0
    """Since it began to run."""
    seconds_left: float | None = None
    """At the pace so far."""
    volumes: tuple[ClassVolume, ...] = ()
    files: Mapping[Format, str] = Field(default_factory=dict)
    """Where the files of the answer are, by format."""
    issues: tuple[Issue, ...] = ()
    """Errors of a failed job; warnings and notes on the image."""
    version: str = ""
    """Of autoseg."""
    model_key: str = ""
    device: str = ""


class Ask(Document):
    """``request.json``: what was asked for, as long as it is not answered."""

    schema_version: Literal[1] = 1
    model: str
    wishes: Annotated[tuple[Wish, ...], Field(min_length=1)]
    images: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the files in the folder of the upload, one per channel or one with all; ``.`` is the folder, a DICOM series."""
    series: str = ""
    """SeriesInstanceUID, where the folder has several."""
    starts: int = 0
    """How often it began to run: a job that ends the process is not tried for ever."""


class Issues(Document):
    """The body of every error."""

    issues: tuple[Issue, ...]

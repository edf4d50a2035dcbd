"""The model of a layout, how cases lie in a folder, and the built-in layouts and public datasets that are read into it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from planners import Document, DocumentError, Issue, read_document

FIELD = re.compile(r"\{(\w*)\}")
ENDING = "ending"
"""The field that stands for the ending of any image format that can be read."""
CLASS = "class"
"""The field that stands for the class of a mask, if each class has its own file."""

Patterns = tuple[str, ...]
Values = int | Annotated[tuple[int, ...], Field(min_length=1)]
EXTENDS = "extends"
"""Key of a layout file: the name of a layout whose entries are its defaults."""


class CaseFiles(Document):
    """Where the files of cases are: patterns of paths relative to the dataset's folder, with ``/`` between parts.

    A pattern is literal text with fields in braces. ``{case}`` is the case id; ``{channel}`` distinguishes the files
    of one case; cases with the same ``{patient}`` stay together; ``{class}`` is the class of a mask; ``{ending}`` is the ending
    of any readable image. Other fields only match. A field never crosses a ``/``; the same field twice must match the
    same text. An image pattern that ends in ``/`` is a folder with one DICOM series; a label pattern that ends so, a folder of
    pictures, one for each file of the image's series, in the order of their names. A file that matches
    a label pattern is not an image, unless ``{class}`` may be any text there and an image pattern has fewer such fields.
    """

    images: Annotated[Patterns, Field(min_length=1)]
    labels: Patterns = ()


class DescriptionFile(Document):
    """A file of the dataset itself that names channels and labels."""

    file: str
    """Path relative to the dataset's folder."""
    form: Literal["decathlon"] = "decathlon"
    """``decathlon``: JSON with ``modality`` or ``channel_names``, ``labels``, and optionally ``test``."""
    required: bool = True
    """Whether it is an issue if it is missing."""


class CaseList(Document):
    """A file of the dataset that lists its cases."""

    files: Annotated[Patterns, Field(min_length=1)]
    """Shell patterns of its name; the first that exists is read."""
    form: Literal["table", "json", "nnunet"]
    """``table``: CSV or TSV with a header line. ``json``: a list of objects, or objects with lists ``training`` and
    ``test``. ``nnunet``: the field ``dataset`` of nnU-Net's ``dataset.json``."""


class NamedVolumes(Document):
    """A text file beside a 4D image that says which of its volumes are cases: lines such as ``ED: 1``."""

    file: str
    keys: Annotated[tuple[str, ...], Field(min_length=1)]
    ending: str
    """At the end of the name of the 4D image, and not in names of cases."""
    images: Patterns = ()
    """4D images of test cases; each is used where its folder has no other test image."""


class Known(Document):
    """What is known of one public dataset, beyond its layout."""

    case: str
    """Regular expression that every case id matches as a whole."""
    training: Annotated[int, Field(ge=0)] | None = None
    """Labelled cases of the whole dataset."""
    test: Annotated[int, Field(ge=0)] | None = None
    modality: dict[Literal["CT", "MR"], str] = Field(default_factory=dict)
    """Where cases differ: regular expression of the case ids of each modality."""
    volumes: NamedVolumes | None = None
    """Which volumes of a 4D image are predicted."""
    licence: str
    source: str
    """Who published it, and where to get it or read about it."""
    unverified: tuple[str, ...] = ()
    """Facts of this file that were not verified in a source: check them before relying on them."""

    def modality_of(self, case_id: str) -> str:
        """Modality of a case; empty where it is not known."""
        return next((name for name, cases in self.modality.items() if re.fullmatch(cases, case_id)), "")


class Layout(Document):
    """One way to lay out a dataset, recognised by the files in the folder; or one dataset, with its channels and labels.

    A folder has this layout if at least one image of ``training``, or of the list, has a label map of the same case.
    """

    schema_version: Literal[1] = 1
    name: str
    title: str
    """Words for the user, e.g. ``Decathlon layout``."""
    expects: str
    """What the folder must contain, in words that follow "looked for"."""
    last_resort: bool = False
    """Whether this layout is considered only where no other one finds a labelled case, and only if the labels are masks."""
    preference: int = 0
    """Of layouts that find the same number of cases, the one with the highest preference is taken."""
    skip: tuple[str, ...] = (".*",)
    """Names of files and folders that are skipped, as shell patterns."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Regular expression of a field, e.g. ``channel = "[0-9]{4}"``; the default is any text without ``/``."""
    case_id: str = "{case}"
    """The case id, made from fields, e.g. ``{patient}_frame{frame}``; without fields all files are one case."""
    training: CaseFiles | None = None
    test: CaseFiles | None = None
    listing: CaseList | None = None
    """A list instead of ``training`` and ``test``."""
    series: str | None = None
    """Which DICOM series to use if a case has several: its number, SeriesInstanceUID or folder, or a shell pattern of its
    description, ignoring case."""
    without_label: Literal["error", "test"] = "error"
    """What an image without a label map is: an error, or a case to predict."""
    labels_by_content: bool = False
    """Whether DICOM SEG and RTSTRUCT files of any name in the folders of the images are labels, where none has the name of one."""
    description: DescriptionFile | None = None

    channels: tuple[str, ...] | dict[str, str] | None = None
    """Names of the channels, in order. With ``{channel}``, its texts in order, or a table from text to name."""
    resample_channels: bool = False
    """Whether channels on other grids are resampled onto that of the first one, which the label map has; else they are errors."""
    repeat_channel: bool = False
    """Whether a case with a single file, of one channel, has it as each of its channels."""
    labels: dict[str, Values] | None = None
    """Name -> value in the label maps, several values: a region; ``background`` is 0 unless it is given, of several values the others count as it; ``ignore`` marks
    voxels that were not annotated. With ``{class}``: name of the class -> any number, which gives the order."""
    colours: dict[str, Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")]] | None = None
    """Instead of ``labels``, where label files are pictures: name -> colour, e.g. ``liver = "#ff0000"``; other colours are
    background."""
    one_hot: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Instead of ``labels``, where label files have a channel for each class: the names of all channels, in order; a channel
    called ``background`` is no class."""
    region_order: tuple[int, ...] | None = None
    """The value of each region, in the order in which they are written (later ones win)."""
    unions: dict[str, Annotated[tuple[str, ...], Field(min_length=2)]] = Field(default_factory=dict)
    """Classes that are scored together as well, by the name of their union: ``"whole hippocampus" = ["Anterior", "Posterior"]``.
    A union takes no part in training or in the mean over classes."""
    threshold: int | None = None
    """Label files hold grey values: from this one on a voxel belongs to the structure."""
    overlap: Literal["regions", "later"] = "regions"
    """Where masks of classes overlap: both are trained as regions, or the later class wins."""
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Cases that must stay together in splits, by patient."""
    patient: str | None = None
    """Regular expression whose match in a case id is the patient."""
    known: Known | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field, expression in self.fields.items():
            _check_expression(f"fields.{field}", expression)
        if self.patient is not None:
            _check_expression("patient", self.patient)
        if self.known is not None:
            for place, expression in [("case", self.known.case), *self.known.modality.items()]:
                _check_expression(f"known.{place}", expression)
        if (self.training is None) == (self.listing is None):
            raise ValueError("either training or listing must be given")
        given = [name for name in ("labels", "colours", "one_hot") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"only one of {' and '.join(given)} can be given")
        if self.one_hot is not None and (len({*self.one_hot}) < len(self.one_hot) or {*self.one_hot} == {"background"}):
            raise ValueError("one_hot must name at least one class besides background, each name once")
        if self.training is not None and not self.training.labels:
            raise ValueError("training.labels must have at least one pattern")
        for pattern in self.patterns:
            for field in FIELD.findall(self.case_id):
                if field not in FIELD.findall(pattern):
                    raise ValueError(f"pattern {pattern!r} has no field {{{field}}}")
        return self

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        labels = self.training.labels if self.training is not None else ()
        if any(each.endswith("/") and CLASS in FIELD.findall(each) for each in labels):
            raise ValueError("a folder of pictures is one label map, so its pattern cannot have {class}")
        names = {*(self.labels or ()), *(self.colours or ()), *(self.one_hot or ())}
        for union, members in self.unions.items():
            if union in names or not (names or {*members}) >= {*members}:
                raise ValueError(f"unions.{union} must have a name of its own, and classes of this layout")
        return self

    @property
    def patterns(self) -> Patterns:
        """All patterns, in the order in which they are declared."""
        return tuple(p for part in (self.training, self.test) if part is not None for p in (*part.images, *part.labels))

    @property
    def has_class_masks(self) -> bool:
        """Whether each class has its own mask file."""
        return self.training is not None and any(CLASS in FIELD.findall(pattern) for pattern in self.training.labels)


def _check_expression(place: str, expression: str) -> None:
    try:
        groups = re.compile(expression).groups
    except re.error as error:
        raise ValueError(f"{place}: {expression!r} is not a regular expression ({error})") from error
    if groups:
        raise ValueError(f"{place}: {expression!r} must not have groups of its own; write (?:...)")


def read_layout(text: str, *, where: str) -> Layout:
    """The layout that ``text`` (TOML) holds; ``where`` names its source in messages.

    ``extends = "name"`` inherits the entries of a layout of the package; ``fields`` are merged entry by entry, everything
    else is replaced. Raises `DocumentError` with all problems and their places.
    """
    content = _with_base(parse_toml(text, where), where)
    return read_document(Layout, json.dumps(content, default=str), where=where)


def read_spec(path: Path) -> Layout:
    """The layout in a spec file, where ``name``, ``title`` and ``expects`` are optional.

    Raises `DocumentError` with all problems, and `OSError` if the file cannot be read.
    """
    where, content = str(path), read_toml(path)
    own = {"name": path.stem, "title": f"spec file {path.name}", "expects": f"files as described in {path.name}"}
    merged = _with_base(content, where)
    return read_document(
        Layout, json.dumps(merged | {k: content.get(k, v) for k, v in own.items()}, default=str), where=where
    )


def load_layouts() -> tuple[Layout, ...]:
    """The layouts of the package, sorted by name."""
    return _load("layouts")


def load_known() -> tuple[Layout, ...]:
    """The known public datasets, sorted by name; each has ``known``."""
    return _load("known")


def all_layouts() -> tuple[Layout, ...]:
    """The layouts of the package, and the known datasets that have one of their own."""
    return (*load_layouts(), *(each for each in load_known() if each.training is not None))


def unknown_layout(name: str, layouts: Iterable[Layout]) -> Issue:
    """The issue that none of ``layouts`` is called ``name``."""
    message = f"layout {name!r} does not exist (available: {', '.join(each.name for each in layouts)})"
    fix = "choose one of these, or describe the folder in a spec file (--spec)"
    return Issue(code="layout.unknown", where="--layout", message=message, fix=fix)


@cache
def _load(folder: str) -> tuple[Layout, ...]:
    files = (resources.files(__package__) / folder).iterdir()
    layouts = [read_layout(file.read_text("utf-8"), where=file.name) for file in files if file.name.endswith(".toml")]
    return tuple(sorted(layouts, key=lambda layout: layout.name))


def _fault(where: str, message: str, fix: str) -> Issue:
    return Issue(code="layout.invalid", where=where, message=message, fix=fix)


def parse_toml(text: str, where: str, *, code: str = "layout.invalid") -> dict[str, Any]:
    """The content of a TOML text. Raises `DocumentError`, with an issue of that ``code``."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DocumentError(where, [Issue(code=code, where="", message=str(error), fix="write it as TOML")]) from error


def read_toml(path: Path, *, code: str = "layout.invalid") -> dict[str, Any]:
    """The content of a TOML file. Raises `DocumentError`, with an issue of that ``code``, and `OSError`."""
    try:
        return parse_toml(path.read_text("utf-8-sig"), str(path), code=code)
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text (byte {error.start})"
        raise DocumentError(str(path), [Issue(code=code, where="", message=message, fix="save it as UTF-8")]) from error


def _with_base(content: dict[str, Any], where: str) -> dict[str, Any]:
    base_name = content.pop(EXTENDS, None)
    if base_name is None:
        return content
    file = resources.files(__package__) / "layouts" / f"{base_name}.toml"
    if not isinstance(base_name, str) or not base_name.isidentifier() or not file.is_file():
        names = ", ".join(layout.name for layout in load_layouts())
        raise DocumentError(
            where, [_fault(EXTENDS, f"layout {base_name!r} does not exist (available: {names})", "choose one of these")]
        )
    base = parse_toml(file.read_text("utf-8"), file.name)
    merged = base | content
    if "fields" in base and "fields" in content:
        merged["fields"] = base["fields"] | content["fields"]
    if "listing" in content or "training" in content:
        merged = {k: v for k, v in merged.items() if k not in {"listing", "training", "test"} or k in content}
    return merged

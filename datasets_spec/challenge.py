"""The model of a challenge: how predictions are packed and scored there, and how sure each fact is."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from datasets_spec.layout import EXTENDS, parse_toml, read_toml
from planners import Document, DocumentError, Issue, read_document

Certainty = Literal["confirmed", "stated", "unconfirmed"]
"""``confirmed``: read in the challenge's own code or in accepted entries. ``stated``: a public page says so.
``unconfirmed``: seen only in participants' code, second hand, or derived; the user is asked to check it."""
DType = Literal["uint8", "int8", "uint16", "int16", "int32", "int64", "float32"]
FACTS = ("upload", "documents", "package", "parts", "limits", "scoring")
"""Entries of a record that are facts of the challenge, and need evidence."""
WHOLE = frozenset({"classes"})
"""Tables that take the place of those of a record that is extended."""
OWN_FIELDS = frozenset({"case", "image", "ending", "class", "slice", "volume", "dataset"})
"""Fields that a name of a submitted file may have besides those of ``case`` and those that are asked for."""


class Evidence(Document):
    """Where some facts of a record were read, and how sure they are."""

    facts: Annotated[tuple[str, ...], Field(min_length=1)]
    """Places in the record, as shell patterns: ``package.archive``, ``parts.*.values``, ``scoring``, which stands for all in it."""
    certainty: Certainty
    source: str
    """A public source: a repository with its commit and file, a page, or a publication."""
    what: str = ""
    """The facts in words that follow "not confirmed:"; required where they were not."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.certainty == "unconfirmed" and not self.what:
            raise ValueError("what must name the facts, since they were not confirmed")
        return self


class Grid(Document):
    """What the challenge demands of the grid of a submitted file, in the axes of the file (x, y, z)."""

    like_image: bool = True
    """Whether it is compared with the grid of the test image."""
    spacing: Annotated[float, Field(ge=0)] = 1e-6
    """Largest relative difference of spacings from the image. NIfTI stores single precision, which is good to 6e-8."""
    origin: Annotated[float, Field(ge=0)] = 1e-4
    """Largest difference of origins from the image, in voxels."""
    direction: Annotated[float, Field(ge=0)] = 1e-6
    """Largest difference of any element of the direction cosines from the image."""
    affine_sum: Annotated[float, Field(ge=0)] | None = None
    """Instead of the three above: largest sum of the absolute differences of the elements of both affines."""
    size: Annotated[tuple[int, ...], Field(min_length=2, max_length=3)] | None = None
    """Number of voxels along x, y, z, if it is the same for all cases."""
    affine_diagonal: tuple[float, float, float] | None = None
    """Diagonal of the NIfTI affine (RAS), if it is the same for all cases; all else in its 3 x 3 part is 0."""
    affine_offset: tuple[float, float, float] | None = None
    """Offset of the NIfTI affine (RAS), in mm, if it is the same for all cases."""


class Package(Document):
    """The file that is uploaded."""

    archive: Literal["zip", "folder"] = "zip"
    """``folder``: files stay as they are."""
    name: str = "submission.zip"
    """Name of the archive or folder; may hold fields that are asked for."""
    strips_top_folder: bool = False
    """Whether the server removes a folder that holds everything else (grand-challenge does)."""
    any_depth: bool = False
    """Whether the grader finds files in any folder of the archive, by their names alone."""
    dtype: DType = "uint8"
    """Type of the voxels that are written."""
    accepts: Annotated[tuple[DType, ...], Field(min_length=1)] | None = None
    """Types of voxels that the grader takes; none: any integers."""
    compressed: bool | None = None
    """Whether the voxels of MetaImage files are compressed; none: either, and they are."""
    missing: Literal["error", "zero"] = "error"
    """What the grader makes of a missing file: ``error`` ends the evaluation, ``zero`` counts as empty."""
    grid: Grid = Grid()
    asks: dict[str, Ask] = Field(default_factory=dict)
    """Fields of names that the user must give (``--fill team=...``)."""


class Ask(Document):
    """A text that only the user knows, such as the name of a team."""

    what: str
    """In words."""
    form: str = "[A-Za-z0-9]+"
    """Regular expression that it matches as a whole."""


Parameter = float | int | bool | str | list[dict[str, Any]]


class Metric(Document):
    """One score, computed for each scored class."""

    name: str
    """A metric of `autoseg.evaluation`, e.g. ``dice``, ``surface_dice``, ``lesion_dice``."""
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    """Of all classes, by name; lengths in mm."""
    of_class: dict[str, dict[str, Parameter]] = Field(default_factory=dict)
    """Parameters that differ for a class."""
    classes: tuple[str, ...] = ()
    """Names of the classes that it is computed for; empty: all."""


class Scoring(Document):
    """How the challenge scores and ranks."""

    classes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Scored classes: name -> values in submitted files, which may overlap; empty: every value is a class."""
    metrics: tuple[Metric, ...] = ()
    of_case_first: bool = False
    """Whether a mean is over the classes that a case has, then over cases; else over cases of each class, then over classes."""
    not_computed: tuple[str, ...] = ()
    """Scores of the challenge that are not computed here, in words."""
    ranking: Literal["rank_then_mean", "mean_then_rank", "mean"] | None = None
    """``rank_then_mean``: teams are ranked for each case, class and metric, then ranks are averaged. ``mean_then_rank``: each
    metric is averaged over cases and classes, then ranked, then ranks are averaged. ``mean``: one average decides."""


class Part(Document):
    """Cases of one kind in a package. Most challenges have one part; one with several tasks has several, each from a run of its own.

    ``case`` and ``file`` are texts with fields in braces, as in layouts. Fields of ``file`` are those of ``case``, those asked for,
    and: ``{case}`` the id of the case, ``{image}`` the name of the test image without its ending, ``{ending}`` the
    ending of the prediction, ``{class}`` a class (one mask file each), ``{slice:03}`` a slice (one picture each, counted
    from 0, digits after the colon), ``{volume}`` the name of the volume of a 4D image (``ED``), ``{dataset}`` the name of the
    dataset's folder.
    """

    datasets: tuple[str, ...] = ()
    """Known datasets (``known/``) whose test images these are; empty: any dataset."""
    case: str = "{case}"
    """The form of case ids; test cases of another form do not belong to this part."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Regular expression of a field of ``case``; the default is any text."""
    images_in: tuple[str, ...] = ()
    """Names of folders; only test images below one of them belong to this part, if any do."""
    file: str
    """Path of a submitted file inside the package."""
    masks: str | None = None
    """The same where the dataset has a mask file for each class; none: ``file``, in which masks become one label map."""
    count: Annotated[int, Field(ge=1)] | None = None
    """Cases of a complete submission, without those left out; none: not known."""
    leave_out: tuple[str, ...] = ()
    """Ids of test cases that must not be submitted."""
    values: tuple[int, ...] | None = None
    """Values that submitted files may hold; none: those of the dataset."""
    classes: dict[str, int] = Field(default_factory=dict)
    """Names of the classes and their values; needed where no known dataset says them, or other values than there."""
    remap: dict[int, int] = Field(default_factory=dict)
    """Value of the dataset's label files -> value to write; other values are written as they are. Where classes have the
    names of the challenge, their values are found by name before."""
    slices_by_file: bool = False
    """With ``{slice}``: whether slices are counted in the order of the names of the files of the image's DICOM series; else, and for
    other images, along z."""
    names_in_header: bool = False
    """Whether the names of the classes are stored in the file (NIfTI extension)."""
    grid: Grid | None = None
    """Where it differs from that of the package."""
    scoring: Scoring | None = None
    """Where each part is scored by itself."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field, expression in self.fields.items():
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f"fields.{field}: {expression!r} is not a regular expression ({error})") from error
        if unknown := {*self.fields} - {*fields_of(self.case)}:
            raise ValueError(f"case {self.case!r} has no field {{{min(unknown)}}}")
        return self

    def fields_of_case(self, case_id: str) -> dict[str, str] | None:
        """Texts of the fields of ``case`` in a case id, with ``case`` itself; none where it has another form."""
        match = re.fullmatch(_expression(self.case, self.fields), case_id)
        return None if match is None else {"case": case_id} | match.groupdict()

    def fields_of_name(self, name: str, given: Mapping[str, str]) -> dict[str, str] | None:
        """Texts of the fields in the path of a file in a package, ``given`` ones as they are; none where it has another form."""
        pattern = self.file if self.case == "{case}" else self.file.replace("{case}", self.case)
        own = {
            "class": "[^/]+",
            "slice": "[0-9]+",
            "image": "[^/]+",
            "volume": "[^/_]+",
            "ending": r"\.[A-Za-z.]+",
            "case": "[^/]+",
        }
        fields = own | self.fields | {field: re.escape(text) for field, text in given.items()}
        match = re.fullmatch(_expression(pattern, fields), name)
        return None if match is None else match.groupdict()

    def case_of(self, fields: Mapping[str, str]) -> str:
        """The case id that the fields of a name give, as far as they do."""
        if all(field in fields for field in fields_of(self.case)):
            return fill(self.case, fields)
        return "_".join(text for field, text in fields.items() if field not in ("class", "slice", "ending"))

    def shown_name(self, given: Mapping[str, str]) -> str:
        """The form of the names in words, digits as N: ``BraTS-GLI-NNNNN-NNN.nii.gz``; ``.*`` is any ending."""
        shown = {"ending": ".*", **given}
        for field, expression in self.fields.items():
            digits = re.fullmatch(r"\[0-9\]\{(\d+)\}", expression)
            shown[field] = "N" * int(digits[1]) if digits else field.upper()
        pattern = self.file if self.case == "{case}" else self.file.replace("{case}", self.case)
        named = {field: shown.get(field, field.upper()) for field in fields_of(pattern)}
        return "".join(literal + ("" if name is None else named[name]) for literal, name, _ in _pieces(pattern))


class Limits(Document):
    """What the rules limit; none: not known."""

    uploads: Annotated[int, Field(ge=1)] | None = None
    """Submissions in ``days`` days."""
    days: Annotated[int, Field(ge=1)] = 1
    in_all: Annotated[int, Field(ge=1)] | None = None
    """Submissions of a team in all."""
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory of a container, in GB."""
    case_s: Annotated[float, Field(gt=0)] | None = None
    """Time that a container has for a case, in seconds."""


class Challenge(Document):
    """One challenge of one year: a file of ``challenges/``, or a user's own."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]
    """For ``--as``."""
    title: str
    """Words for the user, e.g. ``KiTS23``."""
    year: int | None = None
    page: str = ""
    """Address of the challenge."""
    upload: str = ""
    """Where the package goes: an address, or words that follow "upload at"."""
    documents: tuple[str, ...] = ()
    """What must be handed in besides, in words."""
    notes: tuple[str, ...] = ()
    """What a participant should know, as sentences."""
    package: Package = Package()
    parts: Annotated[dict[str, Part], Field(min_length=1)]
    """Name -> part; a lone part is called ``cases``."""
    limits: Limits = Limits()
    scoring: Scoring | None = None
    evidence: tuple[Evidence, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, part in self.parts.items():
            allowed = OWN_FIELDS | {*fields_of(part.case)} | {*self.package.asks}
            if unknown := [field for field in fields_of(part.file) if field not in allowed]:
                raise ValueError(f"parts.{name}.file has the field {{{unknown[0]}}}, which is not defined")
        if unknown := [field for field in fields_of(self.package.name) if field not in {*self.package.asks, "dataset"}]:
            raise ValueError(f"package.name has the field {{{unknown[0]}}}, which is not defined")
        return self

    def facts(self) -> tuple[str, ...]:
        """Places of all facts that the record gives, e.g. ``parts.cases.count``; what is left at its default is none."""
        given = self.model_dump(mode="json", include={*FACTS}, exclude_unset=True)
        return tuple(sorted(_leaves(given)))

    def evidence_of(self, fact: str) -> Evidence | None:
        """The evidence of a fact: the first that names it, or something that it lies in."""
        places = [".".join(fact.split(".")[:n]) for n in range(fact.count(".") + 1, 0, -1)]
        return next((e for e in self.evidence for place in places for f in e.facts if fnmatchcase(place, f)), None)

    def unconfirmed(self, *places: str) -> tuple[str, ...]:
        """What was not confirmed, in words, among the facts below ``places`` (all: none given)."""
        facts = [fact for fact in self.facts() if not places or any(f"{fact}.".startswith(f"{p}.") for p in places)]
        found = [self.evidence_of(fact) for fact in facts]
        return tuple(dict.fromkeys(each.what for each in found if each is not None and each.what))


def fields_of(pattern: str) -> list[str]:
    """Names of the fields of a text with fields in braces."""
    return [name for _, name, _ in _pieces(pattern) if name is not None]


def fill(pattern: str, fields: Mapping[str, Any]) -> str:
    """The text with its fields filled in."""
    return "".join(
        literal + ("" if name is None else format(fields[name], form)) for literal, name, form in _pieces(pattern)
    )


def _pieces(pattern: str) -> Iterator[tuple[str, str | None, str]]:
    """Literal text, the field after it, and the form of this field."""
    for literal, name, form, _ in string.Formatter().parse(pattern):
        yield literal, name, form or ""


def _expression(pattern: str, fields: Mapping[str, str]) -> str:
    """The regular expression of a text with fields; the same field twice is the same text."""
    parts: list[str] = []
    seen: set[str] = set()
    for literal, name, _ in _pieces(pattern):
        parts.append(re.escape(literal))
        if name is not None:
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{fields.get(name, '.+?')})")
            seen.add(name)
    return "".join(parts)


def _leaves(value: Any, place: str = "") -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, entry in value.items():
            yield from _leaves(entry, f"{place}.{name}" if place else str(name))
    else:
        yield place


def read_challenge(text: str, *, where: str) -> Challenge:
    """The challenge that ``text`` (TOML) holds; ``where`` names its source in messages.

    ``extends = "name"`` takes the entries of a challenge of the package that are not given; tables are merged, but for classes; lists are replaced.
    Raises `DocumentError` with all problems and their places.
    """
    content = _with_base(parse_toml(text, where, code="challenge.invalid"), where)
    return read_document(Challenge, json.dumps(content, default=str), where=where)


def read_challenge_file(path: Path) -> Challenge:
    """The challenge in a user's file, where ``name`` and ``title`` are optional. Raises `DocumentError` and `OSError`."""
    where = str(path)
    content = _with_base(read_toml(path, code="challenge.invalid"), where)
    name = re.sub("[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "own"
    return read_document(Challenge, json.dumps({"name": name, "title": path.stem} | content, default=str), where=where)


def load_challenges() -> tuple[Challenge, ...]:
    """The challenges of the package, sorted by name."""
    files = [file for file in _folder().iterdir() if file.name.endswith(".toml")]
    found = [read_challenge(file.read_text("utf-8"), where=file.name) for file in files]
    return tuple(sorted(found, key=lambda challenge: challenge.name))


def load_challenge(name: str) -> Challenge:
    """The challenge of the package that is called ``name``. Raises `LookupError` with the names that there are."""
    file = _folder() / f"{name}.toml"
    if not re.fullmatch("[a-z0-9-]+", name) or not file.is_file():
        raise LookupError(", ".join(challenge_names()))
    return read_challenge(file.read_text("utf-8"), where=file.name)


def challenge_names() -> tuple[str, ...]:
    """Names of the challenges of the package, sorted."""
    return tuple(sorted(file.name[:-5] for file in _folder().iterdir() if file.name.endswith(".toml")))


def _folder() -> Any:
    return resources.files(__package__) / "challenges"


def _with_base(content: dict[str, Any], where: str, above: Sequence[str] = ()) -> dict[str, Any]:
    base_name = content.pop(EXTENDS, None)
    if base_name is None:
        return content
    if not isinstance(base_name, str) or base_name in above or base_name not in challenge_names():
        message = f"challenge {base_name!r} does not exist (available: {', '.join(challenge_names())})"
        raise DocumentError(
            where, [Issue(code="challenge.invalid", where=EXTENDS, message=message, fix="choose one of these")]
        )
    file = _folder() / f"{base_name}.toml"
    base = _with_base(parse_toml(file.read_text("utf-8"), file.name), file.name, (*above, base_name))
    return _merged(base, content)


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    both = {
        k: _merged(base[k], v)
        for k, v in own.items()
        if isinstance(v, dict) and isinstance(base.get(k), dict) and k not in WHOLE
    }
    return base | own | both

"""One layout as a frozen value, and the loader of the layouts that are known.

Out of scope: looking into folders. A layout says what to look for; `autoseg.datasets.discovery` looks.
"""

from __future__ import annotations

import json
import re
import tomllib
from importlib import resources
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from planners import Document, DocumentError, read_document

FIELD = re.compile(r"\{(\w*)\}")
ENDING = "ending"
"""The field that stands for the ending of any image format that can be read."""
MEANINGS = ("case", "channel", "patient")
"""Fields that are understood: the case id, the order of channels, and who must stay together in splits."""

Patterns = tuple[str, ...]


class CaseFiles(Document):
    """Where the files of cases lie: patterns of paths relative to the dataset's folder, with ``/`` between parts.

    A pattern is literal text with fields in braces. ``{case}`` is the case id and must be in every pattern; ``{channel}``
    sorts the files of one case into channels; cases with the same ``{patient}`` stay together; ``{ending}`` is the ending
    of any readable image. Other fields only match. A field never crosses a ``/``; the same field twice must match the
    same text.
    """

    images: Annotated[Patterns, Field(min_length=1)]
    labels: Patterns = ()


class DescriptionFile(Document):
    """A file of the dataset itself that names channels and labels."""

    file: str
    """Path relative to the dataset's folder."""
    form: Literal["decathlon"]
    """``decathlon``: JSON with ``modality`` or ``channel_names``, ``labels``, and perhaps ``test``."""


class Layout(Document):
    """One way to lay out a dataset, recognised by what is in the folder.

    A folder has this layout where at least one image of ``training`` has a label map of the same case.
    """

    schema_version: Literal[1] = 1
    name: str
    title: str
    """Words for the user, e.g. ``Decathlon layout``."""
    expects: str
    """What is looked for, in words that end the sentence "looked for ..."."""
    skip: tuple[str, ...] = (".*",)
    """File and folder names that are passed over, as shell patterns."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Regular expression of a field, where any text without ``/`` is too wide, e.g. ``channel = "[0-9]{4}"``."""
    training: CaseFiles
    test: CaseFiles | None = None
    description: DescriptionFile | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.training.labels:
            raise ValueError("training.labels must have at least one pattern")
        for pattern in self.patterns:
            if "case" not in FIELD.findall(pattern):
                raise ValueError(f"pattern {pattern!r} has no field {{case}}")
        for field, expression in self.fields.items():
            _check_expression(field, expression)
        return self

    @property
    def patterns(self) -> Patterns:
        """All patterns, in the order in which they are declared."""
        test = () if self.test is None else (*self.test.images, *self.test.labels)
        return (*self.training.images, *self.training.labels, *test)


def _check_expression(field: str, expression: str) -> None:
    try:
        groups = re.compile(expression).groups
    except re.error as error:
        raise ValueError(f"fields.{field}: {expression!r} is no regular expression ({error})") from error
    if groups:
        raise ValueError(f"fields.{field}: {expression!r} must not have groups of its own; write (?:...)")


def read_layout(text: str, *, where: str) -> Layout:
    """The layout that ``text`` (TOML) holds; ``where`` names its source in messages.

    Raises `DocumentError` with every problem and its place.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DocumentError(where, (str(error),)) from error
    return read_document(Layout, json.dumps(content, default=str), where=where)


def load_layouts() -> tuple[Layout, ...]:
    """The layouts that come with the package, sorted by name."""
    files = (resources.files(__package__) / "layouts").iterdir()
    layouts = [read_layout(file.read_text("utf-8"), where=file.name) for file in files if file.name.endswith(".toml")]
    return tuple(sorted(layouts, key=lambda layout: layout.name))

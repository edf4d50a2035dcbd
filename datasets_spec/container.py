"""How containers of challenges are called: what lies where, what is to be written, and within which limits; one TOML file each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from datasets_spec.layout import parse_toml, read_toml
from planners import Document, DocumentError, Issue, read_document

CASE = "{case}"
"""In a path: the name of the case. A container with such paths gets all cases at once."""
ContainerKind = Literal["grand-challenge", "flare", "brats25"]
OutputKind = Literal["labels", "probability", "masks", "json"]


class Input(Document):
    """One file or folder that a container is given."""

    path: str
    """Relative to the folder of the inputs: a folder with one image or DICOM series, an image (it has an ending), or a ``.json`` file."""
    slug: str = ""
    """Of a socket of grand-challenge."""
    names: tuple[str, ...] = ()
    """Channels that it may be, besides those whose name is in the slug: ``PET``."""

    @property
    def is_image(self) -> bool:
        """Whether it can be a channel."""
        return not self.path.endswith((".json", ".csv", ".txt"))


class Output(Document):
    """One file or folder that a container is to write."""

    path: str
    """Relative to the folder of the outputs: a folder for one MetaImage, an image, or a ``.json`` file."""
    slug: str = ""
    kind: OutputKind = "labels"
    """``labels``: a label map. ``probability``: float32 from 0 to 1. ``masks``: a 4D file with one mask (0, 1) per class. ``json``: ``value``."""
    values: tuple[int, ...] = ()
    """Label values that are allowed besides 0, after ``remap``; none: any that fit a byte."""
    remap: dict[int, int] = Field(default_factory=dict)
    """Other values for some of the model's."""
    class_value: int | None = None
    """Of a probability: the class whose it is; none: that of any class."""
    num_masks: Annotated[int, Field(ge=1, le=64)] | None = None
    """How many masks a 4D file must have; in the order of the model's classes."""
    value: Any = None
    """What is written where nothing is predicted."""


class Interface(Document):
    """One set of inputs and the outputs that belong to it."""

    inputs: Annotated[tuple[Input, ...], Field(min_length=1)]
    outputs: Annotated[tuple[Output, ...], Field(min_length=1)]
    grid: str = ""
    """Slug of the image whose grid the outputs have, and to which others are resampled; none: that of the first channel."""

    def grid_of(self, channels: Sequence[str]) -> int:
        """Which of the ``channels``, paths of inputs, gives the grid."""
        paths = [each.path for each in self.inputs if each.slug == self.grid and each.path in channels]
        return channels.index(paths[0]) if self.grid and paths else 0

    @property
    def slugs(self) -> tuple[str, ...]:
        """Of the inputs, sorted."""
        return tuple(sorted(each.slug for each in self.inputs))

    @property
    def paths(self) -> tuple[str, ...]:
        """Of inputs and outputs."""
        return (*(each.path for each in self.inputs), *(each.path for each in self.outputs))


class ContainerTable(Document):
    """A challenge's way of calling containers."""

    schema_version: Literal[1] = 1
    name: str
    title: str
    kind: ContainerKind = "grand-challenge"
    input: str = "/input"
    output: str = "/output"
    interfaces: Annotated[tuple[Interface, ...], Field(min_length=1)]
    memory_gb: Annotated[float, Field(gt=0)] = 16.0
    """Main memory of a container, in units of 1024**3 bytes, as Docker counts them."""
    shm_gb: Annotated[float, Field(gt=0)] = 0.125
    """Shared memory (``/dev/shm``), in the same units."""
    minutes: Annotated[float, Field(gt=0)] = 10.0
    """For one case."""
    source: str
    unverified: tuple[str, ...] = ()
    """What was not confirmed, in words that follow "not confirmed:"."""

    @model_validator(mode="after")
    def _check(self) -> ContainerTable:
        batch = {CASE in path for one in self.interfaces for path in one.paths}
        if len(batch) > 1:
            raise ValueError(f"all paths must hold {CASE}, or none")
        return self

    @property
    def takes_all_cases(self) -> bool:
        """Whether one call gets all cases."""
        return CASE in self.interfaces[0].inputs[0].path


def load_container_tables() -> tuple[ContainerTable, ...]:
    """The built-in tables, sorted by name."""
    files = (resources.files(__package__) / "containers").iterdir()
    texts = {file.name: file.read_text("utf-8") for file in files if file.name.endswith(".toml")}
    tables = [_table(parse_toml(text, name), name) for name, text in texts.items()]
    return tuple(sorted(tables, key=lambda table: table.name))


def read_container_table(path: Path) -> ContainerTable:
    """A table as TOML, or as JSON from grand-challenge, which describes the interfaces of a phase or an algorithm.

    Raises `DocumentError` with all faults, `OSError` where the file cannot be read.
    """
    if path.suffix == ".json":
        return _forge(path.read_text("utf-8"), path)
    return _table(read_toml(path, code="container.table_invalid"), str(path))


def _table(content: dict[str, Any], where: str) -> ContainerTable:
    return read_document(ContainerTable, json.dumps(content, default=str), where=where)


def _fault(where: str, message: str, fix: str) -> Issue:
    return Issue(code="container.table_invalid", where=where, message=message, fix=fix)


def _forge(text: str, path: Path) -> ContainerTable:
    """From the JSON of a challenge's or algorithm's template: objects with ``inputs`` and ``outputs`` of sockets, anywhere in it."""
    try:
        found = list(_interfaces(json.loads(text)))
    except json.JSONDecodeError as error:
        raise DocumentError(str(path), [_fault(str(path), f"is not JSON ({error})", "correct it")]) from error
    if not found:
        fix = "pass the description of a phase or algorithm, or write a table as TOML"
        raise DocumentError(str(path), [_fault(str(path), "has no interface with inputs and outputs", fix)])
    interfaces = [
        {"inputs": [_input(each) for each in one["inputs"]], "outputs": [_output(each) for each in one["outputs"]]}
        for one in found
    ]
    table = {"name": path.stem, "title": path.stem, "source": path.name, "interfaces": interfaces}
    return read_document(ContainerTable, json.dumps(table), where=str(path))


def _interfaces(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, list):
        for each in value:
            yield from _interfaces(each)
    elif isinstance(value, dict):
        if isinstance(value.get("inputs"), list) and isinstance(value.get("outputs"), list):
            yield value
        else:
            yield from _interfaces(list(value.values()))


def _input(socket: Mapping[str, Any]) -> dict[str, Any]:
    return {"slug": socket.get("slug", ""), "path": socket.get("relative_path", "")}


def _output(socket: Mapping[str, Any]) -> dict[str, Any]:
    path = socket.get("relative_path", "")
    kind = "json" if path.endswith(".json") else "probability" if socket.get("kind") == "Heat Map" else "labels"
    value = {"value": socket.get("example_value")} if kind == "json" else {}
    return {"slug": socket.get("slug", ""), "path": path, "kind": kind, **value}

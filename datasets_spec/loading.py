"""Reads layouts from TOML: those that come with the package, those of public datasets, and people's own."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from datasets_spec.layout import Layout
from planners import DocumentError, read_document

EXTENDS = "extends"
"""Key of a layout file: the name of a layout whose entries it takes over, its own ones written over them."""


def read_layout(text: str, *, where: str) -> Layout:
    """The layout that ``text`` (TOML) holds; ``where`` names its source in messages.

    ``extends = "name"`` takes over the entries of a layout that comes with the package; tables such as ``fields`` are
    merged entry by entry, ``training``, ``test``, ``labels`` and lists are replaced. Raises `DocumentError` with every
    problem and its place.
    """
    content = _with_base(_parse(text, where), where)
    return read_document(Layout, json.dumps(content, default=str), where=where)


def read_spec(path: Path) -> Layout:
    """The layout in a person's own file.

    ``name``, ``title`` and ``expects`` may be left out there. Raises `DocumentError` with every problem, and `OSError`
    where the file cannot be read.
    """
    where = str(path)
    try:
        content = _parse(path.read_text("utf-8-sig"), where)
    except UnicodeDecodeError as error:
        raise DocumentError(where, (f"no UTF-8 text (byte {error.start})",)) from error
    own = {"name": path.stem, "title": f"as {path.name} says", "expects": f"files as {path.name} names them"}
    merged = _with_base(content, where)
    return read_document(
        Layout, json.dumps(merged | {k: content.get(k, v) for k, v in own.items()}, default=str), where=where
    )


def load_layouts() -> tuple[Layout, ...]:
    """The layouts that come with the package, sorted by name."""
    return _load("layouts")


def load_known() -> tuple[Layout, ...]:
    """The public datasets that are known, sorted by name; ``known`` is set in each."""
    return _load("known")


def _load(folder: str) -> tuple[Layout, ...]:
    files = (resources.files(__package__) / folder).iterdir()
    layouts = [read_layout(file.read_text("utf-8"), where=file.name) for file in files if file.name.endswith(".toml")]
    return tuple(sorted(layouts, key=lambda layout: layout.name))


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DocumentError(where, (str(error),)) from error


def _with_base(content: dict[str, Any], where: str) -> dict[str, Any]:
    base_name = content.pop(EXTENDS, None)
    if base_name is None:
        return content
    file = resources.files(__package__) / "layouts" / f"{base_name}.toml"
    if not isinstance(base_name, str) or not base_name.isidentifier() or not file.is_file():
        names = ", ".join(layout.name for layout in load_layouts())
        raise DocumentError(where, (f"{EXTENDS}: there is no layout {base_name!r}; there are {names}",))
    base = _parse(file.read_text("utf-8"), file.name)
    merged = base | content
    if "fields" in base and "fields" in content:
        merged["fields"] = base["fields"] | content["fields"]
    if "listing" in content or "training" in content:
        merged = {k: v for k, v in merged.items() if k not in {"listing", "training", "test"} or k in content}
    return merged

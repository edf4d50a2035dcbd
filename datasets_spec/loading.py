"""Reads layouts from TOML: those of the package, those of public datasets, and spec files of users."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from datasets_spec.layout import Layout
from planners import DocumentError, Issue, read_document

EXTENDS = "extends"
"""Key of a layout file: the name of a layout whose entries are its defaults."""


def read_layout(text: str, *, where: str) -> Layout:
    """The layout that ``text`` (TOML) holds; ``where`` names its source in messages.

    ``extends = "name"`` inherits the entries of a layout of the package; ``fields`` are merged entry by entry, everything
    else is replaced. Raises `DocumentError` with all problems and their places.
    """
    content = _with_base(_parse(text, where), where)
    return read_document(Layout, json.dumps(content, default=str), where=where)


def read_spec(path: Path) -> Layout:
    """The layout in a spec file, where ``name``, ``title`` and ``expects`` are optional.

    Raises `DocumentError` with all problems, and `OSError` if the file cannot be read.
    """
    where = str(path)
    try:
        content = _parse(path.read_text("utf-8-sig"), where)
    except UnicodeDecodeError as error:
        raise DocumentError(where, [_fault("", f"not UTF-8 text (byte {error.start})", "save it as UTF-8")]) from error
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


def _load(folder: str) -> tuple[Layout, ...]:
    files = (resources.files(__package__) / folder).iterdir()
    layouts = [read_layout(file.read_text("utf-8"), where=file.name) for file in files if file.name.endswith(".toml")]
    return tuple(sorted(layouts, key=lambda layout: layout.name))


def _fault(where: str, message: str, fix: str) -> Issue:
    return Issue(code="layout.invalid", where=where, message=message, fix=fix)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DocumentError(where, [_fault("", str(error), "write it as TOML")]) from error


def _with_base(content: dict[str, Any], where: str) -> dict[str, Any]:
    base_name = content.pop(EXTENDS, None)
    if base_name is None:
        return content
    file = resources.files(__package__) / "layouts" / f"{base_name}.toml"
    if not isinstance(base_name, str) or not base_name.isidentifier() or not file.is_file():
        names = ", ".join(layout.name for layout in load_layouts())
        raise DocumentError(where, [_fault(EXTENDS, f"layout {base_name!r} does not exist", f"choose one of {names}")])
    base = _parse(file.read_text("utf-8"), file.name)
    merged = base | content
    if "fields" in base and "fields" in content:
        merged["fields"] = base["fields"] | content["fields"]
    if "listing" in content or "training" in content:
        merged = {k: v for k, v in merged.items() if k not in {"listing", "training", "test"} or k in content}
    return merged

"""Parts of the pages that come from the code: commands, Python API, issue codes, notebook, changelog, decision records.

An mkdocs hook. A page holds a marker such as ``<!-- commands -->``, which the build replaces, so these parts are always
up to date and nothing generated is kept in the repository.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("planners", "datasets_spec", "autoseg")
CODE = re.compile(r"[a-z][a-z0-9_]*\.[a-z0-9_.]+")


def on_config(config: Any) -> Any:
    """List every decision record under its section."""
    section = next(entry["Decision records"] for entry in config.nav[-1]["Development"] if "Decision records" in entry)
    section[1:] = sorted(f"decisions/{path.name}" for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page."""
    for marker, make in MARKERS.items():
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return markdown


def command_reference() -> str:
    """Every command with its arguments and options."""
    import typer

    from autoseg.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join(_describe_command(name, command) for name, command in commands.items())


def _describe_command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    words = [_metavar(p) if p.required else f"[{_metavar(p)}]" for p in arguments]
    lines = [f"## {name}", "", f"```\nautoseg {' '.join([name, *words])}{' [OPTIONS]' * bool(options)}\n```", ""]
    lines += [inspect.cleandoc(command.help or ""), ""]
    if arguments:
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [f"| `{_metavar(p)}` | {_cell(p.help)} |" for p in arguments] + [""]
    if options:
        lines += ["| option | default | meaning |", "|---|---|---|"]
        lines += [f"| {_names(p)} | {_default(p)} | {_cell(p.help)} |" for p in options] + [""]
    return "\n".join(lines)


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _names(option: Any) -> str:
    return " ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))


def _default(option: Any) -> str:
    value = option.default
    if option.is_flag or value is None or callable(value) or not str(value):
        return ""
    others = [each.value for each in type(value) if each is not value] if isinstance(value, Enum) else []
    return f"`{getattr(value, 'value', value)}`" + (
        f" (or {', '.join(f'`{each}`' for each in others)})" if others else ""
    )


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def python_reference() -> str:
    """What ``import autoseg`` offers, in the order of its ``__all__``."""
    import autoseg

    blocks = []
    for name in autoseg.__all__:
        value = getattr(autoseg, name)
        if not name.startswith("_") and hasattr(value, "__module__"):
            blocks.append(f"::: {value.__module__}.{value.__qualname__}\n")
    return "\n".join(blocks)


@dataclass(frozen=True, slots=True)
class Place:
    """One place in the sources that makes an issue."""

    code: str
    severity: str
    message: str
    fix: str


def issue_places() -> Iterator[Place]:
    """Every place that names an issue code as ``code=...``, ``{"code": ...}`` or the default of a parameter ``code``."""
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            fields = _fields(node)
            if "code" in fields:
                severities = _constants(fields.get("severity")) or [_severity(node)]
                for code in filter(CODE.fullmatch, _constants(fields["code"])):
                    yield Place(
                        code, " or ".join(severities), _template(fields.get("message")), _template(fields.get("fix"))
                    )


def _severity(node: ast.AST) -> str:
    called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    return "error" if called.lower().endswith("issue") else "warning" if called == "_warn" else ""


def _fields(node: ast.AST) -> dict[str, ast.expr]:
    if isinstance(node, ast.Call):
        return {word.arg: word.value for word in node.keywords if word.arg is not None}
    if isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        return {key: value for key, value in zip(keys, node.values, strict=True) if isinstance(key, str)}
    if isinstance(node, ast.arguments):
        return {a.arg: d for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True) if d is not None}
    return {}


def _constants(value: ast.expr | None) -> list[str]:
    """Strings that an expression may stand for, e.g. both of ``"a" if x else "b"``."""
    if isinstance(value, ast.IfExp):
        return [*_constants(value.body), *_constants(value.orelse)]
    return [value.value] if isinstance(value, ast.Constant) and isinstance(value.value, str) else []


def _template(value: ast.expr | None) -> str:
    """The sentence of a message, with an ellipsis for each value that is filled in."""
    if isinstance(value, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in value.values)
    return " / ".join(_constants(value))


def issue_reference() -> str:
    """Every issue code by room, with its severities and what it says."""
    rooms: dict[str, dict[str, list[Place]]] = defaultdict(lambda: defaultdict(list))
    for place in issue_places():
        rooms[place.code.partition(".")[0]][place.code].append(place)
    lines = []
    for room in sorted(rooms):
        lines += [f"## {room}", "", "| code | severity | found | fix |", "|---|---|---|---|"]
        for code, places in sorted(rooms[room].items()):
            columns = ({p.severity for p in places}, {p.message for p in places}, {p.fix for p in places})
            cells = (_cell("<br>".join(sorted(filter(None, column))).replace("{", "&#123;")) for column in columns)
            lines.append(f"| `{code}` | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def notebook_page() -> str:
    """The cells of the notebook."""
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ("".join(cell["source"]) for cell in cells)
    return "\n\n".join(
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell, text in zip(cells, texts, strict=True)
    )


def changelog_page() -> str:
    """``CHANGELOG.md``, its links made relative to the docs."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2].replace("](docs/", "](")


def layout_table() -> str:
    """The built-in layouts of folders, by preference."""
    import tomllib

    files = (ROOT / "datasets_spec" / "layouts").glob("*.toml")
    layouts = [tomllib.loads(path.read_text(encoding="utf-8")) for path in files]
    layouts.sort(key=lambda layout: (layout.get("last_resort", False), -layout.get("preference", 0)))
    rows = [f"| `{each['name']}` | {_cell(each['title'])} | {_cell(each['expects'])} |" for each in layouts]
    return "\n".join(["| `--layout` | what it is | what it looks for |", "|---|---|---|", *rows])


MARKERS = {
    "<!-- commands -->": command_reference,
    "<!-- python api -->": python_reference,
    "<!-- issue codes -->": issue_reference,
    "<!-- notebook -->": notebook_page,
    "<!-- changelog -->": changelog_page,
    "<!-- layouts -->": layout_table,
}

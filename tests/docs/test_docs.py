"""What the documentation says exists: commands, options, files, Python lines, issue codes; and the site builds strictly."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import typer
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PAGES = [page for page in PAGES if page.parent.name != "decisions"]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SOURCES = [path for package in ("planners", "datasets_spec", "autoseg") for path in (ROOT / package).rglob("*.py")]
COMMANDS = typer.main.get_command(__import__("autoseg.cli", fromlist=["app"]).app).commands


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def example_commands(text: str) -> Iterator[list[str]]:
    """Words of every ``autoseg ...`` in fenced blocks and in inline code."""
    fenced = [line.removeprefix("$ ") for _, block in FENCE.findall(text) for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    for line in [*fenced, *inline]:
        if line.startswith("autoseg ") and "COMMAND" not in line:
            yield shlex.split(line.replace("…", ""), comments=True)[1:]


def faults_of(words: list[str]) -> Iterator[str]:
    """What of a command line does not exist."""
    name, *rest = words
    if name not in COMMANDS:
        yield f"there is no command {name}"
        return
    options = {opt: p for p in COMMANDS[name].params for opt in (*p.opts, *p.secondary_opts) if opt.startswith("-")}
    arguments = [p for p in COMMANDS[name].params if p.param_type_name == "argument"]
    given, skip = 0, False
    for word in rest:
        if skip:
            skip = False
        elif word.startswith("--"):
            if word not in options and word != "--help":
                yield f"{name} has no {word}"
            skip = word in options and not options[word].is_flag
        elif not word.startswith("["):
            given += 1
    if rest and not any(word.startswith("[") for word in rest):
        required = sum(p.required for p in arguments)
        takes_any = any(p.nargs == -1 for p in arguments)
        if (given > len(arguments) and not takes_any) or (given and given < required):
            yield f"{name} with {given} arguments"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_example_commands_exist(page: Path) -> None:
    found = [(" ".join(words), fault) for words in example_commands(page.read_text()) for fault in faults_of(words)]
    assert found == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"], ids=name_of)
def test_linked_files_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", FENCE.sub("", page.read_text()))
    local = [link for link in links if not link.startswith(("http:", "https:"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_python_examples_pass_mypy(tmp_path: Path) -> None:
    blocks = {
        f"{page.stem.replace('-', '_')}_{number}": block
        for page in PAGES
        for number, (language, block) in enumerate(FENCE.findall(page.read_text()))
        if language == "python"
    }
    blocks["notebook"] = "\n".join(cell.source for cell in read_notebook().cells if cell.cell_type == "code")
    files = [tmp_path / f"{name}.py" for name in blocks]
    # Options of the examples alone, and the cache of `make types`: what that has read of the package is not read again.
    options = "# mypy: allow-untyped-defs, allow-untyped-calls, no-warn-unused-ignores\n"
    for file, block in zip(files, blocks.values(), strict=True):
        file.write_text(options + block)
    call = [sys.executable, "-m", "mypy", *map(str, files)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    # errors of the package itself are those of `make types`
    found = [
        line for line in done.stdout.splitlines() if "error:" in line and Path(line.split(":")[0]).parent == tmp_path
    ]
    assert (found, done.stderr) == ([], "")
    assert done.returncode in (0, 1)


def read_notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_notebook_is_kept_without_outputs() -> None:
    cells = [cell for cell in read_notebook().cells if cell.cell_type == "code"]
    assert cells
    assert not any(cell.outputs or cell.execution_count for cell in cells)


def test_notebook_runs(tmp_path: Path) -> None:
    notebook = read_notebook()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    call = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(
        r'(?:<script[^>]*src|<link[^>]*rel="(?:stylesheet|preconnect|icon)"[^>]*href|<img[^>]*src)="?https?:[^>]*'
    )
    assert [(page.name, hit) for page in site.rglob("*.html") for hit in loaded.findall(page.read_text())] == []


def test_every_issue_code_is_listed(site: Path) -> None:
    """The page reads the syntax tree; this reads the text."""
    page = (site / "reference" / "issues" / "index.html").read_text()
    codes = {
        code for path in SOURCES for code in re.findall(r'\bcode="([a-z][a-z0-9_]*\.[a-z0-9_.]+)"', path.read_text())
    }
    assert sorted(code for code in codes if f"<code>{code}</code>" not in page) == []


def test_every_command_and_decision_record_has_its_place(site: Path) -> None:
    commands = (site / "reference" / "cli" / "index.html").read_text()
    assert [name for name in COMMANDS if f'<h2 id="{name}">' not in commands] == []
    records = {path.stem for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md")}
    assert sorted(stem for stem in records if f"{stem}/" not in (site / "decisions" / "index.html").read_text()) == []


def test_issue_places_read_every_way_to_name_a_code(tmp_path: Path) -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "pages.py"))
    package = tmp_path / "autoseg"
    package.mkdir()
    (package / "made.py").write_text(
        'Issue(code="a.one" if x else "a.two", severity="note", where=w, message=f"found {n} of them", fix="remove it")\n'
        'issue.model_copy(update={"code": "a.three", "severity": "warning"})\n'
        'def fault(*, code: str = "a.four") -> None: ...\n'
        'Issue(code=code, where="", message="")\n'
        'AutosegError(code="nothing")\n'
    )
    pages["issue_places"].__globals__["ROOT"] = tmp_path
    found = [(p.code, p.severity, p.message, p.fix) for p in pages["issue_places"]()]
    assert sorted(found) == [
        ("a.four", "", "", ""),
        ("a.one", "note", "found … of them", "remove it"),
        ("a.three", "warning", "", ""),
        ("a.two", "note", "found … of them", "remove it"),
    ]

"""The shape of the product: directions of imports, one door for each dependency, no hidden state, a frozen option list."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
PACKAGES = ("planners", "datasets_spec", "autoseg")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

BASE = {"errors", "file_content", "free_memory", "half_written", "kept_results", "progress", "run_folder"}
MAY_IMPORT = {
    "errors": set(),
    "file_content": {"errors"},
    "free_memory": set(),
    "progress": {"errors"},
    "half_written": set(),
    "kept_results": {"half_written"},
    "run_folder": {"errors", "half_written"},
    "execution": BASE,
    "imaging": BASE,
    "datasets": BASE | {"execution", "imaging"},
    "preparation": BASE | {"execution", "imaging", "datasets"},
    "networks": BASE,
    "evaluation": BASE | {"execution", "imaging", "datasets"},
    "inference": BASE | {"execution", "imaging", "datasets", "preparation", "networks", "evaluation"},
    "training": BASE | {"execution", "networks"},
    "delivery": BASE | {"execution", "imaging", "datasets", "preparation", "evaluation", "inference"},
}
"""Rooms that each room of autoseg may use besides itself; pipeline and cli use all of them."""
DOORS = {
    "joblib": {"autoseg/execution/jobs.py"},
    "batchgenerators": {"autoseg/training/turning.py"},
    "SimpleITK": {"autoseg/imaging/formats/"},
    "pydicom": {"autoseg/imaging/formats/"},
    "nibabel": {"autoseg/imaging/formats/"},
    "typer": {"autoseg/cli/"},
    "blosc2": {"autoseg/preparation/storage.py"},
}
"""Packages that only one room may import."""
PURE = {"numpy", "pydantic", "planners", *sys.stdlib_module_names} - {"os", "subprocess", "socket", "random", "time"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a source file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            yield node.module or ""


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "autoseg").parts
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ROOT / "planners")], ids=name_of)
def test_planners_are_pure(path: Path) -> None:
    assert {name.split(".")[0] for name in imported(path)} <= PURE


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ROOT / "datasets_spec")], ids=name_of)
def test_layouts_know_nothing_of_autoseg(path: Path) -> None:
    assert "autoseg" not in {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ROOT / "autoseg")], ids=name_of)
def test_rooms_import_only_what_lies_before_them(path: Path) -> None:
    here = room(path)
    names = list(imported(path))
    assert not [name for name in names if name.startswith("planners.")], "planners have a front door"
    if here in MAY_IMPORT:
        used = {name.split(".")[1] for name in names if name.startswith("autoseg.")}
        assert used <= MAY_IMPORT[here] | {here}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_each_dependency_has_one_door(path: Path) -> None:
    for package in {name.split(".")[0] for name in imported(path)} & DOORS.keys():
        assert any(name_of(path).startswith(door) for door in DOORS[package]), f"{package} has another door"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_print_and_no_environment(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{name_of(path)}:{node.lineno} prints"
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("environ", "getenv", "putenv"), f"{name_of(path)}:{node.lineno} reads the environment"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_say_what_they_are_for(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert text.split("\n\n")[0].strip().endswith((".", "?")), f"{name_of(path)} does not open with a sentence"


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "misc", "manager"])
def test_no_drawers(word: str) -> None:
    assert not [name_of(path) for path in SOURCES if word in path.stem.split("_")]


@pytest.mark.parametrize("package", ["planners", "autoseg.networks.build", "autoseg.training.fold"])
def test_training_and_planning_import_without_image_formats(package: str) -> None:
    call = f"import sys, {package}; sys.exit('SimpleITK' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", call], check=False).returncode == 0


COMMON = [
    "--device", "--layout", "--memory-gb", "--out", "--preset", "--seed", "--skip-bad", "--spec", "--strict-reference",
    "--target-spacing", "--workers",
]
RUN = sorted([
    *COMMON, "--budget", "--folds", "--groups", "--leave-one-group-out", "--pretrained", "--schedule", "--splits", "--threads", "--work",
])
OPTIONS = {
    "run": RUN,
    "predict": ["--device", "--mirroring", "--probabilities", "--threads"],
    "evaluate": ["--out", "--tolerance-mm", "--workers"],
    "check": ["--json", "--layout", "--skip-bad", "--spec", "--workers"],
    "plan": [
        "--explain", "--layout", "--memory-gb", "--nnunet-dataset", "--nnunet-fingerprint", "--nnunet-plans", "--out",
        "--preset", "--pretrained", "--skip-bad", "--spec", "--strict-reference", "--target-spacing", "--workers",
    ],
    "submit": ["--as", "--out"],
    "bundle": [],
    "import-nnunet": ["--checkpoint", "--fold"],
    "fingerprint": ["--layout", "--out", "--skip-bad", "--spec", "--workers"],
    "preprocess": [
        "--layout", "--memory-gb", "--out", "--preset", "--pretrained", "--skip-bad", "--spec", "--strict-reference",
        "--target-spacing", "--work", "--workers",
    ],
    "train": sorted([*RUN, "--configuration", "--fold"]),
    "select": RUN,
    "report": RUN,
    "demo": ["--budget", "--device", "--out", "--seed"],
}
"""No manual tuning: a new option is a decision, made here."""


def test_the_option_list_is_frozen() -> None:
    from autoseg.cli import app

    commands = typer.main.get_command(app).commands
    found = {
        name: sorted(p.opts[0] for p in command.params if p.param_type_name == "option")
        for name, command in commands.items()
    }
    assert found == OPTIONS

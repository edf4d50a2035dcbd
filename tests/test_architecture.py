"""The shape of the product: directions of imports, one door for each dependency, no hidden state, a frozen option list."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
PACKAGES = ("planners", "datasets_spec", "autoseg")
SOURCES = {path: ast.parse(path.read_text()) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}

BASE = {"issues", "run_folder", "wording", "storage", "compute", "tracking"}
"""Rooms that all others may use."""
MAY_IMPORT = {
    "issues": {"wording"},
    "wording": set(),
    "run_folder": {"issues"},
    "settings": {"issues"},
    "tracking": {"issues", "storage", "wording"},
    "storage": {"issues"},
    "compute": BASE,
    "imaging": BASE,
    "data": BASE | {"imaging"},
    "preprocessing": BASE | {"imaging", "data"},
    "networks": BASE,
    "training": BASE | {"networks"},
    "evaluation": BASE | {"imaging", "data"},
    "inference": BASE | {"imaging", "data", "preprocessing", "networks", "evaluation"},
    "interop": BASE | {"imaging", "data", "preprocessing", "networks", "evaluation", "inference"},
    "viewer": set(),
    "serving": BASE | {"imaging", "evaluation", "inference", "viewer"},
    "delivery": BASE | {"imaging", "data", "preprocessing", "evaluation", "inference"},
}
"""Rooms that each room of autoseg may use besides itself; stages, front door and command line use all of them."""
DOORS = {
    "joblib": {"autoseg/compute/executor.py"},
    "distributed": {"autoseg/compute/cluster.py"},
    "torch.distributed": {"autoseg/compute/ranks.py"},
    "mlflow": {"autoseg/tracking/mlflow.py"},
    "tensorboard": {"autoseg/tracking/tensorboard.py"},
    "batchgenerators": {"autoseg/training/augmentation.py"},
    "SimpleITK": {"autoseg/imaging/readers/itk.py", "autoseg/imaging/readers/objects.py"},
    "pydicom": {"autoseg/imaging/readers/dicom", "autoseg/imaging/readers/worker.py", "autoseg/imaging/writers/"},
    "highdicom": {"autoseg/imaging/writers/segmentation.py"},
    "nibabel": {"autoseg/imaging/readers/nifti.py", "autoseg/imaging/readers/dicom_series.py"},
    "nrrd": {"autoseg/imaging/readers/nrrd.py"},
    "tifffile": {"autoseg/imaging/readers/pictures.py", "autoseg/imaging/readers/worker.py"},
    "imagecodecs": {"autoseg/imaging/readers/pictures.py", "autoseg/imaging/readers/worker.py"},
    "PIL": {"autoseg/imaging/readers/pictures.py"},
    "fastapi": {"autoseg/serving/"},
    "starlette": {"autoseg/serving/"},
    "uvicorn": {"autoseg/serving/server.py"},
    "typer": {"autoseg/cli/"},
    "blosc2": {"autoseg/preprocessing/store.py"},
    "triton": {"autoseg/networks/kernels.py"},
    "onnx": {"autoseg/delivery/quantise.py"},
    "onnxruntime": {"autoseg/delivery/quantise.py"},
    "openvino": {"autoseg/inference/engines.py"},
}
"""Packages that only one room may import."""
PURE = {"numpy", "pydantic", "planners", *sys.stdlib_module_names} - {
    "os",
    "subprocess",
    "socket",
    "random",
    "time",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a source file imports."""
    for node in ast.walk(SOURCES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            yield node.module or ""


def purity(path: Path) -> Iterator[str]:
    """Planners know numbers and documents only, and datasets_spec nothing of autoseg."""
    packages = {name.split(".")[0] for name in imported(path)}
    if path.is_relative_to(ROOT / "planners"):
        yield from (f"planners are pure, but this imports {name}" for name in packages - PURE)
    if not path.is_relative_to(ROOT / "autoseg"):
        yield from ("imports autoseg" for _ in packages & {"autoseg"})


def direction(path: Path) -> Iterator[str]:
    """Rooms import what lies before them, and planners through their front door."""
    if not path.is_relative_to(ROOT / "autoseg"):
        return
    here = path.relative_to(ROOT / "autoseg").parts[0].removesuffix(".py")
    names = list(imported(path))
    yield from (f"{name}: planners have a front door" for name in names if name.startswith("planners."))
    if here in MAY_IMPORT:
        used = {name.split(".")[1] for name in names if name.startswith("autoseg.")}
        yield from (f"{here} may not import {name}" for name in used - MAY_IMPORT[here] - {here})


def doors(path: Path) -> Iterator[str]:
    """Each dependency has one door."""
    names = set(imported(path))
    for package in {*(name.split(".")[0] for name in names), *names} & DOORS.keys():
        if not any(name_of(path).startswith(door) for door in DOORS[package]):
            yield f"{package} has another door"


def hidden_state(path: Path) -> Iterator[str]:
    """No printing outside the command line, and nothing read from the environment; one library is configured by it alone."""
    for node in ast.walk(SOURCES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"line {node.lineno} prints"
        reads = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv")
        if reads and name_of(path) != "autoseg/compute/__init__.py":
            yield f"line {node.lineno} reads the environment"


def opening(path: Path) -> Iterator[str]:
    """Modules say what they are for, and are no drawers."""
    text = ast.get_docstring(SOURCES[path]) or ""
    if not text.split("\n\n")[0].strip().endswith((".", "?")):
        yield "does not open with a sentence"
    yield from (f"{word} is a drawer" for word in DRAWERS & set(path.stem.split("_")))


LONGEST = 60
"""Lines of a function."""
DRAWERS = {"utils", "helpers", "common", "misc", "manager"}


def length(path: Path) -> Iterator[str]:
    """Functions fit on a screen."""
    for node in ast.walk(SOURCES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= LONGEST:
            yield f"{node.name} has {node.end_lineno - node.lineno + 1} lines"


@pytest.mark.parametrize("rule", [purity, direction, doors, hidden_state, opening, length])
def test_the_rooms_keep_their_rules(rule: Callable[[Path], Iterator[str]]) -> None:
    assert [f"{name_of(path)}: {fault}" for path in SOURCES for fault in rule(path)] == []


@pytest.mark.parametrize("package", ["planners", "autoseg.networks.build", "autoseg.training.fold"])
def test_training_and_planning_import_without_image_formats(package: str) -> None:
    call = f"import sys, {package}; sys.exit('SimpleITK' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", call], check=False).returncode == 0


CHECK = {"--exclude", "--layout", "--skip-bad", "--spec", "--workers"}
FINGERPRINT = CHECK | {"--out", "--redo", "--strict-reference"}
PLAN = FINGERPRINT | {"--memory-gb", "--preset", "--pretrained", "--replan", "--set", "--target-spacing"}
PREPROCESS = PLAN | {"--work"}
RUN = PREPROCESS | {
    "--anyway",
    "--budget",
    "--configurations",
    "--ddp",
    "--device",
    "--folds",
    "--groups",
    "--groups-table",
    "--hold-out-groups",
    "--leave-one-group-out",
    "--mirroring",
    "--race",
    "--schedule",
    "--seed",
    "--splits",
    "--threads",
    "--track",
}
SENT = {"--cluster", "--dry-run", "--slurm-options"}
OPTIONS = {
    "run": RUN | SENT | {"--select-by"},
    "predict": {
        "--as",
        "--cluster",
        "--device",
        "--doubt",
        "--engine",
        "--every-window",
        "--fast",
        "--folds",
        "--layout",
        "--memory-gb",
        "--mirroring",
        "--part",
        "--probabilities",
        "--skip-bad",
        "--slurm-options",
        "--spec",
        "--step",
        "--strict",
        "--terms",
        "--threads",
    },
    "evaluate": {
        "--as",
        "--cluster",
        "--groups-table",
        "--metrics",
        "--out",
        "--resources",
        "--strict",
        "--tolerance-mm",
        "--workers",
    },
    "compare": {"--as", "--out", "--with"},
    "check": CHECK | {"--json"},
    "plan": PLAN | {"--explain", "--nnunet-dataset", "--nnunet-fingerprint", "--nnunet-plans"},
    "check-submission": {"--as", "--fill", "--images", "--incomplete", "--spec"},
    "submit": {
        "--as",
        "--device",
        "--fill",
        "--images",
        "--incomplete",
        "--list",
        "--out",
        "--predictions",
        "--spec",
        "--threads",
    },
    "bundle": set(),
    "export": {"--cases", "--folds", "--format", "--quantise", "--threads"},
    "measure": {"--device", "--threads"},
    "container": {
        "--base",
        "--channel",
        "--empty-if-failing",
        "--folds",
        "--for",
        "--interface",
        "--method",
        "--mirroring",
        "--tag",
    },
    "rehearse": {"--cases", "--memory", "--method", "--model", "--out", "--shm", "--time"},
    "serve": {
        "--device",
        "--host",
        "--keep",
        "--keep-gb",
        "--max-upload-mb",
        "--memory-gb",
        "--mirroring",
        "--port",
        "--queue",
        "--state",
        "--threads",
        "--timeout",
        "--token-file",
    },
    "clean": {"--dry-run"},
    "import-nnunet": {"--checkpoint", "--fold"},
    "fingerprint": FINGERPRINT | {"--cluster"},
    "preprocess": PREPROCESS | {"--cluster"},
    "schedule": (RUN | {"--cluster"}) - {"--track"},
    "train": RUN | SENT | {"--configuration", "--fold", "--wait", "--within"},
    "select": (RUN | {"--cluster", "--select-by"}) - {"--replan"},
    "report": (RUN | {"--select-by"}) - {"--replan"},
    "status": set(),
    "demo": {"--device", "--out", "--seed"},
}
"""No manual tuning: a new option is a decision, made here."""


def test_the_option_list_is_frozen() -> None:
    from autoseg.cli import app

    commands = typer.main.get_command(app).commands
    found = {
        name: {p.opts[0] for p in command.params if p.param_type_name == "option"} for name, command in commands.items()
    }
    assert found == OPTIONS

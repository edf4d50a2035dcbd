"""What the planner's room lets in and out."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from pkgutil import iter_modules

import planners

FORBIDDEN = {"autoseg", "torch", "SimpleITK", "joblib", "pandas", "scipy", "os", "nibabel", "pydicom"}
ALLOWED = set(sys.stdlib_module_names) - {"os"} | {"numpy", "pydantic", "planners"}


def test_importing_the_planner_loads_nothing_heavy() -> None:
    code = "import sys, json, planners; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    loaded = set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    assert not loaded & (FORBIDDEN - {"os"})


def test_sources_import_only_numpy_pydantic_and_the_standard_library() -> None:
    for path in Path(planners.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]}
            else:
                continue
            assert names <= ALLOWED, f"{path.name} imports {names - ALLOWED}"


def test_the_front_door_is_sorted_and_complete() -> None:
    assert len(set(planners.__all__)) == len(planners.__all__)
    assert all(hasattr(planners, name) for name in planners.__all__)
    modules = {module.name for module in iter_modules(planners.__path__)}
    assert not modules & set(
        planners.__all__
    )  # a module that is loaded first would be taken for what it is called after

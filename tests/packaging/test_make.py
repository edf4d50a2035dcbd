"""``make`` says what is missing of Python instead of failing somewhere later."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def make(python: object, folder: Path) -> subprocess.CompletedProcess[str]:
    call = ["make", "install", f"PYTHON={python}", f"VENV={folder / 'venv'}"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not (folder / "venv").exists()
    return done


def python_that(folder: Path, pretends: str) -> Path:
    """A Python in which a line of code has run before ``-c``."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; {pretends}; exec(sys.argv[2])" "$@"\n')
    script.chmod(0o755)
    return script


def test_missing_python_is_reported(tmp_path) -> None:
    done = make("python-that-is-nowhere", tmp_path)
    assert done.returncode
    assert "python-that-is-nowhere was not found; install Python 3.11, 3.12 or 3.13" in done.stderr


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_unsupported_version_is_reported(tmp_path, version) -> None:
    done = make(python_that(tmp_path, f"sys.version_info = {(*version, 0)}"), tmp_path)
    assert done.returncode
    assert f"Python {version[0]}.{version[1]} is not supported" in done.stderr


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_missing_module_is_reported(tmp_path, module) -> None:
    done = make(python_that(tmp_path, f"sys.modules['{module}'] = None"), tmp_path)
    assert done.returncode
    assert f"Python has no module {module}; install it" in done.stderr

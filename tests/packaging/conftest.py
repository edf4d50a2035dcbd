"""The product as others install it: a wheel, in an environment of its own, used from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("planners", "datasets_spec", "autoseg")


def make_wheel(source: Path, out: Path) -> Path:
    """Build the wheel of the project in ``source``."""
    call = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run(call, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment that sees the dependencies of this one, but not its editable install of the repository."""

    root: Path

    @property
    def scripts(self) -> Path:
        return self.root / ("Scripts" if sys.platform == "win32" else "bin")

    def install(self, wheel: Path) -> None:
        """Install a wheel without its dependencies."""
        call = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            self.scripts / "python",
            "install",
            "--quiet",
            "--no-deps",
            wheel,
        ]
        subprocess.run(call, check=True, capture_output=True)

    def call(self, script: str, *arguments: object, code: int = 0) -> str:
        """Output of a script of the environment, run in a folder beside it; both streams where the exit code differs."""
        plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        words = [str(self.scripts / script), *map(str, arguments)]
        done = subprocess.run(words, cwd=self.root.parent, env=plain, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="session")
def build_wheel() -> Callable[[Path, Path], Path]:
    """Builds the wheel of a project, given its folder and one for the wheel."""
    return make_wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel of the repository, built from a copy of its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    return make_wheel(source, folder / "dist")


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory) -> Environment:
    """An environment with the wheel installed."""
    folder = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(folder, with_pip=False, symlinks=sys.platform != "win32")
    made = Environment(folder)
    (home,) = folder.rglob("site-packages")
    (home / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    made.install(wheel)
    return made

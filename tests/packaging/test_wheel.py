"""A wheel holds everything, and works outside the repository."""

from __future__ import annotations

import json
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

import autoseg
from autoseg.data.phantom import make_phantom_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_contains_every_file_of_the_packages(contents) -> None:
    folders = [ROOT / name for name in ("planners", "datasets_spec", "autoseg")]
    files = [
        path for folder in folders for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert any(path.suffix == ".toml" for path in files)
    assert sum(path.name == "py.typed" for path in files) == 3
    assert (
        sorted(path.relative_to(ROOT).as_posix() for path in files if path.relative_to(ROOT).as_posix() not in contents)
        == []
    )


def test_the_wheel_contains_nothing_else(contents) -> None:
    assert {name.split("/")[0] for name in contents if ".dist-info/" not in name} == {
        "planners",
        "datasets_spec",
        "autoseg",
    }


def test_version_and_licence_agree(contents) -> None:
    (metadata,) = (message_from_bytes(data) for name, data in contents.items() if name.endswith(".dist-info/METADATA"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert metadata["Version"] == citation["version"] == autoseg.__version__
    assert f"## [{autoseg.__version__}] - {citation['date-released']}" in changelog
    assert metadata["License-Expression"] == citation["license"] == "Apache-2.0"
    assert any(name.endswith("/LICENSE") for name in contents)


def test_the_installed_wheel_checks_and_plans_from_another_folder(environment, tmp_path) -> None:
    make_phantom_dataset(tmp_path / "phantom", num_training=3, num_test=0, seed=0)
    where = environment.call("python", "-c", "import autoseg, planners; print(autoseg.__file__, planners.__file__)")
    assert str(ROOT) not in where
    assert "3 labelled cases" in environment.call("autoseg", "check", tmp_path / "phantom")
    said = environment.call("autoseg", "plan", tmp_path / "phantom", "--out", tmp_path / "run", "--explain")
    assert "3d_fullres" in said
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["configurations"]

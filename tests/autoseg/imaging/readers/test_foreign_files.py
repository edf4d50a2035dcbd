"""`benchmarks/foreign_files.py` sees a difference that nobody is told of, and only that."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import PIL.Image
import pytest

BENCH = Path(__file__).parents[4] / "benchmarks" / "foreign_files.py"
SHIPPED = Path(nibabel.__file__).parent / "tests" / "data"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("foreign_files", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["foreign_files"] = module  # its dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "kind"),
    [("anatomical.nii", "same"), ("functional.nii", "same"), ("example4d.nii.gz", "same"), ("test.mgz", "refused")],
)
def test_public_files_are_read_as_by_others_or_refused(bench: ModuleType, name: str, kind: str) -> None:
    assert bench.judge(SHIPPED / name).kind == kind


def test_pictures_of_one_bit_are_black_and_white_for_all(bench: ModuleType, tmp_path: Path) -> None:
    for ending in (".bmp", ".png"):
        PIL.Image.fromarray(np.eye(16, dtype=bool)).save(tmp_path / f"a{ending}")
        assert bench.judge(tmp_path / f"a{ending}").kind == "same"


def test_a_reader_that_ends_its_process_is_named_and_is_no_silent_difference(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.in_child(lambda: os._exit(1)) is None

    def in_place(function: Callable[[], object]) -> object:
        with suppress(SystemExit):
            return function()

    path = SHIPPED / "anatomical.nii"
    monkeypatch.setattr(bench, "in_child", in_place)
    monkeypatch.setitem(bench.READERS, "SimpleITK", lambda _: sys.exit())
    row = bench.judge_alone(path)
    assert (row.kind, row.words) == ("same", "SimpleITK ended the process")
    monkeypatch.setitem(bench.READERS, "autoseg", lambda _: sys.exit())
    assert bench.judge_alone(path).kind == "SILENT"


def test_a_silent_difference_of_values_or_place_is_seen(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    path = SHIPPED / "anatomical.nii"
    sound = bench.by_autoseg(path)
    moved = sound.affine @ np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])

    def outcome(**changes: object) -> str:
        monkeypatch.setitem(bench.READERS, "autoseg", lambda _: replace(sound, **changes))
        kind: str = bench.judge(path).kind
        return kind

    assert outcome() == "same"
    assert outcome(array=sound.array[:, ::-1]) == "SILENT"
    assert outcome(array=sound.array[:, :-1]) == "SILENT"
    assert outcome(affine=moved) == "SILENT"
    assert outcome(affine=moved, said="reader.spacing_differs") == "noted"

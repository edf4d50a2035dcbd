"""300 broken image files of every format are refused or read, and nothing else; `benchmarks/fuzz.py` in short."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FUZZ = Path(__file__).parents[4] / "benchmarks" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", FUZZ)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # its dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_broken_files_are_refused_or_read(fuzz: ModuleType) -> None:
    summary = fuzz.fuzz(150, start=7)
    assert not summary.faults, summary.faults
    assert sum(summary.outcomes.values()) == 150
    assert len(summary.by_seed) > 20
    assert (
        summary.outcomes["refused"] > 50
    )  # most are broken beyond reading: the files are not simply read as they were


def test_the_judge_sees_what_it_is_for(fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that lets a cut file through, raises something else or dies is noticed."""
    seed = fuzz.make_seeds(tmp_path, None)["nii"]
    sound = {"nii": fuzz.read_all(seed)}
    broken = fuzz.Broken(seed="nii", way="cut", number=3)

    def outcome(reader) -> str:
        monkeypatch.setattr(fuzz, "read_all", reader)
        (result,) = fuzz.run_batch([broken], {"nii": seed}, sound)
        return result.outcome

    assert outcome(lambda path: [sound["nii"][0] * 2]) == "cut, but read"
    assert outcome(lambda path: {}["gone"]) == "raised KeyError"
    assert outcome(lambda path: fuzz.os.kill(fuzz.os.getpid(), 9)) == "crashed (SIGKILL)"

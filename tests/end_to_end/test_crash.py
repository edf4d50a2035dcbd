"""A run that is killed with -9 at random moments ends as if nothing had happened; `benchmarks/crash.py` in short."""

from __future__ import annotations

import importlib.util
from pathlib import Path

CRASH = Path(__file__).parents[2] / "benchmarks" / "crash.py"


def test_a_killed_run_ends_with_the_same_bytes(tmp_path, capsys) -> None:
    spec = importlib.util.spec_from_file_location("crash", CRASH)
    assert spec is not None
    assert spec.loader is not None
    crash = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(crash)
    crash.crash(tmp_path, kills=2, seed=1, steps=10)
    assert "2 kills in" in capsys.readouterr().out

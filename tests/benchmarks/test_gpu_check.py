"""`benchmarks/gpu_check.py` in short, on a CPU: what it will tell of a GPU, and that it does not pass what is wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_check.py"


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    """As the command loads it, from its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROGRAM.parent))
        yield importlib.import_module("gpu_check")


@pytest.fixture
def bench(program: ModuleType, tmp_path: Path):
    return program.Bench(device=torch.device("cpu"), small=True, folder=tmp_path)


WITHOUT_IMAGES = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("SimpleITK", "imagecodecs"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
import runpy
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_all_checks_run_on_a_cpu_and_tell_their_figures(tmp_path: Path) -> None:
    """Without SimpleITK, as on the machine that it is for."""
    given = [str(PROGRAM), "--device", "cpu", "--small", "--out", str(tmp_path)]
    call = [sys.executable, "-c", WITHOUT_IMAGES, *given]
    ended = subprocess.run(
        call, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    last = ended.stdout.splitlines()[-1]
    assert (ended.returncode, last) == (0, "pass: all 11 checks"), ended.stdout + ended.stderr
    checks = json.loads((tmp_path / "gpu_check.json").read_text())["checks"]
    assert all(check["passed"] and not check["faults"] for check in checks.values())
    figures = {name: check["figures"] for name, check in checks.items()}
    assert figures["norm"]["error"] < 1e-12
    kinds = {name.rpartition(" ")[0] for name in figures["gradients"]}
    assert kinds == {f"{family} {axes}d" for family in ("unet", "residual_unet", "vnet") for axes in (2, 3)}
    assert all(kind["parameters"] > 15 and kind["least"] > 0.5 for kind in figures["gradients"].values())
    assert {*figures["augmentation"]} == {"isotropic", "anisotropic", "2d"}
    for name in ("isotropic", "anisotropic", "2d"):
        row = figures["steps"][name]
        assert row["steps_per_s"] > 0
        assert 0 <= row["waiting_share"] <= 1
        assert row["estimate_gb"] > 0
    assert figures["profile"]["shares"]["convolutions"] > 0.05
    assert figures["cap"]["cosine of micro-batches"] > 0.9999
    assert figures["training"]["cosine_of_resumed"] > 0.999999
    assert figures["prediction"]["large"]["seconds"] > 0
    assert min(figures["folds"].values()) > 0
    table = (tmp_path / "gpu_check.md").read_text()
    assert all(f"| {name} | pass |" in table for name in checks)


def test_what_is_wrong_does_not_pass(program: ModuleType, bench, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, trained, made = (
        importlib.import_module(f"gpu_checks.{name}") for name in ("computed", "trained", "made")
    )
    finish_together, train, right = computed.finish_together, computed.train, trained.find_micro_batch

    def brighter(*given):
        images, labels = finish_together(*given)
        return images + 1e-3, labels

    def unspoilt(*given, make_batch, **named):
        return train(*given, make_batch=lambda number: (make_batch(number), good)[1], **named)

    monkeypatch.setattr(computed, "finish_together", brighter)
    assert "images differ" in computed.check_augmentation(bench)[1][0]
    monkeypatch.setattr(computed, "train", unspoilt)
    plan, configuration = made.made_plans(bench)["isotropic"]
    spec = made.make_spec(bench, plan, configuration, made.method_training(bench, configuration))
    good = made.draw_batch(spec)
    assert "were skipped" in computed.check_late_results(bench)[1][0]
    real = computed.reference_norm
    monkeypatch.setattr(computed, "reference_norm", lambda x, weight, bias: real(x, weight, 2 * bias))
    assert "wrong by" in computed.check_norm(bench)[1][0]
    monkeypatch.setattr(trained, "find_micro_batch", lambda spec: right(spec) // 2)
    assert "fit into 8 GB at once" in trained.check_cap(bench)[1][0]


def test_a_check_that_fails_hangs_or_dies_ends_no_other(
    program: ModuleType, bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(bench) -> None:
        raise ValueError("a reason")

    checks = {
        "fails": program.Check(fail, 60),
        "hangs": program.Check(lambda bench: time.sleep(60), 0.5),
        "dies": program.Check(lambda bench: os._exit(3), 60),
        "finds": program.Check(lambda bench: ({"share": 0.5}, ["too little"]), 60),
        "passes": program.Check(lambda bench: ({"share": 0.75}, []), 60),
    }
    monkeypatch.setattr(program, "CHECKS", checks)
    results = {name: program.run_apart(name, bench, check.limit_s) for name, check in checks.items()}
    assert {name: row["passed"] for name, row in results.items()} == {**dict.fromkeys(checks, False), "passes": True}
    assert results["fails"]["faults"] == ["ValueError: a reason"]
    assert "took more than" in results["hangs"]["faults"][0]
    assert results["hangs"]["seconds"] < 30
    assert "ended with code 3" in results["dies"]["faults"][0]
    assert results["finds"]["figures"] == {"share": 0.5}

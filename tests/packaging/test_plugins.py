"""The package of the guide to extending autoseg, installed outside the repository: a run uses its parts by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from builders import CPU_WORDS
from safetensors import safe_open

from autoseg.data.phantom import make_phantom_dataset

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "extend.md"
FILE = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.M | re.S)


@pytest.fixture(scope="module")
def with_plugin(environment, build_wheel, tmp_path_factory):
    source = tmp_path_factory.mktemp("plugin")
    (source / "tiny_plugin").mkdir()
    for name, text in FILE.findall(GUIDE.read_text()):
        (source / name).write_text(text)
    environment.install(build_wheel(source, source / "dist"))
    return environment


def test_a_run_uses_the_parts_of_an_installed_package(with_plugin, tmp_path: Path) -> None:
    dataset, run = tmp_path / "Task01_Phantom", tmp_path / "run"
    make_phantom_dataset(dataset, num_training=4, num_test=1, seed=0)
    parts = ("--preset", "tiny", "--set", "plan.loss.name=plain_cross_entropy", "--track", "count_steps")
    few = (
        "--configurations",
        "3d_fullres",
        "--set",
        "schedule.num_steps=3",
        "--target-spacing",
        "3,3,3",
        "--folds",
        "2",
    )
    with_plugin.call("autoseg", "run", dataset, "--out", run, *parts, *few, *CPU_WORDS, "--budget", "1m")
    (planned,) = [c for c in json.loads((run / "plan.json").read_text())["configurations"] if c["name"] == "3d_fullres"]
    assert (planned["network"]["family"], planned["loss"]["name"]) == ("tiny", "plain_cross_entropy")
    losses = [float(line.split()[1]) for line in (run / "steps.txt").read_text().splitlines()]
    assert len(losses) == 2 * 3
    assert losses[0] > 5  # ten times the cross entropy of three classes; the usual loss begins near 1
    weights = run / "models" / "3d_fullres" / "fold_0" / "final.safetensors"
    with safe_open(weights, "pt") as file:
        assert {"stages.0.weight", "head.weight"} <= set(file.keys())


def test_a_document_that_names_a_part_which_is_not_installed_is_refused(
    environment, with_plugin, tmp_path: Path
) -> None:
    wishes = ("--set", "plan.loss.name=os.system")
    dataset = tmp_path / "phantom"
    make_phantom_dataset(dataset, num_training=2, num_test=0, seed=0)
    said = with_plugin.call("autoseg", "plan", dataset, "--out", tmp_path / "run", *wishes, code=1)
    assert "os.system" in said
    assert "plain_cross_entropy" in said

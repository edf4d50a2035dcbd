"""`autoseg plan` on the reference's own files, as its users would call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "plans" / "025"


def plan(*arguments: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", "from autoseg.cli import main; main()", "plan", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, check=False)


def test_the_references_files_give_the_references_plans(tmp_path) -> None:
    out = tmp_path / "plans.json"
    done = plan(
        "--nnunet-fingerprint", GOLDEN / "fingerprint.json", "--nnunet-dataset", GOLDEN / "dataset.json",
        "--preset", "default", "--strict-reference", "--nnunet-plans", out,
    )
    assert done.returncode == 0, done.stderr
    got, expected = json.loads(out.read_text()), json.loads((GOLDEN / "plans_default.json").read_text())
    assert got["configurations"].keys() == expected["configurations"].keys()
    for name, wanted in expected["configurations"].items():
        found = got["configurations"][name]
        for key in ("patch_size", "batch_size", "median_image_size_in_voxels", "architecture", "batch_dice"):
            if key in wanted:
                assert found[key] == wanted[key], (name, key)
    assert got["transpose_forward"] == expected["transpose_forward"]


def test_memory_and_spacing_are_heard(tmp_path) -> None:
    files = ("--nnunet-fingerprint", GOLDEN / "fingerprint.json", "--nnunet-dataset", GOLDEN / "dataset.json")
    out = tmp_path / "plans.json"
    done = plan(*files, "--preset", "resenc_l", "--memory-gb", 12, "--target-spacing", "2,1.5,1.5", "--nnunet-plans", out)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["configurations"]["3d_fullres"]["spacing"] == [2.0, 1.5, 1.5]


def test_without_an_output_file_the_plan_is_explained(tmp_path) -> None:
    done = plan("--nnunet-fingerprint", GOLDEN / "fingerprint.json", "--nnunet-dataset", GOLDEN / "dataset.json")
    assert done.returncode == 0
    assert "3d_fullres" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give DATASET"),
        (["--nnunet-fingerprint", GOLDEN / "fingerprint.json"], 2, "give DATASET"),
        (["--nnunet-fingerprint", "absent.json", "--nnunet-dataset", "absent.json"], 1, "absent.json"),
        (["x", "--target-spacing", "1,2"], 2, "three numbers"),
        (["x", "--target-spacing", "1,0,2"], 2, "positive"),
        (["x", "--nnunet-plans", "plans.json"], 2, "--strict-reference"),
    ],
)
def test_bad_calls_are_answered(arguments, code, message) -> None:
    done = plan(*arguments)
    assert done.returncode == code
    assert message in " ".join(done.stderr.split())


def test_all_faults_of_a_file_are_told_with_their_places(tmp_path) -> None:
    content = json.loads((GOLDEN / "fingerprint.json").read_text())
    content["spacings"][0][1] = -1.0
    content["shapes_after_crop"][1] = [1, 2]
    content["extra_field_is_fine"] = 1
    (tmp_path / "f.json").write_text(json.dumps(content))
    done = plan("--nnunet-fingerprint", tmp_path / "f.json", "--nnunet-dataset", GOLDEN / "dataset.json")
    assert done.returncode == 1
    assert "spacings.0.1" in done.stderr
    assert "shapes_after_crop.1" in done.stderr
    assert "Traceback" not in done.stderr

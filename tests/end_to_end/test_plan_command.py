"""`autoseg plan` on the reference's own files, as its users would call it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest

from autoseg.cli import main

GOLDEN = Path(__file__).parents[1] / "golden" / "plans" / "025"


def plan(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What the command line answers; in this process, since starting one takes longer than planning."""
    call, out, err = ["autoseg", "plan", *map(str, arguments)], StringIO(), StringIO()
    with patch.object(sys, "argv", call), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main()
    code = end.value.code or 0
    assert isinstance(code, int)
    return subprocess.CompletedProcess(call, code, out.getvalue(), err.getvalue())


def test_the_references_files_give_the_references_plans(tmp_path) -> None:
    out = tmp_path / "plans.json"
    done = plan(
        "--nnunet-fingerprint",
        GOLDEN / "fingerprint.json",
        "--nnunet-dataset",
        GOLDEN / "dataset.json",
        "--preset",
        "default",
        "--strict-reference",
        "--nnunet-plans",
        out,
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


def test_memory_and_spacing_are_used(tmp_path) -> None:
    files = ("--nnunet-fingerprint", GOLDEN / "fingerprint.json", "--nnunet-dataset", GOLDEN / "dataset.json")
    out = tmp_path / "plans.json"
    done = plan(
        *files, "--preset", "resenc_l", "--memory-gb", 12, "--target-spacing", "2,1.5,1.5", "--nnunet-plans", out
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["configurations"]["3d_fullres"]["spacing"] == [2.0, 1.5, 1.5]


def test_without_an_output_file_the_plan_is_explained(tmp_path) -> None:
    done = plan("--nnunet-fingerprint", GOLDEN / "fingerprint.json", "--nnunet-dataset", GOLDEN / "dataset.json")
    assert done.returncode == 0
    assert "3d_fullres" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "pass DATASET"),
        (["--nnunet-fingerprint", GOLDEN / "fingerprint.json"], 2, "pass DATASET"),
        (["--nnunet-fingerprint", "absent.json", "--nnunet-dataset", "absent.json"], 1, "absent.json"),
        ([GOLDEN, "--target-spacing", "1,2"], 2, "three numbers"),
        ([GOLDEN, "--target-spacing", "1,0,2"], 2, "greater than 0"),
        ([GOLDEN, "--nnunet-plans", "plans.json"], 2, "--strict-reference"),
    ],
)
def test_bad_calls_are_refused(tmp_path, monkeypatch, arguments, code, message) -> None:
    monkeypatch.chdir(tmp_path)
    done = plan(*arguments)
    assert done.returncode == code
    assert message in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_all_faults_of_a_file_are_reported_with_their_places(tmp_path) -> None:
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


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the reference's two files of a dataset."""
    folder = tmp_path / "Dataset025"
    folder.mkdir()
    for name in ("fingerprint.json", "dataset.json"):
        shutil.copy(GOLDEN / name, folder)
    return folder


def options(files: Path) -> tuple[object, ...]:
    return (
        "--strict-reference",
        "--nnunet-fingerprint",
        files / "fingerprint.json",
        "--nnunet-dataset",
        files / "dataset.json",
    )


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """What a call that was refused said."""
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def test_plans_replace_nothing_but_plans(files: Path) -> None:
    (files / "link.json").symlink_to("dataset.json")
    (files / "notes.json").write_text("[1]")
    (files / "figure.png").write_bytes(b"\x89PNG")
    before = contents(files)
    for name in ("dataset.json", "fingerprint.json", "link.json"):
        assert f"{name}: an input of this command" in refusal(plan(*options(files), "--nnunet-plans", files / name))
    for name in ("notes.json", "figure.png"):
        assert f"{name}: exists and is not an nnU-Net plans file" in refusal(
            plan(*options(files), "--nnunet-plans", files / name)
        )
    for place in (".", files):
        assert f"{place}: is a folder, not a file" in refusal(plan(*options(files), "--nnunet-plans", place))
    assert contents(files) == before


def test_existing_plans_are_reported_before_images_are_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    call = (
        tmp_path,
        "--strict-reference",
        "--out",
        tmp_path / "run",
        "--nnunet-plans",
        tmp_path / "notes.txt",
    )
    assert "notes.txt: exists and is not an nnU-Net plans file" in refusal(plan(*call))
    assert not (tmp_path / "run").exists()


def test_the_users_configurations_survive_in_a_plans_file(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "plans.json"
    out.touch()
    assert plan(*options(files), "--nnunet-plans", out).returncode == 0
    first = out.read_bytes()
    assert plan(*options(files), "--nnunet-plans", out).returncode == 0
    assert out.read_bytes() == first
    own = {"inherits_from": "3d_fullres", "batch_size": 7}
    planned = json.loads(first)
    changed = planned["configurations"]["2d"] | {"batch_size": 1}
    configurations = {"mine": own, **planned["configurations"], "2d": changed}
    out.write_text(json.dumps(planned | {"configurations": configurations, "plans_name": "old"}))
    done = plan(*options(files), "--nnunet-plans", out)
    assert "kept the existing mine" in done.stdout
    assert json.loads(out.read_text()) == planned | {"configurations": planned["configurations"] | {"mine": own}}


def test_a_plan_is_put_neither_into_a_dataset_nor_into_a_run(files: Path, tmp_path: Path) -> None:
    run, described, notes = (tmp_path / name for name in ("run", "described", "notes"))
    for folder in (run / "stages", run / "locks", described, notes):
        folder.mkdir(parents=True)
    for path in (run / "plan.json", described / "dataset.json", notes / "plan.json"):
        path.write_text("{}")
    before = contents(tmp_path)
    for folder, found in (
        (files, "is the dataset folder"),
        (run, "is a run folder with its own plan"),
        (described, "was not written by a run"),
        (notes, "exists and is not an autoseg plan"),
    ):
        assert found in refusal(plan(*options(files), "--out", folder))
    assert contents(tmp_path) == before
    for _ in range(2):
        done = plan(
            *options(files), "--out", tmp_path / "planned", "--nnunet-plans", tmp_path / "planned" / "plans.json"
        )
        assert done.returncode == 0, done.stderr

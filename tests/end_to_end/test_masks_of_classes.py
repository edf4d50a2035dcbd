"""A dataset with one mask file for each class, which overlap: trained on as regions, predicted as one file a class again."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import SimpleITK
from builders import CPU_WORDS
from typer.testing import CliRunner

from autoseg.cli import app

SHAPE = (12, 20, 24)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.25, 2.0))
    SimpleITK.WriteImage(image, path)


def make_dataset(root: Path, labelled: int = 4) -> None:
    """Five cases, four of them labelled; a ball and an egg that overlap, 255 inside."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for number in range(5):
        shift = int(rng.integers(-2, 3))
        ball = (z - 6) ** 2 + (y - 10 - shift) ** 2 + (x - 10) ** 2 < 25
        egg = (z - 6) ** 2 + (y - 10 - shift) ** 2 + (x - 14) ** 2 < 16
        image = 1 + rng.normal(0, 0.1, SHAPE) + ball + 2 * egg
        write(root / f"p{number}" / "mr.nii.gz", image.astype(np.float32))
        if number < labelled:
            write(root / f"p{number}" / "masks" / "ball.nii.gz", (ball * 255).astype(np.uint8))
            write(root / f"p{number}" / "masks" / "egg.nii.gz", (egg * 255).astype(np.uint8))


def call(*arguments: object) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_overlapping_masks_come_back_as_one_file_for_each_class(tmp_path) -> None:
    make_dataset(tmp_path / "data")
    (tmp_path / "spec.toml").write_text('extends = "case_masks"\nwithout_label = "test"\n')
    run = tmp_path / "run"
    spec, short = ("--spec", tmp_path / "spec.toml"), ("--folds", "2", "--set", "schedule.num_steps=10")
    short += ("--set", "schedule.base_features=8")
    call("run", tmp_path / "data", *spec, "--out", run, *short, "--configurations", "3d_fullres", *CPU_WORDS)
    plan = json.loads((run / "plan.json").read_text())
    assert [label["name"] for label in plan["labels"]["classes"]] == ["ball", "egg"]
    assert plan["labels"]["region_order"] == [1, 2]
    summary = json.loads((run / "cross_validation" / "summary.json").read_text())
    assert {case["case_id"] for case in summary["metric_per_case"]} == {"p0", "p1", "p2", "p3"}
    # the true voxels of a class are those of its mask, shared ones among them
    ball = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(tmp_path / "data" / "p0" / "masks" / "ball.nii.gz"))
    scored = next(case for case in summary["metric_per_case"] if case["case_id"] == "p0")["metrics"]
    assert next(iter(scored.values()))["n_ref"] == np.count_nonzero(ball)
    image = SimpleITK.ReadImage(tmp_path / "data" / "p4" / "mr.nii.gz")
    for name in ("ball", "egg"):
        mask = SimpleITK.ReadImage(run / "predictions" / "p4" / f"{name}.nii.gz")
        assert (mask.GetSize(), mask.GetSpacing()) == (image.GetSize(), image.GetSpacing())
        assert set(np.unique(SimpleITK.GetArrayFromImage(mask))) <= {0, 255}
    call("predict", run, tmp_path / "data" / "p0" / "mr.nii.gz", tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new" / "mr").iterdir()) == ["ball.nii.gz", "egg.nii.gz"]
    write(tmp_path / "new" / "mr" / "egg.nii.gz", np.full(SHAPE, 255, np.uint8))
    assert (
        call("predict", run, tmp_path / "data" / "p0" / "mr.nii.gz", tmp_path / "new")
        == f"Label maps: {tmp_path / 'new'}\n"
    )
    (volumes,) = csv.DictReader((tmp_path / "new" / "volumes.csv").read_text().splitlines())
    assert float(volumes["egg (ml)"]) == 2.5 * np.prod(SHAPE) / 1000
    make_dataset(tmp_path / "truth", labelled=5)
    (tmp_path / "wanted").mkdir()
    (tmp_path / "truth" / "p4").rename(tmp_path / "wanted" / "p4")
    scores = call("evaluate", run / "predictions", tmp_path / "wanted")
    assert [line.split()[0] for line in scores.splitlines()[1:3]] == ["ball", "egg"]
    call("submit", run, "--out", tmp_path / "submission.zip")
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.namelist() == ["p4/ball.nii.gz", "p4/egg.nii.gz"]

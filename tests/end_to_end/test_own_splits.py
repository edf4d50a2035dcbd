"""Folds that a person brings are trained as they stand, and faults in them are told before anything is computed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autoseg.data.phantom import make_phantom_dataset


def autoseg(*arguments: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", "from autoseg.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("own_splits") / "Task99_Phantom"
    make_phantom_dataset(folder, num_training=4, num_test=0, seed=5)
    return folder


def test_faulty_folds_are_refused_with_all_faults(dataset, tmp_path) -> None:
    splits = tmp_path / "splits_final.json"
    splits.write_text(
        json.dumps([{"train": ["phantom_000"], "val": ["phantom_000"]}, {"train": ["phantom_1"], "val": []}])
    )
    done = autoseg("train", dataset, "--out", tmp_path / "run", "--device", "cpu", "--splits", splits)
    assert done.returncode == 1
    for text in ("phantom_000 trains and validates", "'phantom_1' is no case", "no case validates"):
        assert text in done.stderr.replace("\n", " ")
    assert not (tmp_path / "run" / "preprocessed").exists()
    mixed = autoseg("train", dataset, "--out", tmp_path / "run", "--device", "cpu", "--splits", splits, "--folds", "3")
    assert mixed.returncode == 1
    assert "--folds: the folds of --splits" in mixed.stderr


def test_one_given_fold_is_trained_and_others_are_not_made_up(dataset, tmp_path) -> None:
    splits = tmp_path / "splits_final.json"
    names = sorted(path.name.removesuffix(".nii.gz") for path in (dataset / "labelsTr").glob("*.nii.gz"))
    splits.write_text(json.dumps([{"train": names[:2], "val": names[2:]}]))
    done = autoseg(
        "train",
        dataset,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--threads",
        1,
        "--budget",
        "5s",
        "--splits",
        splits,
    )
    assert done.returncode == 0, done.stderr
    assert "no fold validates" in done.stderr
    written = json.loads((tmp_path / "run" / "splits.json").read_text())["folds"]
    assert written == [{"train": names[:2], "val": names[2:]}]
    assert json.loads((tmp_path / "run" / "schedule.json").read_text())["num_folds"] == 1
    (models,) = (tmp_path / "run" / "models").iterdir()
    assert [folder.name for folder in models.iterdir()] == ["fold_0"]
    assert json.loads((models / "fold_0" / "issues.json").read_text())["issues"] == []
    again = autoseg(
        "train",
        dataset,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--threads",
        1,
        "--budget",
        "5s",
        "--splits",
        splits,
        "--fold",
        1,
    )
    assert again.returncode == 1
    assert "there is no fold 1; there are folds 0 to 0: choose one of these" in again.stderr

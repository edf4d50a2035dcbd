"""What somebody else wrote is not written over by a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from autoseg.pipeline.claiming import require_free
from autoseg.pipeline.options import Options
from autoseg.pipeline.stages import check_stage
from typer.testing import CliRunner

from autoseg.cli import app
from autoseg.data.phantom import make_phantom_dataset
from autoseg.inference.model import load_model
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.tracking.progress import SilentReporter


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_dataset_itself_is_no_run_folder(tmp_path: Path) -> None:
    make_phantom_dataset(tmp_path / "data", num_training=2, num_test=0, seed=0)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(AutosegError, match=r"is the dataset itself.*--out"):
        require_free(RunFolder(tmp_path / "link"), tmp_path / "data")


def test_the_description_of_another_program_is_not_written_over(tmp_path: Path) -> None:
    make_phantom_dataset(tmp_path / "data", num_training=2, num_test=0, seed=0)
    make_phantom_dataset(tmp_path / "other", num_training=2, num_test=0, seed=1)
    before = contents(tmp_path / "other")
    with pytest.raises(AutosegError, match=r"other/dataset\.json was not written by a run.*--out"):
        require_free(RunFolder(tmp_path / "other"), tmp_path / "data")
    assert contents(tmp_path / "other") == before


def test_folds_of_a_persons_own_are_not_written_over(tmp_path: Path) -> None:
    make_phantom_dataset(tmp_path / "data", num_training=2, num_test=0, seed=0)
    (tmp_path / "splits.json").write_text("[]")
    with pytest.raises(AutosegError, match=r"has splits\.json, but no run was begun there.*--out"):
        require_free(RunFolder(tmp_path), tmp_path / "data")
    (tmp_path / "locks").mkdir()
    require_free(RunFolder(tmp_path), tmp_path / "data")


def test_a_run_goes_on_in_its_own_folder_even_if_its_description_is_damaged(tmp_path: Path) -> None:
    make_phantom_dataset(tmp_path / "data", num_training=2, num_test=0, seed=0)
    run = RunFolder(tmp_path / "run")
    require_free(run, tmp_path / "data")
    check_stage(
        Options(
            dataset=tmp_path / "data",
            run=run,
            device_name="cpu",
            num_threads=1,
            num_workers=1,
            reporter=SilentReporter(),
        )
    )
    require_free(run, tmp_path / "data")
    run.dataset.write_bytes(run.dataset.read_bytes()[:100])
    require_free(run, tmp_path / "data")


def test_a_model_of_nnunet_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "plans.json").write_text("{}")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0}}))
    with pytest.raises(AutosegError, match="autoseg import-nnunet"):
        load_model(tmp_path, device=torch.device("cpu"))


@pytest.mark.parametrize("folder", ["cross_validation", "models/3d_fullres/fold_0/validation"])
def test_scores_of_a_run_are_not_replaced_by_those_against_other_references(tmp_path: Path, folder: str) -> None:
    make_phantom_dataset(tmp_path / "data", num_training=2, num_test=0, seed=0)
    run, labels = RunFolder(tmp_path / "run"), tmp_path / "data" / "labelsTr"
    check_stage(
        Options(
            dataset=tmp_path / "data",
            run=run,
            device_name="cpu",
            num_threads=1,
            num_workers=1,
            reporter=SilentReporter(),
        )
    )
    shutil.copytree(labels, run.root / folder)
    scores = run.root / folder / "summary.json"
    scores.write_text("{}")
    (tmp_path / "link").symlink_to(run.root / folder)
    for given in ([run.root / folder], [tmp_path / "link"], [labels, "--out", scores]):
        with pytest.raises(AutosegError, match=r"summary\.json is for the scores of the run in .*run, .*--out"):
            CliRunner().invoke(
                app, ["evaluate", str(given[0]), str(labels), *map(str, given[1:])], catch_exceptions=False
            )
    assert scores.read_text() == "{}"
    other, predictions = tmp_path / "other.json", shutil.copytree(labels, run.predictions)
    for given in ([run.root / folder, labels, "--out", other], [predictions, labels]):
        done = CliRunner().invoke(app, ["evaluate", *map(str, given), "--workers", "1"])
        assert done.exit_code == 0, done.output
    assert other.is_file()
    assert (predictions / "summary.json").is_file()


def test_scores_are_refused_a_folder_as_their_place_before_anything_is_scored(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "absent"), str(tmp_path / "absent"), "--out", "."])
    assert isinstance(done.exception, AutosegError)
    assert str(done.exception).startswith(". is a folder, but a file is to be written")

"""The whole job on a small phantom, as a person would do it: run, predict, evaluate, submit, and all of it again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from autoseg.data.phantom import make_phantom_dataset
from autoseg.inference.predictor import Predictor


def autoseg(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line and insist on its exit code."""
    call = [sys.executable, "-c", "from autoseg.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{arguments}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def model_folder(run: Path) -> Path:
    """Folder of the configuration that the run chose; which one depends on how fast the machine is."""
    return run / "models" / json.loads((run / "selection.json").read_text())["members"][0]


SAME = ("--device", "cpu", "--threads", "1")
"""One thread: the suite runs several tests at once, and last digits depend on the number of threads."""
SETTINGS = ("--budget", "40s", *SAME)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """Dataset, run folder and what the run printed."""
    folder = tmp_path_factory.mktemp("job")
    dataset, run = folder / "Task99_Phantom", folder / "run"
    make_phantom_dataset(dataset, num_training=5, num_test=2, seed=1)
    done = autoseg("run", dataset, "--out", run, *SETTINGS)
    return dataset, run, done


def test_the_run_leaves_what_it_promises(job) -> None:
    _, run, done = job
    for name in (
        "dataset.json",
        "fingerprint.json",
        "plan.json",
        "schedule.json",
        "splits.json",
        "selection.json",
        "run.json",
        "log.txt",
        "report/index.html",
        "cross_validation/summary.json",
        "predictions",
    ):
        assert (run / name).exists(), name
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    fold = model_folder(run) / "fold_0"
    assert {p.name for p in fold.iterdir()} >= {
        "checkpoint.pt",
        "final.safetensors",
        "best.safetensors",
        "history.jsonl",
        "validation",
    }
    assert not list(run.rglob("*.part"))
    assert "Cross-validation" in done.stdout
    assert "bean" in done.stdout
    assert "ring" in done.stdout
    assert "folds x 1 configuration" in done.stderr
    assert "left" in done.stderr or "Selected" in done.stderr


def test_every_case_is_validated_once(job) -> None:
    dataset, run, _ = job
    splits = json.loads((run / "splits.json").read_text())["folds"]
    validated = sorted(case for fold in splits for case in fold["val"])
    images = sorted(p.name.removesuffix(".nii.gz") for p in (dataset / "imagesTr").glob("[!.]*.nii.gz"))
    assert validated == images
    summary = json.loads((run / "cross_validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == len(images)


def test_predictions_lie_on_the_grid_of_their_images(job) -> None:
    """The phantoms are stored in mixed orientations."""
    dataset, run, _ = job
    pairs = [(p, dataset / "imagesTs" / p.name) for p in (run / "predictions").glob("*.nii.gz")]
    pairs += [(p, dataset / "imagesTr" / p.name) for p in (run / "cross_validation").glob("*.nii.gz")]
    assert len(pairs) == 7
    for prediction, image in pairs:
        got, expected = SimpleITK.ReadImage(prediction), SimpleITK.ReadImage(image)
        assert got.GetSize() == expected.GetSize()
        assert got.GetSpacing() == expected.GetSpacing()
        assert got.GetOrigin() == expected.GetOrigin()
        np.testing.assert_allclose(got.GetDirection(), expected.GetDirection(), atol=1e-6)
        assert set(np.unique(SimpleITK.GetArrayViewFromImage(got))) <= {0, 1, 2}


def test_a_second_call_does_nothing_again(job) -> None:
    dataset, run, _ = job
    weights = model_folder(run) / "fold_0" / "final.safetensors"
    written = {p: p.stat().st_mtime_ns for p in [weights, *(run / "predictions").glob("*.nii.gz"), run / "plan.json"]}
    autoseg("run", dataset, "--out", run, *SETTINGS)
    assert {p: p.stat().st_mtime_ns for p in written} == written


def test_predict_evaluate_and_submit(job, tmp_path) -> None:
    dataset, run, _ = job
    out = tmp_path / "predictions"
    autoseg("predict", run, dataset / "imagesTs", out, "--probabilities", *SAME)
    names = sorted(p.name for p in (dataset / "imagesTs").glob("[!.]*.nii.gz"))
    assert sorted(p.name for p in out.glob("*.nii.gz")) == names
    scores = np.load(out / names[0].replace(".nii.gz", ".npz"))["probabilities"]
    assert scores.shape[0] == 3
    np.testing.assert_allclose(scores.sum(0), 1, atol=1e-5)  # float32 softmax
    same = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(run / "predictions" / names[0]))
    got = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(out / names[0]))
    assert (same != got).mean() < 1e-3  # argmax of logits and of probabilities differ only where two are equal
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    autoseg("predict", run, dataset / "imagesTs", out, "--probabilities", *SAME)
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before

    bundle, again = tmp_path / "model.zip", tmp_path / "predictions_of_the_bundle"
    assert "MB" in autoseg("bundle", run, bundle).stdout
    autoseg("predict", bundle, dataset / "imagesTs" / names[0], again, *SAME)
    assert (again / names[0]).read_bytes() == (run / "predictions" / names[0]).read_bytes()

    done = autoseg("evaluate", out, dataset / "labelsTs")
    assert "bean" in done.stdout  # predictions know what their values mean
    assert (out / "summary.json").exists()

    archive = tmp_path / "submission.zip"
    autoseg("submit", run, "--as", "msd", "--out", archive)
    assert sorted(zipfile.ZipFile(archive).namelist()) == [f"Task99_Phantom/{name}" for name in names]
    autoseg("submit", run, "--as", "folder", "--out", tmp_path / "plain")
    assert sorted(p.name for p in (tmp_path / "plain").iterdir()) == names


def test_a_submission_with_a_missing_case_is_refused_by_name(job, tmp_path) -> None:
    _, run, _ = job
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("preprocessed", "models"))
    lost = sorted((copy / "predictions").glob("*.nii.gz"))[0]
    lost.unlink()
    done = autoseg("submit", copy, "--out", tmp_path / "s.zip", code=1)
    assert lost.name.removesuffix(".nii.gz") in done.stderr
    assert not (tmp_path / "s.zip").exists()


def test_the_predictor_takes_arrays(job) -> None:
    dataset, run, _ = job
    predictor = Predictor.load(run, device="cpu")
    image = SimpleITK.ReadImage(sorted((dataset / "imagesTs").glob("[!.]*.nii.gz"))[0])
    image = SimpleITK.DICOMOrient(image, "LPS")
    array = SimpleITK.GetArrayFromImage(image).astype(np.float32)
    labels = predictor.predict(array, spacing_mm=image.GetSpacing()[::-1])
    assert labels.shape == array.shape
    from_file = predictor.predict_files([sorted((dataset / "imagesTs").glob("[!.]*.nii.gz"))[0]])
    stored = SimpleITK.GetImageFromArray(from_file.labels)
    stored.CopyInformation(SimpleITK.ReadImage(sorted((dataset / "imagesTs").glob("[!.]*.nii.gz"))[0]))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(stored, "LPS")), labels)


def test_one_case_trains_but_is_not_said_to_be_cross_validated(tmp_path) -> None:
    make_phantom_dataset(tmp_path / "Task98_One", num_training=1, num_test=1, seed=2)
    done = autoseg(
        "run",
        tmp_path / "Task98_One",
        "--out",
        tmp_path / "run",
        "--budget",
        "20s",
        "--device",
        "cpu",
        "--threads",
        "1",
    )
    assert "Nothing was cross-validated" in done.stdout
    assert len(list((tmp_path / "run" / "predictions").glob("*.nii.gz"))) == 1
    selection = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert selection["cross_validated"] is False
    assert selection["dice_after_postprocessing"] is None
    assert not (tmp_path / "run" / "cross_validation").exists()


def test_plan_explains_itself(job, tmp_path) -> None:
    dataset, _, _ = job
    done = autoseg("plan", dataset, "--out", tmp_path / "plan", "--explain")
    assert "3d_fullres" in done.stdout
    assert "method" in done.stdout


def test_check_says_what_is_there(job) -> None:
    dataset, _, _ = job
    assert "5 labelled cases" in autoseg("check", dataset).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "absent"], 1, "does not exist"),
        (["run"], 2, "Missing argument"),
        (["run", "x", "--budget", "soon"], 2, "no duration"),
        (["predict", "absent", "a", "b"], 1, "absent"),
        (["evaluate", "absent", "nowhere"], 1, "absent"),
        (["frobnicate"], 2, "No such command"),
        (["check", "."], 1, "dataset"),
    ],
)
def test_bad_calls_are_answered_with_a_message(tmp_path, arguments, code, message) -> None:
    call = [sys.executable, "-c", "from autoseg.cli import main; main()", *arguments]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr.replace("\n", " ") or message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_no_model_is_said_to_be_none(tmp_path) -> None:
    (tmp_path / "other").mkdir()
    done = autoseg("predict", tmp_path / "other", tmp_path, tmp_path / "out", code=1)
    assert "no run folder" in done.stderr
    assert not (tmp_path / "out").exists()

"""A finished run as a user sees it: its files, predict, evaluate, bundle, submit, and calls that are wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from builders import CPU_WORDS, Job, crop_images, make_phantom, write_short_schedule
from typer.testing import CliRunner

from autoseg import api
from autoseg.cli import app
from autoseg.inference.predictor import Predictor
from autoseg.issues import AutosegError


def autoseg(*arguments: object) -> str:
    """What the command line prints when it ends well; in this process, since starting one takes seconds."""
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_run_writes_its_files(finished: Job) -> None:
    documents = ("settings", "dataset", "fingerprint", "plan", "schedule", "splits", "selection", "run")
    others = ("log.txt", "report/index.html", "cross_validation/summary.json", "predictions")
    for name in (*(f"{document}.json" for document in documents), *others):
        assert (finished.root / name).exists(), name
    assert json.loads(finished.folder.record.read_text())["state"] == "finished"
    files = {"checkpoint.pt", "final.safetensors", "best.safetensors", "history.jsonl", "validation"}
    assert {path.name for path in finished.folder.fold("2d", 0).iterdir()} >= files
    assert not list(finished.root.rglob("*.part"))


def test_every_case_is_validated_once(finished: Job) -> None:
    splits = json.loads(finished.folder.splits.read_text())["folds"]
    validated = sorted(case for fold in splits for case in fold["val"])
    images = sorted(path.name.removesuffix(".nii.gz") for path in (finished.dataset / "imagesTr").glob("[!.]*.nii.gz"))
    assert validated == images
    summary = json.loads((finished.folder.cross_validation / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == len(images)


def test_predictions_have_the_grid_of_their_images(finished: Job) -> None:
    """The phantoms are stored in mixed orientations."""
    folders = ((finished.folder.predictions, "imagesTs"), (finished.folder.cross_validation, "imagesTr"))
    pairs = [
        (path, finished.dataset / part / path.name) for folder, part in folders for path in folder.glob("*.nii.gz")
    ]
    assert len(pairs) == 6
    for prediction, image in pairs:
        got, expected = SimpleITK.ReadImage(prediction), SimpleITK.ReadImage(image)
        assert got.GetSize() == expected.GetSize()
        assert got.GetSpacing() == expected.GetSpacing()
        assert got.GetOrigin() == expected.GetOrigin()
        np.testing.assert_allclose(got.GetDirection(), expected.GetDirection(), atol=1e-6)
        assert set(np.unique(SimpleITK.GetArrayViewFromImage(got))) <= {0, 1, 2}


def test_predict_evaluate_and_submit(finished: Job, tmp_path: Path) -> None:
    images, out = finished.dataset / "imagesTs", tmp_path / "predictions"
    predict = ("predict", finished.root, images, out, "--probabilities", *CPU_WORDS[:4])
    autoseg(*predict)
    names = sorted(path.name for path in images.glob("[!.]*.nii.gz"))
    assert sorted(path.name for path in out.glob("*.nii.gz")) == names
    scores = np.load(out / names[0].replace(".nii.gz", ".npz"))["probabilities"]
    assert scores.shape[0] == 3
    np.testing.assert_allclose(scores.sum(0), 1, atol=1e-5)  # float32 softmax
    same = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(finished.folder.predictions / names[0]))
    got = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(out / names[0]))
    assert (same != got).mean() < 1e-3  # argmax of logits and of probabilities differ only where two are equal
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    autoseg(*predict)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before

    bundle, again = tmp_path / "model.zip", tmp_path / "predictions_of_the_bundle"
    assert "MB" in autoseg("bundle", finished.root, bundle)
    autoseg("predict", bundle, images / names[0], again, *CPU_WORDS[:4])
    assert (again / names[0]).read_bytes() == (finished.folder.predictions / names[0]).read_bytes()

    table = autoseg("evaluate", out, finished.dataset / "labelsTs", "--workers", 1)
    assert "bean" in table  # predictions know what their values mean
    assert (out / "summary.json").exists()
    files = (out / names[0], finished.dataset / "labelsTs" / names[0])
    assert "bean" in autoseg("evaluate", *files, "--workers", 1)
    assert (out / names[0].replace(".nii.gz", "_summary.json")).exists()

    archive = tmp_path / "submission.zip"
    said = autoseg("submit", finished.root, "--as", "zip", "--out", archive)
    assert f"{len(names)} of {len(names)} cases" in said
    assert sorted(zipfile.ZipFile(archive).namelist()) == names
    autoseg("submit", finished.root, "--as", "folder", "--out", tmp_path / "plain")
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == names


def test_a_submission_predicts_what_is_missing_and_new_images(finished: Job, tmp_path: Path) -> None:
    copy, images = tmp_path / "run", tmp_path / "new"
    shutil.copytree(finished.root, copy, ignore=shutil.ignore_patterns("preprocessed", "models"))
    lost = min((copy / "predictions").glob("*.nii.gz"))
    content = lost.read_bytes()
    lost.unlink()
    autoseg("submit", copy, "--out", tmp_path / "s.zip", *CPU_WORDS[:4])
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.read(lost.name) == content
    images.mkdir()
    shutil.copy(finished.dataset / "imagesTs" / lost.name, images / "other.nii.gz")
    said = autoseg("submit", copy, "--images", images, "--as", "folder", "--out", tmp_path / "f", *CPU_WORDS[:4])
    assert "1 of 1 cases" in said
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["other.nii.gz"]
    assert (tmp_path / "f" / "other.nii.gz").read_bytes() == content


def test_the_predictor_takes_arrays(finished: Job) -> None:
    predictor, path = (
        Predictor.load(finished.root, device="cpu"),
        min((finished.dataset / "imagesTs").glob("[!.]*.nii.gz")),
    )
    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(path), "LPS")
    array = SimpleITK.GetArrayFromImage(image).astype(np.float32)
    told: list[tuple[int, int]] = []
    found = predictor.predict_image(
        array,
        spacing_mm=image.GetSpacing()[::-1],
        axes="SPL",
        probabilities=True,
        progress=lambda *windows: told.append(windows),
    )
    labels = found.labels
    assert labels.shape == array.shape
    assert found.probabilities is not None
    assert found.probabilities.shape[1:] == array.shape
    assert told[-1][0] == told[-1][1]
    assert told == sorted(told)
    stored_image = nibabel.load(path)
    np.testing.assert_array_equal(predictor.predict(image), labels)
    np.testing.assert_array_equal(predictor.predict(stored_image).T, predictor.predict(path))
    with pytest.raises(AutosegError) as caught:
        predictor.predict(array, spacing_mm=image.GetSpacing()[::-1])
    assert caught.value.codes == ("image.no_place",)
    resampling = predictor.model.dataset.model_copy(update={"resampled_channels": True})
    with pytest.raises(AutosegError) as caught:
        replace(predictor, model=replace(predictor.model, dataset=resampling)).predict([array])
    assert caught.value.codes == ("image.type",)
    stored = SimpleITK.GetImageFromArray(predictor.predict_image([path]).labels)
    stored.CopyInformation(SimpleITK.ReadImage(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(stored, "LPS")), labels)


def test_the_predictor_warns_of_images_unlike_the_training_cases(finished: Job, tmp_path: Path) -> None:
    predictor, array = Predictor.load(finished.root, device="cpu"), np.arange(32**3.0).reshape(32, 32, 32)
    with pytest.warns(UserWarning, match="unlike the training cases, predictions may be wrong: extent 3.2 mm along z"):
        predictor.predict(array, spacing_mm=(0.1, 0.1, 0.1), axes="SPL")
    with pytest.warns(UserWarning, match="a single slice"):
        predictor.predict(SimpleITK.GetImageFromArray(array[0]))
    with pytest.warns(UserWarning, match="all voxels of channel MRI are 0"):
        predictor.predict(np.zeros_like(array), spacing_mm=(1.0, 1.0, 1.0), axes="SPL")
    thin = SimpleITK.GetImageFromArray(array[:8])
    thin.SetSpacing((0.1, 0.1, 0.1))
    with pytest.warns(UserWarning, match="1 image unlike the training cases"):
        api.predict(finished.root, thin, tmp_path / "a.nii.gz", device="cpu")
    with pytest.raises(AutosegError) as caught:
        predictor.predict(array[..., None], affine=np.eye(4))
    (issue,) = caught.value.issues
    assert (issue.code, issue.fix) == ("image.channels", "pass np.moveaxis(array, -1, 0): channels come first")


@pytest.mark.parametrize(
    "call",
    [
        lambda: api.predict("model.zip", "image.nii.gz", None),  # type: ignore[arg-type]
        lambda: api.predict(None, "image.nii.gz", "out"),  # type: ignore[arg-type]
        lambda: api.run(3),  # type: ignore[arg-type]
        lambda: api.evaluate("a", ["b"]),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_path_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(AutosegError) as caught:
        call()
    assert caught.value.codes == ("settings.no_path",)


def test_one_case_trains_but_is_not_said_to_be_cross_validated(tmp_path: Path) -> None:
    dataset = make_phantom(tmp_path, training=1, test=1, seed=2)
    crop_images(dataset, 32)
    schedule = write_short_schedule(dataset, tmp_path, num_folds=1, cases=1)
    printed = autoseg("run", dataset, "--out", tmp_path / "run", "--schedule", schedule, *CPU_WORDS)
    assert "nothing was cross-validated" in printed
    assert len(list((tmp_path / "run" / "predictions").glob("*.nii.gz"))) == 1
    selection = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert selection["cross_validated"] is False
    assert selection["dice_after_postprocessing"] is None
    assert not (tmp_path / "run" / "cross_validation").exists()


def test_a_hold_out_is_scored_and_called_one(tmp_path: Path) -> None:
    dataset = make_phantom(tmp_path, training=3, seed=2)
    crop_images(dataset, 32)
    schedule = write_short_schedule(dataset, tmp_path, num_folds=1, cases=3)
    words = ("--folds", 1, "--schedule", schedule)
    printed = autoseg("run", dataset, "--out", tmp_path / "run", *words, *CPU_WORDS)
    assert "Hold-out: 1 case predicted by a network that did not see it" in printed
    selection = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert selection["folds"] == [0]
    assert "1 held-out case" in selection["reason"]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "held-out mean Dice" in page
    assert "cross-validated" not in page


def test_plan_explains_and_check_describes(finished: Job, tmp_path: Path) -> None:
    explained = autoseg("plan", finished.dataset, "--out", tmp_path / "plan", "--explain", "--workers", 1)
    assert "3d_fullres" in explained
    assert "method" in explained
    assert "4 labelled cases" in autoseg("check", finished.dataset, "--workers", 1)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["run"], 2),
        (["run", ".", "--budget", "soon"], 2),
        (["frobnicate"], 2),
        (["run", "absent"], 1),
        (["predict", "absent", "a", "b"], 1),
        (["predict", ".", ".", "out"], 1),
        (["evaluate", "absent", "nowhere"], 1),
        (["check", "."], 1),
    ],
)
def test_bad_calls_are_refused_with_issues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words)
    if isinstance(done.exception, AutosegError):
        assert any(issue.code.startswith("settings.") for issue in done.exception.issues) == (code == 2)
        assert done.exception.issues[0].message
    else:
        assert done.exit_code == code == 2
    assert not (tmp_path / "out").exists()


def test_the_process_ends_with_a_code_and_a_message(tmp_path: Path) -> None:
    call = [sys.executable, "-c", "from autoseg.cli import main; main()", "predict", "absent", "a", "b"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("autoseg: absent")
    assert "Traceback" not in done.stderr

"""Folders without labels can be checked; folders with labels that fit no layout are refused."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from autoseg.cli import app
from autoseg.data.discovery import discover_dataset
from autoseg.issues import AutosegError

UNLABELLED = {
    "bids_ivadomed/data_test_png_tif": 14,
    "dicom_series/mr_prostatex_t2_tra": 1,
    "spinalcord_sct/dmri": 1,
    "spinalcord_sct/fmri": 1,
}


def check(folder) -> tuple[int, dict]:
    done = CliRunner().invoke(app, ["check", str(folder), "--json", "--workers", "1"])
    return done.exit_code, json.loads(done.stdout)


@pytest.mark.parametrize("name", UNLABELLED)
def test_images_without_labels_are_checked(name, real_data):
    code, report = check(real_data / name)
    number = UNLABELLED[name]
    assert (code, report["summary"]) == (0, f"{number} image{'s' if number > 1 else ''} without labels")
    assert len(report["test"]) == number
    assert report["issues"][0]["code"] == "dataset.unlabelled"


def test_faults_of_images_without_labels_are_errors(real_data, tmp_path):
    (tmp_path / "scans").mkdir()
    shutil.copyfile(real_data / "spinalcord_sct" / "mt" / "mtr.nii.gz", tmp_path / "scans" / "mtr.nii.gz")
    shutil.copyfile(real_data / "spinalcord_sct" / "mt" / "mt1.nii.gz", tmp_path / "scans" / "mt1.nii.gz")
    shutil.copytree(real_data / "dicom_series" / "mr_prostatex_calcbval_missing_slice", tmp_path / "scans" / "calcbval")
    (tmp_path / "scans" / "cut.nii.gz").write_bytes((tmp_path / "scans" / "mt1.nii.gz").read_bytes()[:9000])
    code, report = check(tmp_path / "scans")
    assert code == 1
    errors = {issue["case"]: issue["code"] for issue in report["issues"] if issue["severity"] == "error"}
    assert errors.keys() == {"mtr", "calcbval", "cut"}
    assert (errors["mtr"], errors["calcbval"]) == ("image.infinite", "dicom.uneven_slices")


def test_the_images_of_a_dataset_say_where_the_dataset_is(real_data):
    code, report = check(real_data / "Task04_Hippocampus" / "imagesTr")
    assert (code, report["summary"]) == (0, "60 images without labels")
    assert str(real_data / "Task04_Hippocampus") in report["issues"][0]["fix"]


@pytest.mark.parametrize("name", ["dirty_hippocampus", "spinalcord_sct"])
def test_folders_with_labels_that_fit_no_layout_are_no_folders_of_images(name, real_data):
    with pytest.raises(AutosegError) as caught:
        discover_dataset(real_data / name)
    assert caught.value.codes[0] == "dataset.unrecognised"

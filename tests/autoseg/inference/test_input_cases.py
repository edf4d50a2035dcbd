"""What a person gives to predict becomes cases, or one message about everything that is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoseg.errors import AutosegError, ProblemsError
from autoseg.imaging.formats import write_volume
from autoseg.imaging.volume import Geometry
from autoseg.inference.input_cases import find_input_cases

GEOMETRY = Geometry(shape=(3, 4, 5), spacing_mm=(1.0, 1.0, 1.0))


def write(path: Path) -> Path:
    write_volume(path, np.zeros((3, 4, 5), np.float32), GEOMETRY)
    return path


def test_a_file_is_one_case(tmp_path) -> None:
    path = write(tmp_path / "a.b.nii.gz")
    (case,) = find_input_cases(path, ["MRI"])
    assert case.case_id == "a.b"
    assert case.images == (path,)


def test_a_folder_gives_sorted_cases_and_passes_over_the_rest(tmp_path) -> None:
    for name in ("b.nii.gz", "a.nrrd", "._c.nii.gz"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    assert [case.case_id for case in find_input_cases(tmp_path, ["MRI"])] == ["a", "b"]


def test_numbered_channels_belong_together(tmp_path) -> None:
    for name in ("x_0001.nii.gz", "x_0000.nii.gz", "y_0000.nii.gz", "y_0001.nii.gz"):
        write(tmp_path / name)
    first, second = find_input_cases(tmp_path, ["T1", "T2"])
    assert first.case_id == "x"
    assert [path.name for path in second.images] == ["y_0000.nii.gz", "y_0001.nii.gz"]


def test_every_missing_channel_is_named(tmp_path) -> None:
    for name in ("x_0001.nii.gz", "y_0000.nii.gz", "z.nii.gz"):
        write(tmp_path / name)
    with pytest.raises(ProblemsError) as caught:
        find_input_cases(tmp_path, ["T1", "T2"])
    text = str(caught.value)
    assert "x_0000 (T1)" in text
    assert "y_0001 (T2)" in text
    assert "z.nii.gz" in text
    assert "holds 1 channels" in text


def test_surplus_channels_are_named(tmp_path) -> None:
    for number in range(3):
        write(tmp_path / f"x_{number:04d}.nii.gz")
    with pytest.raises(ProblemsError, match=r"x_0002\.nii\.gz"):
        find_input_cases(tmp_path, ["T1", "T2"])


def test_two_files_of_one_name_are_refused(tmp_path) -> None:
    write(tmp_path / "a.nii.gz")
    write(tmp_path / "a.nrrd")
    with pytest.raises(ProblemsError, match="same name"):
        find_input_cases(tmp_path, ["MRI"])


def test_nothing_to_predict_is_said(tmp_path) -> None:
    with pytest.raises(AutosegError, match="holds no image"):
        find_input_cases(tmp_path, ["MRI"])
    with pytest.raises(AutosegError, match="does not exist"):
        find_input_cases(tmp_path / "absent", ["MRI"])


def test_a_dicom_series_folder_is_one_case(real_data) -> None:
    folder = real_data / "dicom_series" / "mr_prostatex_t2_tra"
    (case,) = find_input_cases(folder, ["T2"])
    assert case.case_id == "mr_prostatex_t2_tra"
    assert case.images == (folder,)


def test_a_folder_of_dicom_series_gives_one_case_each(real_data, tmp_path) -> None:
    for name in ("mr_prostatex_adc", "mr_prostatex_t2_tra"):
        (tmp_path / name).symlink_to(real_data / "dicom_series" / name)
    ids = [case.case_id for case in find_input_cases(tmp_path, ["T2"])]
    assert ids == ["mr_prostatex_adc", "mr_prostatex_t2_tra"]


def test_a_dicom_series_without_a_slice_is_named(real_data) -> None:
    with pytest.raises(ProblemsError, match=r"mr_prostatex_calcbval_missing_slice.*slices are 3 mm apart but 6 mm"):
        find_input_cases(real_data / "dicom_series", ["T2"])

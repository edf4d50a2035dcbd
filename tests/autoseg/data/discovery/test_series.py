"""One of several real DICOM series of a case is chosen, with a reason and a way to choose another."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
import pytest
from dicom_files import write_series, write_structures

from autoseg.data.checks import check_dataset
from autoseg.data.discovery import discover_dataset
from autoseg.data.labels import read_case_labels
from autoseg.imaging.readers import read_header, read_image, write_label_map
from autoseg.issues import AutosegError
from autoseg.tracking.progress import SilentReporter

SERIES = {"ct": "ct_body_jpeg2000/dicom", "t2": "mr_prostatex_t2_tra", "adc": "mr_prostatex_adc"}


@pytest.fixture
def series(real_data):
    """Copies the slices of real series into a folder; returns it."""

    def put(folder: Path, *names: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            for file in sorted((real_data / "dicom_series" / SERIES[name]).iterdir()):
                if file.is_file() and pydicom.misc.is_dicom(file):
                    shutil.copyfile(file, folder / f"{name}_{file.name}")
        return folder

    return put


def write_label(path: Path, image: Path) -> None:
    """A label map on the grid of a series."""
    geometry = read_header(image).geometry
    write_label_map(path, np.resize([0, 0, 1], geometry.shape), geometry)


def uid_of(path: str) -> str:
    return path.rpartition("#")[2]


def errors(folder: Path, **options) -> list[str]:
    found = discover_dataset(folder, **options)
    return [f.message for f in check_dataset(found, num_workers=1, reporter=SilentReporter()) if f.severity == "error"]


def test_series_with_the_grid_of_the_label_map_is_chosen(series, real_data, tmp_path):
    series(tmp_path / "data" / "p" / "scan", "ct", "t2", "adc")
    shutil.copyfile(
        real_data / "dicom_series/ct_body_jpeg2000/example_seg_dicom.nii.gz", tmp_path / "data" / "p" / "seg.nii.gz"
    )
    found = discover_dataset(tmp_path / "data")
    (case,) = found.training
    np.testing.assert_array_equal(
        read_image(case.image_paths).array, read_image([real_data / "dicom_series" / SERIES["ct"]]).array
    )
    assert found.channels == ("CT",)
    (note,) = found.issues
    assert (note.severity, note.code, note.case) == ("note", "series.chosen", "p")
    for description in ("CT Body 3.0", "ep2d_diff_tra_DYNDIST_ADC", "t2_tse_tra"):
        assert description in note.message
    assert errors(tmp_path / "data") == []


def test_dicom_seg_names_its_series(series, real_data, tmp_path):
    """Two series on one grid: the one that the segmentation refers to is meant."""
    source = real_data / "dicom_seg_ct3slice"
    (tmp_path / "data" / "p" / "scan").mkdir(parents=True)
    for file in (source / "ct-3slice").iterdir():
        shutil.copyfile(file, tmp_path / "data" / "p" / "scan" / file.name)
        tags = pydicom.dcmread(file)
        tags.SeriesInstanceUID = "1.2.3"
        tags.SeriesDescription = "another reconstruction"
        tags.save_as(tmp_path / "data" / "p" / "scan" / f"other_{file.name}")
    shutil.copyfile(source / "liver.dcm", tmp_path / "data" / "p" / "seg.dcm")
    found = discover_dataset(tmp_path / "data")
    assert uid_of(found.training[0].images[0]) == pydicom.dcmread(source / "ct-3slice" / "01.dcm").SeriesInstanceUID
    assert [issue.code for issue in found.issues] == ["series.chosen"]


def guess(series, tmp_path) -> Path:
    """Two series on one grid that only differ in their description, in folders of their own; one case has but the first."""
    for case, names in (("p", ("first", "second")), ("q", ("first",))):
        for number, name in enumerate(names, 1):
            folder = series(tmp_path / "data" / case / name, "adc")
            for file in folder.iterdir():
                tags = pydicom.dcmread(file)
                tags.SeriesDescription, tags.SeriesNumber, tags.SeriesInstanceUID = (
                    f"{name} run",
                    number,
                    f"1.2.{number}",
                )
                tags.save_as(file)
        write_label(tmp_path / "data" / case / "seg.nii.gz", tmp_path / "data" / case / "first")
    return tmp_path / "data"


def test_a_guess_is_a_warning_with_a_fix(series, tmp_path):
    folder = guess(series, tmp_path)
    found = discover_dataset(folder)
    assert [Path(case.images[0]).name for case in found.training] == ["first", "first"]
    (warning,) = (issue for issue in found.issues if issue.severity == "warning")
    assert warning.code == "series.guessed"
    assert 'extends = "dicom_cases"' in warning.fix
    assert errors(folder) == []


@pytest.mark.parametrize("wanted", ["2", "1.2.2", "SECOND*", "second"])
def test_the_series_that_the_spec_file_names_is_taken(series, tmp_path, wanted):
    folder = guess(series, tmp_path)
    (tmp_path / "spec.toml").write_text(f'extends = "dicom_cases"\nseries = "{wanted}"\n')
    found = discover_dataset(folder, spec=tmp_path / "spec.toml")
    assert Path(found.training[0].images[0]).name == "second"
    (error,) = found.issues
    assert (error.severity, error.code, error.case) == ("error", "series.not_found", "q")
    assert "'first run' (number 1, 19 slices)" in error.message


def test_series_of_unlabelled_cases_follow_the_labelled_ones(series, tmp_path):
    folder = guess(series, tmp_path)
    series(folder / "r", "t2")
    for file in (folder / "p" / "first").iterdir():
        shutil.copyfile(file, folder / "r" / file.name)
    (case,) = discover_dataset(folder).test
    assert uid_of(case.images[0]) == "1.2.1"


@pytest.mark.parametrize(
    ("slices", "structures"),
    [
        ("ct", "rt.dcm"),
        ("study/ct", "study/rtstruct/1-1.dcm"),
        (".", "RS.1.2.3.dcm"),
        ("ct", "RS_p.dcm"),
        ("1.0-NA-1", "2.0-NA-2/1-1.dcm"),
        ("01-01-2000-NA-CT-1/1.0-NA-1", "01-01-2000-NA-CT-1/2.0-NA-2/1-1.dcm"),
        (".", "1-1.dcm"),
        ("study/ct", "study/ct/1.2.826.0.1"),
    ],
)
def test_structures_are_labels_wherever_they_usually_lie(tmp_path, slices, structures):
    for number, case in enumerate("pq"):
        folder = write_series(tmp_path / case / slices, (3, 20, 30), [1, 0, 0, 0, 1, 0], series=f"1.2.{number}")
        square = np.array([[3.5, 3.5], [3.5, 9.5], [9.5, 9.5], [9.5, 3.5]])
        file = tmp_path / case / structures
        file.parent.mkdir(exist_ok=True)
        drawn = {1: [(1, square)], 2: [(2, square + 2)]}
        write_structures(file, drawn, read_header(folder).geometry, series=f"1.2.{number}")
        (file.parent / f"._{file.name}").write_bytes(b"\0\5\x16\7")
    found = discover_dataset(tmp_path)
    assert [label.name for label in found.labels.classes] == ["organ 1", "organ 2"]
    assert [Path(case.images[0]) for case in found.training] == [(tmp_path / case / slices) for case in "pq"]
    assert errors(tmp_path) == []


def write_together(folder, *, series, structures):
    """Series and structures in one folder; ``structures``: file name -> series and names of what is drawn on it."""
    square = np.array([[3.5, 3.5], [3.5, 9.5], [9.5, 9.5], [9.5, 3.5]])
    folder.mkdir(parents=True)
    for patient, uid in series.items():
        with TemporaryDirectory() as place:
            alone = write_series(Path(place), (2, 20, 30), [1, 0, 0, 0, 1, 0], series=uid)
            geometry = read_header(alone).geometry
            for slice_ in alone.iterdir():
                tags = pydicom.dcmread(slice_)
                tags.PatientID = patient.split("|")[0]
                tags.save_as(folder / f"{uid}.{slice_.name}", enforce_file_format=True)
    for name, (uid, numbers) in structures.items():
        drawn = {number: [(1, square + number)] for number in numbers}
        write_structures(folder / name, drawn, geometry, series=uid)


@pytest.mark.parametrize("below", ["", "dicom"])
def test_patients_in_one_folder_are_told_apart_by_series(tmp_path, below):
    root = tmp_path / "root"
    folder = root / below
    write_together(
        folder,
        series={"a": "1.1", "b 2": "1.2", "c|1": "1.3", "c|2": "1.4", "d": "1.5"},
        structures={f"RS.{n}.dcm": (f"1.{n}", [1]) for n in (1, 2, 3, 4, 9)},
    )
    found = discover_dataset(root)
    cases = {case.case_id: (case.group, case.images[0], case.label_files[0]) for case in found.training}
    assert cases == {
        name: (patient, f"{folder}#1.{n}", f"{folder / f'RS.{n}.dcm'}")
        for n, (name, patient) in enumerate({"a": "a", "b_2": "b 2", "c_1.3": "c", "c_1.4": "c"}.items(), 1)
    }
    assert [issue.code for issue in found.issues] == ["series.one_folder", "case.unpaired_label"]
    assert "not used: 1 without labels" in found.issues[0].message


@pytest.mark.parametrize(("cases", "several"), [("a", False), ("ab", True)])
def test_a_larger_dataset_beside_a_study_is_not_passed_over(tmp_path, cases, several):
    write_together(tmp_path / "study", series={"a": "1.1"}, structures={"x.dcm": ("1.1", [1])})
    for place in ("imagesTr", "labelsTr"):
        (tmp_path / "other" / place).mkdir(parents=True)
        for case in cases:
            (tmp_path / "other" / place / f"{case}.nii.gz").touch()
    if not several:
        assert len(discover_dataset(tmp_path).training) == 1
        return
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    (issue,) = caught.value.issues
    assert issue.code == "dataset.several"
    assert f"{tmp_path / 'other'} (2 cases), {tmp_path / 'study'} (1 case)" in issue.fix
    layout = issue.fix.rpartition("--layout ")[2]
    assert len(discover_dataset(tmp_path, layout=layout).training) == 1


def test_structures_of_no_series_beside_them_are_counted(tmp_path):
    root = tmp_path / "root"
    write_together(root, series={"a": "1.1", "b": "1.2"}, structures={"x.dcm": ("1.1", [1]), "y.dcm": ("1.9", [1])})
    with pytest.raises(AutosegError) as caught:
        discover_dataset(root)
    (issue,) = caught.value.issues
    assert issue.code == "dataset.one_folder"
    assert "2 DICOM series and 2 DICOM SEG or RTSTRUCT files in one folder, 1 of them drawn on" in issue.message


def test_structures_of_one_series_in_several_files_are_joined_unless_names_are_the_same(tmp_path):
    for case, tumour in (("p", 2), ("q", 1)):
        structures = {"RS.1.dcm": ("1.1", [1, 3]), "RS.2.dcm": ("1.1", [tumour])}
        write_together(tmp_path / case, series={case: "1.1"}, structures=structures)
    found = discover_dataset(tmp_path)
    first, second = found.training
    assert {mask.label: Path(mask.file).name for mask in first.masks} == {
        "organ 1": "RS.1.dcm#1",
        "organ 2": "RS.2.dcm#2",
        "organ 3": "RS.1.dcm#3",
    }
    (issue,) = [issue for issue in found.issues if issue.severity == "error"]
    assert (issue.code, issue.case, Path(issue.where).name) == ("case.duplicate_structure", "q", "RS.2.dcm")
    assert "organ 1" in issue.message
    assert len(second.masks) == 2
    labels = read_case_labels(first, found.coding).array
    assert set(np.unique(labels)) > {0}


def test_label_maps_are_taken_where_structures_lie_beside_them(tmp_path):
    for number, case in enumerate("pq"):
        folder = write_series(tmp_path / case / "ct", (3, 20, 30), [1, 0, 0, 0, 1, 0], series=f"1.2.{number}")
        square = np.array([[3.5, 3.5], [3.5, 9.5], [9.5, 9.5], [9.5, 3.5]])
        write_structures(tmp_path / case / "rtstruct.dcm", {1: [(1, square)]}, read_header(folder).geometry)
        write_label(tmp_path / case / "seg.nii.gz", folder)
    found = discover_dataset(tmp_path)
    assert [Path(case.label).name for case in found.training] == ["seg.nii.gz"] * 2
    assert [(issue.code, issue.severity) for issue in found.issues] == [("series.structures", "note")]
    assert errors(tmp_path) == []

"""Each kind of fault is found in real files, named once, and clean data stays silent."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from typer.testing import CliRunner

from autoseg.cli import app
from autoseg.data.checks import check_dataset, require_clean
from autoseg.data.checks.report import CheckReport
from autoseg.data.dataset import leave_out_bad
from autoseg.data.discovery import discover_dataset
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import write_image, write_label_map
from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.tracking.progress import SilentReporter
from planners import read_document

GRID = Geometry(shape=(6, 8, 10), spacing_mm=(2.0, 1.0, 1.0), origin_mm=(5.0, 6.0, 7.0))
NAMES = [f"c{number:02d}" for number in range(12)]


def image(seed=0):
    """An image that shows its labels."""
    return np.random.default_rng(seed).normal(100, 10, GRID.shape) + 40 * labels(seed)


def labels(seed=0):
    """Two boxes that touch, and a voxel that makes each of twelve cases another."""
    array = np.zeros(GRID.shape, np.uint8)
    array[1:4, 2:5, 2:6] = 1
    array[1:4, 5:7, 2:6] = 2
    array[4, 2 + seed % 3, 2 + seed % 4] = 1
    return array


@pytest.fixture
def folder(tmp_path):
    """Twelve clean cases and a test image."""
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (tmp_path / part).mkdir()
    for seed, name in enumerate(NAMES):
        write_image(tmp_path / "imagesTr" / f"{name}.nii.gz", image(seed), GRID)
        write_label_map(tmp_path / "labelsTr" / f"{name}.nii.gz", labels(seed), GRID)
    write_image(tmp_path / "imagesTs" / "t.nii.gz", image(99), GRID)
    description = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "head", "2": "tail"}}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    return tmp_path


def check(folder, num_workers=1):
    return check_dataset(discover_dataset(folder), num_workers=num_workers, reporter=SilentReporter())


def only(findings):
    (finding,) = findings
    return finding


def moved(**fields):
    return Geometry(**{**GRID.model_dump(), **fields})


def test_clean_dataset_has_no_finding(folder):
    assert check(folder) == ()
    require_clean(check(folder))


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
@pytest.mark.parametrize("keep", [0, 100, 0.6])
def test_truncated_file_is_named(folder, part, keep):
    path = folder / part / "c03.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    finding = only(check(folder))
    assert (finding.severity, finding.case, finding.where) == ("error", "c03", str(path))
    assert "could not be read" in finding.message


def test_file_that_is_no_image_is_named(folder):
    (folder / "imagesTs" / "t.nii.gz").write_text("<html>not found</html>")
    finding = only(check(folder))
    assert (finding.severity, finding.case) == ("error", "t")


@pytest.mark.parametrize(
    ("grid", "word"),
    [
        (moved(spacing_mm=(2.0, 1.0, 1.01)), "spacing"),
        (moved(origin_mm=(5.0, 6.5, 7.0)), "origin"),
        (moved(direction=((0.8, -0.6, 0.0), (0.6, 0.8, 0.0), (0.0, 0.0, 1.0))), "direction"),
    ],
)
def test_label_map_on_another_grid_is_an_error(folder, grid, word):
    write_label_map(folder / "labelsTr" / "c01.nii.gz", labels(1), grid)
    finding = only(check(folder))
    assert finding.severity == "error"
    assert f"another grid than its image: {word}" in finding.message


def test_label_map_of_another_size_is_an_error(folder):
    write_label_map(folder / "labelsTr" / "c01.nii.gz", labels(1)[:, :, :-1], moved(shape=(6, 8, 9)))
    assert "size 6x8x9 voxels instead of 6x8x10" in only(check(folder)).message


def test_same_grid_stored_in_another_orientation_is_no_fault(folder):
    flipped = moved(origin_mm=(5.0 + 9.0, 6.0, 7.0), direction=((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    write_label_map(folder / "labelsTr" / "c01.nii.gz", labels(1)[:, :, ::-1], flipped)
    assert check(folder) == ()


def test_rounding_of_headers_is_no_fault(folder):
    rounded = moved(spacing_mm=(2.00001, 1.0, 0.99999), origin_mm=(5.0001, 6.0, 7.0))
    write_label_map(folder / "labelsTr" / "c01.nii.gz", labels(1), rounded)
    assert check(folder) == ()


def test_non_finite_voxels_are_counted_and_placed(folder):
    array = image(5)
    array[2, 3, 4], array[5, 0, 0], array[5, 0, 1] = np.nan, np.inf, -np.inf
    write_image(folder / "imagesTr" / "c05.nii.gz", array, GRID)
    finding = only(check(folder))
    assert finding.severity == "error"
    assert "1 NaN and 2 infinite voxels in channel 0, the first at (z, y, x) = (2, 3, 4)" in finding.message


def test_test_images_are_checked_too(folder):
    write_image(folder / "imagesTs" / "t.nii.gz", np.full(GRID.shape, np.inf), GRID)
    assert "480 infinite voxels" in only(check(folder)).message


def test_image_of_one_value_is_a_warning(folder):
    write_image(folder / "imagesTr" / "c05.nii.gz", np.full(GRID.shape, 3.0), GRID)
    finding = only(check(folder))
    assert (finding.severity, finding.message) == ("warning", "all voxels of channel 0 are 3")


def test_values_that_are_not_whole_are_an_error(folder):
    write_image(folder / "labelsTr" / "c05.nii.gz", labels(5) * 0.5, GRID)
    finding = only(check(folder))
    assert (finding.severity, finding.case) == ("error", "c05")
    assert "no whole numbers, such as 0.5" in finding.message


def test_whole_numbers_stored_as_floats_are_no_fault(folder):
    write_image(folder / "labelsTr" / "c05.nii.gz", labels(5), GRID)
    assert check(folder) == ()


def test_undeclared_values_are_counted(folder):
    array = labels(5)
    array[0, 0, :3], array[0, 1, 0] = 7, 9
    write_label_map(folder / "labelsTr" / "c05.nii.gz", array, GRID)
    finding = only(check(folder))
    assert finding.severity == "error"
    assert "not declared: 7 (3 voxels), 9 (1 voxels); declared are 0, 1, 2" in finding.message


def test_empty_label_map_is_a_warning(folder):
    write_label_map(folder / "labelsTr" / "c05.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    finding = only(check(folder))
    assert (finding.severity, finding.case) == ("warning", "c05")
    require_clean([finding])


def test_channel_count_is_compared_with_the_declared(folder):
    (folder / "dataset.json").write_text('{"modality": {"0": "T1", "1": "T2"}, "labels": {"1": "head", "2": "tail"}}')
    findings = check(folder)
    assert len(findings) == len(NAMES) + 1
    assert {f.message for f in findings} == {"1 channels, but the dataset has 2 (T1, T2)"}


def test_class_that_nobody_has_is_a_warning_and_a_rare_one_a_note(folder):
    description = {"modality": {"0": "MRI"}, "labels": {"1": "head", "2": "tail", "3": "wing", "4": "horn"}}
    (folder / "dataset.json").write_text(json.dumps(description))
    array = labels(2)
    array[5, 5, 5] = 4
    write_label_map(folder / "labelsTr" / "c02.nii.gz", array, GRID)
    assert [(f.severity, f.message) for f in check(folder)] == [
        ("warning", "no label map has class wing (value 3)"),
        ("note", "only 1 of 12 label maps has class horn (value 4): c02"),
    ]


def test_label_map_unlike_the_others_is_a_warning_and_of_another_kind_an_error(folder):
    array = labels(2)
    array[array == 2] = 1
    write_label_map(folder / "labelsTr" / "c02.nii.gz", array, GRID)
    finding = only(check(folder))
    assert (finding.severity, finding.case) == ("warning", "c02")
    assert "no voxel of tail, which 11 of them have" in finding.message
    big = Geometry(shape=(40, 64, 64), spacing_mm=(9.0, 1.0, 1.0))
    write_image(folder / "imagesTr" / "c02.nii.gz", np.random.default_rng(0).normal(100, 30, big.shape), big)
    write_label_map(folder / "labelsTr" / "c02.nii.gz", np.resize(array, big.shape), big)
    finding = only(check(folder))
    assert finding.severity == "error"
    for words in ("spacing 9x1x1 mm against a median of 2x1x1", "size 40x64x64", "head of"):
        assert words in finding.message


def test_all_faults_are_in_one_list_errors_first(folder):
    (folder / "imagesTr" / "c00.nii.gz").unlink()
    (folder / "labelsTr" / "c01.nii.gz").write_bytes(b"")
    write_label_map(folder / "labelsTr" / "c02.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    write_image(folder / "imagesTr" / "c03.nii.gz", np.full(GRID.shape, np.nan), GRID)
    findings = check(folder)
    assert [(f.severity, f.case) for f in findings] == [
        ("error", "c00"),
        ("error", "c01"),
        ("error", "c03"),
        ("warning", "c02"),
    ]
    with pytest.raises(AutosegError) as caught:
        require_clean(findings)
    assert len(caught.value.issues) == 3
    assert "3 faults" in str(caught.value)


def test_workers_find_the_same(folder):
    write_image(folder / "imagesTr" / "c03.nii.gz", np.full(GRID.shape, np.nan), GRID)
    (folder / "labelsTr" / "c07.nii.gz").write_bytes(b"nonsense")
    assert check(folder, num_workers=2) == check(folder)


def test_notes_and_warnings_do_not_stop_anything():
    notes = [
        Issue(code=UNNAMED, severity=severity, case=None, where="here", message="something", fix="look")
        for severity in ("warning", "note")
    ]
    require_clean(notes)


def put(folder, name, array, label, grid=GRID):
    write_image(folder / "imagesTr" / f"{name}.nii.gz", array, grid)
    write_label_map(folder / "labelsTr" / f"{name}.nii.gz", label, grid)


def test_same_case_twice_is_a_warning_and_with_another_label_map_an_error(folder):
    put(folder, "c07", image(3), labels(3))
    finding = only(check(folder))
    assert (finding.severity, finding.case) == ("warning", "c07")
    assert finding.message == "the same image as that of case c03"
    put(folder, "c07", image(3), labels(7))
    finding = only(check(folder))
    assert (finding.severity, finding.message) == (
        "error",
        "the same image as that of case c03, but with another label map",
    )


def test_label_map_of_two_images_is_a_warning(folder):
    write_label_map(folder / "labelsTr" / "c07.nii.gz", labels(3), GRID)
    findings = [f for f in check(folder) if "same label map as that of case c03" in f.message]
    assert [(f.severity, f.case) for f in findings] == [("warning", "c07")]


def test_test_image_that_was_trained_on_is_a_warning(folder):
    write_image(folder / "imagesTs" / "t.nii.gz", image(4), GRID)
    finding = only(check(folder))
    assert (finding.severity, finding.case) == ("warning", "t")
    assert "the test image is the training image of case c04" in finding.message


def test_flipped_label_map_is_an_error_that_says_so(folder):
    write_label_map(folder / "labelsTr" / "c05.nii.gz", labels(5)[:, :, ::-1].copy(), GRID)
    finding = only(check(folder))
    assert (finding.severity, finding.case) == ("error", "c05")
    assert "flipped left to right (x) it would agree" in finding.message


def test_spacing_in_metres_is_an_error(folder):
    put(folder, "c05", image(5), labels(5), moved(spacing_mm=(0.002, 0.001, 0.001)))
    errors = [f for f in check(folder) if f.severity == "error"]
    assert {f.case for f in errors} == {"c05"}
    assert any("1e+03 times too small, as if given in another unit" in f.message for f in errors)


def test_greys_in_place_of_labels_are_called_so(folder):
    write_label_map(folder / "labelsTr" / "c05.nii.gz", np.arange(480, dtype=np.uint8).reshape(GRID.shape) % 200, GRID)
    finding = next(f for f in check(folder) if f.severity == "error")
    assert "with 200 values from 0 to 199 it holds greys" in finding.message


def test_intensities_of_another_scale_are_a_warning(folder):
    write_image(folder / "imagesTr" / "c05.nii.gz", image(5) * 1000, GRID)
    finding = only(check(folder))
    assert (finding.severity, finding.case) == ("warning", "c05")
    assert "channel 0 (MRI) spans" in finding.message


def test_names_of_one_patient_are_told(folder):
    for old, new in (("c00", "p1_s1"), ("c01", "p1_s2")):
        for part in ("imagesTr", "labelsTr"):
            (folder / part / f"{old}.nii.gz").rename(folder / part / f"{new}.nii.gz")
    finding = only(check(folder))
    assert finding.severity == "warning"
    assert "p1_s1 and p1_s2" in finding.message


def test_bad_cases_can_be_left_out(folder):
    write_image(folder / "imagesTr" / "c05.nii.gz", np.full(GRID.shape, np.nan), GRID)
    (folder / "labelsTr" / "c06.nii.gz").unlink()
    dataset = discover_dataset(folder)
    findings = check(folder)
    left = leave_out_bad(dataset, findings)
    assert left.left_out == ("c05", "c06")
    assert [case.case_id for case in left.training] == [name for name in NAMES if name not in ("c05", "c06")]
    assert "left out because of errors (--skip-bad), 2 of them: c05, c06" in left.issues[-1].message
    assert set(findings) < set(left.issues)


def test_nothing_left_is_an_error(folder):
    for name in NAMES:
        write_image(folder / "imagesTr" / f"{name}.nii.gz", np.full(GRID.shape, np.nan), GRID)
    with pytest.raises(AutosegError, match="none would be left"):
        leave_out_bad(discover_dataset(folder), check(folder))


def test_json_on_standard_output_and_nothing_else(folder):
    (folder / "labelsTr" / "c07.nii.gz").write_bytes(b"nonsense")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, ["check", str(folder), "--json", "--workers", "1"])
    assert result.exit_code == 1
    report = read_document(CheckReport, result.stdout, where="stdout")
    assert (report.num_errors, report.issues[0].case) == (1, "c07")
    result = CliRunner().invoke(app, ["check", str(folder), "--json", "--skip-bad", "--workers", "1"])
    assert result.exit_code == 0
    assert read_document(CheckReport, result.stdout, where="stdout").left_out == ("c07",)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("is_labelled", [False, True])
def test_names_that_are_no_text_are_told_at_once(folder, as_json, is_labelled):
    try:
        for part in ("imagesTr", "labelsTr"):
            for name in ("c01", "c02"):
                (folder / part / f"{name}.nii.gz").rename(folder / part / f"{name}\udcfc.nii.gz")
    except OSError:
        pytest.skip("this file system takes text only for names")
    given = folder if is_labelled else folder / "imagesTr"
    # in a process of its own: without the check the image library would end this one
    call = [
        sys.executable,
        "-c",
        "from autoseg.cli import main; main()",
        "check",
        str(given),
        *(["--json"] if as_json else []),
    ]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = read_document(CheckReport, done.stdout, where="stdout").issues[0].message if as_json else done.stderr
    assert "Traceback" not in done.stderr
    for part in ("imagesTr", "labelsTr") if is_labelled else ("imagesTr",):
        for name in ("c01", "c02"):
            assert rf"{folder}/{part}/{name}\xfc.nii.gz: the bytes of its name are no text" in said


@pytest.mark.parametrize("name", ["é", "漢", "ü ß"])
def test_names_in_any_script_are_no_fault(folder, name):
    for part in ("imagesTr", "labelsTr"):
        (folder / part / "c01.nii.gz").rename(folder / part / f"{name}.nii.gz")
    assert check(folder) == ()
    with suppress(OSError):  # not every file system takes it
        (folder / "imagesTr" / "stray\udcfc.txt").write_text("a file that nobody reads may have any name")
    assert check(folder) == ()


def test_folder_without_a_dataset_is_told_as_json_too(tmp_path):
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--json"])
    assert result.exit_code == 1
    assert read_document(CheckReport, result.stdout, where="stdout").num_errors == 1

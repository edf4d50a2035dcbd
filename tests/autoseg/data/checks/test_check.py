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
from autoseg.data.checks.case import CheckItem, check_headers
from autoseg.data.checks.report import CheckReport
from autoseg.data.dataset import leave_out_bad
from autoseg.data.discovery import discover_dataset
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import resampled_paths, write_image, write_label_map
from autoseg.issues import AutosegError, Issue
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


def only(issues):
    (issue,) = issues
    return issue


def seen(issues):
    return [(issue.severity, issue.code, issue.case) for issue in issues]


def moved(**fields):
    return Geometry(**{**GRID.model_dump(), **fields})


def test_clean_dataset_has_no_issue(folder):
    assert check(folder) == ()
    require_clean(check(folder))


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
@pytest.mark.parametrize("keep", [0, 100, 0.6])
def test_truncated_file_is_named(folder, part, keep):
    path = folder / part / "c03.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    issue = only(check(folder))
    assert (issue.severity, issue.case, issue.where) == ("error", "c03", str(path))
    assert issue.code.startswith("reader.")


def test_file_that_is_no_image_is_named(folder):
    (folder / "imagesTs" / "t.nii.gz").write_text("<html>not found</html>")
    issue = only(check(folder))
    assert (issue.severity, issue.case) == ("error", "t")
    assert issue.code.startswith("reader.")


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
    issue = only(check(folder))
    assert (issue.severity, issue.code) == ("error", "labels.grid")
    assert word in issue.message


def test_label_map_of_another_size_is_an_error(folder):
    write_label_map(folder / "labelsTr" / "c01.nii.gz", labels(1)[:, :, :-1], moved(shape=(6, 8, 9)))
    assert seen(check(folder)) == [("error", "labels.grid", "c01")]


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
    issue = only(check(folder))
    assert (issue.severity, issue.code) == ("error", "image.nan")
    assert "1 NaN and 2 infinite voxels in channel 0, the first at (z, y, x) = (2, 3, 4)" in issue.message


def test_test_images_are_checked_too(folder):
    write_image(folder / "imagesTs" / "t.nii.gz", np.full(GRID.shape, np.inf), GRID)
    assert seen(check(folder)) == [("error", "image.infinite", "t")]


def test_image_of_one_value_is_a_warning(folder):
    write_image(folder / "imagesTr" / "c05.nii.gz", np.full(GRID.shape, 3.0), GRID)
    assert seen(check(folder)) == [("warning", "image.constant", "c05")]


def test_values_that_are_not_whole_are_an_error(folder):
    write_image(folder / "labelsTr" / "c05.nii.gz", labels(5) * 0.5, GRID)
    issue = only(check(folder))
    assert (issue.severity, issue.case) == ("error", "c05")
    assert "0.5" in issue.message


def test_whole_numbers_stored_as_floats_are_no_fault(folder):
    write_image(folder / "labelsTr" / "c05.nii.gz", labels(5), GRID)
    assert check(folder) == ()


def test_undeclared_values_are_counted(folder):
    array = labels(5)
    array[0, 0, :3], array[0, 1, 0] = 7, 9
    write_label_map(folder / "labelsTr" / "c05.nii.gz", array, GRID)
    issue = only(check(folder))
    assert (issue.severity, issue.code, issue.case) == ("error", "labels.undeclared_value", "c05")
    assert "7 (3 voxels), 9 (1 voxel)" in issue.message


def test_empty_label_map_is_a_warning(folder):
    write_label_map(folder / "labelsTr" / "c05.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    issues = check(folder)
    assert seen(issues) == [("warning", "labels.empty", "c05")]
    require_clean(issues)


@pytest.mark.parametrize(("number", "expected"), [(3, ["warning"] * 3), (4, ["note"])])
def test_many_empty_label_maps_are_one_note(folder, number, expected):
    for name in NAMES[:number]:
        write_label_map(folder / "labelsTr" / f"{name}.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    assert [issue.severity for issue in check(folder) if issue.code == "labels.empty"] == expected


def test_channel_count_is_compared_with_the_declared(folder):
    (folder / "dataset.json").write_text('{"modality": {"0": "T1", "1": "T2"}, "labels": {"1": "head", "2": "tail"}}')
    assert [issue.code for issue in check(folder)] == ["image.channel_count"] * (len(NAMES) + 1)


def test_class_that_no_case_has_is_a_warning_and_a_rare_one_a_note(folder):
    description = {"modality": {"0": "MRI"}, "labels": {"1": "head", "2": "tail", "3": "wing", "4": "horn"}}
    (folder / "dataset.json").write_text(json.dumps(description))
    array = labels(2)
    array[5, 5, 5] = 4
    write_label_map(folder / "labelsTr" / "c02.nii.gz", array, GRID)
    assert seen(check(folder)) == [("warning", "labels.absent_class", None), ("note", "labels.rare_class", None)]


def test_label_map_unlike_the_others_is_a_warning_and_of_another_kind_an_error(folder):
    array = labels(2)
    array[array == 2] = 1
    write_label_map(folder / "labelsTr" / "c02.nii.gz", array, GRID)
    assert seen(check(folder)) == [("warning", "labels.unlike_others", "c02")]
    big = Geometry(shape=(40, 64, 64), spacing_mm=(9.0, 1.0, 1.0))
    write_image(folder / "imagesTr" / "c02.nii.gz", np.random.default_rng(0).normal(100, 30, big.shape), big)
    write_label_map(folder / "labelsTr" / "c02.nii.gz", np.resize(array, big.shape), big)
    issue = only(check(folder))
    assert (issue.severity, issue.code) == ("error", "labels.misfit")
    for words in ("spacing 9x1x1 mm, median 2x1x1", "size 40x64x64", "head of"):
        assert words in issue.message


def test_all_faults_are_in_one_list_errors_first(folder):
    (folder / "imagesTr" / "c00.nii.gz").unlink()
    (folder / "labelsTr" / "c01.nii.gz").write_bytes(b"")
    write_label_map(folder / "labelsTr" / "c02.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    write_image(folder / "imagesTr" / "c03.nii.gz", np.full(GRID.shape, np.nan), GRID)
    issues = check(folder)
    assert [(i.severity, i.case) for i in issues] == [
        ("error", "c00"),
        ("error", "c01"),
        ("error", "c03"),
        ("warning", "c02"),
    ]
    with pytest.raises(AutosegError) as caught:
        require_clean(issues)
    assert caught.value.issues == issues[:3]


def test_workers_find_the_same(folder):
    write_image(folder / "imagesTr" / "c03.nii.gz", np.full(GRID.shape, np.nan), GRID)
    (folder / "labelsTr" / "c07.nii.gz").write_bytes(b"nonsense")
    assert check(folder, num_workers=2) == check(folder)


def test_notes_and_warnings_do_not_stop_anything():
    notes = [
        Issue(code="test.something", severity=severity, where="here", message="something")
        for severity in ("warning", "note")
    ]
    require_clean(notes)


def put(folder, name, array, label, grid=GRID):
    write_image(folder / "imagesTr" / f"{name}.nii.gz", array, grid)
    write_label_map(folder / "labelsTr" / f"{name}.nii.gz", label, grid)


def test_same_case_twice_is_a_warning_and_with_another_label_map_an_error(folder):
    put(folder, "c07", image(3), labels(3))
    assert seen(check(folder)) == [("warning", "case.duplicate", "c07")]
    put(folder, "c07", image(3), labels(7))
    assert seen(check(folder)) == [("error", "case.contradictory_labels", "c07")]


def test_label_map_of_two_images_is_a_warning(folder):
    write_label_map(folder / "labelsTr" / "c07.nii.gz", labels(3), GRID)
    assert ("warning", "labels.duplicate", "c07") in seen(check(folder))


def test_test_image_that_was_trained_on_is_a_warning(folder):
    write_image(folder / "imagesTs" / "t.nii.gz", image(4), GRID)
    assert seen(check(folder)) == [("warning", "case.test_in_training", "t")]


def test_flipped_label_map_is_an_error(folder):
    write_label_map(folder / "labelsTr" / "c05.nii.gz", labels(5)[:, :, ::-1].copy(), GRID)
    issue = only(check(folder))
    assert (issue.severity, issue.code, issue.case) == ("error", "labels.misfit", "c05")
    assert "flipped along x" in issue.message


def test_spacing_in_metres_is_an_error(folder):
    put(folder, "c05", image(5), labels(5), moved(spacing_mm=(0.002, 0.001, 0.001)))
    assert ("error", "case.spacing_unit", "c05") in seen(check(folder))


@pytest.mark.parametrize(("number", "code"), [(19, "labels.undeclared_value"), (20, "labels.grey_values")])
def test_many_undeclared_values_are_grey_values(folder, number, code):
    array = labels(5)
    array.reshape(-1)[:number] = np.arange(50, 50 + number)
    write_label_map(folder / "labelsTr" / "c05.nii.gz", array, GRID)
    assert ("error", code, "c05") in seen(check(folder))


def test_grey_values_in_place_of_labels_are_reported(folder):
    write_label_map(folder / "labelsTr" / "c05.nii.gz", np.arange(480, dtype=np.uint8).reshape(GRID.shape) % 200, GRID)
    assert ("error", "labels.grey_values", "c05") in seen(check(folder))


def test_intensities_of_another_scale_are_a_note_where_they_are_z_scored(folder):
    write_image(folder / "imagesTr" / "c05.nii.gz", image(5) * 1000, GRID)
    assert ("note", "image.scale", "c05") in [(i.severity, i.code, i.case) for i in check(folder)]


def test_names_of_one_patient_are_reported(folder):
    for old, new in (("c00", "p1_s1"), ("c01", "p1_s2"), ("c02", "p2_slice1"), ("c03", "p2_slice2")):
        for part in ("imagesTr", "labelsTr"):
            (folder / part / f"{old}.nii.gz").rename(folder / part / f"{new}.nii.gz")
    maybe, kept = check(folder)
    assert (maybe.severity, maybe.code) == ("warning", "case.ungrouped_patient")
    assert "p1_s1 and p1_s2" in maybe.message
    assert (kept.severity, kept.code) == ("note", "case.grouped_by_name")
    assert "p2_slice1 and p2_slice2" in kept.message


def test_bad_cases_can_be_left_out(folder):
    write_image(folder / "imagesTr" / "c05.nii.gz", np.full(GRID.shape, np.nan), GRID)
    (folder / "labelsTr" / "c06.nii.gz").unlink()
    dataset = discover_dataset(folder)
    issues = check(folder)
    left = leave_out_bad(dataset, issues)
    assert left.left_out == ("c05", "c06")
    assert [case.case_id for case in left.training] == [name for name in NAMES if name not in ("c05", "c06")]
    assert left.issues[-1].code == "case.left_out"
    assert set(issues) < set(left.issues)


def test_nothing_left_is_an_error(folder):
    for name in NAMES:
        write_image(folder / "imagesTr" / f"{name}.nii.gz", np.full(GRID.shape, np.nan), GRID)
    with pytest.raises(AutosegError) as caught:
        leave_out_bad(discover_dataset(folder), check(folder))
    assert caught.value.codes == ("case.none_left",)


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
def test_names_that_are_not_text_are_reported_at_once(folder, as_json, is_labelled):
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
    report = read_document(CheckReport, done.stdout, where="stdout") if as_json else None
    said = done.stderr if report is None else " ".join(map(str, report.issues))
    assert "Traceback" not in done.stderr
    for part in ("imagesTr", "labelsTr") if is_labelled else ("imagesTr",):
        for name in ("c01", "c02"):
            assert rf"{folder}/{part}/{name}\xfc.nii.gz" in said


@pytest.mark.parametrize("name", ["é", "漢", "ü ß"])
def test_names_in_any_script_are_no_fault(folder, name):
    for part in ("imagesTr", "labelsTr"):
        (folder / part / "c01.nii.gz").rename(folder / part / f"{name}.nii.gz")
    assert check(folder) == ()
    with suppress(OSError):  # not every file system takes it
        (folder / "imagesTr" / "stray\udcfc.txt").write_text("a file that nobody reads may have any name")
    assert check(folder) == ()


def test_folder_without_a_dataset_is_reported_as_json(tmp_path):
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--json"])
    assert result.exit_code == 1
    assert read_document(CheckReport, result.stdout, where="stdout").num_errors == 1


@pytest.mark.parametrize(("shift_mm", "severity"), [(2.4, None), (2.6, "warning"), (4.4, "warning"), (4.6, "error")])
def test_a_resampled_channel_must_cover_half_of_the_first(tmp_path, shift_mm, severity):
    """Both have five voxels of 1 mm along z, and the place of the first is looked at every half voxel: 2.5 mm leave 5 of 9 of these."""
    grids = [Geometry(shape=(5, 3, 3), spacing_mm=(1.0, 1.0, 1.0), origin_mm=(0.0, 0.0, z)) for z in (0.0, shift_mm)]
    files = [tmp_path / f"{name}.nii.gz" for name in ("ct", "pet")]
    for file, grid in zip(files, grids, strict=True):
        write_image(file, np.arange(45.0).reshape(grid.shape), grid)
    item = CheckItem(case_id="a", images=tuple(map(str, resampled_paths(files))), labels=())
    found = check_headers(item, channels=("CT", "PET")).issues
    assert [(each.code, each.severity) for each in found] == (
        [("image.channel_coverage", severity)] if severity else []
    )

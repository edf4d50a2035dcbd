"""The input of predict becomes cases, or one message about everything that is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import Listening

from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import read_header, write_image
from autoseg.inference.predict import find_input_cases
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder

GEOMETRY = Geometry(shape=(3, 4, 5), spacing_mm=(1.0, 1.0, 1.0))


def write(path: Path) -> Path:
    write_image(path, np.zeros((3, 4, 5), np.float32), GEOMETRY)
    return path


def test_a_file_is_one_case(tmp_path) -> None:
    path = write(tmp_path / "a.b.nii.gz")
    (case,) = find_input_cases(path, ["MRI"])
    assert case.case_id == "a.b"
    assert case.images == (path,)


def test_a_folder_gives_sorted_cases_and_skips_the_rest(tmp_path) -> None:
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
    with pytest.raises(AutosegError) as caught:
        find_input_cases(tmp_path, ["T1", "T2"])
    assert [(issue.case, issue.code) for issue in caught.value.issues] == [
        ("x", "predict.missing_channel"),
        ("y", "predict.missing_channel"),
        ("z", "image.channels"),
    ]
    assert "x_0000 (T1)" in caught.value.issues[0].message


def test_surplus_channels_are_named(tmp_path) -> None:
    for number in range(3):
        write(tmp_path / f"x_{number:04d}.nii.gz")
    with pytest.raises(AutosegError, match=r"x_0002\.nii\.gz") as caught:
        find_input_cases(tmp_path, ["T1", "T2"])
    assert caught.value.codes == ("predict.extra_channel",)


def test_two_files_of_one_name_are_refused(tmp_path) -> None:
    write(tmp_path / "a.nii.gz")
    write(tmp_path / "a.nrrd")
    with pytest.raises(AutosegError) as caught:
        find_input_cases(tmp_path, ["MRI"])
    assert caught.value.codes == ("predict.same_name",)


def test_a_number_and_no_number_for_one_case_are_refused(tmp_path) -> None:
    for name in ("x.nii.gz", "x_0000.nii.gz"):
        write(tmp_path / name)
    with pytest.raises(AutosegError) as caught:
        find_input_cases(tmp_path, ["MRI"])
    assert caught.value.codes == ("predict.same_name",)


@pytest.mark.parametrize("names", [("M\udcfcller.nii.gz", "p\udce9.mha"), ("M\udcfcller/a.nii.gz", "p\udce9/q/b.mha")])
def test_all_names_that_are_not_text_are_reported_at_once(tmp_path, names) -> None:
    write(tmp_path / "a.nii.gz" if "/" not in names[0] else tmp_path / "c" / "a.nii.gz")
    try:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes text only for names")
    with pytest.raises(AutosegError) as caught:
        find_input_cases(tmp_path, ["MRI"])
    shown = [problem.where for problem in caught.value.issues]
    assert [rf"{tmp_path}/M\xfcller", rf"{tmp_path}/p\xe9"] == [where.split(".")[0] for where in shown]


def test_names_in_any_script_are_taken(tmp_path) -> None:
    for name in ("é", "漢", "ü ß"):
        write(tmp_path / f"{name}.nii.gz")
    assert sorted(case.case_id for case in find_input_cases(tmp_path, ["MRI"])) == sorted(["é", "漢", "ü ß"])


def test_nothing_to_predict_is_an_error(tmp_path) -> None:
    for source, code in ((tmp_path, "predict.no_images"), (tmp_path / "absent", "predict.no_input")):
        with pytest.raises(AutosegError) as caught:
            find_input_cases(source, ["MRI"])
        assert caught.value.codes == (code,)


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
    with pytest.raises(AutosegError, match=r"mr_prostatex_calcbval_missing_slice.*slices are 3 mm apart but 6 mm"):
        find_input_cases(real_data / "dicom_series", ["T2"])


def test_series_of_one_folder_and_of_folders_below_are_separate_cases(real_data, tmp_path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    for name in ("mr_prostatex_adc", "mr_prostatex_t2_tra"):
        for file in (real_data / "dicom_series" / name).iterdir():
            (both / f"{name}_{file.name}").symlink_to(file)
    (tmp_path / "patient" / "study").mkdir(parents=True)
    (tmp_path / "patient" / "study" / "ct").symlink_to(real_data / "dicom_series" / "ct_body_jpeg2000" / "dicom")
    cases = find_input_cases(tmp_path, ["MRI"])
    shapes = {case.case_id: read_header(case.images[0]).geometry.shape for case in cases}
    assert sorted(shapes.values()) == [(19, 128, 84), (19, 384, 384), (20, 512, 512)]
    assert shapes["patient_study_ct"] == (20, 512, 512)
    assert all("/" not in name and "#" not in name for name in shapes)
    (one,) = find_input_cases(cases[0].images[0], ["MRI"])  # a series by its own name
    assert one == cases[0]


def test_series_folders_can_be_channels(real_data, tmp_path) -> None:
    for number in range(2):
        (tmp_path / f"p1_{number:04d}").symlink_to(real_data / "dicom_series" / "mr_prostatex_adc")
    (case,) = find_input_cases(tmp_path, ["T2", "ADC"])
    assert case.case_id == "p1"
    assert [path.name for path in case.images] == ["p1_0000", "p1_0001"]


def test_a_4d_file_and_colours_hold_all_channels(real_data) -> None:
    folder = real_data / "ms_lesion_4ch" / "imagesTr"
    case = find_input_cases(folder, ["FLAIR", "T1", "T1POST", "T2"])[0]
    assert len(case.images) == 1
    image = next((real_data / "nuclei_rgb2d" / "imagesTr").glob("*.png"))
    (case,) = find_input_cases(image, ["red", "green", "blue"])
    assert case.images == (image,)


def test_several_volumes_are_too_many_for_a_model_of_one_channel(real_data) -> None:
    image = next((real_data / "ms_lesion_4ch" / "imagesTr").glob("*.nii.gz"))
    with pytest.raises(AutosegError) as caught:
        find_input_cases(image, ["FLAIR"])
    (issue,) = caught.value.issues
    assert (issue.code, issue.fix) == ("image.channels", "use a single volume of it")


def test_files_in_subfolders_are_named_by_their_folders(tmp_path) -> None:
    for name in ("sub-1/anat/t1.nii.gz", "sub-2/anat/t1.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True)
        write(tmp_path / name)
    assert [case.case_id for case in find_input_cases(tmp_path, ["MRI"])] == ["sub-1_anat_t1", "sub-2_anat_t1"]
    write(tmp_path / "a.nii.gz")
    assert [case.case_id for case in find_input_cases(tmp_path, ["MRI"])] == ["a"]


@pytest.mark.parametrize(
    ("names", "channels", "expected"),
    [
        (("a.nii.gz", "a_seg.nii.gz", "b.nii.gz"), ["MRI"], ["a", "b"]),
        (("a_0000.nii.gz", "a_0001.nii.gz", "a_label.nii.gz"), ["T1", "T2"], ["a"]),
        (
            ("images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz"),
            ["MRI"],
            ["images_a", "images_b"],
        ),
        (("p1/t1.nii.gz", "p1/segmentation.nii.gz"), ["MRI"], ["p1_t1"]),
        (("p1/ct.nii.gz", "p1/masks/liver.nii.gz", "p1/masks/spleen.nii.gz"), ["CT"], ["p1_ct"]),
    ],
)
def test_label_maps_next_to_their_images_are_skipped_with_a_message(tmp_path, names, channels, expected) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name)
    reporter = Listening()
    assert [case.case_id for case in find_input_cases(tmp_path, channels, reporter=reporter)] == expected
    (said,) = reporter.lines
    assert said.startswith("Skipped ")
    assert ("1 label map:" in said) == (len(names) - len(expected) * len(channels) == 1)


@pytest.mark.parametrize(
    "names", [("a_seg.nii.gz", "b.nii.gz"), ("t1.nii.gz", "t2.nii.gz"), ("p1/t1.nii.gz", "p1/t2.nii.gz")]
)
def test_names_without_a_partner_are_images(tmp_path, names) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name)
    reporter = Listening()
    assert len(find_input_cases(tmp_path, ["MRI"], reporter=reporter)) == 2
    assert reporter.lines == []


def test_a_folder_for_training_gives_its_images(real_data) -> None:
    reporter = Listening()
    cases = find_input_cases(real_data / "ms_flair_thick", ["FLAIR"], reporter=reporter)
    assert {case.images[0].parent.name for case in cases} <= {"imagesTr", "imagesTs"}
    assert len(cases) >= 6
    assert "6 label maps" in reporter.lines[0]


def test_what_a_run_made_in_a_folder_is_no_image_of_it(tmp_path, monkeypatch) -> None:
    images, run = ["imagesTr/a.nii.gz", "imagesTr/b.nii.gz"], RunFolder(tmp_path / "run")
    made = [run.cross_validation / "a.nii.gz", run.predictions / "c.nii.gz", run.validation("2d", 0) / "b.nii.gz"]
    for path in [
        *(tmp_path / name for name in images),
        *made,
        tmp_path / "run" / "scans" / "d.nii.gz",
        run.stage("check"),
        run.lock("check"),
    ]:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path) if path.name.endswith(".nii.gz") else path.write_text("")
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path, Path()):
        reporter = Listening()
        cases = find_input_cases(source, ["MRI"], reporter=reporter)
        assert [case.case_id for case in cases] == ["imagesTr_a", "imagesTr_b", "run_scans_d"], (
            "scans are nothing that a run makes"
        )
        assert reporter.lines == ["Skipped 2 files of 1 run folder: run"]
    assert [case.case_id for case in find_input_cases(run.predictions, ["MRI"])] == ["c"], "that was asked for"

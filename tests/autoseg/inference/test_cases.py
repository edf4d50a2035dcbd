"""The input of predict becomes cases, or one message about everything that is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pytest
from builders import Listening
from dicom_files import write_series, write_structures

from autoseg.data.dataset import Case, DatasetDescription
from autoseg.data.discovery.inputs import MOST_NESTED, InputCase
from autoseg.data.discovery.others import FOREIGN
from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.readers import frame_path, is_dicom_series, is_segmentation, read_header, write_image
from autoseg.inference.bundle import without_cases
from autoseg.inference.input_cases import find_input_cases as find
from autoseg.inference.predict import LARGEST_LABEL, MOST_LABELS, SMALLEST_SHARE, looks_like_labels
from autoseg.inference.predictor import FAR, far_from_training, not_ct
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.settings import parse_part
from planners import (
    CaseSize,
    ChannelNormalization,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Plan,
    plan_dataset,
    transpose,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*(volumes|format that is not read):UserWarning")
"""Said to Python where no reporter is given."""

CLASSES = Labels(classes=(LabelClass(name="liver", values=(1,)),))
GEOMETRY = Geometry(shape=(3, 4, 5), spacing_mm=(1.0, 1.0, 1.0))


def trained_on(channels: list[str], *, layout: str = "msd", cases: tuple[Case, ...] = ()) -> DatasetDescription:
    return DatasetDescription(
        name="d",
        root="",
        layout=layout,
        channels=tuple(channels),
        labels=CLASSES,
        file_values=(0, 1),
        file_ending=".nii.gz",
        training=cases,
    )


def find_input_cases(source: Path, channels: list[str], **options: Any) -> tuple[InputCase, ...]:
    """Without errors."""
    found = find(source, trained_on(channels), **options)
    assert found.issues == ()
    return found.cases


def errors_of(source: Path, channels: list[str]) -> list[tuple[str | None, str]]:
    return [(issue.case, issue.code) for issue in find(source, trained_on(channels)).issues]


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.zeros((3, 4, 5), np.float32), GEOMETRY)
    return path


def test_a_file_is_one_case(tmp_path) -> None:
    path = write(tmp_path / "a.b.nii.gz")
    (case,) = find_input_cases(path, ["MRI"])
    assert case.case_id == "a.b"
    assert case.images == (path,)


def test_a_folder_gives_sorted_cases_and_skips_the_rest(tmp_path) -> None:
    for name in ("b.nii.gz", "a.nrrd", "._c.nii.gz", "@eaDir/a.nii.gz", "__MACOSX/a.nii.gz", "$RECYCLE.BIN/x.nii.gz"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    found = find(tmp_path, trained_on(["MRI"]))
    assert ([case.case_id for case in found.cases], found.issues) == (["a", "b"], ())


def test_names_of_frames_and_numbered_files_that_recur_are_refused(tmp_path) -> None:
    write_volumes(tmp_path / "heart.nii.gz", 2)
    write(tmp_path / "heart_frame01.nii.gz")
    for name in ("a_0001_0000", "a_0000", "a_0001"):
        write(tmp_path / f"{name}.nii.gz")
    found = find(tmp_path, trained_on(["CT"]))
    assert [case.case_id for case in found.cases] == ["a_0000", "heart_frame02"]
    assert [(issue.code, issue.case) for issue in found.issues] == [
        ("predict.same_name", "a_0001"),
        ("predict.same_name", "heart_frame01"),
    ]


def test_files_of_a_list_are_channels_of_cases_as_in_a_folder(tmp_path) -> None:
    files = [
        write(tmp_path / f"{name}.nii.gz") for name in ("a_0000", "a_0001", "b_0000", "b_0001", "c_0000", "c_0001")
    ]
    for listed in (files[:4], [files[3], files[0], files[1], files[2], files[0]]):
        found = find(listed, trained_on(["T1", "T2"]))
        assert [(case.case_id, case.images) for case in found.cases] == [
            ("a", tuple(files[:2])),
            ("b", tuple(files[2:4])),
        ]
        assert found.issues == ()


def test_links_to_slices_that_were_not_fetched_are_one_bad_case(tmp_path) -> None:
    write(tmp_path / "a.nii.gz")
    for folder, name in (("p1", "IM{}"), ("p2", "{}.dcm"), ("p3", "notes{}")):
        (tmp_path / folder).mkdir()
        for number in range(3):
            target = "/gone" if folder == "p3" else "../.git/annex/objects/aa/key"
            (tmp_path / folder / name.format(number)).symlink_to(target)
    reporter = Listening()
    found = find(tmp_path, trained_on(["CT"]), reporter=reporter)
    assert [(issue.code, issue.case) for issue in found.issues] == [
        ("predict.broken_link", "p1"),
        ("predict.broken_link", "p2"),
    ]
    assert any("p3: 3 links" in line for line in reporter.lines)
    assert [case.case_id for case in found.cases] == ["a"]


def test_numbered_channels_belong_together(tmp_path) -> None:
    for name in ("x_0001.nii.gz", "x_0000.nii.gz", "y_0000.nii.gz", "y_0001.nii.gz"):
        write(tmp_path / name)
    first, second = find_input_cases(tmp_path, ["T1", "T2"])
    assert first.case_id == "x"
    assert [path.name for path in second.images] == ["y_0000.nii.gz", "y_0001.nii.gz"]


def test_every_missing_channel_is_named_and_other_cases_are_found(tmp_path) -> None:
    for name in ("x_0001.nii.gz", "y_0000.nii.gz", "z.nii.gz", "w_0000.nii.gz", "w_0001.nii.gz"):
        write(tmp_path / name)
    found = find(tmp_path, trained_on(["T1", "T2"]))
    assert [case.case_id for case in found.cases] == ["w"]
    assert [(issue.case, issue.code) for issue in found.issues] == [
        ("x", "predict.missing_channel"),
        ("y", "predict.missing_channel"),
        ("z", "image.channels"),
    ]
    assert "x_0000 (T1)" in found.issues[0].message


def test_surplus_channels_are_named(tmp_path) -> None:
    for number in range(3):
        write(tmp_path / f"x_{number:04d}.nii.gz")
    (issue,) = find(tmp_path, trained_on(["T1", "T2"])).issues
    assert issue.code == "predict.extra_channel"
    assert "x_0002.nii.gz" in issue.message


@pytest.mark.parametrize("names", [("a.nii.gz", "a.nrrd"), ("a.nii.gz", "a_0000.nii.gz")])
def test_two_files_of_one_name_are_refused_and_others_are_found(tmp_path, names) -> None:
    for name in (*names, "b.nii.gz"):
        write(tmp_path / name)
    found = find(tmp_path, trained_on(["MRI"]))
    assert [case.case_id for case in found.cases] == ["b"]
    assert [(issue.case, issue.code) for issue in found.issues] == [("a", "predict.same_name")]


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


def test_structures_in_a_folder_of_their_own_are_no_case(tmp_path) -> None:
    folder = write_series(tmp_path / "p" / "study" / "ct", (3, 20, 30), [1, 0, 0, 0, 1, 0])
    (tmp_path / "p" / "study" / "rt").mkdir()
    write_structures(tmp_path / "p" / "study" / "rt" / "1.dcm", {1: []}, read_header(folder).geometry)
    assert [case.case_id for case in find_input_cases(tmp_path, ["CT"])] == ["p_study_ct"]


def test_a_dicom_series_without_a_slice_is_named(real_data) -> None:
    found = find(real_data / "dicom_series", trained_on(["T2"]))
    (issue,) = [issue for issue in found.issues if "mr_prostatex_calcbval_missing_slice" in (issue.case or "")]
    assert "slices are 3 mm apart but 6 mm" in issue.message
    assert found.cases


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


def write_volumes(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 4, 3, number), np.int16), np.eye(4)), path)
    return path


def test_volumes_of_a_4d_file_are_predicted_one_by_one_by_a_model_of_one_channel(tmp_path) -> None:
    path = write_volumes(tmp_path / "in" / "heart.nii.gz", 3)
    reporter = Listening()
    found = find(path.parent, trained_on(["cine MRI"]), reporter=reporter)
    assert {case.case_id: case.images for case in found.cases} == {
        f"heart_frame0{number}": (frame_path(path, number),) for number in (1, 2, 3)
    }
    assert any("Warning" in line and str(path) in line for line in reporter.lines)
    (second,) = find_input_cases(frame_path(path, 2), ["cine MRI"])
    assert (second.case_id, second.images) == ("heart_frame02", (frame_path(path, 2),))
    assert errors_of(path.parent, ["T1", "T2"]) == [("heart", "image.channels")]


def test_formats_that_are_not_read_are_named_with_a_way_out(tmp_path) -> None:
    write(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "er" / "orig.mgz").touch()
    reporter = Listening()
    assert [case.case_id for case in find_input_cases(tmp_path / "in", ["CT"], reporter=reporter)] == ["a"]
    assert any("orig.mgz" in line and "nibabel" in line for line in reporter.lines)
    assert errors_of(tmp_path / "in" / "deep" / "er" / "orig.mgz", ["CT"]) == [("orig.mgz", FOREIGN)]
    with pytest.raises(AutosegError) as caught:
        find(tmp_path / "in" / "deep", trained_on(["CT"]))
    assert caught.value.codes == ("predict.no_images", FOREIGN)


def test_files_in_subfolders_are_named_by_their_folders(tmp_path) -> None:
    for name in ("sub-1/anat/t1.nii.gz", "sub-2/anat/t1.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True)
        write(tmp_path / name)
    assert [case.case_id for case in find_input_cases(tmp_path, ["MRI"])] == ["sub-1_anat_t1", "sub-2_anat_t1"]
    write(tmp_path / "a.nii.gz")
    found = [case.case_id for case in find_input_cases(tmp_path, ["MRI"])]
    assert found == ["a", "sub-1_anat_t1", "sub-2_anat_t1"], "images above and below"


def test_dicom_and_nifti_patients_are_found_together(real_data, tmp_path) -> None:
    (tmp_path / "p1").mkdir()
    (tmp_path / "p1" / "ct").symlink_to(real_data / "dicom_series" / "mr_prostatex_adc")
    write(tmp_path / "p2" / "t1.nii.gz")
    assert [case.case_id for case in find_input_cases(tmp_path, ["MRI"])] == ["p1_ct", "p2_t1"]


def test_segmentations_beside_a_series_are_no_patients(real_data, tmp_path) -> None:
    source = real_data / "dicom_seg_ct3slice"
    (tmp_path / "p1").mkdir()
    series = next(
        path for path in sorted(source.rglob("*")) if is_dicom_series(path) and len(list(path.iterdir())) == 3
    )
    (tmp_path / "p1" / "ct").symlink_to(series)
    segments = next(path for path in sorted(source.rglob("*.dcm")) if is_segmentation(path))
    (tmp_path / "p1" / "seg").mkdir()
    (tmp_path / "p1" / "seg" / "1.dcm").symlink_to(segments)
    (tmp_path / "p1" / "beside.dcm").symlink_to(segments)
    reporter = Listening()
    assert [case.case_id for case in find_input_cases(tmp_path, ["CT"], reporter=reporter)] == ["p1_ct"]
    assert len(reporter.lines) == 2


def test_links_to_nothing_and_empty_files_are_one_bad_case_each(tmp_path) -> None:
    write(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to(tmp_path / "absent" / "b.nii.gz")
    (tmp_path / "c.nii.gz").touch()
    found = find(tmp_path, trained_on(["MRI"]))
    assert [case.case_id for case in found.cases] == ["a"]
    assert [issue.case for issue in found.issues] == ["b", "c"]
    assert found.issues[0].code == "predict.broken_link"


def test_archives_unfinished_downloads_looped_links_and_folders_named_like_images_are_named(tmp_path) -> None:
    write(tmp_path / "a.nii.gz")
    (tmp_path / "d.nii.gz").mkdir()
    write(tmp_path / "e.nii.gz" / "f.nii.gz")
    (tmp_path / "plain").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    for name in ("b.nii.gz.part", "more.ZIP", "notes.docx", "labels.csv"):
        (tmp_path / name).touch()
    reporter = Listening()
    found = find(tmp_path, trained_on(["MRI"]), reporter=reporter)
    assert [case.case_id for case in found.cases] == ["a", "e.nii.gz_f"], "the loop makes no label map of an image"
    assert not found.issues
    lines = "".join(reporter.lines)
    assert "b.nii.gz.part, more.ZIP" in lines
    assert "d.nii.gz" in lines
    assert "loop" in lines
    assert not any(name in lines for name in ("e.nii.gz", "plain", "notes", "labels.csv"))


def test_a_damaged_header_among_images_leaves_the_others_to_be_predicted(tmp_path) -> None:
    write(tmp_path / "a.nii.gz")
    (tmp_path / "b.nrrd").write_text("NRRD0006\nnonsense: 3\n\n")
    found = find(tmp_path, trained_on(["MRI"]))
    assert [case.case_id for case in found.cases] == ["a"]
    assert [(issue.case, issue.severity) for issue in found.issues] == [("b", "error")]


@pytest.mark.parametrize(("depth", "is_found"), [(MOST_NESTED, True), (MOST_NESTED + 1, False)])
def test_what_lies_too_deep_or_has_a_hidden_name_is_named(tmp_path, depth, is_found) -> None:
    write(tmp_path / "a.nii.gz")
    write(tmp_path / "_b.nii.gz")
    write(tmp_path.joinpath(*"x" * depth, "c.nii.gz"))
    reporter = Listening()
    names = [case.case_id for case in find_input_cases(tmp_path, ["MRI"], reporter=reporter)]
    assert ("_".join((*"x" * depth, "c")) in names) == is_found
    assert ["_b.nii.gz" in line for line in reporter.lines].count(True) == 1
    assert any("folders deep" in line for line in reporter.lines) != is_found


def test_four_digits_at_the_end_of_a_name_are_no_channel_of_a_file_with_all_channels(tmp_path) -> None:
    for number in range(3):
        write(tmp_path / "one" / f"frame_{number:04d}.nii.gz")
        PIL.Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / f"frame_{number:04d}.png")
    names = ["frame_0000", "frame_0001", "frame_0002"]
    assert [case.case_id for case in find_input_cases(tmp_path / "one", ["MRI"])] == names
    shutil.rmtree(tmp_path / "one")
    assert [case.case_id for case in find_input_cases(tmp_path, ["red", "green", "blue"])] == names


def test_names_of_training_cases_decide_whether_a_lone_number_is_a_channel(tmp_path) -> None:
    path = write(tmp_path / "BRATS_0000.nii.gz")
    for images, expected in (
        ((), "BRATS"),
        (("BRATS_0486.nii.gz",), "BRATS_0000"),
        (("hip_001_0000.nii.gz",), "BRATS"),
    ):
        cases = tuple(
            Case(case_id=name.removesuffix(".nii.gz").removesuffix("_0000"), images=(name,)) for name in images
        )
        for dataset in (trained_on(["MRI"], cases=cases), without_cases(trained_on(["MRI"], cases=cases))):
            (case,) = find(path, dataset).cases
            assert case.case_id == expected


def test_files_named_like_a_class_beside_an_image_are_its_label_maps(tmp_path) -> None:
    for name in ("p1/ct.nii.gz", "p1/Liver.nii.gz", "p2/ct.nii.gz", "p3/liver.nii.gz", "p2/old.nrrd"):
        write(tmp_path / name)
    (tmp_path / "p2" / "old.nrrd").rename(tmp_path / "p2" / "old.seg.nrrd")
    reporter = Listening()
    found = [case.case_id for case in find_input_cases(tmp_path, ["CT"], reporter=reporter)]
    assert found == ["p1_ct", "p2_ct", "p3_liver"]
    assert any("2 label maps: Liver.nii.gz, old.seg.nrrd" in line for line in reporter.lines)


CONTRASTS = ("flair", "t1", "t1ce", "t2")


@pytest.mark.parametrize("source", ["", "ValidationData", "ValidationData/BraTS2021_00002"])
def test_folders_of_a_public_dataset_are_read_as_in_training(tmp_path, source) -> None:
    for case_id in ("BraTS2021_00001", "BraTS2021_00002"):
        for contrast in CONTRASTS:
            write(tmp_path / "ValidationData" / case_id / f"{case_id}_{contrast}.nii.gz")
    model = trained_on(["t1", "t1ce", "t2", "flair"], layout="brats2021")
    found = find(tmp_path / source, model)
    assert found.issues == ()
    assert [case.case_id for case in found.cases] == ["BraTS2021_00001", "BraTS2021_00002"][source.count("/") :]
    assert [path.name[16:] for path in found.cases[-1].images] == [f"{c}.nii.gz" for c in ("t1", "t1ce", "t2", "flair")]
    (tmp_path / "ValidationData" / "BraTS2021_00002" / "BraTS2021_00002_t1.nii.gz").unlink()
    (issue,) = find(tmp_path, model).issues
    assert (issue.case, issue.code) == ("BraTS2021_00002", "predict.missing_channel")


def test_frames_of_acdc_are_cases_and_its_4d_files_where_there_are_no_frames(tmp_path) -> None:
    folder = tmp_path / "testing" / "patient101"
    for name in ("patient101_frame01", "patient101_frame14", "patient101_frame01_gt"):
        write(folder / f"{name}.nii.gz")
    series = write_volumes(folder / "patient101_4d.nii.gz", 2)
    for source in (tmp_path, tmp_path / "testing", folder):
        reporter = Listening()
        found = find(source, trained_on(["cine MRI"], layout="acdc"), reporter=reporter)
        assert found.issues == ()
        assert [case.case_id for case in found.cases] == ["patient101_frame01", "patient101_frame14"]
        assert any("patient101_4d.nii.gz" in line for line in reporter.lines)
    write_volumes(tmp_path / "testing" / "patient102" / "patient102_4d.nii.gz", 2)
    for source, prefix in ((tmp_path, "testing_patient102_"), (tmp_path / "testing", "patient102_"), (series, "")):
        found = find(source, trained_on(["cine MRI"], layout="acdc"))
        number = "101" if source == series else "102"
        expected = [f"{prefix}patient{number}_4d_frame0{k}" for k in (1, 2)]
        assert [case.case_id for case in found.cases if "4d" in case.case_id] == expected
        assert len(found.cases) == (2 if source == series else 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ED: 1\nES: 3\nGroup: DCM\n", ["patient101_frame01", "patient101_frame03"]),
        ("ED: 1\n", [f"patient101_patient101_4d_frame0{k}" for k in (1, 2, 3)]),
        ("ED: one\nES: 2\n", [f"patient101_patient101_4d_frame0{k}" for k in (1, 2, 3)]),
    ],
)
def test_volumes_that_acdc_names_beside_a_4d_file_are_its_cases(tmp_path, text, expected) -> None:
    series = write_volumes(tmp_path / "patient101" / "patient101_4d.nii.gz", 3)
    (tmp_path / "patient101" / "Info.cfg").write_text(text)
    acdc, reporter = trained_on(["cine MRI"], layout="acdc"), Listening()
    found = find(tmp_path, acdc, reporter=reporter)
    assert ([case.case_id for case in found.cases], found.issues) == (expected, ())
    assert [case.images[0] for case in found.cases] == [frame_path(series, int(name[-1])) for name in expected]
    assert sum("volumes" in line for line in reporter.lines) == 1
    assert len(find(series, acdc).cases) == len(find(tmp_path, trained_on(["MRI"])).cases) == 3


def test_layout_and_spec_say_how_the_input_is_laid_out(tmp_path) -> None:
    for name in ("p1/a_T1.nii.gz", "p1/a_T2.nii.gz", "p1/notes.nii.gz"):
        write(tmp_path / "in" / name)
    spec = tmp_path / "mine.toml"
    spec.write_text(
        'schema_version = 1\nchannels = ["T1", "T2"]\n[fields]\nchannel = "T1|T2"\n[training]\n'
        'images = ["{case}/{name}_{channel}{ending}"]\nlabels = ["{case}/seg{ending}"]\n'
    )
    reporter = Listening()
    (case,) = find(tmp_path / "in", trained_on(["T1", "T2"]), spec=spec, reporter=reporter).cases
    assert (case.case_id, [path.name for path in case.images]) == ("p1", ["a_T1.nii.gz", "a_T2.nii.gz"])
    assert any("notes.nii.gz" in line for line in reporter.lines)
    with pytest.raises(AutosegError) as caught:
        find(tmp_path / "in", trained_on(["T1", "T2"]), layout="none")
    assert caught.value.codes == ("layout.unknown",)


def test_parts_are_disjoint_and_whole(tmp_path) -> None:
    for number in range(5):
        write(tmp_path / f"c{number}.nii.gz")
    (tmp_path / "c5.nii.gz").touch()
    parts = [find(tmp_path, trained_on(["MRI"]), part=(k, 2)) for k in (1, 2)]
    assert [[case.case_id for case in part.cases] for part in parts] == [["c0", "c2", "c4"], ["c1", "c3"]]
    assert [len(part.issues) for part in parts] == [0, 1]
    for wrong in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(AutosegError) as caught:
            parse_part(wrong)
        assert caught.value.codes == ("settings.part",)


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
    assert ("skipped 1 label map:" in said) == (len(names) - len(expected) * len(channels) == 1)


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
    assert any("6 label maps" in line for line in reporter.lines)


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
        assert len(reporter.lines) == 1
        assert "3 files that a run wrote" in reporter.lines[0]
    assert [case.case_id for case in find_input_cases(run.predictions, ["MRI"])] == ["c"], "that was asked for"


STATISTICS = IntensityStatistics(
    mean=100, median=90, std=30, minimum=-10, maximum=300, percentile_00_5=0, percentile_99_5=250
)
BINARY = STATISTICS.model_copy(update={"minimum": 0, "median": 255, "percentile_99_5": 255, "maximum": 255})


@pytest.fixture
def real_plan() -> Plan:
    return plan_dataset(
        Fingerprint(
            dataset_name="made",
            cases=(CaseSize(case_id="a", shape=(20, 80, 80), spacing_mm=(4.0, 1.0, 1.0)),),
            num_training_cases=1,
            channels=("MRI",),
            labels=CLASSES,
            intensities=(STATISTICS,),
            median_relative_size_after_cropping=1.0,
        )
    )


def image_of(array: np.ndarray) -> Image:
    array = array.reshape(1, 1, *array.shape).astype(np.float32)
    return Image(array=array, geometry=Geometry(shape=array.shape[1:], spacing_mm=(1.0, 1.0, 1.0)))


def test_what_is_no_ct_is_noticed_where_training_images_were(real_plan: Plan) -> None:
    body = np.full((100, 100), 40.0)
    mr, ct = image_of(body), image_of(np.where(np.arange(100) < 30, -1000.0, body))

    def trained(scheme: str, minimum: float) -> Plan:
        statistics = STATISTICS.model_copy(update={"minimum": minimum})
        scaled = (ChannelNormalization(scheme=scheme),)  # type: ignore[arg-type]
        configurations = tuple(c.model_copy(update={"normalization": scaled}) for c in real_plan.configurations)
        return real_plan.model_copy(update={"configurations": configurations, "intensities": (statistics,)})

    name = real_plan.channels[0]
    assert [name in reason for reason in not_ct(mr, trained("ct", -100.0))] == [True]
    assert not_ct(ct, trained("ct", -100.0)) == []
    assert not_ct(mr, trained("ct", 0.0)) == [], "training images were not in Hounsfield units either"
    assert not_ct(mr, trained("zscore", -100.0)) == []
    assert not_ct(mr, trained("ct_or_zscore", -100.0)) == []
    assert [name in reason for reason in not_ct(ct.of_modality("MR"), trained("ct", 0.0))] == [True], "by its tag"
    assert not_ct(mr.of_modality("CT"), trained("ct", -100.0)) == []


def test_few_small_whole_numbers_are_labels_unless_training_images_were_alike() -> None:
    labels = np.zeros((100, 100))
    labels[:4, :4] = 3
    assert looks_like_labels(image_of(labels), [STATISTICS])
    assert not looks_like_labels(image_of(labels), [BINARY])
    values = np.arange(100 * 100).reshape(100, 100)
    assert looks_like_labels(image_of(values % MOST_LABELS), [STATISTICS])
    for other in (
        values % (MOST_LABELS + 1),
        np.where(labels == 3, LARGEST_LABEL + 1, 0),
        np.where(labels == 3, -1, 0),
        labels + 1,
        labels / 2,
        np.zeros((100, 100)),
    ):
        assert not looks_like_labels(image_of(other), [STATISTICS])
    number = round(SMALLEST_SHARE * labels.size)
    for count in (number, number - 1):
        labels = np.zeros(10_000)
        labels[:count] = LARGEST_LABEL
        assert looks_like_labels(image_of(labels.reshape(100, 100)), [STATISTICS]) == (count == number)


def test_spacing_and_extent_far_from_the_training_cases_get_a_word(real_plan: Plan) -> None:
    usual_mm = transpose(real_plan.original_median_spacing_mm, real_plan.transpose_backward)
    shape = transpose(real_plan.original_median_shape, real_plan.transpose_backward)
    for factor, expected in ((FAR, ""), (1 / FAR, ""), (FAR * 1.01, "spacing"), (1 / FAR / 1.01, "spacing")):
        spacing_mm = tuple(each * factor for each in usual_mm)
        fitting = tuple(max(1, round(size / factor)) for size in shape)
        words = far_from_training(Geometry(shape=fitting, spacing_mm=spacing_mm), real_plan)
        assert words.startswith(expected)
        assert "extent" not in words
        assert bool(words) == bool(expected)
    for factor, is_far in ((FAR, False), (FAR + 1, True)):
        larger = tuple(int(size * factor) for size in shape)
        assert far_from_training(Geometry(shape=larger, spacing_mm=usual_mm), real_plan).startswith("extent") == is_far
    (_, y, x), flat = shape, Geometry(shape=(1, *shape[1:]), spacing_mm=usual_mm)
    assert far_from_training(flat, real_plan) == "a single slice along z, in training about 20"
    photograph = Geometry(shape=(1, y, x), spacing_mm=(999.0, 1.0, 1.0), dimensions=2, has_orientation=False)
    tall = real_plan.model_copy(update={"original_median_spacing_mm": (20.0, *usual_mm[1:])})
    assert far_from_training(photograph, tall).startswith("a single slice"), "about as thick as the volumes are high"
    slices = real_plan.model_copy(
        update={"original_median_shape": (1, y, x), "original_median_spacing_mm": (999.0, *usual_mm[1:])}
    )
    for image in (flat, flat.model_copy(update={"shape": (30, y, x)})):
        assert far_from_training(image, slices) == "", "the spacing across slices means nothing"

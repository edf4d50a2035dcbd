"""From a challenge's folder as it comes to a checked package, and deliberate faults refused by name."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from challenge_folders import FOLDERS, make_challenger, rewrite, write_tiny

from autoseg import api
from autoseg.imaging.readers import read_header, read_label_map
from autoseg.issues import AutosegError

FILL = {"abcs2020": {"team": "ours", "date": "30112026"}, "isbi-ms-2015": {"team": "ours"}}
PACKED = {
    "kits19": ("prediction_00210.nii.gz", "90 of 90 cases, names prediction_NUMBER.nii.gz, values 0 1 2"),
    "amos22-task1": ("results/amos_0008.nii.gz", "100 of 100 cases, names results/amos_NUMBER.nii.gz, values 0-15"),
    "acdc": ("patient101_ED.nii.gz", "100 of 100 cases, names PATIENT_VOLUME.nii.gz, values 0 1 2 3"),
    "promise12": ("Case50.mhd", "30 of 30 cases, names CaseNN.mhd, values 0 1"),
    "lits": ("test-segmentation-0.nii", "70 of 70 cases, names test-segmentation-NUMBER.nii, values 0 1 2"),
    "segthor": ("Patient_41.nii", "20 of 20 cases, names Patient_NN.nii, values 0 1 2 3 4"),
    "btcv": ("label0061.nii.gz", "20 of 20 cases, names labelNNNN.nii.gz, values 0-13"),
    "flare23": ("FLARE23Ts_0001.nii.gz", "100 of 100 cases, names FLARE23Ts_NNNN.nii.gz, values 0-14"),
    "crossmoda22": ("crossmoda2022_etz_200_Label.nii.gz", "2 of 2 cases"),
    "hecktor22": ("submission/MDA-003.nii.gz", "2 of 2 cases"),
    "topcow24": ("topcow_mr_126.mha", "2 of 2 cases, names topcow_MODALITY_NNN.mha, values 0 1 12 15"),
    "brats2021": ("BraTS2021_00001.nii.gz", "2 of 219 cases, names BraTS2021_NNNNN.nii.gz, values 0 1 2 4"),
    "brats2023-gli": ("BraTS-GLI-00001-000.nii.gz", "2 of 219 cases, names BraTS-GLI-NNNNN-NNN.nii.gz, values 0 1 2 3"),
    "abcs2020": ("ours_30112026_046_pred1.mha", "15 of 30 cases"),
    "isbi-ms-2015": ("test01_01_ours.nii", "61 of 61 cases, names testNN_NN_ours.nii, values 0 1"),
}
SMALL = {"brats2021", "brats2023-gli", "abcs2020"}
"""Too large for a test with all cases, or one part of two."""


def names_in(package: Path) -> list[str]:
    if package.is_dir():
        return sorted(path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file())
    with zipfile.ZipFile(package) as archive:
        assert archive.testzip() is None
        return archive.namelist()


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_folder_becomes_a_checked_package(name, tmp_path, real_data):
    made = make_challenger(tmp_path, name, real_data)
    given = {"kind": name, "fill": FILL.get(name), "incomplete": name in SMALL}
    done = api.submit(made.run, out=tmp_path / "package", **given)
    first, line = PACKED[name]
    assert first in names_in(done.path)
    assert done.line.startswith(line)
    assert "grids checked; upload at " in done.line
    again = api.check_submission(done.path, **given, images=made.folder)
    assert again.line == done.line
    alone = api.check_submission(done.path, **given)
    assert alone.line == done.line.replace("grids checked", "grids not compared with images")


# --- faults ---


def refused(call, *args, **given):
    with pytest.raises(AutosegError) as caught:
        call(*args, **given)
    return [(issue.code.removeprefix("submission."), issue.where.rpartition(": ")[2]) for issue in caught.value.issues]


def lose(made, _):
    """One prediction is missing, another one is of no test image."""
    first, second = sorted(made.predictions.iterdir())[:2]
    first.unlink()
    second.rename(second.with_name(second.name.replace(second.name[:4], "none")))


def spread(made, _):
    """A value that the challenge does not have."""
    path = sorted(made.predictions.iterdir())[0]
    rewrite(path, array=read_label_map(path).array + 99)


def shift(made, _):
    """A grid that is not the image's."""
    rewrite(sorted(made.predictions.iterdir())[0], origin_mm=(0.0, 0.0, 0.0))


def cut(made, _):
    """Fewer slices than the image has."""
    path = sorted(made.predictions.iterdir())[0]
    array = read_label_map(path).array[1:]
    rewrite(path, array=array, shape=array.shape)


FAULTS = [
    ("promise12", spread, [("unknown_values", "Case50.mhd")]),
    ("segthor", shift, [("grid_mismatch", "Patient_41.nii")]),
    ("segthor", spread, [("unknown_values", "Patient_41.nii")]),
    ("btcv", cut, [("grid_mismatch", "label0061.nii.gz")]),
    ("crossmoda22", spread, [("unknown_values", "crossmoda2022_etz_200_Label.nii.gz")]),
    ("hecktor22", shift, [("grid_mismatch", "submission/MDA-003.nii.gz")]),
    ("topcow24", spread, [("unknown_values", "topcow_mr_126.mha")]),
    ("promise12", cut, [("grid_mismatch", "Case50.mhd")]),
]


@pytest.mark.parametrize(("name", "spoil", "faults"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_faulty_prediction_is_refused_by_the_name_of_its_file(name, spoil, faults, tmp_path, real_data):
    made = make_challenger(tmp_path, name, real_data)
    spoil(made, tmp_path)
    assert refused(api.submit, made.run, kind=name, out=tmp_path / "package") == faults
    assert not (tmp_path / "package").exists()


def test_missing_and_foreign_predictions_are_named_together(tmp_path, real_data):
    made = make_challenger(tmp_path, "segthor", real_data)
    lose(made, tmp_path)
    given = {"kind": "segthor", "out": tmp_path / "package", "predictions": made.predictions}
    assert refused(api.submit, made.run, **given) == [
        ("stray_file", str(made.predictions / "noneent_42.nii.gz")),
        ("missing_prediction", "SegTHOR"),
        ("missing_prediction", "SegTHOR"),
    ]


@pytest.fixture(scope="module")
def kits19(tmp_path_factory, real_data):
    """A sound package."""
    made = make_challenger(tmp_path_factory.mktemp("kits19"), "kits19", real_data)
    return api.submit(made.run, kind="kits19", out=made.run / "package.zip").path


def pack_again(package: Path, folder: Path, names: dict[str, str | None], more: dict[str, bytes]) -> Path:
    """The archive with other names for its files (none: left out), and more files."""
    out = folder / "again.zip"
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            if (other := names.get(name, name)) is not None:
                new.writestr(other, old.read(name))
        for name, content in more.items():
            new.writestr(name, content)
    return out


KITS = "prediction_00210.nii.gz"


@pytest.mark.parametrize(
    ("names", "more", "faults"),
    [
        ({KITS: None}, {}, [("case_count", "KiTS19")]),
        ({KITS: "case_00210.nii.gz"}, {}, [("stray_file", "case_00210.nii.gz"), ("case_count", "KiTS19")]),
        ({KITS: f"results/{KITS}"}, {}, [("wrong_folder", f"results/{KITS}"), ("case_count", "KiTS19")]),
        ({}, {"__MACOSX/._a.nii.gz": b"x"}, [("hidden_file", "__MACOSX/._a.nii.gz")]),
        (
            {},
            {"prediction_00300.nii.gz": b"x"},
            [("case_count", "KiTS19"), ("reader.unknown_format", "prediction_00300.nii.gz")],
        ),
        ({}, {"../prediction_00210.nii.gz": b"x"}, [("unfit_member", "../prediction_00210.nii.gz")]),
    ],
)
def test_package_made_elsewhere_is_refused_with_every_fault(names, more, faults, tmp_path, kits19):
    spoilt = pack_again(kits19, tmp_path, names, more)
    assert refused(api.check_submission, spoilt, kind="kits19") == faults


def test_images_name_the_missing_and_unknown_cases_of_a_package(tmp_path, real_data):
    made = make_challenger(tmp_path, "segthor", real_data)
    package = api.submit(made.run, kind="segthor", out=tmp_path / "package.zip").path
    spoilt = pack_again(package, tmp_path, {"Patient_41.nii": "Patient_61.nii"}, {})
    given = {"kind": "segthor", "images": made.folder}
    assert refused(api.check_submission, spoilt, **given) == [
        ("unknown_case", "Patient_61.nii"),
        ("missing_prediction", "SegTHOR"),
    ]
    lacking = pack_again(package, tmp_path, {"Patient_41.nii": None}, {})
    done = api.check_submission(lacking, **given, incomplete=True)
    assert done.line.startswith("19 of 20 cases")
    assert "submission.missing_prediction" in [issue.code for issue in done.issues]


def test_same_predictions_give_the_same_bytes_and_voxels_of_abcs_are_plain(tmp_path, real_data):
    made = make_challenger(tmp_path, "abcs2020", real_data)
    given = {"kind": "abcs2020", "incomplete": True}
    assert refused(api.submit, made.run, **given) == [("not_given", "team"), ("not_given", "date")]
    fill = {"team": "a team", "date": "30112026"}
    assert refused(api.submit, made.run, **given, fill=fill) == [("bad_field", "--fill team")]
    given["fill"] = FILL["abcs2020"]
    first, second = (api.submit(made.run, out=tmp_path / name, **given).path for name in ("a.zip", "b.zip"))
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert b"CompressedData = False" in archive.read("ours_30112026_046_pred1.mha")
        archive.extractall(tmp_path / "opened")
    for path in (tmp_path / "opened").iterdir():
        path.rename(path.with_suffix(".mha"))
    rewrite(tmp_path / "opened" / "ours_30112026_046_pred1.mha")
    assert refused(api.check_submission, tmp_path / "opened", **given) == [
        ("compression", "ours_30112026_046_pred1.mha")
    ]


@pytest.mark.parametrize(("shift_mm", "is_right"), [(0.00032, True), (0.00034, False)])
def test_affines_of_kits23_differ_by_a_thousandth_in_all(shift_mm, is_right, tmp_path, real_data):
    """The origin is shifted on each of three axes; the images are new ones, in the form of the dataset."""
    tiny = replace(
        FOLDERS["kits19"],
        training=("dataset/case_{n:05}/imaging.nii.gz",),
        label="dataset/case_{n:05}/segmentation.nii.gz",
    )
    images = write_tiny(
        tmp_path / "new",
        replace(tiny, labelled=(), test=("case_{n:05}/imaging.nii.gz",), numbers=range(589, 699)),
        real_data,
    )
    made = make_challenger(tmp_path, replace(tiny, numbers=(), values=(0, 1, 2, 3)), real_data)
    for number in range(589, 699):
        os.link(made.truth, made.predictions / f"case_{number:05}.nii.gz")
    geometry = read_header(made.truth).geometry
    moved = tuple(value + shift_mm for value in geometry.origin_mm)
    rewrite(made.predictions / "case_00600.nii.gz", origin_mm=moved)
    given = {"kind": "kits23", "images": images, "predictions": made.predictions, "out": tmp_path / "p.zip"}
    if is_right:
        done = api.submit(made.run, **given)
        assert done.line.startswith("110 of 110 cases, names case_NNNNN.nii.gz")
        assert "the form of the upload was not confirmed" in [issue.message for issue in done.issues]
    else:
        assert refused(api.submit, made.run, **given) == [("grid_mismatch", "case_00600.nii.gz")]

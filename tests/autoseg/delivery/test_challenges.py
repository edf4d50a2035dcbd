"""From a challenge's folder as it comes to a checked package, and deliberate faults refused by name."""

from __future__ import annotations

import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
from challenge_folders import FLAT, FOLDERS, GREYS, SIDE, Tiny, make_challenger, rewrite, write_chaos, write_tiny

from autoseg import api
from autoseg.data.discovery import discover_dataset
from autoseg.data.labels import read_case_labels
from autoseg.delivery.submitted_cases import value_issues, value_map
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import read_header, read_image, read_label_map, write_label_map
from autoseg.inference.input_cases import find_input_cases
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.stages.submit import described_known
from autoseg.storage.atomic import save_document
from datasets_spec import load_challenge
from planners import LabelClass, Labels

FILL = {"abcs2020": {"team": "ours", "date": "30112026"}, "isbi-ms-2015": {"team": "ours"}}
PACKED = {
    "kits19": ("prediction_00210.nii.gz", "90 of 90 cases, names prediction_NUMBER.nii.gz, values 0 1 2"),
    "amos22-task1": ("results/amos_0008.nii.gz", "100 of 100 cases, names results/amos_NUMBER.nii.gz, values 0-15"),
    "acdc": ("patient101_ED.nii.gz", "100 of 100 cases, names PATIENT_VOLUME.nii.gz, values 0 1 2 3"),
    "promise12": ("Case00.mhd", "30 of 30 cases, names CaseNN.mhd, values 0 1"),
    "lits": ("test-segmentation-0.nii", "70 of 70 cases, names test-segmentation-NUMBER.nii, values 0 1 2"),
    "segthor": ("Patient_41.nii", "20 of 20 cases, names Patient_NN.nii, values 0 1 2 3 4"),
    "btcv": ("label0061.nii.gz", "20 of 20 cases, names labelNNNN.nii.gz, values 0-13"),
    "flare23": ("FLARE23Ts_0001.nii.gz", "2 of 100 cases, names FLARE23Ts_NNNN.nii.gz, values 0-14"),
    "crossmoda22": ("crossmoda2022_etz_200_Label.nii.gz", "2 of 2 cases"),
    "flare24-task1": ("FLARE24Val_0001.nii.gz", "2 of 2 cases, names CASE.nii.gz, values 0 1"),
    "flare24-task3": ("amos_7296.nii.gz", "2 of 2 cases, names CASE.nii.gz, values 0-13"),
    "hecktor22": ("MDA-003.nii.gz", "2 of 2 cases"),
    "topcow24": ("topcow_mr_126.mha", "2 of 2 cases, names topcow_MODALITY_NNN.mha, values 0 1 12 15"),
    "brats2021": ("BraTS2021_00001.nii.gz", "1 of 219 cases, names BraTS2021_NNNNN.nii.gz, values 0 1 2 4"),
    "brats2023-gli": ("BraTS-GLI-00001-000.nii.gz", "1 of 219 cases, names BraTS-GLI-NNNNN-NNN.nii.gz, values 0 1 2 3"),
    "abcs2020": ("ours_30112026_046_pred1.mha", "15 of 30 cases"),
    "isbi-ms-2015": ("test01_01_ours.nii", "2 of 61 cases, names testNN_NN_ours.nii, values 0 1"),
}
SMALL = {"brats2021", "brats2023-gli", "abcs2020", "flare23", "isbi-ms-2015"}
"""With a few cases, or one part of two."""


def names_in(package: Path) -> list[str]:
    if package.is_dir():
        return sorted(path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file())
    with zipfile.ZipFile(package) as archive:
        assert archive.testzip() is None
        return archive.namelist()


@pytest.mark.parametrize("name", sorted(PACKED))
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
    ("promise12", spread, [("unknown_values", "Case00.mhd")]),
    ("segthor", shift, [("grid_mismatch", "Patient_41.nii")]),
    ("segthor", spread, [("unknown_values", "Patient_41.nii")]),
    ("btcv", cut, [("grid_mismatch", "label0061.nii.gz")]),
    ("crossmoda22", spread, [("unknown_values", "crossmoda2022_etz_200_Label.nii.gz")]),
    ("hecktor22", shift, [("grid_mismatch", "MDA-003.nii.gz")]),
    ("topcow24", spread, [("unknown_values", "topcow_mr_126.mha")]),
    ("promise12", cut, [("grid_mismatch", "Case00.mhd")]),
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


def test_masks_of_64_bits_are_told_where_no_rule_takes_them(tmp_path, kits19):
    with zipfile.ZipFile(kits19) as old:
        old.extract(KITS, tmp_path)
    stored = nib.load(tmp_path / KITS)
    wide = nib.Nifti1Image(np.asarray(stored.dataobj).astype(np.int64), stored.affine, dtype=np.int64)
    nib.save(wide, tmp_path / "wide.nii.gz")
    package = pack_again(kits19, tmp_path, {KITS: None}, {KITS: (tmp_path / "wide.nii.gz").read_bytes()})
    (told,) = [
        each for each in api.check_submission(package, kind="kits19").issues if each.code == "submission.voxel_type"
    ]
    assert (told.severity, told.where.rpartition(": ")[2]) == ("warning", KITS)
    assert "stores int64" in told.message


def test_a_zip_of_label_maps_may_hold_any_classes(tmp_path, real_data):
    made = make_challenger(tmp_path, "segthor", real_data)
    done = api.submit(made.run, kind="zip", out=tmp_path / "package.zip")
    line = api.check_submission(done.path, kind="zip", images=made.folder / "test").line
    assert "names IMAGE.*, values 0 1 2 3 4, grids checked" in line


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
        replace(tiny, labelled=(), test=("case_{n:05}/imaging.nii.gz",), numbers=(589, 600)),
        real_data,
    )
    made = make_challenger(tmp_path, replace(tiny, numbers=(), values=(0, 1, 2, 3)), real_data)
    for number in (589, 600):
        os.link(made.truth, made.predictions / f"case_{number:05}.nii.gz")
    geometry = read_header(made.truth).geometry
    moved = tuple(value + shift_mm for value in geometry.origin_mm)
    rewrite(made.predictions / "case_00600.nii.gz", origin_mm=moved)
    given = {
        "kind": "kits23",
        "images": images,
        "predictions": made.predictions,
        "out": tmp_path / "p.zip",
        "incomplete": True,
    }
    if is_right:
        done = api.submit(made.run, **given)
        assert done.line.startswith("2 of 110 cases, names case_NNNNN.nii.gz")
        assert "not confirmed: the form of the upload" in [issue.message for issue in done.issues]
    else:
        assert refused(api.submit, made.run, **given) == [("grid_mismatch", "case_00600.nii.gz")]


# --- what predictions become ---


def test_tasks_of_the_decathlon_are_parts_of_one_zip(tmp_path, real_data):
    """Two runs; hippocampus is real in all but its size, liver has cases that must be left out."""
    spleen = replace(FOLDERS["msd"], training=("imagesTr/spleen_{n}.nii.gz",), label="labelsTr/spleen_{n}.nii.gz")
    spleen = replace(spleen, test=("imagesTs/spleen_{n}.nii.gz",))
    liver = Tiny(
        ("imagesTr/liver_{n}.nii.gz",),
        "labelsTr/liver_{n}.nii.gz",
        ("imagesTs/liver_{n}.nii.gz",),
        range(131, 201),
        (0, 1, 2),
    )
    runs = [make_challenger(tmp_path / name, tiny, real_data).run for name, tiny in (("s", spleen), ("l", liver))]
    given = {"kind": "msd", "out": tmp_path / "submission.zip"}
    missing = refused(api.submit, runs, **given)
    assert missing == [("missing_part", "Medical Segmentation Decathlon")] * 8
    done = api.submit(runs, **given, incomplete=True)
    assert done.line.startswith("80 of 876 cases, names Task03_Liver/liver_NUMBER.nii.gz and those of 1 other part")
    names = names_in(done.path)
    assert len(names) == 60 + 20
    assert {name.split("/")[0] for name in names} == {"Task03_Liver", "Task09_Spleen"}
    assert "Task03_Liver/liver_140.nii.gz" in names
    assert "Task03_Liver/liver_141.nii.gz" not in names
    other = pack_again(done.path, tmp_path, {}, {"Task03_Liver/liver_141.nii.gz": b"x"})
    assert ("left_out_case", "Task03_Liver/liver_141.nii.gz") in refused(api.check_submission, other, kind="msd")
    given["out"] = tmp_path / "other.zip"
    assert refused(api.submit, [runs[0], runs[0]], **given) == [("same_part", str(runs[0] / "predictions"))]


def test_masks_of_classes_become_one_label_map_with_the_values_of_the_challenge(tmp_path, real_data):
    made = make_challenger(tmp_path, "segrap25", real_data)
    truth = read_label_map(made.truth).array
    for path in sorted(made.predictions.iterdir()):
        path.unlink()
    for case in ("segrap_0120", "segrap_0121"):
        (made.predictions / case).mkdir()
        for name, array in (("GTVp", truth), ("GTVnd", np.roll(truth, 1, axis=0))):
            write_label_map(made.predictions / case / f"{name}.nii.gz", array, read_header(made.truth).geometry)
    done = api.submit(made.run, kind="segrap25", fill={"team": "ours"}, out=tmp_path / "ours.zip")
    assert names_in(done.path) == [f"ours/Task01_results/SegRap_012{n}.nii.gz" for n in (0, 1)]
    with zipfile.ZipFile(done.path) as archive:
        archive.extractall(tmp_path)
    written = read_label_map(tmp_path / names_in(done.path)[0]).array
    np.testing.assert_array_equal(written, np.where(np.roll(truth, 1, axis=0) != 0, 2, truth))


def test_totalsegmentator_gets_masks_by_class_or_names_in_the_header(tmp_path, real_data):
    made = make_challenger(tmp_path, "totalsegmentator", real_data)
    images = write_tiny(
        tmp_path / "new",
        replace(FOLDERS["totalsegmentator"], labelled=(), test=("s{n:04}/ct.nii.gz",), numbers=(900,)),
        real_data,
    )
    (made.predictions / "s0900").mkdir()
    geometry, truth = read_header(made.truth).geometry, read_label_map(made.truth).array
    for name, array in (("liver", truth), ("spleen", 1 - truth)):
        write_label_map(made.predictions / "s0900" / f"{name}.nii.gz", array, geometry)
    given = {"images": images, "predictions": made.predictions}
    masks = api.submit(made.run, kind="totalsegmentator", out=tmp_path / "masks", **given).path
    assert names_in(masks) == [f"s0900/segmentations/{name}.nii.gz" for name in ("liver", "spleen")]
    whole = api.submit(made.run, kind="totalsegmentator-ml", out=tmp_path / "whole", **given).path
    image = nib.load(whole / "s0900.nii.gz")
    table = ElementTree.fromstring(image.header.extensions[0].get_content())
    assert {label.get("Key"): label.text for label in table.iter("Label")} == {"5": "liver", "1": "spleen"}
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, np.where(truth == 1, 5, 1))


@pytest.fixture(scope="module")
def chaos(tmp_path_factory, real_data):
    return write_chaos(tmp_path_factory.mktemp("chaos"), real_data)


def test_pictures_of_chaos_are_read_and_written_in_the_order_of_the_files(chaos, tmp_path):
    """The files of the training series begin at the last slice, those of the test series at the first."""
    dataset = discover_dataset(chaos)
    assert (dataset.layout, [case.case_id for case in dataset.training]) == ("chaos_mr", ["1_T1DUAL", "1_T2SPIR"])
    assert [len({*case.images}) for case in (*dataset.training, *dataset.test)] == [2, 1, 2, 1]
    case, run = dataset.training[0], RunFolder(tmp_path / "run")
    found = read_case_labels(case, dataset.coding, onto=read_image(case.image_paths).geometry)
    pictures = sorted((chaos / "Train_Sets/MR/1/T1DUAL/Ground").iterdir())
    drawn = np.concatenate([read_label_map(picture).array for picture in pictures])
    np.testing.assert_array_equal(np.array(GREYS)[found.array], drawn[::-1])
    run.predictions.mkdir(parents=True)
    save_document(run.dataset, dataset)
    truth = np.array(GREYS)[found.array]
    for each in dataset.test:
        write_label_map(run.predictions / f"{each.case_id}.nii.gz", truth, read_header(each.image_paths[0]).geometry)
    done = api.submit(run.root, kind="chaos", out=tmp_path / "chaos.zip")
    assert "values 0 63 126 189 252, grids checked" in done.line
    with zipfile.ZipFile(done.path) as archive:
        assert len(archive.namelist()) == 2 * SIDE
        archive.extractall(tmp_path)
    first = read_label_map(tmp_path / "Task5/MR/4/T2SPIR/Results/img000.png").array
    np.testing.assert_array_equal(first[0], truth[0])
    backwards = dataset.test[0].model_copy(update={"images": case.images})
    save_document(run.dataset, dataset.model_copy(update={"test": (backwards,)}))
    (run.predictions / "4_T2SPIR.nii.gz").unlink()
    done = api.submit(run.root, kind="chaos", out=tmp_path / "backwards.zip")
    with zipfile.ZipFile(done.path) as archive:
        archive.extractall(tmp_path / "backwards")
    first = read_label_map(tmp_path / "backwards/Task5/MR/4/T1DUAL/Results/img000.png").array
    np.testing.assert_array_equal(first[0], truth[-1])
    lacking = pack_again(done.path, tmp_path, {"Task5/MR/4/T1DUAL/Results/img002.png": None}, {})
    given = {"kind": "chaos", "images": chaos / "Test_Sets", "incomplete": True}
    assert "case 4_T1DUAL has no file" in " ".join(
        each.message for each in api.check_submission(lacking, **given).issues
    )


def test_what_is_wrong_with_a_stack_of_pictures_is_named(chaos, tmp_path):
    folder = tmp_path / "chaos"
    shutil.copytree(chaos, folder)
    (folder / "Train_Sets/MR/1/T1DUAL/Ground/IMG-0004-00003.png").unlink()
    wide = folder / "Train_Sets/MR/1/T2SPIR/Ground/IMG-0004-00003.png"
    write_label_map(
        wide, np.zeros((1, SIDE, SIDE + 1), np.uint8), FLAT.model_copy(update={"shape": (1, SIDE, SIDE + 1)})
    )
    errors = [each for each in api.check(folder).issues if each.severity == "error"]
    assert [(each.case, each.code) for each in errors] == [
        ("1_T1DUAL", "labels.slice_count"),
        ("1_T2SPIR", "reader.picture_size"),
    ]
    assert "5 pictures, but its series has 6 slices" in errors[0].message


def test_label_pictures_beside_images_are_not_predicted(chaos):
    dataset = discover_dataset(chaos)
    for folder in (chaos / "Train_Sets/MR/1", chaos / "Train_Sets"):
        found = find_input_cases(folder, dataset)
        assert [(case.case_id, len(case.images)) for case in found.cases] == [("1_T1DUAL", 2), ("1_T2SPIR", 2)]


def test_pet_of_hecktor_is_read_on_the_grid_of_ct(tmp_path, real_data):
    folder = write_tiny(tmp_path / "hecktor", FOLDERS["hecktor22"], real_data)
    found = api.check(folder)
    assert [each for each in found.issues if each.severity == "error"] == []
    assert "layout.resampled_channels" in [each.code for each in found.issues]
    dataset = discover_dataset(folder)
    (alone, _) = find_input_cases(folder / "imagesTs", dataset).cases
    for paths in (dataset.training[0].image_paths, dataset.test[0].image_paths, alone.images):
        ct, pet = (read_header(path).geometry for path in paths)
        assert ct.shape == (SIDE,) * 3 != pet.shape
        image = read_image(paths)
        assert (image.array.shape, image.geometry) == ((2, *ct.shape), ct)
        # voxels of PET lie on voxels of CT: linear interpolation keeps them but for single precision
        np.testing.assert_allclose(image.array[1, 1::2, ::2, ::2], read_image(paths[1:]).array[0], rtol=1e-5)


def test_a_frame_of_acdc_without_its_text_file_has_no_name(tmp_path, real_data):
    made = make_challenger(tmp_path, replace(FOLDERS["acdc"], numbers=(101, 102)), real_data)
    (made.folder / "testing" / "patient102" / "Info.cfg").write_text("ED: 1\n")
    assert set(refused(api.submit, made.run, kind="acdc", out=tmp_path / "a.zip", incomplete=True)) == {
        ("no_volume_name", "patient102_frame01"),
        ("no_volume_name", "patient102_frame12"),
    }


@pytest.mark.parametrize("name", ["brats2021", "brats2023-gli"])
def test_validation_images_of_brats_are_found_beside_the_training_folder_and_alone(name, tmp_path, real_data):
    tiny = replace(FOLDERS[name], grid=None)
    folder = write_tiny(tmp_path / "brats", tiny, real_data)
    training, validation = (folder / tiny.label.split("/")[0], folder / tiny.test[0].split("/")[0])
    case_ids = [Path(tiny.test[0].format(n=number)).parent.name for number in tiny.numbers]
    dataset = discover_dataset(training)
    assert [case.case_id for case in dataset.test] == case_ids
    found = find_input_cases(validation, dataset)
    assert [(case.case_id, len(case.images)) for case in found.cases] == [(case_id, 4) for case_id in case_ids]


def test_size_and_place_of_the_template_of_brats_are_demanded(tmp_path, real_data):
    made = make_challenger(tmp_path, replace(FOLDERS["brats2023-gli"], grid=None), real_data)
    given = {"kind": "brats2023-gli", "out": tmp_path / "b.zip", "incomplete": True}
    with pytest.raises(AutosegError) as caught:
        api.submit(made.run, **given)
    first = caught.value.issues[0]
    assert first.code == "submission.grid_mismatch"
    assert "size 6x6x6 voxels instead of 240x240x155" in first.message
    assert "axes of the affine" in first.message
    assert "offset of the affine" in first.message


def described(labels, file_values):
    return described_known(None, Path("d")).model_copy(update={"labels": labels, "file_values": file_values})


def test_values_are_found_by_the_regions_that_they_belong_to():
    """nnU-Net's copies of BraTS 2021 have oedema 1, necrosis 2, enhancing tumour 3."""
    classes = (("Whole Tumour", (1, 2, 3)), ("tumour_core", (2, 3)), ("enhancing tumour", (3,)))
    labels = Labels(classes=tuple(LabelClass(name=n, values=v) for n, v in classes), region_order=(1, 2, 3))
    part = load_challenge("brats2021").parts["cases"]
    assert value_map(described(labels, (0, 1, 2, 3)), part) == {1: 2, 2: 1, 3: 4}
    own = described_known("brats2021", Path("d"))
    assert {value: new for value, new in value_map(own, part).items() if value != 3} == {}
    plain = Labels(classes=tuple(LabelClass(name=n, values=(i,)) for i, n in enumerate(("NCR", "ED", "ET"), 1)))
    assert value_map(described(plain, (0, 1, 2, 3)), part) == {3: 4}


def test_a_dataset_with_some_classes_of_the_challenge_gets_their_values():
    labels = Labels(classes=(LabelClass(name="Liver", values=(1,)), LabelClass(name="spleen", values=(2,))))
    part = load_challenge("amos22-task2").parts["cases"]
    assert value_map(described(labels, (0, 1, 2)), part) == {1: 6, 2: 1}
    foreign = Labels(classes=(LabelClass(name="liver", values=(1,)), LabelClass(name="something", values=(2,))))
    assert value_map(described(foreign, (0, 1, 2)), part) == {}


def test_runs_of_other_datasets_are_refused(tmp_path, real_data):
    made = make_challenger(tmp_path, "segthor", real_data)
    assert refused(api.submit, made.run, kind="kits23") == [("other_dataset", str(made.predictions))]
    done = api.submit(made.run, kind="zip", out=tmp_path / "any.zip")
    assert "pack for it with --as segthor" in [issue.fix for issue in done.issues]


@pytest.mark.parametrize(
    ("kind", "name", "fault"),
    [
        ("brats2025-gli", "a/b/BraTS-GLI-00001-000.nii.gz", None),
        ("brats2025-gli", "BraTS-GLI-00001-000.nii.gz", None),
        ("brats2024-men-rt", "a/BraTS-MEN-RT-0001-1_gtv.nii.gz", "wrong_folder"),
        ("amos22-task2", "amos_0008.nii.gz", None),
        ("amos22-task2", "other/amos_0008.nii.gz", None),
        ("amos22-task2", "a/b/amos_0008.nii.gz", "wrong_folder"),
        ("crossmoda22", "top/crossmoda2022_etz_200_Label.nii.gz", None),
        ("kits19", "top/prediction_00210.nii.gz", "wrong_folder"),
    ],
)
def test_folders_in_a_package_are_judged_as_the_server_sees_them(kind, name, fault, tmp_path):
    path = tmp_path / "package" / name
    path.parent.mkdir(parents=True)
    array = np.resize([0, 1], (3, 4, 5))
    write_label_map(path, array, Geometry(shape=array.shape, spacing_mm=(1.0, 1.0, 1.0)))
    given = {"kind": kind, "incomplete": True}
    if fault is None:
        assert api.check_submission(tmp_path / "package", **given).line.startswith("1 of ")
    else:
        assert refused(api.check_submission, tmp_path / "package", **given) == [(fault, name)]


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"no zip at all", "no_archive"), (b"PK\x03\x04", "no_archive"), (None, "no_package")],
)
def test_what_is_no_archive_is_named(content, code, tmp_path):
    path = tmp_path / "p.zip"
    if content is not None:
        path.write_bytes(content)
    assert refused(api.check_submission, path, kind="kits19") == [(code, str(path))]


# --- classes of other datasets, before anything is predicted ---


def described_as(classes, known=None):
    """A dataset of classes with the values 1, 2, ..."""
    names = tuple(LabelClass(name=name, values=(i,)) for i, name in enumerate(classes, 1))
    dataset = described(Labels(classes=names), tuple(range(len(classes) + 1)))
    return dataset.model_copy(update={"known": known})


@pytest.mark.parametrize(
    ("kind", "classes", "known", "codes"),
    [
        ("kits23", ("kidney", "tumour", "cyst"), "KiTS23", []),
        ("lits", ("Tumour", "Liver"), None, []),  # found by name, ignoring case
        ("kits23", ("anterior", "posterior"), None, ["submission.class_names"]),
        (
            "kits23",
            ("anterior", "posterior"),
            "Medical Segmentation Decathlon, Task04 Hippocampus",
            ["submission.other_classes"],
        ),
        ("kits23", ("a", "b", "c", "d"), None, ["submission.other_values"]),
        ("promise12", ("prostate",), "another one", []),
        ("promise12", ("PZ", "TZ"), "Medical Segmentation Decathlon, Task05 Prostate", ["submission.other_values"]),
        ("folder", ("a", "b", "c"), None, []),
        ("chaos", ("liver", "right kidney", "left kidney", "spleen"), None, []),
        ("chaos", ("liver", "right kidney", "left kidney", "spleen", "stomach"), None, ["submission.other_values"]),
    ],
)
def test_classes_that_cannot_be_those_of_the_challenge_are_known_before(kind, classes, known, codes):
    challenge = load_challenge(kind)
    found = value_issues(challenge, challenge.parts["cases"], described_as(classes, known))
    assert [issue.code for issue in found] == codes
    assert [issue.severity for issue in found] == [
        "warning" if code.endswith("class_names") else "error" for code in codes
    ]


def test_images_of_another_challenge_are_refused_before_they_are_predicted(tmp_path, real_data):
    """The run has no model at all: anything that is predicted would fail."""
    made = make_challenger(tmp_path, "segthor", real_data)
    images = write_tiny(
        tmp_path / "kits",
        Tiny(("case_{n:05}.nii.gz",), "labels/{n}.nii.gz", ("images/case_{n:05}.nii.gz",), (1, 2), (0, 1)),
        real_data,
    )
    assert refused(api.submit, made.run, kind="kits23", images=images / "images") == [
        ("other_values", str(made.folder))
    ]


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_a_byte_of_an_archive_that_changed_is_named(kind, tmp_path):
    """Wherever the byte lies among the voxels: a broken stream, or one that does not match its sum."""
    inside = tmp_path / "submission"
    inside.mkdir()
    (inside / "a.bin").write_bytes(np.random.default_rng(0).integers(0, 4, 4000, np.uint8).tobytes())
    whole = Path(shutil.make_archive(str(tmp_path / "whole"), {"zip": "zip", "tgz": "gztar"}[kind], inside))
    damaged = tmp_path / f"damaged{whole.suffix}"
    for place in range(100, 500, 50):
        content = bytearray(whole.read_bytes())
        content[place] ^= 0xFF
        damaged.write_bytes(content)
        assert refused(api.check_submission, damaged, kind="kits19") == [("no_archive", str(damaged))]

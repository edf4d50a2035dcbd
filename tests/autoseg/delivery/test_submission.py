"""Only complete, right predictions are packed, and what is packed opens as the test images do."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from autoseg.data.challenges import challenge_named
from autoseg.data.discovery import discover_dataset
from autoseg.data.phantom import make_phantom_dataset
from autoseg.delivery.package_check import grid_faults
from autoseg.delivery.submission import pack_submission
from autoseg.delivery.submitted_cases import Predicted, SubmittedImage
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import read_header, read_label_map, write_image, write_label_map
from autoseg.issues import AutosegError
from datasets_spec import Grid

GRID = Geometry(shape=(2, 3, 4), spacing_mm=(2.0, 1.0, 0.5))
TEST = ("phantom_003", "phantom_004", "phantom_005")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "Task77_Phantom"
    make_phantom_dataset(folder, num_training=2, num_test=3)
    return discover_dataset(folder)


@pytest.fixture
def predictions(dataset, tmp_path):
    """The true labels of the test images."""
    return shutil.copytree(f"{dataset.root}/labelsTs", tmp_path / "predictions")


def pack(predictions, dataset, *, kind="zip", out=None):
    images = tuple(SubmittedImage(case_id=case.case_id, image=case.image_paths[0]) for case in dataset.test)
    found = Predicted(dataset=dataset, images=images, folder=predictions)
    return pack_submission([found], challenge_named(kind), out=out).path


def refused(predictions, dataset, out):
    with pytest.raises(AutosegError) as caught:
        pack(predictions, dataset, out=out)
    assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["predictions"]
    return caught.value.issues


def test_zip_holds_files_named_as_the_test_images(predictions, dataset, tmp_path):
    out = pack(predictions, dataset, kind="zip", out=tmp_path / "new" / "submission.zip")
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{name}.nii.gz" for name in TEST]
        archive.extractall(tmp_path / "opened")
    for case in dataset.test:
        packed = tmp_path / "opened" / f"{case.case_id}.nii.gz"
        truth = read_label_map(f"{dataset.root}/labelsTs/{case.case_id}.nii.gz")
        np.testing.assert_array_equal(read_label_map(packed).array, truth.array)
        assert read_header(packed).is_integer
        assert read_header(packed).geometry == read_header(case.images[0]).geometry


def test_folder_is_plain(predictions, dataset, tmp_path):
    out = pack(predictions, dataset, kind="folder", out=tmp_path / "handed in")
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.nii.gz" for name in TEST]
    for name in TEST:
        assert (out / f"{name}.nii.gz").read_bytes() == (predictions / f"{name}.nii.gz").read_bytes()


def test_same_predictions_give_the_same_archive(predictions, dataset, tmp_path):
    first, second = (pack(predictions, dataset, kind="zip", out=tmp_path / f"{n}.zip") for n in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_other_files_beside_predictions_are_left_out(predictions, dataset, tmp_path):
    (predictions / "summary.json").write_text("{}")
    (predictions / "._phantom_003.nii.gz").write_text("stray")
    out = pack(predictions, dataset, kind="folder", out=tmp_path / "out")
    assert len(list(out.iterdir())) == 3


def test_missing_and_extra_predictions_are_refused_by_name(predictions, dataset, tmp_path):
    (predictions / "phantom_004.nii.gz").rename(predictions / "phantom_001.nii.gz")
    stray, missing = refused(predictions, dataset, tmp_path / "out.zip")
    assert missing.code == "submission.missing_prediction"
    assert "phantom_004" in missing.message
    assert (stray.code, stray.where) == ("submission.stray_file", str(predictions / "phantom_001.nii.gz"))


def test_two_predictions_of_a_case_are_refused(predictions, dataset, tmp_path):
    truth = read_label_map(predictions / "phantom_004.nii.gz")
    write_label_map(predictions / "phantom_004.nrrd", truth.array, truth.geometry)
    (issue,) = refused(predictions, dataset, tmp_path / "out.zip")
    assert issue.code == "submission.duplicate_prediction"
    assert "phantom_004 has 2 predictions: phantom_004.nii.gz, phantom_004.nrrd" in issue.message


def _tilted(angle):
    return ((1.0, -angle, 0.0), (angle, 1.0, 0.0), (0.0, 0.0, 1.0))


def change_type(array, geometry, path):
    write_image(path, array + 0.5, geometry)


def change_value(array, geometry, path):
    write_label_map(path, array * 4, geometry)


def change_size(array, geometry, path):
    write_label_map(path, array[1:], Geometry(**{**geometry.model_dump(), "shape": array[1:].shape}))


def change_origin(array, geometry, path):
    x, y, z = geometry.origin_mm
    write_label_map(path, array, Geometry(**{**geometry.model_dump(), "origin_mm": (x + 0.01, y, z)}))


def damage(array, geometry, path):
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (change_type, "reader."),
        (change_value, "submission.unknown_values"),
        (change_size, "submission.grid_mismatch"),
        (change_origin, "submission.grid_mismatch"),
        (damage, "reader."),
    ],
)
def test_invalid_prediction_is_refused(predictions, dataset, tmp_path, spoil, code):
    path = predictions / "phantom_005.nii.gz"
    truth = read_label_map(path)
    spoil(truth.array, truth.geometry, path)
    (issue,) = refused(predictions, dataset, tmp_path / "out.zip")
    assert issue.code.startswith(code)
    assert Path(issue.where).name == path.name


@pytest.mark.parametrize(
    ("field", "within", "outside"),
    [
        ("origin_mm", (0.000049, 0.0, 0.0), (0.000051, 0.0, 0.0)),  # in voxels of 0.5 mm
        ("spacing_mm", (2.0 * (1 + 9e-7), 1.0, 0.5), (2.0 * (1 + 1.1e-6), 1.0, 0.5)),
        ("direction", _tilted(9e-7), _tilted(1.1e-6)),
    ],
)
def test_grids_agree_up_to_single_precision(field, within, outside):
    for value, number in ((within, 0), (outside, 1)):
        differences = grid_faults(GRID.model_copy(update={field: value}), GRID, Grid())
        assert len(differences) == number, (field, value, differences)


def test_all_issues_come_at_once(predictions, dataset, tmp_path):
    for name in TEST[:2]:
        truth = read_label_map(predictions / f"{name}.nii.gz")
        change_value(truth.array, truth.geometry, predictions / f"{name}.nii.gz")
    (predictions / f"{TEST[2]}.nii.gz").unlink()
    assert len(refused(predictions, dataset, tmp_path / "out.zip")) == 3


def test_header_with_a_second_file_is_packed_with_it(predictions, dataset, tmp_path):
    truth = read_label_map(predictions / "phantom_004.nii.gz")
    (predictions / "phantom_004.nii.gz").unlink()
    write_label_map(predictions / "phantom_004.mhd", truth.array, truth.geometry)
    with zipfile.ZipFile(pack(predictions, dataset, out=tmp_path / "out.zip")) as archive:
        assert archive.namelist()[1:3] == ["phantom_004.mhd", "phantom_004.zraw"]
        archive.extractall(tmp_path / "opened")
    np.testing.assert_array_equal(read_label_map(tmp_path / "opened" / "phantom_004.mhd").array, truth.array)


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_whole_numbers_of_any_type_become_bytes(predictions, dataset, tmp_path, kind):
    path = predictions / "phantom_005.nii.gz"
    truth = read_label_map(path)
    nib.save(nib.Nifti1Image(truth.array.T.astype(kind), nib.load(path).affine, dtype=kind), path)
    out = pack(predictions, dataset, kind="folder", out=tmp_path / "out")
    assert read_header(out / path.name).pixel_type == "uint8"
    np.testing.assert_array_equal(read_label_map(out / path.name).array, truth.array)


def test_ignore_value_may_not_be_predicted(predictions, dataset, tmp_path):
    labels = dataset.labels.model_copy(update={"classes": dataset.labels.classes[:1], "ignore": 2})
    issues = refused(predictions, dataset.model_copy(update={"labels": labels}), tmp_path / "out.zip")
    assert [issue.code for issue in issues] == ["submission.unknown_values"] * 3
    assert issues[0].message == "has the values 2, but the dataset's are 0, 1"


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_existing_output_is_not_overwritten(predictions, dataset, tmp_path, kind):
    full, file = tmp_path / "full", tmp_path / "file.zip"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    for out in (full, file):
        with pytest.raises(AutosegError) as caught:
            pack(predictions, dataset, kind=kind, out=out)
        fits = (out is full) == (kind == "folder")
        assert caught.value.codes == ("submission.out_exists" if fits else "submission.out_of_other_kind",)
    assert file.read_text() == (full / "mine.txt").read_text() == "mine"


def test_empty_file_or_folder_is_filled(predictions, dataset, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.zip").touch()
    pack(predictions, dataset, kind="folder", out=tmp_path / "empty")
    pack(predictions, dataset, kind="zip", out=tmp_path / "empty.zip")
    assert len(list((tmp_path / "empty").iterdir())) == 3
    assert zipfile.is_zipfile(tmp_path / "empty.zip")


def test_current_folder_is_not_replaced(predictions, dataset, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(AutosegError) as caught:
        pack(predictions, dataset, kind="folder", out=Path("."))
    assert caught.value.codes == ("submission.out_is_working_folder",)


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_place_that_cannot_be_written_is_named(predictions, dataset, tmp_path, kind):
    (tmp_path / "file").write_text("x")
    with pytest.raises(AutosegError, match="could not be written"):
        pack(predictions, dataset, kind=kind, out=tmp_path / "file" / "out")


def test_dataset_without_test_images_has_nothing_to_submit(predictions, dataset, tmp_path):
    with pytest.raises(AutosegError) as caught:
        pack(predictions, dataset.model_copy(update={"test": ()}), kind="zip", out=tmp_path / "out.zip")
    assert caught.value.codes == ("submission.no_test_images",)


def test_missing_folder_of_predictions_is_named(dataset, tmp_path):
    with pytest.raises(AutosegError) as caught:
        pack(tmp_path / "nothing", dataset, kind="zip", out=tmp_path / "out.zip")
    assert caught.value.codes == ("submission.no_predictions",)


def test_unknown_challenge_is_refused_with_one_of_a_similar_name():
    with pytest.raises(AutosegError) as caught:
        challenge_named("kits-23")
    (issue,) = caught.value.issues
    assert (issue.code, issue.where) == ("challenge.unknown", "--as kits-23")
    assert "kits23" in issue.fix


def test_test_images_with_the_same_name_are_distinguished_by_case(tmp_path):
    for number in (1, 2, 3):
        for name in ("mr", "mr_seg")[: 2 if number == 1 else 1]:
            (tmp_path / "data" / f"p{number}").mkdir(parents=True, exist_ok=True)
            write_label_map(tmp_path / "data" / f"p{number}" / f"{name}.nii.gz", np.resize([0, 1], GRID.shape), GRID)
    (tmp_path / "spec.toml").write_text('extends = "case_folders"\nwithout_label = "test"\n')
    dataset = discover_dataset(tmp_path / "data", spec=tmp_path / "spec.toml")
    (tmp_path / "predictions").mkdir()
    for case in dataset.test:
        write_label_map(tmp_path / "predictions" / f"{case.case_id}.nii.gz", np.zeros(GRID.shape, int), GRID)
    out = pack(tmp_path / "predictions", dataset, kind="folder", out=tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["p2.nii.gz", "p3.nii.gz"]


# --- one mask for each class ---


@pytest.fixture
def masks(tmp_path):
    """A dataset with one mask for each class, 255 inside, and predictions of its two test images in the same form."""
    for number in range(1, 4):
        for name in ("mr", "masks/ball", "masks/egg")[: 3 if number == 1 else 1]:
            path = tmp_path / "data" / f"p{number}" / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_label_map(path, np.resize([0, 255, 255], GRID.shape), GRID)
    (tmp_path / "spec.toml").write_text('extends = "case_masks"\nwithout_label = "test"\n')
    dataset = discover_dataset(tmp_path / "data", spec=tmp_path / "spec.toml")
    assert (dataset.classes_with_masks, dataset.mask_value, len(dataset.test)) == (("ball", "egg"), 255, 2)
    for case in dataset.test:
        (tmp_path / "predictions" / case.case_id).mkdir(parents=True)
        for name in ("ball", "egg"):
            write_label_map(
                tmp_path / "predictions" / case.case_id / f"{name}.nii.gz", np.resize([0, 255], GRID.shape), GRID
            )
    return dataset, tmp_path / "predictions"


def test_masks_of_classes_are_packed_in_folders_of_their_cases(masks, tmp_path):
    dataset, predictions = masks
    names = [f"{case}/{name}.nii.gz" for case in ("p2", "p3") for name in ("ball", "egg")]
    out = pack(predictions, dataset, kind="zip", out=tmp_path / "out.zip")
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == names
    out = pack(predictions, dataset, kind="folder", out=tmp_path / "out")
    for name in names:
        assert (out / name).read_bytes() == (predictions / name).read_bytes()


def test_faulty_masks_are_refused_by_name(masks, tmp_path):
    dataset, predictions = masks
    (predictions / "p2" / "egg.nii.gz").unlink()
    write_label_map(predictions / "p2" / "liver.nii.gz", np.zeros(GRID.shape, int), GRID)
    write_label_map(predictions / "p3" / "ball.nii.gz", np.resize([0, 1], GRID.shape), GRID)
    write_label_map(predictions / "p3" / "egg.nrrd", np.zeros(GRID.shape, int), GRID)
    with pytest.raises(AutosegError) as caught:
        pack(predictions, dataset, kind="zip", out=tmp_path / "out.zip")
    found = {(issue.code, *Path(issue.where).parts[-2:]) for issue in caught.value.issues}
    assert found == {
        ("submission.missing_mask", "predictions", "p2"),
        ("submission.stray_file", "p2", "liver.nii.gz"),
        ("submission.duplicate_mask", "predictions", "p3"),
    }
    for path in ("p2/liver.nii.gz", "p3/egg.nrrd"):
        (predictions / path).unlink()
    write_label_map(predictions / "p2" / "egg.nii.gz", np.resize([0, 255], GRID.shape), GRID)
    with pytest.raises(AutosegError) as caught:
        pack(predictions, dataset, out=tmp_path / "out.zip")
    assert [(issue.code, issue.where) for issue in caught.value.issues] == [
        ("submission.unknown_values", "p3/ball.nii.gz")
    ]

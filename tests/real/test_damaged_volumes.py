"""Real volumes really damaged, each in another way, all in one folder: every fault is named with its case, sound cases are not."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import skimage.io

from autoseg.data.checks import check_dataset
from autoseg.data.discovery import discover_dataset
from autoseg.imaging.readers import read_image, read_label_map, write_image, write_label_map
from autoseg.issues import AutosegError
from autoseg.tracking.progress import SilentReporter

CASES = 30


def edit(change: Callable[[np.ndarray], np.ndarray] | None = None, **header: object) -> Callable[[Path], None]:
    """Rewrite a NIfTI file with other voxels (x, y, z) or another affine."""

    def apply(path: Path) -> None:
        image = nibabel.load(path)
        array = np.asarray(image.dataobj)
        affine = image.affine.copy()
        affine[:3, 3] += np.array(header.get("shift", (0, 0, 0)), float)
        affine[:3, :3] = affine[:3, :3] @ np.array(header.get("turn", np.eye(3)), float)
        nibabel.save(nibabel.Nifti1Image(array if change is None else change(array), affine), path)

    return apply


def set_voxel(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        array[3, 4, 5] = value
        return array

    return change


def flip_bits(path: Path) -> None:
    """Four bits of the packed voxels; the check sum of gzip tells."""
    content = bytearray(path.read_bytes())
    for place in (0.4, 0.5, 0.6, 0.7):
        content[int(place * len(content))] ^= 0x10
    path.write_bytes(content)


def as_other_format(path: Path) -> None:
    """An NRRD file under a name that ends in .nii.gz."""
    volume = read_image([path])
    write_image(path.with_name("x.nrrd"), volume.array[0], volume.geometry)
    path.with_name("x.nrrd").rename(path)


def stack_twice(array: np.ndarray) -> np.ndarray:
    return np.stack([array, array], axis=-1)


tilt = [[1, 0, 0], [0, np.cos(0.2), -np.sin(0.2)], [0, np.sin(0.2), np.cos(0.2)]]
DAMAGES: tuple[tuple[str, str, Callable[[Path], None], str], ...] = (
    ("an empty file", "images", lambda path: path.write_bytes(b""), "reader."),
    (
        "cut",
        "images",
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
        "reader.",
    ),
    ("bits flipped", "images", flip_bits, "reader."),
    ("bits flipped in the label map", "labels", flip_bits, "reader."),
    ("not what its ending says", "images", as_other_format, "reader."),
    ("one NaN", "images", edit(set_voxel(np.nan)), "image.nan"),
    ("one infinite voxel", "images", edit(set_voxel(np.inf)), "image.infinite"),
    ("constant", "images", edit(lambda array: np.full_like(array, 9)), "image.constant"),
    ("two channels in one", "images", edit(stack_twice), "image.channel_count"),
    ("a slice less", "labels", edit(lambda array: array[..., :-1]), "labels.grid"),
    ("elsewhere", "labels", edit(shift=(4, 0, 0)), "labels.grid"),
    ("turned by 11 degrees", "labels", edit(turn=tilt), "labels.grid"),
    ("other voxel size", "labels", edit(turn=np.diag([1.2, 1, 1])), "labels.grid"),
    ("fractions", "labels", edit(lambda array: array * np.float32(0.7)), "reader.fractional_labels"),
    (
        "a value that is no class",
        "labels",
        edit(lambda array: np.where(array == 2, 7, array).astype(np.uint8)),
        "labels.undeclared_value",
    ),
    ("empty label map", "labels", edit(np.zeros_like), "labels.empty"),
    ("two label maps in one", "labels", edit(stack_twice), ""),
)


@pytest.fixture(scope="module")
def hippocampus(real_data, tmp_path_factory):
    """The first cases of the real dataset, as other kinds of folders have them."""
    folder = tmp_path_factory.mktemp("hippocampus")
    for kind, source in (("images", "imagesTr"), ("labels", "labelsTr")):
        (folder / kind).mkdir()
        for file in sorted((real_data / "Task04_Hippocampus" / source).glob("*.nii.gz"))[:CASES]:
            shutil.copyfile(file, folder / kind / file.name)
    (folder / "dataset.json").write_text(
        '{"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "head", "2": "tail"}}'
    )
    return folder


def copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def alarms(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Code and words of errors and warnings by case."""
    said: dict[str, list[tuple[str, str]]] = {}
    for finding in check_dataset(discover_dataset(folder), num_workers=1, reporter=SilentReporter()):
        if finding.severity != "note":
            said.setdefault(finding.case or "", []).append((finding.code, finding.message))
    return said


def test_every_damaged_case_is_named_with_its_fault_and_no_other(hippocampus, tmp_path):
    folder = copy(hippocampus, tmp_path / "data")
    names = sorted(path.name for path in (folder / "images").iterdir())
    for name, (_, kind, damage, _) in zip(names, DAMAGES, strict=False):
        damage(folder / kind / name)
    said = alarms(folder)
    for name, (title, _, _, code) in zip(names, DAMAGES, strict=False):
        found = said.pop(name.removesuffix(".nii.gz"), [])
        assert any(found_code.startswith(code) for found_code, _ in found), (title, found)
    assert said == {}


def test_the_sound_cases_are_sound(hippocampus):
    assert alarms(hippocampus) == {}


def test_formats_may_differ_from_case_to_case_and_from_image_to_label(hippocampus, tmp_path):
    folder = copy(hippocampus, tmp_path / "data")
    for number, path in enumerate(sorted((folder / "images").iterdir())):
        ending = (".nrrd", ".mha", ".nii", ".nii.gz")[number % 4]
        volume = read_image([path])
        path.unlink()
        write_image(path.with_name(path.name.replace(".nii.gz", ending)), volume.array[0], volume.geometry)
    for number, path in enumerate(sorted((folder / "labels").iterdir())):
        label_map = read_label_map(path)
        path.unlink()
        write_label_map(
            path.with_name(path.name.replace(".nii.gz", (".nii.gz", ".nrrd", ".mhd")[number % 3])),
            label_map.array,
            label_map.geometry,
        )
    assert len(discover_dataset(folder).training) == CASES
    assert alarms(folder) == {}


def test_copies_are_found_by_content(hippocampus, tmp_path):
    """The same image in another format, compressed anew, or under another patient's label map."""
    folder = copy(hippocampus, tmp_path / "data")
    names = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "images").iterdir())
    first, second, third, fourth = names[:4]
    volume, label_map = (
        read_image([folder / "images" / f"{first}.nii.gz"]),
        read_label_map(folder / "labels" / f"{first}.nii.gz"),
    )
    write_image(folder / "images" / "copied_first.mha", volume.array[0], volume.geometry)
    write_label_map(folder / "labels" / "copied_first.mha", label_map.array, label_map.geometry)
    for kind in ("images", "labels"):
        packed = gzip.compress(gzip.decompress((folder / kind / f"{second}.nii.gz").read_bytes()), 1)
        (folder / kind / "copied_second.nii.gz").write_bytes(packed)
    third_image = read_image([folder / "images" / f"{third}.nii.gz"])
    write_image(folder / "images" / "copied_third.nii.gz", third_image.array[0], third_image.geometry)
    of_fourth = read_label_map(folder / "labels" / f"{fourth}.nii.gz").array
    padded = np.zeros(third_image.geometry.shape, of_fourth.dtype)
    common = tuple(slice(0, min(sizes)) for sizes in zip(padded.shape, of_fourth.shape, strict=True))
    padded[common] = of_fourth[common]
    write_label_map(folder / "labels" / "copied_third.nii.gz", padded, third_image.geometry)
    said = {
        frozenset((case, word))
        for case, texts in alarms(folder).items()
        for _, text in texts
        for word in ("copied_first", "copied_second", "copied_third", first, second, third)
        if word in text
    }
    for name, copied in ((first, "copied_first"), (second, "copied_second"), (third, "copied_third")):
        assert frozenset((name, copied)) in said, said


def test_a_class_of_one_case_is_noted(hippocampus, tmp_path):
    folder = copy(hippocampus, tmp_path / "data")
    for path in sorted((folder / "labels").iterdir())[1:]:
        edit(lambda array: np.where(array == 2, 0, array))(path)
    found = check_dataset(discover_dataset(folder), num_workers=1, reporter=SilentReporter())
    assert "labels.rare_class" in {issue.code for issue in found}


@pytest.mark.parametrize("quality", [95, 80, 50])
def test_a_real_mask_stored_as_jpeg_is_reported_as_grey(real_data, tmp_path, quality):
    """Compression smears the edge of the mask; a little of it leaves few values, in large areas."""
    source = real_data / "nuclei_grey2d"
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for file in sorted((source / "labelsTr").iterdir())[:4]:
        mask = (skimage.io.imread(file) > 0).astype(np.uint8) * 255
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask), tmp_path / "masks" / f"{file.stem}.jpg", True, quality)
        shutil.copyfile(source / "imagesTr" / f"{file.stem}_0000.png", tmp_path / "images" / f"{file.stem}.png")
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    assert caught.value.codes == ("labels.grey_values",)


SERIES = "dicom_series/mr_prostatex_t2_tra"


@pytest.fixture(scope="module")
def sound_series(real_data, tmp_path_factory):
    """A folder of one patient, with whose series nothing is wrong."""
    folder = tmp_path_factory.mktemp("series")
    series = folder / "p1" / "scan"
    series.mkdir(parents=True)
    for file in sorted((real_data / SERIES).iterdir()):
        shutil.copyfile(file, series / file.name)
    geometry = read_image([series]).geometry
    write_label_map(folder / "p1" / "seg.nii.gz", np.resize([0, 0, 1], geometry.shape), geometry)
    assert alarms(folder) == {}
    return folder


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda files: files[7].unlink(), "dicom.uneven_slices"),
        (
            lambda files: shutil.copyfile(files[3], files[3].with_name("again.dcm")),
            "dicom.doubled_slice",
        ),
        (lambda files: files[5].write_bytes(files[5].read_bytes()[:3000]), "reader."),
        (lambda files: change(files, shear), "dicom.gantry_tilt"),
        (lambda files: change(files[4:5], lambda tags, k: setattr(tags, "Rows", 100)), "dicom.slices_differ"),
    ],
)
def test_damaged_real_dicom_series_are_named(sound_series, tmp_path, damage, code):
    folder = copy(sound_series, tmp_path / "data")
    damage(sorted((folder / "p1" / "scan").iterdir()))
    found = alarms(folder)["p1"]
    assert any(found_code.startswith(code) for found_code, _ in found), found


def change(files: list[Path], edit_tags: Callable[[pydicom.Dataset, int], None]) -> None:
    for number, file in enumerate(files):
        tags = pydicom.dcmread(file)
        edit_tags(tags, number)
        tags.save_as(file)


def shear(tags: pydicom.Dataset, number: int) -> None:
    """Each slice is shifted along its columns by a quarter of its distance from the first."""
    down = np.array(tags.ImageOrientationPatient[3:], float)
    normal = np.cross(np.array(tags.ImageOrientationPatient[:3], float), down)
    position = np.array(tags.ImagePositionPatient, float)
    tags.ImagePositionPatient = [f"{value:.6f}" for value in position + 0.25 * float(normal @ position) * down]

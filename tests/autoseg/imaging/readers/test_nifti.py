"""Headers of NIfTI files as programs write them: what ITK makes of them where that is sound, and a note where they contradict themselves."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from autoseg.imaging.readers import read_header, read_image, write_label_map
from autoseg.issues import AutosegError

VOXELS = np.arange(336, dtype=np.int16).reshape(6, 7, 8)
"""(x, y, z)"""
AFFINE = np.array([[-1.5, 0, 0, 10], [0, 2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]])


def turned(degrees: float) -> NDArray[np.float64]:
    """`AFFINE` turned about z, from another origin."""
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = (np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))
    affine = turn @ AFFINE
    affine[:3, 3] = (1, 2, 3)
    return affine


SHEARED = AFFINE + np.array([[0, 0.5, 0, 0], [0] * 4, [0] * 4, [0] * 4])


def make(
    path: Path,
    *,
    qform: NDArray[np.float64] = AFFINE,
    sform: NDArray[np.float64] = AFFINE,
    codes: tuple[int, int] = (1, 1),
    gap: int = 4,
    **fields: Any,
) -> Path:
    """A single file with ``gap`` bytes behind the header of 348; ``codes`` are those of qform and sform."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(VOXELS.shape)
    header.set_data_dtype(VOXELS.dtype)
    header.set_qform(qform, codes[0])
    header.set_sform(sform, codes[1])
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(gap) + VOXELS.tobytes("F"))
    return path


def codes_of(path: Path) -> list[str]:
    return [note.code for note in read_header(path).notes]


def assert_as_itk(path: Path) -> None:
    """Voxels lie where ITK puts them."""
    image, seen = SimpleITK.ReadImage(str(path)), read_image(path)
    assert np.array_equal(seen.array[0], SimpleITK.GetArrayFromImage(image))
    for index in ((0, 0, 0), (5, 6, 7)):
        place = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        np.testing.assert_allclose((seen.affine @ (*index[::-1], 1))[:3], place, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("qform_code", range(5))
@pytest.mark.parametrize("sform_code", range(5))
def test_of_two_transforms_the_one_that_itk_takes_is_used_and_the_other_said(
    tmp_path: Path, qform_code: int, sform_code: int
) -> None:
    path = make(tmp_path / "a.nii", sform=turned(10), codes=(qform_code, sform_code))
    assert_as_itk(path)
    expected = {0: "reader.no_orientation", 2: "reader.transforms_differ"}.get(bool(qform_code) + bool(sform_code))
    assert codes_of(path) == ([expected] if expected else [])


@pytest.mark.parametrize(("shift", "is_said"), [(0.7, False), (0.8, True)])
def test_transforms_are_said_to_differ_from_half_a_voxel_on(tmp_path: Path, shift: float, is_said: bool) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += shift  # of voxels of 1.5 mm
    assert codes_of(make(tmp_path / "a.nii", sform=moved)) == ["reader.transforms_differ"] * is_said


@pytest.mark.parametrize(("size", "is_said"), [(1.6, False), (1.64, True)])
def test_scales_that_differ_are_said_and_the_transform_wins(tmp_path: Path, size: float, is_said: bool) -> None:
    """Over the six voxels of an axis by half a voxel."""
    path = make(tmp_path / "a.nii", codes=(0, 1), pixdim=[1, size, 2, 3, 0, 0, 0, 0])
    assert read_header(path).geometry.spacing_mm == pytest.approx((3, 2, 1.5 if is_said else size))
    assert codes_of(path) == ["reader.spacing_differs"] * is_said


@pytest.mark.parametrize("pixdim", [[1] * 8, [1, 0, 0, 0, 0, 0, 0, 0], [1, np.nan, -2, 3, 0, 0, 0, 0]])
def test_a_senseless_pixdim_beside_an_sform_is_said(tmp_path: Path, pixdim: list[float]) -> None:
    path = make(tmp_path / "a.nii", codes=(0, 1), pixdim=pixdim)
    assert read_header(path).geometry.spacing_mm == pytest.approx((3, 2, 1.5))
    assert codes_of(path) == ["reader.spacing_differs"]


@pytest.mark.parametrize("sform", [SHEARED, np.diag([0.0, 0, 0, 1])])
def test_a_good_qform_stands_for_a_sheared_sform(tmp_path: Path, sform: NDArray[np.float64]) -> None:
    path = make(tmp_path / "a.nii", sform=sform)
    assert_as_itk(path)
    assert codes_of(path) == ["reader.transforms_differ"]
    with pytest.raises(AutosegError):
        read_header(make(tmp_path / "a.nii", sform=sform, codes=(0, 1)))


@pytest.mark.parametrize(
    "fields",
    [
        {"codes": (1, 0), "quatern_b": 0.9, "quatern_c": 0.9},
        {"scl_slope": 2.0, "scl_inter": np.nan},
        {"scl_slope": 2.0, "scl_inter": np.inf},
    ],
)
def test_small_faults_are_repaired_as_itk_does(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = make(tmp_path / "a.nii", **fields)
    assert_as_itk(path)
    assert codes_of(path) == ["reader.header_repaired"]


def test_the_sign_of_a_voxel_size_is_ignored(tmp_path: Path) -> None:
    """ITK's negative spacing would mirror the image against its own qform."""
    path = make(tmp_path / "a.nii", codes=(1, 0), pixdim=[-1, -1.5, 2, 3, 0, 0, 0, 0])
    np.testing.assert_allclose(read_image(path).affine[:, [2, 1, 0, 3]], AFFINE, atol=1e-6)
    assert codes_of(path) == ["reader.header_repaired"]
    path = make(tmp_path / "b.nii", codes=(0, 0), pixdim=[-1, -1.5, 2, 3, 0, 0, 0, 0])
    assert codes_of(path) == ["reader.header_repaired", "reader.no_orientation"]


def test_a_transform_that_is_not_finite_is_said_to_be_so(tmp_path: Path) -> None:
    (note,) = read_header(make(tmp_path / "a.nii", sform=np.full((4, 4), np.nan))).notes
    assert (note.code, "sform is not finite; the qform was used" in note.message) == ("reader.transforms_differ", True)


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_units_are_those_of_the_header(tmp_path: Path, unit: int, factor: float) -> None:
    path = make(tmp_path / "a.nii", xyzt_units=unit)
    assert_as_itk(path)
    assert read_header(path).geometry.spacing_mm == pytest.approx((3 * factor, 2 * factor, 1.5 * factor))
    assert codes_of(path) == ["reader.unit"] * (factor != 1)


@pytest.mark.parametrize("gap", [0, 4])
@pytest.mark.parametrize("offset", [0, 100, 347])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_voxels_do_not_begin_inside_the_header(tmp_path: Path, ending: str, offset: int, gap: int) -> None:
    make(tmp_path / "a.nii", gap=gap, vox_offset=offset)
    path = tmp_path / f"b{ending}"
    with nibabel.openers.Opener(path, "wb") as file:
        file.write((tmp_path / "a.nii").read_bytes())
    assert np.array_equal(read_image(path).array[0], VOXELS.T)
    assert codes_of(path) == ["reader.header_repaired"]


def test_a_file_cut_by_four_bytes_is_not_taken_for_one_without_extensions(tmp_path: Path) -> None:
    path = make(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(AutosegError) as caught:
        read_image(path)
    assert caught.value.codes == ("reader.truncated",)


def test_a_header_of_analyze_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AutosegError) as caught:
        read_header(make(tmp_path / "a.nii", magic=b""))
    assert caught.value.codes == ("reader.unsupported",)


def test_every_field_set_to_extremes_gives_an_image_or_one_issue(tmp_path: Path) -> None:
    names = [name for name in nibabel.Nifti1Header.template_dtype.names if name not in ("dim", "sizeof_hdr", "magic")]
    for name in names:
        kind = nibabel.Nifti1Header.template_dtype[name].base
        values = [np.nan, np.inf, -np.inf, 3e38, -1, 0] if kind.kind == "f" else [0, 1, 127, -1, 32767, 255]
        for value in values if kind.kind in "iuf" else ():
            if kind.kind == "f" or np.iinfo(kind).min <= value <= np.iinfo(kind).max:
                for codes in ((1, 1), (1, 0), (0, 1)):
                    path = make(tmp_path / "a.nii", **{"codes": codes, name: value})
                    with suppress(AutosegError):  # any other exception fails
                        assert read_image(path).array.size < 2 * VOXELS.size, (name, value)


def test_the_header_of_a_large_constant_label_map_is_read(tmp_path: Path) -> None:
    """A few packed bytes that stand for more than is unpacked behind the header."""
    array = np.zeros((128, 1024, 1024), np.uint8)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    assert read_header(tmp_path / "a.nii.gz").geometry.shape == (1024, 1024, 128)


@pytest.mark.parametrize("codes", [(1, 4), (2, 1), (0, 0), (1, 0)])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_prediction_carries_both_transforms_as_its_image_has_them(
    tmp_path: Path, ending: str, codes: tuple[int, int]
) -> None:
    image = make(tmp_path / "a.nii", sform=turned(10), codes=codes, xyzt_units=10)
    read, written = read_image(image), tmp_path / f"labels{ending}"
    write_label_map(written, np.ones(read.array.shape[1:], np.uint8), read.geometry, source=image)
    expected, found = (nibabel.load(path).header for path in (image, written))
    for field in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_y", "xyzt_units"):
        assert np.array_equal(expected[field], found[field]), field
    assert read_header(written).geometry == read.geometry
    assert found.get_data_dtype() == np.uint8


@pytest.mark.parametrize("inner", ["", ".nii", ".img", ".hdr", ".nia", ".nii.gz"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_endings_inside_a_name_do_no_harm(tmp_path: Path, inner: str, ending: str) -> None:
    path = make(tmp_path / "a.nii").rename(tmp_path / f"a{inner}.nii")
    geometry = read_header(path).geometry
    write_label_map(tmp_path / f"x{inner}{ending}", np.ones(geometry.shape, int), geometry)
    assert nibabel.load(tmp_path / f"x{inner}{ending}").shape == VOXELS.shape

"""Image files written, read, broken and refused."""

from __future__ import annotations

import gzip
import os
import resource
import signal
import subprocess
import sys
import zlib
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.readers import (
    files_of,
    frame_path,
    image_ending,
    image_stem,
    read_header,
    read_image,
    read_label_map,
    resampled_paths,
    write_image,
    write_label_map,
)
from autoseg.issues import AutosegError

UNSOUND = ("reader.truncated", "reader.corrupt", "reader.unknown_format")
MEDICAL = [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"]


def geometry(direction: np.ndarray | None = None, **changes: object) -> Geometry:
    matrix = np.eye(3) if direction is None else direction
    fields: dict[str, object] = {
        "shape": (3, 4, 5),
        "spacing_mm": (2.5, 0.75, 0.5),
        "origin_mm": (-12.5, 30.25, 7.0),
        "direction": tuple(tuple(float(value) for value in row) for row in matrix),
    }
    return Geometry(**{**fields, **changes})  # type: ignore[arg-type]


def labels(shape: tuple[int, int, int] = (3, 4, 5), high: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape)


def assert_same_place(got: Geometry, expected: Geometry) -> None:
    assert got.shape == expected.shape
    assert got.spacing_mm == pytest.approx(expected.spacing_mm, rel=1e-6)  # NIfTI keeps single precision
    assert got.origin_mm == pytest.approx(expected.origin_mm, abs=1e-5)
    assert np.abs(np.array(got.direction) - np.array(expected.direction)).max() < 1e-6
    assert got.dimensions == expected.dimensions


@pytest.mark.parametrize("ending", MEDICAL)
def test_label_maps_come_back_in_every_format(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "deep" / f"case{ending}"
    oblique = Rotation.from_euler("xyz", (20, -35, 70), degrees=True).as_matrix()
    write_label_map(path, labels(), geometry(oblique))
    got = read_label_map(path)
    assert np.array_equal(got.array, labels())
    assert_same_place(got.geometry, geometry(oblique))
    assert got.array.dtype == np.uint8
    left = {file.name for file in path.parent.iterdir()}
    assert {name for name in left if not name.startswith("case")} == set()


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_all_orientations_come_back_through_nifti(tmp_path: Path, order: tuple[int, ...]) -> None:
    for signs in product((1, -1), repeat=3):
        direction = np.eye(3)[list(order)] * signs
        write_label_map(tmp_path / "a.nii.gz", labels(), geometry(direction))
        first = read_label_map(tmp_path / "a.nii.gz").geometry
        assert_same_place(first, geometry(direction))
        write_label_map(tmp_path / "b.nii.gz", labels(), first)
        second = read_label_map(tmp_path / "b.nii.gz").geometry
        assert second.spacing_mm == first.spacing_mm
        assert second.origin_mm == first.origin_mm


@settings(deadline=None, max_examples=20)
@given(angles=st.tuples(*[st.floats(-180, 180)] * 3))
def test_what_is_read_is_written_to_the_same_place(
    tmp_path_factory: pytest.TempPathFactory, angles: tuple[float, float, float]
) -> None:
    folder = tmp_path_factory.mktemp("oblique")
    source = geometry(Rotation.from_euler("xyz", angles, degrees=True).as_matrix())
    write_label_map(folder / "a.nii.gz", labels(), source)
    first = read_header(folder / "a.nii.gz").geometry
    write_label_map(folder / "b.nii.gz", labels(), first)
    assert_same_place(read_header(folder / "b.nii.gz").geometry, first)


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [(0, 255, "uint8"), (0, 256, "uint16"), (-1, 4, "int16"), (0, 70_000, "int32"), (0, 2**31, "uint32")],
)
def test_the_smallest_integer_type_is_written(tmp_path: Path, low: int, high: int, kind: str) -> None:
    array = np.full((1, 1, 2), low)
    array[0, 0, 1] = high
    write_label_map(tmp_path / "a.nrrd", array, geometry(shape=(1, 1, 2)))
    got = read_label_map(tmp_path / "a.nrrd").array
    assert got.dtype == kind
    assert np.array_equal(got, array)


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp", ".nii.gz", ".nrrd"])
def test_flat_files_stay_flat(tmp_path: Path, ending: str) -> None:
    flat = geometry(shape=(1, 6, 7), spacing_mm=(999.0, 1.0, 1.0), origin_mm=(0.0, 0.0, 0.0), dimensions=2)
    write_label_map(tmp_path / f"a{ending}", labels((1, 6, 7)), flat)
    assert SimpleITK.ReadImage(str(tmp_path / f"a{ending}")).GetDimension() == 2
    got = read_label_map(tmp_path / f"a{ending}")
    assert np.array_equal(got.array, labels((1, 6, 7)))
    assert_same_place(got.geometry, flat)
    assert got.geometry.has_orientation == (ending in (".nii.gz", ".nrrd"))


def test_pages_of_a_tiff_are_slices(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.tif", labels(), geometry())
    got = read_label_map(tmp_path / "a.tif")
    assert np.array_equal(got.array, labels())
    assert got.geometry.dimensions == 3
    assert got.geometry.spacing_mm == (1, 1, 1)


def test_intensities_come_back(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    write_image(tmp_path / "a.nii.gz", image, geometry())
    got = read_image([tmp_path / "a.nii.gz"])
    assert np.array_equal(got.array, image[None])
    header = read_header(tmp_path / "a.nii.gz")
    assert (header.num_channels, header.is_integer, header.geometry) == (1, False, got.geometry)


def test_a_4d_nifti_has_its_channels_in_the_fourth_axis(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 999, (5, 4, 3, 2)).astype(np.int16)  # x, y, z, channel
    nibabel.save(nibabel.Nifti1Image(array, np.diag([0.5, 0.75, 2.5, 1])), tmp_path / "a.nii.gz")
    got = read_image([tmp_path / "a.nii.gz"])
    assert np.array_equal(got.array, array.transpose(3, 2, 1, 0))
    assert got.geometry.spacing_mm == (2.5, 0.75, 0.5)
    assert read_header(tmp_path / "a.nii.gz").num_channels == 2


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd"])
def test_a_volume_of_a_4d_file_is_read_alone(tmp_path: Path, name: str) -> None:
    arrays = np.random.default_rng(0).integers(0, 999, (3, 4, 5, 6)).astype(np.int16)
    volumes = [SimpleITK.GetImageFromArray(array) for array in arrays]
    SimpleITK.WriteImage(SimpleITK.JoinSeries(volumes), tmp_path / name)
    header = read_header(tmp_path / name)
    assert (header.num_channels, header.num_volumes) == (3, 3)
    second = frame_path(tmp_path / name, 2)
    np.testing.assert_array_equal(read_image(second).array, arrays[1:2])
    assert read_header(second).num_channels == 1
    for number in (0, 4):
        with pytest.raises(AutosegError) as caught:
            read_image(frame_path(tmp_path / name, number))
        assert caught.value.codes == ("reader.no_such_frame",)
    SimpleITK.WriteImage(SimpleITK.Compose(volumes), tmp_path / name)
    assert read_header(tmp_path / name).num_volumes == 1  # components of a voxel


def test_colours_are_channels_in_order(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 7, 3)).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels, isVector=True), str(tmp_path / "a.png"))
    got = read_image([tmp_path / "a.png"])
    assert np.array_equal(got.array[:, 0], np.moveaxis(pixels, -1, 0))
    assert got.geometry.spacing_mm == (999, 1, 1)


def test_one_file_a_channel_is_stacked_in_the_order_given(tmp_path: Path) -> None:
    for name, value in (("t1", 1), ("t2", 2)):
        write_image(tmp_path / f"{name}.nii.gz", np.full((3, 4, 5), value), geometry())
    got = read_image([tmp_path / "t2.nii.gz", tmp_path / "t1.nii.gz"])
    assert got.array[:, 0, 0, 0].tolist() == [2, 1]


@pytest.mark.parametrize(
    "changes", [{"shape": (3, 4, 6)}, {"spacing_mm": (3.5, 0.75, 0.5)}, {"origin_mm": (0.0, 30.25, 7.0)}]
)
def test_channels_on_different_grids_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    other = geometry(**changes)
    write_image(tmp_path / "one.nii.gz", np.zeros((3, 4, 5)), geometry())
    write_image(tmp_path / "two.nii.gz", np.zeros(other.shape), other)
    with pytest.raises(AutosegError) as caught:
        read_image([tmp_path / "one.nii.gz", tmp_path / "two.nii.gz"])
    assert caught.value.codes == ("reader.channel_grids_differ",)
    assert str(next(iter(changes.values()))) in str(caught.value)


TURNED = Rotation.from_euler("xyz", (8, -5, 12), degrees=True).as_matrix()


@pytest.mark.parametrize("direction", [np.eye(3), TURNED], ids=["straight", "turned"])
def test_resampled_channels_lie_on_the_grid_of_the_first(tmp_path: Path, direction: np.ndarray) -> None:
    """SimpleITK's linear interpolation is the reference; float32 positions differ by 1e-6 voxels, values by as much of their range."""
    fine = geometry(shape=(6, 9, 8), spacing_mm=(2.0, 0.75, 0.75), origin_mm=(-9.0, 30.0, 7.0))
    coarse = geometry(direction, shape=(14, 13, 15), spacing_mm=(1.5, 1.1, 1.3), origin_mm=(-14.0, 27.0, 2.5))
    voxels = [np.random.default_rng(i).normal(100, 20, grid.shape) for i, grid in enumerate((fine, coarse))]
    files = [tmp_path / "ct.nii.gz", tmp_path / "pet.nii.gz"]
    for file, array, grid in zip(files, voxels, (fine, coarse), strict=True):
        write_image(file, array, grid)
    found = read_image(resampled_paths(files))
    assert_same_place(found.geometry, read_header(files[0]).geometry)
    ct, pet = (SimpleITK.ReadImage(str(file)) for file in files)
    expected = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(pet, ct, SimpleITK.Transform(), SimpleITK.sitkLinear, 0.0)
    )
    inside = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(pet * 0 + 1, ct, SimpleITK.Transform(), SimpleITK.sitkLinear, 0.0)
    )
    assert inside.mean() > 0.5
    assert np.abs(found.array[1] - expected)[inside == 1].max() < 1e-3
    assert np.array_equal(found.array[0], read_image(files[0]).array[0])
    assert files_of(resampled_paths(files)[1]) == (files[1],)


def test_a_resampled_channel_on_the_same_grid_is_not_touched(tmp_path: Path) -> None:
    files = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    for i, file in enumerate(files):
        write_image(file, np.random.default_rng(i).normal(size=(3, 4, 5)), geometry())
    assert np.array_equal(read_image(resampled_paths(files)).array, read_image(files).array)


def test_real_channels_on_different_grids_are_refused(real_data: Path) -> None:
    folder = real_data / "dirty_ms" / "channels_on_different_grids"
    with pytest.raises(AutosegError) as caught:
        read_image([folder / "ms01_s2_0000.nii.gz", folder / "ms01_s2_0001.nii.gz"])
    assert caught.value.codes == ("reader.channel_grids_differ",)
    found = read_image(resampled_paths([folder / "ms01_s2_0000.nii.gz", folder / "ms01_s2_0001.nii.gz"]))
    assert found.geometry == read_header(folder / "ms01_s2_0000.nii.gz").geometry
    assert np.isfinite(found.array).all()


def test_whole_floats_are_labels_and_fractions_are_not(tmp_path: Path) -> None:
    array = labels().astype(np.float32)
    write_image(tmp_path / "a.nii.gz", array, geometry())
    got = read_label_map(tmp_path / "a.nii.gz").array
    assert np.issubdtype(got.dtype, np.integer)
    assert np.array_equal(got, array)
    array[1, 2, 3] = 0.25
    array[2, 0, 0] = np.nan
    write_image(tmp_path / "a.nii.gz", array, geometry())
    with pytest.raises(AutosegError) as caught:
        read_label_map(tmp_path / "a.nii.gz")
    assert caught.value.codes == ("reader.fractional_labels",)


def test_scaled_nifti_values_are_scaled(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.array([[[0, 1, 2]]], np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, -1)
    nibabel.save(image, tmp_path / "a.nii")
    raw = nibabel.load(tmp_path / "a.nii")
    expected = np.asarray(raw.dataobj).transpose(2, 1, 0)
    assert np.allclose(read_image([tmp_path / "a.nii"]).array[0], expected)


@pytest.mark.parametrize("kind", [">i2", "<u2", ">f4", "<f8", "i1", "<i8"])
def test_nifti_types_and_byte_orders_are_read(tmp_path: Path, kind: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    header = nibabel.Nifti1Header(endianness=kind[0] if kind[0] in "<>" else "<")
    header.set_data_dtype(kind)
    nibabel.Nifti1Image(array, np.eye(4), header, dtype=kind).to_filename(tmp_path / "a.nii.gz")
    assert np.array_equal(read_image([tmp_path / "a.nii.gz"]).array[0], array.T)


def test_nifti_voxels_agree_with_itk_on_real_files(real_data: Path) -> None:
    for name in ("Task04_Hippocampus/imagesTr/hippocampus_003.nii.gz", "ms_lesion_4ch/imagesTr/ms4_19.nii.gz"):
        expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(real_data / name)))
        got = read_image([real_data / name]).array
        assert np.array_equal(got, expected.reshape(got.shape).astype(np.float32))


def test_a_slightly_skewed_nifti_is_straightened_with_an_issue(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 1] = 0.01
    nibabel.save(nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), affine), tmp_path / "a.nii.gz")
    image = nibabel.load(tmp_path / "a.nii.gz")
    image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "a.nii.gz")
    header = read_header(tmp_path / "a.nii.gz")
    assert [note.code for note in header.notes] == ["reader.straightened"]
    assert np.abs(np.abs(np.array(header.geometry.direction)) - np.eye(3)).max() < 0.01
    assert read_image([tmp_path / "a.nii.gz"]).array.shape == (1, 4, 3, 2)


def test_a_nifti_that_is_neither_left_nor_right_handed_is_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4))
    image.set_sform(None)
    image.set_qform(np.eye(4), 1)
    nibabel.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[76:80] = np.float32(0.25).tobytes()  # pixdim[0], which is 1 or -1
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path / "a.nii")
    assert caught.value.codes == ("reader.bad_header",)


def test_a_strongly_skewed_nifti_is_refused(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 1] = 0.5
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), affine)
    image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path / "a.nii.gz")
    assert caught.value.codes == ("reader.skewed_grid",)


def broken(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "empty":
        content = b""
    elif how == "text":
        content = b"this is no image\n" * 40
    elif how == "half":
        content = content[: len(content) // 2]
    elif how == "end":
        content = content[: -3 if path.suffix == ".gz" else -30]
    elif how == "flipped":
        content = content[:-40] + bytes([content[-40] ^ 0xFF]) + content[-39:]
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("ending", "how"),
    [(ending, how) for ending in (".nii.gz", ".nii", ".nrrd", ".mha", ".png") for how in ("empty", "text", "half")]
    + [(".nii.gz", "end"), (".nii.gz", "flipped"), (".nii", "end"), (".nrrd", "end"), (".mha", "end")],
)
def test_broken_files_are_named_without_noise(
    tmp_path: Path, ending: str, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"case{ending}"
    if ending == ".png":
        write_label_map(
            path, np.random.default_rng(0).integers(0, 200, (1, 90, 90)), geometry(shape=(1, 90, 90), dimensions=2)
        )
    else:
        write_label_map(path, np.random.default_rng(0).integers(0, 200, (20, 30, 30)), geometry(shape=(20, 30, 30)))
    broken(path, how)
    for read in (read_label_map, lambda p: read_image([p])):
        with pytest.raises(AutosegError) as caught:
            read(path)
        assert caught.value.codes[0] in UNSOUND
        assert caught.value.issues[0].where == str(path)
        assert "\n" not in str(caught.value)
        assert "0x" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_link_to_nothing_is_named_with_its_target(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").symlink_to("../.git/annex/objects/key")
    for read in (read_image, read_label_map, read_header):
        with pytest.raises(AutosegError) as caught:
            read(tmp_path / "a.nii.gz")  # type: ignore[operator]
        (issue,) = caught.value.issues
        assert (issue.code, issue.where) == ("reader.missing", str(tmp_path / "a.nii.gz"))
        assert "annex/objects/key" in issue.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_header, read_label_map):
        with pytest.raises(AutosegError) as caught:
            read(tmp_path / "none.nii.gz")
        assert caught.value.codes == ("reader.missing",)


def test_a_header_that_declares_too_much_fills_no_memory(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.header["dim"][1:4] = 30_000
    raw = image.header.binaryblock + b"\0" * 400
    (tmp_path / "a.nii").write_bytes(raw)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(raw))
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 9000 9000 9000\nencoding: gzip\nendian: little\n\n"
    (tmp_path / "c.nrrd").write_bytes(head.encode() + gzip.compress(b"\0" * 400))
    head = (
        "NDims = 3\nDimSize = 9000 9000 9000\nElementType = MET_SHORT\nCompressedData = {}\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "d.mha").write_bytes(head.format(False).encode() + b"\0" * 400)
    (tmp_path / "e.mha").write_bytes(head.format(True).encode() + zlib.compress(b"\0" * 400))
    for name in ("a.nii", "b.nii.gz", "c.nrrd", "d.mha", "e.mha"):
        for read in (read_header, read_image):  # what predictions need is estimated from headers
            with pytest.raises(AutosegError) as caught:
                read(tmp_path / name)
            assert caught.value.codes == ("reader.truncated",)


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.nii", labels(), geometry())
    raw = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw[:300]) + gzip.compress(raw[300:]) + b"\0" * 20)
    assert np.array_equal(read_image([tmp_path / "a.nii.gz"]).array[0], labels())


@pytest.mark.parametrize("name", ["a.jpg", "a.dcm", "a.txt", "a"])
def test_formats_that_cannot_hold_labels_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(AutosegError) as caught:
        write_label_map(tmp_path / name, labels(), geometry())
    assert caught.value.codes == ("reader.not_written",)
    assert list(tmp_path.iterdir()) == []


def test_flat_formats_refuse_slices_fractions_and_wide_values(tmp_path: Path) -> None:
    with pytest.raises(AutosegError) as caught:
        write_label_map(tmp_path / "a.png", labels(), geometry())
    assert caught.value.codes == ("reader.not_written",)
    flat = geometry(shape=(1, 4, 5), dimensions=2)
    with pytest.raises(AutosegError) as caught:
        write_image(tmp_path / "a.png", np.zeros((1, 4, 5)), flat)
    assert caught.value.codes == ("reader.not_written",)
    with pytest.raises(AutosegError) as caught:
        write_label_map(tmp_path / "a.png", np.full((1, 4, 5), 70_000), flat)
    assert caught.value.codes == ("reader.not_written",)


def test_colours_are_no_label_map_but_greys_stored_as_colours_are(tmp_path: Path) -> None:
    pixels = np.repeat(labels((6, 7, 1)), 3, axis=-1).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels, isVector=True), str(tmp_path / "a.png"))
    assert np.array_equal(read_label_map(tmp_path / "a.png").array[0], pixels[..., 0])
    pixels[2, 3, 1] += 1
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels, isVector=True), str(tmp_path / "a.png"))
    with pytest.raises(AutosegError) as caught:
        read_label_map(tmp_path / "a.png")
    assert caught.value.codes == ("reader.several_channels",)


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from autoseg.issues import AutosegError
from autoseg.imaging.readers import write_label_map
from autoseg.imaging.image import Geometry, Image
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
array = np.random.default_rng(0).integers(0, 255, (20, 60, 60))
for ending in sys.argv[3:]:
    try:
        write_label_map(Path(sys.argv[1], f"a{ending}"), array, Geometry(shape=(20, 60, 60), spacing_mm=(1.0, 1.0, 1.0)))
    except AutosegError as error:
        sys.stderr.write(f"refused {error}\\n")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit on file size to be had")
@pytest.mark.parametrize("num_bytes", [20_000, 100, 0])
def test_a_full_disk_leaves_nothing_behind_and_is_reported(tmp_path: Path, num_bytes: int) -> None:
    assert resource.RLIMIT_FSIZE is not None
    endings = (".nii.gz", ".nii", ".nrrd", ".mha")
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path), str(num_bytes), *endings]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    assert len(said) == len(endings), said
    for ending, line in zip(endings, said, strict=True):
        assert line.startswith(f"refused {tmp_path / 'a'}{ending}: could not be written")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(AutosegError) as caught:
        write_label_map(tmp_path / "a.nii.gz", labels(), geometry())
    assert caught.value.codes == ("storage.not_written",)


@pytest.mark.parametrize(
    ("name", "ending", "stem"),
    [
        ("la_003.nii.gz", ".nii.gz", "la_003"),
        ("a.b.NII.GZ", ".nii.gz", "a.b"),
        ("x.nii", ".nii", "x"),
        ("x.y.tif", ".tif", "x.y"),
        ("notes.txt", "", "notes.txt"),
        (".nii.gz", "", ".nii.gz"),
    ],
)
def test_endings_and_stems(name: str, ending: str, stem: str) -> None:
    assert image_ending(name) == ending
    assert image_stem(Path("folder") / name) == stem


def test_the_affine_puts_voxels_where_nibabel_and_itk_put_them(tmp_path: Path) -> None:
    """From (z, y, x) to world positions in RAS, as nibabel has them; ITK's are LPS."""
    oblique = Rotation.from_euler("xyz", (20, -35, 70), degrees=True).as_matrix()
    write_image(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(3, 4, 5)), geometry(oblique))
    image = read_image(tmp_path / "a.nii.gz")
    assert image.spacing_mm == pytest.approx((2.5, 0.75, 0.5))
    seen, itk = nibabel.load(tmp_path / "a.nii.gz"), SimpleITK.ReadImage(str(tmp_path / "a.nii.gz"))
    for z, y, x in ((0, 0, 0), (2, 1, 3)):
        world = image.affine @ (z, y, x, 1)
        np.testing.assert_allclose(world, seen.affine @ (x, y, z, 1), atol=1e-5)
        np.testing.assert_allclose(world[:3] * (-1, -1, 1), itk.TransformIndexToPhysicalPoint((x, y, z)), atol=1e-5)
    nibabel.save(nibabel.Nifti1Image(image.array[0], image.affine), tmp_path / "b.nii.gz")
    assert_same_world(read_image(tmp_path / "b.nii.gz"), image)


def assert_same_world(first: Image, second: Image) -> None:
    """The same intensities at the same places, whatever the order of axes."""
    for index in np.ndindex(second.array.shape[1:]):
        place = np.linalg.solve(first.affine, second.affine @ (*index, 1))[:3]
        assert first.array[0][tuple(np.rint(place).astype(int))] == second.array[0][index]


def test_one_path_is_as_good_as_a_list_of_one(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz", np.ones((3, 4, 5)), geometry())
    assert np.array_equal(read_image(str(tmp_path / "a.nii.gz")).array, read_image([tmp_path / "a.nii.gz"]).array)


def test_a_file_that_begins_as_another_format_is_named(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.png", labels((1, 6, 7)), geometry(shape=(1, 6, 7), dimensions=2))
    (tmp_path / "a.png").rename(tmp_path / "a.tif")
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path / "a.tif")
    assert caught.value.codes == ("reader.unknown_format",)
    (tmp_path / "a.tif").rename(tmp_path / "a.mgz")
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path / "a.mgz")
    assert caught.value.codes == ("reader.unsupported",)


PLUGIN = """
import numpy as np
from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.readers import Format, ImageHeader

HEADER = ImageHeader(
    geometry=Geometry(shape=(2, 3, 4), spacing_mm=(1.0, 1.0, 1.0)), num_channels=1, pixel_type="uint8", is_integer=True
)
ONES = Format(
    endings=(".ones", ".png"), read_header=lambda path: HEADER, read_voxels=lambda path: np.ones((1, 2, 3, 4), np.uint8)
)
"""
USE = """
import sys
from autoseg.imaging.readers import image_stem, read_label_map
from autoseg.imaging.readers.registry import formats_by_ending
print(read_label_map(sys.argv[1]).array.sum(), image_stem("a.b.ones"), formats_by_ending()[".png"].is_picture)
"""


def test_an_installed_package_adds_a_format_and_takes_none_over(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "plugin-1.dist-info").mkdir()
    (tmp_path / "plugin-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (tmp_path / "plugin-1.dist-info" / "entry_points.txt").write_text("[autoseg.readers]\nones = plugin:ONES\n")
    (tmp_path / "case.ones").write_text("1")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", USE, tmp_path / "case.ones"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["24", "a.b", "True"]


@pytest.mark.parametrize(
    ("name", "content", "fix"),
    [
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("a.nii", b"/annex/objects/MD5E-s1--0.nii", "datalad get"),
        ("a.nii.gz", b"<!doctype html><html>", "download"),
        ("a.nrrd", b"PK\3\4" + bytes(60), "unpack"),
        ("a.png", b"RIFF\x30\0\0\0WEBPVP8 " + bytes(60), "PNG"),
        ("a.b.png", b"\xff\xd8\xff\xe0" + bytes(60), "a.b.jpg"),
        ("a.mgz", b"\x1f\x8b", "nibabel"),
        ("a.svs", b"II*\0", "TIFF"),
    ],
)
def test_a_file_of_another_kind_is_named_with_a_way_out(tmp_path: Path, name: str, content: bytes, fix: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path / name)
    assert caught.value.codes[0] in ("reader.unknown_format", "reader.unsupported")
    assert fix in caught.value.issues[0].fix

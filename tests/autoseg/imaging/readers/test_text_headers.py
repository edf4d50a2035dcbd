"""NRRD and MetaImage, read here, agree with ITK on what ITK writes, and know what ITK's reader cannot be trusted with."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from autoseg.imaging.readers import file_states, read_header, read_image, read_label_map
from autoseg.issues import AutosegError

ENDINGS = [".nrrd", ".nhdr", ".mha", ".mhd"]
TYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64]


def same_as_itk(path: Path) -> None:
    """Voxels and grid are those that ITK reads."""
    image = SimpleITK.ReadImage(str(path))
    header, volume = read_header(path), read_image([path])
    array = SimpleITK.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    assert np.array_equal(volume.array, array.astype(np.float32).reshape(volume.array.shape))
    axes = min(3, image.GetDimension())
    geometry = header.geometry
    assert geometry == volume.geometry
    assert geometry.shape[::-1][:axes] == image.GetSize()[:axes]
    assert geometry.spacing_mm[::-1][:axes] == pytest.approx(image.GetSpacing()[:axes], rel=1e-9)
    assert geometry.origin_mm[:axes] == pytest.approx(image.GetOrigin()[:axes], abs=1e-9)
    full = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)[:axes, :axes]
    assert np.abs(np.array(geometry.direction)[:axes, :axes] - full).max() < 1e-9
    assert header.num_channels == len(volume.array)


@settings(max_examples=30)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    kind=st.sampled_from(TYPES),
    ending=st.sampled_from(ENDINGS),
    compress=st.booleans(),
    extra=st.sampled_from(["none", "components", "fourth axis", "flat"]),
)
def test_what_itk_writes_is_read_as_itk_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, float, float],
    kind: type,
    ending: str,
    compress: bool,
    extra: str,
) -> None:
    path = tmp_path_factory.mktemp("itk") / f"a{ending}"
    shape = {"none": (3, 4, 5), "components": (3, 4, 5, 2), "fourth axis": (2, 3, 4, 5), "flat": (4, 5)}[extra]
    array = np.random.default_rng(0).integers(0, 100, shape).astype(kind)
    image = SimpleITK.GetImageFromArray(array, isVector=extra == "components")
    direction = np.eye(image.GetDimension())
    if extra != "flat":
        direction[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        image.SetDirection(direction.ravel().tolist())
    image.SetSpacing([0.5, 0.75, 2.5, 1.0][: image.GetDimension()])
    image.SetOrigin([-12.5, 30.25, 7.0, 0.0][: image.GetDimension()])
    SimpleITK.WriteImage(image, str(path), useCompression=compress)
    same_as_itk(path)


@pytest.mark.parametrize("name", ["brain1_image", "brain1_label", "breast1_image", "prostate_phantom_subvolume-label"])
def test_real_nrrd_files_agree_with_itk(real_data: Path, name: str) -> None:
    same_as_itk(real_data / "nrrd_pyradiomics" / f"{name}.nrrd")


def test_real_slicer_files_agree_with_itk(real_data: Path) -> None:
    for path in sorted((real_data / "dicom_seg_ct3slice").glob("*.nrrd")):
        same_as_itk(path)


def nrrd(path: Path, fields: str, content: bytes) -> Path:
    path.write_bytes(f"NRRD0004\n{fields}\n\n".encode() + content)
    return path


VOXELS = np.arange(24).reshape(2, 3, 4)
PLAIN = "dimension: 3\nsizes: 4 3 2\nspace: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,2)\n"


@pytest.mark.parametrize(("encoding", "pack"), [("raw", bytes), ("gzip", gzip.compress), ("bz2", bz2.compress)])
@pytest.mark.parametrize("endian", ["little", "big"])
def test_encodings_and_byte_orders(tmp_path: Path, encoding: str, pack, endian: str) -> None:
    raw = VOXELS.astype("<i2" if endian == "little" else ">i2").tobytes()
    path = nrrd(tmp_path / "a.nrrd", f"{PLAIN}type: short\nendian: {endian}\nencoding: {encoding}", pack(raw))
    assert np.array_equal(read_label_map(path).array, VOXELS)


@pytest.mark.parametrize(("space", "x", "y"), [("right-anterior-superior", -1, -1), ("LAS", 1, -1), ("LPS", 1, 1)])
def test_spaces_are_converted_to_lps(tmp_path: Path, space: str, x: int, y: int) -> None:
    fields = f"{PLAIN.replace('left-posterior-superior', space)}type: uchar\nencoding: raw\nspace origin: (1,2,3)"
    geometry = read_header(nrrd(tmp_path / "a.nrrd", fields, VOXELS.astype("u1").tobytes())).geometry
    assert geometry.origin_mm == (x, 2 * y, 3)
    assert [geometry.direction[0][0], geometry.direction[1][1]] == [x, y]
    assert geometry.spacing_mm == (2, 1, 1)


def test_voxels_beside_the_header_may_follow_lines_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"one line\nxyz" + VOXELS.astype("u1").tobytes())
    fields = f"{PLAIN}type: uchar\nencoding: raw\ndata file: a.raw\n"
    for skip in ("line skip: 1\nbyte skip: 3", "byte skip: -1"):
        path = tmp_path / "a.nhdr"
        path.write_text(f"NRRD0004\n{fields}{skip}\n")
        assert np.array_equal(read_label_map(path).array, VOXELS)


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.nhdr").write_text(f"NRRD0004\n{PLAIN}type: uchar\nencoding: raw\ndata file: gone.raw\n")
    with pytest.raises(AutosegError) as caught:
        read_label_map(tmp_path / "a.nhdr")
    assert caught.value.codes == ("reader.missing",)


MHD = "NDims = 3\nDimSize = 4 3 2\nElementType = MET_UCHAR\nElementDataFile = "


@pytest.mark.parametrize(
    ("name", "header"),
    [("a.mhd", MHD), ("a.nhdr", f"NRRD0004\n{PLAIN}type: uchar\nencoding: raw\ndata file: ")],
)
def test_a_data_file_that_no_file_can_be_called_is_refused(tmp_path: Path, name: str, header: str) -> None:
    path = tmp_path / name
    path.write_text(f"{header}a\0.raw\n")
    with pytest.raises(AutosegError) as caught:
        read_header(path)
    assert caught.value.codes == ("reader.bad_header",)
    assert [Path(file).name for file, _, _ in file_states([path])] == [name]


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
@pytest.mark.parametrize("name", ["é", "漢字", "Ångström à b"])
def test_voxels_beside_their_header_may_have_any_name(tmp_path: Path, name: str, ending: str) -> None:
    image = SimpleITK.GetImageFromArray(VOXELS.astype(np.uint8))
    SimpleITK.WriteImage(image, str(tmp_path / f"{name}{ending}"))
    assert np.array_equal(read_label_map(tmp_path / f"{name}{ending}").array, VOXELS)
    assert len(file_states([tmp_path / f"{name}{ending}"])) == 2


def test_names_of_voxel_files_in_latin_1_are_understood(tmp_path: Path) -> None:
    (tmp_path / "é.raw").write_bytes(VOXELS.astype("u1").tobytes())
    (tmp_path / "a.mhd").write_bytes(f"{MHD}é.raw\n".encode("latin-1"))
    assert np.array_equal(read_label_map(tmp_path / "a.mhd").array, VOXELS)


def test_a_slightly_skewed_nrrd_is_straightened_with_an_issue(tmp_path: Path) -> None:
    fields = PLAIN.replace("(0,1,0)", "(0.01,1,0)") + "type: uchar\nencoding: raw"
    header = read_header(nrrd(tmp_path / "a.nrrd", fields, VOXELS.astype("u1").tobytes()))
    assert [note.code for note in header.notes] == ["reader.straightened"]
    fields = PLAIN.replace("(0,1,0)", "(0.3,1,0)") + "type: uchar\nencoding: raw"
    with pytest.raises(AutosegError) as caught:
        read_header(nrrd(tmp_path / "a.nrrd", fields, VOXELS.astype("u1").tobytes()))
    assert caught.value.codes == ("reader.skewed_grid",)


def test_a_flipped_byte_of_compressed_voxels_is_found(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 200, (10, 20, 20)).astype(np.int16)
    for ending in (".nrrd", ".mha"):
        path = tmp_path / f"a{ending}"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path), useCompression=True)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        with pytest.raises(AutosegError) as caught:
            read_image([path])
        assert caught.value.codes == ("reader.corrupt",)


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_a_header_that_declares_too_much_is_refused_at_once(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.int16)), str(path), useCompression=True)
    path.write_bytes(path.read_bytes().replace(b"5 4 3", b"50000 40000 30000"))
    with pytest.raises(AutosegError) as caught:
        read_image([path])
    assert caught.value.codes == ("reader.truncated",)


@pytest.mark.parametrize(
    ("ending", "old", "new", "code"),
    [
        (".mha", b"MET_SHORT", b"MET_OTHER", "reader.unsupported"),
        (".mha", b"DimSize = 5 4 3", b"DimSize = 5 4", "reader.bad_header"),
        (".mha", b"ElementDataFile = LOCAL", b"ElementDataFile = LIST", "reader.unsupported"),
        (".mha", b"ElementDataFile", b"ElementDatumFile", "reader.unknown_format"),
        (".nrrd", b"type: short", b"type: block", "reader.unsupported"),
        (".nrrd", b"encoding: gzip", b"encoding: hex", "reader.unsupported"),
        (".nrrd", b"sizes: 5 4 3", b"sizes: 5 four 3", "reader.bad_header"),
        (".nrrd", b"endian: little", b"endian: middle", "reader.bad_header"),
        (".nrrd", b"(0,0,1)", b"(0,0,0)", "reader.bad_header"),
        (".nrrd", b"encoding: gzip", b"encoding: gzip\ndata file: LIST\na.raw\nb.raw", "reader.unsupported"),
    ],
)
def test_headers_that_are_not_understood_say_why(
    tmp_path: Path, ending: str, old: bytes, new: bytes, code: str
) -> None:
    path = tmp_path / f"a{ending}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.int16)), str(path), useCompression=True)
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(AutosegError) as caught:
        read_header(path)
    assert caught.value.codes == (code,)


@pytest.mark.parametrize("unit", ["mm", "um", "cm"])
def test_other_units_than_mm_are_noted(tmp_path: Path, unit: str) -> None:
    header = PLAIN + f'type: uchar\nencoding: raw\nspace units: "{unit}" "{unit}" "{unit}"'
    files = [nrrd(tmp_path / "a.nrrd", header, VOXELS.astype("u1").tobytes()), tmp_path / "a.mhd"]
    (tmp_path / "a.raw").write_bytes(VOXELS.astype("u1").tobytes())
    files[1].write_bytes(f"DistanceUnits = {unit}\n{MHD}a.raw\n".encode())
    for file in files:
        same_as_itk(file)
        assert [note.code for note in read_header(file).notes] == ["reader.unit_ignored"] * (unit != "mm")


RAMP = np.arange(336).astype("<i2")
SHORT = "type: short\nendian: little\nencoding: raw\n"
THREE = f"{SHORT}dimension: 3\nsizes: 6 7 8\n"
FOUR = f"{SHORT}dimension: 4\n"
SPACE = "space: left-posterior-superior\nspace origin: (1,2,3)\n"


@pytest.mark.parametrize(
    "fields",
    [
        f"{FOUR}sizes: 2 6 7 4\nkinds: list domain domain domain\nspacings: nan 1.5 2 3",
        f"{FOUR}sizes: 6 2 7 4\nkinds: domain list domain domain\nspacings: 1.5 nan 2 3",
        f"{FOUR}sizes: 6 7 4 2\nkinds: domain domain domain list\nspacings: 1.5 2 3 nan",
        f"{FOUR}sizes: 6 2 7 4\nkinds: space vector space space\n{SPACE}space directions: (-1.5,0,0) none (0,2,0) (0,0,3)",
        f"{THREE}spacings: -1.5 2 3",
        f"{THREE}spacings: 1.5 2 3\naxis mins: 10 20 30",
        f"{THREE}spacings: 1.5 2 3\ncenters: node node node\naxis mins: 10 20 30",
    ],
)
def test_axes_of_channels_anywhere_and_signs_are_read_as_itk_reads_them(tmp_path: Path, fields: str) -> None:
    same_as_itk(nrrd(tmp_path / "a.nrrd", fields, RAMP.tobytes()))


def test_an_axis_without_spacing_is_none_of_space(tmp_path: Path) -> None:
    """ITK takes the channels for x where the header names no kinds."""
    path = nrrd(tmp_path / "a.nrrd", f"{FOUR}sizes: 2 6 7 4\nspacings: nan 1.5 2 3", RAMP.tobytes())
    assert read_header(path).geometry.spacing_mm == (3, 2, 1.5)
    assert np.array_equal(read_image(path).array, RAMP.reshape(4, 7, 6, 2).transpose(3, 0, 1, 2))


META = "ObjectType = Image\nNDims = 3\n{}\nDimSize = 6 7 8\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"


@pytest.mark.parametrize(
    ("fields", "payload"),
    [
        ("ElementSpacing = -1.5 2 3", RAMP.tobytes()),
        ("ElementSpacing = -1.5 2 -3\nTransformMatrix = 0 1 0 -1 0 0 0 0 1\nOffset = 1 2 3", RAMP.tobytes()),
        (
            f"CompressedData = True\nCompressedDataSize = {len(gzip.compress(RAMP.tobytes()))}",
            gzip.compress(RAMP.tobytes()),
        ),
        ("BinaryData = False", b"".join(b"%d " % value for value in RAMP)),
    ],
)
def test_signs_text_and_gzip_of_metaimage_are_read_as_itk_reads_them(
    tmp_path: Path, fields: str, payload: bytes
) -> None:
    path = tmp_path / "a.mha"
    path.write_bytes(META.format(fields).encode() + payload)
    same_as_itk(path)


@pytest.mark.parametrize("encoding", ["ascii", "text", "txt"])
@pytest.mark.parametrize(("kind", "name"), [("<i2", "short"), ("<f4", "float"), ("u1", "uchar")])
def test_numbers_written_as_text_are_read_as_itk_reads_them(
    tmp_path: Path, encoding: str, kind: str, name: str
) -> None:
    fields = f"type: {name}\ndimension: 3\nsizes: 6 7 8\nencoding: {encoding}"
    text = "\n".join(str(value) for value in (RAMP % 200).astype(kind))
    same_as_itk(nrrd(tmp_path / "a.nrrd", fields, text.encode()))


@pytest.mark.parametrize(
    ("text", "code"), [(b"7 " * 335, "reader.truncated"), (b"x " * 336, "reader.corrupt"), (b"", "reader.truncated")]
)
def test_text_that_is_not_all_numbers_is_refused(tmp_path: Path, text: bytes, code: str) -> None:
    path = nrrd(tmp_path / "a.nrrd", "type: short\ndimension: 3\nsizes: 6 7 8\nencoding: ascii", text)
    with pytest.raises(AutosegError) as caught:
        read_image(path)
    assert caught.value.codes == (code,)


def test_a_compressed_stream_without_end_is_refused(tmp_path: Path) -> None:
    """200 MB of zeros behind 24 voxels."""
    path = nrrd(tmp_path / "a.nrrd", f"{PLAIN}type: uchar\nencoding: gzip", gzip.compress(bytes(2 * 10**8), 1))
    with pytest.raises(AutosegError) as caught:
        read_image(path)
    assert caught.value.codes == ("reader.corrupt",)

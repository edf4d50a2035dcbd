"""DICOM series: read in order, refused when they are no box of slices."""

from __future__ import annotations

import gzip
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    EnhancedUSVolumeStorage,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    NuclearMedicineImageStorage,
    RLELossless,
    VLWholeSlideMicroscopyImageStorage,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # experimental
    from nibabel.nicom.dicomwrappers import wrapper_from_file

from autoseg.imaging.readers import (
    files_of,
    guarded,
    is_dicom_series,
    list_series,
    read_header,
    read_image,
    read_label_map,
)
from autoseg.issues import AutosegError

STEP = 2.5


def write_slice(
    path: Path, position: tuple[float, float, float], value: int, series: str = "1.2.3", rows: int = 4
) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{abs(hash(path.name)) % 10**9}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    tags = pydicom.Dataset()
    tags.file_meta = meta
    tags.SOPClassUID, tags.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    tags.Modality, tags.SeriesInstanceUID, tags.StudyInstanceUID = "CT", series, "1.2"
    tags.SeriesDescription = f"series {series}"
    tags.ImagePositionPatient = list(position)
    tags.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    tags.PixelSpacing = [0.5, 0.75]
    tags.Rows, tags.Columns = rows, 5
    tags.SamplesPerPixel, tags.PhotometricInterpretation = 1, "MONOCHROME2"
    tags.BitsAllocated, tags.BitsStored, tags.HighBit, tags.PixelRepresentation = 16, 16, 15, 1
    tags.RescaleSlope, tags.RescaleIntercept = 1, -1000
    tags.PixelData = np.full((rows, 5), value, "<i2").tobytes()
    tags.save_as(path, enforce_file_format=True)


def write_stack(folder: Path, positions: list[tuple[float, float, float]]) -> None:
    for i, position in enumerate(positions):  # names run against the positions
        write_slice(folder / f"slice_{99 - i}.dcm", position, value=i)


def test_slices_are_ordered_by_position_and_rescaled(tmp_path: Path) -> None:
    write_stack(tmp_path, [(1.0, 2.0, STEP * i) for i in range(4)])
    assert is_dicom_series(tmp_path)
    got = read_image([tmp_path])
    assert got.array[0, :, 0, 0].tolist() == [-1000, -999, -998, -997]
    assert got.geometry.shape == (4, 4, 5)
    assert got.geometry.spacing_mm == (STEP, 0.5, 0.75)
    assert got.geometry.origin_mm == (1, 2, 0)
    assert read_header(tmp_path).geometry == got.geometry


@pytest.mark.parametrize(
    ("positions", "code"),
    [
        ([(0.0, 0.0, STEP * i) for i in (0, 1, 2, 4, 5)], "dicom.uneven_slices"),
        ([(0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, STEP)], "dicom.slices_coincide"),
        ([(0.0, 0.5 * i, STEP * i) for i in range(4)], "dicom.gantry_tilt"),
    ],
)
def test_series_that_form_no_box_are_refused(
    tmp_path: Path, positions: list[tuple[float, float, float]], code: str
) -> None:
    write_stack(tmp_path, positions)
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path)
    assert caught.value.codes == (code,)


def test_two_series_in_a_folder_are_distinguished(tmp_path: Path) -> None:
    write_stack(tmp_path, [(0.0, 0.0, STEP * i) for i in range(3)])
    write_slice(tmp_path / "other", (0.0, 0.0, 0.0), 1, series="1.2.4")
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path)
    assert caught.value.codes == ("dicom.several_series",)


def test_slices_of_different_size_are_refused(tmp_path: Path) -> None:
    write_stack(tmp_path, [(0.0, 0.0, STEP * i) for i in range(3)])
    write_slice(tmp_path / "wide.dcm", (0.0, 0.0, STEP * 3), 1, rows=6)
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path)
    assert caught.value.codes == ("dicom.slices_differ",)


def test_a_single_slice_has_thickness_or_one_millimetre(tmp_path: Path) -> None:
    write_slice(tmp_path / "only.dcm", (0.0, 0.0, 0.0), 1)
    assert read_header(tmp_path).geometry.spacing_mm[0] == 1


def test_other_folders_are_no_series(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("nothing")
    assert not is_dicom_series(tmp_path)
    assert not is_dicom_series(tmp_path / "missing")
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path)
    assert caught.value.codes == ("dicom.no_slices",)


@pytest.mark.parametrize("name", ["mr_prostatex_t2_tra", "mr_prostatex_adc", "ct_body_jpeg2000/dicom"])
def test_real_series_agree_with_itk(real_data: Path, name: str) -> None:
    folder = real_data / "dicom_series" / name
    files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    expected = SimpleITK.ReadImage(files)
    got = read_image([folder])
    assert np.array_equal(got.array[0], SimpleITK.GetArrayFromImage(expected).astype(np.float32))
    assert got.geometry.spacing_mm[::-1] == pytest.approx(expected.GetSpacing(), abs=1e-5)
    assert got.geometry.origin_mm == pytest.approx(expected.GetOrigin(), abs=1e-5)
    assert np.allclose(np.array(got.geometry.direction).ravel(), expected.GetDirection(), atol=1e-6)


def test_the_real_missing_slice_is_found(real_data: Path) -> None:
    with pytest.raises(AutosegError) as caught:
        read_header(real_data / "dicom_series" / "mr_prostatex_calcbval_missing_slice")
    assert caught.value.codes == ("dicom.uneven_slices",)


def test_one_of_several_series_is_named_by_its_uid(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    write_stack(folder, [(0.0, 0.0, STEP * i) for i in range(3)])
    for i in range(2):
        write_slice(folder / f"other_{i}", (0.0, 0.0, 4.0 * i), 7, series="1.2.4")
    names = list_series(folder)
    assert [(name.path.name, name.num_slices, name.modality) for name in names] == [
        ("scan#1.2.3", 3, "CT"),
        ("scan#1.2.4", 2, "CT"),
    ]
    assert all(is_dicom_series(name.path) for name in names)
    assert read_header(names[0].path).geometry.shape == (3, 4, 5)
    assert read_image([names[1].path]).array.max() == -993
    with pytest.raises(AutosegError) as caught:
        read_header(folder.parent / "scan#1.2.9")
    assert caught.value.codes == ("dicom.no_such_series",)


def test_files_that_are_no_slices_are_skipped(tmp_path: Path, real_data: Path) -> None:
    write_stack(tmp_path, [(0.0, 0.0, STEP * i) for i in range(3)])
    shutil.copy(real_data / "dicom_seg_ct3slice" / "liver.dcm", tmp_path)
    (tmp_path / "LICENSE").write_text("free")
    assert read_header(tmp_path).geometry.shape == (3, 4, 5)
    assert list_series(tmp_path)[0].path == tmp_path


@pytest.mark.parametrize("length", [0, 100, 150, 166, 190, 344, 600])
def test_a_cut_slice_is_not_left_out_silently(tmp_path: Path, length: int) -> None:
    write_stack(tmp_path, [(0.0, 0.0, STEP * i) for i in range(4)])
    last = tmp_path / "slice_96.dcm"
    last.write_bytes(last.read_bytes()[:length])
    with pytest.raises(AutosegError) as caught:
        read_image([tmp_path])
    assert Path(caught.value.issues[0].where) == last
    assert caught.value.codes[0] in ("reader.truncated", "reader.unknown_format", "reader.bad_header")


def test_stored_bits_are_cut_out_and_signed(tmp_path: Path) -> None:
    """Twelve of sixteen bits; what lies above them is an overlay, not a value."""
    write_slice(tmp_path / "a.dcm", (0.0, 0.0, 0.0), 0)
    tags = pydicom.dcmread(tmp_path / "a.dcm")
    tags.BitsStored, tags.HighBit = 12, 11
    tags.PixelData = np.full((4, 5), 0x5FFE, "<u2").tobytes()
    tags.save_as(tmp_path / "a.dcm")
    assert read_image([tmp_path]).array[0, 0, 0, 0] == -2 - 1000


def test_each_slice_has_its_own_scale(tmp_path: Path) -> None:
    """As in PET, where every slice is scaled to its own largest value."""
    for i in range(3):
        write_slice(tmp_path / f"{i}.dcm", (0.0, 0.0, STEP * i), 10)
        tags = pydicom.dcmread(tmp_path / f"{i}.dcm")
        tags.RescaleSlope, tags.RescaleIntercept = 0.5 * (i + 1), 0
        tags.save_as(tmp_path / f"{i}.dcm")
    assert read_image([tmp_path]).array[0, :, 0, 0].tolist() == [5, 10, 15]
    assert not read_header(tmp_path).is_integer


def test_run_length_packed_slices_are_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(-500, 500, (3, 4, 5)).astype("<i2")
    for i in range(3):
        write_slice(tmp_path / f"{i}.dcm", (0.0, 0.0, STEP * i), 0)
        tags = pydicom.dcmread(tmp_path / f"{i}.dcm")
        tags.PixelData = pixels[i].tobytes()
        tags.compress(RLELossless)
        tags.save_as(tmp_path / f"{i}.dcm")
    assert np.array_equal(read_image([tmp_path]).array[0], pixels - 1000)


def test_single_files_are_slices_or_flat_images(tmp_path: Path, real_data: Path) -> None:
    file = sorted((real_data / "dicom_series" / "mr_prostatex_adc").iterdir())[3]
    got = read_image([file])
    assert np.array_equal(got.array[0], read_image([file.parent]).array[0, [-4]])  # names run against the positions
    assert (got.geometry.dimensions, got.modality) == (3, ("MR",))
    tags = pydicom.dcmread(file)
    tags.file_meta.MediaStorageSOPClassUID = tags.SOPClassUID = DigitalXRayImageStorageForPresentation
    del tags.ImagePositionPatient, tags.ImageOrientationPatient
    tags.save_as(tmp_path / "xray.dcm")
    flat = read_image([tmp_path / "xray.dcm"])
    assert np.array_equal(flat.array, got.array)
    assert (flat.geometry.dimensions, flat.geometry.has_orientation) == (2, False)


def test_a_broken_jpeg_2000_slice_is_refused_soon(tmp_path: Path, real_data: Path) -> None:
    """ITK's reader searches such a file for many seconds; it gets only well-formed pixels to see."""
    source = sorted((real_data / "dicom_series" / "ct_body_jpeg2000" / "dicom").iterdir())[0]
    content = source.read_bytes()
    for name, broken in (("cut", content[: len(content) // 2]), ("hole", content[:60_000] + content[60_016:])):
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(broken)
        begin = sum(os.times()[:4])
        with pytest.raises(AutosegError) as caught:
            read_image([path])
        assert caught.value.codes[0] in ("reader.truncated", "reader.corrupt")
        assert sum(os.times()[:4]) - begin < 10  # of processor time, workers included; it takes one or two


def test_a_worker_has_a_limit_of_memory(tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "BASE_BYTES", 10**7)  # less than the libraries need to load
    monkeypatch.setattr(guarded, "COPIES", 0)
    with pytest.raises(AutosegError) as caught:
        read_image([real_data / "dicom_series" / "ct_body_jpeg2000" / "dicom"])
    assert caught.value.codes == ("reader.corrupt",)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"])
def test_pixels_in_a_form_that_is_none_are_refused(tmp_path: Path, syntax: str) -> None:
    write_slice(tmp_path / "a.dcm", (0.0, 0.0, 0.0), 1)
    content = (tmp_path / "a.dcm").read_bytes()
    plain = ExplicitVRLittleEndian.encode() + b"\0"
    padded = syntax.encode().ljust(len(plain), b"\0")[: len(plain)]
    (tmp_path / "a.dcm").write_bytes(content.replace(plain, padded))
    with pytest.raises(AutosegError) as caught:
        read_image([tmp_path])
    assert caught.value.codes == ("reader.unsupported",)


@pytest.mark.parametrize("ending", ["", ".dcm", ".IMA"])
@pytest.mark.parametrize(
    "beside", [".DS_Store", "Thumbs.db", "notes.txt", "viewer.xml", "seg.nii.gz", "seg.nii.gz.json"]
)
def test_other_files_next_to_slices_are_not_part_of_the_series(tmp_path: Path, ending: str, beside: str) -> None:
    slices = tuple(tmp_path / f"slice{i}{ending}" for i in range(3))
    for i, path in enumerate(slices):
        write_slice(path, (0.0, 0.0, STEP * i), value=i)
    (tmp_path / beside).write_bytes(bytes(200))
    assert files_of(tmp_path) == slices
    assert len(read_image([tmp_path]).array[0]) == 3


def test_backups_and_unfinished_copies_of_slices_are_said(tmp_path: Path) -> None:
    write_stack(tmp_path, [(0.0, 0.0, STEP * i) for i in range(3)])
    (tmp_path / "~IM0.dcm").touch()
    shutil.copy(next(tmp_path.glob("[!~]*")), tmp_path / "IM0000.bak")
    (tmp_path / "notes.bak").write_text("no slice")
    header = read_header(tmp_path)
    assert header.geometry.shape[0] == 3
    (note,) = header.notes
    assert (note.code, "skipped IM0000.bak, ~IM0.dcm:" in note.message) == ("dicom.leftovers", True)


def test_a_folder_without_slices_has_all_its_files_and_a_broken_slice_counts(tmp_path: Path) -> None:
    for name in ("b", "a.txt"):
        (tmp_path / name).write_text("no slice")
    assert files_of(tmp_path) == (tmp_path / "a.txt", tmp_path / "b")
    (tmp_path / "broken.dcm").write_text("no slice, but reading the folder fails for it")
    assert files_of(tmp_path) == (tmp_path / "broken.dcm",)
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path)
    assert caught.value.codes == ("reader.unknown_format",)


def test_each_of_several_series_has_its_own_files(tmp_path: Path) -> None:
    own = {uid: tuple(tmp_path / f"{uid}_{i}" for i in range(3)) for uid in ("1.2.5", "1.2.6")}
    for uid, paths in own.items():
        for i, path in enumerate(paths):
            write_slice(path, (0.0, 0.0, STEP * i), value=i, series=uid)
    for series in list_series(tmp_path):
        assert files_of(series.path) == own[series.uid]
    write_slice(tmp_path / "1.2.7_0", (0.0, 0.0, 0.0), value=1, series="1.2.7")
    assert files_of(f"{tmp_path}#1.2.5") == own["1.2.5"]
    write_slice(own["1.2.6"][2], (0.0, 0.0, 2 * STEP), value=1234, series="1.2.5")
    assert files_of(f"{tmp_path}#1.2.5") == (*own["1.2.5"], own["1.2.6"][2])
    assert len(files_of(f"{tmp_path}#9.9")) == 7
    own["1.2.5"][0].write_bytes(own["1.2.5"][0].read_bytes()[:150])  # reading any series fails for it
    assert files_of(f"{tmp_path}#1.2.7") == (own["1.2.5"][0], tmp_path / "1.2.7_0")
    with pytest.raises(AutosegError) as caught:
        read_header(f"{tmp_path}#1.2.7")
    assert caught.value.codes == ("reader.truncated",)


@pytest.mark.parametrize("ending", ["", ".dcm"])
def test_a_slice_that_cannot_be_reached_is_not_left_out(tmp_path: Path, ending: str) -> None:
    """The last one leaves no gap that could be noticed; links of data sets that are fetched in parts lead nowhere at first."""
    folder = tmp_path / "series"
    folder.mkdir()
    for i in range(4):
        write_slice(folder / f"slice{i}{ending}", (0.0, 0.0, STEP * i), value=i)
    last = folder / f"slice3{ending}"
    last.rename(tmp_path / "elsewhere")
    assert len(read_image([folder]).array[0]) == 3
    last.symlink_to(tmp_path / "fetched")
    (folder / ".#lock").symlink_to("somebody@host")
    with pytest.raises(AutosegError) as caught:
        read_image([folder])
    assert caught.value.codes == ("reader.missing",)
    with pytest.raises(AutosegError) as caught:
        read_header(folder)
    assert caught.value.codes == ("reader.missing",)
    (tmp_path / "elsewhere").rename(tmp_path / "fetched")
    assert len(read_image([folder]).array[0]) == 4


def test_compressed_slices_are_read_with_and_without_offset_tables(tmp_path: Path) -> None:
    """The table of offsets may be empty or filled; both are right."""
    tags = pydicom.dcmread(get_testdata_file("MR_small_jp2klossless.dcm"))
    frame = next(generate_frames(tags.PixelData, number_of_frames=1))
    found = []
    for has_table in (False, True):
        tags.PixelData = encapsulate([frame], has_bot=has_table)
        tags.save_as(tmp_path / "a.dcm")
        found.append(read_image(tmp_path / "a.dcm").array)
    assert np.array_equal(*found)
    assert np.array_equal(found[0][0, 0], pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array)


def test_values_are_not_inverted_where_small_ones_are_shown_bright(tmp_path: Path) -> None:
    plain = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    packed = pydicom.dcmread(get_testdata_file("MR_small_jp2klossless.dcm"))
    for name, tags in (("plain", plain), ("packed", packed)):
        tags.PhotometricInterpretation = "MONOCHROME1"
        tags.save_as(tmp_path / f"{name}.dcm")
        assert np.array_equal(read_image(tmp_path / f"{name}.dcm").array[0, 0], plain.pixel_array)


def code_of(path: Path) -> str:
    with pytest.raises(AutosegError) as caught:
        read_image(path)
    (code,) = caught.value.codes
    return code


def test_files_that_are_no_volume_are_named_as_what_they_are(tmp_path: Path) -> None:
    for name, code in (
        ("rtplan.dcm", "dicom.no_pixels"),
        ("test-SR.dcm", "dicom.no_pixels"),
        ("liver_1frame.dcm", "dicom.not_an_image"),
        ("examples_ybr_color.dcm", "dicom.multiframe"),
    ):
        file = Path(shutil.copy(get_testdata_file(name), tmp_path / "a.dcm"))
        assert code_of(file) == code
        assert code_of(tmp_path) == "dicom.no_slices"
    with pytest.raises(AutosegError, match="1 Ultrasound Multi-frame Image"):
        read_header(tmp_path)
    tags = pydicom.dcmread(get_testdata_file("SC_rgb_rle_2frame.dcm"))
    tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    tags.save_as(file)
    assert code_of(file) == "dicom.not_an_image"


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize("name", ["rtdose.dcm", "rtdose_rle.dcm", "rtdose_expb.dcm"])
def test_a_dose_of_several_frames_is_read_whole(tmp_path: Path, name: str, as_folder: bool) -> None:
    file = Path(shutil.copy(get_testdata_file(name), tmp_path / "a.dcm"))
    got = read_image(tmp_path if as_folder else file)
    truth = pydicom.dcmread(file)
    assert np.allclose(got.array[0], truth.pixel_array * float(truth.DoseGridScaling))
    assert got.geometry.spacing_mm == (5, 10, 10)
    assert got.geometry.origin_mm == tuple(truth.ImagePositionPatient)


def test_frames_with_one_position_for_all_are_refused(tmp_path: Path) -> None:
    write_stack(tmp_path, [(0.0, 0.0, STEP * i) for i in range(3)])
    tags = pydicom.dcmread(get_testdata_file("rtdose.dcm"))
    del tags.GridFrameOffsetVector
    tags.save_as(tmp_path / "a.dcm")
    assert code_of(tmp_path / "a.dcm") == code_of(tmp_path) == "dicom.multiframe"


@pytest.mark.parametrize("kind", ["with meta", "implicit", "explicit"])
@pytest.mark.parametrize("ending", [".dcm", ".IMA", ""])
def test_slices_without_a_preamble_are_read(tmp_path: Path, kind: str, ending: str) -> None:
    write_stack(tmp_path, [(0.0, 0.0, STEP * i) for i in range(3)])
    truth = read_image(tmp_path)
    for file in sorted(tmp_path.iterdir()):
        content = file.read_bytes()[132:]
        if kind != "with meta":
            tags = pydicom.dcmread(file)
            del tags.file_meta
            tags.preamble = None
            tags.save_as(file, implicit_vr=kind == "implicit", little_endian=True, enforce_file_format=False)
            content = file.read_bytes()
        assert content[128:132] != b"DICM"
        file.write_bytes(content)
        file.rename(file.with_suffix(ending))
    got = read_image(tmp_path)
    assert np.array_equal(got.array, truth.array)
    assert got.geometry == truth.geometry
    assert np.array_equal(read_image(file.with_suffix(ending)).array, truth.array[:, :1])


def of_frames(path: Path, uid: str, pixels: np.ndarray, **values: object) -> None:
    """A file of frames ``pixels`` (Z, Y, X) that says nothing of their places but ``values``."""
    write_slice(path, (0.0, 0.0, 0.0), 0)
    tags = pydicom.dcmread(path)
    del tags.ImagePositionPatient, tags.ImageOrientationPatient, tags.RescaleSlope, tags.RescaleIntercept
    tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = uid
    tags.NumberOfFrames, tags.PixelData = len(pixels), pixels.astype("<i2").tobytes()
    for name, value in values.items():
        setattr(tags, name, value)
    tags.save_as(path)


@pytest.mark.parametrize("as_folder", [True, False])
def test_volumes_of_nuclear_medicine_are_placed_by_their_detector(tmp_path: Path, as_folder: bool) -> None:
    pixels, detector = np.random.default_rng(0).integers(0, 500, (4, 4, 5)), Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [1, 2, 3], [1, 0, 0, 0, 1, 0]
    known = {"DetectorInformationSequence": [detector], "SpacingBetweenSlices": -STEP}
    path, place = tmp_path / "a.dcm", tmp_path if as_folder else tmp_path / "a.dcm"
    of_frames(path, NuclearMedicineImageStorage, pixels, ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO"], **known)
    got = read_image(place)
    assert np.array_equal(got.array[0], pixels[::-1])
    assert got.geometry.origin_mm == (1, 2, 3 - 3 * STEP)
    assert got.geometry.spacing_mm == (STEP, 0.5, 0.75)
    of_frames(path, NuclearMedicineImageStorage, pixels, ImageType=["ORIGINAL", "PRIMARY", "TOMO"], **known)
    assert code_of(path) == "dicom.multiframe"  # projections
    gated = {"ImageType": ["ORIGINAL", "PRIMARY", "RECON GATED TOMO"], "SliceVector": [1, 2, 1, 2]}
    of_frames(path, NuclearMedicineImageStorage, pixels, **known, **gated)
    assert code_of(place) == "dicom.slices_coincide"


def test_a_volume_of_ultrasound_lies_in_the_axes_of_its_probe(tmp_path: Path) -> None:
    pixels, shared, plane, measures = (
        np.random.default_rng(0).integers(0, 255, (3, 4, 5)),
        Dataset(),
        Dataset(),
        Dataset(),
    )
    plane.ImageOrientationVolume, measures.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.5, 0.75]
    shared.PlaneOrientationVolumeSequence, shared.PixelMeasuresSequence = [plane], [measures]
    frames = []
    for z in range(3):
        frame, place = Dataset(), Dataset()
        place.ImagePositionVolume, frame.PlanePositionVolumeSequence = [0, 0, STEP * z], [place]
        frames.append(frame)
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": frames}
    of_frames(tmp_path / "a.dcm", EnhancedUSVolumeStorage, pixels, **groups)
    got = read_image(tmp_path / "a.dcm")
    assert np.array_equal(got.array[0], pixels)
    assert got.geometry.spacing_mm == (STEP, 0.5, 0.75)
    assert [note.code for note in got.notes] == ["reader.no_orientation"]


def test_slices_of_other_colours_or_inverted_are_refused_in_one_volume(tmp_path: Path) -> None:
    write_stack(tmp_path, [(0.0, 0.0, STEP * i) for i in range(3)])
    first = min(tmp_path.iterdir())
    for name, value in (("PhotometricInterpretation", "MONOCHROME1"), ("SamplesPerPixel", 3)):
        tags = pydicom.dcmread(first)
        setattr(tags, name, value)
        tags.save_as(first)
        assert code_of(tmp_path) == "dicom.slices_differ"
    assert [note.code for note in read_header(first).notes] == ["reader.inversion_ignored"]


def test_what_goes_without_saying_may_be_missing_and_spacing_is_positive(tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    write_slice(file, (0.0, 0.0, 0.0), 7)
    tags = pydicom.dcmread(file)
    del tags.SamplesPerPixel, tags.PhotometricInterpretation, tags.BitsStored
    tags.save_as(file)
    assert (read_image(file).array == 7 - 1000).all()
    tags.PixelSpacing = [-0.5, 0.75]
    tags.save_as(file)
    assert code_of(file) == "reader.bad_header"


def enhanced(path: Path, pixels: np.ndarray, order: list[int], **shared_values: object) -> None:
    """A file of frames of ``pixels`` (Z, Y, X) in the order given, with places, and scales of their own."""
    write_slice(path, (0.0, 0.0, 0.0), 0)
    tags = pydicom.dcmread(path)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        del tags[name]
    tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient, measures.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.5, 0.75]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    tags.SharedFunctionalGroupsSequence, tags.PerFrameFunctionalGroupsSequence = [shared], []
    for z in order:
        frame, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient, values.RescaleSlope, values.RescaleIntercept = [1, 2, STEP * z], 1 + z, -z
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [values]
        tags.PerFrameFunctionalGroupsSequence.append(frame)
    tags.NumberOfFrames, tags.PixelData = len(order), pixels[order].astype("<i2").tobytes()
    tags.save_as(path)


@pytest.mark.parametrize("as_folder", [True, False])
def test_frames_of_an_enhanced_file_are_placed_and_scaled_each(tmp_path: Path, as_folder: bool) -> None:
    pixels = np.random.default_rng(0).integers(-500, 500, (4, 4, 5))
    enhanced(tmp_path / "a.dcm", pixels, [2, 0, 3, 1])
    got = read_image(tmp_path if as_folder else tmp_path / "a.dcm")
    factors = np.arange(4)[:, None, None]
    assert np.array_equal(got.array[0], pixels * (1 + factors) - factors)
    assert (got.geometry.spacing_mm, got.geometry.origin_mm) == ((STEP, 0.5, 0.75), (1, 2, 0))


def test_enhanced_files_are_read_whole_or_refused(tmp_path: Path) -> None:
    pixels = np.zeros((6, 4, 5))
    enhanced(tmp_path / "a.dcm", pixels, [0, 1, 2])
    enhanced(tmp_path / "b.dcm", pixels, [3, 4, 5])
    assert read_header(tmp_path).geometry.shape == (6, 4, 5)
    enhanced(tmp_path / "b.dcm", pixels, [2, 3])
    assert code_of(tmp_path) == "dicom.slices_coincide"
    enhanced(tmp_path / "a.dcm", pixels, [0, 1, 0, 1])  # of two echoes
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path / "a.dcm")
    assert [(i.code, "dcm2niix" in i.fix) for i in caught.value.issues] == [("dicom.slices_coincide", True)]
    tags = pydicom.dcmread(tmp_path / "a.dcm")
    del tags.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence
    tags.save_as(tmp_path / "a.dcm")
    assert code_of(tmp_path) == code_of(tmp_path / "a.dcm") == "dicom.multiframe"


@pytest.mark.parametrize("name", ["siemens_dwi_0.dcm.gz", "philips_mprage.dcm.gz"])
def test_real_mosaics_and_enhanced_files_agree_with_nibabel(tmp_path: Path, name: str) -> None:
    source = Path(nibabel.__file__).parent / "nicom" / "tests" / "data" / name
    if not source.exists():
        pytest.skip("this nibabel ships without its test data")
    (tmp_path / "a.dcm").write_bytes(gzip.decompress(source.read_bytes()))
    got = read_image(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = wrapper_from_file(tmp_path / "a.dcm")
        voxels, affine = truth.get_data().transpose(2, 0, 1), truth.affine[:, [2, 0, 1, 3]]
    ours = np.diag([-1, -1, 1, 1]) @ got.affine
    if ours[:3, 0] @ affine[:3, 0] < 0:  # nibabel has the slices the other way round
        voxels, ours = voxels[::-1], ours @ np.array([[-1, 0, 0, len(voxels) - 1], *np.eye(4)[1:]])
    assert np.array_equal(got.array[0], voxels)
    assert np.allclose(ours, affine, atol=2e-3)


def test_a_mosaic_without_its_private_header_is_refused(tmp_path: Path) -> None:
    tags = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    tags.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    tags.save_as(tmp_path / "a.dcm")
    assert code_of(tmp_path) == code_of(tmp_path / "a.dcm") == "dicom.mosaic"
    tags.ImageType = ["ORIGINAL", "PRIMARY"]
    tags.private_block(0x0065, "Image Private Header", create=True).add_new(0x50, "DS", "4")  # United Imaging
    tags.save_as(tmp_path / "a.dcm")
    assert code_of(tmp_path / "a.dcm") == "dicom.mosaic"


@pytest.mark.parametrize("doubled", [[98], [96, 97, 98, 99]])
def test_a_slice_that_is_there_twice_is_named_with_both_files(tmp_path: Path, doubled: list[int]) -> None:
    write_stack(tmp_path, [(0.0, 0.0, STEP * i) for i in range(4)])
    for number in doubled:
        shutil.copy(tmp_path / f"slice_{number}.dcm", tmp_path / f"copy_{number}.dcm")
    first = doubled[-1]  # names run against the positions
    with pytest.raises(AutosegError, match=rf"copy_{first}\.dcm and slice_{first}\.dcm") as caught:
        read_image(tmp_path)
    assert caught.value.codes == ("dicom.doubled_slice",)


MR_SMALL = [
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_expb.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_padded.dcm",
]


@pytest.mark.parametrize("name", MR_SMALL)
def test_one_slice_is_the_same_however_it_is_stored(name: str) -> None:
    truth = pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array
    assert np.array_equal(read_image(get_testdata_file(name)).array[0, 0], truth)


ENCODERS = pytest.mark.parametrize(
    ("syntax", "encode", "most"),
    [
        (JPEGLosslessSV1, lambda a: imagecodecs.ljpeg_encode(a, bitspersample=12), 0),
        (JPEGExtended12Bit, lambda a: imagecodecs.jpeg8_encode(a, bitspersample=12, level=100), 2),
        (HTJ2KLossless, lambda a: imagecodecs.htj2k_encode(a, reversible=True), 0),
        (JPEG2000Lossless, lambda a: imagecodecs.jpeg2k_encode(a, reversible=True, level=0), 0),
        (JPEGLSLossless, lambda a: imagecodecs.jpegls_encode(a), 0),
    ],
)


def write_compressed(folder: Path, syntax: UID, frames: Sequence[bytes]) -> None:
    """Slices of 16 x 24 pixels of twelve bits, every second one with a filled offset table."""
    for z, frame in enumerate(frames):
        write_slice(folder / f"{z}.dcm", (0.0, 0.0, STEP * z), 0)
        tags = pydicom.dcmread(folder / f"{z}.dcm")
        tags.Rows, tags.Columns = 16, 24
        tags.BitsStored, tags.HighBit, tags.PixelRepresentation = 12, 11, 0
        tags.file_meta.TransferSyntaxUID = syntax
        tags.PixelData = encapsulate([frame], has_bot=bool(z % 2))
        tags["PixelData"].is_undefined_length = True
        tags.save_as(folder / f"{z}.dcm")


def noisy_slices(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, (count, 16, 24)).astype(np.uint16)


@ENCODERS
def test_compressed_pixels_that_are_cut_off_are_refused_by_the_name_of_the_slice(
    tmp_path: Path, syntax: UID, encode, most: int
) -> None:
    """Most decoders fill in what is missing and say nothing."""
    frames = [encode(plane) for plane in noisy_slices(3)]
    write_compressed(tmp_path, syntax, [frames[0], frames[1][: len(frames[1]) * 3 // 4], frames[2]])
    with pytest.raises(AutosegError) as caught:
        read_image(tmp_path)
    assert caught.value.codes == ("reader.corrupt",)
    assert "1.dcm: " in str(caught.value)


@ENCODERS
@pytest.mark.parametrize("padding", [b"\0", b"\xff"])
def test_bytes_after_the_end_of_compressed_pixels_do_no_harm(
    tmp_path: Path, syntax: UID, encode, most: int, padding: bytes
) -> None:
    pixels = noisy_slices(1)
    write_compressed(tmp_path, syntax, [encode(pixels[0]) + padding])
    assert np.abs(read_image(tmp_path / "0.dcm").array[0] + 1000 - pixels).max() <= most


@ENCODERS
def test_compressed_pixels_are_those_that_were_stored(tmp_path: Path, syntax: UID, encode, most: int) -> None:
    pixels = noisy_slices(2)
    write_compressed(tmp_path, syntax, [encode(plane) for plane in pixels])
    assert np.abs(read_image(tmp_path).array[0] + 1000 - pixels).max() <= most


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_small_odd_big_endian.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_dcmtk_+eb+cy+s2.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_jpeg_no_color_transform.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_rgb_gdcm_KY.dcm",
    ],
)
def test_colours_are_red_green_and_blue_however_they_are_stored(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = pydicom.dcmread(get_testdata_file(name)).pixel_array
    assert np.array_equal(read_image(get_testdata_file(name)).array[:, 0], np.moveaxis(truth, -1, 0))


def test_a_palette_is_colours_in_an_image_and_numbers_in_a_label_map() -> None:
    file = get_testdata_file("examples_palette.dcm")
    truth = pydicom.dcmread(file)
    red = np.frombuffer(truth.RedPaletteColorLookupTableData, "<u2")
    assert read_image(file).array.shape == (3, 1, *truth.pixel_array.shape)
    assert np.array_equal(read_image(file).array[0, 0], red[truth.pixel_array])
    assert np.array_equal(read_label_map(file).array[0], truth.pixel_array)


def test_a_table_of_the_modality_is_applied(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.dcm", (0.0, 0.0, 0.0), 2)
    tags = pydicom.dcmread(tmp_path / "a.dcm")
    del tags.RescaleSlope, tags.RescaleIntercept
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [4, 0, 16], [7, 70, 700, 7000], "HU"
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    tags.ModalityLUTSequence = [table]
    tags.save_as(tmp_path / "a.dcm")
    assert (read_image(tmp_path).array == 700).all()


def test_bits_below_the_stored_ones_are_cut_off(tmp_path: Path) -> None:
    """Twelve bits up to bit 15."""
    write_slice(tmp_path / "a.dcm", (0.0, 0.0, 0.0), 0)
    tags = pydicom.dcmread(tmp_path / "a.dcm")
    tags.BitsStored, tags.HighBit = 12, 15
    tags.PixelData = np.full((4, 5), -3 * 16 + 5, "<i2").tobytes()
    tags.save_as(tmp_path / "a.dcm")
    assert (read_image(tmp_path).array == -3 - 1000).all()


def test_companions_and_tables_of_contents_are_no_slices(tmp_path: Path) -> None:
    write_stack(tmp_path, [(0.0, 0.0, STEP * i) for i in range(3)])
    (tmp_path / "._slice_99.dcm").write_bytes(b"\0\5\x16\7")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert read_header(tmp_path).geometry.shape[0] == 3
    assert len(files_of(tmp_path)) == 3

"""DICOM series: read in order, refused when they are no box of slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from autoseg.errors import AutosegError
from autoseg.imaging.formats import is_dicom_series, read_header, read_volume

STEP = 2.5


def write_slice(path: Path, position: tuple[float, float, float], value: int, series: str = "1.2.3", rows: int = 4) -> None:
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
    got = read_volume([tmp_path])
    assert got.array[0, :, 0, 0].tolist() == [-1000, -999, -998, -997]
    assert got.geometry.shape == (4, 4, 5)
    assert got.geometry.spacing_mm == (STEP, 0.5, 0.75)
    assert got.geometry.origin_mm == (1, 2, 0)
    assert read_header(tmp_path).geometry == got.geometry


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([(0.0, 0.0, STEP * i) for i in (0, 1, 2, 4, 5)], "5 mm between slice_97.dcm and slice_96.dcm"),
        ([(0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, STEP)], "more than one volume"),
        ([(0.0, 0.5 * i, STEP * i) for i in range(4)], "gantry tilt of 11.3 degrees"),
    ],
)
def test_series_that_form_no_box_are_refused(
    tmp_path: Path, positions: list[tuple[float, float, float]], message: str
) -> None:
    write_stack(tmp_path, positions)
    with pytest.raises(AutosegError, match=message):
        read_header(tmp_path)


def test_two_series_in_a_folder_are_told_apart(tmp_path: Path) -> None:
    write_stack(tmp_path, [(0.0, 0.0, STEP * i) for i in range(3)])
    write_slice(tmp_path / "other", (0.0, 0.0, 0.0), 1, series="1.2.4")
    with pytest.raises(AutosegError, match=r"2 series \(3 slices of .series 1\.2\.3., .*#1\.2\.3; 1 slices"):
        read_header(tmp_path)


def test_slices_of_different_size_are_refused(tmp_path: Path) -> None:
    write_stack(tmp_path, [(0.0, 0.0, STEP * i) for i in range(3)])
    write_slice(tmp_path / "wide.dcm", (0.0, 0.0, STEP * 3), 1, rows=6)
    with pytest.raises(AutosegError, match="Rows is"):
        read_header(tmp_path)


def test_a_single_slice_has_thickness_or_one_millimetre(tmp_path: Path) -> None:
    write_slice(tmp_path / "only.dcm", (0.0, 0.0, 0.0), 1)
    assert read_header(tmp_path).geometry.spacing_mm[0] == 1


def test_other_folders_are_no_series(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("nothing")
    assert not is_dicom_series(tmp_path)
    assert not is_dicom_series(tmp_path / "missing")
    with pytest.raises(AutosegError, match="0 DICOM files"):
        read_header(tmp_path)


@pytest.mark.parametrize("name", ["mr_prostatex_t2_tra", "mr_prostatex_adc", "ct_body_jpeg2000/dicom"])
def test_real_series_agree_with_itk(real_data: Path, name: str) -> None:
    folder = real_data / "dicom_series" / name
    files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    expected = SimpleITK.ReadImage(files)
    got = read_volume([folder])
    assert np.array_equal(got.array[0], SimpleITK.GetArrayFromImage(expected).astype(np.float32))
    assert got.geometry.spacing_mm[::-1] == pytest.approx(expected.GetSpacing(), abs=1e-5)
    assert got.geometry.origin_mm == pytest.approx(expected.GetOrigin(), abs=1e-5)
    assert np.allclose(np.array(got.geometry.direction).ravel(), expected.GetDirection(), atol=1e-6)


def test_the_real_missing_slice_is_found(real_data: Path) -> None:
    with pytest.raises(AutosegError, match="3 mm apart but 6 mm"):
        read_header(real_data / "dicom_series" / "mr_prostatex_calcbval_missing_slice")

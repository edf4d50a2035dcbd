"""DICOM series and structures drawn on them, made for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)
from pydicom.valuerep import DSfloat

from autoseg.imaging.image import Geometry

UNIT = (0.5, 0.75, 2.5)
"""mm between rows, columns and slices of the series that structures are drawn on."""


def write_series(folder: Path, shape: tuple[int, int, int], plane: list[float], series: str = "1.2.3") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(plane[:3], plane[3:])
    for z in range(shape[0]):
        tags = Dataset()
        tags.file_meta = FileMetaDataset()
        tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = CTImageStorage
        tags.SOPInstanceUID = tags.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        tags.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        tags.SeriesInstanceUID, tags.PixelSpacing, tags.ImageOrientationPatient = series, list(UNIT[:2]), plane
        tags.ImagePositionPatient = [float(value) for value in np.array([-7.0, 11.0, 30.0]) + UNIT[2] * z * normal]
        tags.Rows, tags.Columns, tags.SamplesPerPixel, tags.PhotometricInterpretation = *shape[1:], 1, "MONOCHROME2"
        tags.BitsAllocated, tags.BitsStored, tags.HighBit, tags.PixelRepresentation = 16, 16, 15, 0
        tags.PixelData = bytes(2 * shape[1] * shape[2])
        tags.save_as(folder / f"{z}.dcm", enforce_file_format=True)
    return folder


Contours = dict[int, list[tuple[int, NDArray[np.float64]]]]
"""For each structure, the slices and corners (n, 2: row, column, in voxels) of its contours."""


def write_structures(path: Path, contours: Contours, geometry: Geometry, series: str = "1.2.3") -> Path:
    tags = Dataset()
    tags.file_meta = FileMetaDataset()
    tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    tags.SOPInstanceUID = tags.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    tags.file_meta.TransferSyntaxUID, tags.SeriesInstanceUID = ExplicitVRLittleEndian, "1.2.99"
    frame, study, referred = Dataset(), Dataset(), Dataset()
    referred.SeriesInstanceUID, study.RTReferencedSeriesSequence = series, [referred]
    frame.RTReferencedStudySequence, tags.ReferencedFrameOfReferenceSequence = [study], [frame]
    tags.StructureSetROISequence, tags.ROIContourSequence = [], []
    for owner, drawn in contours.items():
        structure, outlines = Dataset(), Dataset()
        structure.ROINumber, structure.ROIName = owner, f"organ {owner}"
        outlines.ReferencedROINumber, outlines.ContourSequence = owner, []
        for z, corners in drawn:
            contour, inside = Dataset(), np.column_stack([np.full(len(corners), z), corners, np.ones(len(corners))])
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(corners)
            world = (inside @ geometry.affine.T)[:, :3] * (-1, -1, 1)
            contour.ContourData = [f"{value:.6f}" for value in world.ravel()]
            outlines.ContourSequence.append(contour)
        tags.StructureSetROISequence.append(structure)
        tags.ROIContourSequence.append(outlines)
    tags.save_as(path, enforce_file_format=True)
    return path


PATIENT = {
    "PatientName": "Doe^Jane",
    "PatientID": "P-17",
    "PatientBirthDate": "19710203",
    "PatientSex": "F",
    "PatientAge": "054Y",
    "StudyInstanceUID": "1.2.826.0.1.17",
    "StudyDate": "20240506",
    "StudyTime": "101112",
    "StudyID": "S1",
    "StudyDescription": "Abdomen",
    "AccessionNumber": "A-9",
    "ReferringPhysicianName": "Roe^Richard",
}
SECRETS = {
    "InstitutionName": "Secret Hospital",
    "StationName": "SECRETCT",
    "OperatorsName": "Secret^Operator",
    "PerformingPhysicianName": "Secret^Physician",
    "ProtocolName": "Secret protocol",
    "Manufacturer": "Secret Scanners",
    "DeviceSerialNumber": "SECRET-1",
}
"""What must not leave with an object that was drawn on a series."""


def write_study(
    folder: Path,
    voxels: NDArray[np.int16],
    *,
    plane: NDArray[np.float64],
    reverse: bool = False,
    leave_out: tuple[int, ...] = (),
    **changes: Any,
) -> Path:
    """A CT series of one study, a file per slice; ``plane`` (2, 3) along rows and columns, ``reverse``: files from the last slice on.

    ``changes`` set tags, or, where they are None, remove them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = _places(voxels.shape, plane)
    for z in sorted(set(range(len(voxels))) - set(leave_out)):
        tags = _image(CTImageStorage, voxels[z])
        tags.SeriesInstanceUID, tags.FrameOfReferenceUID, tags.SeriesNumber = "1.2.826.0.1.3", "1.2.826.0.1.4", 4
        tags.Modality, tags.InstanceNumber = "CT", z + 1
        for name, value in {**PATIENT, **SECRETS}.items():
            setattr(tags, name, value)
        tags.PixelSpacing, tags.SliceThickness = list(UNIT[:2]), 2.0
        tags.ImageOrientationPatient = [DSfloat(value, auto_format=True) for value in plane.ravel().tolist()]
        tags.ImagePositionPatient = [DSfloat(value, auto_format=True) for value in places[z]]
        block = tags.private_block(0x0011, "SECRET BLOCK", create=True)
        block.add_new(1, "LO", "Secret private")
        for name, value in changes.items():
            if value is not None:
                setattr(tags, name, value)
            elif name in tags:
                delattr(tags, name)
        name = f"{len(voxels) - z if reverse else z:03}.dcm"
        tags.save_as(folder / name, enforce_file_format=True)
    return folder


def write_enhanced(path: Path, voxels: NDArray[np.int16], *, plane: NDArray[np.float64], order: list[int]) -> Path:
    """An enhanced CT: all slices as frames of one file, in ``order``; where they lie is said for each frame alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tags, places = _image(EnhancedCTImageStorage, voxels[order]), _places(voxels.shape, plane)
    tags.SeriesInstanceUID, tags.FrameOfReferenceUID, tags.SeriesNumber = "1.2.826.0.1.3", "1.2.826.0.1.4", 4
    tags.Modality, tags.InstanceNumber, tags.NumberOfFrames = "CT", 1, len(voxels)
    for name, value in PATIENT.items():
        setattr(tags, name, value)
    groups = []
    for z in order:
        group, position, orientation, measures = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [DSfloat(value, auto_format=True) for value in places[z]]
        orientation.ImageOrientationPatient = [DSfloat(value, auto_format=True) for value in plane.ravel().tolist()]
        measures.PixelSpacing, measures.SliceThickness = list(UNIT[:2]), 2.0
        group.PlanePositionSequence, group.PlaneOrientationSequence = [position], [orientation]
        group.PixelMeasuresSequence = [measures]
        groups.append(group)
    tags.SharedFunctionalGroupsSequence, tags.PerFrameFunctionalGroupsSequence = [Dataset()], groups
    tags.save_as(path, enforce_file_format=True)
    return path


def _places(shape: tuple[int, ...], plane: NDArray[np.float64]) -> list[list[float]]:
    normal = np.cross(*plane)
    return [(np.array([-7.0, 11.0, 30.0]) + UNIT[2] * z * normal).tolist() for z in range(shape[0])]


def _image(kind: str, voxels: NDArray[np.int16]) -> Dataset:
    tags = Dataset()
    tags.file_meta = FileMetaDataset()
    tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = kind
    tags.SOPInstanceUID = tags.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    tags.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    tags.Rows, tags.Columns = voxels.shape[-2:]
    tags.SamplesPerPixel, tags.PhotometricInterpretation = 1, "MONOCHROME2"
    tags.BitsAllocated, tags.BitsStored, tags.HighBit, tags.PixelRepresentation = 16, 16, 15, 1
    tags.RescaleSlope, tags.RescaleIntercept = 1, 0
    tags.PixelData = np.ascontiguousarray(voxels, "<i2").tobytes()
    return tags

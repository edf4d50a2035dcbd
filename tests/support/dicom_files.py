"""DICOM series and structures drawn on them, made for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

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

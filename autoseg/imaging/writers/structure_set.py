"""RTSTRUCT: a structure per class, drawn as closed polygons in the planes of the slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from autoseg.imaging.writers.contours import Polygon, outlines
from autoseg.imaging.writers.maker import NAME, SHORT, DrawnClass, Maker, line, series_number
from autoseg.imaging.writers.source import Source
from datasets_spec import CodedClass

STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
"""The retired class that structure sets name their study by, as the standard still asks."""
DIGITS = ".10g"
"""Of coordinates in mm: always in the 16 characters that DICOM allows."""


def structure_set(labels: NDArray[np.integer], classes: Sequence[DrawnClass], source: Source, maker: Maker) -> Dataset:
    """The object of a label map (Z, Y, X), without patient and study."""
    target, now = _object(source, maker), datetime.now()
    target.StructureSetLabel, target.StructureSetName = line(NAME, SHORT), maker.title
    target.StructureSetDescription = maker.told
    target.StructureSetDate, target.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    target.InstanceCreationDate, target.InstanceCreationTime = target.StructureSetDate, target.StructureSetTime
    target.ApprovalStatus = "UNAPPROVED"
    target.ReferencedFrameOfReferenceSequence = [_referenced(source)]
    target.StructureSetROISequence = [_named(each.coded, k, source, maker) for k, each in enumerate(classes, start=1)]
    target.RTROIObservationsSequence = [_observed(each.coded, k) for k, each in enumerate(classes, start=1)]
    seen = [frozenset(np.unique(plane).tolist()) for plane in labels]
    target.ROIContourSequence = []
    for k, each in enumerate(classes, start=1):
        planes = [z for z, values in enumerate(seen) if not values.isdisjoint(each.values)]
        drawn = [contour for z in planes for contour in _contours(np.isin(labels[z], each.values), z, source)]
        target.ROIContourSequence.append(_drawn(each.coded, k, drawn))
    return target


def _object(source: Source, maker: Maker) -> Dataset:
    target = Dataset()
    target.file_meta = FileMetaDataset()
    target.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    target.SOPClassUID = target.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    target.SOPInstanceUID = target.file_meta.MediaStorageSOPInstanceUID = generate_uid(prefix=None)
    target.Modality, target.SeriesInstanceUID = "RTSTRUCT", generate_uid(prefix=None)
    target.SeriesNumber, target.InstanceNumber = series_number(source.about), 1
    target.SeriesDescription, target.OperatorsName = maker.title, ""
    target.Manufacturer = target.ManufacturerModelName = NAME
    target.DeviceSerialNumber, target.SoftwareVersions = line(maker.key), maker.version
    return target


def _referenced(source: Source) -> Dataset:
    frame, study, series = Dataset(), Dataset(), Dataset()
    frame.FrameOfReferenceUID = source.uid("FrameOfReferenceUID")
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY_CLASS, source.uid("StudyInstanceUID")
    series.SeriesInstanceUID, series.ContourImageSequence = source.uid("SeriesInstanceUID"), _whole(source)
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study]
    return frame


def _whole(source: Source) -> list[Dataset]:
    """All images, or frames, of a series."""
    return [source.reference(z) for z in range(len(source.images))]


def _named(coded: CodedClass, number: int, source: Source, maker: Maker) -> Dataset:
    item = Dataset()
    item.ROINumber, item.ROIName = number, line(coded.name)
    item.ReferencedFrameOfReferenceUID = source.uid("FrameOfReferenceUID")
    item.ROIGenerationAlgorithm, item.ROIGenerationDescription = "AUTOMATIC", maker.title
    return item


def _observed(coded: CodedClass, number: int) -> Dataset:
    item, code = Dataset(), Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.RTROIInterpretedType, item.ROIInterpreter = "", ""
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = coded.code, coded.scheme, line(coded.meaning)
    item.RTROIIdentificationCodeSequence = [code]
    return item


def _drawn(coded: CodedClass, number: int, contours: Sequence[Dataset]) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber, item.ROIDisplayColor = number, list(coded.rgb)
    if contours:
        item.ContourSequence = list(contours)
    return item


def _contours(mask: NDArray[np.bool_], z: int, source: Source) -> Iterator[Dataset]:
    """Of a mask (Y, X) in slice ``z``."""
    for polygon in outlines(mask):
        item = Dataset()
        item.ContourImageSequence = [source.reference(z)]
        item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(polygon)
        item.ContourData = _in_patient(polygon, z, source)
        yield item


def _in_patient(polygon: Polygon, z: int, source: Source) -> list[str]:
    """x, y, z in mm of each corner, one after the other."""
    _, row_mm, column_mm = source.geometry.spacing_mm
    across, down = np.array(source.plane).reshape(2, 3)
    places: NDArray[Any] = (
        np.array(source.positions[z]) + polygon[:, 1:] * column_mm * across + polygon[:, :1] * row_mm * down
    )
    places[np.abs(places) < 1e-9] = 0  # of rounding; and "-1.234567891e-100" would be too long
    return [format(value, DIGITS) for value in places.ravel().tolist()]

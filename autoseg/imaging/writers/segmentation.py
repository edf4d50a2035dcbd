"""DICOM SEG by highdicom: a bit per voxel and class, or one label map (LABELMAP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.content import PlanePositionSequence
from highdicom.enum import CoordinateSystemNames
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.seg import Segmentation as SegmentationObject
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from autoseg.imaging.writers.maker import NAME, DrawnClass, Maker, line, numbered, series_number
from autoseg.imaging.writers.source import Source, decimals, stand_ins
from datasets_spec import CodedClass
from datasets_spec.structures import PRIVATE

CATEGORIES = {
    "anatomy": codes.SCT.AnatomicalStructure,
    "abnormality": codes.SCT.MorphologicallyAbnormalStructure,
    "object": codes.SCT.PhysicalObject,
    "unspecified": CodedConcept("unspecified", PRIVATE, "Not specified"),
}
SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}


def segmentation(
    labels: NDArray[np.integer],
    classes: Sequence[DrawnClass],
    source: Source,
    others: Sequence[Source],
    maker: Maker,
    *,
    as_label_map: bool,
) -> Dataset:
    """The object of a label map (Z, Y, X), without patient and study; frames without a voxel are left out."""
    frames = _frames(labels, classes)[source.order]
    positions = None
    if not frames.any():  # a frame for each class and slice would be stored
        frames = frames[:1]
        place = decimals(source.positions[source.order[0]])
        positions = [PlanePositionSequence(CoordinateSystemNames.PATIENT, place)]
    return SegmentationObject(
        source_images=stand_ins(source),
        further_source_images=[image for other in others for image in stand_ins(other)] or None,
        pixel_array=frames,
        plane_positions=positions,
        segmentation_type=SegmentationTypeValues.LABELMAP if as_label_map else SegmentationTypeValues.BINARY,
        transfer_syntax_uid=RLELossless if as_label_map else ExplicitVRLittleEndian,
        segment_descriptions=[_described(each.coded, k, maker) for k, each in enumerate(classes, start=1)],
        series_instance_uid=generate_uid(prefix=None),
        series_number=series_number(source.about),
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer=NAME,
        manufacturer_model_name=NAME,
        software_versions=maker.version,
        device_serial_number=line(maker.key),
        series_description=maker.title,
        content_label="SEGMENTATION",
        content_description=maker.title,
        content_creator_name=NAME,
    )


def _frames(labels: NDArray[np.integer], classes: Sequence[DrawnClass]) -> NDArray[Any]:
    """(Z, Y, X) numbers of classes, or, where they overlap, (Z, Y, X, classes) bool."""
    numbers = numbered(labels, classes)
    if numbers is not None:
        return numbers
    masks = np.empty((*labels.shape, len(classes)), bool)
    for k, each in enumerate(classes):
        masks[..., k] = np.isin(labels, each.values)
    return masks


def _described(coded: CodedClass, segment_number: int, maker: Maker) -> SegmentDescription:
    algorithm = AlgorithmIdentificationSequence(
        name=maker.title,
        family=codes.DCM.ArtificialIntelligence,
        version=line(maker.version),
        source=NAME,
        parameters=dict([("model", maker.key), *maker.parameters]),
    )
    description = SegmentDescription(
        segment_number=segment_number,
        segment_label=line(coded.name),
        segmented_property_category=CATEGORIES[coded.category],
        segmented_property_type=CodedConcept(coded.code, coded.scheme, line(coded.meaning)),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        display_color=CIELabColor.from_rgb(*coded.rgb),
    )
    if coded.side:
        (kind,) = description.SegmentedPropertyTypeCodeSequence
        kind.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept.from_code(SIDES[coded.side])]
    return description

"""The DICOM series that an object refers to: its images in the order of the slices, and what of patient and study goes along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import DSfloat

from autoseg.imaging.image import Geometry
from autoseg.imaging.readers.dicom import frame_owners, is_dicom, number, owner_of, read_tags, split_part, tags_of
from autoseg.imaging.readers.dicom_series import Series, is_dicom_series, read_series, read_single
from autoseg.imaging.readers.header import printable
from autoseg.issues import AutosegError, Issue

_COPIED = (
    "PatientName PatientID IssuerOfPatientID TypeOfPatientID OtherPatientIDsSequence PatientBirthDate PatientBirthTime "
    "PatientSex PatientAge PatientSize PatientWeight PatientSpeciesDescription PatientSpeciesCodeSequence "
    "PatientBreedDescription PatientBreedCodeSequence BreedRegistrationSequence ResponsiblePerson ResponsiblePersonRole "
    "ResponsibleOrganization QualityControlSubject PatientIdentityRemoved DeidentificationMethod "
    "DeidentificationMethodCodeSequence StudyInstanceUID StudyDate StudyTime StudyID StudyDescription AccessionNumber "
    "IssuerOfAccessionNumberSequence ReferringPhysicianName ClinicalTrialSponsorName ClinicalTrialProtocolID "
    "ClinicalTrialProtocolName ClinicalTrialSiteID ClinicalTrialSiteName ClinicalTrialSubjectID "
    "ClinicalTrialSubjectReadingID ClinicalTrialTimePointID ClinicalTrialTimePointDescription"
)
PATIENT_AND_STUDY = tuple(_COPIED.split())
"""What is copied as it is. All else of the source stays there: device, institution, staff, protocol, private tags."""
_EMPTY = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber "
    "ReferringPhysicianName"
)
ALWAYS = tuple(_EMPTY.split())
"""Empty where the source lacks them: the standard wants them there."""
FRAME = ("FrameOfReferenceUID", "PositionReferenceIndicator")
IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
CHARACTER_SET = "SpecificCharacterSet"
UNICODE = "ISO_IR 192"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A series in the order of its slices, without voxels."""

    about: Any
    """Tags of patient, study, series and frame of reference."""
    images: tuple[tuple[str, str], ...]
    """SOP class and instance of each slice; all the same where one file holds all slices."""
    frames: tuple[int, ...]
    """Frame of each slice, from 1, where one file holds all slices."""
    geometry: Geometry
    positions: tuple[tuple[float, float, float], ...]
    """Of each slice, x, y, z in mm, as its header says."""
    plane: tuple[float, ...]
    """ImageOrientationPatient of the first slice."""
    thickness_mm: float

    @property
    def modality(self) -> str:
        """As the series says; ``OT`` where it does not."""
        return str(self.about.get("Modality") or "OT")

    def uid(self, name: str) -> str:
        """One of `IDENTITY`."""
        return str(self.about.get(name))

    @property
    def order(self) -> NDArray[np.intp]:
        """Slices in the order of the frames of the one file that holds them all; else as they are."""
        return np.argsort(self.frames) if self.frames else np.arange(len(self.images))

    def reference(self, z: int) -> Dataset:
        """To the image, or the frame of it, of a slice."""
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = self.images[z]
        if self.frames:
            item.ReferencedFrameNumber = self.frames[z]
        return item


def open_source(path: Path) -> Source:
    """The series at ``path``: a folder, ``FOLDER#UID``, or one file, which may have all slices as frames.

    Raises `AutosegError` for what is no series, for one whose slices do not form a grid, and for one that cannot be referred to.
    """
    series = _read(path)
    files = list(dict.fromkeys(item.file for item in series.slices))
    is_multiframe = any(item.tags.get("PerFrameFunctionalGroupsSequence") for item in series.slices)
    if (len(files) < len(series.slices) and not is_multiframe) or (is_multiframe and len(files) > 1):
        kind = "slices in several multi-frame files" if is_multiframe else "frames without their own positions"
        raise _refused(path, "dicom.no_frame_references", f"{kind}: DICOM objects cannot refer to them")
    about = read_tags(
        files[0], [*PATIENT_AND_STUDY, *FRAME, "SeriesInstanceUID", "SeriesNumber", "Modality", CHARACTER_SET]
    )
    with tags_of(files[0]):
        about.decode()
        missing = [name for name in IDENTITY if not about.get(name)]
        missing += [] if all(item.tags.get("SOPInstanceUID") for item in series.slices) else ["SOPInstanceUID"]
    if missing:
        raise _refused(
            path, "dicom.no_identity", f"lacks {', '.join(missing)}, which DICOM objects need to refer to the series"
        )
    first = series.slices[0]
    with tags_of(first.file):
        holder = owner_of(frame_owners(first.file, first.tags)[first.index], "PixelMeasuresSequence", "SliceThickness")
        thickness = 0.0 if holder is None else number(holder, "SliceThickness", 0.0)
        images = tuple((str(item.tags.SOPClassUID), str(item.tags.SOPInstanceUID)) for item in series.slices)
    return Source(
        about=about,
        images=images,
        frames=tuple(item.index + 1 for item in series.slices) if is_multiframe else (),
        geometry=series.header.geometry,
        positions=tuple(_triple(item.position) for item in series.slices),
        plane=tuple(float(value) for value in first.plane.ravel()),
        thickness_mm=thickness or series.header.geometry.spacing_mm[0],
    )


def _read(path: Path) -> Series:
    folder, _ = split_part(path)
    if folder.is_dir() and is_dicom_series(path):
        return read_series(path)
    if not path.is_file() or not is_dicom(path):
        raise _refused(path, "dicom.no_series", "not a DICOM series, so no DICOM object can refer to it")
    series = read_single(path)
    if not series.header.geometry.has_orientation:
        raise _refused(path, "dicom.no_position", "a flat image without a position in space")
    return series


def _triple(position: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = position.tolist()
    return x, y, z


def _refused(path: Path, code: str, message: str) -> AutosegError:
    return AutosegError(
        Issue(code=code, where=printable(path), message=message, fix="omit --as to write NIfTI instead")
    )


def copy_patient_and_study(target: Dataset, source: Source, texts: Sequence[str]) -> None:
    """Give ``target`` patient, study and frame of reference of its source, in a character set that ``texts`` can be written in, too."""
    about = source.about
    for name in (*PATIENT_AND_STUDY, *FRAME):
        if name in about:
            target[name] = about[name]
        elif name in ALWAYS or name == "PositionReferenceIndicator":
            setattr(target, name, "")
    own = about.get(CHARACTER_SET)
    if not all(text.isascii() for text in texts):
        target.SpecificCharacterSet = UNICODE
    elif own:
        target.SpecificCharacterSet = own
    elif CHARACTER_SET in target:
        del target.SpecificCharacterSet


def stand_ins(source: Source) -> list[Dataset]:
    """What highdicom needs to know of the images of a series, and nothing of the patient: it would refuse common faults."""
    step, *pixel = source.geometry.spacing_mm
    measures = {"PixelSpacing": decimals(pixel), "SliceThickness": decimals([source.thickness_mm])[0]}
    measures["SpacingBetweenSlices"] = decimals([step])[0]
    plane = {"ImageOrientationPatient": decimals(source.plane)}
    places = [{"ImagePositionPatient": decimals(position)} for position in source.positions]
    if not source.frames:
        return [_with(_stand_in(source, k), **measures, **plane, **place) for k, place in enumerate(places)]
    groups = {
        "PixelMeasuresSequence": [_with(Dataset(), **measures)],
        "PlaneOrientationSequence": [_with(Dataset(), **plane)],
    }
    frames = [_with(Dataset(), PlanePositionSequence=[_with(Dataset(), **places[k])]) for k in source.order]
    return [
        _with(
            _stand_in(source, 0),
            SharedFunctionalGroupsSequence=[_with(Dataset(), **groups)],
            PerFrameFunctionalGroupsSequence=frames,
            NumberOfFrames=len(frames),
        )
    ]


def decimals(values: Sequence[float]) -> list[DSfloat]:
    """Numbers in the 16 characters that DICOM allows."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def _with(tags: Dataset, **values: Any) -> Dataset:
    for name, value in values.items():
        setattr(tags, name, value)
    return tags


def _stand_in(source: Source, k: int) -> Dataset:
    tags = Dataset()
    tags.SOPClassUID, tags.SOPInstanceUID = source.images[k]
    for name in IDENTITY:
        setattr(tags, name, source.uid(name))
    for name in ALWAYS:
        setattr(tags, name, "")
    tags.Modality = source.modality
    _, tags.Rows, tags.Columns = source.geometry.shape
    return tags

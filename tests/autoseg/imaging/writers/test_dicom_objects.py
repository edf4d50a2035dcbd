"""Label maps as DICOM SEG and RTSTRUCT: read back by others' readers they are equal, in place, and say what they should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_files import PATIENT, UNIT, write_enhanced, write_study
from matplotlib.path import Path as MplPath
from numpy.typing import NDArray

from autoseg.imaging.readers import read_image
from autoseg.imaging.writers import KINDS, DrawnClass, Kind, Maker, require_classes, require_source, write_object
from autoseg.issues import AutosegError
from datasets_spec import coded_classes

SHAPE = (4, 5, 6)
AXES = [
    np.array([a * np.eye(3)[i], b * np.eye(3)[j]])
    for i, j in permutations(range(3), 2)
    for a, b in product((1.0, -1.0), repeat=2)
]
"""All 24 planes along the axes of the patient; with files in both orders these are 48 orientations."""
CLASSES = tuple(
    DrawnClass(coded=coded, values=(value,))
    for coded, value in zip(coded_classes(("kidney_left", "liver", "flux capacitor")), (2, 7, 300), strict=True)
)
MAKER = Maker(version="9.8.7", model="abdomen", key="k" * 64, parameters=(("mirroring", "on"), ("device", "CPU")))


def labels(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> NDArray[np.uint16]:
    """Random, so that no flip and no transposition passes; one slice is empty where there are several."""
    made = np.random.default_rng(seed).choice(np.array([0, 0, 2, 7, 300], np.uint16), shape)
    if shape[0] > 1:
        made[1] = 0
    return made


@dataclass(frozen=True)
class Grid:
    """Of a series as SimpleITK reads it, which knows nothing of ours."""

    image: SimpleITK.Image

    @classmethod
    def of(cls, folder: Path) -> Grid:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        return cls(reader.Execute())

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image.GetSize()[::-1]

    def indices(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 3) indices z, y, x of places x, y, z in mm."""
        axes = np.array(self.image.GetDirection()).reshape(3, 3) * self.image.GetSpacing()
        return np.linalg.solve(axes, (places - self.image.GetOrigin()).T).T[:, ::-1]


def ids(folder: Path) -> NDArray[np.int16]:
    """Voxels (Z, Y, X) of the made series: each has its own value, which says where it is."""
    return np.arange(math.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def seg_masks(path: Path, grid: Grid) -> dict[int, NDArray[np.bool_]]:
    """Masks of the segments on the grid, by pydicom: each voxel by its place in the patient."""
    tags = pydicom.dcmread(path)
    (shared,) = tags.SharedFunctionalGroupsSequence
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    plane = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    pixels = tags.pixel_array.reshape(-1, tags.Rows, tags.Columns)
    numbers = [int(segment.SegmentNumber) for segment in tags.SegmentSequence if segment.SegmentNumber]
    found = {number: np.zeros(grid.shape, bool) for number in numbers}
    for frame, group in zip(pixels, tags.PerFrameFunctionalGroupsSequence, strict=True):
        start = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for number in numbers:
            if tags.SegmentationType == "BINARY":
                owner = group.get("SegmentIdentificationSequence", shared.get("SegmentIdentificationSequence"))
                inside = frame.astype(bool) & (owner[0].ReferencedSegmentNumber == number)
            else:
                inside = frame == number
            rows, columns = np.nonzero(inside)
            places = start + rows[:, None] * spacing[0] * plane[1] + columns[:, None] * spacing[1] * plane[0]
            if len(places):
                near = grid.indices(places)
                assert np.abs(near - np.rint(near)).max() < 1e-3
                found[number][tuple(np.rint(near).astype(int).T)] = True
    return found


def structure_masks(path: Path, grid: Grid) -> dict[int, NDArray[np.bool_]]:
    """Masks of the structures on the grid, by pydicom and matplotlib: all polygons of a slice filled one over the other."""
    tags = pydicom.dcmread(path)
    found = {}
    for structure in tags.ROIContourSequence:
        mask = found[int(structure.ReferencedROINumber)] = np.zeros(grid.shape, bool)
        for contour in structure.get("ContourSequence", []):
            corners = grid.indices(np.array(contour.ContourData, float).reshape(-1, 3))
            (axis,) = np.flatnonzero(np.ptp(corners, axis=0) < 1e-3)  # the grid of SimpleITK has the slices first
            assert axis == 0
            assert contour.NumberOfContourPoints == len(corners)
            z = round(float(corners[0, 0]))
            assert abs(corners[0, 0] - z) < 1e-3
            yx = np.stack(np.mgrid[: grid.shape[1], : grid.shape[2]], axis=-1).reshape(-1, 2)
            inside = MplPath(np.vstack([corners[:, 1:], corners[:1, 1:]])).contains_points(yx)
            mask[z] |= inside.reshape(grid.shape[1:])
    return found


def on_grid(array: NDArray[Any], series: Path, grid: Grid) -> NDArray[Any]:
    """A label map in the axes of our reader, voxel by voxel moved to where SimpleITK read the same intensities."""
    own, other = read_image(series).array[0].ravel().astype(int), SimpleITK.GetArrayFromImage(grid.image).ravel()
    moved = np.zeros(array.size, array.dtype)
    moved[np.argsort(other)] = array.ravel()[np.argsort(own)]
    return moved.reshape(grid.shape)


def write(path: Path, array: NDArray[np.integer], series: Path, kind: Kind) -> pydicom.Dataset:
    write_object(path, array, CLASSES, kind=kind, images=[series], maker=MAKER)
    return pydicom.dcmread(path)


def check_round_trip(
    tmp_path: Path, series: Path, grid: Grid, array: NDArray[np.integer], kinds: Sequence[Kind] = KINDS
) -> None:
    expected = on_grid(array, series, grid)
    for kind in kinds:
        write(tmp_path / "object.dcm", array, series, kind)
        found = (structure_masks if kind == "rtstruct" else seg_masks)(tmp_path / "object.dcm", grid)
        assert sorted(found) == [1, 2, 3]
        for number, each in enumerate(CLASSES, start=1):
            assert np.array_equal(found[number], expected == each.values[0]), (kind, number)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("plane", range(len(AXES)))
def test_objects_are_in_place_in_all_orientations(tmp_path: Path, plane: int, reverse: bool) -> None:
    series = write_study(tmp_path / "ct", ids(tmp_path), plane=AXES[plane], reverse=reverse)
    check_round_trip(tmp_path, series, Grid.of(series), labels(seed=plane))


OBLIQUE = np.linalg.qr(np.array([[0.9, 0.3, -0.2], [-0.25, 0.8, 0.4], [0.1, -0.5, 0.9]]))[0][:2]


@pytest.mark.parametrize("num_slices", [1, SHAPE[0]])
def test_objects_are_in_place_oblique_and_on_a_single_slice(tmp_path: Path, num_slices: int) -> None:
    series = write_study(tmp_path / "ct", ids(tmp_path)[:num_slices], plane=OBLIQUE)
    array = labels((num_slices, *SHAPE[1:]))
    check_round_trip(tmp_path, series, Grid.of(series), array)
    found = highdicom.seg.segread(write_path(tmp_path, array, series)).get_volume(combine_segments=True)
    assert found.spacing == pytest.approx((2.5 if num_slices > 1 else 2.0, *UNIT[:2]))


def write_path(tmp_path: Path, array: NDArray[np.integer], series: Path) -> Path:
    write(tmp_path / "seg.dcm", array, series, "dicom-seg")
    return tmp_path / "seg.dcm"


def test_frames_of_one_file_are_referred_to_by_number(tmp_path: Path) -> None:
    order = [2, 0, 3, 1]
    plain = write_study(tmp_path / "ct", ids(tmp_path), plane=OBLIQUE)
    series = write_enhanced(tmp_path / "enhanced" / "ct.dcm", ids(tmp_path), plane=OBLIQUE, order=order)
    array = labels()
    check_round_trip(tmp_path, series, Grid.of(plain), array)
    source = pydicom.dcmread(series)
    tags = write(tmp_path / "object.dcm", array, series, "dicom-seg")
    for group in tags.PerFrameFunctionalGroupsSequence:
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        place = source.PerFrameFunctionalGroupsSequence[image.ReferencedFrameNumber - 1].PlanePositionSequence[0]
        assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert group.PlanePositionSequence[0].ImagePositionPatient == place.ImagePositionPatient
    for structure in write(tmp_path / "object.dcm", array, series, "rtstruct").ROIContourSequence:
        for contour in structure.ContourSequence:
            place = source.PerFrameFunctionalGroupsSequence[contour.ContourImageSequence[0].ReferencedFrameNumber - 1]
            off = np.array(contour.ContourData[:3], float) - place.PlanePositionSequence[0].ImagePositionPatient
            assert abs(off @ np.cross(*OBLIQUE)) < 1e-6


def test_frames_refer_to_the_slice_that_they_were_drawn_on(tmp_path: Path) -> None:
    series, array = write_study(tmp_path / "ct", ids(tmp_path), plane=AXES[0], reverse=True), labels()
    sources = {tags.SOPInstanceUID: tags for tags in map(pydicom.dcmread, series.iterdir())}
    seg = write(tmp_path / "object.dcm", array, series, "dicom-seg")
    for group in seg.PerFrameFunctionalGroupsSequence:
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        source = sources[image.ReferencedSOPInstanceUID]
        assert source.ImagePositionPatient == group.PlanePositionSequence[0].ImagePositionPatient
    (referred,) = seg.ReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence} == set(sources)
    drawn = write(tmp_path / "object.dcm", array, series, "rtstruct")
    for structure in drawn.ROIContourSequence:
        for contour in structure.ContourSequence:
            source = sources[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            assert float(contour.ContourData[2]) == pytest.approx(source.ImagePositionPatient[2], abs=1e-6)
    study = drawn.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    images = study.RTReferencedSeriesSequence[0].ContourImageSequence
    assert {item.ReferencedSOPInstanceUID for item in images} == set(sources)


@pytest.mark.parametrize("kind", KINDS)
def test_patient_and_study_follow_the_source_and_nothing_else_leaves(tmp_path: Path, kind: Kind) -> None:
    series = write_study(tmp_path / "ct", ids(tmp_path), plane=AXES[0])
    tags = write(tmp_path / "object.dcm", labels(), series, kind)
    assert {name: str(tags.get(name)) for name in PATIENT} == PATIENT
    assert tags.FrameOfReferenceUID == "1.2.826.0.1.4"
    assert tags.SeriesInstanceUID != "1.2.826.0.1.3"
    assert b"secret" not in (tmp_path / "object.dcm").read_bytes().lower()
    again = write(tmp_path / "again.dcm", labels(), series, kind)
    assert again.SOPInstanceUID != tags.SOPInstanceUID  # another instance, made at another time
    if kind != "rtstruct":
        assert again.PixelData == tags.PixelData


@pytest.mark.parametrize("kind", KINDS)
def test_objects_say_what_made_them(tmp_path: Path, kind: Kind) -> None:
    series = write_study(tmp_path / "ct", ids(tmp_path), plane=AXES[0])
    tags = write(tmp_path / "object.dcm", labels(), series, kind)
    assert (tags.Manufacturer, tags.SoftwareVersions, tags.DeviceSerialNumber) == ("autoseg", "9.8.7", "k" * 64)
    assert tags.SeriesDescription == "autoseg abdomen"
    if kind == "rtstruct":
        assert tags.StructureSetDescription == f"model={'k' * 64}, mirroring=on, device=CPU"
        return
    assert tags.ContentCreatorName == "autoseg"
    segment = tags.SegmentSequence[-1]
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("autoseg abdomen", "9.8.7")
    assert algorithm.AlgorithmParameters == f"model={'k' * 64},mirroring=on,device=CPU"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"


def test_segments_have_names_codes_and_colours(tmp_path: Path) -> None:
    series = write_study(tmp_path / "ct", ids(tmp_path), plane=AXES[0])
    tags = write(tmp_path / "object.dcm", labels(), series, "dicom-seg")
    kidney, liver, other = tags.SegmentSequence
    assert [segment.SegmentLabel for segment in tags.SegmentSequence] == ["kidney_left", "liver", "flux capacitor"]
    (kind,) = kidney.SegmentedPropertyTypeCodeSequence
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert kidney.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert "SegmentedPropertyTypeModifierCodeSequence" not in liver.SegmentedPropertyTypeCodeSequence[0]
    (kind,) = other.SegmentedPropertyTypeCodeSequence
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("flux capacitor", "99AUTOSEG")
    assert tags.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99AUTOSEG"
    colour = highdicom.color.CIELabColor.from_rgb(*CLASSES[1].coded.rgb)
    assert tuple(liver.RecommendedDisplayCIELabValue) == colour.value
    drawn = write(tmp_path / "object.dcm", labels(), series, "rtstruct")
    assert [roi.ROIName for roi in drawn.StructureSetROISequence] == ["kidney_left", "liver", "flux capacitor"]
    assert tuple(drawn.ROIContourSequence[1].ROIDisplayColor) == CLASSES[1].coded.rgb
    codes = [item.RTROIIdentificationCodeSequence[0].CodeValue for item in drawn.RTROIObservationsSequence]
    assert codes == ["64033007", "10200004", "flux capacitor"]


OVERLAPPING = (
    DrawnClass(coded=CLASSES[0].coded, values=(2, 7, 300)),
    DrawnClass(coded=CLASSES[1].coded, values=(7,)),
)


def test_classes_that_overlap_are_segments_that_overlap(tmp_path: Path) -> None:
    series, array = write_study(tmp_path / "ct", ids(tmp_path), plane=AXES[0]), labels()
    grid = Grid.of(series)
    expected = on_grid(array, series, grid)
    for kind in KINDS[::2]:
        write_object(tmp_path / "a.dcm", array, OVERLAPPING, kind=kind, images=[series], maker=MAKER)
        found = (structure_masks if kind == "rtstruct" else seg_masks)(tmp_path / "a.dcm", grid)
        assert np.array_equal(found[1], expected > 0)
        assert np.array_equal(found[2], expected == 7)
        require_classes(OVERLAPPING, kind)
    require_classes(CLASSES, "dicom-labelmap")
    with pytest.raises(AutosegError) as caught:
        require_classes(OVERLAPPING, "dicom-labelmap")
    assert caught.value.codes == ("dicom.overlap",)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_label_map_is_an_object_without_voxels(tmp_path: Path, kind: Kind) -> None:
    series = write_study(tmp_path / "ct", ids(tmp_path), plane=AXES[0])
    tags = write(tmp_path / "object.dcm", np.zeros(SHAPE, np.uint8), series, kind)
    grid = Grid.of(series)
    found = (structure_masks if kind == "rtstruct" else seg_masks)(tmp_path / "object.dcm", grid)
    assert sorted(found) == [1, 2, 3]
    assert not any(mask.any() for mask in found.values())
    assert tags.get("NumberOfFrames", 1) <= len(CLASSES)


def test_names_in_any_script_go_with_patients_in_theirs(tmp_path: Path) -> None:
    series = write_study(
        tmp_path / "ct", ids(tmp_path), plane=AXES[0], SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Änne"
    )
    tags = write(tmp_path / "object.dcm", labels(), series, "dicom-seg")
    assert (tags.SpecificCharacterSet, tags.PatientName) == ("ISO_IR 100", "Müller^Änne")
    (liver,) = coded_classes(("печень",))
    for kind in KINDS:
        classes = (DrawnClass(coded=liver, values=(2, 7, 300)),)
        write_object(tmp_path / "a.dcm", labels(), classes, kind=kind, images=[series], maker=MAKER)
        tags = pydicom.dcmread(tmp_path / "a.dcm")
        name = tags.StructureSetROISequence[0].ROIName if kind == "rtstruct" else tags.SegmentSequence[-1].SegmentLabel
        assert (tags.SpecificCharacterSet, tags.PatientName, name) == ("ISO_IR 192", "Müller^Änne", "печень")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_faults_of_patient_tags_are_copied_and_missing_ones_left_empty(tmp_path: Path) -> None:
    """Anonymised series lack what the standard wants, and old ones write dates and sexes in their own way."""
    gone = dict.fromkeys(["PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyTime", "Modality"])
    changes = {"PatientSex": "W", "StudyDate": "2024.05.06", "FrameOfReferenceUID": "1.2.03", **gone}
    series = write_study(tmp_path / "ct", ids(tmp_path), plane=AXES[0], **changes)
    for kind in KINDS:
        tags = write(tmp_path / "object.dcm", labels(), series, kind)
        assert (tags.PatientSex, tags.StudyDate) == ("W", "2024.05.06")
        assert (tags.PatientName, tags.PatientID, tags.AccessionNumber) == ("", "", "")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"StudyInstanceUID": None}, "dicom.no_identity"),
        ({"FrameOfReferenceUID": None}, "dicom.no_identity"),
        ({"SOPInstanceUID": None}, "dicom.no_identity"),
        ({"leave_out": (1,)}, "dicom.uneven_slices"),
        ({}, None),
    ],
)
def test_series_that_cannot_be_referred_to_are_refused(
    tmp_path: Path, changes: dict[str, Any], code: str | None
) -> None:
    series = write_study(tmp_path / "ct", ids(tmp_path), plane=AXES[0], **changes)
    if code is None:
        require_source(series)
        return
    with pytest.raises(AutosegError) as caught:
        require_source(series)
    assert caught.value.codes == (code,)


def test_what_is_no_series_is_refused(tmp_path: Path) -> None:
    flat = write_study(tmp_path / "flat", ids(tmp_path)[:1], plane=AXES[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1")
    (file,) = flat.iterdir()
    tags = pydicom.dcmread(file)
    del tags.ImagePositionPatient, tags.ImageOrientationPatient
    tags.file_meta.MediaStorageSOPClassUID = tags.SOPClassUID
    tags.save_as(tmp_path / "flat.dcm")
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "empty").mkdir()
    dose = write_enhanced(tmp_path / "dose" / "a.dcm", ids(tmp_path), plane=AXES[0], order=[0, 1, 2, 3])
    tags = pydicom.dcmread(dose)  # frames that follow from one position, as doses have them
    first = tags.PerFrameFunctionalGroupsSequence[0]
    tags.update(first.PlanePositionSequence[0])
    tags.update(first.PlaneOrientationSequence[0])
    tags.update(first.PixelMeasuresSequence[0])
    del tags.PerFrameFunctionalGroupsSequence, tags.SharedFunctionalGroupsSequence
    tags.GridFrameOffsetVector = [0, 2.5, 5, 7.5]
    tags.save_as(dose)
    for path, code in (
        (tmp_path / "flat.dcm", "dicom.no_position"),
        (tmp_path / "a.nii.gz", "dicom.no_series"),
        (tmp_path / "empty", "dicom.no_series"),
        (dose, "dicom.no_frame_references"),
    ):
        with pytest.raises(AutosegError) as caught:
            require_source(path)
        assert caught.value.codes == (code,)


def test_channels_of_one_study_are_named_as_sources(tmp_path: Path) -> None:
    first = write_study(tmp_path / "a", ids(tmp_path), plane=AXES[0])
    second = write_study(tmp_path / "b", ids(tmp_path), plane=AXES[0], SeriesInstanceUID="1.2.826.0.1.33")
    foreign = write_study(
        tmp_path / "c", ids(tmp_path), plane=AXES[0], SeriesInstanceUID="1.2.826.0.1.34", StudyInstanceUID="1.2.9"
    )
    images = [first, second, foreign, tmp_path / "d.nii.gz"]
    write_object(tmp_path / "seg.dcm", labels(), CLASSES, kind="dicom-seg", images=images, maker=MAKER)
    named = {item.SeriesInstanceUID for item in pydicom.dcmread(tmp_path / "seg.dcm").ReferencedSeriesSequence}
    assert named == {"1.2.826.0.1.3", "1.2.826.0.1.33"}

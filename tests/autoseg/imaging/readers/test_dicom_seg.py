"""DICOM SEG and RTSTRUCT: segments with names, places and overlaps, placed in the grid of their image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import Contours, write_series, write_structures
from matplotlib.path import Path as MplPath
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
    generate_uid,
)

from autoseg.imaging.image import Geometry
from autoseg.imaging.orientation import align_label_map
from autoseg.imaging.readers import (
    is_segmentation,
    list_segments,
    read_header,
    read_image,
    read_label_map,
    read_segments,
    referenced_series,
    write_image,
    write_label_map,
)
from autoseg.issues import AutosegError

SHAPE = (6, 5, 7)
IMAGE = Geometry(shape=SHAPE, spacing_mm=(2.5, 0.5, 0.75), origin_mm=(3.0, 4.0, -10.0))


def masks() -> dict[int, NDArray[np.bool_]]:
    """Three segments that do not touch: one in slices 1 and 2, one in slice 4, one in 1."""
    found = {number: np.zeros(SHAPE, bool) for number in (1, 2, 5)}
    found[1][1:3, 1:3, 2:6] = True
    found[2][4, 0:4, 0] = True
    found[5][1, 4, 3:] = True
    return found


def write_segments(path: Path, segments: dict[int, NDArray[np.bool_]], kind: str = "BINARY", **changes: object) -> Path:
    """Frames of the slices that hold anything, and no others."""
    tags = Dataset()
    tags.file_meta = FileMetaDataset()
    storage = UID("1.2.840.10008.5.1.4.1.1.66.7") if kind == "LABELMAP" else SegmentationStorage
    tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = storage
    tags.SOPInstanceUID = tags.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    tags.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    tags.Modality, tags.SegmentationType = "SEG", kind
    tags.Rows, tags.Columns = SHAPE[1:]
    tags.SamplesPerPixel, tags.PhotometricInterpretation, tags.PixelRepresentation = 1, "MONOCHROME2", 0
    tags.BitsAllocated = tags.BitsStored = 1 if kind == "BINARY" else 8
    tags.HighBit = tags.BitsStored - 1
    if kind == "FRACTIONAL":
        tags.MaximumFractionalValue = 200
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 3.0
    if changes.get("with_step", True):
        measures.SpacingBetweenSlices = 2.5
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    tags.SharedFunctionalGroupsSequence, tags.SegmentSequence = [shared], []
    for number in segments:
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, f"class {number}"
        tags.SegmentSequence.append(segment)
    frames, pixels = [], []
    wanted = (
        [(0, z) for z in range(SHAPE[0])]
        if kind == "LABELMAP"
        else [(number, int(z)) for number, mask in segments.items() for z in np.flatnonzero(mask.any(axis=(1, 2)))]
    )
    for number, z in wanted:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [3.0, 4.0, -10.0 + 2.5 * z]
        frame.PlanePositionSequence = [place]
        if number:
            owner = Dataset()
            owner.ReferencedSegmentNumber = number
            frame.SegmentIdentificationSequence = [owner]
            pixels.append(segments[number][z])
        else:
            pixels.append(sum(n * mask[z] for n, mask in segments.items()))
        frames.append(frame)
    tags.PerFrameFunctionalGroupsSequence, tags.NumberOfFrames = frames, len(frames)
    stacked = np.array(pixels)
    if kind == "BINARY":
        raw = np.packbits(stacked.ravel(), bitorder="little").tobytes()
    else:
        raw = (stacked * (101 if kind == "FRACTIONAL" else 1)).astype(np.uint8).tobytes()
    tags.PixelData = raw + b"\0" * (len(raw) % 2)
    if changes.get("compress"):
        tags.compress(RLELossless)
    tags.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("with_step", [True, False])
def test_segments_are_placed_correctly(tmp_path: Path, kind: str, with_step: bool) -> None:
    path = write_segments(tmp_path / "seg.dcm", masks(), kind, with_step=with_step)
    assert is_segmentation(path)
    found = read_segments(path)
    assert [(segment.number, segment.name) for segment in found.segments] == [
        (1, "class 1"),
        (2, "class 2"),
        (5, "class 5"),
    ]
    assert found.overlaps() == {}
    assert bool(found.notes) == (kind == "FRACTIONAL")
    header, label_map = read_header(path), read_label_map(path)
    assert header.geometry == label_map.geometry == found.geometry
    assert header.may_be_part
    assert found.geometry.spacing_mm == pytest.approx((2.5, 0.5, 0.75))
    expected = sum(number * mask for number, mask in masks().items())
    assert np.array_equal(align_label_map(label_map, IMAGE), expected)
    assert np.array_equal(align_label_map(read_label_map(f"{path}#2"), IMAGE), masks()[2])


def test_a_segmentation_is_placed_in_an_image_stored_in_another_orientation(tmp_path: Path) -> None:
    path = write_segments(tmp_path / "seg.dcm", masks())
    turned = IMAGE.model_copy(
        update={
            "origin_mm": (3.0, 4.0 + 4 * 0.5, -10.0),
            "direction": ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)),
        }
    )
    got = align_label_map(read_label_map(path), turned)
    assert np.array_equal(got, sum(n * mask for n, mask in masks().items())[:, ::-1])


def test_a_segmentation_of_another_image_is_refused(tmp_path: Path) -> None:
    label_map = read_label_map(write_segments(tmp_path / "seg.dcm", masks()))
    for changes in ({"origin_mm": (3.3, 4.0, -10.0)}, {"shape": (3, 5, 7)}, {"spacing_mm": (2.0, 0.5, 0.75)}):
        with pytest.raises(AutosegError) as caught:
            align_label_map(label_map, IMAGE.model_copy(update=changes))
        assert caught.value.codes == ("labels.outside_image",)


def test_overlapping_segments_are_masks_but_no_label_map(tmp_path: Path) -> None:
    segments = masks()
    segments[2][1, 1, 2:4] = True
    path = write_segments(tmp_path / "seg.dcm", segments)
    found = read_segments(path)
    assert found.overlaps() == {(1, 2): 2}
    first = found.geometry.origin_mm[2]
    for segment in found.segments:
        begin = round((first + 10) / 2.5)
        assert np.array_equal(segment.mask, segments[segment.number][begin : begin + found.geometry.shape[0]])
    with pytest.raises(AutosegError) as caught:
        read_label_map(path)
    assert caught.value.codes == ("reader.overlapping_segments",)
    assert np.array_equal(align_label_map(read_label_map(f"{path}#2"), IMAGE), segments[2])


def test_run_length_compressed_segments_are_read(tmp_path: Path) -> None:
    path = write_segments(tmp_path / "seg.dcm", masks(), "FRACTIONAL", compress=True)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == RLELossless
    assert np.array_equal(align_label_map(read_label_map(path), IMAGE), sum(n * mask for n, mask in masks().items()))


def test_faulty_segmentations_are_refused(tmp_path: Path) -> None:
    path = write_segments(tmp_path / "seg.dcm", masks())
    with pytest.raises(AutosegError) as caught:
        read_label_map(f"{path}#7")
    assert caught.value.codes == ("reader.no_such_segment",)
    with pytest.raises(AutosegError) as caught:
        read_image([path])
    assert caught.value.codes == ("dicom.not_an_image",)
    tags = pydicom.dcmread(path)
    tags.PixelData = tags.PixelData[:8]
    tags.save_as(tmp_path / "short.dcm")
    with pytest.raises(AutosegError) as caught:
        read_label_map(tmp_path / "short.dcm")
    assert caught.value.codes == ("reader.truncated",)
    del tags.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    tags.save_as(tmp_path / "lost.dcm")
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path / "lost.dcm")
    assert caught.value.codes == ("reader.bad_header",)


def test_a_broken_number_of_a_segment_is_named_with_its_file(tmp_path: Path) -> None:
    path = write_segments(tmp_path / "seg.dcm", masks())
    tags = pydicom.dcmread(path)
    tags.SegmentSequence[0].SegmentNumber = [2, 98]
    tags.save_as(path)
    with pytest.raises(AutosegError) as caught:
        read_segments(path)
    assert [(issue.code, issue.where) for issue in caught.value.issues] == [("reader.bad_header", str(path))]


def test_real_segments_agree_with_their_nrrd_label_maps(real_data: Path) -> None:
    folder = real_data / "dicom_seg_ct3slice"
    image = read_header(folder / "ct-3slice").geometry
    liver = align_label_map(read_label_map(folder / "liver.dcm"), image)
    assert np.array_equal(liver, read_label_map(folder / "liver_seg.nrrd").array)
    maps = [read_label_map(folder / f"partial_overlaps-{k}.nrrd").array for k in (1, 2, 3)]
    found = read_segments(folder / "partial_overlaps.dcm")
    assert [segment.name for segment in found.segments] == ["GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE"]
    assert found.overlaps() == {(1, 2): 3017, (1, 3): 95, (2, 3): 50}
    for segment in found.segments:
        expected = next(array == segment.number for array in maps if (array == segment.number).any())
        assert np.array_equal(
            align_label_map(read_label_map(f"{folder}/partial_overlaps.dcm#{segment.number}"), image), expected
        )


def test_a_segment_can_be_written_in_the_grid_of_its_image(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "dicom_seg_ct3slice"
    image = read_header(folder / "ct-3slice").geometry
    write_label_map(tmp_path / "a.nii.gz", align_label_map(read_label_map(folder / "liver.dcm"), image), image)
    assert int(read_label_map(tmp_path / "a.nii.gz").array.sum()) == 107098


# --- RTSTRUCT ---


def blob(rng: np.random.Generator, centre: tuple[float, float], radius: float) -> NDArray[np.float64]:
    """A star-shaped outline with corners between voxels."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
    reach = radius * rng.uniform(0.6, 1.0, 40)
    return np.array(centre) + np.column_stack([np.sin(angles), np.cos(angles)]) * reach[:, None]


def inside(corners: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which centres lie in an outline, by matplotlib: an independent rasteriser."""
    centres = np.array(list(np.ndindex(*shape)))
    return MplPath(corners).contains_points(centres).reshape(shape)


@pytest.mark.parametrize("plane", [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [0.8, 0.6, 0, -0.6, 0.8, 0]])
def test_structures_are_the_voxels_inside_their_contours(tmp_path: Path, plane: list[float]) -> None:
    """In all orientations, with a hole, and with two parts in one slice; the series lies in a folder beside the file's."""
    shape, rng = (4, 40, 50), np.random.default_rng(0)
    write_series(tmp_path / "p" / "other", shape, plane, series="1.2.4")
    geometry = read_header(write_series(tmp_path / "p" / "ct", shape, plane)).geometry
    outer, hole, apart = blob(rng, (15.2, 16.1), 14), blob(rng, (15.2, 16.1), 5), blob(rng, (28.7, 38.3), 9)
    contours: Contours = {3: [(1, outer), (1, hole), (2, outer), (2, apart)], 7: [(3, apart)]}
    (tmp_path / "p" / "rt").mkdir()
    path = write_structures(tmp_path / "p" / "rt" / "rt.dcm", contours, geometry)
    expected = np.zeros(shape, np.uint16)
    expected[1] = 3 * (inside(outer, shape[1:]) ^ inside(hole, shape[1:]))
    expected[2] = 3 * (inside(outer, shape[1:]) ^ inside(apart, shape[1:]))
    expected[3] = 7 * inside(apart, shape[1:])
    assert is_segmentation(path)
    assert list_segments(path).by_number == {3: "organ 3", 7: "organ 7"}
    assert referenced_series(path) == ("1.2.3",)
    got = read_label_map(path)
    assert got.geometry == geometry
    assert (expected > 0).sum() > 500
    assert np.array_equal(got.array, expected)


def test_structures_may_overlap_and_may_be_empty(tmp_path: Path) -> None:
    geometry = read_header(write_series(tmp_path / "ct", (3, 20, 20), [1, 0, 0, 0, 1, 0])).geometry
    square = np.array([[3.5, 3.5], [3.5, 9.5], [9.5, 9.5], [9.5, 3.5]])
    path = write_structures(tmp_path / "rt.dcm", {1: [(1, square)], 2: [(1, square + 3)], 4: []}, geometry)
    found = read_segments(path)
    assert [int(segment.mask.sum()) for segment in found.segments] == [36, 36, 0]
    assert found.overlaps() == {(1, 2): 9}
    assert read_header(path).notes == ()
    tags = pydicom.dcmread(path)
    tags.ROIContourSequence[1].ContourSequence[0].ContourGeometricType = "OPEN_PLANAR"
    tags.save_as(path)
    assert [int(segment.mask.sum()) for segment in read_segments(path).segments] == [36, 0, 0]
    (note,) = read_header(path).notes
    assert (note.code, "organ 2 (OPEN_PLANAR)" in note.message) == ("dicom.open_contours", True)


def test_structures_numbered_from_zero_keep_their_names(tmp_path: Path) -> None:
    geometry = read_header(write_series(tmp_path / "ct", (3, 20, 20), [1, 0, 0, 0, 1, 0])).geometry
    square = np.array([[3.5, 3.5], [3.5, 9.5], [9.5, 9.5], [9.5, 3.5]])
    path = write_structures(tmp_path / "rt.dcm", {0: [(1, square)], 1: [(2, square)]}, geometry)
    found = read_segments(path)
    assert [(segment.number, segment.name, segment.slices) for segment in found.segments] == [
        (1, "organ 0", (1,)),
        (2, "organ 1", (2,)),
    ]


def test_cut_structures_are_refused_wherever_they_end(tmp_path: Path) -> None:
    geometry = read_header(write_series(tmp_path / "ct", (3, 20, 20), [1, 0, 0, 0, 1, 0])).geometry
    square = np.array([[3.5, 3.5], [3.5, 9.5], [9.5, 9.5], [9.5, 3.5]])
    path = write_structures(tmp_path / "rt.dcm", {1: [(0, square), (1, square)], 2: [(1, square)]}, geometry)
    content = path.read_bytes()
    for length in range(200, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(AutosegError):
            read_label_map(path)


def test_structures_need_their_series(tmp_path: Path) -> None:
    geometry = read_header(write_series(tmp_path / "ct", (3, 20, 20), [1, 0, 0, 0, 1, 0])).geometry
    square = np.array([[3.5, 3.5], [3.5, 9.5], [9.5, 9.5], [9.5, 3.5]])
    for contours, series, code in (
        ({1: [(1, square)]}, "1.2.77", "dicom.no_reference_series"),
        ({1: [(3, square)]}, "1.2.3", "dicom.contours_off_grid"),
        ({1: [(1, square + 20)]}, "1.2.3", "dicom.contours_off_grid"),
        ({1: [(1, square - [0, 11])]}, "1.2.3", "dicom.contours_off_grid"),
    ):
        path = write_structures(tmp_path / "rt.dcm", contours, geometry, series)
        with pytest.raises(AutosegError) as caught:
            read_label_map(path)
        assert caught.value.codes == (code,)


def test_structures_are_drawn_on_the_one_volume_in_their_folder_where_their_series_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    geometry = Geometry(shape=(3, 20, 20), spacing_mm=(2.0, 1.0, 1.0), origin_mm=(5.0, 6.0, 7.0))
    square = np.array([[3.5, 3.5], [3.5, 9.5], [9.5, 9.5], [9.5, 3.5]])
    path = write_structures(folder / "rt.dcm", {1: [(1, square)]}, geometry)
    write_image(folder / "ct.nii.gz", np.zeros(geometry.shape), geometry)
    label = read_label_map(path)
    assert np.argwhere(label.array).min(axis=0).tolist() == [1, 4, 4]
    assert label.array.sum() == 36
    assert [note.code for note in read_header(path).notes] == ["dicom.other_grid"]
    write_image(folder / "pet.nii.gz", np.zeros(geometry.shape), geometry)
    with pytest.raises(AutosegError) as caught:
        read_label_map(path)
    assert caught.value.codes == ("dicom.no_reference_series",)


def test_contours_without_points_are_skipped_and_those_without_a_type_are_closed(tmp_path: Path) -> None:
    geometry = read_header(write_series(tmp_path / "ct", (3, 20, 20), [1, 0, 0, 0, 1, 0])).geometry
    square = np.array([[3.5, 3.5], [3.5, 9.5], [9.5, 9.5], [9.5, 3.5]])
    path = write_structures(tmp_path / "rt.dcm", {1: [(1, square), (2, square)]}, geometry)
    tags = pydicom.dcmread(path)
    first, second = tags.ROIContourSequence[0].ContourSequence
    first.ContourData = []
    del second.ContourGeometricType
    tags.save_as(path)
    assert np.flatnonzero(read_label_map(path).array.any(axis=(1, 2))).tolist() == [2]
    second.ContourData = [1, 2, 3, 4]
    tags.save_as(path)
    with pytest.raises(AutosegError) as caught:
        read_label_map(path)
    assert caught.value.codes == ("reader.bad_header",)


def test_structures_are_no_image_and_beside_slices_no_slice(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct", (3, 20, 20), [1, 0, 0, 0, 1, 0])
    path = write_structures(folder / "rt.dcm", {1: []}, read_header(folder).geometry)
    assert read_header(folder).geometry.shape == (3, 20, 20)
    with pytest.raises(AutosegError) as caught:
        read_image(path)
    assert caught.value.codes == ("dicom.not_an_image",)


def test_segments_of_flat_images_are_named_as_such(tmp_path: Path) -> None:
    path = write_segments(tmp_path / "seg.dcm", masks())
    tags = pydicom.dcmread(path)
    for frame in tags.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence
    tags.save_as(path)
    with pytest.raises(AutosegError) as caught:
        read_label_map(path)
    assert caught.value.codes == ("dicom.flat_segmentation",)

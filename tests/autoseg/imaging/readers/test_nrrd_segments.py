"""Segments of 3D Slicer's NRRD files: names, values, layers, and a grid that may be a part of the image's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from autoseg.imaging.orientation import align_label_map
from autoseg.imaging.readers import (
    is_segmentation,
    list_segments,
    read_header,
    read_label_map,
    read_segments,
    write_label_map,
)
from autoseg.issues import AutosegError

SHAPE = (3, 4, 5)


def write_slicer(
    path: Path, layers: Sequence[NDArray], segments: Sequence[Mapping[str, object]], like: SimpleITK.Image | None = None
) -> Path:
    """Label maps in layers, and what the header says of each segment."""
    images = [SimpleITK.GetImageFromArray(np.asarray(layer, np.uint8)) for layer in layers]
    image = images[0] if len(images) == 1 else SimpleITK.Compose(images)
    if like is not None:
        image.CopyInformation(like)
    for number, entries in enumerate(segments):
        for key, value in entries.items():
            image.SetMetaData(f"Segment{number}_{key}", str(value))
    SimpleITK.WriteImage(image, str(path))
    return path


def test_values_are_numbers_where_no_two_segments_share_one(tmp_path: Path) -> None:
    array = np.resize([0, 3, 8, 9], SHAPE)
    path = write_slicer(
        tmp_path / "a.seg.nrrd",
        [array],
        [
            {"Name": "liver", "Layer": 0, "LabelValue": 8},
            {"ID": "Segment_2", "Layer": 0, "LabelValue": 3},
            {"Name": "empty: none", "Layer": 0, "LabelValue": 2},
        ],
    )
    assert is_segmentation(path)
    assert dict(list_segments(path).by_number) == {8: "liver", 3: "Segment_2", 2: "empty: none"}
    assert not list_segments(path).may_overlap
    assert np.array_equal(read_label_map(path).array, array)
    assert np.array_equal(read_label_map(f"{path}#8").array, array == 8)
    assert [int(segment.mask.sum()) for segment in read_segments(path).segments] == [0, 15, 15]
    with pytest.raises(AutosegError) as caught:
        read_label_map(f"{path}#4")
    assert caught.value.codes == ("reader.no_such_segment",)


@pytest.mark.parametrize(
    "places", [True, False], ids=["with layers and values", "one mask for each segment, as before 2020"]
)
def test_layers_may_overlap(tmp_path: Path, places: bool) -> None:
    first, second = np.resize([0, 1], SHAPE), np.resize([1, 0, 0], SHAPE)
    said = [{"Layer": 0, "LabelValue": 1}, {"Layer": 1, "LabelValue": 1}] if places else [{}, {}]
    path = write_slicer(
        tmp_path / "a.seg.nrrd",
        [first, second],
        [{"Name": name, **more} for name, more in zip("ab", said, strict=True)],
    )
    found = list_segments(path)
    assert (dict(found.by_number), found.may_overlap) == ({1: "a", 2: "b"}, True)
    assert np.array_equal(read_label_map(f"{path}#1").array, first)
    assert np.array_equal(read_label_map(f"{path}#2").array, second)
    with pytest.raises(AutosegError) as caught:
        read_label_map(path)
    assert caught.value.codes == ("reader.overlapping_segments",)


def test_files_without_segments_are_label_maps(tmp_path: Path) -> None:
    path = write_slicer(tmp_path / "a.seg.nrrd", [np.resize([0, 3], SHAPE)], [])
    assert not is_segmentation(path)
    assert set(np.unique(read_label_map(path).array)) == {0, 3}
    assert not read_header(path).may_be_part


@pytest.mark.parametrize(
    "entry", [{"Layer": 2, "LabelValue": 1}, {"Layer": 0, "LabelValue": "x"}, {"Layer": 0, "LabelValue": 0}]
)
def test_invalid_positions_are_refused(tmp_path: Path, entry: dict[str, object]) -> None:
    path = write_slicer(tmp_path / "a.seg.nrrd", [np.resize([0, 1], SHAPE)], [{"Name": "a", **entry}])
    with pytest.raises(AutosegError) as caught:
        read_label_map(path)
    assert caught.value.codes == ("reader.bad_header",)


def test_real_segments_in_layers_agree_with_dicom_seg(real_data: Path, tmp_path: Path) -> None:
    """The same five segments, three of which overlap, as DICOM SEG and as three NRRD label maps put into layers."""
    folder = real_data / "dicom_seg_ct3slice"
    image = read_header(folder / "ct-3slice").geometry
    layers = [SimpleITK.ReadImage(str(folder / f"partial_overlaps-{k}.nrrd")) for k in (1, 2, 3)]
    arrays = [SimpleITK.GetArrayFromImage(layer) for layer in layers]
    dicom = read_segments(folder / "partial_overlaps.dcm")
    said = [
        {"Name": segment.name, "Layer": layer, "LabelValue": segment.number}
        for segment in dicom.segments
        for layer, array in enumerate(arrays)
        if (array == segment.number).any()
    ]
    path = write_slicer(tmp_path / "a.seg.nrrd", arrays, said, like=layers[0])
    found = read_segments(path)
    assert {s.number: s.name for s in found.segments} == {s.number: s.name for s in dicom.segments}
    assert found.overlaps() == dicom.overlaps()
    for segment in dicom.segments:
        ours, theirs = (
            align_label_map(read_label_map(f"{file}#{segment.number}"), image)
            for file in (path, folder / "partial_overlaps.dcm")
        )
        assert np.array_equal(ours, theirs)


def test_a_real_segmentation_cut_to_its_extent_is_placed_in_the_image(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "dicom_seg_ct3slice"
    image = read_header(folder / "ct-3slice").geometry
    whole = SimpleITK.ReadImage(str(folder / "liver_seg.nrrd"))
    z, y, x = (slice(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(SimpleITK.GetArrayFromImage(whole)))
    part = whole[x, y, z]
    path = write_slicer(tmp_path / "a.seg.nrrd", [SimpleITK.GetArrayFromImage(part)], [{"Name": "liver"}], like=part)
    assert read_header(path).geometry.shape != image.shape
    placed = align_label_map(read_label_map(path), image)
    assert np.array_equal(placed, SimpleITK.GetArrayFromImage(whole))
    write_label_map(tmp_path / "a.nrrd", placed, image)
    assert np.array_equal(read_label_map(tmp_path / "a.nrrd").array, placed)

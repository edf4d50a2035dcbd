"""Classes are found in label files, which are read once: only new and changed ones are read again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from autoseg.data.checks import check_dataset
from autoseg.data.checks.check import require_clean
from autoseg.data.discovery import discover_dataset
from autoseg.data.labels import EXPORT_AS_PNG, read_case_labels
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import write_label_map
from autoseg.issues import AutosegError
from autoseg.tracking.progress import SilentReporter

GRID = Geometry(shape=(2, 3, 4), spacing_mm=(1.0, 1.0, 1.0))


def write(path: Path, values: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label_map(path, np.resize(values, GRID.shape), GRID)


def spoil(path: Path) -> None:
    """Other bytes, the same size and time: reading it would fail."""
    state = path.stat()
    path.write_bytes(b"\0" * state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.fixture
def label_maps(tmp_path: Path) -> Path:
    for name in "ab":
        write(tmp_path / "data" / "images" / f"{name}.nii", [0, 1, 2])
        write(tmp_path / "data" / "labels" / f"{name}.nii", [0, 3, 7])
    return tmp_path / "data"


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    for name in "ab":
        write(tmp_path / "data" / name / "ct.nii", [0, 1, 2])
        write(tmp_path / "data" / name / "masks" / "liver.nii", [0, 1, 1])
        write(tmp_path / "data" / name / "masks" / "tumour.nii", [0, 1, 0])
    return tmp_path / "data"


def test_values_are_read_once(label_maps: Path, tmp_path: Path) -> None:
    cache = tmp_path / "run" / "cache"
    before = discover_dataset(label_maps, cache=cache)
    assert before.file_values == (0, 3, 7)
    for name in "ab":
        spoil(label_maps / "labels" / f"{name}.nii")
    assert discover_dataset(label_maps, cache=cache) == before
    write(label_maps / "labels" / "b.nii", [0, 3, 9])
    assert discover_dataset(label_maps, cache=cache).file_values == (0, 3, 7, 9)
    write(label_maps / "images" / "c.nii", [0, 1])
    write(label_maps / "labels" / "c.nii", [0, 5])
    assert discover_dataset(label_maps, cache=cache).file_values == (0, 3, 5, 7, 9)


def test_overlaps_are_read_once_for_each_way_to_read(masks: Path, tmp_path: Path) -> None:
    cache = tmp_path / "run" / "cache"
    before = discover_dataset(masks, cache=cache)
    assert before.labels.has_regions
    spoil(masks / "b" / "masks" / "tumour.nii")
    assert discover_dataset(masks, cache=cache) == before
    (tmp_path / "spec.toml").write_text('extends = "case_masks"\n[labels]\ntumour = 1\n')
    write(masks / "b" / "masks" / "tumour.nii", [0, 0, 1])
    assert not discover_dataset(masks, cache=cache, spec=tmp_path / "spec.toml").labels.has_regions


def test_a_file_that_cannot_be_read_is_read_again(masks: Path, tmp_path: Path) -> None:
    cache = tmp_path / "run" / "cache"
    for name in "ab":
        write(masks / name / "masks" / "tumour.nii", [0, 0, 0])
    spoil(masks / "a" / "masks" / "tumour.nii")
    assert not discover_dataset(masks, cache=cache).labels.has_regions
    state = (masks / "a" / "masks" / "tumour.nii").stat()
    write(masks / "a" / "masks" / "tumour.nii", [0, 1, 0])
    os.utime(masks / "a" / "masks" / "tumour.nii", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert discover_dataset(masks, cache=cache).labels.has_regions
    shutil.rmtree(cache)
    assert discover_dataset(masks, cache=cache).labels.has_regions


COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 128]], np.uint8)
INDICES = np.resize([0, 0, 0, 1, 2], (6, 8))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(tmp_path / "images" / "a.png")
    Image.fromarray(COLOURS[INDICES]).save(tmp_path / "masks" / "a.png")
    return tmp_path


def spec_of(folder: Path, text: str) -> Path:
    path = folder / "spec.toml"
    path.write_text(text)
    return path


def test_labels_that_cannot_be_read_are_refused_with_the_readers_reason(pictures: Path) -> None:
    with pytest.raises(AutosegError) as caught:
        discover_dataset(pictures)
    assert caught.value.codes == ("reader.several_channels",)
    assert "colours = " in caught.value.issues[0].fix
    (pictures / "masks" / "a.png").write_bytes(b"")
    with pytest.raises(AutosegError) as caught:
        discover_dataset(pictures)
    assert caught.value.codes != ("labels.all_empty",)


def test_colours_are_classes_where_a_spec_file_names_them(pictures: Path) -> None:
    found = discover_dataset(
        pictures, spec=spec_of(pictures, 'extends = "paired_folders"\n[colours]\ngreen = "#00FF00"\nred = "#ff0000"\n')
    )
    assert [label.name for label in found.labels.classes] == ["green", "red"]
    labels = read_case_labels(found.training[0], found.coding).array
    np.testing.assert_array_equal(labels[0], np.array([0, 2, 1])[INDICES])
    assert found.issues == check_dataset(found, num_workers=1, reporter=SilentReporter()) == ()


def test_colours_that_no_class_has_are_said(pictures: Path) -> None:
    Image.fromarray(COLOURS[np.where(INDICES == 2, 3, INDICES)]).save(pictures / "masks" / "a.png")
    found = discover_dataset(
        pictures, spec=spec_of(pictures, 'extends = "paired_folders"\n[colours]\nred = "#ff0000"\n')
    )
    (issue,) = found.issues
    assert (issue.code, "#000080 (9 pixels)" in issue.message) == ("labels.undeclared_colour", True)


def test_masks_saved_as_jpeg_are_to_be_exported_as_png(pictures: Path) -> None:
    (pictures / "masks" / "a.png").unlink()
    Image.fromarray(COLOURS[INDICES]).save(pictures / "masks" / "a.jpg")
    with pytest.raises(AutosegError) as caught:
        discover_dataset(pictures)
    assert caught.value.issues[0].fix == EXPORT_AS_PNG
    spec = spec_of(pictures, 'extends = "paired_folders"\n[colours]\nred = "#ff0000"\n')
    assert [(i.code, i.fix) for i in discover_dataset(pictures, spec=spec).issues] == [("labels.lossy", EXPORT_AS_PNG)]
    flat = np.zeros((16, 16), np.uint8)
    for value, codes in ((16, ["labels.lossy"]), (255, [])):
        Image.fromarray(flat).save(pictures / "images" / "a.png")
        flat[:8] = value
        Image.fromarray(flat).save(pictures / "masks" / "a.jpg", quality=100)
        assert [issue.code for issue in discover_dataset(pictures).issues] == codes


@pytest.fixture
def channels(tmp_path: Path) -> Path:
    write(tmp_path / "images" / "a.nii", [0, 1, 2])
    (tmp_path / "labels").mkdir()
    save_channels(tmp_path, [*MASKS])
    return tmp_path


MASKS = np.zeros((2, 4, 3, 2), np.uint8)
MASKS[0, :3], MASKS[1, 2:, 1:] = 1, 1
OUTSIDE = 1 - MASKS.max(0)


def save_channels(folder: Path, masks: list[np.ndarray], axis: int = -1) -> None:
    image = nibabel.Nifti1Image(np.stack(masks, axis), np.diag([-1, -1, 1, 1]))
    nibabel.save(image, folder / "labels" / "a.nii")


@pytest.mark.parametrize("background", [None, 0, 1, 2])
def test_channels_are_classes_where_a_spec_file_names_them(channels: Path, background: int | None) -> None:
    names, masks = ["whole", "part"], [*MASKS]
    if background is not None:
        names.insert(background, "background")
        masks.insert(background, OUTSIDE)
    save_channels(channels, masks)
    found = discover_dataset(
        channels, spec=spec_of(channels, f'extends = "paired_folders"\none_hot = {json.dumps(names)}\n')
    )
    labels = read_case_labels(found.training[0], found.coding)
    assert [label.name for label in found.labels.classes] == ["whole", "part"]
    assert found.issues == ()
    for label, mask in zip(found.labels.classes, MASKS, strict=True):
        np.testing.assert_array_equal(np.isin(labels.array, label.values), mask.T.astype(bool))


@pytest.mark.parametrize("names", [["whole"], ["whole", "part"], ["whole", "part", "third", "fourth"]])
def test_a_wrong_number_of_names_is_answered_with_the_channels_of_the_file(channels: Path, names: list[str]) -> None:
    save_channels(channels, [*MASKS, OUTSIDE])
    found = discover_dataset(
        channels, spec=spec_of(channels, f'extends = "paired_folders"\none_hot = {json.dumps(names)}\n')
    )
    (issue,) = check_dataset(found, num_workers=1, reporter=SilentReporter())
    assert issue.code == "labels.channel_count"
    assert ("3 channels" in issue.message, f"names {len(names)}" in issue.message) == (True, True)
    assert 'one_hot = ["class_1", "class_2", "background"]' in issue.fix


def test_a_background_channel_that_counts_as_a_class_is_said(channels: Path) -> None:
    save_channels(channels, [OUTSIDE, *MASKS])
    spec = spec_of(channels, 'extends = "paired_folders"\none_hot = ["bg", "whole", "part"]\n')
    assert [issue.code for issue in discover_dataset(channels, spec=spec).issues] == ["labels.no_background"]


@pytest.mark.parametrize("one_hot", ["", 'one_hot = ["background", "whole", "part"]\n', "[labels]\nwhole = 1\n"])
def test_channels_before_the_axes_are_said(channels: Path, one_hot: str) -> None:
    save_channels(channels, [OUTSIDE, *MASKS], axis=0)
    spec = spec_of(channels, f'extends = "paired_folders"\n{one_hot}')
    with pytest.raises(AutosegError) as caught:
        require_clean(check_dataset(discover_dataset(channels, spec=spec), num_workers=1, reporter=SilentReporter()))
    assert caught.value.codes == ("labels.channel_first",)


@pytest.mark.parametrize("names", ['["background"]', '["liver", "liver"]'])
def test_names_of_channels_are_classes_and_differ(channels: Path, names: str) -> None:
    with pytest.raises(AutosegError, match="one_hot"):
        discover_dataset(channels, spec=spec_of(channels, f'extends = "paired_folders"\none_hot = {names}\n'))


def test_masks_of_1_beside_masks_of_255_are_refused(tmp_path: Path) -> None:
    for name, white in (("a", 1), ("b", 255)):
        write(tmp_path / "images" / f"{name}.nii", [0, 1, 2])
        write(tmp_path / "labels" / f"{name}.nii", [0, white])
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    assert caught.value.codes == ("labels.mixed_masks",)
    found = discover_dataset(tmp_path, spec=spec_of(tmp_path, 'extends = "paired_folders"\nthreshold = 1\n'))
    assert [int(read_case_labels(case, found.coding).array.sum()) for case in found.training] == [12, 12]
    write(tmp_path / "labels" / "b.nii", [0, 1, 255])  # two classes
    assert discover_dataset(tmp_path).file_values == (0, 1, 255)


def test_masks_of_a_class_with_other_values_in_some_cases_are_said(masks: Path) -> None:
    assert discover_dataset(masks).issues == ()
    write(masks / "b" / "masks" / "liver.nii", [0, 255, 255])
    (issue,) = discover_dataset(masks).issues
    assert (issue.code, "liver (1 in 1 case, 255 in 1 case)" in issue.message) == ("labels.mixed_masks", True)


def test_masks_that_a_list_of_classes_lacks_are_said(masks: Path) -> None:
    found = discover_dataset(masks, spec=spec_of(masks, 'extends = "case_masks"\n[labels]\nliver = 1\n'))
    assert [label.name for label in found.labels.classes] == ["liver"]
    assert [(issue.code, "tumour" in issue.message) for issue in found.issues] == [("labels.other_masks", True)]


def test_masks_of_own_names_beside_those_of_a_public_dataset_are_classes(tmp_path: Path) -> None:
    for name in ("s0001", "s0002"):
        write(tmp_path / name / "ct.nii.gz", [0, 1, 2])
        for mask in ("liver", "spleen", "my_lesion"):
            write(tmp_path / name / "segmentations" / f"{mask}.nii.gz", [0, mask == "liver"])
    found = discover_dataset(tmp_path)
    assert found.known
    assert {label.name for label in found.labels.classes} == {"liver", "spleen", "my_lesion"}
    assert "labels.other_masks" in [issue.code for issue in found.issues]

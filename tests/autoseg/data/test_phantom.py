"""The phantom dataset is a real dataset: clean, in mixed orientations, with two shapes at similar places."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from autoseg.data.checks import check_dataset
from autoseg.data.discovery import discover_dataset
from autoseg.data.phantom import CLASS_NAMES, make_phantom_case, make_phantom_dataset
from autoseg.imaging.orientation import canonical_geometry, canonical_orientation, to_canonical
from autoseg.imaging.readers import read_image, read_label_map
from autoseg.issues import AutosegError
from autoseg.tracking.progress import SilentReporter

CASES = range(24)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    make_phantom_dataset(folder, num_training=6, num_test=2)
    return folder


@pytest.fixture(scope="module")
def cases():
    return [make_phantom_case(seed=3, number=number) for number in CASES]


def test_dataset_is_found_and_without_error_or_warning(phantom):
    dataset = discover_dataset(phantom)
    assert (len(dataset.training), len(dataset.test)) == (6, 2)
    assert tuple(label.name for label in dataset.labels.classes) == CLASS_NAMES
    assert check_dataset(dataset, num_workers=1, reporter=SilentReporter()) == ()


def test_files_hold_what_was_made(phantom):
    image, labels, geometry = make_phantom_case(seed=0, number=6)
    read = read_image([phantom / "imagesTs" / "phantom_007.nii.gz"])
    np.testing.assert_array_equal(read.array, image)
    np.testing.assert_array_equal(read_label_map(phantom / "labelsTs" / "phantom_007.nii.gz").array, labels)
    # NIfTI keeps spacing and origin in single precision, about 1e-7 of at most 64 mm
    np.testing.assert_allclose(read.geometry.origin_mm, geometry.origin_mm, atol=1e-5)
    np.testing.assert_allclose(read.geometry.spacing_mm, geometry.spacing_mm, atol=1e-6)
    np.testing.assert_allclose(read.geometry.direction, geometry.direction, atol=1e-6)


def test_same_seed_gives_the_same_cases_whatever_their_number(cases):
    again = make_phantom_case(seed=3, number=5)
    np.testing.assert_array_equal(again[0], cases[5][0])
    other = make_phantom_case(seed=4, number=5)
    assert other[0].shape != again[0].shape or not np.array_equal(other[0], again[0])


def test_orientations_are_mixed(cases):
    turns = {canonical_orientation(geometry) for _, _, geometry in cases}
    assert len(turns) > len(CASES) / 2


def test_sizes_and_spacings_are_small_and_differ(cases):
    for image, labels, geometry in cases:
        assert image.shape == (1, *labels.shape) == (1, *geometry.shape)
        assert image.dtype == np.float32
        assert all(40 <= size <= 56 for size in geometry.shape)
        assert all(0.9 <= mm <= 1.15 for mm in geometry.spacing_mm)
    assert len({geometry.spacing_mm for *_, geometry in cases}) == len(CASES)


def test_ring_is_left_of_the_bean_in_canonical_orientation(cases):
    for _, labels, geometry in cases:
        x_mm = []
        for value in (1, 2):
            middle = np.array(ndimage.center_of_mass(labels == value))[::-1] * geometry.spacing_mm[::-1]
            x_mm.append((np.array(geometry.origin_mm) + np.array(geometry.direction) @ middle)[0])
        assert x_mm[1] - x_mm[0] > 8


def test_every_volume_is_centred_on_the_origin_of_the_world(cases):
    for *_, geometry in cases:
        turned = canonical_geometry(geometry, canonical_orientation(geometry))
        half = (np.array(turned.shape[::-1]) - 1) * turned.spacing_mm[::-1] / 2
        np.testing.assert_allclose(turned.origin_mm, -half, atol=1e-9)
        np.testing.assert_array_equal(turned.direction, np.eye(3))


def test_structures_are_one_piece_and_only_the_ring_has_a_hole(cases):
    for _, labels, geometry in cases:
        turned = to_canonical(labels, canonical_orientation(geometry))
        for value, holes in ((1, 0), (2, 1)):
            mask = turned == value
            assert ndimage.label(mask)[1] == 1
            shadow = mask.any(axis=2)  # looking along x, down the axis of the ring
            assert ndimage.label(~np.pad(shadow, 1))[1] == 1 + holes


def test_brightness_does_not_tell_the_structures_apart(cases):
    for image, labels, _ in cases:
        body = np.median(image[0][(labels == 0) & (image[0] > 100)])
        bean, ring = (np.median(image[0][labels == value]) for value in (1, 2))
        assert min(bean, ring) > 1.2 * body
        assert 0.7 < bean / ring < 1.4  # the bias field alone may change brightness by so much from side to side


@pytest.mark.parametrize("occupied", [True, False])
def test_folder_that_is_not_empty_is_refused(tmp_path, occupied):
    target = tmp_path / "data"
    if occupied:
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    else:
        target.write_text("mine")
    with pytest.raises(AutosegError, match="not empty"):
        make_phantom_dataset(target, num_training=1, num_test=0)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine.txt" if occupied else "data"]


def test_unwritable_place_leaves_nothing_behind(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(AutosegError, match="could not be written"):
        make_phantom_dataset(tmp_path / "file" / "data", num_training=1, num_test=0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_lists_name_the_files_that_are_there(phantom: Path):
    content = json.loads((phantom / "dataset.json").read_text())
    listed = [pair[key] for pair in content["training"] for key in ("image", "label")] + content["test"]
    assert all((phantom / path).is_file() for path in listed)
    assert len(content["training"]) == content["numTraining"]

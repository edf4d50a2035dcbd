"""Label maps written for an image have its grid, in the eyes of other readers, for every format and orientation."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import skimage.io
import tifffile

from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import (
    prediction_ending,
    read_header,
    read_image,
    read_label_map,
    writable_ending,
    write_label_map,
)

FLAT = Geometry(shape=(1, 4, 5), spacing_mm=(999.0, 1.0, 1.0), dimensions=2, has_orientation=False)
PAGES = FLAT.model_copy(update={"shape": (3, 4, 5), "dimensions": 3})
SOLID = Geometry(shape=(3, 4, 5), spacing_mm=(2.5, 0.75, 0.5))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_orientation_is_understood_by_other_readers(tmp_path: Path, ending: str) -> None:
    array = np.arange(60).reshape(3, 4, 5)
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        direction = np.eye(3)[list(order)] * signs
        geometry = SOLID.model_copy(
            update={"origin_mm": (-12.5, 30.25, 7.0), "direction": tuple(map(tuple, direction.tolist()))}
        )
        path = tmp_path / f"a{ending}"
        write_label_map(path, array, geometry)
        image = SimpleITK.ReadImage(str(path))
        assert np.array_equal(SimpleITK.GetArrayFromImage(image), array)
        # single precision of NIfTI's header
        np.testing.assert_allclose(image.GetOrigin(), geometry.origin_mm, atol=1e-5)
        np.testing.assert_allclose(image.GetSpacing(), geometry.spacing_mm[::-1], rtol=1e-6)
        np.testing.assert_allclose(image.GetDirection(), direction.ravel(), atol=1e-6)
        if ending in (".nii.gz", ".nii"):
            seen = nibabel.load(path)
            affine = np.diag([-1, -1, 1]) @ seen.affine[:3]
            np.testing.assert_allclose(affine[:, :3], direction * np.array(geometry.spacing_mm[::-1]), atol=1e-6)
            np.testing.assert_allclose(affine[:, 3], geometry.origin_mm, atol=1e-5)
            assert np.array_equal(np.asarray(seen.dataobj).T, array)


@pytest.mark.parametrize("name", ["mr_prostatex_t2_tra", "ct_body_jpeg2000/dicom"])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_a_label_map_of_a_real_series_has_its_grid(real_data: Path, tmp_path: Path, name: str, ending: str) -> None:
    """ITK reads series and label map, and finds the same grid."""
    folder = real_data / "dicom_series" / name
    volume = read_image([folder])
    labels = (volume.array[0] > 100).astype(np.uint8)
    write_label_map(tmp_path / f"a{ending}", labels, volume.geometry)
    series = SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    written = SimpleITK.ReadImage(str(tmp_path / f"a{ending}"))
    assert written.GetSize() == series.GetSize()
    np.testing.assert_allclose(written.GetSpacing(), series.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(written.GetOrigin(), series.GetOrigin(), atol=1e-4)  # NIfTI: single precision at 500 mm
    np.testing.assert_allclose(written.GetDirection(), series.GetDirection(), atol=1e-6)
    assert np.array_equal(SimpleITK.GetArrayFromImage(series) > 100, SimpleITK.GetArrayFromImage(written) == 1)


@pytest.mark.parametrize(("ending", "geometry"), [(".png", FLAT), (".bmp", FLAT), (".tif", FLAT), (".tif", PAGES)])
def test_flat_files_are_understood_by_other_readers(tmp_path: Path, ending: str, geometry: Geometry) -> None:
    array = np.random.default_rng(0).integers(0, 250, geometry.shape)
    write_label_map(tmp_path / f"a{ending}", array, geometry)
    read = tifffile.imread if ending == ".tif" else skimage.io.imread
    assert np.array_equal(read(tmp_path / f"a{ending}"), array[0] if geometry is FLAT else array)


@pytest.mark.parametrize(
    ("image", "geometry", "label_ending", "expected"),
    [
        ("a.nii.gz", SOLID, ".nii.gz", ".nii.gz"),
        ("a.nrrd", SOLID, ".nii.gz", ".nii.gz"),
        ("series", SOLID, ".nrrd", ".nrrd"),
        ("series", SOLID, ".dcm", ".nii.gz"),
        ("a.nii.gz", SOLID, ".png", ".nii.gz"),
        ("a.png", FLAT, ".png", ".png"),
        ("a.png", FLAT, ".nii.gz", ".png"),
        ("a.tif", FLAT, ".nii.gz", ".tif"),
        ("a.tif", PAGES, ".png", ".tif"),
        ("a.tif", PAGES, ".tif", ".tif"),
        ("a.jpg", FLAT, ".nii.gz", ".png"),
        ("a.jpg", FLAT, ".jpg", ".png"),
        ("xray.dcm", FLAT, ".png", ".png"),
        ("xray.dcm", FLAT, ".nii.gz", ".nii.gz"),
    ],
)
def test_predictions_have_a_format_that_stores_their_grid(
    tmp_path: Path, image: str, geometry: Geometry, label_ending: str, expected: str
) -> None:
    ending = prediction_ending(image, geometry, label_ending)
    assert ending == expected
    array = np.random.default_rng(0).integers(0, 3, geometry.shape)
    write_label_map(tmp_path / f"a{ending}", array, geometry)
    assert np.array_equal(read_label_map(tmp_path / f"a{ending}").array, array)
    assert read_header(tmp_path / f"a{ending}").geometry.shape == geometry.shape


def test_endings_that_cannot_be_written_have_a_neighbour() -> None:
    assert [writable_ending(e) for e in (".nii.gz", ".jpeg", ".dcm", "", ".tif")] == [
        ".nii.gz",
        ".png",
        ".nii.gz",
        ".nii.gz",
        ".tif",
    ]


@pytest.mark.parametrize(
    ("text", "kept"), [("autoseg 1.2.3, model abc", "autoseg 1.2.3, model abc"), ("é" + "x" * 99, "?" + "x" * 78)]
)
@pytest.mark.parametrize("with_source", [False, True])
def test_a_description_is_kept_where_the_format_has_a_place(
    tmp_path: Path, text: str, kept: str, with_source: bool
) -> None:
    array, source = np.arange(60).reshape(3, 4, 5), tmp_path / "image.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.diag([0.5, 0.75, 2.5, 1.0])), source)
    for ending in (".nii.gz", ".nii", ".mha"):
        write_label_map(tmp_path / f"a{ending}", array, SOLID, source=source if with_source else None, description=text)
        assert np.array_equal(read_label_map(tmp_path / f"a{ending}").array, array)
    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert bytes(header["descrip"]).rstrip(b"\0").decode() == kept
    assert header.get_zooms() == pytest.approx((0.5, 0.75, 2.5))

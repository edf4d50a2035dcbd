"""Images in memory are placed as the file that they came from; what has no place is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch

from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.orientation import SAME_GRID, canonical_grid, canonical_orientation, grid_differences, to_canonical
from autoseg.imaging.readers import as_image, read_image
from autoseg.issues import AutosegError

ARRAY = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
GEOMETRY = Geometry(shape=(3, 4, 5), spacing_mm=(1.0, 1.0, 1.0))


def write(path: Path, axes: str, *, channels: int = 1) -> Path:
    image = SimpleITK.GetImageFromArray(ARRAY)
    image.SetSpacing((0.7, 1.1, 2.5))
    image.SetOrigin((10, -20, 30))
    image = SimpleITK.DICOMOrient(image, axes)
    if channels > 1:
        image = SimpleITK.JoinSeries([image] * channels)
    SimpleITK.WriteImage(image, path)
    return path


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR", "SAL", "ILA"])
def test_all_forms_of_an_image_lie_where_the_file_lies(tmp_path: Path, axes: str) -> None:
    path = write(tmp_path / "a.nii.gz", axes)
    whole, stored = read_image(path), nibabel.load(path)
    letters = "".join(nibabel.aff2axcodes(stored.affine))[::-1]
    forms: list[tuple[Any, dict[str, Any], bool]] = [
        (whole, {}, False),
        (str(path), {}, False),
        ([path], {}, False),
        (SimpleITK.ReadImage(path), {}, False),
        (stored, {}, True),
        (whole.array, {"affine": whole.affine}, False),
        (whole.array[0].astype(np.int16), {"affine": whole.affine.tolist()}, False),
        (torch.tensor(whole.array).bfloat16().requires_grad_(), {"affine": whole.affine}, False),
        (whole.array[0], {"spacing_mm": whole.spacing_mm, "axes": letters}, False),
    ]
    expected = to_canonical(whole.array, canonical_orientation(whole.geometry))
    for source, place, is_reversed in forms:
        image, reverse = as_image(source, **place)
        assert reverse is is_reversed
        np.testing.assert_array_equal(to_canonical(image.array, canonical_orientation(image.geometry)), expected)
        own, other = canonical_grid(image.geometry), canonical_grid(whole.geometry)
        if "axes" in place:  # tells no origin
            own, other = (each.model_copy(update={"origin_mm": (0.0, 0.0, 0.0)}) for each in (own, other))
        assert grid_differences(own, other, SAME_GRID) == ()


def test_channels_and_slices_of_simpleitk_and_nibabel(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", "RAS", channels=2)
    expected = read_image(path).array
    assert expected.shape == (2, 3, 4, 5)
    vector = SimpleITK.Compose([SimpleITK.GetImageFromArray(channel) for channel in expected])
    for source in (SimpleITK.ReadImage(path), nibabel.load(path), vector):
        np.testing.assert_array_equal(as_image(source)[0].array, expected)
    flat, _ = as_image(SimpleITK.GetImageFromArray(ARRAY[0]))
    assert (flat.array.shape, flat.geometry.dimensions) == ((1, 1, 4, 5), 2)


SHEARED = np.eye(4)
SHEARED[0, 1] = 0.5


@pytest.mark.parametrize(
    ("source", "place", "code"),
    [
        (ARRAY, {}, "image.no_place"),
        (ARRAY, {"spacing_mm": (1, 1, 1)}, "image.no_place"),
        (ARRAY, {"axes": "SPL"}, "image.axes"),
        (ARRAY, {"spacing_mm": (1, 1, 1), "axes": "SPX"}, "image.axes"),
        (ARRAY, {"spacing_mm": (1, 1, 1), "axes": "SSL"}, "image.axes"),
        (ARRAY, {"spacing_mm": (1, 1, 1), "axes": 5}, "image.axes"),
        (ARRAY, {"spacing_mm": "1 mm", "axes": "SPL"}, "image.spacing"),
        (ARRAY, {"affine": "RAS"}, "image.affine"),
        (ARRAY, {"spacing_mm": (1, 1)}, "image.spacing"),
        (ARRAY, {"spacing_mm": (1, 0, 1), "axes": "SPL"}, "image.spacing"),
        (ARRAY, {"spacing_mm": (1, float("nan"), 1), "axes": "SPL"}, "image.spacing"),
        (ARRAY, {"affine": np.eye(3)}, "image.affine"),
        (ARRAY, {"affine": np.zeros((4, 4))}, "image.affine"),
        (ARRAY, {"affine": SHEARED}, "image.affine"),
        (ARRAY, {"affine": np.eye(4), "spacing_mm": (1, 1, 1)}, "image.affine"),
        (ARRAY[0], {"affine": np.eye(4)}, "image.shape"),
        (ARRAY[:0], {"affine": np.eye(4)}, "image.shape"),
        (ARRAY.astype(complex), {"affine": np.eye(4)}, "image.type"),
        (SimpleITK.GetImageFromArray(ARRAY), {"affine": np.eye(4)}, "image.type"),
        (SimpleITK.Image([5, 5, 5], SimpleITK.sitkLabelUInt8), {}, "image.type"),
        (SimpleITK.Image(), {}, "image.shape"),
        (Image(array=ARRAY, geometry=GEOMETRY), {}, "image.shape"),
        (Image(array=ARRAY[None, :2], geometry=GEOMETRY), {}, "image.shape"),
        (Image(array=ARRAY[None].astype(complex), geometry=GEOMETRY), {}, "image.type"),  # type: ignore[arg-type]
        (ARRAY.tolist(), {}, "image.type"),
        (None, {}, "image.type"),
        ([], {}, "image.type"),
    ],
)
def test_what_does_not_fit_is_one_error(source: Any, place: dict[str, Any], code: str) -> None:
    with pytest.raises(AutosegError) as caught:
        as_image(source, **place)
    assert caught.value.codes == (code,)


def test_arrays_need_no_directions_where_the_model_knows_none() -> None:
    image, _ = as_image(ARRAY, spacing_mm=(3, 2, 1), needs_directions=False)
    assert (image.spacing_mm, image.geometry.has_orientation) == ((3.0, 2.0, 1.0), False)

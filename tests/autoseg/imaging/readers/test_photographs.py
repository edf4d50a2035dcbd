"""PNG, TIFF, JPEG and BMP: transparency, pages, and files that end too early."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import skimage.io
import tifffile

from autoseg.imaging.readers import read_header, read_image, read_label_map
from autoseg.issues import AutosegError

COLOURS = np.random.default_rng(0).integers(0, 255, (12, 10, 4)).astype(np.uint8)


def write(path: Path, array: np.ndarray, *, vector: bool = False) -> Path:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=vector), str(path))
    return path


@pytest.mark.parametrize(("kind", "channels"), [(np.uint8, 3), (np.uint16, 3)])
def test_transparency_is_left_out_and_said(tmp_path: Path, kind: type, channels: int) -> None:
    path = write(tmp_path / "a.png", COLOURS.astype(kind), vector=True)
    header, volume = read_header(path), read_image([path])
    assert header.num_channels == channels
    assert "transparency" in header.notes[0]
    assert np.array_equal(volume.array[:, 0], np.moveaxis(COLOURS[..., :3], -1, 0))


def test_grey_with_transparency_is_grey(tmp_path: Path) -> None:
    skimage.io.imsave(tmp_path / "a.png", COLOURS[..., :2], check_contrast=False)
    assert read_header(tmp_path / "a.png").num_channels == 1
    assert np.array_equal(read_image([tmp_path / "a.png"]).array[0, 0], COLOURS[..., 0])
    assert np.array_equal(read_label_map(tmp_path / "a.png").array[0], COLOURS[..., 0])


def test_a_fourth_sample_of_a_tiff_is_a_channel_unless_it_is_transparency(tmp_path: Path) -> None:
    for extra, channels in (("unassalpha", 3), ("unspecified", 4)):
        tifffile.imwrite(tmp_path / "a.tif", COLOURS, photometric="rgb", extrasamples=[extra])
        assert read_header(tmp_path / "a.tif").num_channels == channels
        assert len(read_image([tmp_path / "a.tif"]).array) == channels


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"bigtiff": True}, {"byteorder": ">"}, {"tile": (16, 16)}]
)
def test_pages_are_slices(tmp_path: Path, options: dict[str, object]) -> None:
    stack = np.random.default_rng(0).integers(0, 60000, (5, 32, 48)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", **options)
    assert np.array_equal(read_image([tmp_path / "a.tif"]).array[0], stack)


def test_pages_of_different_size_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.zeros((8, 8), np.uint8))
        file.write(np.zeros((8, 9), np.uint8))
    with pytest.raises(AutosegError, match=r"page 1 has 8 x 8 pixels.*page 2 9 x 8 pixels"):
        read_image([tmp_path / "a.tif"])


@pytest.mark.parametrize("ending", [".jpg", ".bmp", ".tif", ".png"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, ending: str, share: float) -> None:
    path = write(tmp_path / f"a{ending}", np.random.default_rng(0).integers(0, 255, (90, 80)).astype(np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(AutosegError, match=f"a{ending} could not be read"):
        read_image([path])


def test_damaged_jpeg_data_is_refused_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 255, (90, 80)).astype(np.uint8))
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + content[-2:])  # the end mark is there, half of the data is not
    with pytest.raises(AutosegError, match=r"a\.jpg could not be read \(Corrupt JPEG data"):
        read_image([path])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["8gray", "16gray", "8rgb", "16rgb", "8rgba", "16rgba"])
def test_real_microscopy_in_all_depths_and_colours(real_data: Path, name: str) -> None:
    folder = real_data / "bids_ivadomed" / "data_test_png_tif"
    for kind in ("png", "tif"):
        path = folder / f"sub-{kind}" / "micr" / f"sub-{kind}_sample-{name}_SEM.{kind}"
        expected = skimage.io.imread(path)
        expected = expected[0] if expected.ndim == 4 else expected  # a thumbnail follows the image
        expected = expected[..., None] if expected.ndim == 2 else expected[..., :3]
        if kind == "png" and name.startswith("16rgb"):
            expected = (
                expected.astype(int) * 257
            )  # the reference reader keeps 8 bits of these greys, whose halves are equal
        got = read_image([path])
        assert np.array_equal(np.moveaxis(got.array[:, 0], 0, -1), expected)
        assert read_header(path).num_channels == expected.shape[-1]


def test_real_grey_with_transparency(real_data: Path) -> None:
    folder = real_data / "bids_ivadomed" / "data_test_png_tif" / "sub-png" / "micr"
    path = folder / "sub-png_sample-8grayalhpa_SEM.png"
    got = read_image([path])
    assert got.array.shape == (1, 1, 266, 278)
    assert np.array_equal(got.array[0, 0], skimage.io.imread(path)[..., 0])

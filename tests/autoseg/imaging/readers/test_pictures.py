"""PNG, TIFF, JPEG and BMP: transparency, pages, and files that end too early."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
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
def test_transparency_is_ignored_with_an_issue(tmp_path: Path, kind: type, channels: int) -> None:
    path = write(tmp_path / "a.png", COLOURS.astype(kind), vector=True)
    header, volume = read_header(path), read_image([path])
    assert header.num_channels == channels
    assert [note.code for note in header.notes] == ["reader.transparency_ignored"]
    assert volume.notes == header.notes
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
    with pytest.raises(AutosegError) as caught:
        read_image([tmp_path / "a.tif"])
    assert caught.value.codes == ("reader.unsupported",)


@pytest.mark.parametrize("ending", [".jpg", ".bmp", ".tif", ".png"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, ending: str, share: float) -> None:
    path = write(tmp_path / f"a{ending}", np.random.default_rng(0).integers(0, 255, (90, 80)).astype(np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(AutosegError) as caught:
        read_image([path])
    assert caught.value.codes[0] in ("reader.truncated", "reader.corrupt")
    assert caught.value.issues[0].where == str(path)


def test_damaged_jpeg_data_is_refused_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 255, (90, 80)).astype(np.uint8))
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + content[-2:])  # the end mark is there, half of the data is not
    with pytest.raises(AutosegError) as caught:
        read_image([path])
    assert caught.value.codes == ("reader.corrupt",)
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


PAGES = np.arange(5 * 32 * 48, dtype=np.uint16).reshape(5, 32, 48)


@pytest.mark.parametrize(
    ("array", "options", "truth"),
    [
        (np.moveaxis(PAGES, 0, -1), {"photometric": "minisblack", "planarconfig": "contig"}, PAGES),
        (np.moveaxis(PAGES[:2], 0, -1), {"photometric": "minisblack", "planarconfig": "contig"}, PAGES[:2]),
        (PAGES, {"photometric": "minisblack", "planarconfig": "separate"}, PAGES),
        (PAGES, {"photometric": "minisblack", "planarconfig": "separate", "tile": (16, 16)}, PAGES),
        (PAGES[:3] % 256, {"photometric": "rgb", "planarconfig": "separate"}, PAGES[:3] % 256),
        ((PAGES[0] / 100).astype(np.float16), {}, (PAGES[:1] / 100).astype(np.float16)),
        ((PAGES[0] % 256).astype("u1"), {"extratags": [(274, "H", 1, 3, True)]}, PAGES[:1] % 256),
        (PAGES[0], {"compression": "zstd"}, PAGES[:1]),
        (PAGES[0], {"compression": "lzw", "predictor": True}, PAGES[:1]),
    ],
    ids=["5 samples", "2 samples", "planes", "planes in tiles", "rgb planes", "float16", "turned", "zstd", "lzw"],
)
def test_samples_and_planes_of_a_tiff_are_channels(
    tmp_path: Path, array: np.ndarray, options: dict[str, object], truth: np.ndarray
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ascontiguousarray(array), **options)
    image = read_image(tmp_path / "a.tif")
    assert np.array_equal(image.array[:, 0], truth)
    assert image.geometry.dimensions == 2


STACK = np.arange(5 * 2 * 32 * 48, dtype=np.uint16).reshape(5, 2, 32, 48)


@pytest.mark.parametrize(
    ("name", "array", "axes", "truth"),
    [
        ("imagej.tif", STACK[0], "CYX", STACK[0][:, None]),
        ("imagej.tif", STACK, "ZCYX", STACK.swapaxes(0, 1)),
        ("imagej.tif", STACK[:, 0], "ZYX", STACK[None, :, 0]),
        ("ome.ome.tif", STACK[0], "CYX", STACK[0][:, None]),
        ("ome.ome.tif", STACK.swapaxes(0, 1), "CZYX", STACK.swapaxes(0, 1)),
    ],
)
def test_imagej_and_ome_files_say_what_their_pages_are(
    tmp_path: Path, name: str, array: np.ndarray, axes: str, truth: np.ndarray
) -> None:
    how = {"imagej": True} if name.startswith("imagej") else {}
    tifffile.imwrite(tmp_path / name, np.ascontiguousarray(array), metadata={"axes": axes}, **how)
    image = read_image(tmp_path / name)
    assert np.array_equal(image.array, truth)
    assert read_header(tmp_path / name).num_channels == len(truth)


@pytest.mark.parametrize("axes", ["TZYX", "TCYX", "TYX"])
@pytest.mark.parametrize("how", [{"imagej": True}, {"ome": True}, {}])
def test_a_film_is_refused(tmp_path: Path, axes: str, how: dict[str, bool]) -> None:
    array = STACK if len(axes) == 4 else STACK[0]
    tifffile.imwrite(tmp_path / "a.tif", array, metadata={"axes": axes}, **how)
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path / "a.tif")
    assert caught.value.codes == ("reader.unsupported",)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".tif", ".png", ".jpg"])
def test_an_orientation_tag_is_ignored_and_noted(tmp_path: Path, ending: str, orientation: int) -> None:
    path, pixels = tmp_path / f"a{ending}", (STACK[0, 0] % 8).astype(np.uint8)
    if ending == ".tif":
        tifffile.imwrite(path, pixels, extratags=[(274, "H", 1, orientation, True)])
    else:
        exif = PIL.Image.Exif()
        exif[274] = orientation
        PIL.Image.fromarray(pixels).save(path, exif=exif, quality=100)
    assert np.allclose(read_image(path).array[0, 0], pixels, atol=1)
    expected = ["reader.orientation_ignored"] if orientation > 1 else []
    assert [note.code for note in read_header(path).notes] == expected


def test_pages_that_were_written_one_by_one_are_slices(tmp_path: Path) -> None:
    for kind, compression in ((STACK[:, 0], None), (STACK[:, 0], "zstd"), (COLOURS[None].repeat(3, 0), None)):
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            for page in kind:
                file.write(
                    page, contiguous=False, compression=compression, extrasamples=["unspecified"] * (page.ndim - 2)
                )
        expected = kind[None] if kind.ndim == 3 else np.moveaxis(kind, -1, 0)
        assert np.array_equal(read_image(tmp_path / "a.tif").array, expected)


def test_a_palette_of_a_tiff_is_colours_unless_they_only_show_values(tmp_path: Path) -> None:
    path, values = tmp_path / "a.tif", (STACK[0, 0] % 5).astype(np.uint8)
    table = np.random.default_rng(0).integers(0, 2**16, (3, 256)).astype(np.uint16)
    tifffile.imwrite(path, values, photometric="palette", colormap=table)
    assert np.array_equal(read_image(path).array[:, 0], (table >> 8)[:, values])
    assert read_header(path).num_channels == 3
    assert np.array_equal(read_label_map(path).array[0], values)
    tifffile.imwrite(path, values, imagej=True, colormap=table)
    assert np.array_equal(read_image(path).array[:, 0], values[None])


def test_colours_that_are_not_red_green_and_blue_are_refused_and_inversion_is_noted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", COLOURS[..., :3], photometric="cielab")
    with pytest.raises(AutosegError) as caught:
        read_header(tmp_path / "a.tif")
    assert caught.value.codes == ("reader.unsupported",)
    tifffile.imwrite(tmp_path / "a.tif", COLOURS[..., 0], photometric="miniswhite")
    assert [note.code for note in read_header(tmp_path / "a.tif").notes] == ["reader.inversion_ignored"]
    assert np.array_equal(read_image(tmp_path / "a.tif").array[0, 0], COLOURS[..., 0])


def test_kinds_of_jpeg(tmp_path: Path) -> None:
    path, picture = tmp_path / "a.jfif", PIL.Image.fromarray(COLOURS[..., 0])
    picture.save(path, "JPEG")
    path.write_bytes(path.read_bytes() + bytes(10**5))  # phones add films
    assert np.array_equal(read_image(path).array[0, 0], np.asarray(PIL.Image.open(path)))
    for content in (
        imagecodecs.ljpeg_encode(COLOURS[..., 0], bitspersample=8),
        imagecodecs.jpegls_encode(COLOURS[..., 0]),
        imagecodecs.jpeg8_encode(STACK[0, 0] >> 4, bitspersample=12),
    ):
        path.write_bytes(content)
        with pytest.raises(AutosegError) as caught:
            read_image(path)
        assert caught.value.codes == ("reader.unsupported",)


def test_an_animation_is_refused(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(COLOURS[..., 0])
    picture.save(tmp_path / "a.png", save_all=True, append_images=[picture.rotate(180)])
    with pytest.raises(AutosegError) as caught:
        read_image(tmp_path / "a.png")
    assert caught.value.codes == ("reader.unsupported",)


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_16_bits_of_png_are_kept_and_transparency_is_no_channel(tmp_path: Path, samples: int) -> None:
    pixels = np.random.default_rng(samples).integers(0, 2**16, (7, 9, samples)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels.squeeze()))
    expected = {1: 1, 2: 1, 3: 3, 4: 3}[samples]
    assert np.array_equal(read_image(tmp_path / "a.png").array[:, 0], np.moveaxis(pixels, -1, 0)[:expected])
    assert read_header(tmp_path / "a.png").num_channels == expected


@pytest.mark.parametrize("bits", range(1, 17))
def test_tiff_of_any_number_of_bits_is_read(tmp_path: Path, bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (8, 16))
    packed = values[..., None] >> np.arange(bits - 1, -1, -1) & 1
    content = np.packbits(packed.reshape(8, -1), axis=1).tobytes() if bits < 16 else values.astype("<u2").tobytes()
    tags = {256: 16, 257: 8, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: len(content)}
    entries = b"".join(struct.pack("<HHII", key, 4, 1, value) for key, value in tags.items())
    head = struct.pack("<4sI", b"II*\0", 8 + len(content))
    (tmp_path / "a.tif").write_bytes(head + content + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert np.array_equal(read_image(tmp_path / "a.tif").array[0, 0], values)


def bmp(
    path: Path, *, header: int, bits: int, compression: int, content: bytes, width: int = 16, height: int = 16
) -> Path:
    colours = bytes(value for k in range(256) for value in (k, k, k, 0)) if bits == 8 else b""
    start = 14 + header + len(colours)
    head = struct.pack("<2sIHHI", b"BM", start + len(content), 0, 0, start)
    rest = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(content), 0, 0, 0, 0)
    path.write_bytes(head + rest + bytes(header - 40) + colours + content)
    return path


def test_bmp_files_of_all_kinds_are_read_and_none_ends_the_process(tmp_path: Path) -> None:
    new = bmp(tmp_path / "v5.bmp", header=124, bits=24, compression=0, content=bytes(range(256)) * 3)
    assert read_image(new).array.shape == (3, 1, 16, 16)
    PIL.Image.fromarray(np.eye(16, dtype=bool)).save(tmp_path / "one_bit.bmp")
    assert np.array_equal(read_label_map(tmp_path / "one_bit.bmp").array[0], np.eye(16) * 255)
    runs = bytes([127, 7, 0, 0]) * 64 + b"\0\1"
    sound = bmp(tmp_path / "runs.bmp", header=40, bits=8, compression=1, content=runs, width=127, height=64)
    assert set(np.unique(read_image(sound).array)) == {7}
    runs = bytes([255, 7]) * 400 + b"\0\1"  # 255 pixels in rows of 127: ITK would write past the end of its memory
    with pytest.raises(AutosegError) as caught:
        read_image(bmp(tmp_path / "long.bmp", header=40, bits=8, compression=1, content=runs, width=127, height=64))
    assert caught.value.codes == ("reader.corrupt",)


def test_a_palette_is_colours_in_an_image_and_labels_in_a_label_map(tmp_path: Path) -> None:
    labels = np.resize(np.uint8([0, 1, 2]), (16, 16))
    picture = PIL.Image.fromarray(labels, mode="P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(tmp_path / "voc.png")
    assert np.array_equal(read_label_map(tmp_path / "voc.png").array[0], labels)
    image = read_image(tmp_path / "voc.png").array
    assert np.array_equal(image[:, 0], np.stack([(labels == 1) * 128, (labels == 2) * 128, labels * 0]))
    picture.putpalette([0, 0, 0, 100, 100, 100, 200, 200, 200])
    picture.save(tmp_path / "grey.png")
    assert np.array_equal(read_label_map(tmp_path / "grey.png").array[0], labels * 100)


def test_decompression_bombs_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), compression="zlib")
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tag = file.pages.first.tags[name]
            size = {3: 2, 4: 4}[int(tag.dtype)]
            raw[tag.valueoffset : tag.valueoffset + size] = (60_000).to_bytes(size, "little")
    (tmp_path / "a.tif").write_bytes(raw)
    for name in ("a.png", "a.tif"):
        with pytest.raises(AutosegError) as caught:
            read_image(tmp_path / name)
        assert caught.value.codes[0] in ("reader.too_large", "reader.truncated")


def test_a_damaged_png_is_found_by_its_check_sums(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (90, 80)).astype(np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(AutosegError) as caught:
        read_image(path)
    assert caught.value.codes == ("reader.corrupt",)

"""Uploads: what is unpacked, under which names, and what is refused."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from dicom_files import write_series

from autoseg.imaging.readers import read_header
from autoseg.issues import AutosegError
from autoseg.serving.rules import Limits
from autoseg.serving.uploads import END_RECORD, images_of, series_path, without_paths

LIMITS = Limits(upload_bytes=100_000)
AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def packed(files: Mapping[str, bytes | Path]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content.read_bytes() if isinstance(content, Path) else content)
    return target.getvalue()


def receive(content: bytes, folder: Path) -> tuple[Path, ...]:
    folder.mkdir(exist_ok=True)
    (folder / "body").write_bytes(content)
    return images_of(folder / "body", folder, LIMITS)


def refused(content: bytes, folder: Path) -> tuple[str, ...]:
    with pytest.raises(AutosegError) as caught:
        receive(content, folder)
    return caught.value.codes


def volume(path: Path) -> Path:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)), path)
    return path


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    """Folder of an upload, in one of its own."""
    (tmp_path / "job").mkdir()
    return tmp_path / "job" / "upload"


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_file_gets_a_name_by_its_content(ending: str, upload: Path, tmp_path: Path) -> None:
    (image,) = receive(volume(tmp_path / f"a{ending}").read_bytes(), upload)
    assert image == upload / f"image{ending}"
    assert list(upload.iterdir()) == [image]


def test_a_series_is_unpacked_under_numbers(upload: Path, tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", (3, 4, 5), AXIAL)
    files: dict[str, bytes | Path] = {f"Dr Who/{path.name}": path for path in series.iterdir()}
    files |= {"__MACOSX/._0.dcm": b"x", "Dr Who/.DS_Store": b"x", "Dr Who/README.txt": b"read me"}
    (folder,) = receive(packed(files), upload)
    assert folder == upload / "files"
    assert sorted(path.name for path in folder.iterdir()) == ["000001.dcm", "000002.dcm", "000003.dcm", "000004"]
    assert series_path(folder, "") == folder


def test_of_several_series_one_must_be_named(upload: Path, tmp_path: Path) -> None:
    files = {
        f"{uid}/{path.name}": path
        for uid in ("1.2.3", "1.2.4")
        for path in write_series(tmp_path / uid, (2, 4, 5), AXIAL, uid).iterdir()
    }
    (folder,) = receive(packed(files), upload)
    assert series_path(folder, "1.2.4") == Path(f"{folder}#1.2.4")
    for wanted in ("", "1.2.5"):
        with pytest.raises(AutosegError, match=r"1\.2\.3 .*1\.2\.4 ") as caught:
            series_path(folder, wanted)
        assert caught.value.codes == ("serve.several_series",)


def test_channels_follow_the_order_of_their_names(upload: Path, tmp_path: Path) -> None:
    first, second = (volume(tmp_path / name) for name in ("a.nii.gz", "b.nrrd"))
    images = receive(packed({"z_0001.nii.gz": first, "z_0000.nrrd": second}), upload)
    assert [image.name for image in images] == ["000001.nrrd", "000002.nii.gz"]


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"../evil.nii": b"x"}, "serve.zip_name"),
        ({"/evil.nii": b"x"}, "serve.zip_name"),
        ({"readme.txt": b"x"}, "serve.zip_no_image"),
        ({}, "serve.zip_no_image"),
        ({"bomb.nii": bytes(900_000)}, "serve.zip_too_large"),
        ({"a.nrrd": b"NRRD0004\n", "b.dcm": bytes(128) + b"DICM"}, "serve.zip_mixed"),
    ],
)
def test_bad_archives_are_refused(files: dict[str, bytes | Path], code: str, upload: Path) -> None:
    content = packed(files)
    assert len(content) < LIMITS.upload_bytes
    assert refused(content, upload) == (code,)
    assert [path.name for path in upload.parent.iterdir()] == ["upload"]


def test_an_archive_that_lies_about_sizes_is_stopped(upload: Path) -> None:
    content = bytearray(packed({"a.nii": bytes(10_000_000)}))
    for signature, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):  # its size in the table, and before the file
        place = content.find(signature) + at
        content[place : place + 4] = (100).to_bytes(4, "little")
    assert refused(bytes(content), upload) == ("serve.zip_damaged",)
    assert sum(path.stat().st_size for path in upload.glob("files/*")) <= 100


@pytest.mark.parametrize(("cut", "code"), [(-30, "serve.zip_damaged"), (40, "serve.zip_damaged")])
def test_a_cut_archive_is_refused(cut: int, code: str, upload: Path) -> None:
    assert refused(packed({"a.nii": bytes(1000)})[:cut], upload) == (code,)


def test_a_table_that_would_fill_the_memory_is_not_read(upload: Path, tmp_path: Path) -> None:
    content = packed({"a.nii": b"x"})
    end = content.rfind(END_RECORD)
    long = bytearray(content)
    long[end + 12 : end + 16] = (2**31).to_bytes(4, "little")
    assert refused(bytes(long), upload) == ("serve.zip_files",)
    large = content[:end] + b"PK\6\7" + bytes(16) + content[end:]
    assert refused(large, tmp_path / "job" / "large") == ("serve.zip_files",)


def test_an_encrypted_archive_is_refused(upload: Path) -> None:
    content = bytearray(packed({"a.nii": b"x"}))
    content[content.find(b"PK\1\2") + 8] |= 1
    assert refused(bytes(content), upload) == ("serve.zip_form",)


@pytest.mark.parametrize(
    "header",
    [
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 1 1 1\nencoding: raw\nendian: little\ndata file: {}\n\n",
        "ObjectType = Image\nNDims = 3\nDimSize = 1 1 1\nElementType = MET_SHORT\nElementDataFile = {}\n",
    ],
)
@pytest.mark.parametrize("place", ["/etc/hostname", "../secret.raw"])
def test_a_header_cannot_name_a_file_of_the_server(header: str, place: str, upload: Path) -> None:
    (upload.parent / "secret.raw").write_bytes(b"\1\2")
    assert refused(header.format(place).encode(), upload) == ("serve.detached",)
    inside = "a.nrrd" if header.startswith("NRRD") else "a.mha"
    assert refused(packed({inside: header.format(place).encode()}), upload.parent / "zip") == ("serve.detached",)


def test_issues_do_not_tell_where_an_upload_lies(upload: Path, tmp_path: Path) -> None:
    with pytest.raises(AutosegError) as caught:
        series_path(write_series(upload, (2, 4, 4), AXIAL), "9.9")
    with pytest.raises(AutosegError) as damaged:
        receive(packed({"a.txt": b""}), upload.parent / "zip")
    slices = write_series(tmp_path / "gap", (5, 4, 4), AXIAL)
    (slices / "2.dcm").unlink()
    (folder,) = receive(packed({path.name: path for path in slices.iterdir()}), upload.parent / "gap")
    with pytest.raises(AutosegError) as gap:
        read_header(folder)
    assert gap.value.codes == ("dicom.uneven_slices",)
    (told,) = without_paths(gap.value.issues, upload.parent / "gap")
    assert told.where == "zip"
    for issue in without_paths([*caught.value.issues, *damaged.value.issues], upload):
        assert str(upload.parent) not in issue.model_dump_json()

"""Uploads: streamed into a folder of their own, counted, unpacked under names of our own, and examined before they wait.

No name and no path of a client reaches the file system.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from autoseg.imaging.readers import files_of, is_debris, is_dicom_series, is_segmentation, list_series, read_header
from autoseg.imaging.writers import require_source
from autoseg.inference.dicom_output import dicom_output
from autoseg.inference.predictor import Predictor
from autoseg.inference.provenance import maker_of
from autoseg.issues import AutosegError, Issue
from autoseg.serving.documents import DICOM, Ask
from autoseg.serving.rules import (
    HEAD_BYTES,
    IMAGES,
    MOST_FILES,
    Kind,
    Limits,
    archive_faults,
    kind_of,
    zip_issue,
)

logger = logging.getLogger(__name__)
CHUNK = 2**20
UNPACKED = "files"
"""Folder of what an archive held."""
END_RECORD, LONGEST_END = b"PK\5\6", 22 + 2**16
"""Signature of the record at the end of an archive, and how many bytes from its end it begins at most."""
LOCATOR, LOCATOR_BYTES = b"PK\6\7", 20
"""Of the larger record that archives above 4 GB or 65535 files have."""
ENTRY_BYTES = 1024
"""Of the table of an archive, for each of `MOST_FILES`."""
TAKES = "send a NIfTI, NRRD or MHA file, a DICOM file with all slices, or a zip of a DICOM series"


def images_of(upload: Path, folder: Path, limits: Limits) -> tuple[Path, ...]:
    """The files of the image in ``upload``, in ``folder``, where an archive is unpacked; the upload itself is removed or renamed.

    One file with all channels, one file per channel in the order of their names in the archive, or a folder of DICOM slices.
    Raises `AutosegError` for what is not taken.
    """
    with open(upload, "rb") as file:
        kind = kind_of(file.read(HEAD_BYTES))
    if kind == ".zip":
        found = unpack(upload, folder / UNPACKED, limits)
        upload.unlink()
        return found
    if kind is None:
        message = "it is none of the formats that are taken, by its first bytes"
        raise AutosegError(Issue(code="serve.unknown_kind", where="upload", message=message, fix=TAKES))
    image = upload.rename(folder / f"image{kind}")
    if kind == ".dcm" and is_segmentation(image):
        raise AutosegError(Issue(code="serve.not_an_image", where="upload", message="a segmentation", fix=TAKES))
    require_whole([image])
    return (image,)


def unpack(archive: Path, folder: Path, limits: Limits) -> tuple[Path, ...]:
    """Unpack an archive into the new ``folder``; returns the folder where it holds DICOM slices, else its images.

    Its files get numbers as names. Hidden files, and those that systems add, are left out. Raises `AutosegError` with all that is wrong
    with it, before a byte is unpacked where its table tells, else at the byte that is too much.
    """
    folder.mkdir()
    images: list[Path] = []
    slices, left = 0, limits.unpacked_bytes
    try:
        require_small_table(archive)
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            if faults := archive_faults(entries, limits.unpacked_bytes):
                raise AutosegError(*faults)
            wanted = sorted(
                (e for e in entries if not e.is_dir() and not any(map(is_debris, e.filename.split("/")))),
                key=lambda entry: entry.filename,
            )
            for number, entry in enumerate(wanted, start=1):
                path = folder / f"{number:06}"
                with opened.open(entry) as packed, open(path, "xb") as file:
                    left -= _copy(packed, file, left)
                kind = _kind(path)
                slices += kind == ".dcm"
                if kind in IMAGES or kind == ".dcm":
                    path = path.rename(path.with_name(f"{path.name}{kind}"))
                if kind in IMAGES:
                    images.append(path)
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        message = f"it cannot be unpacked ({str(error)[:200] or type(error).__name__})"
        raise AutosegError(zip_issue(code="serve.zip_damaged", message=message)) from error
    if images and slices:
        raise AutosegError(zip_issue(code="serve.zip_mixed", message="it holds both DICOM files and other images"))
    if images:
        require_whole(images)
        return tuple(images)
    if not slices and not is_dicom_series(folder):
        raise AutosegError(zip_issue(code="serve.zip_no_image", message="it holds no image"))
    return (folder,)


def _kind(path: Path) -> Kind | None:
    with open(path, "rb") as file:
        return kind_of(file.read(HEAD_BYTES))


def _copy(packed: IO[bytes], file: IO[bytes], most: int) -> int:
    """Copy at most so many bytes, and return how many they were. Raises `AutosegError` where there are more."""
    copied = 0
    while part := packed.read(CHUNK):
        copied += len(part)
        if copied > most:
            raise AutosegError(zip_issue(code="serve.zip_too_large", message="it holds more bytes than its table says"))
        file.write(part)
    return copied


def require_small_table(archive: Path) -> None:
    """Raise `AutosegError` for an archive whose table of files is too long to be read, which would fill the memory."""
    with open(archive, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LONGEST_END - LOCATOR_BYTES))
        tail = file.read()
    end = tail.rfind(END_RECORD)
    record = tail[end : end + 22]
    if end < 0 or len(record) < 22:
        raise AutosegError(zip_issue(code="serve.zip_damaged", message="it ends before its table of files"))
    is_large = tail[max(0, end - LOCATOR_BYTES) : end].startswith(LOCATOR)
    table_bytes = int.from_bytes(record[12:16], "little")
    if is_large or table_bytes > MOST_FILES * ENTRY_BYTES:
        message = f"its table of files is too long, for more than {MOST_FILES} files or 4 GB"
        raise AutosegError(zip_issue(code="serve.zip_files", message=message))


def require_whole(images: Sequence[Path]) -> None:
    """Raise `AutosegError` for a header whose voxels lie in another file: it could name any file of the server."""
    for image in images:
        if files_of(image) != (image,):
            message, fix = "its header names another file for its voxels", "store header and voxels in one file"
            raise AutosegError(Issue(code="serve.detached", where=image.name, message=message, fix=fix))


def examine(images: Sequence[Path], ask: Ask, predictor: Predictor) -> None:
    """Raise `AutosegError` for images that cannot be predicted or answered as asked, as far as their headers tell."""
    whole = [series_path(image, ask.series) for image in images]
    headers = [read_header(image) for image in whole]
    expected, number = predictor.model.plan.channels, sum(header.num_channels for header in headers)
    if number != len(expected):
        message = f"{number} channels, but the model was trained on {len(expected)}: {', '.join(expected)}"
        fix = "send one file with all channels, or a zip with one file per channel, in the order of their names"
        raise AutosegError(Issue(code="image.channels", where="upload", message=message, fix=fix))
    if wanted := [wish for wish in ask.wishes if wish in DICOM]:
        for wish in wanted:
            dicom_output(wish, None, predictor.model.dataset, maker_of(predictor), logger.debug)
        try:
            require_source(whole[0])
        except AutosegError as error:
            fix = "send a DICOM series, or ask for format=nifti"
            raise AutosegError(*(issue.model_copy(update={"fix": fix}) for issue in error.issues)) from error


def series_path(image: Path, series: str) -> Path:
    """What names the image for the readers: of a folder with several series the one that is wanted.

    Raises `AutosegError` where it is not there, and where none is named.
    """
    if not image.is_dir():
        return image
    found = list_series(image)
    paths = {each.uid: each.path for each in found}
    if series in paths:
        return paths[series]
    if series or len(found) > 1:
        named = "; ".join(f"{each.uid} ({each.num_slices} slices, {each.description})" for each in found)
        message = f"it has {'no such series, but ' if series else ''}{len(found)} series: {named}"
        fix = "pass one as series=UID, or send it alone"
        raise AutosegError(Issue(code="serve.several_series", where="zip", message=message, fix=fix))
    return image


def without_paths(issues: Sequence[Issue], folder: Path) -> tuple[Issue, ...]:
    """The issues without the place of the upload, which is no client's business."""
    names = {f"{folder}/{UNPACKED}/": "zip: ", f"{folder}/{UNPACKED}": "zip", f"{folder}/": "", f"{folder}": "upload"}
    return tuple(
        issue.model_copy(update={name: _renamed(getattr(issue, name), names) for name in ("where", "message", "fix")})
        for issue in issues
    )


def _renamed(text: str, names: Mapping[str, str]) -> str:
    for path, name in names.items():
        text = text.replace(path, name)
    return text

"""What is in the files of a dataset: size and time first, their content only when those differ."""

from __future__ import annotations

from functools import partial
from hashlib import file_digest
from pathlib import Path

from autoseg.datasets.dataset import DatasetDescription
from autoseg.errors import AutosegError
from autoseg.execution.jobs import run_jobs, workers_worth_starting
from autoseg.imaging.formats import files_of
from autoseg.pipeline.freshness import digest
from autoseg.run_folder import RunFolder, load_document, save_document
from planners import Document

BYTE_S = 1e-9
"""Processor time to hash a byte."""


class FileContent(Document):
    """One file as it was last read."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


class Contents(Document):
    """``files.json`` of a run folder."""

    files: tuple[FileContent, ...]


def dataset_content(run: RunFolder, dataset: DatasetDescription, *, num_workers: int) -> str:
    """Hash of the content of all image and label files.

    A file whose size and modification time are those of the last call is not read again; touching or copying files
    back changes nothing. Raises `AutosegError` that names a file which cannot be read.
    """
    cases = (*dataset.training, *dataset.test)
    paths = sorted({str(file) for case in cases for path in (*case.images, *case.label_files) for file in files_of(path)})
    known = {entry.path: entry for entry in _known(run).files}
    new_bytes = sum(_size(path) for path in paths if path not in known)
    workers = workers_worth_starting(num_workers, BYTE_S * new_bytes)
    files = tuple(run_jobs(partial(_content, known=known), paths, name=str, num_workers=workers))
    if files != _known(run).files:
        save_document(run.files, Contents(files=files))
    return digest([[entry.path, entry.sha256] for entry in files])


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:  # reading it says what is wrong
        return 0


def _known(run: RunFolder) -> Contents:
    try:
        return load_document(Contents, run.files)
    except AutosegError:
        return Contents(files=())


def _content(path: str, *, known: dict[str, FileContent]) -> FileContent:
    try:
        status = Path(path).stat()
        before = known.get(path)
        if before is not None and (before.size, before.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return before
        with open(path, "rb") as file:
            sha256 = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AutosegError(f"{path} could not be read ({error.strerror or error}); restore it, or remove its case") from error
    return FileContent(path=path, size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=sha256)

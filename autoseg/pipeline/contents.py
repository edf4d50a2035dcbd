"""What is in the files of a dataset: size and time first, their content only when those differ."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from autoseg.compute.executor import run_jobs, workers_worth_starting
from autoseg.data.dataset import Case, DatasetDescription
from autoseg.imaging.readers import files_of
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, save_document
from autoseg.storage.cache import FileContent, key_of, read_content
from planners import Document

BYTE_S = 1e-9
"""Processor time to hash a byte."""


class Contents(Document):
    """``files.json`` of a run folder."""

    files: tuple[FileContent, ...]


def read_contents(run: RunFolder, dataset: DatasetDescription, *, num_workers: int) -> DatasetDescription:
    """The dataset with the hash of what is in the files of each case.

    A file whose size and modification time are those of the last call is not read again; touching, moving or copying
    files back changes nothing. Raises `AutosegError` that names a file which cannot be read.
    """
    cases = (*dataset.training, *dataset.test)
    found = {path: [str(file) for file in files_of(path)] for case in cases for path in _named(case)}
    paths = sorted({file for files in found.values() for file in files})
    known = {entry.path: entry for entry in _known(run).files}
    new_bytes = sum(_size(path) for path in paths if path not in known)
    workers = workers_worth_starting(num_workers, BYTE_S * new_bytes)
    files = tuple(run_jobs(partial(_content, known=known), paths, name=str, num_workers=workers))
    if files != _known(run).files:
        save_document(run.files, Contents(files=files))
    hashes = {entry.path: entry.sha256 for entry in files}

    def hashes_of(case: Case) -> list[str]:
        return [hashes[file] for path in _named(case) for file in found[path]]

    def read(cases: tuple[Case, ...]) -> tuple[Case, ...]:
        return tuple(case.model_copy(update={"content": key_of(hashes_of(case))}) for case in cases)

    training, test = read(dataset.training), read(dataset.test)
    content = key_of([[case.case_id, case.content] for case in (*training, *test)])
    return dataset.model_copy(update={"training": training, "test": test, "content": content})


def trained_on(dataset: DatasetDescription) -> str:
    """Hash of all of a dataset that trainings depend on: not where it lies, what its test images are, or what it is taken for."""
    cases = [[case.case_id, case.content, case.annotated, case.group, case.parts] for case in dataset.training]
    return key_of(dataset.channels, dataset.coding, cases)


def _named(case: Case) -> tuple[str, ...]:
    """What a case consists of, in the order of its channels, then its labels."""
    return (*case.images, *case.label_files)


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
    return read_content(path, known.get(path))

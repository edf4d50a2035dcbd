"""The run folder: where each file of a run lies, and how files are written so that a kill leaves no half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from autoseg.errors import AutosegError
from autoseg.half_written import claim, temporary_path
from planners import Document, DocumentError, read_document, write_document

D = TypeVar("D", bound=Document)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside one run folder. Nothing is created by asking for a path."""

    root: Path
    work: Path | None = None
    """Where preprocessed data goes, if not below ``root``."""

    @property
    def dataset(self) -> Path:
        return self.root / "dataset.json"

    @property
    def files(self) -> Path:
        """Hashes of the dataset's files."""
        return self.root / "files.json"

    @property
    def label_looks(self) -> Path:
        """Values and overlaps that were looked up in the dataset's label files."""
        return self.root / "label_looks.json"

    @property
    def fingerprint(self) -> Path:
        return self.root / "fingerprint.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def schedule(self) -> Path:
        return self.root / "schedule.json"

    @property
    def splits(self) -> Path:
        return self.root / "splits.json"

    @property
    def selection(self) -> Path:
        return self.root / "selection.json"

    def stage(self, name: str) -> Path:
        """What a finished stage consumed; decides whether it is done again."""
        return self.root / "stages" / f"{name}.json"

    def kept(self, name: str) -> Path:
        """Results of single cases, while the stage is at work."""
        return self.root / "stages" / f"{name}.cases"

    def lock(self, name: str) -> Path:
        """Lock of a stage or a fold."""
        return self.root / "locks" / f"{name}.lock"

    @property
    def cross_validation(self) -> Path:
        """The chosen model's predictions of all training cases, each by a network that did not see it."""
        return self.root / "cross_validation"

    @property
    def record(self) -> Path:
        return self.root / "run.json"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders that a run makes; what else lies beside them is somebody's."""
        inside = (self.root / "stages", self.root / "locks", self.models, self.cross_validation, self.predictions, self.report)
        return (*inside, self.all_preprocessed)

    @property
    def is_begun(self) -> bool:
        """Whether a run has been at work in this folder."""
        return (self.root / "stages").is_dir() and (self.root / "locks").is_dir()

    @property
    def all_preprocessed(self) -> Path:
        return (self.work or self.root) / "preprocessed"

    def preprocessed(self, configuration: str) -> Path:
        return self.all_preprocessed / configuration

    def fold(self, configuration: str, fold: int) -> Path:
        return self.models / configuration / f"fold_{fold}"

    def next_stage(self, configuration: str, following: str) -> Path:
        """Label maps that ``configuration`` made of all training cases for the stage ``following`` of a cascade."""
        return self.models / configuration / "next_stage" / following

    def validation(self, configuration: str, fold: int) -> Path:
        return self.fold(configuration, fold) / "validation"


def run_of(path: Path) -> RunFolder | None:
    """The run in one of whose own folders ``path`` lies; what lies elsewhere in a run folder is somebody's."""
    above = (RunFolder(folder) for folder in path.parents)
    return next((run for run in above if run.is_begun and any(path.is_relative_to(folder) for folder in run.folders)), None)


def require_file_name(path: Path) -> None:
    """Raise `AutosegError` where ``path`` is a folder, in whose place no file can be put."""
    if not path.name or os.path.isdir(path):
        raise AutosegError(f"{path} is a folder, but a file is to be written; give the name of a file, in this folder or another")


@contextmanager
def atomic_write(path: Path, *, mode: str = "wb") -> Iterator[IO[bytes]]:
    """A binary file that appears at ``path`` whole or not at all.

    Written under a temporary name beside it, flushed to the disk, then renamed; the folder is made if missing.
    Raises `AutosegError` where ``path`` is a folder, and one that names the folder when the disk is full or the folder is read-only.
    """
    require_file_name(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode) as file:
            claim(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Files of one folder, each whole or not there; they get their names in the order given, when all are on the disk.

    Cheaper than one after the other. After a power cut the first ones may be missing where the last one is there: look.
    Raises `AutosegError` that names the folder when the disk is full or the folder is read-only.
    """
    temporaries = {path: temporary_path(path) for path in contents}
    path = next(iter(contents))
    try:
        with ExitStack() as opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            files = []
            for path, content in contents.items():
                files.append(opened.enter_context(open(temporaries[path], "wb")))
                claim(files[-1].fileno())
                files[-1].write(content)
                files[-1].flush()
            for file in files:
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        for temporary in temporaries.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_error(path: Path, error: OSError) -> AutosegError:
    """The error a person needs when ``path`` could not be written; it names no option, for commands call that place differently."""
    return AutosegError(
        f"{path} could not be written ({error.strerror or error}); free some space there, allow writing to its folder, or give "
        "the command another place to write to"
    )


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def save_document(path: Path, document: Document) -> None:
    """Write a document atomically."""
    write_text(path, write_document(document))


def load_document(model: type[D], path: Path, *, mend: str | None = None) -> D:
    """Read a document; a missing or faulty file is an `AutosegError` with all its problems.

    ``mend`` says what to do about a file that a person gave; none: what to do about one that a stage writes.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        again = "it is written by an earlier stage: give the folder of a run, or run that stage first"
        raise AutosegError(f"{path} could not be read ({error.strerror or error}); {mend or again}") from error
    try:
        return read_document(model, text, where=str(path))
    except DocumentError as error:
        raise AutosegError(f"{error}\n{mend or 'restore the file, or delete it so that its stage is done again'}") from error

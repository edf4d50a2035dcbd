"""Atomic files and folders: written under a temporary name, locked meanwhile, renamed at the end."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

from autoseg.issues import AutosegError, Issue
from planners import Document, DocumentError, read_document, write_document

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and nothing of the dead is removed
    fcntl = None  # type: ignore[assignment]

D = TypeVar("D", bound=Document)
SETTLED_S = 1.0
"""A younger file may lie between its creation and its lock."""
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.part")
"""Names that `temporary_path` gives; other programs have files that end in ``.part``, too."""
CLAIM = ".claim"
"""Ending of the folders of `claimed_folder`."""


def temporary_path(path: Path) -> Path:
    """A temporary name in the folder of ``path`` for the file that will replace it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def claim(handle: int) -> None:
    """Lock an open file or folder for as long as it stays open in this process, so that others know it is being written.

    Where the file system has no locks nothing happens: what is locked nowhere is removed nowhere.
    """
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A claimed folder next to ``path``, removed at the end with all that is still in it."""
    folder = temporary_path(path)
    handle = None
    try:
        folder.mkdir(parents=True)
        if fcntl is not None:  # Windows opens no folders
            handle = os.open(folder, os.O_RDONLY)
            claim(handle)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


@contextmanager
def claimed_folder(path: Path) -> Iterator[Path | None]:
    """As `temporary_folder`, but the only one for ``path`` among all processes: None while another one has it.

    What a killed process left in it is removed. Where nothing can be locked, everyone gets a folder of their own.
    """
    folder = path.with_name(f".{path.name}{CLAIM}")
    handle, taken = None, fcntl is not None
    while taken and handle is None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle), os.stat(folder)):  # its owner has removed it meanwhile
                raise FileNotFoundError
        except OSError as error:
            if handle is not None:
                os.close(handle)
            handle, taken = None, isinstance(error, FileNotFoundError)
            if isinstance(error, BlockingIOError):
                yield None
                return
    if handle is None:
        with temporary_folder(path) as own:
            yield own
        return
    try:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def remove_claims(folder: Path) -> None:
    """Remove the `claimed_folder` of killed processes in ``folder``."""
    for left in folder.glob(f".*{CLAIM}"):
        with claimed_folder(left.with_name(left.name[1 : -len(CLAIM)])):
            pass


def remove_orphans(folder: Path, *, below: bool = True) -> list[Path]:
    """Remove what killed processes left half-written in ``folder``, and in the folders ``below``; returns it.

    Files that are still being written stay, and so do files with other names.
    """
    found = [path for path in _temporaries(folder, below=below) if fcntl is not None and _is_orphan(path)]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
    return found


def _temporaries(folder: Path, *, below: bool) -> Iterator[Path]:
    """Files and folders with our temporary names; such a folder counts as one.

    Folders may vanish on the way: others are at work in them.
    """
    for parent, folders, files in os.walk(folder):  # unlike `Path.rglob` it passes over folders that vanished
        yield from (Path(parent, name) for name in (*folders, *files) if TEMPORARY.fullmatch(name))
        folders[:] = [name for name in folders if below and not TEMPORARY.fullmatch(name)]


def _is_orphan(path: Path) -> bool:
    try:
        if time.time() - path.stat().st_mtime < SETTLED_S:
            return False
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def require_file_name(path: Path) -> None:
    """Raise `AutosegError` if ``path`` is a folder, which a file cannot replace."""
    if not path.name or os.path.isdir(path):
        raise AutosegError(
            Issue(code="file.is_a_folder", where=str(path), message="is a folder, not a file", fix="pass a file name")
        )


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at ``path`` atomically.

    Written under a temporary name next to it, flushed to the disk, then renamed; the folder is made if missing.
    Raises `AutosegError` where ``path`` is a folder, and one that names the folder when the disk is full or the folder is read-only.
    """
    require_file_name(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
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
    """The error for a ``path`` that could not be written; it names no option because commands name that place differently."""
    message = f"could not be written ({error.strerror or error})"
    fix = "free some space there, allow writing to its folder, or choose another place to write to"
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        fix = "choose another place to write to"
    return AutosegError(Issue(code="file.not_written", where=str(path), message=message, fix=fix))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def save_document(path: Path, document: Document) -> None:
    """Write a document atomically."""
    write_text(path, write_document(document))


def load_document(model: type[D], path: Path, *, fix: str | None = None) -> D:
    """Read a document; a missing or faulty file is an `AutosegError` with all its problems.

    ``fix`` is for a file that the user gave; without it, the error says how to fix one that a stage writes.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        again = "it is written by an earlier stage: pass the folder of a run, or run that stage first"
        message = f"could not be read ({error.strerror or error})"
        raise AutosegError(Issue(code="file.unreadable", where=str(path), message=message, fix=fix or again)) from error
    try:
        return read_document(model, text, where=str(path))
    except DocumentError as error:
        last = fix or "restore the file, or delete it to redo its stage"
        issues = [
            issue.model_copy(
                update={"where": f"{path}, {issue.where}", "fix": f"{issue.fix}; {last}" if issue.fix else last}
            )
            for issue in error.issues
        ]
        headline = f"{path} cannot be read:" if len(issues) > 1 else None
        raise AutosegError(*issues, headline=headline) from error


def zip_member(name: str) -> zipfile.ZipInfo:
    """An entry of an archive, dated as early as a zip file can say: the same content gives the same bytes."""
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o644 << 16
    return member


def load_or_none(model: type[D], path: Path) -> D | None:
    """A document; None where it is missing or cannot be read."""
    try:
        return load_document(model, path)
    except AutosegError:
        return None

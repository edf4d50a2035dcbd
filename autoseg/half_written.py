"""Files and folders that are being written: known by their names, locked while their writer lives, removed when it is dead."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and nothing of the dead is removed
    fcntl = None  # type: ignore[assignment]

SETTLED_S = 1.0
"""A younger file may lie between its creation and its lock."""
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.part")
"""Names that `temporary_path` gives; other programs have files that end in ``.part``, too."""


def temporary_path(path: Path) -> Path:
    """A new name beside ``path`` for what will take its place."""
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
    """A claimed folder beside ``path``, removed at the end with all that is still in it."""
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


def remove_orphans(folder: Path, *, below: bool = True) -> list[Path]:
    """Remove what killed processes left half-written in ``folder``, and in the folders ``below``; returns it.

    What anybody still writes stays, and so does what is not named as we name it.
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
    """What is named as we name it; what lies in such a folder goes with it.

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

"""What is in a file: told by size and time, and read only where those differ."""

from __future__ import annotations

from hashlib import file_digest
from pathlib import Path

from autoseg.errors import AutosegError
from planners import Document


class FileContent(Document):
    """One file as it was last read."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


def read_content(path: Path | str, before: FileContent | None) -> FileContent:
    """The file as it is now; not read where its size and modification time are those of ``before``.

    Raises `AutosegError` that names a file which cannot be read.
    """
    try:
        status = Path(path).stat()
        if before is not None and (before.size, before.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return before
        with open(path, "rb") as file:
            sha256 = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AutosegError(f"{path} could not be read ({error.strerror or error}); restore it, or remove its case") from error
    return FileContent(path=str(path), size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=sha256)

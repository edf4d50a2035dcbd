"""A journal of what the files of a folder were made from: one JSON line each, added before its files get their names.

Several processes may append at once, and a killed one costs at most the line that it was writing. A file belongs to the
journal's owner exactly if a line knows its content; everything else in the folder is the user's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import write_error
from autoseg.storage.cache import FileContent, read_content
from planners import Document

Header = TypeVar("Header", bound=Document)
FileState = Literal["current", "missing", "outdated", "unknown"]


def _require_name(name: str) -> str:
    """Names in a journal are followed when files are removed, so they must not lead out of its folder."""
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{name!r} is not the name of a file")
    return name


def _require_names(files: tuple[FileContent, ...]) -> tuple[FileContent, ...]:
    for file in files:
        _require_name(file.path)
    return files


class Provenance(Document):
    """What made the files of an item, for those who ask later."""

    version: str
    """Of autoseg."""
    model: str
    """Key of the model: changes with its weights and with their use."""
    options: dict[str, str]
    """How it was used, and on which device."""
    seconds: float
    """Spent on reading and predicting it."""
    peak_memory_bytes: int | None = None
    """The most main memory that the process had taken by then."""
    peak_gpu_memory_bytes: int | None = None
    flags: tuple[str, ...] = ()
    """Codes of what was noted on it, such as an image that is unlike those of training."""


class Entry(Document):
    """One line: what was made for an item, and from what."""

    item: Annotated[str, AfterValidator(_require_name)]
    made_from: str
    """`autoseg.storage.cache.key_of` of everything it was made from, the content of ``inputs`` included."""
    origin: str = ""
    """Hash of the folder and names of the inputs: distinguishes a changed input from another one of the same name."""
    inputs: tuple[FileContent, ...] = ()
    """Files that were read, by name, as they were then: unchanged ones need not be hashed again."""
    files: Annotated[tuple[FileContent, ...], AfterValidator(_require_names)]
    """Files that were written, by name: folders may be moved."""
    volumes_ml: dict[str, float] = Field(default_factory=dict)
    """What was found in it, by class."""
    expected: dict[str, dict[str, tuple[float, float, float] | None]] = Field(default_factory=dict)
    """By class, ``dice`` and ``volume_ml``: lower end, middle and upper end of the range where it probably is; none: not known."""
    provenance: Provenance | None = None
    """None in lines of versions before 0.3, and of a run's cross-validation."""


@dataclass(slots=True)
class Journal(Generic[Header]):
    """The lines of a journal file, those of other processes included as they appear."""

    path: Path
    kind: type[Header]
    """Of the header: what all items have in common."""
    _headers: list[Header] = field(default_factory=list)
    _entries: dict[str, list[Entry]] = field(default_factory=dict)
    _bytes_read: int = 0

    def header(self) -> Header | None:
        """The first header; none: nothing was begun."""
        self._read_on()
        return self._headers[0] if self._headers else None

    def begin(self, header: Header) -> Header:
        """Write ``header`` unless there is one; returns the one that counts, which may be that of another process."""
        if self.header() is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise write_error(self.path.parent, error) from error
            self.add(header)
        found = self.header()
        return header if found is None else found

    def of(self, item: str) -> Sequence[Entry]:
        """All lines of an item, the latest last; truncated lines are skipped."""
        self._read_on()
        return self._entries.get(item, [])

    def entries(self) -> Mapping[str, Sequence[Entry]]:
        """The lines of all items."""
        self._read_on()
        return self._entries

    def add(self, document: Document) -> None:
        """Append a line, which is on disk when this returns. Raises `AutosegError` where it cannot be written."""
        line = f"\n{document.model_dump_json()}\n".encode()  # ends a line that was truncated before
        try:
            with open(self.path, "ab", buffering=0) as file:
                if file.write(line) < len(line):
                    raise OSError("truncated, as on a full disk")
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error

    def _read_on(self) -> None:
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size < self._bytes_read:  # removed and begun again
                    self._forget()
                file.seek(self._bytes_read)
                new = file.read()
        except FileNotFoundError:
            self._forget()
            return
        except OSError as error:
            message = f"could not be read ({error.strerror or error})"
            raise AutosegError(
                Issue(code="file.unreadable", where=str(self.path), message=message, fix="check its permissions")
            ) from error
        whole = new[: new.rfind(b"\n") + 1]
        self._bytes_read += len(whole)
        for line in whole.decode("utf-8", errors="replace").split("\n"):
            self._take(line)

    def _take(self, line: str) -> None:
        try:
            entry = Entry.model_validate_json(line)
            self._entries.setdefault(entry.item, []).append(entry)
        except ValidationError:
            try:
                self._headers.append(self.kind.model_validate_json(line))
            except ValidationError:
                return  # empty, or truncated

    def _forget(self) -> None:
        self._headers, self._entries, self._bytes_read = [], {}, 0


def file_names(entries: Sequence[Entry]) -> frozenset[str]:
    """Names of all files that were ever made for an item."""
    return frozenset(file.path for entry in entries for file in entry.files)


def named_contents(files: Sequence[Path], before: Sequence[FileContent] = ()) -> tuple[FileContent, ...]:
    """Content of ``files`` by name. Those that ``before`` knows with the same size and time are not read again."""
    known = before if [each.path for each in before] == [file.name for file in files] else [None] * len(files)
    return tuple(
        read_content(file, content).model_copy(update={"path": file.name})
        for file, content in zip(files, known, strict=True)
    )


def file_state(parts: Sequence[Path], entries: Sequence[Entry]) -> FileState:
    """State of an output, which consists of the files ``parts``, given the ``entries`` of its item.

    ``current``: as the latest line knows it; ``outdated``: as an older line does; ``unknown``: changed, or truncated.
    """
    if not entries or not all(part.exists() for part in parts):
        return "missing"
    latest = {file.path: file for file in entries[-1].files}
    found = {
        (part.name, content.sha256)
        for part in parts
        if (content := read_content(part, latest.get(part.name))) is not None
    }
    if found <= {(file.path, file.sha256) for file in entries[-1].files}:
        return "current"
    return "outdated" if found <= {(file.path, file.sha256) for each in entries for file in each.files} else "unknown"

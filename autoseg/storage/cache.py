"""Results that need not be computed again: of files that have not changed, and of cases that are done.

Written as JSON, so that reading them never runs code; arrays go along as text.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from autoseg import __version__
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import temporary_path
from planners import Document, essence

Item = TypeVar("Item")
Result = TypeVar("Result")


def _always(_: Any) -> bool:
    return True


class _AsText:
    """How pydantic writes and reads an array."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _read_array, serialization=core_schema.plain_serializer_function_ser_schema(_write_array)
        )


KEPT = _AsText()
"""``Annotated[NDArray[...], KEPT]``: an array in a dataclass that may be kept."""


def _write_array(array: NDArray[Any] | None) -> dict[str, Any] | None:
    if array is None:
        return None
    return {"dtype": array.dtype.str, "shape": array.shape, "data": b64encode(array.tobytes()).decode()}


def _read_array(text: Any) -> NDArray[Any] | None:
    if text is None or isinstance(text, np.ndarray):
        return text
    dtype = np.dtype(text["dtype"])
    if dtype.hasobject:
        raise ValueError(f"arrays of {dtype} are not kept")
    return np.frombuffer(b64decode(text["data"]), dtype).reshape(text["shape"]).copy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached(Generic[Item, Result]):
    """A function of one case whose results are cached on disk, across processes.

    A result counts while its function, the settings bound to it by `partial`, the version and ``state`` are the same.
    """

    function: Callable[[Item], Result]
    kind: Any
    """What the function returns: a document, or a dataclass of plain values, documents and arrays that are `KEPT`."""
    state: Callable[[Item], object]
    """All that the result depends on, as text: the item, and the state of the files that are read."""
    folder: Path
    worth_keeping: Callable[[Result], bool] = _always
    """Whether a result depends on nothing but ``state``: a failure may be over at the next call."""

    def __call__(self, item: Item) -> Result:
        """The kept result, or a new one, which is then kept if that saves time; without space on disk it is only returned."""
        path = self._path(item)
        with suppress(OSError, ValueError):
            kept: tuple[Result] = _adapter(self.kind).validate_json(path.read_bytes())
            return kept[0]
        result = self.function(item)
        if not self.worth_keeping(result):
            return result
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = temporary_path(path)
            try:
                temporary.write_bytes(_adapter(self.kind).dump_json((result,)))
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        return result

    def has(self, item: Item) -> bool:
        """Whether a result of ``item`` is kept."""
        return self._path(item).is_file()

    def _path(self, item: Item) -> Path:
        inner: Any = self.function
        settings: Any = ()
        if isinstance(inner, partial):
            inner, settings = inner.func, (inner.args, sorted(inner.keywords.items()))
        parts = (__version__, f"{inner.__module__}.{inner.__qualname__}", settings, self.state(item))
        return self.folder / f"{sha256(repr(parts).encode()).hexdigest()}.json"


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Of a tuple around ``kind``, which passes its settings on to whatever is inside."""
    return TypeAdapter(
        tuple[kind], config=ConfigDict(ser_json_inf_nan="constants", ser_json_bytes="hex", val_json_bytes="hex")
    )


def key_of(*values: object) -> str:
    """Hash of documents and plain values, without the prose in them: equal inputs have equal keys."""
    text = json.dumps([essence(value) for value in values], sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()


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
        message = f"could not be read ({error.strerror or error})"
        raise AutosegError(
            Issue(code="file.unreadable", where=str(path), message=message, fix="restore it, or remove its case")
        ) from error
    return FileContent(path=str(path), size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=sha256)

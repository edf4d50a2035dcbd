"""Names of files that are no text: the system takes any bytes, but image libraries are ended by them and JSON cannot hold them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from autoseg.issues import AutosegError, Issue

STRAY_BYTE = re.compile("[\udc80-\udcff]")
"""What Python writes for a byte of a name that is no UTF-8."""


def require_text(paths: Iterable[Path | str]) -> None:
    """Raise `AutosegError` with each of ``paths``, or the folder on the way to it, whose name is not valid UTF-8."""
    found = dict.fromkeys(_misnamed(Path(path)) for path in paths if not _is_text(str(path)))
    if found:
        raise AutosegError(
            *[
                Issue(
                    code="reader.name_not_text",
                    where=printable(path),
                    message="its name is not valid UTF-8",
                    fix="rename it",
                )
                for path in found
            ]
        )


def printable(text: Path | str) -> str:
    r"""A path, or a text with paths in it, that can be printed and stored: bytes that are no UTF-8 are written as ``\xfc``."""
    escaped = STRAY_BYTE.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", str(text))
    return escaped.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _misnamed(path: Path) -> Path:
    """The outermost folder on the way whose name is no text, or the file itself: renaming that mends all below it."""
    return next(folder for folder in (*reversed(path.parents), path) if not _is_text(str(folder)))

"""Refuses a file that wants more memory than is free before any of it is taken."""

from __future__ import annotations

from pathlib import Path

from autoseg.compute.free_memory import free_memory_bytes
from autoseg.imaging.readers.header import reader_error

LESS_MEMORY = "close other programs, use fewer workers, or leave the case out"
SMALL_BYTES = 10**8
"""Images below this size are read without looking."""


def require_memory(path: Path, num_bytes: int) -> None:
    """Raise `AutosegError` when ``num_bytes`` for the voxels of ``path`` are more than there is."""
    if num_bytes <= SMALL_BYTES:
        return
    free = free_memory_bytes()
    if num_bytes > free:
        raise reader_error(
            "reader.too_large",
            path,
            f"its voxels need {num_bytes / 1e9:.1f} GB of memory, but {free / 1e9:.1f} GB are free",
            LESS_MEMORY,
        )

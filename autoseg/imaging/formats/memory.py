"""How much memory the machine can still give, so that a file that wants more is refused before it is taken."""

from __future__ import annotations

import os
from pathlib import Path

from autoseg.errors import AutosegError

SMALL_BYTES = 10**8
"""Images below this size are read without looking."""
CGROUP = Path("/sys/fs/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current", "file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_cache"),
)
"""Limit, use, and the name of cached files in ``memory.stat``, of version 2 and 1."""


def available_memory() -> int | None:
    """Bytes that this process may still take, by the machine and by the limit of its container; None: unknown."""
    limits = [value for value in (_free_of_machine(), _free_of_container()) if value is not None]
    return min(limits) if limits else None


def require_memory(path: Path, num_bytes: int) -> None:
    """Raise `AutosegError` when ``num_bytes`` for the voxels of ``path`` are more than there is."""
    if num_bytes <= SMALL_BYTES:
        return
    free = available_memory()
    if free is not None and num_bytes > free:
        raise AutosegError(
            f"{path} needs {num_bytes / 1e9:.1f} GB of memory for its voxels, but {free / 1e9:.1f} GB are free; "
            "close other programs, use fewer workers, or leave the case out"
        )


def _free_of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _free_of_container() -> int | None:
    """What the control group leaves; memory that only caches files is free."""
    for limit, used, cached in CGROUP_FILES:
        try:
            free = int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text())
            lines = [line.split() for line in (CGROUP / used).with_name("memory.stat").read_text().splitlines()]
            return max(0, free + sum(int(value) for name, value in lines if name == cached))
        except (OSError, ValueError):  # no such version, or no limit ("max")
            continue
    return None

"""How much main memory is free for this process: what the system has, and what a container or batch system allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

KIB = 1024


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Bytes that could be used now without swapping; the smallest of what the system and all control groups leave.

    Pages that only keep files at hand count as free. ``root`` holds ``proc`` and ``sys``. Systems without ``/proc`` are
    taken to have half of their memory free.
    """
    available = _available(root / "proc" / "meminfo")
    if available is None:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return max(0, min([available, *(left for folder in _groups(root) if (left := _left(folder)) is not None)]))


def _available(meminfo: Path) -> int | None:
    for line in _lines(meminfo):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * KIB
    return None


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups of this process and of all above them, version 2 and version 1."""
    for line in _lines(root / "proc" / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = root / "sys" / "fs" / "cgroup" / controllers
            here = top / path.lstrip("/")
            yield from (folder for folder in (here, *here.parents) if folder.is_relative_to(top))


def _left(group: Path) -> int | None:
    """What a group may still take; none where it has no limit."""
    names = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for limit_name, usage_name in names:
        limit, usage = (next(iter(_lines(group / name)), "") for name in (limit_name, usage_name))
        if limit.isdigit() and usage.isdigit():
            kept = dict(line.split(maxsplit=1) for line in _lines(group / "memory.stat"))
            return int(limit) - int(usage) + int(kept.get("inactive_file", 0))
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []

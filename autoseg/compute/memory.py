"""Main memory: how much is free for this process, and what to do when it runs out."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

KIB = 1024
NO_LIMIT = 2**60
SHARE_TAKEN = 0.9
"""Of free memory where no limit is given: other programs grow, too."""
PHRASES = (
    "can't allocate memory",
    "out of memory",
    "alloc_failed",
    "failed to allocate",
    "could not allocate",
    "unable to find an engine",
    "cudnn_status_internal_error",
    "cudnn_status_not_supported",
    "cudnn_status_execution_failed",
    "cudnn_status_mapping_error",
    "cublas_status_not_initialized",
)
"""In messages of torch's allocators for CPUs and Apple's GPUs, of cuBLAS and of cuDNN; only CUDA has its own type. cuDNN finds no
engine, or fails inside one, where the workspace does not fit; where something else is wrong, not even one sample is computed."""
ONEDNN = ("could not create a primitive", "could not create a memory object")
"""Whole messages of oneDNN when it cannot allocate its code or its buffers (seen in a process of limited size)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, and nothing else."""
    import torch  # here, so that what only asks for free memory starts without it

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (text in ONEDNN or any(phrase in text for phrase in PHRASES))


def release_memory(device: torch.device) -> None:
    """Release what the device's allocator keeps for later: blocks of the old sizes are of no use."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        trim_heap()


def micro_batch_sizes(batch_size: int) -> tuple[int, ...]:
    """Sizes of micro-batches to try, largest first: the whole batch, then halves of it, rounded up, down to one sample."""
    sizes = [batch_size]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return tuple(sizes)


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be used now without swapping: the smallest of what the system and all control groups leave.

    The page cache counts as free. ``root`` holds ``proc`` and ``sys``. Systems without ``/proc`` are
    taken to have half of their memory free.
    """
    available = _available(root / "proc" / "meminfo")
    if available is None:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return max(0, min([available, *(left for folder in _groups(root) if (left := _left(folder)) is not None)]))


def available_bytes(limit_bytes: int | None) -> int:
    """Bytes that this process may still take, where it may have ``limit_bytes`` in all; none: most of what is free."""
    free = free_memory_bytes()
    return (
        round(SHARE_TAKEN * free) if limit_bytes is None else max(0, min(free, limit_bytes - (resident_bytes() or 0)))
    )


def resident_bytes() -> int | None:
    """Main memory of this process; none if the system does not tell."""
    lines = _lines(Path("/proc/self/status"))
    return next((int(line.split()[1]) * KIB for line in lines if line.startswith("VmRSS")), None)


def peak_bytes() -> int | None:
    """The most main memory that this process has had at once so far; none if the system does not tell."""
    lines = _lines(Path("/proc/self/status"))
    return next((int(line.split()[1]) * KIB for line in lines if line.startswith("VmHWM")), None)


def free_shared_bytes(root: Path = Path("/")) -> int:
    """Bytes of shared memory that processes may still take, often few in containers; systems without a limit have `free_memory_bytes`."""
    try:
        return shutil.disk_usage(root / "dev" / "shm").free
    except OSError:
        return free_memory_bytes(root)


def _available(meminfo: Path) -> int | None:
    for line in _lines(meminfo):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * KIB
    return None


def memory_groups(process: int | str = "self", root: Path = Path("/")) -> Iterator[Path]:
    """Folders of the control groups that a process's memory counts in, version 2 and version 1."""
    for line in _lines(root / "proc" / str(process) / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            yield root / "sys" / "fs" / "cgroup" / controllers / path.lstrip("/")


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups of this process and of all above them."""
    top = root / "sys" / "fs" / "cgroup"
    for here in memory_groups(root=root):
        yield from (folder for folder in (here, *here.parents) if folder.is_relative_to(top))


def _left(group: Path) -> int | None:
    """What a group may still take; none if it has no limit: version 1 writes a number of pages that no machine has."""
    names = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for limit_name, usage_name in names:
        limit = next(iter(_lines(group / limit_name)), "")
        if not limit.isdigit() or int(limit) >= NO_LIMIT:
            continue
        if (usage := next(iter(_lines(group / usage_name)), "")).isdigit():
            kept = dict(line.split(maxsplit=1) for line in _lines(group / "memory.stat"))
            return int(limit) - int(usage) + int(kept.get("inactive_file", 0))
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def trim_heap() -> None:
    """Return what the process holds of freed memory to the system."""
    call_glibc("malloc_trim", 0)


def call_glibc(function: str, *values: int) -> bool:
    """Whether one of glibc's functions succeeds; false without glibc."""
    try:
        return bool(getattr(ctypes.CDLL(None), function)(*values))
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False

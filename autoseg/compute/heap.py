"""Freed main memory: kept for what comes next, or given back to the system."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from autoseg.compute.free_memory import free_memory_bytes

SHARE_OF_FREE = 2 / 3
"""What may be held of free memory; other processes live here, too, and files are kept at hand in it."""
MOST = 1.25
"""Of what was foreseen to be held; beyond, what is free goes back. Even that is free when the holding begins."""
WATCH_INTERVAL_S = 0.1
MMAP_THRESHOLD_BYTES = 32 * 1024**2
"""From here on glibc maps blocks on their own, once it has adapted itself to a process that frees large ones."""
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Names of glibc's settings (malloc.h)."""
KEEPING = ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1))
"""No block is mapped on its own, and the end of the heap stays."""
RETURNING = ((MMAP_MAX, 65536), (MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES), (TRIM_THRESHOLD, 2 * MMAP_THRESHOLD_BYTES))
"""Where glibc's own settings arrive by themselves."""


@contextmanager
def kept_heap(device: torch.device, held_bytes: Callable[[], float]) -> Iterator[None]:
    """Within, freed memory stays with the process, if ``held_bytes``, what it may then hold more, are there to be held.

    By default glibc gives every block of 32 MiB and more back to the system when it is freed. Each step of a large network
    then asks anew for every one of its maps, which the system hands out page by page, filled with zeros: a quarter to a
    half of a step's time (decision 0112). Results do not depend on it. Where gaps between blocks let the process grow
    much beyond ``held_bytes``, and at the end, all that is free goes back. Elsewhere than on a CPU, and without glibc, nothing
    changes. Not to be nested: the inner one ends the outer one.
    """
    held = held_bytes() if device.type == "cpu" else 0.0
    resident = _resident_bytes()
    keeps = (
        device.type == "cpu" and resident is not None and held <= SHARE_OF_FREE * free_memory_bytes() and _set(KEEPING)
    )
    if not keeps or resident is None:
        yield
        return
    ended = threading.Event()
    watch = threading.Thread(target=_give_back_beyond, args=(resident + MOST * held, ended), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()
        _set(RETURNING)
        give_back()


def give_back() -> None:
    """Hand what the process holds of freed memory back to the system."""
    _call_glibc("malloc_trim", 0)


def _give_back_beyond(limit_bytes: float, ended: threading.Event) -> None:
    """glibc looks for room for an aligned block as if it were larger, so that one may not fit into the gap of its like."""
    while not ended.wait(WATCH_INTERVAL_S):
        if (_resident_bytes() or 0) > limit_bytes:
            give_back()


def _resident_bytes() -> int | None:
    """Main memory that this process takes; none where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), None)


def _set(settings: Sequence[tuple[int, int]]) -> bool:
    return all([_call_glibc("mallopt", name, value) for name, value in settings])


def _call_glibc(function: str, *values: int) -> bool:
    """What one of glibc's functions answers; no where there is none."""
    try:
        return bool(getattr(ctypes.CDLL(None), function)(*values))
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False

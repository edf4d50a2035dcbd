"""Workarounds, seen in processes of their own: freed memory stays where a training has enough of it; more files may be open."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from autoseg.compute.workarounds import WATCH_INTERVAL_S

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
BLOCK = 64 * 2**20
"""Bytes; more than glibc ever keeps by default (32 MiB)."""
NUMBER = 30
NOISE = BLOCK // 4
"""What else may come and go in a process."""
PROGRAM = """
import contextlib, json, time
import torch
from autoseg.compute import workarounds

def after_a_block():
    block = torch.ones({block}, dtype=torch.uint8)
    del block
    time.sleep({pause})
    return workarounds.resident_bytes() - before

torch.ones(1000)
before = workarounds.resident_bytes()
for device, held in {calls}:
    within = []
    with contextlib.suppress(KeyError), workarounds.kept_heap(torch.device(device), lambda: eval(held)):
        within += [after_a_block() for _ in range({number})]
        raise KeyError
    print(json.dumps([within, workarounds.resident_bytes() - before]))
"""


def resident_bytes(*calls: tuple[str, str], number: int) -> list[tuple[list[int], int]]:
    """For each device and number of bytes, what is resident after each of some blocks was filled and freed, and after the end,
    which an error brings.
    """
    program = PROGRAM.format(block=BLOCK, number=number, pause=WATCH_INTERVAL_S / 2, calls=calls)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_freed_blocks_stay_within_bounds_and_go_back_at_the_end() -> None:
    ((within, at_the_end),) = resident_bytes(("cpu", str(2 * BLOCK)), number=NUMBER)
    assert sum(resident > BLOCK - NOISE for resident in within) > NUMBER / 2
    assert max(within) < 6 * BLOCK  # what a process that grows with every block could take before it is seen
    assert at_the_end < NOISE


def test_nothing_is_kept_where_others_need_it_or_it_would_not_help() -> None:
    calls = (("cpu", "float('inf')"), ("cpu", "0.9 * workarounds.free_memory_bytes()"), ("cuda", "0"))
    found = resident_bytes(*calls, number=3)
    assert len(found) == len(calls)
    for call, (within, at_the_end) in zip(calls, found, strict=True):
        assert max(*within, at_the_end) < NOISE, call


def test_the_limit_of_open_files_is_raised_as_far_as_the_system_lets_it() -> None:
    program = """
import resource
from autoseg.compute.workarounds import raise_file_limit
for soft, most in ((256, 1024), (512, 256), (256, 10**9)):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, 2048))
    raise_file_limit(most)
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1024 2048", "512 2048", "2048 2048"]

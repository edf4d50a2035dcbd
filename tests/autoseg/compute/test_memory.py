"""Free memory is what the system and every control group leave."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoseg.compute.memory import available_bytes, free_memory_bytes, is_out_of_memory, resident_bytes

GIB = 2**30


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A root folder with 8 GiB available."""
    files = {
        "proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\n",
        "proc/self/cgroup": cgroup,
    } | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_groups_it_is_what_the_system_has(tmp_path: Path) -> None:
    assert free_memory_bytes(machine(tmp_path, "0::/\n", {})) == 8 * GIB


@pytest.mark.parametrize("group", ["", "batch/", "batch/job/"])
def test_the_limit_of_any_group_above_counts(tmp_path: Path, group: str) -> None:
    here = f"sys/fs/cgroup/{group}"
    files = {
        f"{here}memory.max": f"{3 * GIB}\n",
        f"{here}memory.current": f"{2 * GIB}\n",
        f"{here}memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
    }
    assert free_memory_bytes(machine(tmp_path, "0::/batch/job\n", files)) == GIB + GIB // 2


def test_a_group_without_a_limit_takes_nothing(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}
    assert free_memory_bytes(machine(tmp_path, "0::/\n", files)) == 8 * GIB


def test_version_one_is_understood(tmp_path: Path) -> None:
    here = "sys/fs/cgroup/memory/job/memory."
    files = {f"{here}limit_in_bytes": f"{4 * GIB}\n", f"{here}usage_in_bytes": f"{3 * GIB}\n"}
    assert free_memory_bytes(machine(tmp_path, "5:cpu:/job\n4:memory:/job\n", files)) == GIB


def test_this_machine_has_some() -> None:
    assert 0 < free_memory_bytes() < 2**50


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 4.00 GB)"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
    ],
)
def test_errors_of_libraries_that_lack_memory_count_as_such(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_do_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_limit_counts_what_the_process_has_and_what_is_free() -> None:
    own = resident_bytes()
    assert own is not None
    assert available_bytes(own // 2) == 0
    near = 10**8
    assert 0 < available_bytes(own + near) <= 2 * near  # the process may have shrunk
    free = free_memory_bytes()
    assert 0.5 * free < available_bytes(10**15) < 2 * free  # other programs come and go
    assert 0.5 * free < available_bytes(None) < 2 * free


@pytest.mark.parametrize(("limit", "left"), [(2**60 - 1, 2**60 - 1 - 2**59), (2**60, 2**62)])
def test_a_limit_that_no_machine_has_is_none(tmp_path: Path, limit: int, left: int) -> None:
    """Version 1 writes a limit of that kind where there is none."""
    here = "sys/fs/cgroup/memory/memory."
    files = {
        "proc/meminfo": f"MemAvailable: {2**52} kB\n",
        f"{here}limit_in_bytes": f"{limit}\n",
        f"{here}usage_in_bytes": f"{2**59}\n",
    }
    assert free_memory_bytes(machine(tmp_path, "4:memory:/\n", files)) == left

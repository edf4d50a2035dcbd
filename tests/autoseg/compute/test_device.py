"""Devices that do not exist are refused by name, with those that do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from autoseg.compute.device import choose_device
from autoseg.issues import AutosegError


@pytest.mark.parametrize("name", ["tpu", "xpu", "toaster", "cuda:x", "cpu!", ""])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(AutosegError, match=r"does not exist; this machine has .*cpu"):
        choose_device(name)


def test_a_gpu_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AutosegError, match="does not exist; this machine has"):
        choose_device("cuda:97")


def test_the_cpu_always_exists() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.skipif(sys.platform != "linux", reason="torch computes with libgomp on Linux")
@pytest.mark.parametrize(("given", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_users_want_otherwise(given: dict[str, str], found: str) -> None:
    """As the command line loads things."""
    code = "import autoseg.api; from autoseg.compute.device import choose_device"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "OMP_DISPLAY_ENV": "true", **given},
        capture_output=True,
        text=True,
    )
    assert f"OMP_WAIT_POLICY = '{found}'" in done.stderr

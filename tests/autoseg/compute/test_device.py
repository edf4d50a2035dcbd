"""Devices that do not exist are refused by name, with those that do."""

from __future__ import annotations

import pytest
import torch

from autoseg.compute.device import choose_device
from autoseg.issues import AutosegError


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu!", ""])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(AutosegError, match=r"does not exist; this machine has .*cpu"):
        choose_device(name)


def test_a_gpu_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AutosegError, match="does not exist; this machine has"):
        choose_device("cuda:97")


def test_the_cpu_always_exists() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")

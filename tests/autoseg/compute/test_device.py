"""Devices that are not there are refused by name, with those that are."""

from __future__ import annotations

import pytest
import torch

from autoseg.compute.device import choose_device
from autoseg.issues import AutosegError


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu!", ""])
def test_names_that_mean_nothing_are_refused(name: str) -> None:
    with pytest.raises(AutosegError, match=r"does not exist; this machine has .*cpu"):
        choose_device(name)


def test_a_card_that_is_not_there_is_refused() -> None:
    with pytest.raises(AutosegError, match="does not exist; this machine has"):
        choose_device("cuda:97")


def test_the_processor_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")

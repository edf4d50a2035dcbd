"""Weights on disk: errors for files that are not what they should be."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from autoseg.issues import AutosegError
from autoseg.networks.weights import read_key, read_weights, save_weights


def test_only_weights_of_the_key_are_read(tmp_path) -> None:
    path, weight = tmp_path / "final.safetensors", torch.arange(5.0)
    save_weights(path, {"weight": weight}, key="mine")
    assert torch.equal(read_weights(path, key="mine")["weight"], weight)
    with pytest.raises(AutosegError, match="another process has trained it with other options"):
        read_weights(path, key="yours")
    path.write_bytes(safetensors.torch.save({"weight": weight}))
    assert read_key(path) == ""
    with pytest.raises(AutosegError, match="trained it with other options"):
        read_weights(path, key="mine")


def test_weights_that_another_process_removes_are_reported(tmp_path, monkeypatch) -> None:
    path, open_again = tmp_path / "final.safetensors", torch.UntypedStorage.from_file
    save_weights(path, {"weight": torch.zeros(3)}, key="k")

    def take_away_then_open(*args, **kwargs) -> torch.UntypedStorage:
        path.unlink()
        return open_again(*args, **kwargs)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", take_away_then_open)
    with pytest.raises(AutosegError, match=r"final\.safetensors: no readable weights"):
        read_key(path)

"""Weights on disk: what is said of files that are not what they should be."""

from __future__ import annotations

import pytest
import torch

from autoseg.errors import AutosegError
from autoseg.networks.weights import read_key, read_weights, save_weights


@pytest.mark.parametrize("read", [read_key, read_weights])
def test_weights_that_another_process_takes_away_meanwhile_are_told(read, tmp_path, monkeypatch) -> None:
    path, open_again = tmp_path / "final.safetensors", torch.UntypedStorage.from_file
    save_weights(path, {"weight": torch.zeros(3)}, key="k")

    def take_away_then_open(*args, **kwargs) -> torch.UntypedStorage:
        path.unlink()
        return open_again(*args, **kwargs)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", take_away_then_open)
    with pytest.raises(AutosegError, match=r"final\.safetensors holds no readable weights"):
        read(path)

"""Checkpoints of the reference are read without running what is in them."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoseg.interop.nnunet_checkpoint import read_reference_checkpoint
from autoseg.issues import AutosegError


def content(**changes: Any) -> dict[str, Any]:
    """What method section 7.7 says of a checkpoint, with numpy's numbers where the reference leaves them."""
    return {
        "network_weights": OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(2)),
        "optimizer_state": {
            "state": {0: {"momentum_buffer": torch.zeros(2, 3)}},
            "param_groups": [{"lr": 0.01, "params": [0]}],
        },
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float32(0.7), np.float64(0.8)],
            "dice_per_class_or_region": [[np.float32(0.5), np.float32("nan")]],
            "lrs": [0.01],
            "count": [np.int64(3), np.bool_(True)],
        },
        "_best_ema": np.float64(0.75),
        "current_epoch": 7,
        "init_args": {
            "plans": {"configurations": {}},
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": {"labels": {"background": 0}},
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 2),
        **changes,
    }


def saved(path: Path, **changes: Any) -> Path:
    torch.save(content(**changes), path)
    return path


def test_a_checkpoint_is_read(tmp_path: Path) -> None:
    found = read_reference_checkpoint(saved(tmp_path / "c.pth"))
    assert (found.configuration, found.trainer, found.epochs, found.mirror_axes) == (
        "3d_fullres",
        "nnUNetTrainer",
        7,
        (0, 2),
    )
    assert torch.equal(found.weights["a"], torch.arange(6.0).reshape(2, 3))
    assert list(found.weights) == ["a", "b"]


@pytest.mark.parametrize(("axes", "expected"), [(None, ()), ((), ()), ([0, 1, 2], (0, 1, 2))])
def test_training_without_mirroring_mirrors_nothing(tmp_path: Path, axes: Any, expected: tuple[int, ...]) -> None:
    assert (
        read_reference_checkpoint(saved(tmp_path / "c.pth", inference_allowed_mirroring_axes=axes)).mirror_axes
        == expected
    )


def test_numbers_of_earlier_numpy_are_read(tmp_path: Path) -> None:
    """Before version 2 the place of the function was another."""
    whole = saved(tmp_path / "new.pth")
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "old.pth", "w") as new:
        for name in old.namelist():
            part = old.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in part
                part = part.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            new.writestr(name, part)
    assert read_reference_checkpoint(tmp_path / "old.pth").epochs == 7


class Evil:
    """Writes a file where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


class Shell:
    """Would call a shell."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("exit 1",)


def test_code_is_not_run_but_named(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    for extra, name in ((Evil(target), "getattr"), (Shell(), "system")):
        with pytest.raises(AutosegError, match=name) as caught:
            read_reference_checkpoint(saved(tmp_path / "c.pth", extra=extra))
        assert caught.value.codes == ("checkpoint.runs_code",)
    assert not target.exists()


def test_objects_dressed_as_numbers_are_refused(tmp_path: Path) -> None:
    kind = np.dtype(object)
    with pytest.raises(AutosegError) as caught:
        read_reference_checkpoint(saved(tmp_path / "c.pth", extra=kind))
    assert caught.value.codes == ("checkpoint.damaged",)


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "c.pth",
        network_weights={"a": torch.tensor([1.0, float("nan")])},
        init_args={},
        trainer_name=None,
        current_epoch=-1,
        inference_allowed_mirroring_axes=(0, 7),
    )
    with pytest.raises(AutosegError) as caught:
        read_reference_checkpoint(path)
    for word in ("NaN", "init_args", "trainer_name", "current_epoch", "mirroring_axes"):
        assert word in str(caught.value)


@pytest.mark.parametrize("weights", [None, {}, {"a": 1.0}, {1: torch.ones(1)}, [torch.ones(1)]])
def test_weights_that_are_not_weights_are_refused(tmp_path: Path, weights: Any) -> None:
    with pytest.raises(AutosegError, match="not a dict of tensors"):
        read_reference_checkpoint(saved(tmp_path / "c.pth", network_weights=weights))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8),
        lambda: torch.ones(2, 3).to_sparse(),
        lambda: torch.ones(2, 3, dtype=torch.complex64),
        lambda: torch.ones(2, 3, dtype=torch.int64),
        lambda: torch.ones(1).expand(10**13),
    ],
    ids=["quantised", "sparse", "complex", "integer", "forty terabytes"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of kinds that go out of use
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path: Path, make: Callable[[], torch.Tensor]) -> None:
    weights = {"a": torch.ones(2), "b": make()}
    with pytest.raises(AutosegError, match="1 tensors are not plain real numbers, the first is b"):
        read_reference_checkpoint(saved(tmp_path / "c.pth", network_weights=weights))


@pytest.mark.parametrize("epoch", [np.int64(5), np.int32(5), 5])
def test_numbers_of_epochs_may_be_numpys(tmp_path: Path, epoch: Any) -> None:
    found = read_reference_checkpoint(saved(tmp_path / "c.pth", current_epoch=epoch)).epochs
    assert (found, type(found)) == (5, int)


@pytest.mark.parametrize("epoch", [None, True, -1, 0.5, float("nan"), "5"])
def test_other_numbers_of_epochs_are_reported(tmp_path: Path, epoch: Any) -> None:
    with pytest.raises(AutosegError, match=f"current_epoch is {epoch!r}"):
        read_reference_checkpoint(saved(tmp_path / "c.pth", current_epoch=epoch))


@pytest.mark.parametrize("text", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100)])
def test_other_files_are_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "c.pth").write_bytes(text)
    torch.save([1, 2], tmp_path / "list.pth")
    for name, code in (("c.pth", "checkpoint.damaged"), ("list.pth", "checkpoint.not_nnunet")):
        with pytest.raises(AutosegError) as caught:
            read_reference_checkpoint(tmp_path / name)
        assert caught.value.codes == (code,)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_checkpoints_are_refused_or_read(tmp_path: Path, place: float, bit: int, cut: bool) -> None:
    whole = bytearray(saved(tmp_path / "c.pth").read_bytes())
    index = int(place * len(whole))
    if cut:
        del whole[index:]
    else:
        whole[index] ^= 1 << bit
    (tmp_path / "damaged.pth").write_bytes(whole)
    try:
        found = read_reference_checkpoint(tmp_path / "damaged.pth")
    except AutosegError:
        return
    assert not cut
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.weights.values())

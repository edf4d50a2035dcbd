"""Devices that do not exist are refused by name, with those that do; GPUs that torch cannot use are explained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autoseg.compute import device as device_module
from autoseg.compute.device import (
    Gpu,
    choose_device,
    choose_devices,
    fast_precision,
    find_gpu,
    how_to_install,
    introduce_device,
    unusable_gpu_issue,
    use_device,
    why_not_computing,
)
from autoseg.issues import AutosegError, Issue


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


def test_a_device_must_compute_a_convolution_and_its_gradient() -> None:
    assert why_not_computing(torch.device("cpu")) is None
    assert why_not_computing(torch.device("meta"))


def test_the_first_line_of_a_run_names_device_memory_precision_and_torch() -> None:
    line = introduce_device(torch.device("cpu"), num_threads=2)
    words = line.split(", ")
    assert words[:2] == ["CPU", "2 threads"]
    assert words[2].endswith(" GB free")
    assert words[3:] == [fast_precision(torch.device("cpu")), f"torch {torch.__version__}"]


@pytest.fixture
def install_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a program that answers like nvidia-smi, or fails without an answer, and what the kernel tells of the driver, in place."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(answer: str = "", *, kernel: bool = True, nodes: bool = True) -> Path:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho '{answer}'\nexit {0 if answer else 9}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        (tmp_path / "dev").mkdir()
        if kernel:
            (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
            text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\n"
            (tmp_path / "proc/driver/nvidia/version").write_text(text)
        if nodes:
            (tmp_path / "dev/nvidia0").touch()
        return tmp_path

    return install


def test_without_a_driver_there_is_nothing_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpu(tmp_path) is None
    assert unusable_gpu_issue(tmp_path) is None


def test_the_driver_tells_card_version_and_capability(install_driver) -> None:
    root = install_driver("NVIDIA GeForce RTX 3090, 535.183.01, 8.6")
    assert find_gpu(root) == Gpu("NVIDIA GeForce RTX 3090", "535.183.01", 8.6)


def test_a_driver_that_does_not_answer_is_known_by_the_kernel(install_driver) -> None:
    assert find_gpu(install_driver()) == Gpu(driver="550.54.14")


@pytest.mark.skipif(torch.version.cuda is not None, reason="a torch for CPUs")
def test_a_gpu_that_torch_cannot_use_is_said_with_what_to_install(install_driver) -> None:
    issue = unusable_gpu_issue(install_driver("Tesla V100-SXM2-16GB, 535.183.01, 7.0"))
    assert issue is not None
    assert (issue.code, issue.severity) == ("device.unusable", "warning")
    assert "Tesla V100-SXM2-16GB with driver 535.183.01" in issue.message
    assert "built for CPUs only" in issue.message
    assert "CUDA 12.6" in issue.fix


def test_a_driver_without_devices_is_that_of_the_container_host(install_driver) -> None:
    issue = unusable_gpu_issue(install_driver(nodes=False))
    assert issue is not None
    assert "no GPU is in reach" in issue.message
    assert "--gpus all" in issue.fix


def test_a_hidden_gpu_is_noted(install_driver, monkeypatch: pytest.MonkeyPatch) -> None:
    root = install_driver("NVIDIA A100, 580.65.06, 8.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    issue = unusable_gpu_issue(root)
    assert issue is not None
    assert (issue.code, issue.severity) == ("device.hidden", "note")
    assert "CUDA_VISIBLE_DEVICES is '-1'" in issue.message


@pytest.mark.parametrize(
    ("driver", "capability", "words"),
    [
        ("580.65.06", 8.0, "install torch for CUDA 13.0"),
        ("579.0", 8.0, "install torch for CUDA 12.6"),
        ("525.60.13", 8.0, "install torch for CUDA 12.6"),
        ("524.9", 8.0, "update the driver to 580 or later and install torch for CUDA 13.0"),
        ("580.65.06", 7.5, "install torch for CUDA 13.0"),
        ("580.65.06", 7.4, "install torch for CUDA 12.6"),
        ("450.80.02", 6.1, "update the driver to 525 or later and install torch for CUDA 12.6"),
        ("580.65.06", 5.0, "install torch for CUDA 12.6"),
        ("470.1", 4.9, "no torch computes on it any more"),
        ("", None, "install torch for CUDA 13.0"),
    ],
)
def test_what_to_install_follows_from_driver_and_card(driver: str, capability: float | None, words: str) -> None:
    assert how_to_install(Gpu("a card", driver, capability)).startswith(words)


class Cuda:
    """What torch.cuda says of two GPUs, of which only the second computes bfloat16, and only the second convolves."""

    current = 0

    class device:  # noqa: N801  # torch's own name
        def __init__(self, device: torch.device) -> None:
            self.index = device.index or 0

        def __enter__(self) -> None:
            self.before, Cuda.current = Cuda.current, self.index

        def __exit__(self, *error: object) -> None:
            Cuda.current = self.before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> type[Cuda]:
    Cuda.current = 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", Cuda.device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(Cuda, "current", device.index or 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: Cuda.current == 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index or 0}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    return Cuda


def test_the_precision_is_that_of_the_gpu_that_trains(cuda: type[Cuda]) -> None:
    assert fast_precision(torch.device("cuda:0")) == "float16"
    assert fast_precision(torch.device("cuda:1")) == "bfloat16"
    assert cuda.current == 0
    use_device(torch.device("cuda:1"))
    assert cuda.current == 1
    assert use_device(torch.device("cpu")) == torch.device("cpu")


def test_a_gpu_that_does_not_compute_is_passed_by_or_refused(cuda: type[Cuda]) -> None:
    """This torch has no CUDA, so every convolution there fails."""
    shown: list[Issue] = []
    assert choose_device("auto", shown.append).type in ("mps", "cpu")
    assert [(each.code, each.severity) for each in shown] == [("device.does_not_compute", "warning")]
    assert "card 0 (compute capability 6.1)" in shown[0].message
    with pytest.raises(AutosegError) as raised:
        choose_device("cuda:1")
    assert raised.value.codes == ("device.does_not_compute",)
    assert "card 1" in raised.value.issues[0].message


def test_a_gpu_that_computes_becomes_the_current_one(cuda: type[Cuda], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "why_not_computing", lambda device: None)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert cuda.current == 1
    assert choose_device("auto") == torch.device("cuda")


def test_auto_takes_all_gpus_that_compute(cuda: type[Cuda], monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def ask(names: list[str]) -> dict[str, Issue | None]:
        tried.extend(names)
        return {"cuda:0": Issue(code="device.does_not_compute", where="--device", message="broken"), "cuda:1": None}

    monkeypatch.setattr(device_module, "_ask_beside", ask)
    shown: list[Issue] = []
    assert choose_devices("auto", shown.append) == (torch.device("cuda:1"),)
    assert tried == ["cuda:0", "cuda:1"]
    assert [(issue.code, issue.severity) for issue in shown] == [("device.does_not_compute", "warning")]
    assert cuda.current == 1
    with pytest.raises(AutosegError, match="broken"):
        choose_devices("cuda:0,cuda:1")
    monkeypatch.setattr(device_module, "_ask_beside", lambda names: dict.fromkeys(names))
    assert choose_devices("cuda:1,cuda:0,cuda:1") == tuple(map(torch.device, ("cuda:1", "cuda:0", "cuda:1")))


def test_several_devices_are_tried_in_a_process_that_ends() -> None:
    assert choose_devices("cpu,cpu") == (torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(AutosegError) as raised:
        choose_devices("cpu,cuda:7")
    assert raised.value.codes == ("device.unknown",)
    assert "'cuda:7' does not exist" in raised.value.issues[0].message

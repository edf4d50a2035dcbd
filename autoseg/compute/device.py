"""Which processor computes, and in which precision."""

from __future__ import annotations

import torch

from autoseg.issues import AutosegError, Issue
from autoseg.wording import count_noun
from planners import Precision


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes a CUDA GPU, then Apple's, then the CPU.

    Raises `AutosegError` for a device that does not exist, and says which do.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    if name == "auto":
        return torch.device(present[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in present:
        raise _absent(name, f"this machine has {', '.join(present)}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise _absent(name, f"this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def _absent(name: str, present: str) -> AutosegError:
    message = f"device {name!r} does not exist; {present}"
    return AutosegError(Issue(code="device.unknown", where="--device", message=message))


def fast_precision(device: torch.device) -> Precision:
    """The fastest precision of a device: bfloat16 where it has units for it, else float16 on GPUs.

    CPUs without bfloat16 instructions stay with float32: they would only emulate it.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bfloat16"
    return "float32"


def usable_precision(precision: Precision, device: torch.device) -> Precision:
    """The precision that a model was trained in, or float32 where ``device`` would only emulate it."""
    halved_on_gpu = device.type == "cuda" and precision == "float16"
    return precision if halved_on_gpu or precision == fast_precision(device) else "float32"


def describe_device(device: torch.device, *, num_threads: int) -> str:
    """``CPU, 2 threads`` or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()}, {count_noun(num_threads, 'thread')}"


def set_threads(num_threads: int) -> None:
    """Set torch's number of threads; results on a CPU depend on it."""
    torch.set_num_threads(num_threads)

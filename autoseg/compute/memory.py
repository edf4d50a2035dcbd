"""Too little memory: how it is recognised, and how to make room."""

from __future__ import annotations

import torch

from autoseg.compute.heap import give_back

PHRASES = ("can't allocate memory", "out of memory", "alloc_failed", "failed to allocate", "could not allocate")
"""In messages of torch's allocators for CPUs and Apple's GPUs, of cuBLAS and of cuDNN; only CUDA's has a type of its own."""
ONEDNN = ("could not create a primitive", "could not create a memory object")
"""The whole of oneDNN's messages when it finds no room for its code or its buffers (seen in a process of limited size)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough, and nothing else."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (text in ONEDNN or any(phrase in text for phrase in PHRASES))


def release_memory(device: torch.device) -> None:
    """Give back what the device's allocator keeps for later; in pieces of the old sizes it would be of no use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        give_back()


def micro_batch_sizes(batch_size: int) -> tuple[int, ...]:
    """Sizes of pieces to try, largest first: the whole batch, then halves of it, rounded up, down to one sample."""
    sizes = [batch_size]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return tuple(sizes)

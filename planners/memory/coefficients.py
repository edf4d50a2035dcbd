"""How many bytes a value takes, and how many copies exist while an operation runs, by device and number format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

DType = Literal["float32", "bfloat16", "float16"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """Bytes of one value, by what it waits for (see `planners.memory.layers.Layer`), and copies while an operation runs."""

    convolved: float
    normed: float
    activated: float
    joined: float
    pooled: float
    gradient: float
    """Bytes of one value of a gradient map."""
    input_copies: float
    """Maps of a convolution's input size that exist at most while it runs backward, its input left aside."""
    output_copies: float
    """Maps of a convolution's output size that exist at most while it runs forward."""
    cast_weight: float
    """Bytes of the copy of each weight that autocast makes; 0 without."""
    weight_scratch: float
    """Bytes for each parameter of the layer that runs backward, beside the gradient: reordered, or in another format."""
    logit_copies: float
    """float32 copies of a head's logits that the loss keeps or makes."""
    returned_from: float
    """Bytes from which a freed block goes back to the system at once; smaller ones stay with the process."""
    spread: float
    """What the process holds of smaller blocks that come and go, gaps between them included, as a multiple of what they
    take at most. What stays for good (weights, optimiser state) has none."""
    overhead_bytes: float
    """Threads, kernels, imported modules: whatever does not grow with the network."""


WEIGHT_BYTES = 4
"""Weights, gradients and optimiser states are float32 whatever the network computes in."""
OPTIMISER_STATES = {"sgd": 1, "adamw": 2}
"""Values of optimiser state for each parameter."""
LABEL_BYTES = 8
"""Labels of a batch are 64-bit integers."""


_CPU: dict[str, float] = {
    # glibc maps blocks of 32 MiB and more one by one and gives them back; smaller ones share a heap that only its end
    # shrinks. 1.6 is what the heap held of the small blocks' most, measured on networks of 0.8 to 3 GB
    "returned_from": 32 * 1024**2, "spread": 1.6,
    # a network of two features takes 180 MB: imports 70, threads and compiled kernels 110
    "overhead_bytes": 180e6,
}  # fmt: skip
_CUDA: dict[str, float] = {
    # reasoned, not measured: the caching allocator gives nothing back and splits blocks; libraries take workspaces
    "returned_from": math.inf, "spread": 1.15, "overhead_bytes": 300e6,
}  # fmt: skip
_FULL: dict[str, float] = {
    # copies: oneDNN reorders maps into its blocked layout and back, found by running single convolutions
    "convolved": 4, "normed": 4, "activated": 4, "joined": 4, "pooled": 0, "gradient": 4, "input_copies": 1,
    "output_copies": 1, "cast_weight": 0, "weight_scratch": 4, "logit_copies": 6,
}  # fmt: skip
_HALF_CPU: dict[str, float] = {
    "convolved": 2, "normed": 2, "activated": 2, "joined": 2, "pooled": 0, "gradient": 2, "input_copies": 1,
    "output_copies": 1, "cast_weight": 2, "weight_scratch": 6, "logit_copies": 6,
}  # fmt: skip
_HALF_CUDA: dict[str, float] = {
    # reasoned, not measured: group norm runs in float32 under CUDA's autocast: its input and output are cast up, and
    # the output down again for the next convolution
    "convolved": 4, "normed": 4, "activated": 6, "joined": 2, "pooled": 0, "gradient": 4, "input_copies": 2,
    "output_copies": 2, "cast_weight": 2, "weight_scratch": 6, "logit_copies": 6,
}  # fmt: skip


def coefficients_for(dtype: DType, device: Device) -> Coefficients:
    """The coefficients of a number format on a device."""
    half = _HALF_CPU if device == "cpu" else _HALF_CUDA
    return Coefficients(**(_FULL if dtype == "float32" else half), **(_CPU if device == "cpu" else _CUDA))

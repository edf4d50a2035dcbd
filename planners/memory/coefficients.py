"""How many bytes a value takes, and how many copies exist while an operation runs, by device and number format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DType = Literal["float32", "bfloat16", "float16"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """Bytes of one value, by what it waits for; see `planners.memory.layers.Layer` for the kinds."""

    convolved: float
    normed: float
    activated: float
    joined: float
    gradient: float
    """Bytes of one value of a gradient map."""
    gradient_copies: float
    """Gradient maps of an operation's inputs and outputs that exist at once, workspace included."""
    forward_copies: float
    """Copies of an operation's inputs and outputs that exist at once in inference, workspace included."""
    cast_weight: float
    """Bytes of the copy of each weight that autocast makes; 0 without."""
    weight_scratch: float
    """Bytes a parameter that accumulating and reordering weight gradients takes beside them."""
    loss_copies: float
    """float32 copies of a head's logits that the loss keeps or makes."""
    overhead_bytes: float
    """Threads, kernels, allocator: whatever does not grow with the network."""


WEIGHT_BYTES = 4
"""Weights, gradients and optimiser states are float32 whatever the network computes in."""
OPTIMISER_STATES = {"sgd": 1, "adamw": 2}
"""Values of optimiser state for each parameter."""
LABEL_BYTES = 8
"""Labels of a batch are 64-bit integers."""

# The values below that are no sizes of number formats were fitted to the resident memory of third training steps of
# 18 networks and batches (0.5 to 4 GB, torch 2.13, two threads): all within 20 % or 300 MB.
_FULL = Coefficients(
    convolved=4, normed=4, activated=4, joined=4, gradient=4, gradient_copies=2.5, forward_copies=2.0,
    cast_weight=0, weight_scratch=4, loss_copies=6, overhead_bytes=350e6,
)  # fmt: skip
_HALF_CPU = Coefficients(
    convolved=2, normed=2, activated=2, joined=2, gradient=2, gradient_copies=4.0, forward_copies=2.0,
    cast_weight=2, weight_scratch=8, loss_copies=6, overhead_bytes=350e6,
)  # fmt: skip
_HALF_CUDA = Coefficients(
    # group norm runs in float32 under CUDA's autocast: its input and output are cast up, and the output down again
    # for the next convolution. Not yet held against a device
    convolved=4, normed=4, activated=6, joined=2, gradient=4, gradient_copies=2.0, forward_copies=2.0,
    cast_weight=2, weight_scratch=0, loss_copies=6, overhead_bytes=600e6,
)  # fmt: skip


def coefficients_for(dtype: DType, device: Device) -> Coefficients:
    """The coefficients of a number format on a device."""
    if dtype == "float32":
        return _FULL
    return _HALF_CPU if device == "cpu" else _HALF_CUDA

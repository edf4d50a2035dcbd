"""Logits of a volume of any size from a network that sees one patch at a time (method section 8.1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn import functional

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STEP = 0.5
"""Distance of windows, as a share of the patch."""


def window_starts(size: int, patch: int, *, step: float = STEP) -> list[int]:
    """First voxels of the windows along an axis of ``size`` >= ``patch`` voxels.

    Evenly spaced, at most ``patch * step`` apart; the last window ends at the border.
    """
    count = math.ceil((size - patch) / (patch * step)) + 1
    if count == 1:
        return [0]
    return [round(i * (size - patch) / (count - 1)) for i in range(count)]


def importance_map(patch: Sequence[int]) -> Tensor:
    """float32 (patch...): weight of a window's voxels, a Gaussian with sigma an eighth of the patch, maximum 1.

    Corners where the Gaussian is truncated get the smallest positive weight, so that every voxel has one.
    """
    axes = []
    for size in patch:
        impulse = np.zeros(size)
        impulse[size // 2] = 1
        axes.append(gaussian_filter1d(impulse, size / 8, mode="constant"))
    weights = reduce(np.multiply.outer, axes)
    weights = weights / weights.max()
    weights[weights == 0] = weights[weights > 0].min()
    return torch.from_numpy(weights.astype(np.float32))


def half_importance_map(patch: Sequence[int]) -> Tensor:
    """float16 (patch...): the same with maximum 10, rounded as in nnU-Net (method section 8.1)."""
    weights = (10 * importance_map(patch)).half()
    weights[weights == 0] = weights[weights > 0].min()
    return weights


def count_windows(shape: Sequence[int], patch: Sequence[int]) -> int:
    """Number of windows of a volume of ``shape`` (a0, a1, a2)."""
    slices = shape[0] if len(patch) == 2 else 1
    spatial = shape[-len(patch) :]
    return slices * math.prod(len(window_starts(max(n, p), p)) for n, p in zip(spatial, patch, strict=True))


def predict_logits(
    image: Tensor,
    networks: Sequence[nn.Module],
    *,
    patch: Sequence[int],
    mirror_axes: Sequence[int],
    precision: str,
    device: torch.device,
    batch_size: int = 1,
    sums: torch.dtype = torch.float32,
    gathered_on: torch.device | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Mean logits of ``networks``, of type ``sums`` (K, a0, a1, a2), on the CPU.

    ``image``: float32 (C, a0, a1, a2), preprocessed. With a 2D ``patch`` every slice along a0 is predicted on its own.
    ``mirror_axes`` are axes of the patch; all their combinations are averaged. ``batch_size`` windows go through the
    network at once. The networks must be on ``device`` and in evaluation mode; sums are accumulated there, or on
    ``gathered_on``. ``progress`` is told after each batch how many windows are done, and how many there are.
    """
    gathering = device if gathered_on is None else gathered_on
    flat = len(patch) == 2
    spatial = image.shape[-len(patch) :]
    padding: list[int] = []  # zeros, so that a window fits; in torch's order: last axis first, before and after
    for size, window in zip(reversed(spatial), reversed(patch), strict=True):
        missing = max(0, window - size)
        padding += [missing // 2, missing - missing // 2]
    padded = functional.pad(image, padding)
    weights = (importance_map(patch) if sums == torch.float32 else half_importance_map(patch)).to(device)
    total: Tensor | None = None
    weight_sum = torch.zeros(padded.shape[-len(patch) :], dtype=sums, device=gathering)
    starts = (window_starts(n, p) for n, p in zip(padded.shape[-len(patch) :], patch, strict=True))
    places = [
        tuple(slice(s, s + p) for s, p in zip(corner, patch, strict=True)) for corner in itertools.product(*starts)
    ]
    for place in places:
        weight_sum[place] += weights.to(gathering)
    jobs: list[tuple[int | slice, ...]] = [
        (i, *place) if flat else place for i in range(padded.shape[1] if flat else 1) for place in places
    ]
    done = 0
    with torch.inference_mode():
        for group in (jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)):
            windows = torch.stack([padded[(slice(None), *where)] for where in group]).to(device)
            logits = _mean_logits(windows, networks, mirror_axes=mirror_axes, precision=precision) * weights
            if total is None:
                total = torch.zeros((logits.shape[1], *padded.shape[1:]), dtype=sums, device=gathering)
            for where, part in zip(group, logits.to(gathering), strict=True):
                total[(slice(None), *where)] += part
            done += len(group)
            progress(done, len(jobs))
        if total is None:
            raise ValueError(f"an image of shape {tuple(image.shape)} contains no window")
        total /= weight_sum
    inner = [slice(before, before + n) for before, n in zip(padding[::-1][1::2], spatial, strict=True)]
    return total[(slice(None),) * (total.ndim - len(patch)) + tuple(inner)].cpu()


def predict_logits_in_half(image: Tensor, networks: Sequence[nn.Module], **given: Any) -> Tensor:
    """`predict_logits` with windows and networks summed in half precision, as in nnU-Net; returns float32.

    The rounding matters if two classes are almost equal: of equal ones the first wins, so otherwise an uncertain network
    would predict the lower class less often. If half precision overflows, float32 is used.
    """
    total = torch.zeros((), dtype=torch.float16)
    for network in networks:
        total = total + predict_logits(image, [network], sums=torch.float16, **given)
    if not bool(torch.isfinite(total).all()):
        return predict_logits(image, networks, **given)
    return (total / len(networks)).float()


def _mean_logits(
    windows: Tensor, networks: Sequence[nn.Module], *, mirror_axes: Sequence[int], precision: str
) -> Tensor:
    """float32 logits of a batch of windows, averaged over networks and mirror images."""
    dtype = DTYPES[precision]
    flips = [
        tuple(axis + 2 for axis in chosen)
        for count in range(len(mirror_axes) + 1)
        for chosen in itertools.combinations(mirror_axes, count)
    ]
    total: Tensor | float = 0.0
    for network in networks:
        for axes in flips:
            flipped = windows.flip(axes) if axes else windows
            with torch.autocast(windows.device.type, dtype=dtype, enabled=dtype != torch.float32):
                logits = network(flipped).float()
            total = total + (logits.flip(axes) if axes else logits)
    mean: Tensor = total / (len(networks) * len(flips))  # type: ignore[assignment]
    return mean

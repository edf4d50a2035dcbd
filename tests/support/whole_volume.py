"""Logits and probabilities of whole volumes at once: written down plainly, to compare what is computed row by row with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from autoseg.inference.sliding_window import half_importance_map, importance_map, window_starts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def whole_logits(
    image: Tensor,
    networks: Sequence[nn.Module],
    *,
    patch: Sequence[int],
    mirror_axes: Sequence[int] = (),
    precision: str = "float32",
    batch_size: int = 1,
    sums: torch.dtype = torch.float32,
) -> Tensor:
    """float32 (K, a0, a1, a2) of an ``image`` (C, a0, a1, a2), on the CPU."""
    given = {"patch": patch, "mirror_axes": mirror_axes, "precision": precision, "batch_size": batch_size}
    if sums == torch.float32:
        return _sum(image, networks, sums=sums, **given)  # type: ignore[arg-type]
    total = torch.zeros((), dtype=sums)
    for network in networks:
        total = total + _sum(image, [network], sums=sums, **given)  # type: ignore[arg-type]
    if not bool(torch.isfinite(total).all()):
        return _sum(image, networks, sums=torch.float32, **given)  # type: ignore[arg-type]
    return (total / len(networks)).float()


def _sum(
    image: Tensor,
    networks: Sequence[nn.Module],
    *,
    patch: Sequence[int],
    mirror_axes: Sequence[int],
    precision: str,
    batch_size: int,
    sums: torch.dtype,
) -> Tensor:
    axes = len(patch)
    missing = [max(0, p - n) for n, p in zip(image.shape[-axes:], patch, strict=True)]
    padded = functional.pad(image, [side for m in reversed(missing) for side in (m // 2, m - m // 2)])
    spatial = padded.shape[-axes:]
    weights = importance_map(patch) if sums == torch.float32 else half_importance_map(patch)
    corners = itertools.product(*(window_starts(n, p) for n, p in zip(spatial, patch, strict=True)))
    places = [tuple(slice(s, s + p) for s, p in zip(corner, patch, strict=True)) for corner in corners]
    weight_sum = torch.zeros(spatial, dtype=sums)
    for place in places:
        weight_sum[place] += weights
    jobs = [(i, *place) for i in range(padded.shape[1]) for place in places] if axes == 2 else places
    total: Tensor | None = None
    with torch.inference_mode():
        for start in range(0, len(jobs), batch_size):
            group = jobs[start : start + batch_size]
            windows = torch.stack([padded[(slice(None), *where)] for where in group])
            logits = _mean(windows, networks, mirror_axes, precision) * weights
            if total is None:
                total = torch.zeros((logits.shape[1], *padded.shape[1:]), dtype=sums)
            for where, part in zip(group, logits, strict=True):
                total[(slice(None), *where)] += part
        assert total is not None
        total /= weight_sum
    inner = [slice(m // 2, m // 2 + n) for m, n in zip(missing, image.shape[-axes:], strict=True)]
    return total[(slice(None),) * (total.ndim - axes) + tuple(inner)]


def _mean(windows: Tensor, networks: Sequence[nn.Module], mirror_axes: Sequence[int], precision: str) -> Tensor:
    flips = [
        tuple(axis + 2 for axis in chosen)
        for count in range(len(mirror_axes) + 1)
        for chosen in itertools.combinations(mirror_axes, count)
    ]
    total = torch.zeros(())
    for network in networks:
        for axes in flips:
            with torch.autocast("cpu", dtype=DTYPES[precision], enabled=precision != "float32"):
                logits = network(windows.flip(axes)).float()
            total = total + logits.flip(axes)
    return total / (len(networks) * len(flips))


def mean_probabilities(members: Sequence[NDArray[np.floating]], weights: Sequence[float] = ()) -> NDArray[np.float32]:
    """The mean of the members' probabilities, each (K, Z, Y, X), one after the other in single precision; ``weights`` add up to one."""
    total = np.zeros(members[0].shape, np.float32)
    for number, member in enumerate(members):
        total += member * np.float32(weights[number]) if weights else member
    return total if weights else total / np.float32(len(members))

"""Stages of a network: strides and kernels along each axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planners.decision import Decision, counted, listed, millimetres, voxels
from planners.geometry import round_up
from planners.plan import Configuration, Network

SMALLEST_EDGE = 4
"""Voxels that an axis has left at least after it was halved (method section 3.7)."""
LONE_EDGE = 3 * SMALLEST_EDGE
"""An axis that is to be halved on its own needs this many voxels."""
SIMILAR_SPACING = 2
"""Axes whose spacings differ by less than this factor are halved together."""

PyramidRule = Callable[[Sequence[float], Sequence[float]], "Pyramid"]
"""The stages for a spacing and a patch."""
AxesToHalve = Callable[[Sequence[float], Sequence[float]], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pyramid:
    """The resolutions of a network, from the highest to the bottleneck; one tuple entry a stage."""

    patch: tuple[int, ...]
    """Input in voxels, a multiple of ``divisors``."""
    strides: tuple[tuple[int, ...], ...]
    """At the entry of each stage; the first is all ones."""
    kernels: tuple[tuple[int, ...], ...]
    divisors: tuple[int, ...]
    """Product of the strides along each axis."""

    @property
    def num_stages(self) -> int:
        """Resolutions, the bottleneck included."""
        return len(self.strides)


def reference_pyramid(spacing_mm: Sequence[float], patch: Sequence[float]) -> Pyramid:
    """Strides, kernels and padded patch for a patch at a spacing (method section 3.7), one entry an axis.

    ``patch`` may be fractional. Fewer than 8 voxels along every axis, or 8 to 11 along a lone finest axis, give
    a single stage.
    """
    return _halve(spacing_mm, patch, _axes_to_halve_together)


def trainable_pyramid(spacing_mm: Sequence[float], patch: Sequence[float]) -> Pyramid:
    """The same with at least two stages: departure ``topology.two_stages`` (decision record 0011).

    Equal to `reference_pyramid` where that has two stages. Otherwise a lone short axis is skipped instead of
    stopping all axes; where every axis is short, those of similar, finest spacing are padded to 8 voxels and halved once.
    """
    plain = reference_pyramid(spacing_mm, patch)
    if plain.num_stages > 1:
        return plain
    passing = _halve(spacing_mm, patch, _axes_to_halve_apart)
    return passing if passing.num_stages > 1 else _halve_once(spacing_mm, patch)


def _halve(spacing_mm: Sequence[float], patch: Sequence[float], choose: AxesToHalve) -> Pyramid:
    # called thousands of times: lists changed in place are three times as fast as new tuples
    dimensions = len(patch)
    spacing, size = list(spacing_mm), list(patch)
    kernel, divisors = [1] * dimensions, [1] * dimensions
    strides, kernels = [(1,) * dimensions], []
    while axes := choose(spacing, size):
        _grow_kernel(kernel, spacing)
        kernels.append(tuple(kernel))
        stride = [1] * dimensions
        for axis in axes:
            stride[axis] = 2
            divisors[axis] *= 2
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
        strides.append(tuple(stride))
    kernels.append((3,) * dimensions)
    return Pyramid(
        patch=tuple(map(round_up, patch, divisors)),
        strides=tuple(strides),
        kernels=tuple(kernels),
        divisors=tuple(divisors),
    )


def _halve_once(spacing_mm: Sequence[float], patch: Sequence[float]) -> Pyramid:
    axes = _similar(spacing_mm, range(len(patch)))
    stride = tuple(2 if axis in axes else 1 for axis in range(len(patch)))
    padded = [max(size, 2 * SMALLEST_EDGE) if axis in axes else size for axis, size in enumerate(patch)]
    kernel = [1] * len(patch)
    _grow_kernel(kernel, spacing_mm)
    return Pyramid(
        patch=tuple(round_up(size, step) for size, step in zip(padded, stride, strict=True)),
        strides=((1,) * len(patch), stride),
        kernels=(tuple(kernel), (3,) * len(patch)),
        divisors=stride,
    )


def _grow_kernel(kernel: list[int], spacing_mm: Sequence[float]) -> None:
    """Kernel 3 from the stage on at which an axis' spacing comes close to the finest; never back to 1."""
    finest = min(spacing_mm)
    for axis, mm in enumerate(spacing_mm):
        if mm / finest < SIMILAR_SPACING:
            kernel[axis] = 3


def _similar(spacing_mm: Sequence[float], axes: Sequence[int]) -> list[int]:
    """Those of ``axes`` whose spacing is close to the finest among them."""
    finest = min([spacing_mm[axis] for axis in axes])
    return [axis for axis in axes if spacing_mm[axis] / finest < SIMILAR_SPACING]


def _long_axes(size: Sequence[float]) -> list[int]:
    return [axis for axis, edge in enumerate(size) if edge >= 2 * SMALLEST_EDGE]


def _axes_to_halve_together(spacing_mm: Sequence[float], size: Sequence[float]) -> list[int]:
    """The method's choice; a lone short axis ends the halving of all."""
    long = _long_axes(size)
    axes = _similar(spacing_mm, long) if long else []
    return [] if len(axes) == 1 and size[axes[0]] < LONE_EDGE else axes


def _axes_to_halve_apart(spacing_mm: Sequence[float], size: Sequence[float]) -> list[int]:
    """The departure's choice; a lone short axis is skipped."""
    long = _long_axes(size)
    while long:
        axes = _similar(spacing_mm, long)
        if len(axes) > 1 or size[axes[0]] >= LONE_EDGE:
            return axes
        long.remove(axes[0])
    return []


def describe_pyramid(
    pyramid: Pyramid, spacing_mm: Sequence[float], network: Network, *, source: str | None = None
) -> Decision[dict[str, object]]:
    """What the stages of the network are, with the reason; ``source`` of its family, if it is not nnU-Net's."""
    halvings = [divisor.bit_length() - 1 for divisor in pyramid.divisors]
    edges = [size // divisor for size, divisor in zip(pyramid.patch, pyramid.divisors, strict=True)]
    return Decision(
        rule="topology.stages",
        value={name: getattr(network, name) for name in ("features", "strides", "kernels", "blocks")},
        reason=f"at {millimetres(spacing_mm)} the axes are downsampled {listed([str(n) for n in halvings])} times, finer ones first until "
        f"spacings are similar, each while it has {2 * SMALLEST_EDGE} voxels or more: {counted(pyramid.num_stages, 'stage')} down to "
        f"{voxels(edges)} voxels with {network.features[-1]} features",
        source="method 3.7" if source is None else f"method 3.7 and {source}",
        change="larger patches give more stages",
    )


SMALLEST_SUPERVISED = 3
"""Stages from which deep supervision is defined: the coarsest head gets no weight (method section 7.5)."""


def why_untrainable(configuration: Configuration) -> tuple[str, ...]:
    """Why a network cannot be built or trained, one sentence each; empty if it can.

    Only plans with ``strict_reference`` may hold such configurations (method sections 3.5, 3.7).
    """
    num_stages = len(configuration.network.strides)
    patch = " x ".join(str(size) for size in configuration.patch_shape)
    if num_stages < 2:
        return (
            f"configuration {configuration.name}: a patch of {patch} voxels gives a network of one stage, without "
            "decoder and outputs; plan without --strict-reference",
        )
    if configuration.deep_supervision and num_stages < SMALLEST_SUPERVISED:
        return (
            f"configuration {configuration.name}: a patch of {patch} voxels gives a network of two stages, whose only "
            "head has weight 0 under deep supervision; plan without --strict-reference",
        )
    return ()

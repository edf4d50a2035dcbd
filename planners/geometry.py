"""Arithmetic of shapes in voxels and spacings in millimetres.

Source axes are (z, y, x); plan axes are the coarsest first. Source axes have types of their own, so that a type checker
sees where plan axes are taken for them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Literal, NewType, TypeVar

Axis = Literal[0, 1, 2]
Permutation = tuple[Axis, Axis, Axis]
SourceShape = NewType("SourceShape", tuple[float, float, float])
"""Voxels along the source axes; a median may end in .5."""
SourceSpacing = NewType("SourceSpacing", tuple[float, float, float])
"""Millimetres along the source axes."""

T = TypeVar("T")


def transpose(values: Sequence[T], permutation: Permutation) -> tuple[T, T, T]:
    """Three values, one an axis, in another axis order: entry i is ``values[permutation[i]]``.

    ``transpose_forward`` of a plan leads from source to plan axes, ``transpose_backward`` back.
    """
    first, second, third = (values[axis] for axis in permutation)
    return first, second, third


def inverse(permutation: Permutation) -> Permutation:
    """The permutation that undoes another one (method section 3.3)."""
    first, second, third = (permutation.index(axis) for axis in (0, 1, 2))
    return first, second, third  # type: ignore[return-value]  # index of a permutation of 0, 1, 2


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_spacing_mm: Sequence[float]
) -> tuple[int, ...]:
    """Voxels along each axis after resampling to another spacing (method section 4.1, step 5).

    All three have one entry an axis, in the same order. ``round(spacing / target * size)`` with ties to the even
    integer; at least one voxel, where the method would leave none.
    """
    return tuple(
        max(1, round(old / new * size)) for size, old, new in zip(shape, spacing_mm, target_spacing_mm, strict=True)
    )


def stage_shapes(patch: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Size in voxels of each stage's feature maps, highest resolution first (method section 3.8)."""
    shapes = []
    size = tuple(patch)
    for stride in strides:
        size = tuple(map(operator.floordiv, size, stride))
        shapes.append(size)
    return tuple(shapes)


def stage_spacings(spacing_mm: Sequence[float], strides: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
    """Spacing in mm of each stage's feature maps, highest resolution first."""
    spacings = []
    current = tuple(spacing_mm)
    for stride in strides:
        current = tuple(size * step for size, step in zip(current, stride, strict=True))
        spacings.append(current)
    return tuple(spacings)


def total_strides(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Product of the strides along each axis: what a patch must be divisible by."""
    return tuple(math.prod(column) for column in zip(*strides, strict=True))


def nearest_multiples(shape: Sequence[int], divisors: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The nearest shapes that ``divisors`` divide along every axis, not above and not below; at least one multiple each."""
    return (
        tuple(max(size // step, 1) * step for size, step in zip(shape, divisors, strict=True)),
        tuple(map(round_up, shape, divisors)),
    )


def round_up(size: float, step: int) -> int:
    """The smallest multiple of ``step`` that is not below ``size``."""
    return math.ceil(size / step) * step

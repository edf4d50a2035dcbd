"""What is done to one training sample: drawn first, so that it can be replayed, tested and applied anywhere.

Probabilities and ranges are those of method section 6.2. Angles are radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

ANISOTROPIC_PATCH = 3.0
"""A 3D patch whose longest axis is more than this times its first is rotated in plane only (method section 6.1)."""
ELONGATED_PATCH = 1.5
"""A 2D patch whose longer edge is more than this times the shorter is hardly rotated."""
PerChannel = tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What may be done to the samples of one configuration."""

    patch: tuple[int, ...]
    """Shape of the final patch, 2 or 3 axes."""
    num_channels: int
    rotation: float
    """Largest angle about each axis."""
    dummy_2d: bool
    """Rotation, scaling and low resolution leave the first axis alone."""
    mirror_axes: tuple[int, ...]
    masked_channels: tuple[int, ...]
    """Channels normalised inside the non-zero mask: set to 0 outside it at the end."""
    augment: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """One sample's changes; None and empty tuples mean not at all."""

    angles: tuple[float, ...] | None = None
    """About array axes 0, 1, 2; a single one in plane."""
    scale: float | None = None
    """Above 1 shrinks objects."""
    noise_sigma: float | None = None
    noise_seed: int = 0
    blur_sigmas: tuple[tuple[float, ...] | None, ...] = ()
    brightness: PerChannel = ()
    contrast: PerChannel = ()
    low_resolution: PerChannel = ()
    inverted_gamma: PerChannel = ()
    gamma: PerChannel = ()
    mirror: tuple[int, ...] = ()


def make_recipe(
    patch: Sequence[int],
    *,
    num_channels: int,
    mirror_axes: Sequence[int],
    masked_channels: Sequence[int],
    augment: bool,
) -> Recipe:
    """Rotation range and dummy-2D by the shape of the patch (method section 6.1)."""
    dummy_2d = len(patch) == 3 and max(patch) / patch[0] > ANISOTROPIC_PATCH
    elongated_2d = len(patch) == 2 and max(patch) / min(patch) > ELONGATED_PATCH
    in_plane = dummy_2d or len(patch) == 2
    degrees = 15 if elongated_2d else 180 if in_plane else 30
    return Recipe(
        patch=tuple(patch),
        num_channels=num_channels,
        rotation=math.radians(degrees),
        dummy_2d=dummy_2d,
        mirror_axes=tuple(mirror_axes),
        masked_channels=tuple(masked_channels),
        augment=augment,
    )


def draw_parameters(rng: np.random.Generator, recipe: Recipe) -> Parameters:
    """One sample's changes. The order of draws is part of what makes runs repeatable."""
    if not recipe.augment:
        return Parameters(mirror=_draw_mirror(rng, recipe))
    in_plane = recipe.dummy_2d or len(recipe.patch) == 2
    rotate, scale, noise = (_chance(rng, p) for p in (0.2, 0.2, 0.1))
    axes = len(recipe.patch)
    return Parameters(
        angles=tuple(float(a) for a in rng.uniform(-recipe.rotation, recipe.rotation, 1 if in_plane else 3))
        if rotate
        else None,
        scale=float(rng.uniform(0.7, 1.4)) if scale else None,
        noise_sigma=float(rng.uniform(0, 0.1)) if noise else None,
        noise_seed=int(rng.integers(2**32)),
        blur_sigmas=_draw_blur(rng, recipe.num_channels, axes) if _chance(rng, 0.2) else (),
        brightness=_each(rng, recipe, lambda: two_sided(rng, 0.75, 1.25)) if _chance(rng, 0.15) else (),
        contrast=_each(rng, recipe, lambda: two_sided(rng, 0.75, 1.25)) if _chance(rng, 0.15) else (),
        low_resolution=_each(rng, recipe, lambda: float(rng.uniform(0.5, 1)), share=0.5) if _chance(rng, 0.25) else (),
        inverted_gamma=_each(rng, recipe, lambda: two_sided(rng, 0.7, 1.5)) if _chance(rng, 0.1) else (),
        gamma=_each(rng, recipe, lambda: two_sided(rng, 0.7, 1.5)) if _chance(rng, 0.3) else (),
        mirror=_draw_mirror(rng, recipe),
    )


def two_sided(rng: np.random.Generator, low: float, high: float) -> float:
    """Below 1 or above 1 with equal chance, uniform on either side."""
    return float(rng.uniform(low, 1) if _chance(rng, 0.5) else rng.uniform(1, high))


def _chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _each(rng: np.random.Generator, recipe: Recipe, draw: Callable[[], float], *, share: float = 1.0) -> PerChannel:
    """A draw for every channel, or for each with probability ``share``."""
    return tuple(draw() if share >= 1 or _chance(rng, share) else None for _ in range(recipe.num_channels))


def _draw_blur(rng: np.random.Generator, channels: int, axes: int) -> tuple[tuple[float, ...] | None, ...]:
    return tuple(
        tuple(float(s) for s in rng.uniform(0.5, 1.0, axes)) if _chance(rng, 0.5) else None for _ in range(channels)
    )


def _draw_mirror(rng: np.random.Generator, recipe: Recipe) -> tuple[int, ...]:
    return tuple(axis for axis in recipe.mirror_axes if _chance(rng, 0.5))

"""How axes are halved: the method's examples, and properties for any patch."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from planners.registry import TOPOLOGIES
from planners.rules.topology import describe_pyramid, reference_pyramid, trainable_pyramid

dimensions = st.sampled_from([2, 3])


@st.composite
def grids(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Spacing and patch (whole or half voxels) with two or three axes."""
    axes = draw(dimensions)
    spacing = draw(st.lists(st.floats(0.1, 10), min_size=axes, max_size=axes))
    patch = draw(st.lists(st.integers(1, 1200).map(lambda n: n / 2), min_size=axes, max_size=axes))
    return spacing, patch


def test_coarse_axis_is_halved_later() -> None:
    pyramid = reference_pyramid((2.5, 0.8, 0.8), (120, 374, 374))
    assert pyramid.patch == (128, 384, 384)
    assert pyramid.divisors == (32, 64, 64)
    assert pyramid.strides[1:3] == ((1, 2, 2), (2, 2, 2))
    assert pyramid.kernels[:2] == ((1, 3, 3), (3, 3, 3))


def test_stages_are_told_with_halvings_and_the_bottleneck() -> None:
    spacing = (2.5, 0.8, 0.8)
    pyramid = reference_pyramid(spacing, (120, 374, 374))
    network = TOPOLOGIES.get("unet").describe(pyramid, spacing, num_inputs=1, num_outputs=2)
    reason = describe_pyramid(pyramid, spacing, network).reason
    assert "downsampled 5, 6 and 6 times" in reason
    assert "each while it has 8 voxels or more: 7 stages down to 4 x 6 x 6 voxels with 320 features" in reason


def test_kernels_stay_three_once_grown() -> None:
    # after one halving in plane, spacings are 1.9 : 1.6; later halvings in plane only would make z finest
    pyramid = reference_pyramid((1.9, 0.8, 0.8), (4, 256, 256))
    assert pyramid.kernels[0] == (1, 3, 3)
    assert all(kernel == (3, 3, 3) for kernel in pyramid.kernels[1:])


def test_a_lone_short_finest_axis_ends_all_halving() -> None:
    assert reference_pyramid((1.26, 0.33, 1.03), (28, 11, 188)).num_stages == 1
    assert reference_pyramid((1.26, 0.33, 1.03), (28, 12, 188)).num_stages > 1


def test_short_axes_are_skipped_or_padded_where_the_rules_give_one_stage() -> None:
    # the finest axis is too short alone; the two coarser ones are halved together
    assert trainable_pyramid((0.4, 1, 1), (9, 9, 9)).strides == ((1, 1, 1), (1, 2, 2))
    # all are short: those of the finest spacings are padded to eight voxels
    padded = trainable_pyramid((5, 1, 1.9), (3, 5, 6))
    assert (padded.patch, padded.strides, padded.divisors) == ((3, 8, 8), ((1, 1, 1), (1, 2, 2)), (1, 2, 2))
    assert padded.kernels == ((1, 3, 3), (3, 3, 3))
    assert trainable_pyramid((2, 1, 1), (3.5, 5, 7)).patch == (4, 8, 8)


def test_fractional_patches_are_padded_up() -> None:
    assert reference_pyramid((1, 1, 1), (35, 50.5, 34.5)).patch == (40, 56, 40)
    assert reference_pyramid((1, 1), (5.5, 3)).patch == (6, 3)


@given(grid=grids())
def test_patches_are_the_smallest_multiples_of_their_strides(grid: tuple[list[float], list[float]]) -> None:
    spacing, patch = grid
    pyramid = reference_pyramid(spacing, patch)
    assert pyramid.divisors == tuple(math.prod(column) for column in zip(*pyramid.strides, strict=True))
    for size, divisor, wanted in zip(pyramid.patch, pyramid.divisors, patch, strict=True):
        assert size % divisor == 0
        assert wanted <= size < wanted + divisor
        # a halved axis had 8 voxels before its last halving, so ceil leaves 4
        assert divisor == 1 or size // divisor >= 4


@given(grid=grids())
def test_trainable_pyramids_have_two_stages_and_keep_good_ones(grid: tuple[list[float], list[float]]) -> None:
    spacing, patch = grid
    plain, mended = reference_pyramid(spacing, patch), trainable_pyramid(spacing, patch)
    assert mended.num_stages >= 2
    if plain.num_stages >= 2:
        assert mended == plain
    assert all(size % divisor == 0 for size, divisor in zip(mended.patch, mended.divisors, strict=True))
    assert all(size >= wanted for size, wanted in zip(mended.patch, patch, strict=True))


@given(grid=grids(), power=st.integers(-8, 8))
def test_scaling_spacings_changes_no_topology(grid: tuple[list[float], list[float]], power: int) -> None:
    spacing, patch = grid
    assert reference_pyramid([mm * 2.0**power for mm in spacing], patch) == reference_pyramid(spacing, patch)

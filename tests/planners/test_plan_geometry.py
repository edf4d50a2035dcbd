"""Shapes and spacings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planners import Fingerprint, configuration_spacing, plan_dataset, resampled_shape, transpose
from planners.geometry import (
    Permutation,
    inverse,
    nearest_multiples,
    round_up,
    stage_shapes,
    stage_spacings,
    total_strides,
)


def test_resampling_rounds_ties_to_even_and_keeps_a_voxel() -> None:
    assert resampled_shape((5, 7, 100), (1.0, 1.0, 0.8), (2.0, 2.0, 1.0)) == (2, 4, 80)
    assert resampled_shape((1, 4, 9), (1.0, 1.0, 3.0), (10.0, 1.0, 3.0)) == (1, 4, 9)
    assert resampled_shape((20, 30), (0.5, 0.5), (1.0, 0.25)) == (10, 60)


def test_flat_configurations_keep_the_spacing_across_slices(fingerprint_of: Callable[..., Fingerprint]) -> None:
    plan = plan_dataset(fingerprint_of([(20, 200, 200)] * 2, [(5.0, 1.0, 1.2)] * 2))
    assert configuration_spacing(plan.configuration("2d"), (7.5, 0.9, 0.9)) == (7.5, 1.0, 1.2)
    assert configuration_spacing(plan.configuration("3d_fullres"), (7.5, 0.9, 0.9)) == (5.0, 1.0, 1.2)


@given(permutation=st.permutations([0, 1, 2]), values=st.tuples(st.integers(), st.integers(), st.integers()))
def test_the_inverse_undoes_a_transposition(permutation: Permutation, values: tuple[int, int, int]) -> None:
    assert transpose(transpose(values, permutation), inverse(permutation)) == values


@given(size=st.integers(1, 4096).map(lambda n: n / 2), step=st.sampled_from([1, 2, 4, 8, 64]))
def test_rounding_up_gives_the_smallest_multiple_not_below(size: float, step: int) -> None:
    rounded = round_up(size, step)
    assert rounded % step == 0
    assert size <= rounded < size + step


def test_stages_follow_their_strides() -> None:
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    assert stage_shapes((12, 64, 48), strides) == ((12, 64, 48), (12, 32, 24), (6, 16, 12))
    assert stage_spacings((4.0, 1.0, 0.5), strides)[-1] == pytest.approx((8.0, 4.0, 2.0))
    assert total_strides(strides) == (2, 4, 4)


def test_the_nearest_multiples_are_at_least_one_of_each() -> None:
    assert nearest_multiples((7, 100, 64), (8, 16, 32)) == ((8, 96, 64), (8, 112, 64))

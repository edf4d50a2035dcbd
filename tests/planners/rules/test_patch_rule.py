"""Start patch, shrinking and batch size."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from planners.registry import TOPOLOGIES
from planners.rules.patch import (
    Grid,
    MemoryBudget,
    NoFit,
    PatchFit,
    decide_batch_size,
    fit_reference_patch,
    fit_trainable_patch,
    start_patch,
)
from planners.rules.topology import Pyramid, reference_pyramid

CT = Grid(spacing_mm=(2.5, 0.8, 0.8), median_shape=(150, 512, 512), dataset_voxels=100 * 150 * 512 * 512)
REFERENCE = MemoryBudget(feature_maps=5.6e8, batch=2, fitting_images=2)


def plain(pyramid: Pyramid) -> int:
    return TOPOLOGIES.get("unet").feature_maps(pyramid, 3)


def test_start_patch_is_cubic_in_millimetres() -> None:
    assert start_patch(CT) == (120, 374, 374)


def test_shrinking_walks_the_way_of_the_worked_example() -> None:
    estimates = [
        5_075_011_584, 4_440_715_776, 3_700_596_480, 3_083_830_400, 2_643_283_200, 2_202_736_000, 1_762_188_800,
        1_409_751_040, 1_127_800_832, 986_574_848, 863_252_992, 739_931_136, 634_226_688, 555_028_992,
    ]  # fmt: skip
    for steps, expected in enumerate(estimates):
        fit = fit_reference_patch(CT, replace(REFERENCE, feature_maps=float(expected)), plain)
        assert isinstance(fit, PatchFit)
        assert (fit.num_steps, fit.estimate) == (steps, expected)


def test_trainable_search_takes_the_same_way_where_all_can_be_trained() -> None:
    assert fit_trainable_patch(CT, REFERENCE, plain) == fit_reference_patch(CT, REFERENCE, plain)


def test_a_step_is_the_divisor_after_a_full_step() -> None:
    # from 256 with divisor 64, a full step leaves 192, which is halved five times: so 224
    grid = Grid(spacing_mm=(1.0, 1.0, 1.0), median_shape=(256, 256, 256), dataset_voxels=1e9)
    first = plain(reference_pyramid(grid.spacing_mm, (256, 256, 256)))
    fit = fit_reference_patch(grid, replace(REFERENCE, feature_maps=first - 1.0), plain)
    assert isinstance(fit, PatchFit)
    assert fit.pyramid.patch == (256, 256, 224)


def test_flat_patches_yield_to_the_batch_only_in_residual_presets() -> None:
    grid = Grid(spacing_mm=(1.0, 1.0), median_shape=(640, 640), dataset_voxels=1e9)
    estimate = plain(reference_pyramid(grid.spacing_mm, (640, 640)))
    two = MemoryBudget(feature_maps=estimate / 6, batch=12, fitting_images=2)
    fit = fit_reference_patch(grid, two, plain)
    assert isinstance(fit, PatchFit)
    assert fit.num_steps == 0
    fit = fit_reference_patch(grid, replace(two, fitting_images=12), plain)
    assert isinstance(fit, PatchFit)
    assert fit.num_steps > 0


def test_a_patch_that_never_fits_is_told() -> None:
    hopeless = replace(REFERENCE, feature_maps=1.0)
    assert isinstance(fit_reference_patch(CT, hopeless, plain), NoFit)
    smallest = fit_trainable_patch(CT, hopeless, plain)
    assert not smallest.fits
    assert smallest.pyramid.num_stages >= 2


@given(estimate=st.integers(10**4, 10**10), memory=st.tuples(st.floats(1e5, 1e11), st.floats(1e5, 1e11)))
def test_more_memory_never_lowers_the_batch_of_a_patch(estimate: int, memory: tuple[float, float]) -> None:
    less, more = (replace(REFERENCE, feature_maps=maps).fitting_batch(estimate) for maps in sorted(memory))
    assert less <= more


@given(voxels=st.floats(1, 1e12), share=st.sampled_from([0.05, 1.0]), maps=st.floats(1e3, 1e12))
def test_batches_hold_two_patches_and_at_most_their_share(voxels: float, share: float, maps: float) -> None:
    pyramid = reference_pyramid((1, 1, 1), (64, 64, 64))
    fit = PatchFit(pyramid=pyramid, start=(64, 64, 64), start_estimate=1, estimate=plain(pyramid), num_steps=0)
    batch = decide_batch_size(fit, replace(REFERENCE, feature_maps=maps), dataset_voxels=voxels, share=share).value
    assert batch >= 2
    # half a patch is what rounding may add
    assert batch == 2 or batch <= voxels * share / math.prod(pyramid.patch) + 0.5

"""Start patch, shrinking and batch size."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planners.registry import TOPOLOGIES
from planners.rules.patch import (
    Grid,
    MemoryBudget,
    NoFit,
    PatchFit,
    decide_batch_size,
    describe_patch,
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


@pytest.mark.parametrize(("fitting", "most"), [(12, 600), (2, 3600), (1, 7200)])
def test_a_patch_must_fit_as_often_as_is_asked(fitting: int, most: int) -> None:
    """Where twelve images of 600 values fit, so do two of 3600."""
    budget = MemoryBudget(feature_maps=600.0, batch=12, fitting_images=fitting)
    assert not budget.is_exceeded_by(most)
    assert budget.is_exceeded_by(most + 1)


def fit_of(num_steps: int, *, fits: bool = True) -> PatchFit:
    """A patch of 1000 voxels with 100 million feature-map values."""
    pyramid = Pyramid(patch=(10, 10, 10), strides=((1, 1, 1),), kernels=((3, 3, 3),), divisors=(1, 1, 1))
    return PatchFit(
        pyramid=pyramid,
        start=(20, 20, 20),
        start_estimate=800_000_000,
        estimate=100_000_000,
        num_steps=num_steps,
        fits=fits,
    )


@pytest.mark.parametrize(
    ("fit", "told"),
    [
        (fit_of(0), "10 x 10 x 10 voxels, the initial patch, take 100 million"),
        (fit_of(1), "from 20 x 20 x 20 voxels with 800 million values"),
        (fit_of(2, fits=False), "10 x 10 x 10 voxels is the smallest trainable patch; its 100 million"),
        (fit_of(0, fits=False), "10 x 10 x 10 voxels is the smallest trainable patch; its 100 million"),
    ],
)
def test_the_limit_that_is_told_is_that_of_one_patch(fit: PatchFit, told: str) -> None:
    """Where twelve patches of 120 million values fit, each of two may have 720."""
    budget = MemoryBudget(feature_maps=120e6, batch=12, fitting_images=2)
    reason = describe_patch(fit, budget, 8.0, change=None).reason
    assert reason.startswith(told)
    assert "the 720 million that 8 GB allow for each of 2 patches" in reason


@pytest.mark.parametrize(
    ("maps", "cases", "num_steps", "size", "change"),
    [
        (250e6, 12, 0, 5, "more memory would allow more patches"),
        (250e6, 12, 1, 5, "more memory would first allow larger patches"),
        (250e6, 10, 1, 5, "more memory and more training cases together"),
        (250e6, 8, 1, 4, "more training cases would allow more patches"),
        (50e6, 12, 0, 2, "more memory would allow more patches"),
        (250e6, 1, 0, 2, "more training cases would allow more patches"),
        (100e6, 1, 0, 2, "more memory and more training cases together"),
        (50e6, 4, 0, 2, "more memory and more training cases together"),
    ],
)
def test_memory_and_the_dataset_limit_the_batch(
    maps: float, cases: int, num_steps: int, size: int, change: str
) -> None:
    """Two patches of 100 million values take 100 million of the budget; half of a case of 1000 voxels may be in a batch."""
    budget = MemoryBudget(feature_maps=maps, batch=2, fitting_images=2)
    decided = decide_batch_size(fit_of(num_steps), budget, dataset_voxels=1000.0 * cases, share=0.5)
    assert decided.value == size
    assert decided.change is not None
    assert decided.change.startswith(change)


def test_a_patch_has_a_voxel_where_the_rules_leave_none() -> None:
    grid = Grid(spacing_mm=(30_000.0, 1.0, 1.0), median_shape=(10, 300, 300), dataset_voxels=1e6)
    assert start_patch(grid)[0] == 0
    none = fit_reference_patch(grid, REFERENCE, plain)
    assert isinstance(none, NoFit)
    assert not none.yields_to_memory
    fit = fit_trainable_patch(grid, REFERENCE, plain)
    assert (fit.start[0], fit.fits) == (1, True)
    hopeless = fit_reference_patch(CT, replace(REFERENCE, feature_maps=1.0), plain)
    assert isinstance(hopeless, NoFit)
    assert hopeless.yields_to_memory


def test_the_last_of_equally_large_axes_shrinks_first() -> None:
    grid = Grid(spacing_mm=(1.0, 1.0, 1.0), median_shape=(256, 256, 256), dataset_voxels=1e9)
    patches: list[tuple[int, ...]] = []
    maps = 1e12
    while len(patches) < 4:
        fit = fit_reference_patch(grid, replace(REFERENCE, feature_maps=maps), plain)
        assert isinstance(fit, PatchFit)
        patches.append(fit.pyramid.patch)
        maps = fit.estimate - 1.0
    assert patches == [(256, 256, 256), (256, 256, 224), (256, 224, 224), (224, 224, 224)]

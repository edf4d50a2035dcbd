"""When a cascade is planned, on both sides of its thresholds."""

from __future__ import annotations

import pytest

from planners.rules.patch import Grid, PatchFit
from planners.rules.spacing import LowResolution, search_low_resolution
from planners.rules.topology import Pyramid

FULL = Grid(spacing_mm=(1.0, 1.0, 1.0), median_shape=(100.0, 100.0, 100.0), dataset_voxels=1e6)


def search(patch: tuple[int, int, int], low_patch: tuple[int, int, int]) -> object:
    """What is found where every coarser grid is fitted with ``low_patch``."""
    pyramid = Pyramid(patch=low_patch, strides=(), kernels=(), divisors=())
    fit = PatchFit(pyramid=pyramid, start=low_patch, start_estimate=1, estimate=1, num_steps=0)
    return search_low_resolution(FULL, patch, num_cases=1, fit=lambda grid: fit).value


@pytest.mark.parametrize(("patch", "needed"), [((50, 50, 99), True), ((50, 50, 100), False)])
def test_a_patch_of_a_quarter_of_the_case_suffices(patch: tuple[int, int, int], needed: bool) -> None:
    assert (search(patch, (40, 40, 40)) is not None) is needed


@pytest.mark.parametrize(("low_patch", "voxels_saved"), [((50, 50, 50), 2.03), ((50, 52, 52), 1.86)])
def test_a_low_resolution_has_at_most_half_the_voxels(low_patch: tuple[int, int, int], voxels_saved: float) -> None:
    found = search((50, 50, 50), low_patch)
    if voxels_saved > 2:
        assert isinstance(found, LowResolution)
        assert 1e6 / found.grid.dataset_voxels == pytest.approx(voxels_saved, abs=0.01)
    else:
        assert found is None


def test_the_coarser_dataset_is_counted_over_all_cases_and_may_lose_no_axis() -> None:
    """Until a patch of 40 x 40 x 40 covers a quarter: 16 times 3 % coarser, when each axis has 62 voxels left."""
    pyramid = Pyramid(patch=(40, 40, 40), strides=(), kernels=(), divisors=())
    fit = PatchFit(pyramid=pyramid, start=(40, 40, 40), start_estimate=1, estimate=1, num_steps=0)
    asked: list[Grid] = []

    def remember(grid: Grid) -> PatchFit:
        asked.append(grid)
        return fit

    search_low_resolution(FULL, (40, 40, 40), num_cases=7, fit=remember)
    assert asked[-1].spacing_mm == pytest.approx([1.03 ** len(asked)] * 3)
    assert asked[-1].dataset_voxels == pytest.approx(7 * 1e6 / 1.03 ** (3 * len(asked)))
    assert 64_000 / (1e6 / 1.03 ** (3 * len(asked))) >= 0.25 > 64_000 / (1e6 / 1.03 ** (3 * (len(asked) - 1)))
    thin = Grid(spacing_mm=(1.0, 1.0, 1.0), median_shape=(0.4, 1000.0, 1000.0), dataset_voxels=1e6)
    for least in (0, 1):
        asked.clear()
        search_low_resolution(thin, (1, 40, 40), num_cases=1, fit=remember, least_voxels=least)
        assert asked[0].median_shape[0] == least


def test_fine_axes_are_coarsened_first() -> None:
    asked: list[Grid] = []
    pyramid = Pyramid(patch=(40, 40, 40), strides=(), kernels=(), divisors=())
    fit = PatchFit(pyramid=pyramid, start=(40, 40, 40), start_estimate=1, estimate=1, num_steps=0)

    def remember(grid: Grid) -> PatchFit:
        asked.append(grid)
        return fit

    full = Grid(spacing_mm=(2.05, 1.025, 1.0), median_shape=(100.0, 100.0, 100.0), dataset_voxels=1e6)
    search_low_resolution(full, (40, 40, 40), num_cases=1, fit=remember)
    first, second = (each.spacing_mm for each in asked[:2])
    assert first == pytest.approx((2.05, 1.025, 1.03))  # exactly twice as fine is not too fine
    assert second == pytest.approx((2.05 * 1.03, 1.025 * 1.03, 1.03 * 1.03))

"""Temperatures of classes: found again where they are known, without harm where there is nothing to correct; errors as others compute them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.calibration import calibration_curve

from autoseg.evaluation.calibration import (
    BINS,
    CalibratedVolumes,
    calibrate,
    calibrated,
    calibration_error,
    entropy,
    fit_temperatures,
)


def drawn(temperatures: np.ndarray, number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (K, n) of which those with ``temperatures`` are true, and classes drawn by these."""
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(0, 4, (len(temperatures), number)), axis=0).astype(np.float32)
    right = calibrated(p, temperatures, has_regions=False)
    truth = right.cumsum(axis=0) > rng.uniform(size=number)
    truth[1:] &= ~truth[:-1]
    return p, truth


def test_temperatures_are_found_again() -> None:
    """Of 60 000 drawn voxels; the standard error of 1 / T is below 0.01, five of which are 0.15 of T = 1.8."""
    wanted = np.array([1.3, 1.8, 2.5])
    found = fit_temperatures(*drawn(wanted, 60_000), has_regions=False)
    assert found == pytest.approx(wanted, abs=0.15)


def test_regions_have_temperatures_of_their_own() -> None:
    rng = np.random.default_rng(0)
    p = (1 / (1 + np.exp(-rng.normal(0, 4, (2, 60_000))))).astype(np.float32)
    truth = calibrated(p, (1.0, 2.0), has_regions=True) > rng.uniform(size=p.shape)
    assert fit_temperatures(p, truth, has_regions=True) == pytest.approx((1.0, 2.0), abs=0.1)


def test_a_class_that_is_hardly_there_keeps_its_temperature() -> None:
    p, truth = drawn(np.array([2.0, 2.0, 2.0]), 5000)
    truth[0] |= truth[2]
    truth[2] = False
    assert fit_temperatures(p, truth, has_regions=False)[2] == 1.0


def test_the_error_falls_out_of_fold_and_hardly_rises_where_there_is_none() -> None:
    for temperatures, falls in (((2.0, 2.0, 2.0), True), ((1.0, 1.0, 1.0), False)):
        cases = [drawn(np.array(temperatures), 4000, seed=i) for i in range(9)]
        found = calibrate(cases, [i % 3 for i in range(9)], ["background", "a", "b"], has_regions=False)
        before, after = (np.mean([each.average for each in of.values()]) for of in (found.before, found.after))
        assert found.cross_fitted
        assert (after < before / 2) if falls else (after < before * 1.1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 400))
def test_errors_agree_with_scikit_learn(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.uniform(size=number)
    truth = rng.uniform(size=number) < p**2
    average, expected = calibration_error(p, truth)

    observed, predicted = calibration_curve(truth, p, n_bins=BINS, strategy="uniform")
    counts = np.histogram(p, np.linspace(0, 1, BINS + 1))[0]
    apart = np.abs(observed - predicted)
    assert average == pytest.approx(apart.mean())
    assert expected == pytest.approx((apart * counts[counts > 0]).sum() / number)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 1.0, 4.0]), st.booleans())
def test_one_temperature_keeps_the_order_of_classes(seed: int, temperature: float, has_regions: bool) -> None:
    p = softmax(np.random.default_rng(seed).normal(0, 3, (3, 50)), axis=0)
    found = calibrated(p, (temperature,) * 3, has_regions=has_regions)
    assert (found.argsort(axis=0) == p.argsort(axis=0)).all()
    assert has_regions or found.sum(axis=0) == pytest.approx(1, abs=1e-5)
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("has_regions", [False, True])
def test_volumes_are_calibrated_one_by_one(has_regions: bool) -> None:
    p = softmax(np.random.default_rng(0).normal(0, 3, (3, 4, 5, 6)), axis=0).astype(np.float32)
    volumes = CalibratedVolumes(p, (1.0, 1.5, 2.5), has_regions=has_regions)
    whole = calibrated(p, (1.0, 1.5, 2.5), has_regions=has_regions)
    assert np.stack([volumes[k] for k in range(3)]) == pytest.approx(whole, abs=1e-6)


def test_entropy_is_zero_where_sure_and_one_where_nothing_is_known() -> None:
    p = np.array([[1.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.0]], np.float32)
    assert entropy(p, has_regions=False) == pytest.approx([0, 1, np.log(2) / np.log(3)], abs=1e-5)
    assert entropy(np.array([[0.5, 1.0], [0.9, 0.0]]), has_regions=True) == pytest.approx([1, 0], abs=1e-5)

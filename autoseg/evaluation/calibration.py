"""Probabilities that mean what they say: a temperature for each class, and how far predicted and observed shares are apart.

Networks trained with Dice are surer than they are right. With temperatures T a class's probability p becomes p ** (1 / T_k), divided by
the sum over classes; of a region p ** (1 / T) / (p ** (1 / T) + (1 - p) ** (1 / T)). This works on the probabilities that a model or an ensemble gives,
so it does not matter what was added to all logits of a voxel. It may change which class is the largest, so label maps are decided before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from planners import Document

Floats = NDArray[np.floating]
BINS = 20
"""Of equal width, in which predicted probabilities are compared with observed shares."""
FLATTEST, SHARPEST = 1 / 20, 4.0
"""Bounds of 1 / T: beyond them a class was hardly ever there, or never in doubt."""
SMALLEST = 1e-7
"""Probability below which the logarithm is not taken."""
FEWEST_VOXELS = 100
"""Of a class, in all sampled voxels together, below which there is nothing to fit a temperature to."""


class CalibrationError(Document):
    """Of one class, mean over cases; none where no case could be measured."""

    average: float | None
    """Mean over bins of the distance between predicted probability and observed share (ACE)."""
    expected: float | None
    """The same, bins weighted by their voxels (ECE): small where most voxels are sure background."""


class Calibration(Document):
    """Temperatures of a model's classes, and what they gain out of fold."""

    temperatures: tuple[float, ...]
    """One for each output: background and classes, or regions. Above 1: the network was too sure."""
    before: dict[str, CalibrationError]
    """By the name of the output."""
    after: dict[str, CalibrationError]
    """Of each fold with temperatures that were fitted on the others; with one fold, on its own cases."""
    cross_fitted: bool
    cases: int


def calibrated(p: Floats, temperatures: Sequence[float], *, has_regions: bool) -> NDArray[np.float32]:
    """Probabilities (K, ...) with the temperatures of their classes."""
    powers: NDArray[np.float32] = np.stack([power(own, t) for own, t in zip(p, temperatures, strict=True)])
    if has_regions:
        rest = np.stack([power(1 - own, t) for own, t in zip(p, temperatures, strict=True)])
        powers /= np.maximum(powers + rest, np.float32(SMALLEST))
    else:
        powers /= np.maximum(powers.sum(axis=0), np.float32(SMALLEST))
    return powers


def power(p: Floats, temperature: float) -> NDArray[np.float32]:
    """What a class's probabilities are before they are divided by the sum over classes."""
    result: NDArray[np.float32] = np.asarray(p, np.float32) ** np.float32(1 / temperature)
    return result


class CalibratedVolumes:
    """Calibrated probabilities (K, Z, Y, X), volume by volume: of all classes only the sum is held."""

    def __init__(self, volumes: Any, temperatures: Sequence[float], *, has_regions: bool) -> None:
        self.volumes, self.temperatures, self.has_regions = volumes, tuple(temperatures), has_regions
        self.shape: tuple[int, ...] = tuple(volumes.shape)
        self._sum: NDArray[np.float32] | None = None

    def __getitem__(self, k: int) -> NDArray[np.float32]:
        own: NDArray[np.float32] = self.volumes[k]
        if self.has_regions:
            of_region: NDArray[np.float32] = calibrated(own[None], self.temperatures[k : k + 1], has_regions=True)[0]
            return of_region
        if self._sum is None:
            total = power(self.volumes[0], self.temperatures[0])
            for i in range(1, self.shape[0]):
                total += power(self.volumes[i], self.temperatures[i])
            self._sum = np.maximum(total, np.float32(SMALLEST))
        result: NDArray[np.float32] = power(own, self.temperatures[k]) / self._sum
        return result


def entropy(p: Floats, *, has_regions: bool) -> NDArray[np.float32]:
    """Of probabilities (K, ...), from 0 (sure) to 1: of classes by the logarithm of their number, of regions the largest binary one."""
    if has_regions:
        each = np.stack([_plogp(own) + _plogp(1 - own) for own in p])
        of_regions: NDArray[np.float32] = each.max(axis=0) / np.float32(np.log(2))
        return of_regions
    total = np.zeros(p.shape[1:], np.float32)
    for own in p:
        total += _plogp(own)
    total /= np.float32(np.log(len(p)))
    return total


def _plogp(p: Floats) -> NDArray[np.float32]:
    result: NDArray[np.float32] = -np.asarray(p, np.float32) * np.log(np.maximum(p, SMALLEST))
    return result


# --- fitting ---


def fit_temperatures(p: Floats, truth: NDArray[np.bool_], *, has_regions: bool) -> tuple[float, ...]:
    """Temperatures with the largest likelihood of ``truth`` (K, n), which is one class a voxel, or any regions, by ``p`` (K, n).

    The likelihood has one maximum in 1 / T. A class with fewer than `FEWEST_VOXELS` keeps 1.
    """
    number = truth.sum(axis=1)
    fixed = (number < FEWEST_VOXELS) | (truth.shape[1] - number < FEWEST_VOXELS)
    if has_regions:
        return tuple(
            1.0 if still else _fit_both(np.stack([1 - own, own]), np.stack([~of, of]))
            for own, of, still in zip(p, truth, fixed, strict=True)
        )
    logs = np.log(np.maximum(p, SMALLEST)).astype(np.float64)
    bounds = [(1.0, 1.0) if still else (FLATTEST, SHARPEST) for still in fixed]
    found = optimize.minimize(_loss, np.ones(len(p)), (logs, truth), jac=True, bounds=bounds, method="L-BFGS-B")
    return tuple(float(1 / each) for each in found.x)


def _loss(sharpness: NDArray[np.float64], logs: NDArray[np.float64], truth: NDArray[np.bool_]) -> tuple[float, Any]:
    """Mean negative log-likelihood, and its gradient by the 1 / T of each class."""
    scores = logs * sharpness[:, None]
    largest = scores.max(axis=0)
    shares = np.exp(scores - largest)
    total = shares.sum(axis=0)
    shares /= total
    value = np.mean(largest + np.log(total)) - np.where(truth, scores, 0).sum() / truth.shape[1]
    return float(value), ((shares - truth) * logs).sum(axis=1) / truth.shape[1]


def _fit_both(p: Floats, truth: NDArray[np.bool_]) -> float:
    """One temperature of a region and of what is outside."""
    logs = np.log(np.maximum(p, SMALLEST)).astype(np.float64)

    def loss(sharpness: NDArray[np.float64]) -> tuple[float, Any]:
        value, gradient = _loss(np.repeat(sharpness, 2), logs, truth)
        return value, np.array([gradient.sum()])

    found = optimize.minimize(loss, np.ones(1), jac=True, bounds=[(FLATTEST, SHARPEST)], method="L-BFGS-B")
    return float(1 / found.x[0])


# --- measuring ---


def calibration_error(p: Floats, truth: NDArray[np.bool_]) -> tuple[float, float]:
    """Average and expected calibration error of one class: probabilities (n,) and where it is (n,).

    Of each of `BINS` bins that is not empty, the distance of the mean probability from the share of voxels of the class; the
    plain mean of these, and that weighted by the voxels of each bin.
    """
    place = np.minimum((np.asarray(p, np.float64) * BINS).astype(np.intp), BINS - 1)
    number = np.bincount(place, minlength=BINS)
    there = number > 0
    predicted, observed = (np.bincount(place, of, BINS)[there] / number[there] for of in (p, truth))
    apart = np.abs(predicted - observed)
    return float(apart.mean()), float((apart * number[there]).sum() / len(place))


def calibrate(
    cases: Sequence[tuple[Floats, NDArray[np.bool_]]], folds: Sequence[int], names: Sequence[str], *, has_regions: bool
) -> Calibration:
    """Temperatures from out-of-fold cases, each probabilities and truth (K, n) of sampled voxels, with the fold of each case.

    The error after is cross-fitted: that of each fold with temperatures of the others.
    """

    def fit(chosen: Sequence[int]) -> tuple[float, ...]:
        p, truth = (np.concatenate([cases[i][part] for i in chosen], axis=1) for part in (0, 1))
        return fit_temperatures(p, truth, has_regions=has_regions)

    everything = range(len(cases))
    own = fit(everything)
    parts = sorted(set(folds))
    by_fold = {part: fit([i for i in everything if folds[i] != part]) for part in parts} if len(parts) > 1 else {}
    errors: list[list[list[tuple[float, float]]]] = [[[] for _ in names] for _ in range(2)]
    for (p, truth), fold in zip(cases, folds, strict=True):
        both = p, calibrated(p, by_fold.get(fold, own), has_regions=has_regions)
        for found, values in zip(errors, both, strict=True):
            for k in range(len(names)):
                if truth[k].any():
                    found[k].append(calibration_error(values[k], truth[k]))
    before, after = ({name: _mean(of) for name, of in zip(names, found, strict=True)} for found in errors)
    return Calibration(temperatures=own, before=before, after=after, cross_fitted=bool(by_fold), cases=len(cases))


def _mean(errors: Sequence[tuple[float, float]]) -> CalibrationError:
    if not errors:
        return CalibrationError(average=None, expected=None)
    average, expected = np.mean(errors, axis=0)
    return CalibrationError(average=float(average), expected=float(expected))

"""How good the mask of an unseen case probably is: ranges of Dice and volume that hold 90 % of the time, without its truth.

From out-of-fold cases, each predicted by one network that did not see it: a linear model of the score by features of the prediction, one
of how far it is off, and split-conformal limits, quantiles of what cases that the models did not see are off in units of the latter. The guarantee is that of
conformal prediction: cases that are drawn as the training cases were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import bdtr

from planners import Document

Values = NDArray[np.float64]
NOMINAL = 0.9
"""Share of the cases whose score shall be in its range; half of the rest is below it, half above."""
FEWEST_CASES = 2 * math.ceil(1 / (1 - NOMINAL)) - 1
"""Below which no such range follows: 19."""
PARTS = 10
"""Of the cases; each is scored by models of the others."""
RIDGE = 1.0
"""Penalty on coefficients of standardised features, in cases."""
LEAST_SCALE = 0.1
"""Of the mean distance: no case is taken to be surer than that."""
LOOK_BELOW = 0.7
"""Lower end of a range of Dice from which on a person is told to look."""


class ClassFeatures(Document):
    """What is known of a class of one prediction of one network, without its truth."""

    volume_ml: float
    entropy: float
    """Mean inside the prediction, 0 (sure) to 1."""
    expected_dice: float
    """By the network's own probabilities: 2 x their sum inside the prediction, by its voxels and the sum of all."""
    likeness: tuple[float, ...]
    """Of the image: mean and spread of its normalised intensities, logarithm of its volume."""

    @property
    def row(self) -> tuple[float, ...]:
        """As numbers of about one size, before they are standardised."""
        return (self.expected_dice, self.entropy, math.log(self.volume_ml + 1e-3), *self.likeness)


class Model(Document):
    """A linear model of standardised features, with limits."""

    centre: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    """Of the expected score; the constant first."""
    scale_weights: tuple[float, ...]
    """Of the expected distance from it."""
    least_scale: float
    below: float
    above: float
    """Limits, in units of the expected distance."""
    cases: int


class Range(Document):
    """Where a score probably is."""

    low: float
    middle: float
    high: float


class ExpectedQuality(Document):
    """Models of each class; none for one that too few cases have."""

    dice: dict[str, Model]
    log_volume: dict[str, Model]
    """Of the logarithm of reference by predicted volume."""
    coverage: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Of classes: cases in their range, and all, where each range is from models and limits of other cases."""


class ExpectedClass(Document):
    """What is to be expected of a class of a case; none where it is not predicted, or nothing is known."""

    dice: Range | None
    volume_ml: Range | None


def standardised(rows: Values, centre: Sequence[float] | Values, spread: Sequence[float] | Values) -> Values:
    """Features (n, F) with a constant before them: (n, 1 + F), cut at five spreads so that no stranger leads the model away."""
    found = np.clip((rows - np.asarray(centre, np.float64)) / np.asarray(spread, np.float64), -5.0, 5.0)
    result: Values = np.concatenate([np.ones((len(rows), 1)), found.astype(np.float64)], axis=1)
    return result


def _ridge(x: Values, y: Values) -> Values:
    penalty = np.diag([0.0] + [RIDGE] * (x.shape[1] - 1))
    return np.asarray(np.linalg.solve(x.T @ x + penalty, x.T @ y), np.float64)


def _fit(rows: Values, y: Values) -> Model:
    """Without limits: score, and how far it is off."""
    centre, spread = rows.mean(axis=0), rows.std(axis=0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    x = standardised(rows, centre, spread)
    weights = _ridge(x, y)
    # what each case is off without itself: by its leverage
    hat = np.einsum("ij,ji->i", x, np.linalg.solve(x.T @ x + np.diag([0.0] + [RIDGE] * rows.shape[1]), x.T))
    off = np.abs(y - x @ weights) / np.maximum(1 - hat, 0.1)
    return Model(
        centre=tuple(centre.tolist()),
        spread=tuple(spread.tolist()),
        weights=tuple(weights.tolist()),
        scale_weights=tuple(_ridge(x, off).tolist()),
        least_scale=max(float(LEAST_SCALE * off.mean()), 1e-6),
        below=0.0,
        above=0.0,
        cases=len(y),
    )


def _expected(model: Model, rows: Values) -> tuple[Values, Values]:
    x = standardised(rows, model.centre, model.spread)
    return x @ np.array(model.weights), np.maximum(x @ np.array(model.scale_weights), model.least_scale)


def conformal_limit(off: Values) -> float:
    """What is not exceeded by a further value with a probability of (1 + `NOMINAL`) / 2: the k-th smallest of n, k = that of n + 1."""
    rank = math.ceil((len(off) + 1) * (1 + NOMINAL) / 2)
    if rank > len(off):
        raise ValueError(f"{len(off)} cases are too few for a limit")
    return float(np.sort(off)[rank - 1])


def fit_model(rows: Values, y: Values) -> Model | None:
    """The model of a score ``y`` (n,) by features (n, F), with conformal limits; none below `FEWEST_CASES`.

    Each of `PARTS` of the cases, every tenth one, is predicted by models of the others; limits are of these distances.
    """
    if len(y) < FEWEST_CASES:
        return None
    part, off = np.arange(len(y)) % PARTS, np.empty(len(y))
    for k in range(PARTS):
        own = part == k
        middle, scale = _expected(_fit(rows[~own], y[~own]), rows[own])
        off[own] = (y[own] - middle) / scale
    return _fit(rows, y).model_copy(update={"below": conformal_limit(-off), "above": conformal_limit(off)})


def range_of(model: Model, row: Sequence[float]) -> Range:
    """Where the score of a case with these features probably is."""
    middle, scale = (float(each[0]) for each in _expected(model, np.array([row], np.float64)))
    return Range(low=middle - model.below * scale, middle=middle, high=middle + model.above * scale)


def fit_expected(
    features: Sequence[Mapping[str, ClassFeatures]],
    dice: Sequence[Mapping[str, float | None]],
    volumes_ml: Sequence[Mapping[str, float]],
    *,
    measure: bool = True,
) -> ExpectedQuality:
    """From out-of-fold cases: features, Dice and reference volume of each class; a class that is not predicted takes no part.

    ``measure`` also counts how many cases are in their range, by leaving out a tenth of them at a time.
    """
    names = dict.fromkeys(name for of in features for name in of)
    known = {
        name: [
            i
            for i, of in enumerate(features)
            if name in of and of[name].volume_ml > 0 and dice[i].get(name) is not None
        ]
        for name in names
    }
    tables = {name: np.array([features[i][name].row for i in cases], np.float64) for name, cases in known.items()}
    scores = {name: np.array([dice[i][name] for i in cases], np.float64) for name, cases in known.items()}
    ratios = {
        name: np.array([_log_ratio(volumes_ml[i][name], features[i][name].volume_ml) for i in cases], np.float64)
        for name, cases in known.items()
    }
    models = [{n: m for n in names if (m := fit_model(tables[n], y[n])) is not None} for y in (scores, ratios)]
    coverage = {n: found for n in names if measure and (found := covered(tables[n], scores[n]))[1]}
    return ExpectedQuality(dice=models[0], log_volume=models[1], coverage=coverage)


def covered(rows: Values, y: Values) -> tuple[int, int]:
    """Cases whose Dice is in its range, and all: a tenth of them at a time is left out of models and limits."""
    inside = number = 0
    part = (np.arange(len(y)) * 7 + 3) % PARTS  # not the parts that limits are made with
    for k in range(PARTS):
        own = part == k
        model = fit_model(rows[~own], y[~own]) if own.any() else None
        if model is None:
            continue
        for row, score in zip(rows[own], y[own], strict=True):
            found = range_of(model, row)
            inside += int(found.low <= score <= found.high)
            number += 1
    return inside, number


def allowed_by_chance(number: int) -> tuple[int, int]:
    """Between which counts of ``number`` cases the nominal share comes with a probability of 95 %, by the binomial distribution."""
    below = bdtr(np.arange(number + 1), number, NOMINAL)
    return int(np.searchsorted(below, 0.025)), int(np.searchsorted(below, 0.975))


def _log_ratio(reference_ml: float, predicted_ml: float) -> float:
    least = 1e-3
    return math.log((reference_ml + least) / (predicted_ml + least))


def expect(quality: ExpectedQuality, features: Mapping[str, ClassFeatures]) -> dict[str, ExpectedClass]:
    """Ranges of Dice, within 0 and 1, and of volume in ml, of each class of a case; empty where no class has a model."""
    if not quality.dice:
        return {}
    found = {}
    for name, of in features.items():
        dice = volume = None
        if of.volume_ml > 0 and name in quality.dice:
            own = range_of(quality.dice[name], of.row)
            low, middle, high = (min(1.0, max(0.0, each)) for each in (own.low, own.middle, own.high))
            dice = Range(low=low, middle=middle, high=high)
        if of.volume_ml > 0 and name in quality.log_volume:
            own = range_of(quality.log_volume[name], of.row)
            low, middle, high = (of.volume_ml * math.exp(min(each, 10.0)) for each in (own.low, own.middle, own.high))
            volume = Range(low=low, middle=middle, high=high)
        found[name] = ExpectedClass(dice=dice, volume_ml=volume)
    return found


def as_numbers(expected: Mapping[str, ExpectedClass]) -> dict[str, dict[str, tuple[float, float, float] | None]]:
    """Ranges as lower end, middle and upper end."""
    return {
        name: {
            kind: None if own is None else (own.low, own.middle, own.high)
            for kind, own in (("dice", of.dice), ("volume_ml", of.volume_ml))
        }
        for name, of in expected.items()
    }


def from_numbers(stored: Mapping[str, Mapping[str, Sequence[float] | None]]) -> dict[str, ExpectedClass]:
    """The inverse of `as_numbers`."""

    def of(own: Sequence[float] | None) -> Range | None:
        return None if own is None else Range(low=own[0], middle=own[1], high=own[2])

    return {name: ExpectedClass(dice=of(own["dice"]), volume_ml=of(own["volume_ml"])) for name, own in stored.items()}


def mean_features(several: Sequence[Mapping[str, ClassFeatures]]) -> dict[str, ClassFeatures]:
    """Those of one case by several networks, each taken alone."""
    first = several[0]
    return {
        name: ClassFeatures(
            volume_ml=float(np.mean([of[name].volume_ml for of in several])),
            entropy=float(np.mean([of[name].entropy for of in several])),
            expected_dice=float(np.mean([of[name].expected_dice for of in several])),
            likeness=first[name].likeness,
        )
        for name in first
    }


def worst_first(expected: Mapping[str, Mapping[str, ExpectedClass]]) -> list[str]:
    """Cases by the lowest end of their ranges of Dice; those of which nothing is known come first: somebody should look."""

    def lowest(case: str) -> tuple[float, str]:
        known = [of.dice.low for of in expected[case].values() if of.dice is not None]
        return (min(known), case) if known else (-1.0, case)

    return sorted(expected, key=lowest)


def in_words(expected: Mapping[str, ExpectedClass]) -> str:
    """``liver 0.93 to 0.97, tumour 0.10 to 0.80: look at it``."""
    parts = [
        f"{name} {of.dice.low:.2f} to {of.dice.high:.2f}" if of.dice is not None else f"{name} not found, or no range"
        for name, of in expected.items()
    ]
    low = any(of.dice is None or of.dice.low < LOOK_BELOW for of in expected.values())
    return ", ".join(parts) + (": look at it" if low else "")

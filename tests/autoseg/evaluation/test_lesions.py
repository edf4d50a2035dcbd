"""Lesions by hand: what is joined, touched, ignored, matched one to one, and how far apart; the detection curve."""

from __future__ import annotations

import numpy as np
import pytest

from autoseg.evaluation.lesions import Detections, LesionRule, detection_curve, find_detections, score_lesions
from autoseg.evaluation.metrics import ClassMetrics, EvaluatedClass, compare

ONE = (1.0, 1.0, 1.0)
INSIDE = EvaluatedClass(name="lesion", values=(1,))


def row(text: str) -> np.ndarray:
    """A mask (1, 1, X) from a text of ``x`` and ``.``."""
    return np.array([each == "x" for each in text]).reshape(1, 1, -1)


def score(prediction: str, reference: str, **rule: object) -> object:
    return score_lesions(row(prediction), row(reference), LesionRule(**rule), ONE)  # type: ignore[arg-type]


def test_plain_way_counts_lesions_and_averages_their_dice() -> None:
    got = score("xx....x....xx..", "xx..xxx.xx.....", distances=True)

    assert (got.found, got.missed, got.false_positive, got.count_error) == (2, 1, 1, 0)
    assert got.dice == pytest.approx((1.0 + 2 / 4 + 0 + 0) / 4)
    assert got.hausdorff95_mm == pytest.approx((0.0 + 2.0) / 2)  # of the two that were found


def test_components_that_touch_one_lesion_are_compared_with_it_together() -> None:
    got = score("xx.xx", "xxxxx")

    assert (got.found, got.missed, got.false_positive, got.count_error) == (1, 0, 0, 1)
    assert got.dice == pytest.approx(2 * 4 / 9)


@pytest.mark.parametrize(("gap", "lesions"), [("..", 1), ("...", 2)])
def test_dilation_joins_lesions_whose_growth_meets(gap: str, lesions: int) -> None:
    """One voxel from each side leaves no gap of two, and one voxel of a gap of three."""
    reference = f"x{gap}x"
    got = score("." * len(reference), reference, dilation=1)

    assert got.missed == lesions


@pytest.mark.parametrize(("prediction", "found"), [(".x..", 1), ("..x.", 0)])
def test_component_beside_a_lesion_finds_it_within_the_dilation(prediction: str, found: int) -> None:
    got = score(prediction, "x...", dilation=1)

    assert (got.found, got.false_positive) == (found, 1 - found)
    assert got.dice == 0.0


@pytest.mark.parametrize(("limit", "counted"), [(2.0, 0), (1.99, 1)])
def test_small_lesions_are_not_counted_but_what_touches_them_is_no_false_positive(limit: float, counted: int) -> None:
    got = score("xx..", "xx..", ignored_mm3=limit)

    assert (got.found, got.missed, got.false_positive) == (counted, 0, 0)
    assert got.dice == (1.0 if counted else None)


def test_volume_of_a_lesion_is_in_cubic_millimetres() -> None:
    masks = row("xx.."), row("xx..")

    assert score_lesions(*masks, LesionRule(ignored_mm3=10), (2.0, 2.0, 1.0)).found == 0
    assert score_lesions(*masks, LesionRule(ignored_mm3=10), (2.0, 2.0, 2.0)).found == 1


@pytest.mark.parametrize(("connectivity", "lesions"), [(6, 3), (18, 2), (26, 1)])
def test_neighbours_by_face_edge_or_corner(connectivity: int, lesions: int) -> None:
    mask = np.zeros((3, 3, 2), bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[1, 2, 0] = True  # an edge, then a corner between them

    assert score_lesions(np.zeros_like(mask), mask, LesionRule(connectivity=connectivity), ONE).missed == lesions


def test_one_to_one_gives_each_lesion_its_best_component_and_each_component_one_lesion() -> None:
    """The second component alone would fit both lesions; the sum of Dice decides."""
    overlap = score("x.xxxxx", "xxx.xxx")
    matched = score("x.xxxxx", "xxx.xxx", matching="one_to_one", misses_count=False)

    assert (overlap.found, overlap.false_positive) == (2, 0)
    assert (matched.found, matched.missed, matched.false_positive) == (2, 0, 0)
    assert matched.dice == pytest.approx((2 / 4 + 6 / 8) / 2)


@pytest.mark.parametrize(("misses_count", "dice"), [(True, 1 / 3), (False, 1.0)])
def test_misses_are_in_the_mean_or_not(misses_count: bool, dice: float) -> None:
    got = score("xx...xx", "xx.xx..", matching="one_to_one", misses_count=misses_count)

    assert (got.found, got.missed, got.false_positive) == (1, 1, 1)
    assert got.dice == pytest.approx(dice)


@pytest.mark.parametrize(("least", "found"), [(0.5, 1), (0.51, 0)])
def test_matched_lesion_is_found_from_a_dice_on(least: float, found: int) -> None:
    got = score("x...", "xxx.", matching="one_to_one", least_dice=least)

    assert (got.found, got.missed, got.false_positive) == (found, 1 - found, 0)


@pytest.mark.parametrize(("misses_count", "distance"), [(True, 100.0), (False, 300.0)])
def test_missing_lesions_have_the_distance_of_the_rule(misses_count: bool, distance: float) -> None:
    """With one that fits, one missed and one false positive; without it, those alone."""
    rule = {"distances": True, "missing_mm": 150.0 if misses_count else 300.0, "misses_count": misses_count}

    if misses_count:
        assert score("xx...xx", "xx.xx..", **rule).hausdorff95_mm == pytest.approx(distance)
    else:
        assert score(".....xx", "xx.....", **rule).hausdorff95_mm == pytest.approx(distance)


@pytest.mark.parametrize("matching", ["overlap", "one_to_one"])
def test_nothing_in_either_has_no_scores(matching: str) -> None:
    got = score("...", "...", matching=matching, distances=True, missing_mm=374.0)

    assert (got.found, got.missed, got.false_positive, got.dice, got.hausdorff95_mm) == (0, 0, 0, None, None)


def test_border_distance_is_between_voxels_and_pooled() -> None:
    got = score("x....", "xxxx.", distances=True, distance="border")

    assert got.hausdorff95_mm == pytest.approx(np.percentile([0, 0, 1, 2, 3], 95))


def lesion_metrics(prediction: str, reference: str) -> ClassMetrics:
    arrays = (row(text).astype(np.uint8) for text in (prediction, reference))
    return compare(*arrays, classes=[INSIDE], spacing_mm=ONE, lesions=LesionRule())["lesion"]


def test_rates_of_lesions_follow_from_their_counts() -> None:
    got = lesion_metrics("xx....x....xx..", "xx..xxx.xx.....")

    assert (got.lesion_sensitivity, got.lesion_precision) == (2 / 3, 2 / 3)
    assert got.lesion_f1 == pytest.approx(4 / (4 + 1 + 1))
    nothing = lesion_metrics("...", "...")
    assert (nothing.lesion_sensitivity, nothing.lesion_precision, nothing.lesion_f1) == (None, None, None)
    assert lesion_metrics("x..", "...").lesion_f1 == 0.0


def test_lesions_are_stored_only_where_they_were_asked_for() -> None:
    asked, others = lesion_metrics("xx.", "xx."), compare(*[row("xx.").astype(np.uint8)] * 2, classes=[INSIDE], spacing_mm=ONE)["lesion"]  # fmt: skip

    assert asked.model_dump(by_alias=True)["lesion_hausdorff95_mm"] is None
    assert not [name for name in others.model_dump() if "lesion" in name]
    for each in (asked, others):
        assert ClassMetrics.model_validate(each.model_dump(by_alias=True)) == each


# --- detection curve ---


def test_candidates_are_as_sure_as_their_surest_voxel() -> None:
    probability = np.array([0.2, 0.6, 0.0, 0.9, 0.0, 0.3, 0.05, 0.4]).reshape(1, 1, -1)
    got = find_detections(probability, row("xx...x.."))

    assert (got.num_lesions, sorted(got.hits), sorted(got.false)) == (2, [0.3, 0.6], [0.4, 0.9])
    assert find_detections(probability * 0.1, row("xx......")) == Detections(num_lesions=1, hits=(), false=())


def test_detection_curve_falls_by_threshold_and_is_read_at_rates() -> None:
    """Thresholds 0.9, 0.8, 0.6, 0.5, 0.4: found 1, 1, 2, 2, 3 of 4; false 0, 1, 1, 2, 2 in two cases."""
    cases = [
        Detections(num_lesions=2, hits=(0.9, 0.6), false=(0.8,)),
        Detections(num_lesions=2, hits=(0.4,), false=(0.5,)),
    ]

    curve = detection_curve(cases)

    assert curve is not None
    assert curve.thresholds == (0.9, 0.8, 0.6, 0.5, 0.4)
    assert curve.sensitivity == (0.25, 0.25, 0.5, 0.5, 0.75)
    assert curve.false_per_case == (0.0, 0.5, 0.5, 1.0, 1.0)
    assert [curve.at_rates[rate] for rate in ("0.125", "0.25", "0.5", "1", "8")] == [0.25, 0.25, 0.5, 0.75, 0.75]
    assert curve.score == pytest.approx((0.25 + 0.25 + 0.5 + 0.75 * 4) / 7)
    assert detection_curve([Detections(num_lesions=0, hits=(), false=(0.5,))]) is None

"""Scores by hand, their conventions, and what must hold for all masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import surface_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoseg.evaluation.metrics import (
    ClassMetrics,
    EvaluatedClass,
    _enclosing,
    compare,
    evaluated_classes,
)
from autoseg.evaluation.surfaces import area_of_codes
from autoseg.issues import AutosegError
from planners import LabelClass, Labels

ONE = EvaluatedClass(name="one", values=(1,))
TWO = EvaluatedClass(name="two", values=(2,))
BOTH = EvaluatedClass(name="both", values=(1, 2))
SPACING = (3.0, 2.0, 1.0)
CORNER, EDGE = math.sqrt(3) / 8, math.sqrt(2) / 2
"""Area of the marching cubes around one voxel of eight, and around two neighbours: a triangle, and a rectangle across."""


def score(prediction: np.ndarray, reference: np.ndarray, **options: object) -> ClassMetrics:
    options.setdefault("spacing_mm", SPACING)
    return compare(prediction, reference, classes=[ONE], **options)["one"]  # type: ignore[arg-type]


def volume(*voxels: tuple[int, int, int], shape: tuple[int, int, int] = (4, 5, 6), value: int = 1) -> np.ndarray:
    array = np.zeros(shape, dtype=np.uint8)
    for voxel in voxels:
        array[voxel] = value
    return array


def test_overlap_counts_by_hand() -> None:
    got = score(volume((0, 0, 0), (0, 0, 1), (1, 1, 1)), volume((0, 0, 1), (1, 1, 1), (2, 2, 2), (3, 3, 3)))

    assert (got.tp, got.fp, got.fn, got.tn) == (2, 1, 2, 115)
    assert (got.n_pred, got.n_ref) == (3, 4)
    assert got.dice == pytest.approx(4 / 7)
    assert got.iou == pytest.approx(2 / 5)


def test_volumes_are_in_millilitres() -> None:
    got = score(volume((0, 0, 0)), volume((0, 0, 0), (3, 4, 5)))

    assert got.volume_prediction_ml == pytest.approx(0.006)  # 3 x 2 x 1 mm
    assert got.volume_reference_ml == pytest.approx(0.012)


@pytest.mark.parametrize(("axis", "distance"), [(0, 6.0), (1, 4.0), (2, 2.0)])
def test_two_voxels_two_steps_apart_are_two_spacings_apart(axis: int, distance: float) -> None:
    other = tuple(2 if a == axis else 0 for a in range(3))

    assert score(volume((0, 0, 0)), volume(other)).hausdorff95_mm == pytest.approx(distance)


def test_hausdorff_is_the_larger_of_both_directed_percentiles() -> None:
    row = np.zeros((1, 1, 30), dtype=np.uint8)
    prediction, reference = row.copy(), row.copy()
    prediction[0, 0, 0] = 1
    reference[0, 0, :21:20] = (
        1  # the four ends are 0, 0, 19 and 20 voxels from those of the prediction, which are 0 from them
    )

    got = compare(prediction, reference, classes=[ONE], spacing_mm=(1.0, 1.0, 0.5))["one"]

    assert got.hausdorff95_mm == pytest.approx(10)


@pytest.mark.parametrize(("num_voxels", "expected"), [(20, 0.0), (19, 1.0)])
def test_hausdorff_covers_95_percent_of_the_surface(num_voxels: int, expected: float) -> None:
    """Separate voxels in a row with two ends each, of which the last one is missed: 38 of 40 ends coincide, or 36 of 38."""
    reference = np.zeros((1, 1, 60), dtype=np.uint8)
    reference[0, 0, : 2 * num_voxels : 2] = 1
    prediction = reference.copy()
    prediction[0, 0, 2 * num_voxels - 2] = 0

    got = compare(prediction, reference, classes=[ONE], spacing_mm=(1.0, 1.0, 1.0))["one"]

    assert got.hausdorff95_mm == expected


def test_surface_dice_by_hand() -> None:
    """Reference: a 2D square of 5 x 5. Prediction: the same, one row lower."""
    reference, prediction = np.zeros((2, 1, 9, 9), dtype=np.uint8)
    reference[0, 1:6, 1:6] = 1
    prediction[0, 2:7, 1:6] = 1

    near = compare(prediction, reference, classes=[ONE], spacing_mm=(5.0, 1.0, 1.0), tolerance_mm=0.5)["one"]
    far = compare(prediction, reference, classes=[ONE], spacing_mm=(5.0, 1.0, 1.0), tolerance_mm=1.0)["one"]

    # The sides share 4 + 4 voxel sides and the two cut corners of the one; all else is a row apart.
    assert near.surface_dice == pytest.approx(0.5)
    assert far.surface_dice == 1.0


@pytest.mark.parametrize(("spacing", "within"), [(0.1, 1.0), (0.1 * (1 + 5e-7), 1.0), (0.1 * (1 + 1.5e-6), 0.5)])
def test_distance_equal_to_the_tolerance_counts_as_within(spacing: float, within: float) -> None:
    got = score(volume((0, 0, 0)), volume((0, 0, 3)), spacing_mm=(1.0, 1.0, spacing), tolerance_mm=0.3)

    assert got.surface_dice == within  # 3 * 0.1 is a little more than 0.3; the nearer sides are 0.2 apart


@pytest.mark.parametrize(("distance_mm", "within"), [(1.0, 1.0), (1.01, 0.5)])
def test_tolerance_is_one_millimetre_unless_it_is_given(distance_mm: float, within: float) -> None:
    assert score(volume((0, 0, 0)), volume((0, 0, 1)), spacing_mm=(1.0, 1.0, distance_mm)).surface_dice == within


def test_only_the_next_voxel_around_a_class_matters() -> None:
    """A neighbour that is ignored makes no surface, although it lies outside the boxes of both masks."""
    reference = np.zeros((1, 1, 9), dtype=np.uint8)
    reference[0, 0, 3:6], reference[0, 0, 6] = 1, 9
    prediction = np.where(reference == 9, 0, reference)
    prediction[0, 0, 3] = 0

    got = score(prediction, reference, spacing_mm=(1.0, 1.0, 1.0), ignore=9, tolerance_mm=0.1)

    # One end each, the left one, a voxel apart; with the right ends they would share one.
    assert (got.surface_dice, got.hausdorff95_mm) == (0.0, 1.0)
    assert _enclosing([(slice(3, 6),), (slice(2, 4),)], (9,)) == (slice(1, 7),)


def test_inside_of_a_solid_body_has_no_part_in_the_surface() -> None:
    full, hollow = np.zeros((2, 7, 7, 7), dtype=np.uint8)
    full[1:6, 1:6, 1:6] = 1
    hollow[1:6, 1:6, 1:6] = 1
    hollow[3, 3, 3] = 0

    got = score(hollow, full, spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=0.1)

    cube = 6 * 16 + 12 * 4 * EDGE + 8 * CORNER
    assert got.surface_dice == pytest.approx(2 * cube / (2 * cube + 8 * CORNER))


def test_flat_axis_has_no_surface() -> None:
    """In 2D the inside of a square is no surface, although it has no neighbour in z."""
    square = np.zeros((1, 7, 7), dtype=np.uint8)
    square[0, 1:6, 1:6] = 1
    ring = square.copy()
    ring[0, 3, 3] = 0

    got = score(ring, square, spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=0.1)

    outline = 4 * 4 + 4 * EDGE
    assert got.surface_dice == pytest.approx(2 * outline / (2 * outline + 4 * EDGE))


def test_areas_are_those_of_the_marching_cubes() -> None:
    """Around one voxel of eight, and around two neighbours along x, with edges of 3, 2 and 1 mm (z, y, x)."""
    cubes, boxes = area_of_codes((1.0, 1.0, 1.0)), area_of_codes(SPACING)
    assert (cubes[0b1], cubes[0b11], cubes[0b1111]) == pytest.approx((CORNER, EDGE, 1.0))
    sides = np.array([[1.5, -1, 0], [1.5, 0, -0.5]])
    assert boxes[0b1] == pytest.approx(np.linalg.norm(np.cross(*sides)) / 2)
    assert boxes[0b11] == pytest.approx(math.hypot(1.5, 1.0) * 1.0)
    assert (boxes[0], boxes[255]) == (0, 0)


def test_both_empty_is_undefined() -> None:
    got = score(volume(), volume())

    assert (got.dice, got.iou, got.hausdorff95_mm, got.surface_dice) == (None, None, None, None)
    assert (got.tn, got.volume_prediction_ml, got.volume_reference_ml) == (120, 0.0, 0.0)


@pytest.mark.parametrize("missed", [True, False])
def test_one_empty_is_zero_without_a_distance(missed: bool) -> None:
    masks = volume(), volume((1, 1, 1))

    got = score(*(masks if missed else masks[::-1]))

    assert (got.dice, got.iou, got.surface_dice, got.hausdorff95_mm) == (0.0, 0.0, 0.0, None)


def test_ignored_voxels_take_no_part() -> None:
    reference = volume((0, 0, 0), (0, 0, 1))
    reference[0, 0, 2] = reference[3] = 9
    prediction = volume((0, 0, 0), (0, 0, 2), (3, 3, 3))

    got = score(prediction, reference, ignore=9)

    assert (got.tp, got.fp, got.fn) == (1, 0, 1)
    assert got.tp + got.fp + got.fn + got.tn == 120 - 1 - 30


def test_border_to_ignored_voxels_is_no_surface() -> None:
    """Masks that differ only beyond the ignored plane agree perfectly, and the plane makes no surface voxel."""
    reference = np.ones((1, 9, 9), dtype=np.uint8)
    reference[0, :, 4:] = 9
    prediction = np.ones((1, 9, 9), dtype=np.uint8)
    prediction[0, 4, 2] = 0

    got = compare(prediction, reference, classes=[ONE], spacing_mm=(1.0, 1.0, 1.0), ignore=9, tolerance_mm=0.1)["one"]

    outline = 8 + 3 + 3 + 2 * EDGE
    assert got.surface_dice == pytest.approx(2 * outline / (2 * outline + 4 * EDGE))


def test_body_surrounded_by_ignored_voxels_has_overlap_but_no_surface() -> None:
    reference = np.full((3, 3, 3), 9, dtype=np.uint8)
    reference[1, 1, 1] = 1
    prediction = np.ones((3, 3, 3), dtype=np.uint8)

    got = score(prediction, reference, ignore=9)

    assert (got.dice, got.hausdorff95_mm, got.surface_dice) == (1.0, None, None)


def test_surface_scores_are_undefined_where_all_of_a_surface_is_ignored() -> None:
    """One voxel missed inside a body with an ignored surround: it has a surface, but the reference has none to compare."""
    reference = np.full((11, 11, 11), 9, dtype=np.uint8)
    reference[1:10, 1:10, 1:10] = 1
    prediction = np.where(reference == 1, 1, 0).astype(np.uint8)
    prediction[5, 5, 5] = 0

    got = score(prediction, reference, ignore=9)
    missed = score(np.zeros_like(reference), reference, ignore=9)

    assert got.dice == pytest.approx(1, abs=1e-3)
    assert (got.hausdorff95_mm, got.surface_dice) == (None, None)
    assert (missed.dice, missed.hausdorff95_mm, missed.surface_dice) == (0.0, None, None)


def test_region_is_the_union_of_its_values() -> None:
    prediction = volume((0, 0, 0)) + volume((1, 0, 0), value=2)
    reference = volume((0, 0, 0), value=2) + volume((1, 0, 0), value=2)

    got = compare(prediction, reference, classes=[ONE, TWO, BOTH], spacing_mm=SPACING)

    assert list(got) == ["one", "two", "both"]
    assert [each.dice for each in got.values()] == [0.0, pytest.approx(2 / 3), 1.0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_integer_type_does_not_matter(dtype: type[np.integer]) -> None:
    prediction, reference = volume((0, 0, 0), (1, 1, 1)).astype(dtype), volume((1, 1, 1)).astype(np.int64)

    assert score(prediction, reference).dice == pytest.approx(2 / 3)


def test_values_that_are_no_class_are_background() -> None:
    prediction = volume((0, 0, 0)).astype(np.int16) - 7 * volume((1, 1, 1)).astype(np.int16)
    prediction[2, 2, 2] = 200

    assert score(prediction, volume((0, 0, 0))).dice == 1.0


@pytest.mark.parametrize("wrong", ["n_pred", "n_ref"])
def test_counts_that_contradict_each_other_are_refused(wrong: str) -> None:
    metrics = score(volume((0, 0, 0)), volume((0, 0, 0))).model_dump()
    with pytest.raises(ValueError, match="TP \\+ FP"):
        ClassMetrics(**{**metrics, wrong: metrics[wrong] + 1})


def test_shapes_that_differ_are_refused_with_both() -> None:
    with pytest.raises(AutosegError) as caught:
        score(volume(), volume(shape=(4, 5, 7)))
    (issue,) = caught.value.issues
    assert issue.code == "evaluation.shape_mismatch"
    assert all(str(shape) in issue.message for shape in ((4, 5, 6), (4, 5, 7)))


def test_classes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct"):
        compare(volume(), volume(), classes=[ONE, ONE], spacing_mm=SPACING)


def test_classes_of_a_dataset_take_the_values_of_its_files() -> None:
    labels = Labels(
        classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))), region_order=(1, 2)
    )

    inner, files = evaluated_classes(labels), evaluated_classes(labels, (0, 4, 7))

    assert [each.key for each in inner] == ["(1, 2)", "2"]
    assert [(each.name, each.key) for each in files] == [("whole", "(4, 7)"), ("core", "7")]


def numbers(metrics: ClassMetrics) -> dict[str, float]:
    """All scores, what is undefined as NaN."""
    return {name: math.nan if value is None else value for name, value in metrics.model_dump().items()}


label_maps, thin_maps = (
    arrays(np.uint8, shape, elements=st.integers(0, 3), fill=st.just(0)) for shape in ((3, 4, 5), (2, 4, 5))
)
spacings = st.tuples(*[st.sampled_from([0.3, 0.5, 1.0, 4.0])] * 3)


@settings(max_examples=60, deadline=None)
@given(prediction=label_maps, reference=label_maps, spacing_mm=spacings, ignore=st.sampled_from([None, 3]))
def test_scores_agree_with_their_definitions(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float], ignore: int | None
) -> None:
    """Overlap against counts of voxels, surfaces against the package that defines them."""
    got = compare(prediction, reference, classes=[ONE, BOTH], spacing_mm=spacing_mm, ignore=ignore, tolerance_mm=1.1)

    for each in (ONE, BOTH):
        counted = ~np.isin(reference, [-1 if ignore is None else ignore])
        masks = np.isin(prediction, each.values) & counted, np.isin(reference, each.values) & counted
        one = got[each.name]
        assert (one.tp, one.tn) == ((masks[0] & masks[1]).sum(), (counted & ~masks[0] & ~masks[1]).sum())
        assert (one.fp, one.fn) == ((masks[0] & ~masks[1]).sum(), (masks[1] & ~masks[0]).sum())
        if ignore is None and all(mask.any() for mask in masks):
            distances = surface_distance.compute_surface_distances(*masks[::-1], spacing_mm)
            assert one.hausdorff95_mm == pytest.approx(surface_distance.compute_robust_hausdorff(distances, 95))
            expected = surface_distance.compute_surface_dice_at_tolerance(distances, 1.1)
            assert one.surface_dice == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(
    prediction=label_maps,
    reference=label_maps,
    flips=st.tuples(*[st.sampled_from([1, -1])] * 3),
    ignore=st.sampled_from([None, 3]),
)
def test_mirroring_both_changes_nothing(
    prediction: np.ndarray, reference: np.ndarray, flips: tuple[int, int, int], ignore: int | None
) -> None:
    turn = tuple(slice(None, None, flip) for flip in flips)

    straight = score(prediction, reference, ignore=ignore)
    mirrored = score(prediction[turn], reference[turn], ignore=ignore)

    assert numbers(straight) == pytest.approx(numbers(mirrored), rel=1e-9, nan_ok=True)  # rounding of coordinates


@settings(max_examples=40, deadline=None)
@given(prediction=label_maps, reference=label_maps)
def test_exchanging_both_exchanges_errors_and_keeps_scores(prediction: np.ndarray, reference: np.ndarray) -> None:
    there, back = (
        compare(*pair, classes=[BOTH], spacing_mm=SPACING)["both"]
        for pair in ((prediction, reference), (reference, prediction))
    )

    assert (there.fp, there.fn) == (back.fn, back.fp)
    assert (there.dice, there.hausdorff95_mm, there.surface_dice) == (back.dice, back.hausdorff95_mm, back.surface_dice)


@settings(max_examples=40, deadline=None)
@given(reference=thin_maps, padding=st.integers(1, 3))
def test_background_around_the_image_changes_only_true_negatives(reference: np.ndarray, padding: int) -> None:
    prediction = np.roll(reference, 1, axis=2)

    small = compare(prediction, reference, classes=[ONE], spacing_mm=SPACING)["one"]
    large = compare(np.pad(prediction, padding), np.pad(reference, padding), classes=[ONE], spacing_mm=SPACING)["one"]

    expected = numbers(large) | {"tn": small.tn, "specificity": numbers(small)["specificity"]}
    assert numbers(small) == pytest.approx(expected, rel=1e-9, nan_ok=True)  # rounding of larger coordinates

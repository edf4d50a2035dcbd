"""Which configuration or pair is chosen, and how probabilities of several models become one label map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoseg.evaluation.postprocessing import KeepLargestComponent, PostprocessingTrial
from autoseg.evaluation.selection import (
    Selection,
    candidate_members,
    candidate_name,
    labels_from_probabilities,
    mean_probabilities,
    select_candidate,
)
from autoseg.issues import AutosegError
from planners import DocumentError, LabelClass, Labels, read_document, write_document

PAIR = "2d + 3d_fullres"


def one_class(*dices: float | None) -> dict[str, dict[str, float | None]]:
    return {f"case{i}": {"a": dice} for i, dice in enumerate(dices)}


def test_names_of_pairs_are_split_into_their_members() -> None:
    assert candidate_members(PAIR) == ("2d", "3d_fullres")
    assert candidate_name(candidate_members(PAIR)) == PAIR
    assert candidate_name(("2d",)) == "2d"


def test_highest_mean_wins() -> None:
    got = select_candidate({"2d": one_class(0.8, 0.7), "3d_fullres": one_class(0.8, 0.8), PAIR: one_class(0.9, 0.8)})

    assert (got.name, got.members, got.cross_validated) == (PAIR, ("2d", "3d_fullres"), True)
    assert got.mean_dice == pytest.approx(0.85)
    assert "0.8500 over 2 cross-validated cases" in got.reason
    assert "3d_fullres 0.8000, 2d 0.7500" in got.reason


@pytest.mark.parametrize(("gain", "chosen"), [(0.0, "2d"), (1e-9, PAIR)])
def test_the_smallest_gain_decides(gain: float, chosen: str) -> None:
    assert select_candidate({"2d": one_class(0.8), PAIR: one_class(0.8 + gain)}).name == chosen


@pytest.mark.parametrize("order", [("2d", "3d_fullres", PAIR), (PAIR, "2d", "3d_fullres")])
def test_of_equals_the_earlier_single_wins(order: tuple[str, ...]) -> None:
    got = select_candidate({name: one_class(0.8) for name in order})

    assert got.name == "2d"
    assert [each.name for each in got.candidates] == ["2d", "3d_fullres", PAIR]


def test_only_cases_that_all_have_validated_count() -> None:
    """2D looks better over its own three cases, but worse over the one that 3D has too."""
    got = select_candidate({"2d": one_class(0.7, 1.0, 1.0), "3d_fullres": one_class(0.8)})

    assert got.name == "3d_fullres"
    assert [each.num_cases for each in got.candidates] == [1, 1]


def test_candidate_that_validated_nothing_takes_no_part() -> None:
    got = select_candidate({"2d": one_class(0.7, 0.9), "3d_fullres": {}, PAIR: {}})

    assert (got.name, got.cross_validated) == ("2d", True)
    assert [(each.num_cases, each.mean_dice) for each in got.candidates] == [
        (2, pytest.approx(0.8)),
        (0, None),
        (0, None),
    ]


def test_mean_is_over_cases_first_and_over_classes_then() -> None:
    cases = {"x": {"a": 1.0, "b": None}, "y": {"a": 0.0, "b": 0.9}}

    got = select_candidate({"2d": cases})

    assert got.candidates[0].dice_per_class == {"a": 0.5, "b": 0.9}
    assert got.mean_dice == pytest.approx(0.7)  # not (1 + 0 + 0.9) / 3
    assert "the only candidate" in got.reason


def test_class_that_is_nowhere_takes_no_part() -> None:
    got = select_candidate({"2d": {"x": {"a": 0.5, "b": None}}})

    assert got.mean_dice == 0.5
    assert got.candidates[0].dice_per_class == {"a": 0.5, "b": None}


def test_without_validation_it_says_that_nothing_was_cross_validated() -> None:
    got = select_candidate({"2d": {}, "3d_fullres": {}, PAIR: {}})

    assert (got.name, got.cross_validated, got.mean_dice) == ("3d_fullres", False, None)
    assert "no fold validates on any case, so nothing was cross-validated" in got.reason


def test_without_a_shared_case_nothing_is_compared() -> None:
    got = select_candidate({"2d": {"x": {"a": 0.5}}, "3d_fullres": {"y": {"a": 0.9}}})

    assert not got.cross_validated
    assert "no case was validated by all candidates" in got.reason


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("2d", "3d_lowres", "3d_fullres"), "3d_fullres"),
        (("2d", "3d_lowres"), "3d_lowres"),
        (("2d_vnet", "3d_fullres_vnet"), "2d_vnet"),  # none is known: the first
    ],
)
def test_without_scores_the_usual_best_is_taken(names: tuple[str, ...], chosen: str) -> None:
    assert select_candidate({name: {} for name in names}).name == chosen


def test_no_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="no candidates"):
        select_candidate({})


@given(
    dices=st.dictionaries(
        st.sampled_from(["2d", "3d_fullres", PAIR, "3d_lowres"]),
        st.lists(st.none() | st.floats(0, 1), min_size=2, max_size=2),
        min_size=1,
    )
)
def test_no_candidate_beats_the_winner(dices: dict[str, list[float | None]]) -> None:
    got = select_candidate({name: one_class(*own) for name, own in dices.items()})

    means = [each.mean_dice for each in got.candidates if each.mean_dice is not None]
    assert got.mean_dice == max(means, default=None)
    assert got.cross_validated == bool(means)
    assert {each.name for each in got.candidates} == set(dices)


def selection(**changes: object) -> Selection:
    choice = select_candidate({"2d": one_class(0.8), "3d_fullres": one_class(0.9)})
    step = KeepLargestComponent(classes=("a",))
    fields: dict[str, object] = {
        "members": choice.members,
        "folds": (0, 1),
        "postprocessing": (step,),
        "cross_validated": True,
        "reason": choice.reason,
        "candidates": choice.candidates,
        "dice_before_postprocessing": 0.9,
        "dice_after_postprocessing": 0.91,
        "postprocessing_trials": (
            PostprocessingTrial(step=step, accepted=True, dice_before=0.9, dice_after=0.91, reason="rises"),
        ),
    }
    return Selection(**(fields | changes))  # type: ignore[arg-type]


def test_selection_survives_storage() -> None:
    stored = selection()

    assert read_document(Selection, write_document(stored), where="selection.json") == stored
    assert stored.name == "3d_fullres"


def test_score_without_cross_validation_is_refused() -> None:
    for missing in ({}, {"dice_before_postprocessing": None}, {"dice_after_postprocessing": None}):
        text = write_document(selection(**missing)).replace('"cross_validated": true', '"cross_validated": false')

        with pytest.raises(DocumentError, match="nothing was cross-validated"):
            read_document(Selection, text, where="selection.json")


# --- probabilities ---

TWO = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))), region_order=(1, 2)
)


def voxels(*probabilities: tuple[float, ...]) -> np.ndarray:
    """(K, 1, 1, number of voxels) from the probabilities of each voxel."""
    return np.array(probabilities, dtype=np.float32).T[:, None, None, :]


def test_mean_is_plain_and_of_one_type() -> None:
    members = (voxels((0.2, 0.8)), voxels((0.4, 0.6)).astype(np.float64))

    got = mean_probabilities(members)

    assert got.dtype == np.float32
    assert got.ravel() == pytest.approx([0.3, 0.7])


def test_members_are_left_as_they_are() -> None:
    first = voxels((0.2, 0.8))

    mean_probabilities([first, voxels((1.0, 0.0))])

    assert first.ravel() == pytest.approx([0.2, 0.8])


def test_members_of_different_shape_are_refused() -> None:
    with pytest.raises(AutosegError) as caught:
        mean_probabilities([voxels((0.2, 0.8)), voxels((0.2, 0.5, 0.3))])
    assert caught.value.codes == ("ensemble.shape_mismatch",)


def test_an_ensemble_without_members_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_probabilities([])


def test_largest_probability_wins_and_the_first_of_equals() -> None:
    got = labels_from_probabilities(voxels((0.1, 0.2, 0.7), (0.4, 0.4, 0.2), (0.2, 0.4, 0.4)), TWO)

    assert got.shape == (1, 1, 3)
    assert got.ravel().tolist() == [2, 0, 1]


def test_regions_write_in_order_above_one_half() -> None:
    got = labels_from_probabilities(voxels((0.9, 0.9), (0.9, 0.5), (0.2, 0.8), (0.5, 0.5), (0.5001, 0.0)), REGIONS)

    assert got.ravel().tolist() == [2, 1, 2, 0, 1]


def test_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(AutosegError) as caught:
        labels_from_probabilities(voxels((0.5, 0.5)), TWO)
    assert caught.value.codes == ("ensemble.class_mismatch",)


@pytest.mark.parametrize(("number", "dtype"), [(254, np.uint8), (255, np.uint16)])
def test_integer_type_grows_with_the_number_of_classes(number: int, dtype: type[np.integer]) -> None:
    labels = Labels(classes=tuple(LabelClass(name=str(i), values=(i,)) for i in range(1, number + 1)))
    probabilities = np.zeros((number + 1, 1, 1, 2), dtype=np.float32)
    probabilities[number, 0, 0, 1] = 1

    got = labels_from_probabilities(probabilities, labels)

    assert got.dtype == dtype
    assert got.ravel().tolist() == [0, number]


@given(probabilities=arrays(np.float32, (3, 2, 3, 4), elements=st.floats(0, 1, width=32)))
def test_an_ensemble_of_equal_members_decides_as_one(probabilities: np.ndarray) -> None:
    """Four members, because the sum of four equal numbers and a quarter of it are exact."""
    together = mean_probabilities([probabilities] * 4)

    assert np.array_equal(labels_from_probabilities(together, TWO), labels_from_probabilities(probabilities, TWO))

"""Which configuration or pair is chosen, and what is said where nothing could be compared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.evaluation.postprocessing import KeepLargestComponent, PostprocessingTrial
from autoseg.evaluation.selection import (
    Selection,
    candidate_members,
    candidate_name,
    candidate_names,
    select_candidate,
)
from planners import DocumentError, read_document, write_document

PAIR = "2d + 3d_fullres"


def one_class(*dices: float | None) -> dict[str, dict[str, float | None]]:
    return {f"case{i}": {"a": dice} for i, dice in enumerate(dices)}


def test_candidates_are_singles_then_pairs() -> None:
    assert candidate_names(("2d", "3d_fullres", "3d_lowres")) == (
        "2d",
        "3d_fullres",
        "3d_lowres",
        PAIR,
        "2d + 3d_lowres",
        "3d_fullres + 3d_lowres",
    )
    assert candidate_members(PAIR) == ("2d", "3d_fullres")
    assert candidate_name(("2d",)) == "2d"


def test_highest_mean_wins() -> None:
    got = select_candidate({"2d": one_class(0.8, 0.7), "3d_fullres": one_class(0.8, 0.8), PAIR: one_class(0.9, 0.8)})

    assert (got.name, got.members, got.cross_validated) == (PAIR, ("2d", "3d_fullres"), True)
    assert got.mean_dice == pytest.approx(0.85)
    assert "0.8500 over 2 cross-validated cases" in got.reason
    assert "3d_fullres 0.8000, 2d 0.7500" in got.reason


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


def test_unknown_configurations_fall_back_to_the_first() -> None:
    assert select_candidate({"2d_vnet": {}, "3d_fullres_vnet": {}}).name == "2d_vnet"


def test_no_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        select_candidate({})


@given(
    dices=st.dictionaries(
        st.sampled_from(["2d", "3d_fullres", PAIR, "3d_lowres"]),
        st.lists(st.none() | st.floats(0, 1), min_size=2, max_size=2),
        min_size=1,
    )
)
def test_nobody_beats_the_winner(dices: dict[str, list[float | None]]) -> None:
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
    text = write_document(selection()).replace('"cross_validated": true', '"cross_validated": false')

    with pytest.raises(DocumentError, match="nothing was cross-validated"):
        read_document(Selection, text, where="selection.json")

"""Which networks may speak of which case: those that did not train on it."""

from __future__ import annotations

import pytest
from autoseg.pipeline.cascading import always_trained_on, folds_without, require_unseen
from hypothesis import given
from hypothesis import strategies as st

from autoseg.data.splits import Split, Splits, make_splits
from autoseg.issues import AutosegError


@given(number=st.integers(2, 30), folds=st.integers(2, 7))
def test_with_the_usual_folds_it_is_the_one_that_validates(number: int, folds: int) -> None:
    splits = make_splits([f"case_{i}" for i in range(number)], num_folds=folds)
    for k, split in enumerate(splits.folds):
        assert all(folds_without(splits, case_id) == (k,) for case_id in split.val)
    assert always_trained_on(splits) == ()
    require_unseen(splits, "3d_cascade_fullres")


def test_a_case_that_several_folds_leave_out_is_seen_by_neither() -> None:
    splits = Splits(folds=(
        Split(train=("a", "b"), val=("c",)), Split(train=("a", "d"), val=("c",)), Split(train=("b", "c", "d"), val=("a",)),
    ))  # fmt: skip
    assert folds_without(splits, "c") == (0, 1)
    assert folds_without(splits, "d") == (0,)  # it validates nowhere, but fold 0 does not know it
    assert always_trained_on(splits) == ()


def test_cases_that_every_fold_trains_on_are_named() -> None:
    splits = Splits(folds=(Split(train=("a", "b", "x"), val=("c",)), Split(train=("c", "b", "x"), val=("a",))))
    assert always_trained_on(splits) == ("b", "x")
    with pytest.raises(AutosegError, match="every fold trains on b, x; give folds"):
        require_unseen(splits, "3d_cascade_fullres")


def test_a_single_case_leaves_nothing_to_predict() -> None:
    assert always_trained_on(make_splits(["alone"])) == ("alone",)

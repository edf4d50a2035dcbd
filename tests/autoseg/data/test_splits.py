"""Every case validates once, patients stay together, and the folds are the reference's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autoseg.data.splits import Split, Splits, make_splits

ids = st.lists(st.text("abc123_", min_size=1, max_size=6), min_size=1, max_size=40, unique=True)


def reference_folds(case_ids, num_folds=5):
    """Method section 7.9 by hand: shuffle sorted ids with seed 12345, cut into nearly equal parts, larger ones first."""
    names = np.array(sorted(case_ids))
    order = np.random.RandomState(12345).permutation(len(names))
    return [sorted(names[part].tolist()) for part in np.array_split(order, num_folds)]


@given(ids.filter(lambda ids: len(ids) >= 5))
def test_folds_are_those_of_the_reference(case_ids):
    assert [list(split.val) for split in make_splits(case_ids).folds] == reference_folds(case_ids)


def test_folds_of_known_names_stay_what_they_are():
    folds = make_splits([f"case_{number:02d}" for number in range(10)]).folds
    assert [split.val for split in folds] == [
        ("case_00", "case_07"),
        ("case_03", "case_09"),
        ("case_04", "case_06"),
        ("case_01", "case_08"),
        ("case_02", "case_05"),
    ]


@given(ids.filter(lambda ids: len(ids) >= 2), st.integers(2, 7), st.integers(0, 2**31))
def test_every_case_validates_once_whatever_the_order(case_ids, num_folds, seed):
    splits = make_splits(case_ids, num_folds=num_folds)
    assert len(splits.folds) == min(num_folds, len(case_ids))
    assert sorted(case for split in splits.folds for case in split.val) == sorted(case_ids)
    for split in splits.folds:
        assert sorted(split.train + split.val) == sorted(case_ids)
    assert splits.cross_validated
    shuffled = np.random.default_rng(seed).permutation(case_ids).tolist()
    assert make_splits(shuffled, num_folds=num_folds) == splits


@given(ids.filter(lambda ids: len(ids) >= 2), st.data())
def test_cases_of_one_patient_are_never_on_both_sides(case_ids, data):
    groups = {case: data.draw(st.sampled_from(["p1", "p2", "p3", "p4", None])) for case in case_ids}
    splits = make_splits(case_ids, groups=groups)
    patients = {groups[case] or ("alone", case) for case in case_ids}
    assert len(splits.folds) == (min(5, len(patients)) if len(patients) > 1 else 1)
    for split in splits.folds:
        assert not {groups[c] for c in split.train if groups[c]} & {groups[c] for c in split.val if groups[c]}
    if splits.cross_validated:
        assert sorted(case for split in splits.folds for case in split.val) == sorted(case_ids)


def test_patients_with_one_case_each_change_nothing():
    case_ids = [f"c{number}" for number in range(12)]
    assert make_splits(case_ids, groups={case: f"patient of {case}" for case in case_ids}) == make_splits(case_ids)


def test_a_patient_named_like_a_case_is_not_that_case():
    assert len(make_splits(["a", "b", "c"], groups={"b": "a", "c": "a"}).folds) == 2


@pytest.mark.parametrize("groups", [None, {"only": "p"}])
def test_single_case_trains_on_itself_and_validates_nothing(groups):
    splits = make_splits(["only"], groups=groups)
    assert splits.folds == (Split(train=("only",), val=()),)
    assert not splits.cross_validated


def test_single_patient_is_not_cross_validated():
    assert not make_splits(["a", "b"], groups={"a": "p", "b": "p"}).cross_validated


@pytest.mark.parametrize(("case_ids", "num_folds"), [([], 5), (["a", "a"], 5), (["a", "b"], 1)])
def test_nonsense_is_refused(case_ids, num_folds):
    with pytest.raises(ValueError, match="two folds or more"):
        make_splits(case_ids, num_folds=num_folds)


def test_a_fold_never_validates_on_what_it_trains_on():
    with pytest.raises(ValidationError, match="worth nothing"):
        Split(train=("a", "b"), val=("b",))


def test_splits_survive_being_written():
    splits = make_splits(["a", "b", "c"])
    assert Splits.model_validate_json(splits.model_dump_json()) == splits

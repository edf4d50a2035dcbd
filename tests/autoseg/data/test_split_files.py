"""Splits and groups that people bring: read as they are meant, or refused with every problem and its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.data.splits import (
    Split,
    Splits,
    describe_gaps,
    describe_leaks,
    leave_one_group_out,
    make_splits,
    read_groups,
    read_splits,
)
from autoseg.issues import AutosegError

CASES = [f"la_{number:03d}" for number in range(8)]


def written(folder: Path, content: object, name: str = "splits_final.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_references_file_and_our_own_are_read(tmp_path) -> None:
    made = make_splits(CASES, num_folds=3)
    folds = [{"train": list(split.train)[::-1], "val": list(split.val)} for split in made.folds]
    assert read_splits(written(tmp_path, folds), CASES) == made
    assert read_splits(written(tmp_path, made.model_dump_json(), "splits.json"), CASES) == made


def test_one_fold_may_train_on_everything(tmp_path) -> None:
    splits = read_splits(written(tmp_path, [{"train": CASES}]), CASES)
    assert splits.folds == (Split(train=tuple(CASES), val=()),)
    assert not splits.cross_validated


def test_all_problems_are_told_at_once_with_their_places(tmp_path) -> None:
    folds = [
        {"train": ["la_001", "la_001", "la_002"], "val": ["la_002", "la_003"]},
        {"train": [], "val": ["la_003"]},
        {"train": ["la_0004.nii.gz", "la_005.nii.gz"], "val": []},
    ]
    with pytest.raises(AutosegError) as raised:
        read_splits(written(tmp_path, folds), CASES)
    text = str(raised.value)
    for line in (
        "fold 0, train: la_001 stands there twice",
        "fold 0: la_002 trains and validates",
        "fold 1: no case trains",
        "fold 2: no case validates",
        "case la_003 validates in folds 0, 1",
        "train of fold 2: 'la_005.nii.gz' is no case of the dataset; did you mean la_005?",
        "'la_0004.nii.gz' is no case of the dataset; did you mean la_004?",
    ):
        assert line in text, text
    assert len(raised.value.issues) == 7


def test_cases_that_were_left_out_of_the_dataset_are_passed_over(tmp_path) -> None:
    splits = make_splits(CASES, num_folds=3)
    folds = [{"train": list(split.train), "val": list(split.val)} for split in splits.folds]
    kept = [case for case in CASES if case not in splits.folds[1].val]
    path = written(tmp_path, folds[::2])
    assert [
        case for split in read_splits(path, kept, splits.folds[1].val).folds for case in split.train if case not in kept
    ] == []
    whole = written(tmp_path, folds, "whole.json")
    with pytest.raises(AutosegError, match=r"val of fold 1: no case is left, for .* had errors") as raised:
        read_splits(whole, kept, splits.folds[1].val)
    assert len(raised.value.issues) == 1
    with pytest.raises(AutosegError, match="'la_000' is no case of the dataset"):
        read_splits(whole, CASES[1:], ["another"])
    with pytest.raises(AutosegError, match="val of fold 0: no case is left"):
        read_splits(written(tmp_path, [{"train": CASES[1:], "val": CASES[:1]}], "one.json"), CASES[1:], CASES[:1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ([], "holds no folds"),
        ({"train": ["a"]}, "holds no folds"),
        ("7", "holds no folds"),
        (["la_001"], "fold 0: is 'la_001'"),
        ([{"train": "la_001", "val": [3], "test": []}], "fold 0, val: is \\[3\\], no list of names"),
        ([{"train": "la_001", "val": [3], "test": []}], "fold 0: has an entry 'test'"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path, content, message) -> None:
    with pytest.raises(AutosegError, match=message):
        read_splits(written(tmp_path, content), CASES)
    with pytest.raises(AutosegError, match="could not be read"):
        read_splits(tmp_path / "absent.json", CASES)


def test_gaps_and_leaks_are_said(tmp_path) -> None:
    splits = Splits(
        folds=(
            Split(train=("la_000", "la_001", "la_002"), val=("la_003",)),
            Split(train=("la_003", "la_004"), val=("la_000",)),
        )
    )
    gaps = " ".join(describe_gaps(splits, CASES[:5]))
    assert "no fold validates la_001, la_002 and la_004" in gaps
    assert "fold 0 uses 4 of 5 cases; left out: la_004" in gaps
    assert "fold 1 uses 3 of 5 cases; left out: la_001 and la_002" in gaps
    groups = {"la_000": "anna", "la_001": "berta", "la_003": "anna", "la_004": None}
    assert [line.split(",")[0] for line in describe_leaks(splits, groups)] == [
        "fold 0 trains and validates on cases of anna",
        "fold 1 trains and validates on cases of anna",
    ]
    whole = make_splits(CASES)
    assert not describe_gaps(whole, CASES)
    assert not describe_leaks(whole, {})


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_groups_are_read_whatever_separates_the_columns(tmp_path, separator: str) -> None:
    rows = [("case", "site", "group"), ("la_000", "x", "anna"), ("la_003", "x", " anna "), ("la_000", "y", "anna")]
    path = written(tmp_path, "\ufeff" + "\n".join(separator.join(row) for row in rows), "groups.csv")
    assert read_groups(path, CASES) == {"la_000": "anna", "la_003": "anna"}
    assert read_groups(path, CASES[1:], CASES[:1]) == {"la_003": "anna"}


def test_wrong_groups_are_told_line_by_line(tmp_path) -> None:
    path = written(tmp_path, "case,group\nla_000,anna\nla_9,berta\nla_001,\nla_000,berta\nla_002\n", "groups.csv")
    with pytest.raises(AutosegError) as raised:
        read_groups(path, CASES)
    assert [problem.where.rsplit(" ", 1)[1] for problem in raised.value.issues] == ["3", "4", "5", "6"]
    assert "into group 'berta', but was put into 'anna' before" in str(raised.value)
    with pytest.raises(AutosegError, match="first line must name the columns case and group"):
        read_groups(written(tmp_path, "id,patient\n", "other.csv"), CASES)


def test_a_quote_that_is_not_closed_takes_no_other_lines(tmp_path: Path) -> None:
    lines = ["case,group", 'la_000,"A', "la_001,A", 'la_002,"B" x', 'la_003,"C, D"', f"la_004,{'E' * 200_000}"]
    path = written(tmp_path, "\n".join(lines), "groups.csv")
    with pytest.raises(AutosegError, match="is no line of a table") as raised:
        read_groups(path, CASES)
    assert [problem.where for problem in raised.value.issues] == [f"{path}, line {number}" for number in (2, 4, 6)]
    with pytest.raises(AutosegError, match="line 2: is no line of a table"):  # two that are not closed make one that is
        read_groups(written(tmp_path, 'case,group\nla_000,"A\nla_001,"\n', "two.csv"), CASES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with ''; its first line must name the columns case and group"),
        ("case,group\n\n,\n", "no line below its first one, so no case has a group"),
        ("case,group,Group\nla_000,A,B\n", "has several columns group; leave one of each"),
        ("case,group,case,group\nla_000,A,la_001,B\n", "has several columns case and group"),
    ],
)
def test_tables_without_groups_or_with_more_than_one_of_a_case_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(AutosegError, match=message):
        read_groups(written(tmp_path, text, "groups.csv"), CASES)


def test_capitals_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    path = written(tmp_path, '\n" Case"; GROUP\n\nla_000;A\n   \n;\nla_001; "A"\nla_9;A\n', "groups.csv")
    assert read_groups(path, [*CASES, "la_9"]) == dict.fromkeys(["la_000", "la_001", "la_9"], "A")
    with pytest.raises(AutosegError, match=r"groups\.csv, line 8: 'la_9' is no case"):
        read_groups(path, CASES)


@given(st.dictionaries(st.sampled_from(CASES), st.sampled_from(["p", "q", "r"])))
def test_each_group_is_left_out_once_and_whole(groups) -> None:
    splits = leave_one_group_out(CASES, groups)
    assert sorted(case for split in splits.folds for case in split.val) == CASES
    for split in splits.folds:
        assert sorted(split.train + split.val) == CASES
        assert len({groups.get(case) or ("alone", case) for case in split.val}) == 1
    assert not describe_leaks(splits, groups)


def test_a_single_group_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="two groups or more"):
        leave_one_group_out(CASES, dict.fromkeys(CASES, "p"))

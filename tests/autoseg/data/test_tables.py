"""Tables of users: which lines and columns are groups of cases, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.data.tables import MOST_WHOLE, groupings_of, read_groups_table
from autoseg.issues import AutosegError

CASES = {f"c{i:02}": None for i in range(12)}


def table(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "groups.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_words_few_numbers_and_many_numbers_become_groups(tmp_path: Path) -> None:
    lines = [f"c{i:02};{'ab'[i % 2]};{1.5 if i < 4 else 3};{20 + i};id{i}" for i in range(12)]
    found, notes = groupings_of(read_groups_table(table(tmp_path, "Case;site;tesla;age;name", *lines)), CASES)

    by = {each.column: each for each in found}
    assert list(by) == ["site", "tesla", "age"]
    assert (by["site"].groups, by["tesla"].groups) == (("a", "b"), ("1.5", "3"))
    assert by["age"].cuts == (24.0, 28.0)
    assert by["age"].groups == ("below 24", "24 to below 28", "from 28")
    assert [list(by["age"].of_case.values()).count(group) for group in by["age"].groups] == [4, 4, 4]
    assert [(note.code, note.where) for note in notes] == [("groups.none", "column name")]


def test_values_that_say_nothing_are_no_group_and_are_said(tmp_path: Path) -> None:
    lines = [f"c{i:02},{'n/a' if i == 3 else 'ab'[i % 2]}" for i in range(11)]
    (site,), (note,) = groupings_of(read_groups_table(table(tmp_path, "case,site", *lines)), CASES)

    assert set(CASES) - set(site.of_case) == {"c03", "c11"}
    assert (note.code, "c03, c11" in note.message) == ("groups.no_value", True)


def test_a_line_may_be_that_of_a_patient(tmp_path: Path) -> None:
    given = read_groups_table(table(tmp_path, "participant_id\tsex", "p1\tF", "p2\tM"))
    (sex,), _ = groupings_of(given, {"p1_a": "p1", "p1_b": "p1", "p2_a": "p2", "p2": None})
    assert sex.of_case == {"p1_a": "F", "p1_b": "F", "p2_a": "M", "p2": "M"}


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["case", "c00"], "groups.columns"),
        (["site,age", "a,3"], "groups.columns"),
        (["case,patient,site", "c00,p,a"], "groups.columns"),
        (["case,site,site", "c00,a,b"], "groups.columns"),
        (["case,site"], "groups.empty"),
        (["case,site", "c00,a", "c00,b"], "groups.contradiction"),
        (["case,site", 'c00,"a'], "groups.invalid_line"),
        (["case,site", "x,a", "y,b"], "groups.no_case"),
    ],
)
def test_what_is_no_table_of_groups_is_refused(tmp_path: Path, lines: list[str], code: str) -> None:
    with pytest.raises(AutosegError) as caught:
        groupings_of(read_groups_table(table(tmp_path, *lines)), CASES)
    assert caught.value.codes == (code,)


@given(st.lists(st.integers(-50, 50), min_size=12, max_size=12))
def test_numbers_are_in_the_range_that_their_group_names(
    tmp_path_factory: pytest.TempPathFactory, ages: list[int]
) -> None:
    path = tmp_path_factory.mktemp("ages") / "t.csv"
    path.write_text("case,age\n" + "".join(f"c{i:02},{age}\n" for i, age in enumerate(ages)))
    found, _ = groupings_of(read_groups_table(path), CASES)
    for each in found:
        assert (len(each.cuts) > 0) == (len(set(ages)) > MOST_WHOLE)
        assert set(each.of_case.values()) == set(each.groups)
        if each.cuts:
            means = [
                np.mean([ages[int(case[1:])] for case, name in each.of_case.items() if name == group])
                for group in each.groups
            ]
            assert means == sorted(means)

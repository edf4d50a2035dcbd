"""Patterns find the files they describe and no others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.data.discovery.files import compile_pattern, list_files, match_files

ENDINGS = (".nii", ".nii.gz", ".png")
names = st.text(st.characters(categories=("L", "N"), include_characters="._- "), min_size=1, max_size=12)


@given(case=names, ending=st.sampled_from(ENDINGS))
def test_case_and_ending_are_split_at_the_longest_ending(case, ending):
    match = compile_pattern("imagesTr/{case}{ending}", fields={}, endings=ENDINGS).fullmatch(f"imagesTr/{case}{ending}")
    assert match is not None
    assert match["case"] + match["ending"] == case + ending
    assert match["ending"] == (".nii.gz" if ending == ".nii.gz" else ending)


@pytest.mark.parametrize(
    "path", ["imagesTr/a.txt", "imagesTs/a.png", "imagesTr/sub/a.png", "imagesTr/.png", "a.png", "ximagesTr/a.png"]
)
def test_other_files_do_not_match(path):
    assert compile_pattern("imagesTr/{case}{ending}", fields={}, endings=ENDINGS).fullmatch(path) is None


def test_ending_in_capital_letters_matches():
    assert compile_pattern("{case}{ending}", fields={}, endings=ENDINGS).fullmatch("A.NII.GZ")["case"] == "A"


def test_same_field_twice_must_match_the_same_text():
    expression = compile_pattern("{case}/{case}_seg{ending}", fields={}, endings=ENDINGS)
    assert expression.fullmatch("p1/p1_seg.nii")["case"] == "p1"
    assert expression.fullmatch("p1/p2_seg.nii") is None


def test_expression_of_a_field_narrows_it():
    found = match_files(
        ["a_0000.png", "a_0001.png", "a_seg.png"],
        ["{case}_{channel}{ending}"],
        fields={"channel": "[0-9]{4}"},
        endings=ENDINGS,
    )
    assert [(file.fields["case"], file.fields["channel"]) for file in found] == [("a", "0000"), ("a", "0001")]


def test_special_characters_of_patterns_are_literal():
    expression = compile_pattern("a+(b)/{case}.x{ending}", fields={}, endings=ENDINGS)
    assert expression.fullmatch("a+(b)/c.x.png")
    assert expression.fullmatch("aab/c.x.png") is None


def test_only_folders_that_patterns_lead_into_are_opened(tmp_path):
    for path in (
        "a.txt",
        "one/b.txt",
        "one/two/c.txt",
        "p1/images/d.txt",
        "p1/other/e.txt",
        ".git/f.txt",
        "one/._b.txt",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert list_files(tmp_path, ["one/{case}"], fields={}) == ("a.txt", "one/b.txt")
    assert list_files(tmp_path, ["{case}/images/{file}"], fields={"case": "p[0-9]"}, skip=(".*",)) == (
        "a.txt",
        "p1/images/d.txt",
    )
    assert list_files(tmp_path, ["{case}/{part}/{file}"], fields={}, skip=(".*", "two")) == (
        "a.txt",
        "one/b.txt",
        "p1/images/d.txt",
        "p1/other/e.txt",
    )

"""Layouts are read whole or refused with every fault."""

from __future__ import annotations

import pytest

from datasets_spec import load_layouts, read_layout
from planners import DocumentError

GOOD = """
schema_version = 1
name = "suffixes"
title = "Suffix layout"
expects = "files that end in _img and _seg"
[fields]
channel = "[0-9]{4}"
[training]
images = ["{case}_{channel}{ending}"]
labels = ["{case}_seg{ending}"]
"""


def test_known_layouts_are_sorted_and_named_differently():
    names = [layout.name for layout in load_layouts()]
    assert "msd" in names
    assert names == sorted(set(names))


def test_decathlon_layout_names_its_description_file():
    layout = next(layout for layout in load_layouts() if layout.name == "msd")
    assert layout.description is not None
    assert layout.description.file == "dataset.json"
    assert layout.patterns == ("imagesTr/{case}{ending}", "labelsTr/{case}{ending}", "{test}/{case}{ending}")


def test_layout_without_test_images_or_description_is_complete():
    layout = read_layout(GOOD, where="good.toml")
    assert layout.test is None
    assert layout.fields == {"channel": "[0-9]{4}"}
    assert layout.skip == (".*",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('title = "Suffix layout"', ""), "title"),
        (('expects = "', 'expect = "'), "expect"),
        (("{case}_seg", "seg"), "no field {case}"),
        (("[0-9]{4}", "[0-9"), "not a regular expression"),
        (("[0-9]{4}", "([0-9])"), "groups of its own"),
        (('labels = ["{case}_seg{ending}"]', ""), "labels"),
        (("schema_version = 1", "schema_version = 2"), "schema_version"),
        (('name = "suffixes"', "name = "), "line 3"),
        (("{case}_seg{ending}", "{case}/{class}/"), "cannot have {class}"),
    ],
)
def test_faulty_layout_is_refused_with_its_place(change, said):
    with pytest.raises(DocumentError) as caught:
        read_layout(GOOD.replace(*change), where="bad.toml")
    assert said in str(caught.value)
    assert "bad.toml" in str(caught.value)

"""What dataset.json declares is understood in all its spellings, or refused with its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.data.discovery.declarations import labels_named_by_value, read_decathlon
from autoseg.issues import AutosegError


@pytest.fixture
def declare(tmp_path):
    def write(**content):
        path = tmp_path / "dataset.json"
        path.write_text(json.dumps(content))
        return read_decathlon(path)

    return write


def classes(declaration):
    return [(label.name, label.values) for label in declaration.label_values.labels.classes]


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "Anterior", "2": "Posterior"},
        {"background": 0, "Anterior": 1, "Posterior": 2},
        {"Posterior": "2", "Anterior": "1", "background": "0"},
        {"2": "Posterior", "1": "Anterior"},
        {"Anterior": [1], "Posterior": [2]},
    ],
)
def test_both_directions_of_labels_mean_the_same(declare, labels):
    declaration = declare(labels=labels)
    assert classes(declaration) == [("Anterior", (1,)), ("Posterior", (2,))]
    assert declaration.label_values.file_values == (0, 1, 2)


def test_gaps_in_file_values_are_closed_inside(declare):
    declaration = declare(labels={"0": "background", "10": "c", "2": "a", "7": "b"})
    assert classes(declaration) == [("a", (1,)), ("b", (2,)), ("c", (3,))]
    assert declaration.label_values.file_values == (0, 2, 7, 10)


def test_further_values_of_the_background_are_dropped(declare):
    values = declare(labels={"background": [0, 2, 4], "a": 3, "b": 1}).label_values
    assert (values.file_values, values.dropped) == ((0, 1, 3), (2, 4))


def test_background_may_have_another_value(declare):
    assert declare(labels={"background": 255, "a": 1, "b": 2}).label_values.file_values == (255, 1, 2)


def test_ignore_value_comes_last(declare):
    values = declare(labels={"background": 0, "a": 1, "ignore": 255, "b": 300}).label_values
    assert values.file_values == (0, 1, 300, 255)
    assert values.labels.ignore == 3
    assert [label.name for label in values.labels.classes] == ["a", "b"]


def test_regions_keep_their_order_and_name_internal_values(declare):
    declaration = declare(
        labels={"background": 0, "whole": [1, 2, 4], "core": [2, 4], "active": 4}, regions_class_order=[1, 2, 4]
    )
    assert classes(declaration) == [("whole", (1, 2, 3)), ("core", (2, 3)), ("active", (3,))]
    assert declaration.label_values.labels.region_order == (1, 2, 3)


@pytest.mark.parametrize("key", ["modality", "channel_names"])
def test_channels_follow_their_index_not_their_place(declare, key):
    assert declare(**{key: {"10": "k", "2": "c", "0": "a"}}).channels == ("a", "c", "k")


def test_channel_names_go_before_modality(declare):
    assert declare(channel_names={"0": "CT"}, modality={"0": "old"}).channels == ("CT",)


def test_listed_files_come_in_both_spellings(declare):
    declaration = declare(test=["./imagesTs/a.nii.gz", {"image": "b.nii.gz"}], training=[{"image": "c", "label": "d"}])
    assert declaration.test_files == ("./imagesTs/a.nii.gz", "b.nii.gz")
    assert declaration.training_files == ("c",)


def test_nothing_declared_is_nothing_known(declare):
    declaration = declare(name=" ", quantitative=[0, 1])
    assert (declaration.name, declaration.channels, declaration.label_values) == (None, None, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"labels": {"1": 1.5}}, "labels.1: found 1.5"),
        ({"labels": {"a": True}}, "labels.a: found true"),
        ({"labels": {"a": []}}, "labels.a: found []"),
        ({"labels": ["a", "b"]}, "labels: found"),
        ({"labels": {"0": "background"}}, "only the background"),
        ({"labels": {"1": "a", "2": "a"}}, "'a' occurs 2 times"),
        ({"labels": {"a": 1, "b": 1}}, "value 1 has 2 names"),
        ({"labels": {"a": [0, 1], "b": 2}, "regions_class_order": [1, 2]}, "background value 0"),
        ({"labels": {"a": [1, 2], "b": 2}}, "regions_class_order is null"),
        ({"labels": {"a": [1, 2], "b": 2}, "regions_class_order": [1]}, "regions_class_order is [1]"),
        ({"labels": {"a": [1, 2], "b": 2}, "regions_class_order": [1, 9]}, "regions_class_order is [1, 9]"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "ignore value 1"),
        ({"labels": {"background": 0, "a": 1, "ignore": 0}}, "background and ignore"),
        ({"labels": {"background": [0, 3], "a": 1, "ignore": 3}}, "background and ignore both have the value 3"),
        ({"labels": {"background": [0, 3], "a": 1, "b": 3}}, "'b' holds the background value 3"),
        ({"modality": {"0": 3}}, "modality: found"),
        ({"channel_names": {}}, "channel_names: found"),
        ({"test": "imagesTs"}, "test: found"),
        ({"test": [{"file": "a"}]}, "test[0]: found"),
    ],
)
def test_faulty_entry_is_named_with_what_was_found(declare, content, said):
    with pytest.raises(AutosegError) as caught:
        declare(**content)
    assert said in str(caught.value)


def test_all_faults_are_reported_at_once(declare):
    with pytest.raises(AutosegError) as caught:
        declare(labels={"1": 1.5, "b": None}, modality=3, test=[4])
    assert len(caught.value.issues) == 4


def test_syntax_error_has_line_and_column(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text('{\n "labels": {,}\n}')
    with pytest.raises(AutosegError, match="line 2, column 13"):
        read_decathlon(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe{}", "UTF-8"),
        (b"[1]", "one JSON object"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_other_content_is_refused(tmp_path, content, said):
    path = tmp_path / "dataset.json"
    path.write_bytes(content)
    with pytest.raises(AutosegError, match=said):
        read_decathlon(path)


@given(st.sets(st.integers(-5, 70000), min_size=1).filter(lambda values: values != {0}))
def test_labels_named_by_value_can_be_found_again(values):
    found = labels_named_by_value(values)
    for label in found.labels.classes:
        assert label.name == f"label_{found.file_values[label.values[0]]}"
    assert set(found.file_values) == values | {0}

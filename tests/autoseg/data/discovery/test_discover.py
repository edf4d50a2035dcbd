"""Discovery: finds what is in a folder and reports its faults."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import autoseg
from autoseg.data.dataset import DatasetDescription, describe_dataset
from autoseg.data.discovery import discover_dataset
from autoseg.data.discovery.discover import MOST_EXPECTED
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import write_image, write_label_map
from autoseg.issues import AutosegError
from datasets_spec import load_layouts, read_layout

GRID = Geometry(shape=(2, 3, 4), spacing_mm=(1.0, 1.0, 1.0))
DESCRIPTION = {"name": "Small", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a", "2": "b"}}


def add_case(folder, name, *, values=(0, 1, 2), parts=("imagesTr", "labelsTr")):
    for part in parts:
        (folder / part).mkdir(exist_ok=True)
        array = np.resize(values, GRID.shape)
        if part.startswith("labels"):
            write_label_map(folder / part / name, array, GRID)
        else:
            write_image(folder / part / name, array, GRID)


@pytest.fixture
def dataset(tmp_path):
    """Two labelled cases and a test image with a complete dataset.json."""
    folder = tmp_path / "Task99_Small"
    folder.mkdir()
    for name in ("b.nii.gz", "a.nii.gz"):
        add_case(folder, name)
    add_case(folder, "t.nii.gz", parts=["imagesTs"])
    (folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
    return folder


def redescribe(folder, **changes):
    (folder / "dataset.json").write_text(json.dumps({**DESCRIPTION, **changes}))


def test_cases_channels_and_labels_are_found(dataset):
    found = discover_dataset(dataset)
    assert (found.name, found.layout, found.channels, found.file_ending) == ("Small", "msd", ("MRI",), ".nii.gz")
    assert [case.case_id for case in found.training] == ["a", "b"]
    assert found.training[0].images == (str(dataset.resolve() / "imagesTr" / "a.nii.gz"),)
    assert found.training[0].label == str(dataset.resolve() / "labelsTr" / "a.nii.gz")
    assert [(case.case_id, case.label) for case in found.test] == [("t", None)]
    assert found.file_values == (0, 1, 2)
    assert found.issues == ()
    assert describe_dataset(found) == "2 labelled cases, 1 test case, 1 channel (MRI), labels a and b: Decathlon layout"


def test_description_survives_being_written(dataset):
    found = discover_dataset(dataset)
    assert DatasetDescription.model_validate_json(found.model_dump_json()) == found


def test_relative_folder_gives_absolute_paths(dataset, monkeypatch):
    monkeypatch.chdir(dataset.parent)
    assert discover_dataset(dataset.relative_to(dataset.parent)) == discover_dataset(dataset)


def test_other_files_are_skipped(dataset):
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (dataset / part / "._a.nii.gz").write_bytes(b"stray")
        (dataset / part / "_c.nii.gz").write_bytes(b"stray")
        (dataset / part / "notes.txt").write_text("stray")
        for folder in ("@eaDir", "__MACOSX", "#recycle"):
            (dataset / part / folder).mkdir()
            (dataset / part / folder / "a.nii.gz").write_bytes(b"stray")
    assert discover_dataset(dataset).issues == ()


def test_true_labels_of_test_images_are_not_used(dataset):
    add_case(dataset, "t.nii.gz", parts=["labelsTs"])
    assert [case.label for case in discover_dataset(dataset).test] == [None]


def test_image_without_label_and_label_without_image_are_errors(dataset):
    (dataset / "labelsTr" / "a.nii.gz").rename(dataset / "labelsTr" / "c.nii.gz")
    found = discover_dataset(dataset)
    assert [case.case_id for case in found.training] == ["b"]
    assert [(i.severity, i.case, i.code) for i in found.issues] == [
        ("error", "a", "case.unpaired_image"),
        ("error", "c", "case.unpaired_label"),
    ]
    assert found.unpaired_labels == (str(dataset.resolve() / "labelsTr" / "c.nii.gz"),)


def test_two_files_for_one_image_are_an_error(dataset):
    shutil.copyfile(dataset / "imagesTr" / "a.nii.gz", dataset / "imagesTr" / "a.nii")
    (issue,) = discover_dataset(dataset).issues
    assert (issue.severity, issue.code) == ("error", "case.duplicate_file")
    assert "imagesTr/a.nii " in issue.message


def test_image_and_label_may_have_different_endings(dataset):
    (dataset / "imagesTr" / "a.nii.gz").unlink()
    add_case(dataset, "a.mha", parts=["imagesTr"])
    found = discover_dataset(dataset)
    assert found.training[0].images[0].endswith("a.mha")
    assert found.file_ending == ".nii.gz"


def test_listed_test_images_elsewhere_are_found_and_missing_ones_noted(dataset):
    add_case(dataset, "u.nii.gz", parts=["more"])
    redescribe(dataset, test=["./imagesTs/t.nii.gz", {"image": "./more/u.nii.gz"}, "./imagesTs/gone.nii.gz"])
    found = discover_dataset(dataset)
    assert [case.case_id for case in found.test] == ["t", "u"]
    assert [(i.severity, i.code) for i in found.issues] == [("note", "description.missing_image")]


def test_listed_training_images_that_are_missing_are_a_warning(dataset):
    redescribe(dataset, training=[{"image": f"./imagesTr/{name}.nii.gz"} for name in "abc"])
    (issue,) = discover_dataset(dataset).issues
    assert (issue.severity, issue.code) == ("warning", "description.missing_image")
    assert issue.message.count("nii.gz") == 1


def test_listed_training_images_may_be_given_by_another_path(dataset):
    for name in "ab":
        (dataset / "imagesTr" / f"{name}.nii.gz").rename(dataset / "imagesTr" / f"{name}_0000.nii.gz")
    redescribe(dataset, training=[{"image": f"./images/{name}_0000.nii.gz"} for name in "ab"])
    found = discover_dataset(dataset, layout="nnunet")
    issues = [(i.severity, i.code) for i in found.issues]
    assert issues == [("warning", "description.missing_image"), ("note", "layout.unused_files")]


def test_without_description_labels_are_named_by_their_values(dataset):
    (dataset / "dataset.json").unlink()
    add_case(dataset, "c.nii.gz", values=(0, 7))
    found = discover_dataset(dataset)
    assert found.name == "Task99_Small"
    assert found.channels == ("channel_0",)
    assert [label.name for label in found.labels.classes] == ["label_1", "label_2", "label_7"]
    assert found.file_values == (0, 1, 2, 7)
    assert [f.severity for f in found.issues] == ["warning"]


def test_description_without_labels_is_completed_from_the_files(dataset):
    (dataset / "dataset.json").write_text('{"modality": {"0": "CT"}}')
    found = discover_dataset(dataset)
    assert found.channels == ("CT",)
    assert [label.name for label in found.labels.classes] == ["label_1", "label_2"]
    assert [i.code for i in found.issues] == ["description.labels_missing"]


def test_channels_of_a_4d_file_are_counted(dataset, real_data):
    for part in ("imagesTr", "labelsTr"):
        shutil.copyfile(real_data / "ms_lesion_4ch" / part / "ms4_07.nii.gz", dataset / part / "a.nii.gz")
    (dataset / "dataset.json").unlink()
    assert discover_dataset(dataset).channels == ("channel_0", "channel_1", "channel_2", "channel_3")


def test_without_description_and_foreground_there_is_nothing_to_segment(tmp_path):
    add_case(tmp_path, "a.nii.gz", values=(0,))
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    assert caught.value.codes == ("labels.all_empty",)


def test_another_layout_pairs_channels_and_groups_patients(tmp_path):
    layout = read_layout(
        """
        name = "raw"
        title = "Raw layout"
        expects = "numbered channels"
        [fields]
        patient = "p[0-9]+"
        channel = "[0-9]{4}"
        case = "p[0-9]+_v[0-9]"
        [training]
        images = ["{case}/{patient}_v{visit}_{channel}{ending}"]
        labels = ["{case}/{patient}_v{visit}_seg{ending}"]
        """,
        where="raw.toml",
    )
    for case in ("p1_v1", "p1_v2", "p2_v1"):
        for part in ("0001", "0000", "seg"):
            (tmp_path / case).mkdir(exist_ok=True)
            write_label_map(tmp_path / case / f"{case}_{part}.nii.gz", np.ones(GRID.shape, int), GRID)
    found = discover_dataset(tmp_path, layouts=[layout])
    assert [(case.case_id, case.group) for case in found.training] == [
        ("p1_v1", "p1"),
        ("p1_v2", "p1"),
        ("p2_v1", "p2"),
    ]
    assert [path[-11:] for path in found.training[0].images] == ["0000.nii.gz", "0001.nii.gz"]
    assert len(found.channels) == 2


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda folder: folder / "nowhere", "dataset.missing"),
        (lambda folder: folder, "dataset.empty_folder"),
        (lambda folder: (folder / "file").write_text("x") and folder / "file", "dataset.not_a_folder"),
    ],
)
def test_paths_that_are_not_folders_are_refused(tmp_path, make, code):
    with pytest.raises(AutosegError) as caught:
        discover_dataset(make(tmp_path))
    assert caught.value.codes == (code,)


def test_unrecognised_folder_names_what_was_expected_and_found(tmp_path):
    (tmp_path / "holiday.png").touch()
    (tmp_path / "letters").mkdir()
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    assert caught.value.codes == ("dataset.unlabelled", "dataset.layouts")
    for words in ("Decathlon layout", "imagesTr", "holiday.png", "letters/ (0 files)"):
        assert words in str(caught.value)


def test_errors_describe_a_few_layouts_and_the_check_all(tmp_path):
    (tmp_path / "letters").mkdir()
    with pytest.raises(AutosegError) as short:
        discover_dataset(tmp_path)
    with pytest.raises(AutosegError) as long:
        autoseg.check(tmp_path)
    counts = [error.value.issues[1].message.count("\n  - ") for error in (short, long)]
    assert counts == [MOST_EXPECTED, len(load_layouts())]
    with pytest.raises(AutosegError) as chosen:
        autoseg.check(tmp_path, layout="msd")
    assert chosen.value.issues[1].message.count("\n  - ") == 1


def touch_dataset(folder, cases):
    for place in ("imagesTr", "labelsTr"):
        (folder / place).mkdir(parents=True)
        for case in cases:
            (folder / place / f"{case}.nii.gz").touch()


def test_folders_that_are_datasets_are_named_instead_of_layouts(tmp_path):
    for name, cases in {"first": "ab", "second/deep": "abc", "third": "a"}.items():
        touch_dataset(tmp_path / name, cases)
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    (issue,) = caught.value.issues
    named = {"first": "2 cases", "second/deep": "3 cases", "third": "1 case"}
    assert all(f"{tmp_path / name} ({number})" in issue.fix for name, number in named.items())
    with pytest.raises(AutosegError) as checked:
        autoseg.check(tmp_path)
    assert checked.value.issues == caught.value.issues


def test_folders_of_one_case_each_are_no_datasets(tmp_path):
    for name in ("first", "second"):
        touch_dataset(tmp_path / name, "a")
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    assert "dataset.layouts" in caught.value.codes


def test_unpaired_folders_count_their_files(dataset):
    shutil.rmtree(dataset / "labelsTr")
    with pytest.raises(AutosegError, match="2 images and 0 label maps, none of the same case"):
        discover_dataset(dataset)


@pytest.mark.parametrize("near", [lambda folder: folder.parent, lambda folder: folder / "imagesTr"])
def test_dataset_one_folder_away_is_suggested(dataset, near):
    with pytest.raises(AutosegError) as caught:
        discover_dataset(near(dataset))
    assert str(dataset) in caught.value.issues[0].fix


def test_faulty_description_is_refused_with_its_place(dataset):
    (dataset / "dataset.json").write_text('{"labels": {"1": 2.5}}')
    with pytest.raises(AutosegError) as caught:
        discover_dataset(dataset)
    assert caught.value.codes == ("description.entry",)
    assert caught.value.issues[0].where.endswith("dataset.json, labels.1")


@pytest.mark.parametrize(
    ("excluded", "left"), [(["a"], (["b"], ["t"])), (["t"], (["a", "b"], [])), (["t", "b"], (["a"], []))]
)
def test_excluded_cases_are_left_out_with_a_note(dataset, excluded, left):
    found = discover_dataset(dataset, exclude=excluded)
    assert ([case.case_id for case in found.training], [case.case_id for case in found.test]) == left
    assert found.left_out == tuple(sorted(excluded))
    assert [(i.severity, i.code) for i in found.issues] == [("note", "case.excluded")]


def test_faults_of_excluded_cases_do_not_matter(dataset):
    (dataset / "dataset.json").unlink()
    add_case(dataset, "c.nii.gz", values=(0, 7))
    (dataset / "labelsTr" / "a.nii.gz").unlink()
    found = discover_dataset(dataset, exclude=["a", "c"])
    assert found.file_values == (0, 1, 2)
    assert "error" not in {issue.severity for issue in found.issues}
    assert found.unpaired_images == ()


def test_unknown_excluded_cases_suggest_the_nearest(dataset):
    add_case(dataset, "liver_10.nii.gz")
    with pytest.raises(AutosegError) as caught:
        discover_dataset(dataset, exclude=["liver_1", "zzz"])
    assert caught.value.codes == ("case.unknown", "case.unknown")
    assert ["liver_10" in issue.fix for issue in caught.value.issues] == [True, True]
    with pytest.raises(AutosegError) as caught:
        discover_dataset(dataset, exclude=["a", "b", "liver_10"])
    assert caught.value.codes == ("case.none_left",)

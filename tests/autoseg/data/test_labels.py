"""Labels of a case are the same from whichever files they are read, and go back to files of the same kind."""

from __future__ import annotations

import json
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.data import labels as case_labels
from autoseg.data.checks import check_dataset
from autoseg.data.dataset import Case, LabelCoding, MaskFile
from autoseg.data.discovery import discover_dataset
from autoseg.data.discovery.classes import labels_of_combinations
from autoseg.data.labels import (
    combination_values,
    read_case_labels,
    read_file_labels,
    to_file_values,
    to_internal,
    with_values,
)
from autoseg.evaluation.label_maps import decide
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import read_header, read_label_map, read_segments, write_label_map
from autoseg.imaging.resampling import resample_regions
from autoseg.issues import AutosegError
from autoseg.tracking.progress import SilentReporter
from datasets_spec import read_layout
from planners import Labels, Resampling

GRID = Geometry(shape=(3, 4, 5), spacing_mm=(1.0, 1.0, 1.0))
CLASSES = ("a", "b", "c")
SUBSETS = [frozenset(names) for size in range(4) for names in combinations(CLASSES, size)]


def write(path: Path, array, grid: Geometry = GRID) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label_map(path, np.asarray(array), grid)
    return str(path)


def code(labels: Labels, **changes) -> LabelCoding:
    return LabelCoding(labels=labels, file_values=tuple(range(len(labels.values) + 1)), classes=CLASSES, **changes)


@given(st.lists(st.sampled_from(SUBSETS), min_size=1, max_size=12))
def test_each_combination_has_a_value_that_knows_its_classes(chosen):
    labels = labels_of_combinations(CLASSES, chosen)
    table = combination_values(code(labels))
    assert set(chosen) <= set(table)
    assert sorted(table.values()) == list(range(len(table)))
    for names, value in table.items():
        assert {label.name for label in labels.classes if value in label.values} == names
    assert labels.has_regions == any(len(names) > 1 for names in chosen)


@given(st.lists(st.sampled_from(SUBSETS), min_size=60, max_size=60))
def test_predicted_regions_keep_their_overlaps(voxels):
    """What is written in the order of regions alone would lose the classes below."""
    labels = labels_of_combinations(CLASSES, voxels)
    if labels.region_order is None:
        return
    table = combination_values(code(labels))
    expected = np.array([table[names] for names in voxels]).reshape(GRID.shape)
    inside = np.array([[name in names for names in voxels] for name in CLASSES]).reshape(3, *GRID.shape)
    scores = np.where(inside, 1.0, -1.0).astype(np.float32)
    linear = Resampling(order=1, order_z=0, separate_z=None)
    written = resample_regions(
        scores, GRID.shape, labels.region_order, resampling=linear, separate_axis=None, overlaps=labels.overlaps
    )
    np.testing.assert_array_equal(written, expected)
    np.testing.assert_array_equal(decide(list(scores / 4 + 0.5), labels), expected)


def test_nested_regions_are_written_in_their_order_as_ever():
    layout = read_layout(
        'name = "x"\ntitle = "x"\nexpects = "x"\nregion_order = [2, 1, 4]\n[training]\nimages = ["{case}"]\nlabels = ["{case}"]\n'
        "[labels]\nwhole = [1, 2, 4]\ncore = [1, 4]\nenhancing = [4]\n",
        where="x.toml",
    )
    from autoseg.data.discovery.declarations import declared_by_layout

    assert declared_by_layout(layout).label_values.labels.overlaps == ()


def make_masks(root: Path, **changes):
    """Two cases with one mask a class, 255 inside: a and b overlap in the first; the second lacks b."""
    rng = np.random.default_rng(3)
    masks = {name: rng.random(GRID.shape) < 0.4 for name in ("a", "b")}
    for case in ("p", "q"):
        write(root / case / "ct.nii.gz", np.arange(60).reshape(GRID.shape))
    write(root / "p" / "masks" / "a.nii.gz", masks["a"] * 255)
    write(root / "p" / "masks" / "b.nii.gz", masks["b"] * 255)
    write(root / "q" / "masks" / "a.nii.gz", masks["a"] * 255)
    return masks


def test_overlapping_masks_become_regions(tmp_path):
    masks = make_masks(tmp_path)
    found = discover_dataset(tmp_path)
    assert found.labels.has_regions
    assert (found.classes_with_masks, found.mask_value, found.file_values) == (("a", "b"), 255, (0, 1, 2, 3))
    for case, names in zip(found.training, (("a", "b"), ("a",)), strict=True):
        array = read_case_labels(case, found.coding).array
        for label in found.labels.classes:
            expected = masks[label.name] if label.name in names else np.zeros(GRID.shape, bool)
            np.testing.assert_array_equal(np.isin(array, label.values), expected)


def test_masks_without_overlap_are_plain_classes(tmp_path):
    make_masks(tmp_path)
    mask = read_label_map(tmp_path / "p" / "masks" / "a.nii.gz").array
    write(tmp_path / "p" / "masks" / "b.nii.gz", 255 - mask)
    found = discover_dataset(tmp_path)
    assert not found.labels.has_regions
    np.testing.assert_array_equal(read_case_labels(found.training[0], found.coding).array, np.where(mask, 1, 2))


def test_later_mask_wins_if_the_layout_says_so(tmp_path):
    masks = make_masks(tmp_path)
    spec = tmp_path / "later.toml"
    spec.write_text('extends = "case_masks"\noverlap = "later"\n[labels]\nb = 1\na = 2\n')
    found = discover_dataset(tmp_path, spec=spec)
    expected = np.where(masks["a"], 2, np.where(masks["b"], 1, 0))
    np.testing.assert_array_equal(read_case_labels(found.training[0], found.coding).array, expected)


def test_masks_in_other_orientations_are_reoriented_to_the_image(tmp_path):
    make_masks(tmp_path)
    before = discover_dataset(tmp_path)
    expected = read_case_labels(before.training[0], before.coding, onto=GRID).array
    mask = read_label_map(tmp_path / "p" / "masks" / "b.nii.gz").array
    turned = GRID.model_copy(
        update={
            "direction": ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
            "origin_mm": (4.0, 0.0, 0.0),
        }
    )
    write(tmp_path / "p" / "masks" / "b.nii.gz", mask[..., ::-1], turned)
    np.testing.assert_array_equal(read_case_labels(before.training[0], before.coding, onto=GRID).array, expected)


def test_real_overlapping_segments_are_kept_apart(real_data):
    """Masks from the one door against the segments as they lie in the DICOM SEG file."""
    folder = real_data / "dicom_seg_ct3slice"
    segmentation = read_segments(folder / "partial_overlaps.dcm")
    case = Case(
        case_id="x",
        images=(str(folder / "ct-3slice"),),
        masks=tuple(
            MaskFile(label=s.name, file=f"{folder / 'partial_overlaps.dcm'}#{s.number}") for s in segmentation.segments
        ),
    )
    spec = Path(__file__).parents[2] / "real" / "specs" / "dicom_seg_ct3slice.toml"
    found = discover_dataset(folder, spec=spec)
    assert case.masks == tuple(sorted(found.training[0].masks, key=lambda m: int(m.file.rpartition("#")[2])))
    grid = read_header(folder / "ct-3slice").geometry
    array = read_case_labels(found.training[0], found.coding, onto=grid).array
    volumes = {label.name: int(np.isin(array, label.values).sum()) for label in found.labels.classes}
    assert volumes == {segment.name: int(segment.mask.sum()) for segment in segmentation.segments}
    assert found.labels.has_regions


def test_a_file_of_segments_is_read_once_for_all_of_them(real_data, monkeypatch):
    """Unpacking all frames for each of a hundred organs would take minutes a case."""
    spec = Path(__file__).parents[2] / "real" / "specs" / "dicom_seg_ct3slice.toml"
    found = discover_dataset(real_data / "dicom_seg_ct3slice", spec=spec)
    reads = []
    monkeypatch.setattr(case_labels, "read_segments", lambda path: reads.append(path) or read_segments(path))
    monkeypatch.setattr(case_labels, "read_label_map", None)
    read_case_labels(found.training[0], found.coding)
    assert len(reads) == 1
    assert len(found.training[0].masks) == 5


# --- values of label maps ---


def make_pairs(root: Path, arrays, ending=".nii.gz", description=None):
    for number, array in enumerate(arrays):
        write(root / "imagesTr" / f"{number}{ending}", np.arange(60).reshape(GRID.shape))
        write(root / "labelsTr" / f"{number}{ending}", array)
    if description is not None:
        (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_gaps_and_255_are_mapped(tmp_path):
    array = np.resize([0, 3, 7, 255], GRID.shape)
    found = discover_dataset(make_pairs(tmp_path, [array]))
    assert found.file_values == (0, 3, 7, 255)
    assert [label.name for label in found.labels.classes] == ["label_3", "label_7", "label_255"]
    np.testing.assert_array_equal(
        read_case_labels(found.training[0], found.coding).array, np.resize([0, 1, 2, 3], GRID.shape)
    )


@pytest.mark.parametrize("greys", [(128,), (3, 250), tuple(range(1, 255, 5))])
def test_greys_between_0_and_255_are_refused_with_a_fix(tmp_path, greys):
    array = np.full((10, 20, 20), 255)
    array[:5] = 0
    array.reshape(-1)[: len(greys)] = greys
    grid = GRID.model_copy(update={"shape": array.shape})
    write(tmp_path / "imagesTr" / "1.nii.gz", np.arange(4000).reshape(array.shape), grid)
    write(tmp_path / "labelsTr" / "1.nii.gz", array, grid)
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    assert caught.value.codes == ("labels.grey_values",)
    assert "threshold = 128" in str(caught.value)
    spec = tmp_path / "cut.toml"
    spec.write_text('extends = "msd"\nthreshold = 128\n')
    found = discover_dataset(tmp_path, spec=spec)
    np.testing.assert_array_equal(read_case_labels(found.training[0], found.coding).array, array >= 128)
    assert found.file_values == (0, 255)


@pytest.mark.parametrize("values", [(0, 255), (0, 1, 2, 255), (0, 128, 255), (0, 85, 170, 255)])
def test_classes_that_fill_some_of_the_image_are_no_greys(tmp_path, values):
    found = discover_dataset(make_pairs(tmp_path, [np.resize(values, GRID.shape)]))
    assert found.file_values == values


def test_mask_with_several_values_and_a_cut_one_are_found_together(tmp_path):
    make_masks(tmp_path)
    write(tmp_path / "q" / "masks" / "a.nii.gz", np.resize([0, 1, 2], GRID.shape))
    (tmp_path / "p" / "masks" / "a.nii.gz").write_bytes(b"cut")
    issues = check_dataset(discover_dataset(tmp_path), num_workers=1, reporter=SilentReporter())
    errors = {issue.case: issue for issue in issues if issue.severity == "error"}
    assert errors.keys() == {"p", "q"}
    assert errors["p"].where.endswith("p/masks/a.nii.gz")
    assert errors["q"].where.endswith("q/masks/a.nii.gz")
    assert errors["q"].code == "labels.mask_values"


# --- partial annotation ---

PARTIAL = {
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "liver", "2": "spleen"},
    "annotated_classes": {"1": ["liver"], "0": ["liver", "spleen"]},
}


def test_background_of_a_partly_annotated_case_is_unknown(tmp_path):
    whole, part = np.resize([0, 1, 2], GRID.shape), np.resize([0, 1], GRID.shape)
    found = discover_dataset(make_pairs(tmp_path, [whole, part], description=PARTIAL))
    assert found.labels.ignore == 3
    np.testing.assert_array_equal(read_case_labels(found.training[0], found.coding).array, whole)
    np.testing.assert_array_equal(read_case_labels(found.training[1], found.coding).array, np.where(part == 0, 3, 1))
    np.testing.assert_array_equal(
        read_case_labels(found.training[1], found.coding, missing_as_ignore=False).array, part
    )
    np.testing.assert_array_equal(read_file_labels(found.training[1], found.coding).array, part)
    assert [(issue.severity, issue.code) for issue in found.issues] == [("note", "labels.partly_annotated")]


def test_unknown_annotated_class_is_reported(tmp_path):
    description = PARTIAL | {"annotated_classes": {"0": ["livr"]}}
    with pytest.raises(AutosegError) as caught:
        discover_dataset(make_pairs(tmp_path, [np.resize([0, 1], GRID.shape)], description=description))
    assert caught.value.codes == ("description.annotated_classes",)


def test_real_partial_annotation(real_data):
    found = discover_dataset(real_data / "ct_torso_partial")
    assert {case.case_id: case.annotated for case in found.training}["ct04"] == ("spleen",)
    case = next(case for case in found.training if case.case_id == "ct04")
    values, counts = np.unique(read_case_labels(case, found.coding).array, return_counts=True)
    # 96672 voxels of spleen, as the dataset's own description counts them, and nothing known of the rest
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {1: 96672, 6: 164 * 166 * 26 - 96672}


# --- files named after a class ---


def test_discrete_segmentations_of_bids_are_label_maps(tmp_path):
    """``dseg`` is a map of several labels, not the mask of a class of that name."""
    for number in (1, 2):
        write(tmp_path / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz", np.arange(60).reshape(GRID.shape))
        write(
            tmp_path / "derivatives" / "x" / f"sub-{number}" / "anat" / f"sub-{number}_T1w_dseg.nii.gz",
            np.resize([0, 1, 4], GRID.shape),
        )
    found = discover_dataset(tmp_path)
    assert (found.layout, found.channels, found.file_values, found.classes_with_masks) == (
        "bids",
        ("T1w",),
        (0, 1, 4),
        (),
    )
    assert [label.name for label in found.labels.classes] == ["label_1", "label_4"]


def test_only_class_with_a_mask_keeps_its_name(tmp_path):
    make_masks(tmp_path)
    (tmp_path / "p" / "masks" / "b.nii.gz").unlink()
    found = discover_dataset(tmp_path)
    assert ([label.name for label in found.labels.classes], found.file_values, found.classes_with_masks) == (
        ["a"],
        (0, 255),
        (),
    )


# --- labels of DICOM series ---


def copy_series(real_data, target: Path) -> None:
    target.mkdir(parents=True)
    for file in (real_data / "dicom_seg_ct3slice" / "ct-3slice").iterdir():
        shutil.copyfile(file, target / file.name)


@pytest.mark.parametrize("inside", [False, True], ids=["dicom", "dicom_cases"])
@pytest.mark.parametrize(
    ("label", "ending", "names"), [("liver_seg.nrrd", ".nrrd", ["label_1"]), ("liver.dcm", ".dcm", ["Liver"])]
)
def test_series_with_labels_beside_them(real_data, tmp_path, inside, label, ending, names):
    for case in ("one", "two"):
        copy_series(real_data, tmp_path / case / "scan" if inside else tmp_path / case)
        target = tmp_path / case / f"seg{ending}" if inside else tmp_path / f"{case}_seg{ending}"
        shutil.copyfile(real_data / "dicom_seg_ct3slice" / label, target)
    copy_series(real_data, tmp_path / "three" / "scan" if inside else tmp_path / "three")
    found = discover_dataset(tmp_path)
    assert (found.layout, found.channels) == ("dicom_cases" if inside else "dicom", ("CT",))
    assert [case.case_id for case in found.training] == ["one", "two"]
    assert [case.case_id for case in found.test] == ["three"]
    assert [label.name for label in found.labels.classes] == names
    expected = read_label_map(real_data / "dicom_seg_ct3slice" / "liver_seg.nrrd")
    grid = read_header(found.training[0].images[0]).geometry
    array = read_case_labels(found.training[0], found.coding, onto=grid).array
    assert int((array == 1).sum()) == int((expected.array == 1).sum())


def test_labelled_studies_of_a_patient_are_cases_of_one_group(real_data, tmp_path):
    """As TCIA keeps them; a patient with one study is no different."""
    for study in ("one/a", "one/b", "two/a"):
        copy_series(real_data, tmp_path / study / "1.000-CT")
        (tmp_path / study / "2.000-SEG").mkdir()
        shutil.copyfile(real_data / "dicom_seg_ct3slice" / "liver.dcm", tmp_path / study / "2.000-SEG" / "1-1.dcm")
    found = discover_dataset(tmp_path)
    assert {case.case_id: case.group for case in found.training} == {"one_a": "one", "one_b": "one", "two_a": "two"}
    shutil.rmtree(tmp_path / "one" / "b")
    assert [case.case_id for case in discover_dataset(tmp_path).training] == ["one", "two"]


def test_two_files_of_segments_for_one_case_are_refused_where_they_name_the_same(real_data, tmp_path):
    copy_series(real_data, tmp_path / "one" / "CT")
    for name in ("SEG1", "SEG2"):
        (tmp_path / "one" / name).mkdir()
        shutil.copyfile(real_data / "dicom_seg_ct3slice" / "liver.dcm", tmp_path / "one" / name / "1-1.dcm")
    (issue,) = [issue for issue in discover_dataset(tmp_path).issues if issue.code == "case.duplicate_structure"]
    assert "structures that" in issue.message


def write_slicer(path: Path, array, names: dict[str, int]) -> None:
    """A label map with segments of these names and values."""
    image = SimpleITK.GetImageFromArray(np.asarray(array, np.uint8))
    for number, (name, value) in enumerate(names.items()):
        image.SetMetaData(f"Segment{number}_Name", name)
        image.SetMetaData(f"Segment{number}_LabelValue", str(value))
    SimpleITK.WriteImage(image, str(path))


def test_segments_of_slicer_name_the_values_of_label_maps(tmp_path):
    for name in ("p", "q"):
        write(tmp_path / f"{name}.nrrd", np.ones(GRID.shape))
        write_slicer(tmp_path / f"{name}.seg.nrrd", np.resize([0, 2, 5], GRID.shape), {"liver": 5, "spleen": 2})
    found = discover_dataset(tmp_path)
    assert [(label.name, found.file_values[label.values[0]]) for label in found.labels.classes] == [
        ("spleen", 2),
        ("liver", 5),
    ]
    assert (found.classes_with_masks, found.file_ending) == ((), ".nrrd")
    np.testing.assert_array_equal(
        read_file_labels(found.training[0], found.coding).array, np.resize([0, 2, 5], GRID.shape)
    )


def test_slicer_segments_are_matched_by_name_if_their_values_differ(tmp_path):
    """Slicer numbers segments in the order in which they were drawn: in one case the liver is 1, in another it is 2."""
    for name, names in (("p", {"liver": 1, "spleen": 2}), ("q", {"spleen": 1, "liver": 2})):
        write(tmp_path / f"{name}.nrrd", np.ones(GRID.shape))
        write_slicer(tmp_path / f"{name}.seg.nrrd", np.resize([0, 0, 1, 2, 2], GRID.shape), names)
    found = discover_dataset(tmp_path)
    assert found.classes_with_masks == ("liver", "spleen")
    volumes = [
        [
            int(np.isin(read_case_labels(case, found.coding, onto=GRID).array, label.values).sum())
            for label in found.labels.classes
        ]
        for case in found.training
    ]
    assert volumes == [[12, 24], [24, 12]]


# --- values ---

file_values = st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 300), min_size=1, max_size=8, unique=True)


@settings(deadline=None, max_examples=100)
@given(values=file_values, seed=st.integers(0, 99))
def test_values_go_in_and_come_out(values: list[int], seed: int) -> None:
    internal = np.random.default_rng(seed).integers(0, len(values), (2, 3, 4))
    outside = to_file_values(internal, values)
    assert np.array_equal(outside, np.array(values)[internal])
    back = to_internal(outside, values)
    assert back.dtype == np.int16
    assert np.array_equal(back, internal)


def test_the_smallest_type_is_chosen() -> None:
    array = np.zeros((1, 1, 1), np.int16)
    kinds = [to_file_values(array, values).dtype for values in ((0, 255), (0, 300), (-5, 0), (0, 70_000), (0, 2**40))]
    assert kinds == [np.uint8, np.uint16, np.int16, np.int32, np.int64]


@pytest.mark.parametrize("wide", [7, 10**9])
def test_unknown_values_are_named_with_their_counts(wide: int) -> None:
    array = np.array([0, 1, 5, wide, wide])
    with pytest.raises(AutosegError, match=rf"5 \(1 voxel\), {wide} \(2 voxels\); declared are 0, 1") as caught:
        to_internal(array, (0, 1))
    assert caught.value.codes == ("labels.undeclared_value",)


def test_an_empty_array_stays_empty() -> None:
    assert to_internal(np.zeros((0, 2), np.uint8), (0, 1)).shape == (0, 2)


def test_values_can_be_swapped_and_may_not_fit_the_old_type():
    array = np.array([[0, 1], [2, 3]], np.uint8)
    assert with_values(array, {1: 2, 2: 1, 3: 300}).tolist() == [[0, 2], [1, 300]]
    assert with_values(array, {}) is array


def test_dropped_values_are_background_everywhere(tmp_path):
    values = np.resize(np.arange(5), GRID.shape)
    for name in ("a", "b"):
        write(tmp_path / "data" / "imagesTr" / f"{name}.nii.gz", values * 10 + (name == "b"))
        write(tmp_path / "data" / "labelsTr" / f"{name}.nii.gz", values)
    spec = tmp_path / "kidneys.toml"
    spec.write_text('extends = "msd"\nchannels = ["MR"]\n[labels]\nkidneys = [2, 3]\nbackground = [0, 1, 4]\n')
    found = discover_dataset(tmp_path / "data", spec=spec)
    issues = check_dataset(found, num_workers=1, reporter=SilentReporter())
    assert [issue.code for issue in issues if issue.severity == "error"] == []
    (kidneys,) = found.labels.classes
    array = read_case_labels(found.training[0], found.coding).array
    np.testing.assert_array_equal(np.isin(array, kidneys.values), np.isin(values, [2, 3]))
    np.testing.assert_array_equal(array == 0, np.isin(values, [0, 1, 4]))

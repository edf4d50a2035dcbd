"""Folders of label maps and of masks are paired, checked and scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from typer.testing import CliRunner

from autoseg.cli import app
from autoseg.evaluation.folders import evaluate_folder, holds_masks
from autoseg.evaluation.metrics import EvaluatedClass, compare
from autoseg.evaluation.pairing import pair_names
from autoseg.evaluation.table import format_table, read_summary
from autoseg.imaging.image import Geometry
from autoseg.imaging.orientation import Orientation, align_label_map, canonical_geometry, to_canonical
from autoseg.imaging.readers import read_header, read_label_map, read_segments, write_image, write_label_map
from autoseg.issues import AutosegError, Issue
from autoseg.tracking.progress import SilentReporter, Tracker

HEAD = EvaluatedClass(name="head", values=(1,))
WHOLE = EvaluatedClass(name="whole", values=(1, 2))
GRID = Geometry(shape=(2, 3, 4), spacing_mm=(2.0, 1.0, 0.5), origin_mm=(10.0, -4.0, 7.0))


class Listener:
    """A reporter that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def track(self, title: str, total: float) -> Iterator[Tracker]:
        with SilentReporter().track(title, total) as tracker:
            yield tracker


def write(path: Path, *voxels: int, geometry: Geometry = GRID) -> None:
    """A label map whose first voxels are given, the rest background."""
    array = np.zeros(geometry.shape, dtype=np.uint8)
    array.ravel()[: len(voxels)] = voxels
    write_label_map(path, array, geometry)


def refused(predictions: Path, references: Path, **options: Any) -> tuple[Issue, ...]:
    with pytest.raises(AutosegError) as caught:
        evaluate_folder(predictions, references, **options)
    return caught.value.issues


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases: one perfect, one in which class 2 is missed."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    write(predictions / "a.nii.gz", 1, 1, 2)
    write(references / "a.nii.gz", 1, 1, 2)
    write(predictions / "b.nii.gz", 1)
    write(references / "b.nii.gz", 1, 1, 2)
    return predictions, references


def test_case_is_scored_with_the_spacing_of_its_reference(folders: tuple[Path, Path]) -> None:
    got = evaluate_folder(*folders, classes=[HEAD, WHOLE]).metric_per_case[1]

    assert list(got.metrics) == ["1", "(1, 2)"]
    assert got.metrics["1"].dice == pytest.approx(2 / 3)
    assert got.metrics["1"].hausdorff95_mm == 0.5  # from the far side of the second voxel
    assert got.metrics["(1, 2)"].volume_reference_ml == pytest.approx(0.003)


@pytest.mark.parametrize("predicted", ["{0}/{0}", "{0}/seg", "{0}/{0}_pred", "{0}"])
@pytest.mark.parametrize("expected", ["{0}/{0}", "{0}/Label", "{0}"])
def test_label_maps_may_lie_in_folders_of_their_cases(tmp_path: Path, predicted: str, expected: str) -> None:
    for case_id, voxels in (("a", (1, 1, 2)), ("b", (1,))):
        write(tmp_path / "p" / f"{predicted.format(case_id)}.nii.gz", *voxels)
        write(tmp_path / "r" / f"{expected.format(case_id)}.nii.gz", 1, 1, 2)
    got = evaluate_folder(tmp_path / "p", tmp_path / "r", classes=[WHOLE])
    assert got.dice_by_case() == {"a": {"whole": 1.0}, "b": {"whole": 0.5}}


def test_folders_of_files_that_are_neither_label_maps_nor_masks_are_explained(tmp_path: Path) -> None:
    for case_id in ("a", "b"):
        for name in (case_id, f"{case_id}_uncertainty"):
            write(tmp_path / "p" / case_id / f"{name}.nii.gz", 1)
        write(tmp_path / "r" / f"{case_id}.nii.gz", 1)
    (issue,) = refused(tmp_path / "p", tmp_path / "r")
    assert issue.code == "evaluation.no_masks"
    assert "CASE/CLASS" in issue.fix


def test_folder_is_scored_case_by_case(folders: tuple[Path, Path]) -> None:
    got = evaluate_folder(*folders)

    assert [case.case_id for case in got.metric_per_case] == ["a", "b"]
    assert [each.name for each in got.classes] == ["1", "2"]
    assert got.dice_by_case() == {"a": {"1": 1.0, "2": 1.0}, "b": {"1": pytest.approx(2 / 3), "2": 0.0}}
    assert got.mean["1"]["Dice"] == pytest.approx(5 / 6)
    assert got.mean["1"]["TP"] == 1.5
    assert got.mean_dice == pytest.approx((5 / 6 + 1 / 2) / 2)


def test_means_leave_undefined_scores_out_and_count_them(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    write(predictions / "c.nii.gz", 2)
    write(references / "c.nii.gz")
    write(predictions / "d.nii.gz")
    write(references / "d.nii.gz")

    got = evaluate_folder(predictions, references)

    two = got.counts["2"]
    assert (two.cases, two.both_empty, two.missed, two.false_positive) == (4, 1, 1, 1)
    assert (two.in_mean["Dice"], two.in_mean["hausdorff95_mm"], two.in_mean["TP"]) == (3, 1, 4)
    assert got.mean["2"]["Dice"] == pytest.approx(1 / 3)
    assert got.mean["2"]["hausdorff95_mm"] == 0.0


def test_class_that_is_nowhere_has_no_mean_and_spoils_none(folders: tuple[Path, Path]) -> None:
    absent = EvaluatedClass(name="absent", values=(7,))

    got = evaluate_folder(*folders, classes=[HEAD, absent])

    assert got.mean["7"]["Dice"] is None
    assert got.mean_dice == pytest.approx(5 / 6)
    assert (got.foreground_classes["Dice"], got.foreground_classes["TP"]) == (1, 2)


def test_ignored_value_is_no_class(folders: tuple[Path, Path]) -> None:
    got = evaluate_folder(*folders, ignore=2)

    assert [each.name for each in got.classes] == ["1"]
    assert got.metric_per_case[0].metrics["1"].tn == 2 * 3 * 4 - 1 - 2


def test_other_files_in_the_folder_are_skipped(folders: tuple[Path, Path]) -> None:
    (folders[0] / "summary.json").write_text("{}")
    (folders[0] / "log.txt").write_text("")
    (folders[0] / "._a.nii.gz").write_text("what some systems leave behind")
    (folders[1] / "more").mkdir()

    assert len(evaluate_folder(*folders, strict=True).metric_per_case) == 2


def test_pairs_may_differ_in_format(folders: tuple[Path, Path]) -> None:
    (folders[0] / "b.nii.gz").unlink()
    write(folders[0] / "b.mha", 1)

    assert evaluate_folder(*folders).mean["1"]["Dice"] == pytest.approx(5 / 6)


def test_workers_score_as_one_process_does(folders: tuple[Path, Path]) -> None:
    assert evaluate_folder(*folders, num_workers=2) == evaluate_folder(*folders)


def test_all_issues_come_in_one_list(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    write(references / "unpredicted.nii.gz", 1)
    write(predictions / "unexpected.nii.gz", 1)
    write(predictions / "large.nii.gz", 1, geometry=GRID.model_copy(update={"shape": (2, 3, 5)}))
    write(references / "large.nii.gz", 1)
    write(
        predictions / "moved.nii.gz",
        1,
        geometry=GRID.model_copy(update={"origin_mm": (10.0, -4.0, 9.0), "spacing_mm": (2.0, 1.0, 0.6)}),
    )
    write(references / "moved.nii.gz", 1)
    write(references / "torn.nii.gz", 1)
    (predictions / "torn.nii.gz").write_bytes((references / "torn.nii.gz").read_bytes()[:60])

    issues = refused(predictions, references, strict=True)

    found = [(issue.code, Path(issue.where).name) for issue in issues]
    assert [pair for pair in found if pair[0].startswith("evaluation.")] == [
        ("evaluation.no_prediction", "unpredicted.nii.gz"),
        ("evaluation.no_reference", "unexpected.nii.gz"),
        ("evaluation.grid_mismatch", "large.nii.gz"),
        ("evaluation.grid_mismatch", "moved.nii.gz"),  # spacing
        ("evaluation.grid_mismatch", "moved.nii.gz"),  # origin
    ]
    (torn,) = (issue for issue in issues if not issue.code.startswith("evaluation."))
    assert "torn.nii.gz" in str(torn)
    assert "has size 2x3x5 voxels instead of 2x3x4 (z, y, x)" in {issue.message for issue in issues}
    assert all(issue.fix for issue in issues if issue is not torn)


def test_what_has_no_counterpart_is_listed_and_the_rest_is_scored(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    write(references / "unpredicted.nii.gz", 1)
    write(predictions / "unexpected.nii.gz", 1)

    got = evaluate_folder(predictions, references)

    assert [case.case_id for case in got.metric_per_case] == ["a", "b"]
    assert [(issue.code, issue.severity, Path(issue.where).name) for issue in got.not_scored] == [
        ("evaluation.no_prediction", "warning", "unpredicted.nii.gz"),
        ("evaluation.no_reference", "warning", "unexpected.nii.gz"),
    ]
    assert "unpredicted.nii.gz: has no prediction" in format_table(got)
    assert [issue.severity for issue in refused(predictions, references, strict=True)] == ["error"] * 2


def test_folders_without_a_pair_are_refused(folders: tuple[Path, Path]) -> None:
    for name in ("a", "b"):
        (folders[0] / f"{name}.nii.gz").rename(folders[0] / f"other_{name}.nii.gz")
    (issue,) = refused(*folders)
    assert issue.code == "evaluation.no_pairs"
    assert "(other_a, but a)" in issue.message


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("case1", "case1_mask"),
        ("case1", "case1-seg"),
        ("case1_0000", "case1"),
        ("case1_0000", "case1_seg"),
        ("case1_pred", "case1_gt"),
        ("img0001", "label0001"),
        ("P1", "p1_Segmentation"),
        ("BraTS-GLI-00000-000", "BraTS-GLI-00000-000-seg"),
        ("patient001_frame01", "patient001_frame01_gt"),
        ("pred_7", "7"),
    ],
)
def test_names_that_differ_by_a_word_belong_together(prediction: str, reference: str) -> None:
    assert pair_names([prediction, "x2"], [reference, "y2"]) == {prediction: reference}


@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        (["case_0001"], ["case_0002"]),
        (["case_1"], ["case_2_mask"]),
        (["left_1"], ["right_1"]),
        (["a", "a_pred"], ["a_mask"]),  # which of them?
        (["a"], ["a_mask", "a_gt"]),
        (["mask"], ["seg"]),
    ],
)
def test_names_of_other_cases_do_not(predictions: list[str], references: list[str]) -> None:
    assert pair_names(predictions, references) == {}


@pytest.mark.parametrize(
    ("suffix", "names", "is_paired"),
    [
        ("_GTV", ["p1", "p2"], True),
        ("_label-lesion_mask", ["sub-1", "sub-2"], True),
        ("_ses-1", ["sub-1", "sub-2"], True),
        ("_T1w", ["a"], False),  # perhaps another case
        ("_lesion", ["a"], True),
    ],
)
def test_names_of_one_side_may_all_end_in_the_same(suffix: str, names: list[str], is_paired: bool) -> None:
    longer = [f"{name}{suffix}" for name in names]
    assert pair_names(names, longer) == (dict(zip(names, longer, strict=True)) if is_paired else {})
    assert pair_names(longer, names) == (dict(zip(longer, names, strict=True)) if is_paired else {})
    assert pair_names(names, [*longer, f"{names[0]}_other"]) == {}


def test_equal_names_belong_together_whatever_others_are_like() -> None:
    assert pair_names(["a", "a_mask"], ["a", "a_mask"]) == {"a": "a", "a_mask": "a_mask"}


def test_suffixes_and_endings_may_differ(folders: tuple[Path, Path]) -> None:
    (folders[1] / "a.nii.gz").rename(folders[1] / "a_seg.nii.gz")
    (folders[1] / "b.nii.gz").unlink()
    write(folders[1] / "b_mask.mha", 1, 1, 2)

    assert evaluate_folder(*folders, strict=True).dice_by_case()["b"] == {"1": pytest.approx(2 / 3), "2": 0.0}


# --- datasets ---


def write_dataset(folder: Path, image: str, label: str) -> Path:
    """Cases a, b and c, in which class 2 is ``tail``; c is annotated for nothing else."""
    for number, case in enumerate("abc"):
        intensities = np.random.default_rng(number).normal(100, 20, GRID.shape).astype(np.float32)
        write_image(folder / image.format(case=case), intensities, GRID)
        write(folder / label.format(case=case), 1, 1, 2)
    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "head": 1, "tail": 2}, "channel_names": {"0": "MRI"}})
    )
    return folder


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("imagesTr/{case}_0000.nii.gz", "labelsTr/{case}.nii.gz"),
        ("images/{case}.nii.gz", "labels/{case}_mask.nii.gz"),
        ("{case}.nii.gz", "{case}_seg.nii.gz"),
        ("{case}/{case}_mr.nii.gz", "{case}/{case}_seg.nii.gz"),
    ],
)
def test_a_dataset_is_the_reference(folders: tuple[Path, Path], tmp_path: Path, image: str, label: str) -> None:
    dataset = write_dataset(tmp_path / "dataset", image, label)

    got = evaluate_folder(folders[0], dataset, tolerance_mm=2.0)

    assert got.dice_by_case() == {
        "a": {"head": 1.0, "tail": 1.0},
        "b": {"head": pytest.approx(2 / 3), "tail": 0.0},
    }
    assert got.tolerance_mm == 2.0
    assert [(issue.code, Path(issue.where).name) for issue in got.not_scored] == [
        ("evaluation.no_prediction", Path(label.format(case="c")).name)
    ]
    assert [issue.code for issue in refused(folders[0], dataset, strict=True)] == ["evaluation.no_prediction"]


def test_an_image_without_labels_is_no_reason_to_read_the_others_as_label_maps(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "dataset", "{case}.nii.gz", "{case}_seg.nii.gz")
    write_image(dataset / "d.nii.gz", np.random.default_rng(9).normal(100, 20, GRID.shape).astype(np.float32), GRID)
    assert [each.name for each in evaluate_folder(folders[0], dataset).classes] == ["head", "tail"]


def test_predictions_of_a_model_with_other_classes_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", "imagesTr/{case}_0000.nii.gz", "labelsTr/{case}.nii.gz")
    classes = [EvaluatedClass(name="tail", values=(1,)), EvaluatedClass(name="head", values=(2,))]
    (issue,) = refused(folders[0], dataset, classes=classes)
    assert issue.code == "evaluation.other_classes"
    assert "tail 1, head 2" in issue.message


def test_predictions_of_test_cases_need_the_folder_of_their_label_maps(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "dataset", "imagesTr/{case}_0000.nii.gz", "labelsTr/{case}.nii.gz")
    (dataset / "imagesTr").rename(dataset / "imagesTs")
    write_dataset(dataset, "imagesTr/of_{case}_0000.nii.gz", "labelsTr/of_{case}.nii.gz")
    for case in "abc":
        (dataset / "labelsTr" / f"{case}.nii.gz").unlink()
    (issue,) = refused(folders[0], dataset)
    assert issue.code == "evaluation.no_pairs"
    assert issue.fix.startswith("these are its test cases")


def test_folders_that_are_no_dataset_say_so(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "odd" / "deeper").mkdir(parents=True)
    (tmp_path / "odd" / "deeper" / "notes.txt").write_text("nothing")
    assert {issue.code.partition(".")[0] for issue in refused(folders[0], tmp_path / "odd")} == {"dataset"}


def test_scores_are_also_a_table(folders: tuple[Path, Path], tmp_path: Path) -> None:
    import pandas as pd

    call = ["evaluate", str(folders[0]), str(folders[1])]
    done = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "scores.csv")])
    assert done.exit_code == 0, done.output
    summary = read_summary(tmp_path / "scores.json")
    table = pd.read_csv(tmp_path / "scores.csv", dtype={"case": str, "class": str})
    assert [tuple(row) for row in table[["case", "class"]].to_numpy()] == [
        (case, each) for case in ("a", "b") for each in ("1", "2")
    ]
    for row in table.to_dict("records"):
        case = next(each for each in summary.metric_per_case if each.case_id == row["case"])
        stored = case.metrics[row["class"]].model_dump(by_alias=True)
        assert {name: None if value != value else value for name, value in row.items() if name in stored} == stored
    assert "0.0" not in (tmp_path / "scores.csv").read_text().splitlines()[1].split(",")[4:8]  # counts are whole
    assert CliRunner().invoke(app, [*call, "--out", str(tmp_path / "scores.json")]).exit_code == 0  # own files
    (tmp_path / "scores.csv").write_text("mine")
    done = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "scores.json")])
    assert done.exit_code == 1
    assert (tmp_path / "scores.csv").read_text() == "mine"


# --- label maps ---


def test_same_grid_in_another_orientation_is_reoriented(folders: tuple[Path, Path]) -> None:
    """Rows and columns of the prediction run the other way, from the opposite corner."""
    reference = read_label_map(folders[1] / "b.nii.gz")
    turn = Orientation((0, 2, 1), (False, True, False))
    straight = evaluate_folder(*folders)

    write_label_map(
        folders[0] / "b.nii.gz",
        to_canonical(read_label_map(folders[0] / "b.nii.gz").array, turn),
        canonical_geometry(reference.geometry, turn),
    )

    assert read_label_map(folders[0] / "b.nii.gz").array.shape == (2, 4, 3)
    assert evaluate_folder(*folders).dice_by_case() == straight.dice_by_case()


def test_reoriented_prediction_at_another_place_is_refused(folders: tuple[Path, Path]) -> None:
    turned = GRID.model_copy(update={"direction": ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))})
    write(folders[0] / "a.nii.gz", 1, 1, 2, geometry=turned)

    (issue,) = refused(*folders)
    assert (issue.code, issue.where) == ("evaluation.grid_mismatch", str(folders[0] / "a.nii.gz"))
    assert issue.message.startswith("has origin")


def test_oblique_prediction_is_refused(folders: tuple[Path, Path]) -> None:
    oblique = GRID.model_copy(update={"direction": ((0.8, -0.6, 0.0), (0.6, 0.8, 0.0), (0.0, 0.0, 1.0))})
    write(folders[0] / "a.nii.gz", 1, 1, 2, geometry=oblique)

    (issue,) = refused(*folders)
    assert issue.message.startswith("has direction")


def test_rounding_of_headers_is_no_problem(folders: tuple[Path, Path]) -> None:
    rounded = GRID.model_copy(update={"spacing_mm": (2.0001, 1.0, 0.5), "origin_mm": (10.001, -4.0, 7.0)})
    write(folders[0] / "a.nii.gz", 1, 1, 2, geometry=rounded)

    assert evaluate_folder(*folders).metric_per_case[0].metrics["1"].dice == 1.0


def test_two_files_of_one_name_are_refused(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "a.mha", 1)

    (issue,) = refused(*folders)
    assert (issue.code, issue.where) == ("evaluation.duplicate_name", str(folders[0] / "a.nii.gz"))


@pytest.mark.parametrize("which", [0, 1])
def test_missing_and_empty_folders_are_named(folders: tuple[Path, Path], which: int) -> None:
    shutil.rmtree(folders[which])
    assert [issue.code for issue in refused(*folders)] == ["evaluation.no_folder"]
    folders[which].mkdir()
    (issue,) = refused(*folders)
    assert (issue.code, issue.where) == ("evaluation.no_label_maps", str(folders[which]))


def test_references_without_foreground_need_classes(folders: tuple[Path, Path]) -> None:
    for name in ("a", "b"):
        write(folders[1] / f"{name}.nii.gz")

    assert [issue.code for issue in refused(*folders)] == ["evaluation.no_foreground"]
    assert evaluate_folder(*folders, classes=[HEAD]).mean["1"]["Dice"] == 0.0


@pytest.mark.parametrize(("lowest", "number", "is_image"), [(1, 1000, False), (1, 1001, True), (-1, 3, True)])
def test_images_in_place_of_labels_are_recognised(tmp_path: Path, lowest: int, number: int, is_image: bool) -> None:
    grid = GRID.model_copy(update={"shape": (1, 1, 1100)})
    array = np.zeros(grid.shape, dtype=np.int16)
    array[0, 0, :number] = np.arange(lowest, lowest + number)
    for name in ("predictions", "references"):
        write_label_map(tmp_path / name / "a.nii.gz", array, grid)
    folders = tmp_path / "predictions", tmp_path / "references"

    if is_image:
        assert [issue.code for issue in refused(*folders)] == ["evaluation.not_labels"]
    else:
        assert len(evaluate_folder(*folders).classes) == number


def test_predicted_values_that_are_not_classes_are_reported(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "b.nii.gz", 1, 1, 5)
    listener = Listener()

    evaluate_folder(*folders, reporter=listener)

    assert listener.lines == [
        "Predictions contain values that are not classes and are scored as background: 5 (in 1 of 2)"
    ]


def test_flat_images_are_scored_in_pixels(tmp_path: Path) -> None:
    flat = Geometry(shape=(1, 4, 5), spacing_mm=(1.0, 1.0, 1.0), dimensions=2, has_orientation=False)
    write(tmp_path / "predictions" / "a.png", 1, 0, geometry=flat)
    write(tmp_path / "references" / "a.png", 0, 0, 1, geometry=flat)

    got = evaluate_folder(tmp_path / "predictions", tmp_path / "references")

    assert got.mean["1"]["hausdorff95_mm"] == 2.0


def test_real_labels_agree_with_themselves(real_data: Path, tmp_path: Path) -> None:
    """A reference against itself is perfect, and has the size that a hippocampus has."""
    labels = real_data / "Task04_Hippocampus" / "labelsTr"
    chosen = sorted(path for path in labels.glob("*.nii.gz") if not path.name.startswith("."))[:4]
    for path in chosen:
        (tmp_path / "references").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "references")

    got = evaluate_folder(tmp_path / "references", tmp_path / "references")

    assert [each.name for each in got.classes] == ["1", "2"]
    assert [got.foreground_mean[metric] for metric in ("Dice", "surface_dice", "hausdorff95_mm")] == [1, 1, 0]
    volumes = [case.metrics[key].volume_reference_ml for case in got.metric_per_case for key in ("1", "2")]
    assert all(0.3 < volume < 4 for volume in volumes)  # half a hippocampus has one or two ml


def test_a_reference_of_segments_may_be_a_part_of_the_grid(real_data: Path, tmp_path: Path) -> None:
    """3D Slicer cuts segmentations to what they hold."""
    whole = SimpleITK.ReadImage(str(real_data / "dicom_seg_ct3slice" / "liver_seg.nrrd"))
    array = SimpleITK.GetArrayFromImage(whole)
    z, y, x = (slice(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(array))
    part = whole[x, y, z]
    part.SetMetaData("Segment0_Name", "liver")
    for name in ("predictions", "references"):
        (tmp_path / name).mkdir()
    SimpleITK.WriteImage(whole, str(tmp_path / "predictions" / "a.nii.gz"))
    SimpleITK.WriteImage(part, str(tmp_path / "references" / "a.seg.nrrd"))
    (case,) = evaluate_folder(tmp_path / "predictions", tmp_path / "references").metric_per_case
    assert case.metrics["1"].dice == 1
    assert case.metrics["1"].n_ref == int(np.count_nonzero(array))
    part.SetOrigin((0.0, 0.0, 0.3))
    SimpleITK.WriteImage(part, str(tmp_path / "references" / "a.seg.nrrd"))
    (issue,) = refused(tmp_path / "predictions", tmp_path / "references")
    assert "a.seg.nrrd" in issue.where


# --- masks of classes ---

MASK_CLASSES = ("ball", "egg")
MASK_GRID = Geometry(shape=(4, 5, 6), spacing_mm=(2.0, 1.0, 0.5), origin_mm=(10.0, -4.0, 7.0))


def masks(case: int, shift: int = 0) -> dict[str, np.ndarray]:
    """Two masks that overlap, 255 inside."""
    z, y, x = np.ogrid[:4, :5, :6]
    return {
        "ball": np.where((y + x - shift - case) % 4 < 2, 255, 0) * (z >= 0),
        "egg": np.where((y - x + shift) % 3 < 1, 255, 0) * (z > 0),
    }


def write_masks(folder: Path, pattern: str, shift: int, *, skip: frozenset[tuple[int, str]] = frozenset()) -> Path:
    """Masks of three cases under ``pattern``; 255 inside."""
    for case in range(3):
        for name, mask in masks(case, shift).items():
            path = folder / pattern.format(case=f"p{case}", name=name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if (case, name) not in skip:
                write_label_map(path, mask, MASK_GRID)
    return folder


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    return write_masks(tmp_path / "predictions", "{case}/{name}.nii.gz", shift=1)


@pytest.mark.parametrize("pattern", ["{case}/{name}.nrrd", "{case}/segmentations/{name}.nii.gz", "{name}/{case}.mha"])
def test_each_class_is_scored_as_a_separate_mask(predictions: Path, tmp_path: Path, pattern: str) -> None:
    references = write_masks(tmp_path / "references", pattern, shift=0)
    if pattern.startswith("{case}/seg"):  # the images of the dataset lie there, too
        for case in range(3):
            write_label_map(references / f"p{case}" / "ct.nii.gz", masks(case)["egg"], MASK_GRID)
    assert holds_masks(predictions)
    assert holds_masks(references)
    summary = evaluate_folder(predictions, references)
    assert [each.name for each in summary.classes] == ["ball", "egg"]
    for case in range(3):
        found = summary.metric_per_case[case].metrics
        for number, name in enumerate(MASK_CLASSES, 1):
            whole = EvaluatedClass(name=name, values=(255,))
            expected = compare(
                masks(case, 1)[name], masks(case)[name], classes=[whole], spacing_mm=MASK_GRID.spacing_mm
            )
            assert found[str(number)] == expected[name]


def test_masks_of_one_class_need_no_folders_of_cases(predictions: Path, tmp_path: Path) -> None:
    references = write_masks(tmp_path / "references", "{case}/{name}.nii.gz", shift=0)
    for case in range(3):
        write_label_map(tmp_path / "flat" / f"p{case}.nii.gz", masks(case, 1)["egg"], MASK_GRID)
    egg = EvaluatedClass(name="egg", values=(1,))
    flat = evaluate_folder(tmp_path / "flat", references, classes=[egg]).metric_per_case
    deep = evaluate_folder(predictions, references, classes=[egg]).metric_per_case
    assert [case.metrics for case in flat] == [case.metrics for case in deep]
    assert [case.reference_file for case in deep] == [str(references / f"p{case}") for case in range(3)]


def test_folders_without_images_hold_no_masks(tmp_path: Path) -> None:
    (tmp_path / "p0" / "segmentations").mkdir(parents=True)
    assert not holds_masks(tmp_path)


def test_a_class_without_a_reference_is_absent_there(predictions: Path, tmp_path: Path) -> None:
    references = write_masks(tmp_path / "references", "{case}/{name}.nii.gz", shift=0, skip=frozenset({(1, "egg")}))
    (absent,) = (case for case in evaluate_folder(predictions, references).metric_per_case if case.case_id == "p1")
    assert (absent.metrics["2"].n_ref, absent.metrics["2"].dice) == (0, 0)
    assert absent.metrics["2"].n_pred == int((masks(1, 1)["egg"] > 0).sum())
    for name in MASK_CLASSES:
        (references / "p2" / f"{name}.nii.gz").unlink()
    absent = evaluate_folder(predictions, references).metric_per_case[2]
    assert [absent.metrics[key].n_ref for key in "12"] == [0, 0]


def test_all_issues_of_masks_come_in_one_list(predictions: Path, tmp_path: Path) -> None:
    references = write_masks(tmp_path / "references", "{case}/{name}.nii.gz", shift=0)
    (predictions / "p0" / "egg.nii.gz").unlink()
    (predictions / "p1" / "ball.nii.gz").write_bytes(b"no image")
    shutil.rmtree(references / "p2")
    elsewhere = MASK_GRID.model_copy(update={"origin_mm": (90.0, -4.0, 7.0)})
    write_label_map(references / "p0" / "ball.nii.gz", masks(0)["ball"], elsewhere)
    issues = refused(predictions, references, strict=True)
    found = {(issue.code, issue.where) for issue in issues if "p1" not in str(issue)}
    assert found == {
        ("evaluation.no_reference", str(predictions / "p2")),
        ("evaluation.missing_mask", str(predictions / "p0")),
        ("evaluation.grid_mismatch", str(references / "p0" / "ball.nii.gz")),
    }
    assert len(issues) == 4


def test_label_maps_are_no_references_of_masks(predictions: Path, tmp_path: Path) -> None:
    for case in range(3):
        path = tmp_path / "references" / f"p{case}" / "seg.nii.gz"
        path.parent.mkdir(parents=True)
        write_label_map(path, masks(case)["ball"], MASK_GRID)
    assert [issue.code for issue in refused(predictions, tmp_path / "references")] == ["evaluation.no_masks"]


def test_references_with_greys_need_the_threshold_of_the_dataset(predictions: Path, tmp_path: Path) -> None:
    references = write_masks(tmp_path / "references", "{case}/{name}.nii.gz", shift=0)
    grey = masks(0)["egg"]
    grey[1, 0, :3] = (120, 130, 140)
    write_label_map(references / "p0" / "egg.nii.gz", grey, MASK_GRID)
    with pytest.raises(AutosegError, match="grey values between 0 and 255"):
        evaluate_folder(predictions, references)
    scored = evaluate_folder(predictions, references, threshold=128).metric_per_case[0].metrics["2"]
    assert scored.n_ref == int((grey >= 128).sum())


def test_real_segments_of_dicom_seg_are_references(real_data: Path, tmp_path: Path) -> None:
    """Masks written from a real DICOM SEG agree with it in every class, those that overlap, too."""
    source = real_data / "dicom_seg_ct3slice" / "partial_overlaps.dcm"
    image = read_header(source.parent / "ct-3slice").geometry
    (tmp_path / "predictions" / "p").mkdir(parents=True)
    (tmp_path / "references").mkdir()
    shutil.copyfile(source, tmp_path / "references" / "p.dcm")
    names = {segment.number: segment.name for segment in read_segments(source).segments}
    for number, name in names.items():
        mask = align_label_map(read_label_map(f"{source}#{number}"), image)
        write_label_map(tmp_path / "predictions" / "p" / f"{name}.nii.gz", mask, image)
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "predictions"), str(tmp_path / "references")])
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines() if line.split() and line.split()[0] in names.values()]
    assert {line[0]: line[1] for line in lines} == dict.fromkeys(names.values(), "1.000")

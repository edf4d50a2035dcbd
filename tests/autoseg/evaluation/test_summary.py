"""Folders of predictions are paired, checked and scored, and their summary is stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from autoseg.evaluation.metrics import EvaluatedClass
from autoseg.evaluation.summary import (
    EvaluatedPair,
    evaluate_case,
    evaluate_folder,
    read_summary,
    write_summary,
)
from autoseg.imaging.image import Geometry
from autoseg.imaging.orientation import Orientation, canonical_geometry, to_canonical
from autoseg.imaging.readers import read_label_map, write_label_map
from autoseg.issues import AutosegError
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
    pair = EvaluatedPair(case_id="b", prediction=folders[0] / "b.nii.gz", reference=folders[1] / "b.nii.gz")

    got = evaluate_case(pair, classes=[HEAD, WHOLE])

    assert list(got.metrics) == ["1", "(1, 2)"]
    assert got.metrics["1"].dice == pytest.approx(2 / 3)
    assert got.metrics["1"].hausdorff95_mm == pytest.approx(0.95 * 0.5)  # from the second voxel, 0.5 mm away
    assert got.metrics["(1, 2)"].volume_reference_ml == pytest.approx(0.003)


def test_folder_is_scored_case_by_case(folders: tuple[Path, Path]) -> None:
    got = evaluate_folder(*folders)

    assert [case.case_id for case in got.metric_per_case] == ["a", "b"]
    assert [each.name for each in got.classes] == ["1", "2"]
    assert got.dice_by_case() == {"a": {"1": 1.0, "2": 1.0}, "b": {"1": pytest.approx(2 / 3), "2": 0.0}}
    assert got.mean["1"].dice == pytest.approx(5 / 6)
    assert got.mean["1"].tp == 1.5
    assert got.foreground_mean.dice == pytest.approx((5 / 6 + 1 / 2) / 2)


def test_means_leave_undefined_scores_out_and_count_them(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    write(predictions / "c.nii.gz", 2)
    write(references / "c.nii.gz")
    write(predictions / "d.nii.gz")
    write(references / "d.nii.gz")

    got = evaluate_folder(predictions, references)

    two = got.counts["2"]
    assert (two.cases, two.both_empty, two.missed, two.invented) == (4, 1, 1, 1)
    assert (two.in_mean["Dice"], two.in_mean["hausdorff95_mm"], two.in_mean["TP"]) == (3, 1, 4)
    assert got.mean["2"].dice == pytest.approx(1 / 3)
    assert got.mean["2"].hausdorff95_mm == 0.0


def test_class_that_is_nowhere_has_no_mean_and_spoils_none(folders: tuple[Path, Path]) -> None:
    absent = EvaluatedClass(name="absent", values=(7,))

    got = evaluate_folder(*folders, classes=[HEAD, absent])

    assert got.mean["7"].dice is None
    assert got.foreground_mean.dice == pytest.approx(5 / 6)
    assert (got.foreground_classes["Dice"], got.foreground_classes["TP"]) == (1, 2)


def test_ignored_value_is_no_class(folders: tuple[Path, Path]) -> None:
    got = evaluate_folder(*folders, ignore=2)

    assert [each.name for each in got.classes] == ["1"]
    assert got.metric_per_case[0].metrics["1"].tn == 2 * 3 * 4 - 1 - 2


def test_summary_has_the_form_of_the_method_and_survives_storage(folders: tuple[Path, Path], tmp_path: Path) -> None:
    got = evaluate_folder(*folders, classes=[HEAD, WHOLE])

    write_summary(tmp_path / "summary.json", got)

    stored = json.loads((tmp_path / "summary.json").read_text())
    assert {"foreground_mean", "mean", "metric_per_case"} <= set(stored)
    assert set(stored["mean"]) == {"1", "(1, 2)"}
    case = stored["metric_per_case"][1]
    assert case["prediction_file"].endswith("predictions/b.nii.gz")
    assert case["reference_file"].endswith("references/b.nii.gz")
    assert {"Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref"} <= set(case["metrics"]["(1, 2)"])
    assert list(stored) == sorted(stored)
    assert read_summary(tmp_path / "summary.json") == got


def test_other_files_in_the_folder_are_passed_over(folders: tuple[Path, Path]) -> None:
    (folders[0] / "summary.json").write_text("{}")
    (folders[0] / "log.txt").write_text("")
    (folders[0] / "._a.nii.gz").write_text("what some systems leave behind")
    (folders[1] / "more").mkdir()

    assert len(evaluate_folder(*folders).metric_per_case) == 2


def test_pairs_may_differ_in_format(folders: tuple[Path, Path]) -> None:
    (folders[0] / "b.nii.gz").unlink()
    write(folders[0] / "b.mha", 1)

    assert evaluate_folder(*folders).mean["1"].dice == pytest.approx(5 / 6)


def test_workers_score_as_one_process_does(folders: tuple[Path, Path]) -> None:
    assert evaluate_folder(*folders, num_workers=2) == evaluate_folder(*folders)


def test_all_problems_come_in_one_list(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    write(references / "no_prediction.nii.gz", 1)
    write(predictions / "no_reference.nii.gz", 1)
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

    with pytest.raises(AutosegError) as caught:
        evaluate_folder(predictions, references)

    found = {(Path(problem.where).name, problem.message) for problem in caught.value.issues}
    assert {name for name, _ in found} == {
        "no_prediction.nii.gz",
        "no_reference.nii.gz",
        "large.nii.gz",
        "moved.nii.gz",
        "torn.nii.gz",
    }
    assert ("large.nii.gz", "has size 2x3x5 voxels instead of 2x3x4 (z, y, x)") in found
    assert sum(name == "moved.nii.gz" for name, _ in found) == 2  # spacing and origin
    assert all(problem.fix for problem in caught.value.issues)
    torn = next(str(problem) for problem in caught.value.issues if problem.where.endswith("torn.nii.gz"))
    assert torn.count("torn.nii.gz") == 1


def test_same_grid_in_another_orientation_is_turned(folders: tuple[Path, Path]) -> None:
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


def test_turned_prediction_elsewhere_is_refused(folders: tuple[Path, Path]) -> None:
    turned = GRID.model_copy(update={"direction": ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))})
    write(folders[0] / "a.nii.gz", 1, 1, 2, geometry=turned)

    with pytest.raises(AutosegError, match=r"a\.nii\.gz: has origin"):
        evaluate_folder(*folders)


def test_oblique_prediction_is_refused(folders: tuple[Path, Path]) -> None:
    oblique = GRID.model_copy(update={"direction": ((0.8, -0.6, 0.0), (0.6, 0.8, 0.0), (0.0, 0.0, 1.0))})
    write(folders[0] / "a.nii.gz", 1, 1, 2, geometry=oblique)

    with pytest.raises(AutosegError, match="has direction"):
        evaluate_folder(*folders)


def test_rounding_of_headers_is_no_problem(folders: tuple[Path, Path]) -> None:
    rounded = GRID.model_copy(update={"spacing_mm": (2.0001, 1.0, 0.5), "origin_mm": (10.001, -4.0, 7.0)})
    write(folders[0] / "a.nii.gz", 1, 1, 2, geometry=rounded)

    assert evaluate_folder(*folders).metric_per_case[0].metrics["1"].dice == 1.0


def test_two_files_of_one_name_are_refused(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "a.mha", 1)

    with pytest.raises(AutosegError, match=r"second file of the name a, beside a\.mha"):
        evaluate_folder(*folders)


@pytest.mark.parametrize("which", [0, 1])
def test_missing_and_empty_folders_are_named(folders: tuple[Path, Path], which: int) -> None:
    shutil.rmtree(folders[which])
    with pytest.raises(AutosegError, match="does not exist"):
        evaluate_folder(*folders)

    folders[which].mkdir()
    with pytest.raises(AutosegError, match="holds no label maps"):
        evaluate_folder(*folders)


def test_references_without_foreground_need_classes(folders: tuple[Path, Path]) -> None:
    for name in ("a", "b"):
        write(folders[1] / f"{name}.nii.gz")

    with pytest.raises(AutosegError, match="nothing but background"):
        evaluate_folder(*folders)
    assert evaluate_folder(*folders, classes=[HEAD]).mean["1"].dice == 0.0


def test_images_in_place_of_labels_are_recognised(folders: tuple[Path, Path]) -> None:
    array = np.arange(-12, 12, dtype=np.int16).reshape(GRID.shape)
    write_label_map(folders[1] / "a.nii.gz", array, GRID)

    with pytest.raises(AutosegError, match="as images do"):
        evaluate_folder(*folders)


def test_predicted_values_that_are_no_class_are_said(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "b.nii.gz", 1, 1, 5)
    listener = Listener()

    evaluate_folder(*folders, reporter=listener)

    assert listener.lines == ["predictions hold values that are no class and are scored as background: 5 (in 1 of 2)"]


def test_flat_images_are_scored_in_pixels(tmp_path: Path) -> None:
    flat = Geometry(shape=(1, 4, 5), spacing_mm=(1.0, 1.0, 1.0), dimensions=2, has_orientation=False)
    write(tmp_path / "predictions" / "a.png", 1, 0, geometry=flat)
    write(tmp_path / "references" / "a.png", 0, 0, 1, geometry=flat)

    got = evaluate_folder(tmp_path / "predictions", tmp_path / "references")

    assert got.mean["1"].hausdorff95_mm == 2.0


def test_real_labels_agree_with_themselves(real_data: Path, tmp_path: Path) -> None:
    """A reference against itself is perfect, and has the size that a hippocampus has."""
    labels = real_data / "Task04_Hippocampus" / "labelsTr"
    chosen = sorted(path for path in labels.glob("*.nii.gz") if not path.name.startswith("."))[:4]
    for path in chosen:
        (tmp_path / "references").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "references")

    got = evaluate_folder(tmp_path / "references", tmp_path / "references")

    assert [each.name for each in got.classes] == ["1", "2"]
    assert (got.foreground_mean.dice, got.foreground_mean.surface_dice, got.foreground_mean.hausdorff95_mm) == (1, 1, 0)
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
    with pytest.raises(AutosegError, match="no part of its image"):
        evaluate_folder(tmp_path / "predictions", tmp_path / "references")

"""The detection curve of predictions with probabilities, and unions of classes, through the front door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import autoseg
from autoseg.data.discovery import discover_dataset
from autoseg.data.phantom import make_phantom_dataset
from autoseg.evaluation.metrics import EvaluatedClass, united_classes
from autoseg.evaluation.scoring import EvaluatedPair, score_case, score_cases
from autoseg.evaluation.table import format_table
from autoseg.imaging.image import Geometry, LabelMap
from autoseg.imaging.readers import read_label_map, write_image, write_label_map
from autoseg.issues import AutosegError
from datasets_spec import read_layout
from planners import DocumentError

GRID = Geometry(shape=(1, 1, 8), spacing_mm=(1.0, 1.0, 1.0))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases of one class: its lesions have 0.9 and 0.4; two false candidates have 0.6 and 0.3."""
    for name in ("p", "r"):
        (tmp_path / name).mkdir()
    for case, reference, lesion in (("a", [1, 1, 0, 0, 0, 0, 0, 0], [0.9, 0.2, 0, 0, 0.6, 0, 0, 0]), ("b", [0, 0, 0, 1, 0, 0, 0, 0], [0.3, 0, 0, 0.4, 0, 0, 0, 0])):  # fmt: skip
        probability = np.array(lesion, np.float32).reshape(1, 1, 8)
        write_label_map(tmp_path / "r" / f"{case}.nii.gz", np.array(reference, np.uint8).reshape(1, 1, 8), GRID)
        write_label_map(tmp_path / "p" / f"{case}.nii.gz", (probability > 0.5).astype(np.uint8), GRID)
        np.savez_compressed(tmp_path / "p" / f"{case}.npz", probabilities=np.stack([1 - probability, probability]))
    return tmp_path / "p", tmp_path / "r"


def test_detection_curve_is_made_from_the_probabilities_beside_the_label_maps(folders: tuple[Path, Path]) -> None:
    summary = autoseg.evaluate(*folders, metrics=["detection", "lesions"], workers=1)

    curve = summary.detection["1"]
    assert curve.thresholds == pytest.approx((0.9, 0.6, 0.4, 0.3))
    assert curve.sensitivity == (0.5, 0.5, 1.0, 1.0)
    assert curve.false_per_case == (0.0, 0.5, 0.5, 1.0)
    assert summary.mean["1"]["lesion_sensitivity"] == 0.5
    assert "1: detection (FROC)" in format_table(summary)


def test_cases_without_probabilities_are_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "a.npz").unlink()
    np.savez_compressed(folders[0] / "b.npz", probabilities=np.zeros((4, 1, 1, 8), np.float32))

    with pytest.raises(AutosegError, match=r"a\.npz: does not exist") as caught:
        autoseg.evaluate(*folders, metrics=["detection"], workers=1)
    assert caught.value.codes == ("evaluation.no_probabilities",)
    np.savez_compressed(folders[0] / "a.npz", probabilities=np.zeros((2, 1, 1, 8), np.float32))
    with pytest.raises(AutosegError, match="does not fit 1 classes"):
        autoseg.evaluate(*folders, metrics=["detection"], workers=1)


CUBE = Geometry(shape=(4, 8, 8), spacing_mm=(1.0, 1.0, 1.0))
PLACES = {"kidney": np.s_[1, 1:3, 1:3], "tumor": np.s_[2, 5:7, 5:7]}
"""Of a lesion of each class."""


def write_masks_of_classes(folder: Path, cases: int) -> None:
    """A dataset with an image and a mask of each class in the folder of each case."""
    for case in range(cases):
        place = folder / f"s{case:04}"
        (place / "segmentations").mkdir(parents=True)
        image = np.random.default_rng(case).normal(size=CUBE.shape).astype(np.float32)
        write_image(place / "ct.nii.gz", image, CUBE)
        for name, where in PLACES.items():
            mask = np.zeros(CUBE.shape, np.uint8)
            mask[where] = 1
            write_label_map(place / "segmentations" / f"{name}.nii.gz", mask, CUBE)


def with_sure(folder: Path, case: str, sure: dict[str, float], channels: int) -> None:
    """Probabilities with the lesion of each class as sure as ``sure`` says, in the last channels."""
    probabilities = np.zeros((channels, *CUBE.shape), np.float32)
    for channel, (name, where) in enumerate(PLACES.items(), channels - len(PLACES)):
        probabilities[channel][where] = sure[name]
    np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities)


@pytest.mark.parametrize("written", ["label maps", "masks"])
def test_every_class_of_a_dataset_of_masks_has_its_own_references(written: str, tmp_path: Path) -> None:
    write_masks_of_classes(tmp_path / "data", 2)
    sure = {"kidney": 0.9, "tumor": 0.4}
    for case in ("s0000", "s0001"):
        (tmp_path / "p" / (case if written == "masks" else "")).mkdir(parents=True, exist_ok=True)
        with_sure(tmp_path / "p", case, sure, 2 if written == "masks" else 3)
        labels = np.zeros(CUBE.shape, np.uint8)
        for value, (name, where) in enumerate(PLACES.items(), 1):
            labels[where] = value
            if written == "masks":
                write_label_map(tmp_path / "p" / case / f"{name}.nii.gz", (labels == value).astype(np.uint8), CUBE)
        if written == "label maps":
            write_label_map(tmp_path / "p" / f"{case}.nii.gz", labels, CUBE)

    summary = autoseg.evaluate(tmp_path / "p", tmp_path / "data", metrics=["detection"], workers=1)

    names = {each.key: each.name for each in summary.classes}
    for key, curve in summary.detection.items():
        assert curve.thresholds == pytest.approx((sure[names[key]],))
        assert (curve.sensitivity, curve.false_per_case, curve.num_lesions) == ((1.0,), (0.0,), 2)
    assert sorted(names[key] for key in summary.detection) == ["kidney", "tumor"]


def test_nothing_is_detected_in_ignored_voxels_and_classes_that_are_not_annotated(folders: tuple[Path, Path]) -> None:
    place = folders[0] / "a.nii.gz"
    reference = LabelMap(array=np.array([1, 1, 0, 0, 9, 0, 0, 0], np.uint8).reshape(1, 1, 8), geometry=GRID)
    one = EvaluatedClass(name="one", values=(1,))
    how = {"classes": [one], "detected": [one], "ignore": 9}
    pair = EvaluatedPair(case_id="a", prediction=place, reference=place)

    case = score_case(pair, read_label_map(place), reference, **how)

    assert case.detections["1"].false == ()
    assert len(case.detections["1"].hits) == 1
    assert score_case(pair, read_label_map(place), reference, unscored=["one"], **how).detections == {}


# --- unions ---


def test_union_is_scored_beside_the_mean_over_classes(tmp_path: Path) -> None:
    make_phantom_dataset(tmp_path / "Task99_Phantom", num_training=2, num_test=0, seed=2)
    found = discover_dataset(tmp_path / "Task99_Phantom")
    names = tuple(each.name for each in found.labels.classes[:2])
    dataset = found.model_copy(update={"unions": {"both": names}})
    moved = []
    for case in dataset.training:
        reference = read_label_map(Path(case.label_files[0]))
        moved.append((case.case_id, tmp_path / Path(case.label_files[0]).name))
        write_label_map(moved[-1][1], np.roll(reference.array, 1, axis=2), reference.geometry)

    with_union, without = score_cases(dataset, moved), score_cases(found, moved)

    (union,) = with_union.unions
    assert with_union.mean_dice == without.mean_dice
    assert with_union.estimates["foreground"] == without.estimates["foreground"]
    counts = [case.metrics[union.key].n_ref for case in with_union.metric_per_case]
    parts = [sum(case.metrics[str(value)].n_ref for value in union.values) for case in without.metric_per_case]
    assert counts == parts
    assert "both" in format_table(with_union)


def test_union_of_a_class_that_is_not_annotated_has_no_score(tmp_path: Path) -> None:
    make_phantom_dataset(tmp_path / "Task99_Phantom", num_training=1, num_test=0, seed=2)
    found = discover_dataset(tmp_path / "Task99_Phantom")
    first, second = (each.name for each in found.labels.classes[:2])
    case = found.training[0].model_copy(update={"annotated": (first,)})
    dataset = found.model_copy(update={"unions": {"both": (first, second)}, "training": (case,)})

    summary = score_cases(dataset, [(case.case_id, Path(case.label_files[0]))])

    assert [summary.mean[each.key]["Dice"] for each in summary.scored] == [1.0, None, None]


def test_union_with_the_values_of_a_class_is_left_out() -> None:
    classes = [EvaluatedClass(name="whole", values=(1, 2)), EvaluatedClass(name="core", values=(2,)), EvaluatedClass(name="rim", values=(1,))]  # fmt: skip

    found = united_classes({"all": ("core", "rim"), "again": ("whole", "core")}, classes)

    assert found == ()


@pytest.mark.parametrize(
    ("union", "is_good"),
    [
        ('both = ["a", "b"]', True),
        ('both = ["a", "c"]', False),
        ('a = ["a", "b"]', False),
        ('both = ["a"]', False),
    ],
)
def test_union_names_classes_of_its_layout(union: str, is_good: bool) -> None:
    text = f'extends = "msd"\nname = "own"\ntitle = "own"\n[labels]\na = 1\nb = 2\n[unions]\n{union}\n'

    if is_good:
        assert read_layout(text, where="own.toml").unions == {"both": ("a", "b")}
    else:
        with pytest.raises(DocumentError, match="unions"):
            read_layout(text, where="own.toml")

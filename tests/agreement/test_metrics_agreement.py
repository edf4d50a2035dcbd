"""Our scores are those of SimpleITK and scikit-learn, on synthetic and on real label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage
from sklearn import metrics

from autoseg.evaluation.metrics import ClassMetrics, EvaluatedClass, compare
from autoseg.imaging.readers import read_label_map

SPACING = (3.0, 0.7, 1.1)


def blobs(seed: int, *, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Two similar label maps (14, 40, 36) with values 0, 1, 2."""
    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.standard_normal((14, 40, 36)), (1, 4, 4))
    other = field + noise * field.std() * ndimage.gaussian_filter(random.standard_normal(field.shape), 1) * 5
    levels = np.quantile(field, [0.7, 0.9])
    return tuple(np.digitize(each, levels).astype(np.uint8) for each in (other, field))  # type: ignore[return-value]


def pairs(real_data: Path | None = None) -> list[tuple[np.ndarray, np.ndarray, tuple[float, float, float]]]:
    made = [(*blobs(seed, noise=noise), SPACING) for seed, noise in ((0, 0.1), (1, 0.4), (2, 1.0))]
    if real_data is None:
        return made
    found = []
    for path in sorted((real_data / "Task04_Hippocampus" / "labelsTr").glob("hippocampus_*.nii.gz"))[:3]:
        reference = read_label_map(path)
        moved = np.roll(ndimage.binary_dilation(reference.array == 1), 1, axis=2).astype(np.uint8)
        moved[(moved == 0) & (reference.array == 2)] = 2
        found.append((moved, reference.array, reference.geometry.spacing_mm))
    return found


def scored(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float], value: int
) -> ClassMetrics:
    one = EvaluatedClass(name="one", values=(value,))
    return compare(prediction, reference, classes=[one], spacing_mm=spacing_mm, tolerance_mm=1.0)["one"]


def image(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> SimpleITK.Image:
    made = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    made.SetSpacing(spacing_mm[::-1])
    return made


def surface_distances(start: np.ndarray, target: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Distances in mm from the contour of ``start`` to that of ``target``, as SimpleITK's filters find them."""
    padded = [image(np.pad(mask, 1), spacing_mm) for mask in (start, target)]
    contours = [SimpleITK.BinaryContour(each, fullyConnected=False) for each in padded]
    to_target = SimpleITK.SignedMaurerDistanceMap(contours[1], squaredDistance=False, useImageSpacing=True)
    contour = SimpleITK.GetArrayFromImage(contours[0]).astype(bool)
    return np.abs(SimpleITK.GetArrayFromImage(to_target))[contour]


def check_against_simpleitk(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]
) -> None:
    for value in (1, 2):
        got = scored(prediction, reference, spacing_mm, value)
        masks = prediction == value, reference == value

        overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
        overlap.Execute(*(image(mask, spacing_mm) for mask in masks))
        assert got.dice == pytest.approx(overlap.GetDiceCoefficient(1), rel=1e-12)  # the same two integers divided
        assert got.iou == pytest.approx(overlap.GetJaccardCoefficient(1), rel=1e-12)

        ways = [surface_distances(*ordered, spacing_mm) for ordered in (masks, masks[::-1])]
        both = np.concatenate(ways)
        # ITK's distance maps hold single precision, 6e-8 of some 30 mm
        assert got.hausdorff95_mm == pytest.approx(max(np.percentile(way, 95) for way in ways), abs=1e-5)
        assert got.surface_dice == pytest.approx((both <= 1.0 + 1e-5).mean(), abs=1e-12)


def test_synthetic_scores_agree_with_simpleitk() -> None:
    for prediction, reference, spacing_mm in pairs():
        check_against_simpleitk(prediction, reference, spacing_mm)


def test_real_scores_agree_with_simpleitk(real_data: Path) -> None:
    for prediction, reference, spacing_mm in pairs(real_data):
        check_against_simpleitk(prediction, reference, spacing_mm)


def test_volume_agrees_with_simpleitk() -> None:
    prediction, reference, spacing_mm = pairs()[0]
    shape = SimpleITK.LabelShapeStatisticsImageFilter()
    shape.Execute(image(reference, spacing_mm))

    got = scored(prediction, reference, spacing_mm, 2)

    assert got.volume_reference_ml == pytest.approx(shape.GetPhysicalSize(2) / 1000, rel=1e-12)  # one product of floats


def test_overlap_agrees_with_scikit_learn() -> None:
    for prediction, reference, spacing_mm in pairs():
        got = scored(prediction, reference, spacing_mm, 1)
        flat = (reference == 1).ravel(), (prediction == 1).ravel()

        assert got.dice == pytest.approx(metrics.f1_score(*flat), rel=1e-12)  # rounding of one division
        assert got.iou == pytest.approx(metrics.jaccard_score(*flat), rel=1e-12)
        assert metrics.confusion_matrix(*flat).tolist() == [[got.tn, got.fp], [got.fn, got.tp]]

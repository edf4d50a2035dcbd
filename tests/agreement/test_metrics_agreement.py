"""Our scores are those of SimpleITK, scikit-learn and surface-distance, on synthetic and on real label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import surface_distance
from scipy import ndimage
from sklearn import metrics

from autoseg.evaluation.metrics import ClassMetrics, EvaluatedClass, compare
from autoseg.evaluation.surfaces import area_of_codes
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


def check_scores(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> None:
    for value in (1, 2):
        got = scored(prediction, reference, spacing_mm, value)
        masks = prediction == value, reference == value

        overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
        overlap.Execute(*(image(mask, spacing_mm) for mask in masks))
        assert got.dice == pytest.approx(overlap.GetDiceCoefficient(1), rel=1e-12)  # the same two integers divided
        assert got.iou == pytest.approx(overlap.GetJaccardCoefficient(1), rel=1e-12)

        distances = surface_distance.compute_surface_distances(masks[1], masks[0], spacing_mm)
        # sums of the same areas and distances in another order
        expected = surface_distance.compute_robust_hausdorff(distances, 95)
        assert got.hausdorff95_mm == pytest.approx(expected, rel=1e-12)
        expected = surface_distance.compute_surface_dice_at_tolerance(distances, 1.0)
        assert got.surface_dice == pytest.approx(expected, rel=1e-12)


def test_areas_of_marching_cubes_are_those_of_surface_distance() -> None:
    of_corner = surface_distance.lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    code = (np.arange(256)[:, None] >> np.arange(8) & 1) @ np.ravel(of_corner)  # our bits in the order of that package

    expected = surface_distance.lookup_tables.create_table_neighbour_code_to_surface_area(SPACING)

    assert area_of_codes(SPACING) == pytest.approx(expected[code], rel=1e-12)


def test_scores_of_a_slice_agree_with_surface_distance_in_2d() -> None:
    for prediction, reference, spacing_mm in pairs():
        masks = prediction[7:8] == 1, reference[7:8] == 1
        distances = surface_distance.compute_surface_distances(masks[1][0], masks[0][0], spacing_mm[1:])

        got = scored(prediction[7:8], reference[7:8], spacing_mm, 1)

        expected = surface_distance.compute_robust_hausdorff(distances, 95)
        assert got.hausdorff95_mm == pytest.approx(expected, rel=1e-12)
        expected = surface_distance.compute_surface_dice_at_tolerance(distances, 1.0)
        assert got.surface_dice == pytest.approx(expected, rel=1e-12)


def test_synthetic_scores_agree() -> None:
    for prediction, reference, spacing_mm in pairs():
        check_scores(prediction, reference, spacing_mm)


def test_real_scores_agree(real_data: Path) -> None:
    for prediction, reference, spacing_mm in pairs(real_data):
        check_scores(prediction, reference, spacing_mm)


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

"""Sizes and pieces of classes, against scikit-image, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import label

from autoseg.imaging.readers import read_label_map
from autoseg.preprocessing.class_sizes import describe_unusual_classes, measure_classes, pool_class_sizes
from planners import CaseSize, ClassSize, Fingerprint, IntensityStatistics, LabelClass, Labels

REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))),
    region_order=(1, 2),
    ignore=3,
)


@settings(max_examples=50, deadline=None)
@given(arrays(np.int16, st.tuples(*[st.integers(1, 6)] * 3), elements=st.integers(-1, 3)))
def test_pieces_are_those_of_scikit_image(labels: np.ndarray) -> None:
    measured = measure_classes(labels, REGIONS, voxel_volume_ml=0.5)
    for entry, got in zip(REGIONS.classes, measured, strict=True):
        mask = np.isin(labels, entry.values)
        assert got.num_voxels == mask.sum()
        assert got.volume_ml == mask.sum() / 2
        assert got.share == mask.mean()
        assert got.num_components == label(mask, connectivity=3, return_num=True)[1]


def test_medians_are_over_the_cases_that_have_a_class() -> None:
    cases = [np.zeros((4, 5, 5), np.int16) for _ in range(3)]
    cases[0][0, 0, :2] = 1
    cases[1][0, 0, :4] = 1
    cases[1][2, 0, 0] = 1
    whole, core = pool_class_sizes(REGIONS, [measure_classes(case, REGIONS, voxel_volume_ml=1.0) for case in cases])
    assert whole == ClassSize(
        name="whole", num_cases=2, median_volume_ml=3.5, median_share=0.035, median_components=1.5
    )
    assert core == ClassSize(name="core", num_cases=0, median_volume_ml=0, median_share=0, median_components=0)


def fingerprint(*sizes: ClassSize) -> Fingerprint:
    return Fingerprint(
        dataset_name="made",
        cases=tuple(CaseSize(case_id=name, shape=(9, 9, 9), spacing_mm=(1.0, 1.0, 1.0)) for name in "ab"),
        num_training_cases=2,
        channels=("MRI",),
        labels=REGIONS,
        intensities=(
            IntensityStatistics(mean=0, median=0, std=1, minimum=0, maximum=1, percentile_00_5=0, percentile_99_5=1),
        ),
        median_relative_size_after_cropping=1.0,
        class_sizes=sizes,
    )


def size(name: str, num_cases: int, share: float, components: float) -> ClassSize:
    return ClassSize(
        name=name, num_cases=num_cases, median_volume_ml=3.0, median_share=share, median_components=components
    )


def test_absent_tiny_and_scattered_classes_are_told() -> None:
    told = describe_unusual_classes(
        fingerprint(
            size("gone", 0, 0, 0), size("dot", 2, 0.00009, 1), size("rash", 1, 0.01, 21), size("liver", 2, 0.03, 1)
        )
    )
    assert len(told) == 3
    assert "gone is in none of the 2 training cases" in told[0]
    assert "dot fills 0.009 % of the volume (3 ml) in the median case" in told[1]
    assert "rash lies in 21 separate pieces in the only case that has it" in told[2]


@pytest.mark.parametrize("name", ["hippocampus_003", "hippocampus_004"])
def test_real_classes_are_one_piece_of_known_volume(real_data: Path, name: str) -> None:
    read = read_label_map(real_data / "Task04_Hippocampus" / "labelsTr" / f"{name}.nii.gz")
    labels = Labels(classes=(LabelClass(name="Anterior", values=(1,)), LabelClass(name="Posterior", values=(2,))))
    for value, got in enumerate(
        measure_classes(read.array, labels, voxel_volume_ml=read.geometry.voxel_volume_ml), start=1
    ):
        assert got.volume_ml == pytest.approx((read.array == value).sum() / 1000)
        assert 1 <= got.num_components <= 3

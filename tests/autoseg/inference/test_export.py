"""Logits of a cascade's first stage become label maps on the grid of its second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.transform import resize

from autoseg.imaging.placement import Placement
from autoseg.imaging.readers import read_image, read_label_map
from autoseg.inference.member_output import MemberOutput
from autoseg.preprocessing.prepare import prepare_image
from planners import (
    CaseSize,
    Configuration,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Plan,
    plan_dataset,
)

LABELS = Labels(classes=(LabelClass(name="anterior", values=(1,)), LabelClass(name="posterior", values=(2,))))
REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="posterior", values=(2,))), region_order=(1, 2)
)
STATISTICS = IntensityStatistics(mean=0, median=0, std=1, minimum=0, maximum=1, percentile_00_5=0, percentile_99_5=1)
LOW_MM = (1.5, 1.5, 1.5)


@pytest.fixture(scope="module")
def stages(real_data: Path) -> tuple[Configuration, Configuration, Placement, Placement, np.ndarray, np.ndarray]:
    """Both stages of a real case: configurations, placements, and its labels on the two grids."""
    folder, name = real_data / "Task04_Hippocampus", "hippocampus_003.nii.gz"
    image = read_image([folder / "imagesTr" / name])
    labels = read_label_map(folder / "labelsTr" / name).array
    size = CaseSize(case_id="a", shape=image.geometry.shape, spacing_mm=(1.0, 1.0, 1.0))
    plan: Plan = plan_dataset(
        Fingerprint(
            dataset_name="made",
            cases=(size,),
            num_training_cases=1,
            channels=("MRI",),
            labels=LABELS,
            intensities=(STATISTICS,),
            median_relative_size_after_cropping=1.0,
        )
    )
    full = plan.configuration("3d_fullres")
    low = full.model_copy(update={"spacing_mm": LOW_MM})
    before, after = (prepare_image(image, plan, stage, labels=labels) for stage in (low, full))
    assert before.labels is not None
    assert after.labels is not None
    return low, full, before.placement, after.placement, before.labels, after.labels


def dice(ours: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (ours & truth).sum() / (ours.sum() + truth.sum()))


def test_scores_are_resampled_before_they_are_compared(stages) -> None:
    """As scikit-image resamples each of them; and what was known at 1.5 mm keeps its place at 1 mm: structures about 12 mm
    thick have a Dice above 0.9.
    """
    low, _, before, after, coarse, fine = stages
    rng = np.random.default_rng(0)
    logits = np.stack([(coarse == k) * 6.0 for k in range(3)]).astype(np.float32)
    logits += rng.normal(size=logits.shape).astype(np.float32)
    got = MemberOutput(logits=logits, placement=before, configuration=low).next_stage(after, LABELS)
    assert got.shape == after.resampled_shape
    scores = np.stack(
        [
            resize(each.astype(float), after.resampled_shape, order=1, mode="edge", anti_aliasing=False, clip=True)
            for each in logits
        ]
    )
    clear = np.diff(np.sort(scores, 0)[-2:], axis=0)[0] > 1e-4  # float32 against double precision
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(got[clear], scores.argmax(0)[clear])
    assert all(dice(got == value, fine == value) > 0.9 for value in (1, 2))


def test_regions_are_written_as_labels(stages) -> None:
    low, _, before, after, coarse, fine = stages
    logits = np.stack([coarse > 0, coarse == 2]).astype(np.float32) * 10 - 5
    got = MemberOutput(logits=logits, placement=before, configuration=low).next_stage(after, REGIONS)
    assert set(np.unique(got)) == {0, 1, 2}
    assert dice(got > 0, fine > 0) > 0.9


def test_another_part_of_the_image_is_refused(stages) -> None:
    low, _, before, after, coarse, _ = stages
    logits = np.zeros((3, *coarse.shape), np.float32)
    (start, stop), *rest = after.box
    moved = after.model_copy(update={"box": ((start, stop - 1), *rest)})
    with pytest.raises(ValueError, match="different parts"):
        MemberOutput(logits=logits, placement=before, configuration=low).next_stage(moved, LABELS)

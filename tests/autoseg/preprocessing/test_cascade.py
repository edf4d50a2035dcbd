"""The first stage's label map as the second stage keeps and sees it."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from autoseg.imaging.readers import read_image, read_label_map
from autoseg.issues import AutosegError
from autoseg.preprocessing.prepare import (
    CascadeCase,
    has_previous,
    open_previous,
    prepare_image,
    store_previous,
    with_classes,
)
from autoseg.preprocessing.store import open_case, write_case
from planners import CaseSize, Fingerprint, IntensityStatistics, LabelClass, Labels, plan_dataset

LABELS = Labels(classes=(LabelClass(name="anterior", values=(1,)), LabelClass(name="posterior", values=(2,))))
STATISTICS = IntensityStatistics(mean=0, median=0, std=1, minimum=0, maximum=1, percentile_00_5=0, percentile_99_5=1)


def test_each_class_becomes_a_channel_behind_the_image() -> None:
    image = np.full((1, 1, 1, 4), 0.5, np.float32)
    got = with_classes(image, np.array([[[0, 1, 2, -1]]], np.int16), (1, 2))
    assert got.dtype == np.float32
    assert got.tolist() == [[[[0.5] * 4]], [[[0, 1, 0, 0]]], [[[0, 0, 1, 0]]]]


def test_a_real_label_map_is_kept_for_the_next_stage(real_data: Path, tmp_path: Path) -> None:
    folder, name = real_data / "Task04_Hippocampus", "hippocampus_003.nii.gz"
    image = read_image([folder / "imagesTr" / name])
    labels = read_label_map(folder / "labelsTr" / name).array.astype(np.uint8)
    size = CaseSize(case_id="a", shape=image.geometry.shape, spacing_mm=(1.0, 1.0, 1.0))
    plan = plan_dataset(
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
    prepared = prepare_image(image, plan, full, labels=labels)
    write_case(tmp_path / "cases", "a", prepared, {}, made_from="key")
    previous = tmp_path / "previous"
    assert not has_previous(previous, "a", "one")
    store_previous(previous, "a", labels, made_from="one", patch_shape=full.patch_shape)
    assert has_previous(previous, "a", "one")
    assert not has_previous(previous, "a", "other")
    case = CascadeCase(open_case(tmp_path / "cases", "a"), previous)
    again: CascadeCase = pickle.loads(pickle.dumps(case))  # workers get it so
    assert again.previous.dtype == np.uint8
    assert np.array_equal(again.previous[3:9, 4:20], labels[3:9, 4:20])
    assert again.image.shape == prepared.image.shape
    assert again.labels.shape == labels.shape
    assert again.locations == {}

    store_previous(previous, "a", labels[:-1], made_from="two", patch_shape=full.patch_shape)
    assert not has_previous(previous, "a", "one")
    with pytest.raises(AutosegError) as caught:
        open_previous(previous, case.case)
    assert caught.value.codes == ("store.previous_stage_shape",)
    (previous / "a.b2nd").write_bytes(b"no array")
    assert not has_previous(previous, "a", "two")

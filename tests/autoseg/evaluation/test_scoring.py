"""Scores of predictions of training cases, one case a process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery import discover_dataset
from autoseg.data.phantom import make_phantom_dataset
from autoseg.evaluation.scoring import score_cases
from autoseg.imaging.readers import read_label_map, write_label_map
from autoseg.issues import AutosegError
from autoseg.tracking.progress import SilentReporter


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetDescription:
    folder = tmp_path_factory.mktemp("data") / "Task99_Phantom"
    make_phantom_dataset(folder, num_training=4, num_test=0, seed=2)
    return discover_dataset(folder, reporter=SilentReporter())


@pytest.fixture
def predictions(dataset: DatasetDescription, tmp_path: Path) -> list[tuple[str, Path]]:
    """The references, moved by a voxel."""
    paths = []
    for case in dataset.training:
        reference = read_label_map(Path(case.label_files[0]))
        paths.append((case.case_id, tmp_path / Path(case.label_files[0]).name))
        write_label_map(paths[-1][1], np.roll(reference.array, 1, axis=2), reference.geometry)
    return paths


def test_several_processes_give_the_scores_of_one(dataset, predictions, monkeypatch):
    alone = score_cases(dataset, predictions)
    monkeypatch.setattr("autoseg.evaluation.scoring.VOXEL_S", 1.0)  # as for volumes that are worth it
    together = score_cases(dataset, predictions, num_workers=2)
    assert together == alone
    assert [result.case_id for result in together.metric_per_case] == [case_id for case_id, _ in predictions]
    assert 0.3 < (alone.mean_dice or 0.0) < 1.0


@pytest.mark.parametrize("num_workers", [1, 2])
def test_all_cases_that_do_not_fit_are_named_at_once(dataset, predictions, num_workers, monkeypatch):
    monkeypatch.setattr("autoseg.evaluation.scoring.VOXEL_S", 1.0)
    for _, path in predictions[1:3]:
        label_map = read_label_map(path)
        shape = tuple(size - 1 for size in label_map.geometry.shape)
        write_label_map(path, label_map.array[1:, 1:, 1:], label_map.geometry.model_copy(update={"shape": shape}))
    with pytest.raises(AutosegError) as caught:
        score_cases(dataset, predictions, num_workers=num_workers)
    assert [any(case_id in str(issue) for issue in caught.value.issues) for case_id, _ in predictions] == [
        False,
        True,
        True,
        False,
    ]

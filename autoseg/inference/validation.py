"""Predicts the validation cases of a fold from their preprocessed data, once each (method section 8.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.data.dataset import DatasetDescription
from autoseg.data.labels import to_file_values
from autoseg.imaging.readers import writable_ending, write_label_map
from autoseg.inference.export import labels_from_logits, probabilities_from_logits
from autoseg.inference.model import Member
from autoseg.inference.predictor import member_logits
from autoseg.preprocessing.cascade import open_previous, with_classes
from autoseg.preprocessing.store import open_case, require_cases
from autoseg.storage.atomic import atomic_write, write_text
from autoseg.tracking.progress import Tracker
from planners import Labels

WEIGHTS_KEY = "weights.key"
"""File in a folder of validation: what the weights were trained from that predicted there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationTask:
    """What to predict, and where to put it."""

    dataset: DatasetDescription
    labels: Labels
    member: Member
    """The networks of this fold alone."""
    preprocessed: Path
    case_ids: Sequence[str]
    folder: Path
    key: str
    """Hash of what the weights were trained from; predictions of other weights are thrown away."""
    keep_probabilities: bool
    """For ensembles of configurations: beside each label map a half-precision array."""
    device: torch.device
    previous: Path | None = None
    """Of a cascade: folder of the first stage's label maps."""
    made_from: Mapping[str, str] = field(default_factory=dict)
    """What the stored cases must have been made from, by id; cases that are not named may be anything."""


def validate_fold(task: ValidationTask, tracker: Tracker) -> None:
    """Write a label map for every case of the task, in the geometry of its image; finished cases are kept."""
    _start_folder(task)
    for case_id in task.case_ids:
        path = prediction_path(task.folder, case_id, task.dataset)
        wanted = [path, probabilities_path(task.folder, case_id)] if task.keep_probabilities else [path]
        if not all(file.exists() and file.stat().st_size > 0 for file in wanted):
            predict_case(task, case_id)
        tracker.advance()


def predict_case(task: ValidationTask, case_id: str) -> None:
    """Predict one stored case; its probabilities first, so that the label map says that both are there."""
    case = open_case(task.preprocessed, case_id)
    member, placement = task.member, case.placement
    image = np.asarray(case.image[:], dtype=np.float32)
    if task.previous is not None:
        image = with_classes(image, open_previous(task.previous, case)[:], task.labels.values)
    require_cases(task.preprocessed, {name: made_from for name, made_from in task.made_from.items() if name == case_id})
    logits = member_logits(member, image, mirror_axes=member.mirror_axes, device=task.device)
    if task.keep_probabilities:
        probabilities = probabilities_from_logits(logits, placement, member.configuration, task.labels)
        with atomic_write(probabilities_path(task.folder, case_id)) as file:
            np.save(file, probabilities.astype(np.float16), allow_pickle=False)
    labels = labels_from_logits(logits, placement, member.configuration, task.labels)
    path = prediction_path(task.folder, case_id, task.dataset)
    write_label_map(path, to_file_values(labels, task.dataset.file_values), placement.source)


def prediction_path(folder: Path, case_id: str, dataset: DatasetDescription) -> Path:
    """Label map of a case."""
    return folder / f"{case_id}{writable_ending(dataset.file_ending)}"


def probabilities_path(folder: Path, case_id: str) -> Path:
    """Probabilities of a case, kept for ensembles."""
    return folder / f"{case_id}.probabilities.npy"


def load_probabilities(folder: Path, case_id: str) -> NDArray[np.float16]:
    """Probabilities (K, Z, Y, X) of a validated case."""
    array: NDArray[np.float16] = np.load(probabilities_path(folder, case_id), allow_pickle=False)
    return array


def _start_folder(task: ValidationTask) -> None:
    """Make sure that nothing in the folder comes from other weights."""
    key_file = task.folder / WEIGHTS_KEY
    if key_file.exists() and key_file.read_text() == task.key:
        return
    if task.folder.is_dir():
        for file in task.folder.iterdir():
            if file.is_file():
                file.unlink()
    write_text(key_file, task.key)

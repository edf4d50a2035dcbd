"""What is kept beside predicted label maps: probabilities, for ensembles and for users, what RankSEG decides otherwise, and samples."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.evaluation.calibration import SMALLEST
from autoseg.evaluation.expected_quality import ClassFeatures
from autoseg.evaluation.label_maps import SLAB_VOXELS, Probabilities
from autoseg.inference.doubt import Sample
from autoseg.inference.slabs import Volumes
from autoseg.preprocessing.store import StoredArray, open_array, write_volumes
from autoseg.storage.atomic import atomic_write

STEPS = 4096
"""Of probabilities that are kept for ensembles."""


def probabilities_path(folder: Path, case_id: str) -> Path:
    """Probabilities of a case, kept for ensembles."""
    return folder / f"{case_id}.probabilities.b2nd"


def kept_probabilities(folder: Path, case_id: str) -> Path:
    """`probabilities_path`, or where versions before 0.3 kept them, if they did."""
    earlier = folder / f"{case_id}.probabilities.npy"
    return earlier if earlier.is_file() else probabilities_path(folder, case_id)


def write_rounded(path: Path, probabilities: Volumes) -> None:
    """Write a file of probabilities (K, Z, Y, X), of which slabs along Z can be read.

    They are rounded to multiples of 1 / `STEPS`, at most as far as half precision rounds those of a half and more. So voxels of which a
    model is sure are all alike, and take hardly any space.
    """
    shape = tuple(probabilities.shape)
    rows = max(1, SLAB_VOXELS // max(1, math.prod(shape[2:])))
    volumes = (np.rint(probabilities[k] * np.float32(STEPS)).astype(np.uint16) for k in range(shape[0]))
    write_volumes(path, volumes, shape, (rows, *shape[2:]))


def write_full(path: Path, probabilities: Volumes) -> None:
    """Write ``probabilities``, float32 (K, Z, Y, X), as numpy's ``savez_compressed`` does, one class after the other."""
    header = {"descr": "<f4", "fortran_order": False, "shape": tuple(probabilities.shape)}
    with (
        atomic_write(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("probabilities.npy", "w", force_zip64=True) as entry,
    ):
        np.lib.format.write_array_header_1_0(entry, header)
        for k in range(probabilities.shape[0]):
            for plane in probabilities[k]:
                entry.write(np.ascontiguousarray(plane, "<f4").data)


@dataclass(frozen=True, slots=True)
class KeptProbabilities:
    """What `write_rounded` kept; it stays on disk until it is used."""

    steps: StoredArray

    @property
    def shape(self) -> tuple[int, ...]:
        """(K, Z, Y, X)."""
        return self.steps.shape

    def __getitem__(self, where: Any) -> NDArray[np.float32]:
        return self.steps[where].astype(np.float32) / np.float32(STEPS)


def load_probabilities(folder: Path, case_id: str) -> Probabilities:
    """Probabilities (K, Z, Y, X) of a validated case; they stay on disk until they are used."""
    path = kept_probabilities(folder, case_id)
    if path.suffix == ".npy":
        array: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array
    return KeptProbabilities(open_array(path))


def ranked_path(folder: Path, case_id: str) -> Path:
    """Where RankSEG decides otherwise than the label map of a validated case, and what."""
    return folder / f"{case_id}.rankseg.npy"


def load_ranked(folder: Path, case_id: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of voxels in a label map made flat, and the values that RankSEG gives them."""
    places, values = np.load(ranked_path(folder, case_id), allow_pickle=False)
    return places, values


def sample_path(folder: Path, case_id: str) -> Path:
    """Sampled probabilities of a validated case, and features of its prediction."""
    return folder / f"{case_id}.sample.npz"


def write_sample(path: Path, sample: Sample, features: Mapping[str, ClassFeatures]) -> None:
    """Write where the sampled voxels are, their probabilities in half precision of their logarithm, and features as JSON."""
    logs = np.log(np.maximum(sample.p, SMALLEST)).astype(np.float16)
    text = json.dumps({name: of.model_dump(mode="json") for name, of in features.items()})
    with atomic_write(path) as file:
        np.savez_compressed(file, voxels=sample.voxels, logs=logs, features=np.array(text))


def load_sample(folder: Path, case_id: str) -> tuple[NDArray[np.int64], NDArray[np.float32], dict[str, ClassFeatures]]:
    """Places of the voxels in the image made flat, their probabilities (K, n), and features by class."""
    with np.load(sample_path(folder, case_id), allow_pickle=False) as stored:
        found = json.loads(str(stored["features"]))
        p = np.exp(stored["logs"].astype(np.float32))
        return (
            stored["voxels"],
            p,
            {name: ClassFeatures.model_validate_json(json.dumps(of)) for name, of in found.items()},
        )

"""Public datasets: their images must be what is known of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from autoseg.data.discovery import discover_dataset
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import write_image, write_label_map

GRID = Geometry(shape=(4, 5, 6), spacing_mm=(1.0, 1.0, 1.0))
CT = np.where(np.arange(120) % 3 == 0, -1000.0, 40.0).reshape(4, 5, 6)
MR = np.arange(120.0).reshape(4, 5, 6)
UNSURE = CT + 0.5
"""Values below zero, but none of whole numbers."""


def make(folder, name, images, *, modality=None):
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    for number, image in enumerate(images):
        file = f"{name}_{number:03d}.nii.gz" if name == "hippocampus" else f"{name}_{number}.nii.gz"
        write_image(folder / "imagesTr" / file, image.astype(np.float32), GRID)
        write_label_map(folder / "labelsTr" / file, np.resize((0, 1), GRID.shape), GRID)
    if modality is not None:
        labels = {"0": "background", "1": "Anterior", "2": "Posterior"} if name == "hippocampus" else {"1": name}
        (folder / "dataset.json").write_text(json.dumps({"modality": {"0": modality}, "labels": labels}))
    return folder


@pytest.mark.parametrize(
    ("name", "images", "modality", "is_known"),
    [
        ("hippocampus", [MR, MR], None, True),
        ("hippocampus", [CT, CT], None, False),
        ("hippocampus", [CT, MR], None, True),
        ("hippocampus", [UNSURE], None, True),
        ("hippocampus", [CT, CT], "MRI", True),  # the check tells what it looks like
        ("hippocampus", [MR, MR], "CT", False),
        ("spleen", [CT, CT], None, True),
        ("spleen", [MR, MR], None, True),  # it may be windowed
        ("spleen", [MR, MR], "MRI", False),
    ],
)
def test_what_is_known_is_not_used_against_the_images(tmp_path, name, images, modality, is_known):
    found = discover_dataset(make(tmp_path, name, images, modality=modality))
    assert (found.known is not None) == is_known
    assert ("known.contradicted" in [issue.code for issue in found.issues]) != is_known


def test_a_public_dataset_is_used_if_asked_for(tmp_path):
    make(tmp_path, "hippocampus", [CT, CT])
    assert discover_dataset(tmp_path, layout="msd_task04").known is not None

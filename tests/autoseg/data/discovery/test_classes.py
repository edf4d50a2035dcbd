"""Classes are found in label files, which are read once: only new and changed ones are read again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from autoseg.data.discovery import discover_dataset
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import write_label_map

GRID = Geometry(shape=(2, 3, 4), spacing_mm=(1.0, 1.0, 1.0))


def write(path: Path, values: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label_map(path, np.resize(values, GRID.shape), GRID)


def spoil(path: Path) -> None:
    """Other bytes, the same size and time: reading it would fail."""
    state = path.stat()
    path.write_bytes(b"\0" * state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.fixture
def label_maps(tmp_path: Path) -> Path:
    for name in "ab":
        write(tmp_path / "data" / "images" / f"{name}.nii", [0, 1, 2])
        write(tmp_path / "data" / "labels" / f"{name}.nii", [0, 3, 7])
    return tmp_path / "data"


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    for name in "ab":
        write(tmp_path / "data" / name / "ct.nii", [0, 1, 2])
        write(tmp_path / "data" / name / "masks" / "liver.nii", [0, 1, 1])
        write(tmp_path / "data" / name / "masks" / "tumour.nii", [0, 1, 0])
    return tmp_path / "data"


def test_values_are_read_once(label_maps: Path, tmp_path: Path) -> None:
    cache = tmp_path / "run" / "cache"
    before = discover_dataset(label_maps, cache=cache)
    assert before.file_values == (0, 3, 7)
    for name in "ab":
        spoil(label_maps / "labels" / f"{name}.nii")
    assert discover_dataset(label_maps, cache=cache) == before
    write(label_maps / "labels" / "b.nii", [0, 3, 9])
    assert discover_dataset(label_maps, cache=cache).file_values == (0, 3, 7, 9)
    write(label_maps / "images" / "c.nii", [0, 1])
    write(label_maps / "labels" / "c.nii", [0, 5])
    assert discover_dataset(label_maps, cache=cache).file_values == (0, 3, 5, 7, 9)


def test_overlaps_are_read_once_for_each_way_to_read(masks: Path, tmp_path: Path) -> None:
    cache = tmp_path / "run" / "cache"
    before = discover_dataset(masks, cache=cache)
    assert before.labels.has_regions
    spoil(masks / "b" / "masks" / "tumour.nii")
    assert discover_dataset(masks, cache=cache) == before
    (tmp_path / "spec.toml").write_text('extends = "case_masks"\n[labels]\ntumour = 1\n')
    write(masks / "b" / "masks" / "tumour.nii", [0, 0, 1])
    assert not discover_dataset(masks, cache=cache, spec=tmp_path / "spec.toml").labels.has_regions


def test_a_file_that_cannot_be_read_is_read_again(masks: Path, tmp_path: Path) -> None:
    cache = tmp_path / "run" / "cache"
    for name in "ab":
        write(masks / name / "masks" / "tumour.nii", [0, 0, 0])
    spoil(masks / "a" / "masks" / "tumour.nii")
    assert not discover_dataset(masks, cache=cache).labels.has_regions
    state = (masks / "a" / "masks" / "tumour.nii").stat()
    write(masks / "a" / "masks" / "tumour.nii", [0, 1, 0])
    os.utime(masks / "a" / "masks" / "tumour.nii", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert discover_dataset(masks, cache=cache).labels.has_regions
    shutil.rmtree(cache)
    assert discover_dataset(masks, cache=cache).labels.has_regions

"""Files count by their content; trainings depend on labelled cases alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import make_phantom

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery import discover_dataset
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import files_of, read_header, write_label_map
from autoseg.stages.check import trained_on, with_contents
from planners import essence


def read(folder: Path, dataset: DatasetDescription) -> DatasetDescription:
    return with_contents(dataset, cache=folder / "contents", num_workers=1)


def test_files_count_by_their_content(tmp_path) -> None:
    dataset, run = discover_dataset(make_phantom(tmp_path, training=2)), tmp_path / "run"
    before = read(run, dataset).content
    file = dataset.training[0].image_paths[0]
    os.utime(file, ns=(1, 1))
    assert read(run, dataset).content == before
    file.write_bytes(file.read_bytes() + b"x")
    assert read(run, dataset).content != before


def test_trainings_depend_on_labelled_cases_not_their_path(tmp_path) -> None:
    here = make_phantom(tmp_path, training=2, test=1)
    here.rename(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    next((tmp_path / "there" / "imagesTs").iterdir()).unlink()
    found = [read(tmp_path / "run", discover_dataset(tmp_path / name)) for name in ("here", "there")]
    assert trained_on(found[0]) == trained_on(found[1])
    before = {key: value for key, value in found[0].coding.model_dump().items() if key != "dropped"}  # of older runs
    assert json.dumps(essence(found[0].coding)) == json.dumps(before)
    assert trained_on(found[0].model_copy(update={"dropped_values": (3,)})) != trained_on(found[0])
    label = Path(found[1].training[0].label_files[0])
    label.write_bytes(Path(found[1].training[1].label_files[0]).read_bytes())
    assert trained_on(read(tmp_path / "run", found[1])) != trained_on(found[0])


def test_voxels_beside_their_header_count(tmp_path) -> None:
    data, grid = tmp_path / "data", Geometry(shape=(2, 3, 4), spacing_mm=(1.0, 1.0, 1.0))
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
        write_label_map(data / folder / "a.mhd", np.resize([0, 1], grid.shape), grid)
    run, dataset = tmp_path / "run", discover_dataset(data)
    before = read(run, dataset).content
    voxels = next(file for file in (data / "labelsTr").iterdir() if file.suffix != ".mhd")
    write_label_map(data / "labelsTr" / "a.mhd", np.resize([1, 0], grid.shape), grid)
    os.utime(voxels, ns=(1, 1))
    assert read(run, dataset).content != before


@pytest.mark.parametrize("beside", [".DS_Store", "Thumbs.db", "notes.xml", "adc.nii.gz"])
def test_other_files_next_to_slices_change_nothing(tmp_path: Path, real_data: Path, beside: str) -> None:
    slices = tmp_path / "data" / "scan"
    shutil.copytree(real_data / "dicom_series" / "mr_prostatex_adc", slices)
    geometry = read_header(slices).geometry
    write_label_map(tmp_path / "data" / "seg.nii.gz", np.resize([0, 1], geometry.shape), geometry)
    (tmp_path / "data" / "cases.csv").write_text("image,label\nscan,seg.nii.gz\n")
    run, dataset = tmp_path / "run", discover_dataset(tmp_path / "data")
    before = read(run, dataset)
    (slices / beside).write_bytes(bytes(300))
    assert read(run, dataset) == before
    files_of(slices)[0].unlink()
    assert read(run, dataset).content != before.content


def test_unchanged_files_are_not_read_again(tmp_path) -> None:
    dataset, run = discover_dataset(make_phantom(tmp_path, training=2)), tmp_path / "run"
    before = read(run, dataset).content
    for case in dataset.training:
        for path in case.image_paths:
            status = path.stat()
            path.write_bytes(bytes(status.st_size))  # other content, but size and time say that nothing happened
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read(run, dataset).content == before

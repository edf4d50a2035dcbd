"""A real DICOM SEG with frames for a part of its series' slices only is placed in the series, with and without turned axes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from autoseg.cli import app
from autoseg.imaging.readers import read_header, read_label_map, write_label_map
from autoseg.preprocessing.store import open_case

SPEC = """
case_id = "ct3slice"
[training]
images = ["scan/"]
labels = ["liver{ending}"]
"""


def keep_frames(source: Path, target: Path, kept: slice) -> None:
    """A DICOM SEG with some of the frames of another; its frames fill whole bytes."""
    tags = pydicom.dcmread(source)
    size = tags.Rows * tags.Columns // 8
    frames = [tags.PixelData[i * size : (i + 1) * size] for i in range(int(tags.NumberOfFrames))]
    tags.PerFrameFunctionalGroupsSequence = list(tags.PerFrameFunctionalGroupsSequence)[kept]
    tags.PixelData = b"".join(frames[kept])
    tags.NumberOfFrames = len(frames[kept])
    tags.save_as(target)


@pytest.mark.parametrize("strict", [False, True])
def test_a_part_of_the_slices_is_preprocessed_as_the_whole_label_map(
    real_data: Path, tmp_path: Path, strict: bool
) -> None:
    source = real_data / "dicom_seg_ct3slice"
    folder = tmp_path / "data"
    shutil.copytree(source / "ct-3slice", folder / "scan")
    keep_frames(source / "liver.dcm", folder / "liver.dcm", slice(1, None))
    assert read_header(folder / "liver.dcm").geometry.shape[0] == 2
    (tmp_path / "spec.toml").write_text(SPEC)

    def preprocess(out: str) -> np.ndarray:
        arguments = [
            "preprocess",
            folder,
            "--spec",
            tmp_path / "spec.toml",
            "--out",
            tmp_path / out,
            *["--strict-reference"] * strict,
        ]
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return np.asarray(open_case(tmp_path / out / "preprocessed" / "2d", "ct3slice").labels[:])

    of_part = preprocess("part")
    (folder / "liver.dcm").unlink()
    whole = read_label_map(source / "liver_seg.nrrd")
    write_label_map(folder / "liver.nrrd", np.where(np.arange(3)[:, None, None] > 0, whole.array, 0), whole.geometry)
    np.testing.assert_array_equal(of_part, preprocess("whole"))
    assert (of_part == 1).any()

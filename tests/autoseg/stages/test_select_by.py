"""A challenge may rank configurations otherwise than Dice does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import Job
from typer.testing import CliRunner

from autoseg.cli import app
from autoseg.data.discovery import discover_dataset
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import write_image, write_label_map
from autoseg.issues import AutosegError
from autoseg.stages.challenge import challenge_for, first_of, score_configurations
from autoseg.tracking.progress import SilentReporter

SHAPE = (16, 16, 16)
BY = """
page = "https://example.org"
[parts.cases]
file = "{{case}}.nii.gz"
[scoring]
ranking = "mean"
classes = {{ block = [1] }}
[[scoring.metrics]]
name = "{metric}"
parameters = {{ {parameters} }}
"""


@pytest.fixture
def two(tmp_path):
    """A dataset of blocks, and two configurations: one shifts them by a voxel, the other cuts a corner off."""
    grid = Geometry(shape=SHAPE, spacing_mm=(1.0, 1.0, 1.0))
    predictions: dict[str, list[tuple[str, Path]]] = {"shifted": [], "cut": []}
    for number in range(2):
        block = np.zeros(SHAPE, np.uint8)
        block[3:11, 3:11, 3 + number : 11 + number] = 1
        cut = block.copy()
        cut[3:7, 3:7, :8] = 0
        for folder in ("data/imagesTr", "data/labelsTr", "shifted", "cut"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / f"data/imagesTr/c{number}.nii.gz", block.astype(np.float32), grid)
        write_label_map(tmp_path / f"data/labelsTr/c{number}.nii.gz", block, grid)
        for name, array in (("shifted", np.roll(block, 1, axis=0)), ("cut", cut)):
            path = tmp_path / name / f"c{number}.nii.gz"
            write_label_map(path, array, grid)
            predictions[name].append((f"c{number}", path))
    return discover_dataset(tmp_path / "data"), predictions


@pytest.mark.parametrize(
    ("metric", "parameters", "best"), [("dice", "", "cut"), ("surface_dice", "tolerance_mm = 1.0", "shifted")]
)
def test_the_metric_of_the_challenge_decides(metric, parameters, best, two, tmp_path):
    dataset, predictions = two
    file = tmp_path / "by.toml"
    file.write_text(BY.format(metric=metric, parameters=parameters))
    scores = score_configurations(str(file), dataset, predictions, SilentReporter(), num_workers=1)
    name, reason = first_of(str(file), scores, dataset)
    assert name == best
    assert reason.startswith(f"{best} is ranked first by by (")


def test_a_challenge_of_other_classes_is_refused_before_anything_is_trained(two, finished: Job, tmp_path):
    dataset, _ = two
    with pytest.raises(AutosegError) as caught:
        challenge_for("kits23", dataset)
    assert caught.value.codes == ("select.other_challenge",)
    assert "has no 2" in caught.value.issues[0].message
    call = ["run", str(finished.dataset), "--out", str(tmp_path / "run"), "--select-by", "kits23"]
    error = CliRunner().invoke(app, call).exception
    assert isinstance(error, AutosegError)
    assert error.codes == ("select.other_challenge",)
    assert not (tmp_path / "run" / "models").exists()


def test_a_lone_configuration_needs_no_ranking(job: Job, tmp_path):
    file = tmp_path / "by.toml"
    file.write_text(BY.format(metric="dice", parameters=""))
    before = job.folder.selection.read_text()
    job.call("select", select_by=str(file))
    assert job.folder.selection.read_text() == before

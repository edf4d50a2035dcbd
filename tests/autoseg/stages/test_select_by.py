"""A challenge may rank configurations otherwise than Dice does."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builders import Job
from typer.testing import CliRunner

from autoseg.cli import app
from autoseg.data.discovery import discover_dataset
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import write_image, write_label_map
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.stages.challenge import challenge_for, first_of, score_configurations
from autoseg.stages.select import RunEvidence, _by_challenge
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


@pytest.mark.parametrize(("name", "code"), [("kits23", "select.other_challenge"), ("nothing", "challenge.unknown")])
def test_a_finished_model_is_not_shown_for_a_challenge_that_does_not_fit(job: Job, name, code):
    with pytest.raises(AutosegError) as caught:
        job.call("select", select_by=name)
    assert [(issue.code, issue.where) for issue in caught.value.issues] == [(code, f"--select-by {name}")]


def test_a_lone_configuration_needs_no_ranking(job: Job, tmp_path):
    file = tmp_path / "by.toml"
    file.write_text(BY.format(metric="dice", parameters=""))
    before = job.folder.selection.read_text()
    job.call("select", select_by=str(file))
    assert job.folder.selection.read_text() == before


def test_the_selection_goes_on_with_the_configuration_that_is_ranked_first(two, tmp_path):
    dataset, predictions = two
    file = tmp_path / "by.toml"
    file.write_text(BY.format(metric="surface_dice", parameters="tolerance_mm = 1.0"))
    folder = RunFolder(tmp_path / "run")
    for name in predictions:
        shutil.copytree(tmp_path / name, folder.validation(name, 0))
    settings = SimpleNamespace(select_by=str(file))
    run = SimpleNamespace(folder=folder, settings=settings, reporter=SilentReporter(), num_workers=1)
    splits = SimpleNamespace(folds=[SimpleNamespace(val=("c0", "c1"))])
    schedule, plan = SimpleNamespace(folds=(0,)), SimpleNamespace(labels=dataset.labels)
    prepared = SimpleNamespace(dataset=dataset, schedule=schedule, splits=splits, plan=plan)
    evidence = RunEvidence(run=run, prepared=prepared, names=("cut", "shifted"), single_counts={})
    chosen, reason = _by_challenge(run, evidence)
    assert [recipe.members for recipe in chosen.candidates] == [("shifted",)]
    assert "cut: surface_dice" in reason
    settings.select_by = None
    assert _by_challenge(run, evidence) == (evidence, "")

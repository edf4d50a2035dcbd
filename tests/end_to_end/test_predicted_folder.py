"""A folder of predictions on the second call: what is skipped, made again, kept and refused."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.datasets.phantom import make_phantom_dataset
from autoseg.errors import AutosegError
from autoseg.imaging.formats import read_volume, write_label_map
from autoseg.inference.folder import predict_cases
from autoseg.inference.input_cases import find_input_cases
from autoseg.inference.predictor import Predictor
from autoseg.pipeline.options import Options
from autoseg.pipeline.run import run_all
from autoseg.progress import SilentReporter
from autoseg.run_folder import RunFolder


class Listening(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@dataclass(frozen=True)
class Job:
    predictor: Predictor
    images: Path
    out: Path
    reporter: Listening = field(default_factory=Listening)

    def predict(self, *, probabilities: bool = False) -> list[Path]:
        cases = find_input_cases(self.images, self.predictor.model.plan.channels)
        return predict_cases(self.predictor, cases, self.out, probabilities=probabilities, reporter=self.reporter)

    def image(self, number: int) -> Path:
        return sorted(self.images.iterdir())[number]

    def times(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in self.out.glob("*.nii.gz")}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    make_phantom_dataset(folder / "Task99_Phantom", num_training=4, num_test=2, seed=3)
    options = Options(
        dataset=folder / "Task99_Phantom", run=RunFolder(folder / "run"), device_name="cpu", num_threads=1, num_workers=1,
        budget_s=5.0, reporter=SilentReporter(),
    )  # fmt: skip
    run_all(options)
    return Predictor.load(folder / "run", device="cpu")


@pytest.fixture
def job(predictor: Predictor, tmp_path: Path) -> Job:
    """Two images, both predicted."""
    make_phantom_dataset(tmp_path / "Task99_Phantom", num_training=1, num_test=2, seed=4)
    job = Job(predictor, tmp_path / "Task99_Phantom" / "imagesTs", tmp_path / "out")
    job.predict()
    return job


def test_a_changed_image_is_predicted_again_and_the_other_is_not(job: Job) -> None:
    before = job.times()
    assert job.predict() == sorted(job.out.glob("*.nii.gz"))
    assert job.times() == before
    first, second = sorted(before)
    os.utime(job.image(0))
    job.predict()
    assert job.times() == before  # touched, but the same
    shutil.copy(job.image(1), job.image(0))
    job.predict()
    assert job.times()[second] == before[second]
    assert (job.out / first).read_bytes() == (job.out / second).read_bytes()


def test_lost_and_cut_label_maps_are_made_again(job: Job) -> None:
    first, second = sorted(job.out.glob("*.nii.gz"))
    whole = first.read_bytes(), second.read_bytes()
    first.write_bytes(whole[0][:-20])  # its header is whole
    second.unlink()
    job.predict()
    assert (first.read_bytes(), second.read_bytes()) == whole


def test_corrected_label_maps_are_kept(job: Job) -> None:
    label_map = min(job.out.glob("*.nii.gz"))
    volume = read_volume([label_map])
    write_label_map(label_map, np.zeros_like(volume.array[0], dtype=np.uint8), volume.geometry)
    corrected = label_map.read_bytes()
    job.predict()
    assert any("changed since it was predicted; it is kept" in line for line in job.reporter.said)
    shutil.copy(job.image(1), job.image(0))
    for probabilities in (False, True):
        with pytest.raises(AutosegError, match="changed since it was predicted, and would be overwritten"):
            job.predict(probabilities=probabilities)
    assert label_map.read_bytes() == corrected


def test_files_of_others_are_refused_all_at_once_and_nothing_is_written(job: Job, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for label_map in job.out.glob("*.nii.gz"):
        shutil.copy(label_map, theirs)
    with pytest.raises(AutosegError) as caught:
        replace(job, out=theirs).predict()
    assert str(caught.value).count("would be overwritten") == 2
    assert len(list(theirs.iterdir())) == 2


def test_a_call_that_was_killed_is_completed(job: Job) -> None:
    before = {path: path.read_bytes() for path in job.out.glob("*.nii.gz")}
    record = job.out / "predicted.jsonl"
    lines = [line for line in record.read_text().split("\n") if line]
    assert len(lines) == 4  # begun and finished, for each of two
    record.write_text("\n".join(lines[:3]) + "\n" + lines[3][:50])  # killed while the last line was written
    job.predict()
    job.predict()
    assert {path: path.read_bytes() for path in before} == before
    assert len([line for line in record.read_text().split("\n") if line.endswith("}")]) == 5


def test_probabilities_belong_to_the_image_that_was_predicted(job: Job) -> None:
    job.predict(probabilities=True)
    scores = sorted(job.out.glob("*.npz"))
    assert len(scores) == 2
    scores[1].write_bytes(scores[1].read_bytes()[:-20])
    shutil.copy(job.image(1), job.image(0))
    job.predict()
    assert not scores[0].exists()
    job.predict(probabilities=True)
    with np.load(scores[0]) as first, np.load(scores[1]) as second:
        np.testing.assert_array_equal(first["probabilities"], second["probabilities"])

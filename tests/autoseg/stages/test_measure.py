"""What faster ways to predict cost: measured on cases that were left out, kept in the model, told where they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import Job, Listening

import autoseg
from autoseg import api
from autoseg.evaluation.intervals import Difference
from autoseg.inference.model import load_model, open_model
from autoseg.inference.ways import MeasuredWay, Way, cost_of, table_of, way_of
from autoseg.stages.measure import WAYS, Candidate, summarise
from autoseg.stages.run import Run

CPU = torch.device("cpu")


def row(*, mirroring: bool = True, step: float = 0.5, change: float | None = None) -> MeasuredWay:
    difference = None
    if change is not None:
        difference = Difference(mean=change, low=change - 0.01, high=change + 0.01, wilcoxon_p=None, cases=9, units=9)
    return MeasuredWay(
        mirroring=mirroring,
        step=step,
        precision="float32",
        dice=0.8,
        difference=difference,
        seconds=1.0,
        cases=9,
        device="cpu",
    )


def test_fast_is_one_fold_without_mirroring_and_larger_steps_unless_told_otherwise() -> None:
    assert way_of(fast=True, mirroring=True, step=None, num_folds=None) == Way(mirroring=False, step=0.75, num_folds=1)
    assert way_of(fast=True, mirroring=True, step=0.6, num_folds=3) == Way(mirroring=False, step=0.6, num_folds=3)
    assert way_of(fast=False, mirroring=True, step=None, num_folds=None) == Way()


@pytest.mark.parametrize(
    ("way", "told", "silent"),
    [
        (Way(mirroring=False), "-0.0300 [-0.0400, -0.0200]", "folds"),
        (Way(mirroring=False, num_folds=1), "cannot be told from a cross-validation", "not measured"),
        (Way(step=0.9), "not measured for this model: autoseg measure", "-0.03"),
        (Way(num_folds=2), "2 folds; what fewer folds cost cannot be told", "not measured"),
    ],
)
def test_the_cost_of_a_way_is_what_was_measured_for_it(way: Way, told: str, silent: str) -> None:
    text = cost_of(way, [row(), row(mirroring=False, change=-0.03)])
    assert told in text
    assert silent not in text


def test_the_table_compares_case_by_case() -> None:
    candidates = [Candidate(model=None, way=way, precision="float32") for way in WAYS[:2]]  # type: ignore[arg-type]
    dices = np.array([[[0.8, np.nan], [0.7, np.nan]], [[0.6, 0.9], [0.6, 0.7]], [[0.7, 0.5], [0.7, 0.5]]])
    first, second = summarise(candidates, dices, np.array([[2.0, 1.0]] * 3), ["a", "b", "c"], device="cpu")
    assert first.dice == pytest.approx((0.7 + 0.7) / 2)
    assert second.dice == pytest.approx((2 / 3 + 0.6) / 2)
    assert second.difference is not None
    assert second.difference.mean == pytest.approx(-(0.1 + 0.1 + 0) / 3)
    assert (first.seconds, second.seconds, first.difference) == (2.0, 1.0, None)
    assert "2.0 times as fast" in table_of([first, second])[1]


def test_a_run_is_measured_and_its_predictions_tell(job: Job, tmp_path: Path) -> None:
    key = load_model(job.root, device=CPU).key
    lines = autoseg.measure(job.root, device="cpu", threads=1)
    about = open_model(job.root)
    assert [(each.mirroring, each.step, each.cases) for each in about.description.measured] == [
        (True, 0.5, 4),
        (True, 0.75, 4),
    ]  # training did not mirror
    assert about.key == key
    assert len(lines) == 2
    scored = about.description.selection.dice_after_postprocessing
    assert about.description.measured[0].dice == pytest.approx(scored, abs=1e-6)  # that of the cross-validation
    reporter = Listening()
    image = next((job.dataset / "imagesTs").glob("[!.]*.nii.gz"))
    api.predict(job.root, image, tmp_path / "out", fast=True, device="cpu", threads=1, reporter=reporter)
    told = about.description.measured[-1].difference
    assert f"changed Dice by {told}" in reporter.text
    assert "in cross-validation" not in reporter.text, "it may have been a hold-out"
    assert "1 fold" in reporter.text
    with pytest.raises(autoseg.AutosegError, match=r"predict"):  # a folder holds predictions of one way only
        api.predict(job.root, image, tmp_path / "out", step=0.75, device="cpu", threads=1)


def test_what_was_measured_leaves_with_the_bundle_and_stays_when_the_run_goes_on(job: Job, tmp_path: Path) -> None:
    from autoseg.inference.model import bundle_run, describe_anew

    measured = (row(), row(mirroring=False, change=-0.01))
    describe_anew(Run.open(job.root).folder, measured=measured)
    assert open_model(bundle_run(job.root, tmp_path / "m.zip")).description.measured == measured
    api.select(job.root, device="cpu", threads=1, workers=1)
    assert open_model(job.root).description.measured == measured
    assert open_model(job.root).packed_summary() is not None

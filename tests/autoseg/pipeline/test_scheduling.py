"""What is refused before hours go into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.datasets.phantom import make_phantom_dataset
from autoseg.errors import AutosegError
from autoseg.pipeline.options import Options
from autoseg.pipeline.scheduling import schedule_stage
from autoseg.pipeline.training import train_stage
from autoseg.progress import SilentReporter
from autoseg.run_folder import RunFolder


def test_a_configuration_or_a_fold_that_there_is_not_is_refused_before_anything_is_preprocessed(tmp_path: Path) -> None:
    make_phantom_dataset(tmp_path / "Task99_Phantom", num_training=2, num_test=0, seed=0)
    options = Options(
        dataset=tmp_path / "Task99_Phantom", run=RunFolder(tmp_path / "run"), device_name="cpu", num_threads=1,
        num_workers=1, reporter=SilentReporter(), budget_s=5.0,
    )  # fmt: skip
    with pytest.raises(AutosegError, match="the plan has no configuration '4d'; it has 2d, 3d_fullres"):
        schedule_stage(options, asked="4d")
    with pytest.raises(AutosegError, match="there is no fold 2; there are folds 0 to 1: choose one of these, or ask for more with --folds"):
        train_stage(options, fold=2)
    assert options.run.plan.exists()
    assert not options.run.preprocessed("3d_fullres").exists()

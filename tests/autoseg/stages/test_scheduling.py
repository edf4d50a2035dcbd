"""What is refused before hours go into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from autoseg.pipeline.freshness import open_stage
from autoseg.pipeline.measured_schedule import announce
from autoseg.pipeline.options import Options
from autoseg.pipeline.own_schedule import schedule_inputs
from autoseg.pipeline.run import run_all
from autoseg.pipeline.scheduling import schedule_stage
from autoseg.pipeline.splitting import splits_stage
from autoseg.pipeline.stages import plan_stage
from autoseg.pipeline.training import train_stage

from autoseg.data.phantom import make_phantom_dataset
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import save_document
from autoseg.tracking.progress import SilentReporter
from planners import Conditions, Measurement, plan_schedule


def phantom_options(folder: Path, *, num_training: int, budget_s: float) -> Options:
    make_phantom_dataset(folder / "Task99_Phantom", num_training=num_training, num_test=0, seed=0)
    return Options(
        dataset=folder / "Task99_Phantom", run=RunFolder(folder / "run"), device_name="cpu", num_threads=1, num_workers=1,
        reporter=SilentReporter(), budget_s=budget_s,
    )  # fmt: skip


def test_a_configuration_or_a_fold_that_there_is_not_is_refused_before_anything_is_preprocessed(tmp_path: Path) -> None:
    options = phantom_options(tmp_path, num_training=2, budget_s=5.0)
    with pytest.raises(AutosegError, match="the plan has no configuration '4d'; it has 2d, 3d_fullres"):
        schedule_stage(options, asked="4d")
    with pytest.raises(
        AutosegError,
        match="there is no fold 2; there are folds 0 to 1: choose one of these, or ask for more with --folds",
    ):
        train_stage(options, fold=2)
    assert options.run.plan.exists()
    assert not options.run.preprocessed("3d_fullres").exists()


def test_a_fold_that_the_schedule_of_the_run_lacks_is_refused_before_anything_is_preprocessed(tmp_path: Path) -> None:
    options = phantom_options(tmp_path, num_training=6, budget_s=600.0)
    dataset, plan = plan_stage(options)
    measured = Measurement(
        configuration="2d", base_features=4, batch_size=2, precision="float32", step_s=1.0, case_s=0.1
    )
    conditions = Conditions(
        device="cpu", num_threads=1, budget_s=600, elapsed_s=1.0, num_folds=3, num_training_cases=6, num_test_cases=0,
        cross_validated=True, measurements=(measured,), seed=0,
    )  # fmt: skip
    schedule = plan_schedule(plan, conditions).model_copy(update={"num_folds": 3})
    outputs, consumed = [options.run.schedule, options.run.splits], schedule_inputs(options, dataset, plan)
    with open_stage(options.run, "schedule", consumed, outputs, what="the schedule", say=options.reporter.say):
        splits_stage(options, dataset, 3)
        save_document(options.run.schedule, schedule)
    with pytest.raises(AutosegError, match="there is no fold 4; there are folds 0 to 2"):
        train_stage(options, fold=4)
    with pytest.raises(AutosegError, match="there is no fold 7; there are folds 0 to 4"):
        train_stage(replace(options, budget_s=700.0), fold=7)  # another budget makes another schedule
    assert not options.run.preprocessed("2d").exists()


@pytest.mark.parametrize("do", [run_all, train_stage])
def test_files_that_cannot_be_read_are_refused_before_images_are(
    tmp_path: Path, do: Callable[[Options], object]
) -> None:
    options = phantom_options(tmp_path, num_training=2, budget_s=5.0)
    absent, faulty = tmp_path / "absent", tmp_path / "faulty"
    faulty.write_text("[7]")
    for wish, path, message in (
        (
            "schedule",
            absent,
            r"absent could not be read \(No such file or directory\); give another file with --schedule, or none",
        ),
        ("schedule", faulty, r"(?s)faulty cannot be read:.*\ngive another file with --schedule, or none$"),
        ("splits", absent, r"absent could not be read .*--splits"),
        ("splits", faulty, r"faulty, fold 0: is 7"),
        ("groups", absent, r"absent could not be read .*--groups"),
        ("groups", faulty, r"faulty begins with '\[7\]'"),
    ):
        with pytest.raises(AutosegError, match=message):
            do(replace(options, **{wish: path}))
    assert not options.run.root.exists()


def test_a_given_schedule_that_does_not_fit_is_refused_before_anything_is_preprocessed(tmp_path: Path) -> None:
    options = phantom_options(tmp_path, num_training=3, budget_s=600.0)
    _, plan = plan_stage(options)
    measured = Measurement(
        configuration="2d", base_features=4, batch_size=2, precision="float32", step_s=1.0, case_s=0.1
    )
    conditions = Conditions(
        device="cpu", num_threads=1, budget_s=600, elapsed_s=1.0, num_folds=3, num_training_cases=3, num_test_cases=0,
        cross_validated=True, measurements=(measured,), seed=0,
    )  # fmt: skip
    made, file = plan_schedule(plan, conditions), tmp_path / "other.json"
    other = tuple(training.model_copy(update={"configuration": "4d"}) for training in made.trainings)
    for changes, message in (
        ({"num_folds": 1}, r"other\.json trains 1 fold, but 3 cases give 2"),
        ({"num_folds": 7}, r"other\.json trains 7 folds, but 3 cases give 3"),
        ({"trainings": other}, r"other\.json trains 4d, which the plan lacks"),
    ):
        save_document(file, made.model_copy(update=changes))
        with pytest.raises(AutosegError, match=message):
            train_stage(replace(options, schedule=file))
    assert not options.run.all_preprocessed.exists()


def test_one_of_a_thing_is_told_as_one(tmp_path: Path) -> None:
    said: list[str] = []
    reporter = SilentReporter()
    reporter.say = said.append  # type: ignore[method-assign]
    options = replace(phantom_options(tmp_path, num_training=2, budget_s=600.0), reporter=reporter)
    _, plan = plan_stage(options)
    measured = Measurement(
        configuration="2d", base_features=4, batch_size=2, precision="float32", step_s=1.0, case_s=0.1
    )
    conditions = Conditions(
        device="cpu", num_threads=1, budget_s=600, elapsed_s=1.0, num_folds=1, num_training_cases=2, num_test_cases=0,
        cross_validated=True, measurements=(measured,), seed=0,
    )  # fmt: skip
    announce(options, plan, plan_schedule(plan, conditions))
    assert [line for line in said if line.startswith(("Schedule: 1 fold x 2d", "1 fold x 1 configuration, "))]
    text = "\n".join(said)
    for plural in ("1 folds", "1 configurations", "1 warnings", "1 notes"):
        assert plural not in text

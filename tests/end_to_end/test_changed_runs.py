"""A finished run after something was asked for otherwise, changed, lost or damaged: what is kept, done again or refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from builders import Impatient, Job, Listening, begin, contents, said
from typer.testing import CliRunner

from autoseg import api
from autoseg.cli import app
from autoseg.cli.console import show_scores
from autoseg.inference.model import bundle_run, final_weights, load_model, open_model
from autoseg.issues import AutosegError
from autoseg.pipeline import do_work
from autoseg.settings import Settings
from autoseg.stages.clean import find_needless
from autoseg.stages.pace import Pacer
from autoseg.stages.run import Run, StageRecord
from autoseg.stages.schedule import _inputs, add_training, read_prepared, schedule_edits
from autoseg.stages.select import score_issues
from autoseg.stages.train import all_keys, fold_inputs, training_work
from autoseg.stages.validate import validation_work
from autoseg.storage.atomic import load_document, save_document
from autoseg.tracking.progress import SilentReporter
from planners import Plan, Schedule

FINER = (1.6, 1.4, 1.5)


def key_of_model(job: Job) -> str:
    return load_model(job.root, device=torch.device("cpu")).key


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON document as with an editor."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=4))


# --- a second call needs no option again


@pytest.mark.parametrize(
    "words", [["run"], ["report"], ["select"], ["train", "--fold", "1"], ["preprocess"], ["plan"], ["fingerprint"]]
)
def test_options_need_not_be_repeated(job: Job, words: list[str]) -> None:
    results, weights = job.results(), job.weights()
    done = CliRunner().invoke(app, [words[0], str(job.root), *words[1:]])
    assert done.exit_code == 0, done.output
    assert " again" not in done.output
    assert (job.results(), job.weights()) == (results, weights)
    assert "called: " in job.folder.log.read_text()


@pytest.mark.parametrize("command", ["run", "report", "select", "train"])
def test_an_option_that_decides_is_refused_once_something_was_trained(job: Job, command: str) -> None:
    before = job.results()
    error = CliRunner().invoke(app, [command, str(job.root), "--seed", "1"]).exception
    assert isinstance(error, AutosegError)
    assert error.codes == ("run.option_differs",)
    (issue,) = error.issues
    assert issue.where == str(job.root)
    assert "--seed was 0 and is 1" in issue.message
    assert "2 trained folds would be trained again, " in issue.message
    assert "--redo" in issue.fix
    assert job.results() == before
    assert job.call().settings.seed == 0


def test_with_redo_it_is_done_and_without_it_what_is_left_is_refused(job: Job, tmp_path: Path) -> None:
    before, key, model = job.results(), key_of_model(job), job.folder.model.read_bytes()
    job.call("validate", seed=1, redo=True, fold=0)
    assert job.folder.model.read_bytes() == model
    with pytest.raises(AutosegError) as caught:
        job.call()
    assert caught.value.codes == ("run.trained_from_other",)
    assert "1 trained fold would" in caught.value.issues[0].message
    history = (job.folder.fold("2d", 0) / "history.jsonl").read_bytes()
    job.call(redo=True)
    assert (job.folder.fold("2d", 0) / "history.jsonl").read_bytes() == history  # it was trained so already
    assert key_of_model(job) != key
    (kept,) = job.folder.previous.glob("*.zip")
    assert kept.read_bytes() == model
    with pytest.raises(AutosegError, match=f"{kept.name} was made with these options and cases"):
        job.call(seed=0)
    assert said(job.call(seed=0, redo=True)).count("Restored the training of 2d, fold ") == 2
    assert job.results() == before
    assert len(list((job.folder.previous / "trainings").iterdir())) == 2  # those of the other seed
    assert load_model(bundle_run(job.root, tmp_path / "m.zip"), device=torch.device("cpu")).key == key


def test_a_schedule_that_was_made_from_the_same_before_is_not_measured_again(job: Job) -> None:
    wishes = {"schedule": "none", "budget": "30s", "configurations": ["2d"]}
    run, weights = begin(job.root, None, wishes, redo=True), job.weights()
    inputs, written = _inputs(run, run.dataset, run.plan, None, run.schedule), run.schedule.model_dump(mode="json")
    record = StageRecord(inputs=inputs, seconds=1.0, documents={job.folder.schedule.name: written})
    save_document(job.folder.kept_schedules / "earlier.json", record)
    assert "Timing" not in said(job.call("train", redo=True, **wishes))
    assert job.weights() == weights
    assert job.folder.kept_schedules in find_needless(Run.open(job.root))


def test_an_unfinished_training_is_not_lost_for_an_option(job: Job) -> None:
    for fold in (0, 1):
        final_weights(job.folder, "2d", fold).unlink()
    with pytest.raises(AutosegError) as caught:
        job.call(seed=1)
    assert caught.value.codes == ("run.option_differs",)


def test_options_change_freely_before_training(job: Job) -> None:
    shutil.rmtree(job.folder.models)
    run = job.call("plan", target_spacing=FINER)
    assert "--target-spacing was not given and is 1.6,1.4,1.5" in said(run)
    assert "Redoing the plan: the target spacing (--target-spacing) changed" in said(run)
    assert load_document(Settings, job.folder.settings).target_spacing == FINER


def test_options_that_decide_nothing_are_taken(job: Job, tmp_path: Path) -> None:
    results, weights = job.results(), job.weights()
    record = json.loads(job.folder.record.read_text())
    record["packages"]["torch"] = "2.0.0"
    job.folder.record.write_text(json.dumps(record))
    run = job.call("report", threads=2, workers=2, track="tensorboard", work=tmp_path / "work")
    assert f"torch was 2.0.0 and is {version('torch')}" in said(run)
    assert "made for 1 thread, this call has 2" in said(run)
    assert " again" not in said(run)
    assert job.weights() == weights
    assert {path for path, content in job.results().items() if results[path] != content} == {job.folder.settings}
    assert json.loads(job.folder.record.read_text())["state"] == "finished"


def test_a_budget_with_a_schedule_has_no_effect_and_a_warning(job: Job) -> None:
    weights = job.weights()
    assert "--budget has no effect" in said(job.call("schedule", budget="60s", redo=True))
    assert job.weights() == weights


@pytest.mark.parametrize(
    ("wishes", "code"),
    [
        ({"set": "plan.2d.patch_shape=7,7"}, "plan.edit_inconsistent"),
        ({"set": "plan.4d.batch_size=4"}, "plan.edit_unknown"),
        ({"set": "plan.2d.batch_size=many"}, "plan.edit_value"),
        ({"set": "schedule.2d.steps=4"}, "plan.edit_unknown"),
        ({"configurations": "4d"}, "plan.no_configuration"),
        ({"folds": 3}, "schedule.other_folds"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_overwritten(
    job: Job, wishes: dict[str, object], code: str
) -> None:
    results, weights, stored = job.results(), job.weights(), contents(job.folder.all_preprocessed)
    with pytest.raises(AutosegError) as caught:
        job.call(**wishes, redo=True)
    assert [issue.code for issue in caught.value.issues] == [code]
    assert caught.value.issues[0].fix
    assert contents(job.folder.all_preprocessed) == stored
    job.call()
    assert (job.results(), job.weights()) == (results, weights)


# --- the finished model and the next one


KILLED = """
import os, signal
from autoseg import api
from autoseg.tracking.callbacks import Callback

class Kill(Callback):
    def on_step(self, step):
        os.kill(os.getpid(), signal.SIGKILL)

api.run({root!r}, seed=1, redo=True, callbacks=[Kill()])
"""


def predicted(model: Path, job: Job, folder: Path) -> dict[str, bytes]:
    """Label map of one of the dataset's test images by a model."""
    api.predict(model, min((job.dataset / "imagesTs").glob("[!.]*.nii.gz")), folder, device="cpu", threads=1)
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def test_a_training_that_is_killed_leaves_the_model_as_it_was(job: Job, tmp_path: Path) -> None:
    model, before = job.folder.model.read_bytes(), predicted(job.root, job, tmp_path / "before")
    done = subprocess.run([sys.executable, "-c", KILLED.format(root=str(job.root))], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not final_weights(job.folder, "2d", 0).exists()
    own = job.folder.plan.read_bytes()
    edit(job.folder.plan, smaller_batch)
    assert job.folder.model.read_bytes() == model
    assert predicted(job.root, job, tmp_path / "after") == before
    assert bundle_run(job.root, tmp_path / "bundle.zip").exists()
    job.folder.plan.write_bytes(own)
    assert "Restored the training of 2d, fold 0" in said(job.call(seed=0)), "going back needs no --redo"
    assert job.folder.model.read_bytes() == model


def test_what_was_selected_need_not_be_trained_any_more_and_is_kept(job: Job, tmp_path: Path) -> None:
    model, before = job.folder.model.read_bytes(), predicted(job.root, job, tmp_path / "before")
    schedule = load_document(Schedule, job.schedule)
    other = schedule.trainings[0].model_copy(update={"configuration": "3d_fullres"})
    save_document(tmp_path / "other.json", schedule.model_copy(update={"trainings": (other,)}))
    run = job.call(schedule=tmp_path / "other.json", redo=True)
    assert run.selection.members == ("3d_fullres",)
    (kept,) = job.folder.previous.glob("*.zip")
    assert kept.read_bytes() == model
    assert f"Kept the previous model as {kept}" in said(run)
    assert predicted(kept, job, tmp_path / "kept") == before
    now = predicted(job.root, job, tmp_path / "now")
    assert now != before
    needless = {kept, job.folder.kept_schedules, job.folder.models / "2d"}
    listed, removed = (CliRunner().invoke(app, ["clean", str(job.root), *words]) for words in (["--dry-run"], []))
    assert set(map(Path, re.findall(r"MB  (/.*)", listed.output))) == needless, listed.output
    assert "would be removed" in listed.output
    assert removed.output == listed.output.replace("would be removed", "removed")
    assert not any(path.exists() for path in needless)
    assert CliRunner().invoke(app, ["clean", str(job.root)]).output == "Nothing to remove.\n"
    assert predicted(job.root, job, tmp_path / "still") == now
    assert "Redoing" not in said(job.call())


def test_a_run_without_a_model_writes_it_when_it_selects(job: Job) -> None:
    """As version 0.2 left them."""
    model, weights = open_model(job.root), job.weights()
    job.folder.model.unlink()
    with pytest.raises(AutosegError) as caught:
        key_of_model(job)
    assert caught.value.issues[0].fix == f"write it: autoseg select {job.root}"
    assert "Redoing the selection: model.zip is missing" in said(job.call("select"))
    assert (open_model(job.root).key, open_model(job.root).description) == (model.key, model.description)
    assert job.weights() == weights


# --- the dataset changed


def other_dataset(job: Job, folder: Path) -> Path:
    """The run's dataset without its last case."""
    smaller = Path(shutil.copytree(job.dataset, folder / "smaller" / job.dataset.name))
    for each in ("imagesTr", "labelsTr"):
        next((smaller / each).glob("phantom_004*")).unlink()
    training = [
        each for each in json.loads((smaller / "dataset.json").read_text())["training"] if "004" not in str(each)
    ]
    edit(smaller / "dataset.json", lambda document: document.update(training=training, numTraining=3))
    return smaller


def test_a_dataset_that_changed_is_refused_and_nothing_is_overwritten(job: Job, tmp_path: Path) -> None:
    results, key, smaller = job.results(), key_of_model(job), other_dataset(job, tmp_path)
    for _ in range(2):
        with pytest.raises(AutosegError) as caught:
            job.call(dataset=smaller)
        (issue,) = caught.value.issues
        assert issue.code == "run.dataset_changed"
        assert "(phantom_004 removed): 2 trained folds" in issue.message
        assert "scored Dice 0." in issue.message
        assert f"autoseg run {smaller} --out {job.root}_2 --pretrained {job.root}" in issue.fix
        assert job.results() == results
        assert key_of_model(job) == key
    assert " again" not in said(job.call())
    job.call(dataset=smaller, redo=True)
    validated = {path.name for path in job.folder.cross_validation.glob("*.nii.gz")}
    assert validated == {f"phantom_00{number}.nii.gz" for number in (1, 2, 3)}


def test_a_case_that_is_left_out_is_another_dataset(job: Job) -> None:
    with pytest.raises(AutosegError) as caught:
        job.call(exclude="phantom_004")
    assert caught.value.codes == ("run.option_differs",)
    run = job.call("fingerprint", exclude="phantom_004", redo=True)
    assert [case.case_id for case in run.dataset.training] == ["phantom_001", "phantom_002", "phantom_003"]
    assert len(run.fingerprint.cases) == 3


def test_other_test_images_and_another_place_train_nothing_again(job: Job, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(job.dataset, tmp_path / "moved"))
    weights, (first, second) = job.weights(), sorted(job.folder.predictions.glob("*.nii.gz"))
    old = {path: path.read_bytes() for path in (first, second)}
    image = min((moved / "imagesTs").glob("*.nii.gz"))
    image.write_bytes(next((moved / "imagesTr").glob("*.nii.gz")).read_bytes())
    job.call(dataset=moved)
    assert job.weights() == weights
    assert first.read_bytes() != old[first]
    assert second.read_bytes() == old[second]
    written = first.stat().st_mtime_ns
    job.call()
    assert first.stat().st_mtime_ns == written


# --- documents that the user edited


def smaller_batch(plan: dict) -> None:
    next(each for each in plan["configurations"] if each["name"] == "2d")["batch_size"] -= 1


def test_an_edited_plan_is_kept_and_what_depends_on_it_is_redone_if_requested(job: Job) -> None:
    own, results, stored = job.folder.plan.read_bytes(), job.results(), contents(job.folder.all_preprocessed)
    edit(job.folder.plan, smaller_batch)
    results[job.folder.plan] = job.folder.plan.read_bytes()
    for last in ("preprocess", "predict"):
        with pytest.raises(AutosegError) as caught:
            job.call(last)
        assert caught.value.codes == ("run.plan_changed",)
        assert "was made with these options" not in str(caught.value)  # by another plan
    assert (job.results(), contents(job.folder.all_preprocessed)) == (results, stored)
    run = job.call(redo=True)
    assert "plan.json was edited: 2d.batch_size" in said(run)
    assert job.folder.plan.read_bytes() == results[job.folder.plan]
    assert key_of_model(job)
    assert "Redoing " not in said(job.call())
    with pytest.raises(AutosegError) as caught:
        job.call(replan=True)
    assert caught.value.codes == ("run.plan_changed",)
    assert "was made with these options" in str(caught.value)
    job.call(replan=True, redo=True)
    assert job.folder.plan.read_bytes() == own


def test_an_edit_of_what_is_not_trained_trains_nothing_again(job: Job) -> None:
    weights = job.weights()
    edit(job.folder.plan, lambda plan: plan["configurations"][1].update(batch_size=7))
    assert "3d_fullres.batch_size" in said(job.call())
    assert job.weights() == weights


def test_an_edit_of_what_was_measured_but_not_trained_trains_nothing_again(job: Job, tmp_path: Path) -> None:
    schedule = load_document(Schedule, job.schedule)
    measured = schedule.conditions.measurements[0].model_copy(update={"configuration": "3d_fullres"})
    both = schedule.conditions.model_copy(update={"measurements": (*schedule.conditions.measurements, measured)})
    save_document(tmp_path / "both.json", schedule.model_copy(update={"conditions": both}))
    job.call("schedule", schedule=tmp_path / "both.json", redo=True)
    weights = job.weights()
    edit(job.folder.plan, lambda plan: plan["configurations"][1].update(batch_size=7))
    job.call()
    assert job.weights() == weights


def test_changes_of_the_plan_can_be_given_and_are_remembered(job: Job) -> None:
    with pytest.raises(AutosegError) as caught:
        job.call(set="plan.2d.batch_size=4")
    assert caught.value.codes == ("run.option_differs",)
    job.call("plan", set="plan.2d.batch_size=4", redo=True)
    assert load_document(Plan, job.folder.plan).configuration("2d").batch_size == 4
    assert job.call("plan").settings.set == {"plan.2d.batch_size": "4"}
    assert load_document(Plan, job.folder.plan).configuration("2d").batch_size == 4


@pytest.mark.parametrize(("name", "text"), [("plan", '{"configurations": 7}'), ("plan", "{"), ("schedule", "{}")])
def test_a_faulty_edit_is_reported_and_not_overwritten(job: Job, name: str, text: str) -> None:
    path = job.root / f"{name}.json"
    path.write_text(text)
    with pytest.raises(AutosegError) as caught:
        job.call()
    assert str(path) in str(caught.value)
    assert path.read_text() == text


def test_an_edited_schedule_is_kept_and_only_trainings_that_changed_are_redone(job: Job) -> None:
    own, weights = job.folder.schedule.read_bytes(), job.weights()
    edit(job.folder.schedule, lambda schedule: schedule.update(expected_rest_s=5.0))
    assert "schedule.json was edited" in said(job.call())
    assert job.weights() == weights
    edit(job.folder.schedule, lambda schedule: schedule["trainings"][0].update(num_steps=3))
    edited = job.folder.schedule.read_bytes()
    with pytest.raises(AutosegError) as caught:
        job.call()
    assert caught.value.codes == ("run.trained_from_other",)
    assert "the schedule changed: 2 trained folds" in caught.value.issues[0].message
    assert "was made with" not in caught.value.issues[0].message
    assert job.weights() == weights
    job.call("validate", redo=True, fold=0)
    assert [path.parent.name for path, written in job.weights().items() if written != weights[path]] == ["fold_0"]
    assert job.folder.schedule.read_bytes() == edited
    job.call("schedule", replan=True, redo=True)
    assert job.folder.schedule.read_bytes() == own


def test_changes_of_the_schedule_hold_for_a_given_one_too_and_are_remembered(job: Job) -> None:
    job.call("schedule", set="schedule.num_steps=3", mirroring=False, redo=True)
    (training,) = load_document(Schedule, job.folder.schedule).trainings
    assert (training.num_steps, training.mirroring) == (3, False)
    assert job.call("schedule").settings.set == {"schedule.num_steps": "3"}
    assert load_document(Schedule, job.folder.schedule).trainings == (training,)


def test_a_configuration_that_is_requested_by_name_is_scheduled(job: Job) -> None:
    shutil.rmtree(job.folder.models)
    run = job.call("schedule", schedule=None, budget="3s", configurations="2d", set="schedule.epochs=2")
    (training,) = run.schedule.trainings
    assert (training.configuration, training.num_steps) == ("2d", 500)
    made = {path: path.read_bytes() for path in (job.folder.schedule, job.folder.splits, job.folder.stage("schedule"))}
    with pytest.raises(KeyboardInterrupt):  # a slip that was interrupted costs no schedule
        job.call("schedule", budget="4s", reporter=Impatient("Precision"))
    job.call("schedule")
    assert {path: path.read_bytes() for path in made} == made
    edit(job.folder.splits, lambda splits: splits["folds"].append(splits["folds"][0]))
    job.call("schedule")
    assert {path: path.read_bytes() for path in (job.folder.schedule, job.folder.splits)} == dict(
        list(made.items())[:2]
    )


# --- what the finished model is, is shown without training


def unfinished(job: Job) -> None:
    """A training of other networks was begun."""
    final_weights(job.folder, "2d", 1).unlink()
    job.folder.stage("train-2d-fold_1").unlink()


def other_seed(job: Job) -> None:
    """As ``run --redo --seed 1`` leaves a run that is interrupted before the first checkpoint."""
    edit(job.folder.settings, lambda settings: settings.update(seed=1))


def one_case_less(job: Job) -> None:
    """As long as the images of this dataset are not read, cases may be of any number."""
    edit(job.folder.settings, lambda settings: settings.update(exclude=["phantom_004"]))


def no_dataset(job: Job) -> None:
    edit(job.folder.settings, lambda settings: settings.update(dataset="/nowhere"))


def other_plan(job: Job) -> None:
    edit(job.folder.plan, smaller_batch)


def test_trainings_of_the_finished_model_are_not_cleaned_while_another_is_unfinished(job: Job, tmp_path: Path) -> None:
    schedule, run = load_document(Schedule, job.folder.schedule), Run.open(job.root)
    kept, old = job.folder.kept_fold("2d", 0, "key"), job.folder.previous / "old.zip"
    for path in (kept / "history.jsonl", old):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert set(find_needless(run)) == {old, job.folder.kept_trainings}
    other = schedule.trainings[0].model_copy(update={"configuration": "3d_fullres"})
    save_document(job.folder.schedule, schedule.model_copy(update={"trainings": (other,), "num_folds": 1}))
    assert set(find_needless(run)) == {old}
    save_document(job.folder.schedule, schedule)
    job.folder.fold("2d", 0).rename(tmp_path / "replaced")
    assert set(find_needless(run)) == {old}


@pytest.mark.parametrize("command", ["report", "select"])
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (unfinished, "training of 2d, fold 1 (not done yet)"),
        (other_seed, "the seed changed"),
        (one_case_less, "(phantom_004 removed)"),
        (no_dataset, "/nowhere: does not exist"),
        (other_plan, "the plan changed"),
    ],
)
def test_a_finished_model_is_shown_without_training(
    job: Job, command: str, change: Callable[[Job], None], difference: str
) -> None:
    change(job)
    before, page = job.results(), (job.folder.report / "index.html").read_bytes()
    reporter = Listening()
    run = getattr(api, command)(job.root, reporter=reporter)
    what = "page" if command == "report" else "selection"
    device, line = reporter.lines
    assert device.startswith("Device: ")
    assert line.startswith(f"This {what} is that of the finished model: ")
    assert difference in line
    assert line.endswith(f"; autoseg run {job.root} goes on")
    assert job.results() == before
    assert run.report.read_bytes() == page
    show_scores(run)


def test_the_page_of_a_finished_model_is_written_where_its_documents_are_there(job: Job) -> None:
    page = job.folder.report / "index.html"
    whole = page.read_text()
    page.unlink()
    unfinished(job)
    assert len(api.report(job.root).report.read_text()) > len(whole) / 2
    page.unlink()
    other_plan(job)
    done = CliRunner().invoke(app, ["report", str(job.root)])
    assert (done.exit_code, page.exists()) == (0, False)
    assert "Its page is missing" in done.output
    assert "Report: " not in done.output


def test_without_a_finished_model_report_and_select_train(job: Job) -> None:
    job.folder.model.unlink()
    unfinished(job)
    api.select(job.root)
    assert key_of_model(job)


# --- undoing a change


def test_a_case_that_is_added_and_removed_again_needs_no_redo(job: Job, tmp_path: Path) -> None:
    """`run --redo` was interrupted before it trained."""
    smaller, weights, model = other_dataset(job, tmp_path), job.weights(), job.folder.model.read_bytes()
    job.call("schedule", dataset=smaller, redo=True)
    with pytest.raises(AutosegError) as caught:
        job.call()
    assert caught.value.codes == ("run.dataset_changed",)
    assert "(phantom_004 removed)" in caught.value.issues[0].message
    reporter = Listening()
    api.report(job.dataset, job.root, reporter=reporter)
    assert "finished model" not in reporter.text
    job.call(dataset=job.dataset)
    assert (job.weights(), job.folder.model.read_bytes()) == (weights, model)


def test_an_option_that_is_taken_back_needs_no_redo_before_something_else_is_trained(job: Job) -> None:
    weights = job.weights()
    job.call("schedule", seed=1, redo=True)
    assert "--seed was 1 and is 0" in said(job.call(seed=0))
    assert job.weights() == weights
    job.call("train", seed=1, redo=True, fold=0)
    final_weights(job.folder, "2d", 0).unlink()  # a checkpoint is left
    job.folder.stage("train-2d-fold_0").unlink()
    with pytest.raises(AutosegError) as caught:
        job.call(seed=0)
    assert caught.value.codes == ("run.option_differs",)


# --- what is lost or damaged


def test_a_schedule_that_is_lost_after_training_is_not_measured_again_in_passing(job: Job) -> None:
    edit(job.folder.settings, lambda settings: settings.update(schedule=None))
    record, schedule = job.folder.stage("schedule"), load_document(Schedule, job.folder.schedule)
    record.unlink()
    weights = job.weights()
    job.call()  # by the schedule that is there, for nothing else tells how the networks were trained
    assert load_document(Schedule, job.folder.schedule) == schedule
    job.folder.schedule.unlink()
    job.call()  # as it was written
    assert load_document(Schedule, job.folder.schedule) == schedule
    for path in (record, job.folder.schedule):
        path.unlink()
    with pytest.raises(AutosegError) as caught:
        job.call()
    assert caught.value.codes == ("run.schedule_changed",)
    assert not job.folder.schedule.exists()
    assert job.weights() == weights


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:100])])
@pytest.mark.parametrize("name", ["splits", "fingerprint", "dataset"])
def test_lost_and_cut_documents_are_redone(job: Job, name: str, lose: Callable[[Path], object]) -> None:
    results, weights = job.results(), job.weights()
    lose(job.root / f"{name}.json")
    job.call()
    assert (job.results(), job.weights()) == (results, weights)


@pytest.mark.parametrize("name", ["plan", "schedule"])
def test_lost_documents_that_may_be_edited_are_redone(job: Job, name: str) -> None:
    """The schedule is that of a file."""
    results, weights = job.results(), job.weights()
    (job.root / f"{name}.json").unlink()
    job.call()
    assert (job.results(), job.weights()) == (results, weights)


def test_cut_weights_are_redone_from_the_checkpoint(job: Job) -> None:
    final = final_weights(job.folder, "2d", 1)
    whole = final.read_bytes()
    final.write_bytes(whole[: len(whole) // 2])
    assert "final.safetensors is incomplete" in said(job.call())
    assert final.read_bytes() == whole


def test_lost_and_cut_files_are_redone(job: Job) -> None:
    fold, data = job.folder.fold("2d", 0), job.folder.preprocessed("2d")
    lost = [min((fold / "validation").glob("*.nii.gz")), min(job.folder.cross_validation.glob("*.nii.gz"))]
    cut = [min(data.glob("*.image.b2nd")), max(data.glob("*.locations.npz"))]
    before = {path: path.read_bytes() for path in (*lost, *cut)}
    for path in lost:
        path.unlink()
    records = [job.folder.stage(name) for name in ("train-2d-fold_1", "check", "plan", "schedule", "select")]
    for path in (*cut, *records, fold / "history.jsonl"):
        path.write_bytes(path.read_bytes()[:-20])
    run = job.call("report")
    assert {path: path.read_bytes() for path in before} == before
    assert "damaged from line 2 on" in run.report.read_text()
    assert json.loads(job.folder.record.read_text())["state"] == "finished"


def test_a_fold_that_is_lost_is_trained_and_validated_again_without_asking(job: Job) -> None:
    results, predicted = job.results(), min(job.folder.validation("2d", 0).glob("*.nii.gz"))
    written = predicted.stat().st_mtime_ns
    final_weights(job.folder, "2d", 0).unlink()
    shutil.rmtree(job.folder.fold("2d", 1))
    job.call()
    assert job.results() == results
    assert predicted.stat().st_mtime_ns != written


def test_folds_that_were_validated_otherwise_are_selected_from_again(job: Job) -> None:
    """As a fold is that was trained again from the same on another machine."""
    select, table = job.folder.stage("select"), job.folder.validation("2d", 0) / "summary.json"
    before = select.read_bytes()
    edit(table, lambda scores: scores["metric_per_case"][0]["metrics"]["1"].update(Dice=0.987))
    assert "Redoing the selection: the validation changed" in said(job.call("select"))
    assert select.read_bytes() != before


def test_predictions_without_a_record_are_not_taken_for_the_models(job: Job) -> None:
    prediction = min(job.folder.predictions.glob("*.nii.gz"))
    whole = prediction.read_bytes()
    shutil.copy(next(job.folder.cross_validation.glob("*.nii.gz")), prediction)
    (job.folder.predictions / "predictions.jsonl").unlink()
    job.call()
    assert prediction.read_bytes() == whole
    prediction.write_bytes(b"")
    job.call()
    assert prediction.read_bytes() == whole


def test_only_folders_of_the_run_are_cleaned(job: Job) -> None:
    theirs, ours = job.root / "notes" / ".a.json.0123abcd.part", job.folder.models / ".a.json.0123abcd.part"
    for path in (theirs, ours):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        os.utime(path, (1, 1))
    job.call("report")
    assert theirs.exists()
    assert not ours.exists()


# --- what other processes do meanwhile


def work_of(run: Run, fold: int, *, validate: bool = False) -> object:
    """Train or validate one fold, as the stages do."""
    prepared = read_prepared(run)
    training = prepared.schedule.training("2d")
    key = all_keys(run, prepared)["2d", fold]
    if validate:
        return lambda: do_work(run, validation_work(run, prepared, (training, fold), key))
    with SilentReporter().track("", 2) as tracker:
        pacer = Pacer(run=run, schedule=prepared.schedule, tracker=tracker, left=[("2d", fold)])
        work = training_work(run, prepared, (training, fold), key, pacer)
    return lambda: do_work(run, work)


def test_cases_that_another_process_replaces_are_not_trained_on(job: Job) -> None:
    run, fold = job.call(), job.folder.fold("2d", 0)
    train, validate = work_of(run, 0), work_of(run, 1, validate=True)
    final = (fold / "final.safetensors").read_bytes()
    shutil.rmtree(fold)
    job.call("preprocess", target_spacing=FINER, redo=True)  # before, or while this process trains
    with pytest.raises(AutosegError) as caught:
        train()
    assert set(caught.value.codes) == {"store.replaced"}
    assert not list(fold.glob("*.pt")), "the checkpoint would be taken for one of the right cases"
    job.folder.stage("validate-2d-fold_1").unlink()
    (job.folder.validation("2d", 1) / "predictions.jsonl").unlink()
    with pytest.raises(AutosegError) as caught:
        validate()
    assert set(caught.value.codes) == {"store.replaced"}
    job.call(target_spacing=None, redo=True)
    assert (fold / "final.safetensors").read_bytes() == final


def test_a_fold_that_another_process_retrained_is_not_validated(job: Job) -> None:
    validate = work_of(job.call(), 0, validate=True)
    job.call("train", seed=1, fold=0, redo=True)
    with pytest.raises(AutosegError) as caught:
        validate()
    assert caught.value.codes == ("weights.replaced",)


def test_a_new_plan_is_not_that_of_the_model(job: Job) -> None:
    weights, model = job.weights(), job.folder.model.read_bytes()
    job.call("plan", target_spacing=FINER, redo=True)
    assert open_model(job.root).description.plan != Run.open(job.root).plan
    job.call(target_spacing=None, redo=True)
    assert (job.weights(), job.folder.model.read_bytes()) == (weights, model)


@pytest.mark.parametrize(
    "changes",
    [
        {"strict_reference": True},
        {"source_axes": "ras"},
        {"transpose_forward": (1, 0, 2), "transpose_backward": (1, 0, 2)},
    ],
)
def test_weights_for_other_axes_are_outdated(finished: Job, changes: dict[str, object]) -> None:
    """All that cases are stored by counts, also where it changes no configuration."""
    run = Run.open(finished.root)
    prepared = read_prepared(run)
    other = replace(prepared, plan=prepared.plan.model_copy(update=changes))
    inputs = [fold_inputs(run, each, each.schedule.training("2d"), 0) for each in (prepared, other)]
    assert {name for name in inputs[0] if inputs[0][name] != inputs[1][name]} == {"plan"}


# --- scores that are too high


def test_scores_that_are_too_high_have_a_caveat_on_the_terminal_and_in_the_report(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, unseen = Run.open(job.root), "a network that did not see it"
    prepared = read_prepared(run)
    assert unseen in run.report.read_text()
    assert not score_issues(run, prepared)
    (known,) = score_issues(run, replace(prepared, pretrained=open_model(job.root)))
    assert known.code == "scores.pretrained_saw_cases"
    assert known.message.startswith("4 of 4 cases")
    cases = [case.case_id for case in prepared.dataset.training]
    folds = [{"train": cases[:2], "val": cases[2:]}, {"train": cases[2:], "val": cases[:2]}]
    (tmp_path / "splits.json").write_text(json.dumps(folds))
    (tmp_path / "groups.csv").write_text("case,group\n" + "".join(f"{case},anna\n" for case in cases[1:3]))
    done = job.call("report", splits=tmp_path / "splits.json", groups=tmp_path / "groups.csv", redo=True)
    show_scores(done)
    for text in (capsys.readouterr().out, done.report.read_text()):
        assert "trains and validates on cases of anna" in text
        assert "a fold that left it out" in text
    assert unseen not in done.report.read_text()


def test_dropped_edits_of_the_schedule_train_nothing_again(job: Job) -> None:
    own, weights = job.folder.schedule.read_bytes(), job.weights()
    edit(job.folder.schedule, lambda schedule: schedule["trainings"][0].update(num_steps=3))
    job.call(replan=True)
    job.folder.schedule.write_text("{")
    job.call(replan=True)
    assert (job.folder.schedule.read_bytes(), job.weights()) == (own, weights)


def test_dropped_edits_of_the_plan_may_be_unreadable(job: Job) -> None:
    own, weights = job.folder.plan.read_bytes(), job.weights()
    job.folder.plan.write_text("{")
    job.call(replan=True)
    assert (job.folder.plan.read_bytes(), job.weights()) == (own, weights)


def test_a_refused_call_leaves_no_settings_where_they_were_lost(job: Job) -> None:
    job.folder.settings.unlink()
    with pytest.raises(AutosegError):
        job.call("train", dataset=job.dataset)
    assert not job.folder.settings.exists()
    job.call(dataset=job.dataset, schedule=job.schedule)
    assert load_document(Settings, job.folder.settings).schedule == job.schedule


def test_a_training_that_is_added_follows_what_was_set_and_edits_stay_edits(job: Job) -> None:
    folder, own = job.folder, load_document(Schedule, job.folder.schedule)
    settings = json.loads(folder.settings.read_text())
    folder.settings.write_text(json.dumps(settings | {"schedule": None, "mirroring": False, "budget": 60.0}))
    run = Run.open(job.root)
    edit(folder.schedule, lambda schedule: schedule["trainings"][0].update(num_steps=3))
    schedule = add_training(replace(run, reporter=SilentReporter()), run.dataset, run.plan, "3d_fullres")
    edited, added = schedule.trainings
    assert (edited.num_steps, edited.mirroring, added.mirroring) == (3, own.trainings[0].mirroring, False)
    assert [str(each) for each in schedule_edits(run)] == ["2d.num_steps is 3; the rules give 2"]


def test_an_edited_memory_target_is_kept_as_an_edit(job: Job) -> None:
    edit(job.folder.plan, lambda plan: plan.update(memory_target_gb=3.0))
    edited = job.folder.plan.read_bytes()
    assert "plan.json was edited: memory_target_gb is 3.0" in said(job.call())
    assert job.folder.plan.read_bytes() == edited

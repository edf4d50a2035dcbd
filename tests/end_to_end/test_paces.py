"""Runs that are slower or faster than planned: other numbers of steps, which are kept, replayed and no edit by the user."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import Job, begin, contents, said
from safetensors.torch import load_file

from autoseg.inference.model import final_weights
from autoseg.issues import AutosegError
from autoseg.pipeline import run_stages
from autoseg.stages import pace
from autoseg.stages import schedule as scheduling
from autoseg.stages.announce import no_use_issues, short_budget_issue
from autoseg.stages.schedule import read_prepared
from autoseg.stages.select import score_issues
from autoseg.storage.atomic import load_document, save_document
from autoseg.tracking.callbacks import read_history
from planners import Revision, Schedule, revise


@pytest.fixture
def hurried(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A run with a budget that measured a machine on which 40 steps take no time at all."""
    monkeypatch.setattr(pace, "PACE_S", 0.0)
    monkeypatch.setattr(pace, "PACE_STEPS", 2)
    known = load_document(Schedule, job.schedule)
    (measured,) = known.conditions.measurements
    instant = measured.model_copy(update={"step_s": 1e-6, "base_features": known.trainings[0].base_features})
    known = known.model_copy(
        update={
            "conditions": known.conditions.model_copy(update={"measurements": (instant,)}),
            "trainings": tuple(t.model_copy(update={"num_steps": 40, "steps_per_epoch": 20}) for t in known.trainings),
            "expected_validation_s": 0.0,
            "expected_rest_s": 0.01,
        }
    )
    monkeypatch.setattr(scheduling, "measured_schedule", lambda *given: known)
    return Job(dataset=job.dataset, schedule=tmp_path / "schedule.json", root=tmp_path / "hurried")


def test_a_slow_machine_shortens_what_is_left_and_a_schedule_file_repeats_it(hurried: Job, tmp_path: Path) -> None:
    wishes = {"budget": "1h", "anyway": True, "configurations": "2d"}
    run = hurried.call("select", dataset=hurried.dataset, **wishes)
    schedule = run.schedule
    first = schedule.revisions_of("2d", 0)
    # the first four steps are left out, the pace is that of the next ones; then there is no time for more
    assert first[0].step >= 6
    assert first[-1].num_steps < 40
    history, _ = read_history(hurried.folder.fold("2d", 0) / "history.jsonl")
    assert history[-1].step == schedule.steps_of("2d", 0)
    assert "steps instead of 40: a step takes" in said(run)
    assert "2d, fold 1, is left out: a step takes" in said(run)
    assert (schedule.folds, run.selection.folds) == ((0,), (0,))
    weights = contents(hurried.folder.models, "final.safetensors")
    again = hurried.call("select")
    assert "edited" not in said(again)
    assert contents(hurried.folder.models, "final.safetensors") == weights

    shutil.copy(hurried.folder.schedule, hurried.schedule)
    wishes = {"schedule": hurried.schedule, "configurations": "2d"}
    replayed = Job(dataset=hurried.dataset, schedule=hurried.schedule, root=tmp_path / "replayed")
    replayed.call("train", dataset=hurried.dataset, **wishes)
    # the bytes differ in the key of what they were made from
    ours, theirs = (load_file(final_weights(each.folder, "2d", 0)) for each in (hurried, replayed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not final_weights(replayed.folder, "2d", 1).exists()
    assert load_document(Schedule, replayed.folder.schedule).revisions == schedule.revisions


def test_a_fold_that_was_left_out_is_trained_where_it_is_asked_for(hurried: Job) -> None:
    run = hurried.call("select", dataset=hurried.dataset, budget="1h", anyway=True, configurations="2d")
    (caveat,) = score_issues(run, read_prepared(run))
    assert caveat.code == "scores.folds_left_out"
    assert caveat.message == "fold 1 of 2 could not be trained in time, so scores are of 2 of 4 cases"
    assert len(run.summary.metric_per_case) == 2
    first = final_weights(run.folder, "2d", 0).read_bytes()
    run = hurried.call("train", fold=1)
    assert run.schedule.folds == (0, 1)
    assert run.schedule.steps_of("2d", 1) == 40
    run = hurried.call("select")
    assert run.selection.folds == (0, 1)
    assert score_issues(run, read_prepared(run)) == ()
    assert len(run.summary.metric_per_case) == 4
    assert final_weights(run.folder, "2d", 0).read_bytes() == first
    assert "edited" not in said(run)


def test_a_fold_that_is_given_up_while_it_trains_is_resumed_where_it_is_asked_for(
    hurried: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the time is over when the first fold is trained."""

    def revise_later(
        schedule: Schedule, jobs: list[tuple[str, int]], *, done: int, **given: Any
    ) -> tuple[Revision, ...]:
        return revise(schedule, jobs, done=done, **given) if jobs[0][1] == 1 and done >= 20 else ()

    monkeypatch.setattr(pace, "revise", revise_later)
    run = hurried.call("select", dataset=hurried.dataset, budget="1h", anyway=True, configurations="2d")
    assert run.schedule.folds == (0,)
    (left_out,) = run.schedule.revisions
    assert (left_out.fold, left_out.num_steps) == (1, 0)
    assert not run.folder.stage("train-2d-fold_1").exists()
    checkpoint = run.folder.fold("2d", 1) / "checkpoint.pt"
    assert checkpoint.is_file()
    assert "fold 1, is left out" in said(run)
    assert "not done yet" not in said(hurried.call("select"))
    run = hurried.call("train", fold=1)
    history, _ = read_history(run.folder.fold("2d", 1) / "history.jsonl")
    assert history[-1].step == 40
    assert run.schedule.revisions == ()


def test_revisions_that_a_user_changes_are_another_training(hurried: Job) -> None:
    hurried.call("train", dataset=hurried.dataset, budget="1h", anyway=True, configurations="2d")
    schedule = load_document(Schedule, hurried.folder.schedule)
    changed = tuple(r.model_copy(update={"num_steps": r.num_steps + 1}) for r in schedule.revisions)
    save_document(hurried.folder.schedule, schedule.model_copy(update={"revisions": changed}))
    with pytest.raises(AutosegError) as caught:
        hurried.call("train")
    assert caught.value.codes == ("run.trained_from_other",)


def test_a_time_in_which_nothing_is_learned_is_refused_with_the_least_useful_one(hurried: Job) -> None:
    wishes = {"budget": "90s", "configurations": "2d"}
    with pytest.raises(AutosegError) as caught:
        hurried.call("schedule", dataset=hurried.dataset, **wishes)
    (issue,) = caught.value.issues
    assert (issue.code, issue.where, issue.severity) == ("schedule.budget_too_short", "--budget", "error")
    assert "--anyway" in issue.fix
    assert not hurried.folder.schedule.exists()
    run = begin(hurried.root, None, {"set": "schedule.num_steps=40"})
    schedule = scheduling.measured_schedule()
    assert short_budget_issue(run, run.plan, schedule) is None
    run = run_stages(begin(hurried.root, None, {"set": "none", "anyway": True}), "schedule")
    assert "of no use" not in said(run)
    assert short_budget_issue(run, run.plan, schedule).severity == "warning"


@pytest.mark.parametrize(("steps", "is_useful"), [(149, False), (150, True)])
def test_a_model_that_learned_nothing_is_said_to_be_of_no_use(finished: Job, steps: int, is_useful: bool) -> None:
    schedule = load_document(Schedule, finished.schedule)
    schedule = schedule.model_copy(
        update={"trainings": tuple(t.model_copy(update={"num_steps": steps}) for t in schedule.trainings)}
    )
    assert [issue.code for issue in no_use_issues(schedule)] == ([] if is_useful else ["model.of_no_use"])

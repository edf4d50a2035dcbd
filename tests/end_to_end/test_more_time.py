"""More time for a run: a warm restart of what is trained, more steps for what is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import Impatient, Job, begin, contents, said
from safetensors.torch import load_file
from typer.testing import CliRunner

from autoseg.cli import app
from autoseg.inference.bundle import open_bundle
from autoseg.inference.model import final_weights
from autoseg.issues import AutosegError
from autoseg.networks.weights import read_key
from autoseg.stages import more_time
from autoseg.stages import schedule as scheduling
from autoseg.stages.announce import no_use_issues
from autoseg.stages.clean import clean
from autoseg.stages.run import Run
from autoseg.storage.atomic import load_document, save_document
from planners import Plan, Revision, Schedule, with_revisions

MORE: dict[str, Any] = {"budget": "+6s", "anyway": True}
"""Too little for more than a step of each fold, whatever the machine."""


def weights_of(job: Job, fold: int) -> dict[str, torch.Tensor]:
    return load_file(final_weights(job.folder, "2d", fold))


def test_every_fold_goes_on_from_its_own_weights(job: Job) -> None:
    before, keys = [weights_of(job, k) for k in (0, 1)], [read_key(final_weights(job.folder, "2d", k)) for k in (0, 1)]
    model, dice = open_bundle(job.folder.model).key, Run.open(job.root).selection.dice_after_postprocessing
    run = job.call("select", **MORE)
    assert run.settings.budget == 606.0  # the schedule that it followed was made for ten minutes
    assert run.settings.schedule is None
    assert [(each.fold, each.key, each.num_steps) for each in run.schedule.starts] == [(0, keys[0], 2), (1, keys[1], 2)]
    (training,) = run.schedule.trainings
    assert training.num_steps == 1
    for fold in (0, 1):
        after = weights_of(job, fold)
        changes = {name: float((after[name] - tensor).abs().max()) for name, tensor in before[fold].items()}
        assert max(changes.values()) > 0
        # one step of Adam changes a weight by the rate, or hardly more
        assert max(changes.values()) < 1.5 * training.peak_learning_rate
        assert read_key(final_weights(job.folder, "2d", fold)) != keys[fold]
    assert open_bundle(job.folder.model).key != model
    assert f"after 2 steps; the present model scored Dice {dice:.3f} in cross-validation" in said(run)
    assert len(list(job.folder.kept_trainings.iterdir())) == 2

    results = job.results()
    again = job.call("select")
    assert job.results() == results
    assert "Going on" not in said(again)

    clean(again)
    done = CliRunner().invoke(app, ["train", str(job.root), "--budget", "+6s"])
    assert done.exit_code == 0, done.output
    run = job.call("select")
    assert [each.num_steps for each in run.schedule.starts] == [3, 3]
    assert run.schedule.trainings[0].peak_learning_rate == training.peak_learning_rate
    assert run.settings.budget == 612.0


def test_the_time_of_before_brings_the_model_of_before_back(job: Job) -> None:
    weights = contents(job.folder.models, "final.safetensors")
    job.call("select", **MORE)
    assert contents(job.folder.models, "final.safetensors") != weights
    job.call("select", schedule=job.schedule, budget="none", redo=True)
    assert contents(job.folder.models, "final.safetensors") == weights


def test_interrupted_it_goes_on_and_the_present_model_serves(job: Job, tmp_path: Path) -> None:
    whole = Job(job.dataset, job.schedule, Path(shutil.copytree(job.root, tmp_path / "whole")))
    model = job.folder.model.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        job.call("select", reporter=Impatient("Redoing the schedule"), **MORE)
    assert job.call("validate").schedule.starts == ()
    with pytest.raises(KeyboardInterrupt):
        job.call("select", reporter=Impatient("Going on"), **MORE)
    job.call("validate", fold=0)
    assert job.folder.model.read_bytes() == model
    clean(Run.open(job.root))
    run = job.call("select")
    assert len(run.schedule.starts) == 2
    assert job.folder.model.read_bytes() != model
    whole.call("select", **MORE)
    for fold in (0, 1):
        ours, theirs = weights_of(job, fold), weights_of(whole, fold)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_its_schedule_needs_the_weights_that_it_goes_on_from(job: Job, tmp_path: Path) -> None:
    job.call("select", **MORE)
    weights, file = contents(job.folder.models, "final.safetensors"), tmp_path / "longer.json"
    shutil.copy(job.folder.schedule, file)
    job.call("select", schedule=file, redo=True)
    assert contents(job.folder.models, "final.safetensors") == weights
    other = Job(job.dataset, file, tmp_path / "other")
    with pytest.raises(AutosegError) as caught:
        other.call("schedule", dataset=job.dataset, schedule=file)
    assert caught.value.codes == ("schedule.start_missing",)
    assert not other.folder.all_preprocessed.exists()
    shutil.rmtree(job.folder.fold("2d", 0))
    job.call("validate")  # the weights of before were kept
    assert contents(job.folder.models, "final.safetensors") == weights
    shutil.rmtree(job.folder.fold("2d", 0))
    shutil.rmtree(job.folder.kept_trainings)
    job.call("validate")  # and are in the model of before
    assert contents(job.folder.models, "final.safetensors") == weights


def test_a_fold_that_was_left_out_stays_so_while_the_time_is_short(job: Job, tmp_path: Path) -> None:
    schedule = load_document(Schedule, job.schedule)
    left_out = Revision(configuration="2d", fold=1, step=0, num_steps=0, planned_steps=2, step_s=1.0, reason="")
    save_document(tmp_path / "shorter.json", with_revisions(schedule, [left_out]))
    job.call("select", schedule=tmp_path / "shorter.json", redo=True)
    run = job.call("select", **MORE)
    assert [each.fold for each in run.schedule.starts] == [0]
    assert run.schedule.folds == run.selection.folds == (0,)


@pytest.mark.parametrize(
    ("added", "code"),
    [
        ("+0s", "settings.bad_value"),
        ("+soon", "settings.bad_value"),
        ("+", "settings.bad_value"),
        ("+6s", "schedule.budget_too_short"),  # all of it is kept back for the report
    ],
)
def test_nonsense_is_refused(job: Job, added: str, code: str) -> None:
    results = job.results()
    with pytest.raises(AutosegError) as caught:
        job.call(budget=added)
    assert caught.value.codes == (code,)
    assert job.results() == results


def test_it_needs_a_run_and_nothing_else_may_change(job: Job, tmp_path: Path) -> None:
    results = job.results()
    with pytest.raises(AutosegError) as caught:
        begin(job.dataset, tmp_path / "new", {"budget": "+1h"})
    assert caught.value.codes == ("run.nothing_to_add_to",)
    for words in (
        ["run", str(job.dataset), "--out", str(tmp_path / "new"), "--budget", "+1h"],
        ["run", str(job.root), "--budget", "+0h"],
    ):
        assert isinstance(CliRunner().invoke(app, words).exception, AutosegError)
    for changes, code in (({"seed": 1}, "run.option_differs"), ({"schedule": job.schedule}, "settings.contradiction")):
        with pytest.raises(AutosegError) as caught:
            job.call(**MORE, **changes)
        assert caught.value.codes == (code,)
    assert job.results() == results


@pytest.mark.parametrize(("steps", "is_enough"), [(149, False), (150, True)])
def test_at_least_150_steps_are_added(job: Job, monkeypatch: pytest.MonkeyPatch, steps: int, is_enough: bool) -> None:
    def continued(plan: Plan, schedule: Schedule, *given: Any, **others: Any) -> Schedule:
        (training,) = schedule.trainings
        return schedule.model_copy(update={"trainings": (training.model_copy(update={"num_steps": steps}),)})

    monkeypatch.setattr(more_time, "continue_schedule", continued)
    if is_enough:
        assert job.call("schedule", budget="+1h").schedule.trainings[0].num_steps == steps
        return
    with pytest.raises(AutosegError) as caught:
        job.call("schedule", budget="+1h")
    (issue,) = caught.value.issues
    assert (issue.code, issue.where) == ("schedule.budget_too_short", "--budget +1h")
    assert issue.message == "adds 149 steps to each fold; at least 150 are needed"


def test_another_budget_is_refused_with_the_way_to_add_to_it(job: Job) -> None:
    with pytest.raises(AutosegError, match=r"add time to the trained networks \(autoseg run .* --budget \+1h\)"):
        job.call(budget="2h")


def test_a_run_that_is_not_finished_gets_more_steps(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folds of two steps of a second."""
    known = load_document(Schedule, job.schedule)
    monkeypatch.setattr(scheduling, "measured_schedule", lambda *given: known)
    begun = Job(job.dataset, job.schedule, tmp_path / "begun")
    begun.call("validate", dataset=job.dataset, budget="1h", anyway=True, configurations="2d", fold=0)
    first = final_weights(begun.folder, "2d", 0).read_bytes()
    run = begun.call("schedule", budget="+10s")
    (revision,) = run.schedule.revisions
    assert (revision.fold, revision.step, revision.num_steps, revision.reason) == (1, 0, 12, "--budget +10s")
    assert run.schedule.starts == ()
    assert run.settings.budget == 3610.0
    assert final_weights(begun.folder, "2d", 0).read_bytes() == first
    edited = with_revisions(run.schedule, [revision.model_copy(update={"num_steps": 9})])
    save_document(begun.folder.schedule, edited)
    with pytest.raises(AutosegError) as caught:
        begun.call("schedule", budget="+10s")
    assert caught.value.codes == ("schedule.steps_are_set",)


@pytest.mark.parametrize(("before", "is_useful"), [(148, False), (149, True)])
def test_steps_of_before_count_for_the_use_of_a_model(job: Job, before: int, is_useful: bool) -> None:
    schedule = job.call("select", **MORE).schedule
    starts = tuple(each.model_copy(update={"num_steps": before}) for each in schedule.starts)
    assert (no_use_issues(schedule.model_copy(update={"starts": starts})) == ()) is is_useful

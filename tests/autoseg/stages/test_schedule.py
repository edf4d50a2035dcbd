"""What is refused before hours are spent on it, and which networks may predict which case."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import Job, begin, make_phantom, said, short_schedule
from hypothesis import given
from hypothesis import strategies as st

from autoseg.data.splits import Split, Splits, make_splits
from autoseg.issues import AutosegError
from autoseg.pipeline import run_stages
from autoseg.stages.announce import announce, edits_not_followed
from autoseg.stages.folds import always_trained_on, find_splits, folds_without, require_unseen
from autoseg.stages.run import Run
from autoseg.stages.schedule import measured_schedule
from autoseg.storage.atomic import save_document


@pytest.fixture
def planned(tmp_path: Path) -> Run:
    return run_stages(begin(make_phantom(tmp_path, training=3), tmp_path / "run"), "plan")


@pytest.mark.parametrize(
    ("wishes", "context", "code"),
    [
        ({}, {"configuration": "4d"}, "plan.no_configuration"),
        ({"configurations": "2d,4d"}, {}, "plan.no_configuration"),
        ({}, {"fold": 3}, "folds.no_such_fold"),
        ({"folds": 2}, {"fold": 2}, "folds.no_such_fold"),
        ({"leave_one_group_out": True}, {}, "folds.no_groups"),
        ({"set": "schedule.foo=1"}, {}, "plan.edit_unknown"),
        ({"set": "schedule.num_steps=many"}, {}, "plan.edit_value"),
        ({"set": "plan.foo=1"}, {}, "plan.edit_unknown"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_is_preprocessed(
    planned: Run, wishes: dict[str, object], context: dict[str, object], code: str
) -> None:
    with pytest.raises(AutosegError) as caught:
        run_stages(begin(planned.folder.root, None, wishes, **context), "train")
    assert caught.value.codes == (code,)
    assert not planned.folder.all_preprocessed.exists()


def test_a_bad_change_of_the_schedule_is_refused_by_the_plan_and_not_stored(planned: Run) -> None:
    with pytest.raises(AutosegError) as caught:
        run_stages(begin(planned.folder.root, None, {"set": "schedule.num_steps=WRONG"}), "plan")
    assert caught.value.codes == ("plan.edit_value",)
    assert begin(planned.folder.root).settings.set == {}


@pytest.mark.parametrize("name", ["plan.colour", "plan.2d.loss.colour", "schedule.steps", "schedule.2d.steps"])
def test_a_change_of_what_no_configuration_has_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(AutosegError) as caught:
        begin(make_phantom(tmp_path / "data"), tmp_path / "run", {"set": f"{name}=1"})
    assert [(issue.code, issue.where) for issue in caught.value.issues] == [("plan.edit_unknown", name)]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["plan.loss.name", "plan.4d.loss.name", "schedule.averaged_share", "schedule.4d.epochs"]
)
def test_what_some_configuration_may_have_is_left_to_the_plan(tmp_path: Path, name: str) -> None:
    begin(make_phantom(tmp_path / "data"), tmp_path / "run", {"set": f"{name}=1"})


def test_a_fold_that_does_not_exist_is_refused_with_those_that_do(job: Job) -> None:
    with pytest.raises(AutosegError, match=r"fold 2 does not exist \(available: 0 to 1\)"):
        job.call("train", fold=2)


def test_a_given_schedule_that_does_not_fit_is_refused_before_anything_is_preprocessed(
    planned: Run, tmp_path: Path
) -> None:
    file, made = tmp_path / "other.json", short_schedule(planned.plan, num_folds=3, cases=3)
    other = tuple(training.model_copy(update={"configuration": "4d"}) for training in made.trainings)
    for changes, code in (
        ({"num_folds": 7}, "schedule.other_folds"),
        ({"trainings": other}, "schedule.unplanned"),
    ):
        save_document(file, made.model_copy(update=changes))
        with pytest.raises(AutosegError) as caught:
            run_stages(begin(planned.folder.root, None, {"schedule": file}), "train")
        assert [(issue.code, issue.where) for issue in caught.value.issues] == [(code, str(file))]
    save_document(file, short_schedule(planned.plan, num_folds=2, cases=3))
    with pytest.raises(AutosegError, match=r"fold 2 does not exist \(available: 0 to 1\)"):
        run_stages(begin(planned.folder.root, None, {"schedule": file}, fold=2), "train")
    assert not planned.folder.all_preprocessed.exists()


def test_singular_is_used_for_one(planned: Run) -> None:
    announce(planned, planned.plan, short_schedule(planned.plan, num_folds=1, cases=2))
    assert "Schedule: 1 fold of 2d (" in said(planned)
    assert "\nOne network, about " in said(planned)
    for plural in ("1 folds", "1 configurations", "1 warnings", "1 notes", "1 threads"):
        assert plural not in said(planned)


@pytest.mark.parametrize(
    ("change", "used", "option"),
    [
        ("plan.2d.batch_size=13", {}, "schedule.2d.batch_size=13"),
        ("plan.2d.batch_size=13", {"batch_size": 13}, ""),
        ("plan.3d_fullres.batch_size=13", {}, ""),  # it is not trained
        ("plan.2d.features=40,80,160,320", {}, "schedule.2d.base_features=40"),
        ("plan.2d.features=40,80,160,320", {"base_features": 40}, ""),
    ],
)
def test_a_schedule_that_departs_from_an_edited_plan_says_so(
    planned: Run, change: str, used: dict[str, int], option: str
) -> None:
    run = run_stages(begin(planned.folder.root, None, {"set": change}), "plan")
    made = short_schedule(run.plan, num_folds=1, cases=2)
    notes = list(edits_not_followed(run, [each.model_copy(update=used) for each in made.trainings]))
    assert [option in note for note in notes] == ([True] if option else [])


@given(number=st.integers(2, 30), folds=st.integers(2, 7))
def test_with_the_usual_folds_the_one_that_validates_a_case_has_not_seen_it(number: int, folds: int) -> None:
    splits = make_splits([f"case_{i}" for i in range(number)], num_folds=folds)
    for k, split in enumerate(splits.folds):
        assert all(folds_without(splits, case_id) == (k,) for case_id in split.val)
    assert always_trained_on(splits) == ()
    require_unseen(splits, "3d_cascade_fullres")


def test_a_case_that_several_folds_leave_out_was_seen_by_neither() -> None:
    splits = Splits(folds=(
        Split(train=("a", "b"), val=("c",)), Split(train=("a", "d"), val=("c",)), Split(train=("b", "c", "d"), val=("a",)),
    ))  # fmt: skip
    assert folds_without(splits, "c") == (0, 1)
    assert folds_without(splits, "d") == (0,)  # it validates nowhere, but fold 0 does not know it
    assert always_trained_on(splits) == ()


def test_cases_that_every_fold_trains_on_are_named() -> None:
    splits = Splits(folds=(Split(train=("a", "b", "x"), val=("c",)), Split(train=("c", "b", "x"), val=("a",))))
    assert always_trained_on(splits) == ("b", "x")
    with pytest.raises(AutosegError) as caught:
        require_unseen(splits, "3d_cascade_fullres")
    assert caught.value.codes == ("folds.cascade_needs_unseen",)
    assert "b, x" in caught.value.issues[0].message
    assert always_trained_on(make_splits(["alone"])) == ("alone",)


def test_smaller_patches_are_timed_where_the_whole_one_starves(finished: Job, tmp_path: Path) -> None:
    """On any machine: the budget is over before it begins."""
    wishes = {"memory_gb": 0.3, "budget": 5.0, "anyway": True}
    run = run_stages(begin(finished.dataset, tmp_path / "run", wishes), "preprocess")
    made = measured_schedule(run, run.dataset, run.plan, find_splits(run.settings, run.dataset))
    names = {measured.configuration for measured in made.conditions.measurements}
    assert "3d_fullres_small" in names
    assert made.conditions.race is not None  # none was held
    assert made.conditions.race.rounds == ()

"""Which folds a call trains, how long the rest takes, and who reads patches meanwhile."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from builders import short_schedule
from made_folds import make_plan

from autoseg.inference.model import final_weights
from autoseg.issues import AutosegError
from autoseg.networks.weights import save_weights
from autoseg.run_folder import RunFolder
from autoseg.stages import pace
from autoseg.stages.pace import Pacer
from autoseg.stages.train import asked_jobs, expected_s, with_stages_before
from autoseg.tracking.callbacks import FoldEnd, FoldStart
from planners import Revision, with_revisions


class Made(NamedTuple):
    """A scheduled training."""

    configuration: str


FLAT, LOW, HIGH = map(Made, ("2d", "3d_lowres", "3d_cascade_fullres"))
BY_NAME = {each.configuration: each for each in (FLAT, LOW, HIGH)}
SCHEDULE = SimpleNamespace(trainings=(FLAT, LOW, HIGH), num_folds=2, training=BY_NAME.__getitem__)


@pytest.mark.parametrize(
    ("configuration", "fold", "number"), [(None, None, 6), ("2d", None, 2), (None, 1, 3), ("2d", 1, 1)]
)
def test_a_call_is_about_all_folds_or_those_that_it_names(configuration, fold, number: int) -> None:
    jobs = asked_jobs(SimpleNamespace(configuration=configuration, fold=fold), SCHEDULE)
    assert len(jobs) == number
    assert {training.configuration for training, _ in jobs} == ({configuration} if configuration else set(BY_NAME))
    assert {each for _, each in jobs} == ({0, 1} if fold is None else {fold})


def test_a_fold_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AutosegError) as caught:
        asked_jobs(SimpleNamespace(configuration=None, fold=2), SCHEDULE)
    assert caught.value.codes == ("folds.no_such_fold",)


def test_a_cascade_waits_for_all_folds_of_its_first_stage() -> None:
    chains = {"2d": [FLAT], "3d_lowres": [LOW], "3d_cascade_fullres": [LOW, HIGH]}
    stages = {name: [SimpleNamespace(name=each.configuration) for each in chain] for name, chain in chains.items()}
    prepared = SimpleNamespace(plan=SimpleNamespace(chain=stages.__getitem__), schedule=SCHEDULE)
    jobs = with_stages_before(prepared, [(FLAT, 1), (HIGH, 0), (HIGH, 1)])
    assert jobs == [(FLAT, 1), (LOW, 0), (LOW, 1), (HIGH, 0), (HIGH, 1)]


def test_what_is_trained_and_validated_takes_no_more_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    schedule = short_schedule(make_plan(), num_folds=4, steps=25)  # of a second
    schedule = schedule.model_copy(update={"expected_validation_s": 40.0, "expected_rest_s": 7.0})
    keys = {("2d", fold): f"key {fold}" for fold in range(4)}
    for fold, key in ((0, "key 0"), (1, "key 1"), (2, "of another training")):
        save_weights(final_weights(folder, "2d", fold), {"bias": torch.zeros(1)}, key=key)
    for fold in (0, 2):
        folder.validation("2d", fold).mkdir(parents=True)
        (folder.validation("2d", fold) / "summary.json").touch()
    assert expected_s(SimpleNamespace(folder=folder), schedule, keys) == 2 * 25 + 40 * 3 / 4 + 7
    shortened = Revision(
        configuration="2d", fold=3, step=0, num_steps=10, planned_steps=25, step_s=2.0, reason="the test"
    )
    revised = with_revisions(schedule, [shortened])
    assert expected_s(SimpleNamespace(folder=folder), revised, keys) == (25 + 10) * 2 + 40 * 3 / 4 + 7


class Clock:
    """A clock that is set by hand, and what a `Pacer` says and saves by it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.said, self.expected = 1000.0, [], []
        self.expect = self.expected.append
        monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(pace, "save_revisions", lambda run, found: with_revisions(run.schedule, found))

    def pacer(self, steps: int = 1000, before: float = 1.0) -> Pacer:
        """One fold of ``steps`` steps of a second, and nothing after it; they took ``before`` times as long in earlier calls."""
        schedule = short_schedule(make_plan(), num_folds=1, steps=steps)
        schedule = schedule.model_copy(update={"expected_validation_s": 0.0, "expected_rest_s": 0.0})
        tracker = SimpleNamespace(extend=lambda amount: None)
        run = SimpleNamespace(schedule=schedule, say=self.said.append, reporter=self, within_s=None)
        pacer = Pacer(run=run, schedule=schedule, tracker=tracker, left=[("2d", 0)], is_active=True)
        pacer.on_fold_start(FoldStart(configuration="2d", fold=0, key="", steps_done=0, num_steps=steps))
        pacer.before = before
        return pacer

    def first_revision(self, pacer: Pacer, step_s: float) -> int | None:
        """Steps done when the first of 99 steps of that length changes the number of steps."""
        for done in range(1, 100):  # nothing is asked after the last one
            self.now += step_s
            if pacer.revise(done) is not None:
                return done
        return None


@pytest.mark.parametrize(
    ("steps", "step_s", "first"),
    [
        (100, 2.0, 8),  # four steps left out, then 8 s
        (100, 2.7, 7),  # three steps at least
        (100, 20.0, 7),
        (1000, 2.0, 20),  # one stretch of 15 s counts little where 1000 are left, two do
        (100, 1.0, None),
    ],
)
def test_the_pace_is_that_of_a_few_steps_and_seconds(monkeypatch, steps: int, step_s: float, first: int | None) -> None:
    clock = Clock(monkeypatch)
    assert clock.first_revision(clock.pacer(steps), step_s) == first
    inactive = clock.pacer(steps)
    inactive.is_active = False
    assert clock.first_revision(inactive, step_s) is None


def test_where_the_steps_are_set_the_pace_tells_how_long_the_run_takes(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    pacer = clock.pacer(100, before=0.5)
    pacer.is_active = False
    pacer.schedule = pacer.schedule.model_copy(update={"expected_validation_s": 10.0, "expected_rest_s": 2.0})
    clock.first_revision(pacer, 0.5)  # each 16 steps, after four
    assert clock.expected[0] == pytest.approx(0.5 * (80 + 10 + 2))
    assert clock.expected[1] == pytest.approx(0.5 * (64 + 10 + 2))
    assert pacer.slowdown == 0.5


def test_what_predictions_take_is_measured_beside_the_steps(monkeypatch) -> None:
    """Steps that take twice as long as planned, predictions three times: they slow down half as much again."""
    clock = Clock(monkeypatch)
    pacer = clock.pacer(before=2.0)
    pacer.schedule = pacer.run.schedule = pacer.schedule.model_copy(update={"expected_validation_s": 10.0})
    assert clock.first_revision(pacer, 2.0) is not None
    pacer.predicted(30.0)
    assert pacer.caution == 1.0, "predictions of a fold that was trained before"
    pacer.on_fold_end(FoldEnd(steps_done=1000))
    pacer.predicted(30.0)
    assert pacer.caution == 1.5
    pacer.predicted(60.0)
    assert pacer.caution == 1.5


@pytest.mark.parametrize(("step_s", "is_said"), [(1.3, False), (1.4, True)])
def test_changes_of_a_quarter_are_said(monkeypatch, step_s: float, is_said: bool) -> None:
    """1000 steps of a second; a step that takes 1.3 s leaves time for 773 of them in all, one of 1.4 s for 720."""
    clock = Clock(monkeypatch)
    assert clock.first_revision(clock.pacer(before=step_s), step_s) is not None
    assert len(clock.said) == is_said

"""Candidates really train and are scored on whole cases, from round to round; nothing of it stays in the run folder."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from builders import Impatient, Job, Listening, begin, crop_images, make_phantom, said
from scipy.stats import ttest_1samp

from autoseg.data.splits import Split, make_splits
from autoseg.pipeline import run_stages
from autoseg.stages.race import compared_with, hold_race, may_race, measure_challengers, run_race
from autoseg.stages.run import Run
from autoseg.stages.trials import Bench, make_bench
from autoseg.tracking.progress import Reporter
from planners import Conditions, Entry, Measurement, Race, RacePlan, Result, plan_schedule, preferred_configurations


def measured(name: str, width: int = 4, step_s: float = 1.0) -> Measurement:
    return Measurement(
        configuration=name, base_features=width, batch_size=1, precision="float32", step_s=step_s, case_s=0.01
    )


def entry(name: str, width: int = 4, step_s: float = 1.0) -> Entry:
    return Entry(measured=measured(name, width, step_s), reason="for the test")


@pytest.fixture(scope="module")
def bench(finished: Job, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root = shutil.copytree(finished.root, tmp_path_factory.mktemp("race") / "run")
    run = replace(Run.open(root), num_threads=1, num_workers=1, reporter=Listening())
    return replace(make_bench(run, run.dataset, run.plan), ends=math.inf)


def reporting(bench: Bench, reporter: Reporter) -> Bench:
    return replace(bench, run=replace(bench.run, reporter=reporter))


@pytest.fixture
def split(bench: Bench) -> Split:
    first, *others = [case.case_id for case in bench.cases]
    return Split(train=tuple(others), val=(first,))


def race(bench: Bench, split: Split, entries: Sequence[Entry], *, ends: float = math.inf) -> Race:
    planned = RacePlan(entries=tuple(entries), num_cases=len(split.val), first_s=2.0)
    before = {path: path.stat().st_mtime_ns for path in bench.run.folder.root.rglob("*")}
    try:
        return run_race(bench, split, planned, ends=ends)
    finally:
        left = {path: path.stat().st_mtime_ns for path in bench.run.folder.root.rglob("*")}
        root = bench.run.folder.root
        assert left.keys() == before.keys()
        assert {path for path in left if left[path] != before[path]} <= {root, bench.run.folder.caches}


def test_candidates_train_for_the_same_time_and_survivors_go_on(bench: Bench, split: Split) -> None:
    split = Split(train=split.train[1:], val=(*split.val, split.train[0]))
    listening = Listening()
    entries = [entry("2d"), entry("2d", 2, 0.5), entry("2d", 6, 2.0)]
    held = race(reporting(bench, listening), split, entries)
    assert held.note == ""
    first, *last = held.rounds
    assert [each.steps for each in first.raced] == [2, 4, 1]
    assert first.cases == split.val
    assert all(len(each.dice) == 2 and each.seconds > 0 for each in first.raced)
    for held_on in last:  # whoever is better after so few steps
        assert held_on.raced[0].steps == 4
        assert held_on.raced[0].seconds > first.raced[0].seconds
    told = [line for line in listening.lines if line.startswith("Race: ")]
    assert len(told) == 2  # each challenger once


def test_a_difference_counts_patients_once_and_what_only_one_finds() -> None:
    favourite, other = (
        Result(entry=entry("2d"), steps=1, seconds=1.0, dice=dice)
        for dice in ((0.5, 0.7, 0.6, None, None), (0.6, 0.9, 0.65, 0.0, None))
    )
    found = compared_with(favourite, other, ("p", "p", "q", "r", "s"))
    expected = ttest_1samp([0.15, 0.05, -1.0], 0).confidence_interval(0.95)
    assert found.difference == pytest.approx((0.15 + 0.05 - 1.0) / 3)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert compared_with(favourite, other, ("p",) * 5).interval is None
    nothing = replace(favourite, dice=(None,) * 5)
    assert compared_with(nothing, nothing, ("p", "p", "q", "r", "s")).difference is None


def test_a_race_that_takes_too_long_keeps_only_whole_rounds(bench: Bench, split: Split) -> None:
    held = race(bench, split, [entry("2d"), entry("2d", 2)], ends=time.monotonic())
    assert held.rounds == ()
    assert "longer than it may" in held.note


def test_a_challenger_that_fails_leaves_and_a_favourite_that_fails_ends_the_race(bench: Bench, split: Split) -> None:
    listening = Listening()
    bad = entry("3d_fullres")  # what was preprocessed for it is gone
    stored = bench.run.folder.preprocessed("3d_fullres")
    away = stored.rename(stored.with_name("away")) if stored.exists() else None
    try:
        held = race(reporting(bench, listening), split, [entry("2d"), bad, entry("2d", 2)])
        assert [(each.configuration, each.base_features) for each in held.rounds[0].raced] == [("2d", 4), ("2d", 2)]
        assert "3d_fullres leaves the race" in listening.text
        ended = race(bench, split, [bad, entry("2d")])
    finally:
        if away is not None:
            away.rename(stored)
    assert (ended.rounds, ended.note) == ((), "3d_fullres could not be trained")


def test_an_interrupted_race_leaves_nothing(bench: Bench, split: Split) -> None:
    with pytest.raises(KeyboardInterrupt):
        race(reporting(bench, Impatient("Race: ")), split, [entry("2d"), entry("2d", 2)])


def conditions(bench: Bench, *measurements: Measurement) -> Conditions:
    return Conditions(
        device="cpu", num_threads=1, budget_s=600.0, elapsed_s=1.0, num_folds=4, num_training_cases=4,
        num_test_cases=0, cross_validated=True, measurements=measurements, seed=0,
    )  # fmt: skip


def test_without_enough_cases_nothing_is_measured_and_the_reason_is_kept(bench: Bench) -> None:
    known = conditions(bench, measured("3d_fullres"))
    found = hold_race(bench, known, make_splits([case.case_id for case in bench.cases]))
    assert found.measurements == known.measurements
    assert found.race == Race(note="the first fold has 1 validation case, at least 5 are needed")


def test_challengers_are_measured_at_a_modest_width(bench: Bench) -> None:
    known = conditions(bench, measured("3d_fullres"), measured("3d_fullres_vnet"), measured("3d_fullres_residual_unet"))
    found = measure_challengers(bench, known, plan_schedule(bench.plan, known))
    assert found.measurements[:3] == known.measurements
    assert [(m.configuration, m.base_features) for m in found.measurements[3:]] == [("2d", 16)]


def test_a_whole_race_from_conditions_to_a_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run holds it, but with steps that are said to be fast, and no end by the clock: it depends on no machine."""
    dataset = make_phantom(tmp_path, training=25)
    crop_images(dataset, 16)
    run = run_stages(begin(dataset, tmp_path / "run", {"budget": 100.0}), "preprocess")
    bench = replace(make_bench(run, run.dataset, run.plan), ends=math.inf)
    names = [each.name for each in preferred_configurations(run.plan)]
    # two of them get their 150 steps in the time of the race
    known = conditions(bench, *(measured(name, 2, 0.03 if name in names[:2] else 9.0) for name in names))
    known = known.model_copy(update={"budget_s": 100.0, "num_folds": 5, "num_training_cases": 25})
    monkeypatch.setattr("autoseg.stages.race.race_limit_s", lambda conditions: math.inf)
    found = hold_race(bench, known, make_splits([case.case_id for case in bench.cases]))
    assert found.race is not None
    assert found.race.note == ""
    first = found.race.rounds[0]
    assert len(first.cases) == 5
    assert first.raced[0].configuration == names[0] == "3d_fullres"
    assert [each.configuration for each in first.raced] == names[:2]
    assert all(each.steps >= 150 for each in first.raced)
    said_of = [record for record in plan_schedule(run.plan, found).decisions if record.rule == "schedule.race"]
    assert f"over 5 cases after {found.race.rounds[-1].raced[-1].steps} steps" in said_of[0].reason
    assert "Race of 3d_fullres, " in said(run)


@pytest.mark.parametrize(
    ("changes", "races"),
    [
        ({}, True),
        ({"race": False}, False),
        ({"configurations": ("2d",)}, False),
        ({"pretrained": Path("model.zip")}, False),
        ({"set": {"schedule.num_steps": "5"}}, False),
        ({"set": {"plan.2d.batch_size": "5"}}, True),
    ],
)
def test_what_the_user_chose_does_not_race(bench: Bench, changes: dict[str, object], races: bool) -> None:
    settings = bench.run.settings.model_copy(update=changes)
    assert may_race(replace(bench, run=replace(bench.run, settings=settings))) is races

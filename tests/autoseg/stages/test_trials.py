"""Trial steps and predictions of a real, small dataset give times that a budget can be planned with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from builders import Job

from autoseg.issues import AutosegError
from autoseg.stages import trials
from autoseg.stages.run import Run
from autoseg.stages.trials import (
    Bench,
    make_bench,
    measure_export,
    measure_steps,
    refine,
    settled_mean,
    stored_shapes,
    time_steps,
    try_compiling,
)
from autoseg.storage.atomic import TEMPORARY
from autoseg.training import preflight
from autoseg.training.preflight import needed_bytes
from planners import Measurement, Training, preferred_configurations, trial_training


@pytest.fixture(scope="module")
def bench(finished: Job, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root = shutil.copytree(finished.root, tmp_path_factory.mktemp("trials") / "run")
    run = Run.open(root)
    run = replace(run, settings=run.settings.model_copy(update={"budget": 120.0}), num_threads=1, num_workers=1)
    return make_bench(run, run.dataset, run.plan)


def test_everything_that_takes_time_is_measured(bench) -> None:
    measured = measure_steps(bench, preferred_configurations(bench.plan), budgeted=True, num_folds=3)
    first = [m for m in measured if m.configuration == "3d_fullres"]
    assert [m.base_features for m in first] == sorted(m.base_features for m in first)
    for m in measured:
        assert min(m.step_s, m.case_s, m.export_s) > 0
        assert m.prepare_s > 0  # there is a test case
    refined = refine(bench, measured[0], bench_training(bench, measured[0].base_features))
    assert refined.model_copy(update={"step_s": measured[0].step_s}) == measured[0]


def test_a_trial_ends_after_two_steps_where_they_are_slow(bench) -> None:
    training = bench_training(bench, 8)
    configuration = bench.plan.configuration(training.configuration)
    first, second = time_steps(bench, configuration, training, longest_s=0.0, most=1000)
    assert settled_mean([first, second]) == second


def test_nothing_is_compiled_where_the_whole_batch_does_not_fit(bench, monkeypatch) -> None:
    training = bench_training(bench, 8).model_copy(update={"num_steps": 10**6})
    measured = Measurement(
        configuration="3d_fullres", base_features=8, batch_size=2, precision="float32", step_s=0.1, case_s=0.1
    )
    monkeypatch.setattr(preflight, "free_memory_bytes", lambda: 1000)
    assert try_compiling(bench, measured, training, 5) == measured


def test_what_is_written_to_be_timed_is_removed_by_the_next_run_if_this_one_is_killed(bench, monkeypatch) -> None:
    before = set(bench.run.folder.root.iterdir())
    while_scoring: list[Path] = []
    monkeypatch.setattr(trials, "score_cases", lambda *given: while_scoring.extend(bench.run.folder.root.iterdir()))
    measure_export(bench, bench.plan.configuration("3d_fullres"))
    made = [path.name for path in while_scoring if path not in before]
    assert made
    assert all(TEMPORARY.fullmatch(name) for name in made)  # what a run that begins removes
    assert set(bench.run.folder.root.iterdir()) == before


def test_the_first_steps_do_not_count() -> None:
    assert settled_mean([9.0, 8.0, 7.0, 6.0, 1.0, 3.0, 2.0, 2.0]) == 2.0


def test_trials_last_as_the_budget_allows(bench) -> None:
    assert bench.longest_s == 2.0  # two minutes have no time for more
    assert len(stored_shapes(bench, bench.plan.configuration("3d_fullres"))) == 4


def test_a_network_too_large_for_memory_is_refused_before_it_is_tried(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "free_memory_bytes", lambda: 10_000_000)  # a machine with 10 MB
    monkeypatch.setattr(trials, "measure_precision", lambda *given: "float32")
    with pytest.raises(AutosegError) as caught:
        measure_steps(bench, preferred_configurations(bench.plan), budgeted=True, num_folds=2)
    (issue,) = caught.value.issues
    assert "GB" in issue.message
    assert "--memory-gb" in issue.fix


def test_wider_networks_take_more(bench: Bench) -> None:
    configuration = bench.plan.configuration("3d_fullres")
    needs = [needed_bytes(configuration, bench_training(bench, width), 2) for width in (8, 16, 32)]
    assert needs == sorted(set(needs))


def bench_training(bench: Bench, width: int) -> Training:
    return trial_training(
        bench.plan.configuration("3d_fullres"), base_features=width, batch_size=2, precision="float32"
    )

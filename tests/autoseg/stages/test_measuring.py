"""Trial steps and predictions of a real, small dataset give times that a budget can be planned with."""

from __future__ import annotations

from pathlib import Path

import pytest
from autoseg.pipeline.bench import Bench, make_bench
from autoseg.pipeline.case_costs import measure_export, stored_shapes
from autoseg.pipeline.measuring import measure_steps, refine, settled_mean, time_steps, try_compiling
from autoseg.pipeline.options import Options
from autoseg.pipeline.stages import preprocess_stage

from autoseg.data.phantom import make_phantom_dataset
from autoseg.pipeline import case_costs
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import TEMPORARY
from autoseg.tracking.progress import SilentReporter
from autoseg.training import preflight
from planners import Measurement, preferred_configurations, trial_training


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("measuring")
    make_phantom_dataset(folder / "Task99_Phantom", num_training=3, num_test=1, seed=2)
    options = Options(
        dataset=folder / "Task99_Phantom",
        run=RunFolder(folder / "run"),
        device_name="cpu",
        num_threads=1,
        num_workers=1,
        reporter=SilentReporter(),
        budget_s=120.0,
    )
    dataset, plan = preprocess_stage(options)
    return make_bench(options, dataset, plan)


def test_all_that_a_run_pays_for_is_measured(bench) -> None:
    measured = measure_steps(bench, preferred_configurations(bench.plan), budgeted=True, num_folds=3)
    first = [m for m in measured if m.configuration == "3d_fullres"]
    assert [m.base_features for m in first] == sorted(m.base_features for m in first)
    for m in measured:
        assert min(m.step_s, m.case_s, m.export_s) > 0
        assert m.prepare_s > 0  # there is a test case
    refined = refine(bench, measured, bench_training(bench, measured[0].base_features))
    assert [m.model_copy(update={"step_s": 1.0}) for m in refined] == [
        m.model_copy(update={"step_s": 1.0}) for m in measured
    ]


def test_a_trial_ends_after_two_steps_where_they_are_slow(bench) -> None:
    training = bench_training(bench, 8)
    configuration = bench.plan.configuration(training.configuration)
    first, second = time_steps(bench, configuration, training, longest_s=0.0, most=1000)
    assert settled_mean([first, second]) == second


def test_nothing_is_compiled_where_the_whole_batch_does_not_fit(bench, monkeypatch) -> None:
    training = bench_training(bench, 8).model_copy(update={"num_steps": 10**6})
    measured = (Measurement(
        configuration="3d_fullres", base_features=8, batch_size=2, precision="float32", step_s=0.1, case_s=0.1
    ),)  # fmt: skip
    monkeypatch.setattr(preflight, "free_memory_bytes", lambda: 1000)
    assert try_compiling(bench, measured, training, 5) == measured


def test_what_is_written_to_be_timed_is_removed_by_the_next_run_if_this_one_is_killed(bench, monkeypatch) -> None:
    before = set(bench.options.run.root.iterdir())
    while_scoring: list[Path] = []
    monkeypatch.setattr(
        case_costs, "score_cases", lambda *given: while_scoring.extend(bench.options.run.root.iterdir())
    )
    measure_export(bench, bench.plan.configuration("3d_fullres"))
    made = [path.name for path in while_scoring if path not in before]
    assert made
    assert all(TEMPORARY.fullmatch(name) for name in made)  # what a run that begins removes
    assert set(bench.options.run.root.iterdir()) == before


def test_the_first_steps_do_not_count() -> None:
    assert settled_mean([9.0, 8.0, 7.0, 6.0, 1.0, 3.0, 2.0, 2.0]) == 2.0


def test_trials_last_as_the_budget_allows(bench) -> None:
    assert bench.longest_s == 2.0  # two minutes have no time for more
    assert len(stored_shapes(bench, bench.plan.configuration("3d_fullres"))) == 3


def bench_training(bench: Bench, width: int):
    return trial_training(
        bench.plan.configuration("3d_fullres"), base_features=width, batch_size=2, precision="float32"
    )

"""Trial steps and predictions of a real, small dataset give times that a budget can be planned with."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builders import Job

from autoseg.issues import AutosegError
from autoseg.stages import trials
from autoseg.stages.run import Run
from autoseg.stages.trials import (
    TRIAL_STEPS,
    Bench,
    TriedStep,
    make_bench,
    mean_windows,
    measure_each,
    measure_export,
    measure_network,
    measure_precision,
    measure_preparation,
    measure_steps,
    median_case,
    refine,
    sampled_cases,
    settled_mean,
    stored_shapes,
    time_fitting_steps,
    time_steps,
    trial_steps,
    try_compiling,
)
from autoseg.storage.atomic import TEMPORARY
from autoseg.training import preflight
from autoseg.training.preflight import needed_bytes
from planners import (
    Configuration,
    Measurement,
    Training,
    candidate_widths,
    extrapolated,
    preferred_configurations,
    short_batch_size,
    trial_training,
)


@pytest.fixture(scope="module")
def bench(finished: Job, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root = shutil.copytree(finished.root, tmp_path_factory.mktemp("trials") / "run")
    run = Run.open(root)
    run = replace(run, settings=run.settings.model_copy(update={"budget": 120.0}), num_threads=1, num_workers=1)
    return replace(make_bench(run, run.dataset, run.plan), ends=math.inf)


def test_everything_that_takes_time_is_measured(bench) -> None:
    measured = measure_steps(bench, preferred_configurations(bench.plan)[:2], budgeted=True, num_folds=3)
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
    started = time.perf_counter()
    first, second = time_steps(bench, configuration, training, longest_s=0.0, most=1000)
    assert 0 < first + second < time.perf_counter() - started
    assert settled_mean([first, second]) == second
    assert len(time_steps(bench, configuration, training, longest_s=1e9, most=3)) == 3


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


@pytest.mark.parametrize(("budget", "longest_s"), [(150.0, 2.0), (500.0, 5.0), (5000.0, 10.0), (None, 10.0)])
def test_a_trial_takes_a_hundredth_of_the_budget_within_limits(bench, budget: float | None, longest_s: float) -> None:
    assert with_budget(bench, budget).longest_s == longest_s


@pytest.mark.parametrize(("budget", "all_s"), [(300.0, 15.0), (1200.0, 60.0), (5000.0, 60.0), (None, 60.0)])
def test_all_trials_end_after_a_twentieth_of_the_budget_or_a_minute(bench, budget: float | None, all_s: float) -> None:
    before = time.monotonic()
    limited = with_budget(bench, budget)
    assert before + all_s <= limited.ends <= time.monotonic() + all_s
    assert limited.left_s == limited.longest_s
    assert replace(limited, ends=before).left_s == 0


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 12),
        ({"schedule.num_steps": "5"}, 2),
        ({"schedule.num_steps": "100"}, 5),
        ({"schedule.2d.num_steps": "219", "schedule.num_steps": "1000"}, 11),
        ({"schedule.num_steps": "1000"}, 12),
        ({"schedule.epochs": "1"}, 12),
        ({"schedule.num_steps": "many"}, 12),  # refused later, where it is applied
    ],
)
def test_a_training_of_few_steps_is_tried_for_fewer(bench, changes: dict[str, str], steps: int) -> None:
    assert trial_steps(bench.run.settings.model_copy(update={"set": changes})) == steps


def test_a_trial_of_few_steps_is_not_repeated(bench) -> None:
    measured, training = made_measurement(1e-3), bench_training(bench, 8)
    assert refine(replace(bench, most=TRIAL_STEPS - 1), measured, training) == measured


def test_all_of_a_few_cases_are_measured(bench) -> None:
    assert len(stored_shapes(bench, bench.plan.configuration("3d_fullres"))) == 4


def test_a_network_too_large_for_memory_is_refused_before_it_is_tried(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "free_memory_bytes", lambda: 10_000_000)  # a machine with 10 MB
    monkeypatch.setattr(trials, "measure_precision", lambda *given: ("float32", None))
    with pytest.raises(AutosegError) as caught:
        measure_steps(bench, preferred_configurations(bench.plan), budgeted=True, num_folds=2)
    (issue,) = caught.value.issues
    assert "GB" in issue.message
    assert "--memory-gb" in issue.fix


def test_wider_networks_take_more(bench: Bench) -> None:
    configuration = bench.plan.configuration("3d_fullres")
    needs = [needed_bytes(configuration, bench_training(bench, width), 2) for width in (8, 16, 32)]
    assert needs == sorted(set(needs))


def with_budget(bench: Bench, budget: float | None) -> Bench:
    settings = bench.run.settings.model_copy(update={"budget": budget})
    return make_bench(replace(bench.run, settings=settings), bench.dataset, bench.plan)


def made_measurement(step_s: float) -> Measurement:
    return Measurement(
        configuration="3d_fullres", base_features=8, batch_size=2, precision="float32", step_s=step_s, case_s=0.1
    )


@pytest.mark.parametrize(
    ("budget", "step_s", "asked"),
    [
        (1000.0, 1.5, (15.0, 10)),
        (1000.0, 5.0, (15.0, 3)),  # three steps just fit
        (1000.0, 5.01, None),
        (10_000.0, 1.5, (30.0, 20)),
        (None, 1.5, (30.0, 20)),
    ],
)
def test_the_chosen_training_is_timed_again_where_three_steps_fit(
    bench, monkeypatch, budget: float | None, step_s: float, asked: tuple[float, int] | None
) -> None:
    calls: list[tuple[float, int]] = []
    found: list[float | None] = [0.7, None]

    def timed(*given: object, longest_s: float, most: int) -> float | None:
        calls.append((longest_s, most))
        return found[len(calls) - 1]

    monkeypatch.setattr(trials, "time_fitting_steps", timed)
    rich, measured = with_budget(bench, budget), made_measurement(step_s)
    refined = [refine(rich, measured, bench_training(bench, 8)).step_s for _ in range(2)]
    assert calls == ([] if asked is None else [asked] * 2)
    assert refined == ([step_s] * 2 if asked is None else [0.7, step_s])


@pytest.mark.parametrize(
    ("durations", "step_s", "compile_s"),
    [
        ([30.0, 10.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0], 2.0, 36.0),
        ([0.1, 0.1, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0], 2.0, 0.0),
    ],
)
def test_compiling_takes_what_the_first_two_steps_take_longer(
    bench, monkeypatch, durations: list[float], step_s: float, compile_s: float
) -> None:
    tried: list[Training] = []
    monkeypatch.setattr(trials, "compiling_may_pay", lambda *given: True)
    monkeypatch.setattr(trials, "time_steps", lambda b, c, training, **named: tried.append(training) or durations)
    measured = try_compiling(bench, made_measurement(9.0), bench_training(bench, 8), 2)
    assert (measured.step_s, measured.compiled_step_s, measured.compile_s) == (9.0, step_s, compile_s)
    assert [training.compiled for training in tried] == [True]
    monkeypatch.setattr(trials, "compiling_may_pay", lambda *given: False)
    assert try_compiling(bench, made_measurement(9.0), bench_training(bench, 8), 2) == made_measurement(9.0)


def test_on_a_gpu_steps_are_timed_alike_with_and_without_compiling(bench, monkeypatch) -> None:
    tried: list[tuple[bool, int]] = []

    def timed(
        bench: Bench, configuration: Configuration, training: Training, *, longest_s: float, most: int
    ) -> list[float]:
        tried.append((training.compiled, most))
        return [2.0 if training.compiled else 3.0] * most

    monkeypatch.setattr(type(bench.run), "device", torch.device("cuda"))
    monkeypatch.setattr(trials, "compiling_may_pay", lambda *given: True)
    monkeypatch.setattr(trials, "time_steps", timed)
    measured = try_compiling(bench, made_measurement(9.0), bench_training(bench, 8), 2)
    assert (measured.step_s, measured.compiled_step_s, measured.compile_s) == (3.0, 2.0, 0.0)
    assert tried == [(True, 40), (False, 40)]


@pytest.mark.parametrize(
    ("device", "short", "seconds", "chosen", "timed"),
    [
        ("cpu", "bfloat16", {"bfloat16": 0.1, "float32": 0.2}, "bfloat16", 2),
        ("cpu", "bfloat16", {"bfloat16": 1 / 3, "float32": 0.8 / 3}, "float32", 2),
        ("cpu", "bfloat16", {"bfloat16": 1 / 3, "float32": 0.8 / 3 + 1e-6}, "bfloat16", 2),
        ("cpu", "bfloat16", {"bfloat16": 0.34, "float32": 0.2}, "bfloat16", 1),  # too slow to try both
        ("cpu", "float32", {}, "float32", 0),
        ("cuda", "bfloat16", {}, "bfloat16", 0),
    ],
)
def test_short_precision_is_chosen_unless_float32_is_much_faster(
    bench, monkeypatch, device: str, short: str, seconds: dict[str, float], chosen: str, timed: int
) -> None:
    """Of narrow networks, where two trials fit into six times a step."""
    tried: list[Training] = []

    def times(b: Bench, configuration: object, training: Training, *, longest_s: float) -> float:
        tried.append(training)
        return seconds[training.precision]

    monkeypatch.setattr(trials, "fast_precision", lambda device: short)
    monkeypatch.setattr(trials, "time_fitting_steps", times)
    on_device = replace(bench, run=replace(bench.run, device_name=device))
    configuration = bench.plan.configuration("3d_fullres")
    precision, step = measure_precision(on_device, configuration)
    assert precision == chosen
    if timed:
        assert step is not None
        assert (step.training.precision, step.step_s) == (chosen, seconds[chosen])
    assert len(tried) == timed
    assert all(training.base_features == min(candidate_widths(configuration)) for training in tried)


@pytest.fixture
def made_times(bench, monkeypatch) -> list[tuple[str, int, int, bool]]:
    """Steps of a sixteenth of a second at width 8, and slower in proportion; configuration, width, batch and ``whole`` of each."""
    calls: list[tuple[str, int, int, bool]] = []

    def timed(b: Bench, configuration: object, training: Training, *, longest_s: float, whole: bool) -> float:
        calls.append((training.configuration, training.base_features, training.batch_size, whole))
        return training.base_features / 128

    monkeypatch.setattr(trials, "time_fitting_steps", timed)
    monkeypatch.setattr(trials, "measure_network", lambda *given: 1.0)
    monkeypatch.setattr(trials, "measure_export", lambda *given: 2.0)
    monkeypatch.setattr(trials, "measure_preparation", lambda *given: 3.0)
    return calls


def steps_from(configuration: Configuration, width: int, wider: int) -> float:
    """What is expected of a ``wider`` network once ``width`` was timed by `made_times`."""
    known = made_measurement(width / 128).model_copy(update={"base_features": width})
    return extrapolated(known, configuration, configuration, base_features=wider, batch_size=known.batch_size).step_s


def test_wider_networks_are_timed_while_two_steps_of_the_next_one_fit(bench, monkeypatch, made_times) -> None:
    both = [bench.plan.configuration(name) for name in ("3d_fullres", "2d")]
    widths = sorted(candidate_widths(both[0]))
    assert len(widths) > 2
    patient = replace(bench, longest_s=2.4 * steps_from(both[0], widths[1], widths[2]))  # the third one fits just so
    monkeypatch.setattr(trials, "wants_more_candidates", lambda *given, **named: False)
    found = measure_steps(patient, both, budgeted=True, num_folds=2, precision="float32")
    batch_size = short_batch_size(both[0], "cpu")
    assert made_times == [("3d_fullres", width, batch_size, k > 0) for k, width in enumerate(widths[:3])]
    assert {(m.case_s, m.export_s, m.prepare_s) for m in found} == {(1.0, 2.0, 3.0)}
    monkeypatch.setattr(trials, "wants_more_candidates", lambda *given, **named: True)
    measure_steps(patient, both, budgeted=True, num_folds=2, precision="float32")
    assert {name for name, *_ in made_times[3:]} == {"3d_fullres", "2d"}


def test_networks_that_there_is_no_time_to_time_follow_from_narrower_ones(bench, monkeypatch, made_times) -> None:
    configuration = bench.plan.configuration("3d_fullres")
    first, *others = sorted(candidate_widths(configuration))
    hasty = replace(bench, longest_s=2 * first / 128)  # the next one takes more than a step
    found = measure_steps(hasty, [configuration], budgeted=True, num_folds=2, precision="float32")
    assert len(made_times) == 1
    assert [m.base_features for m in found] == [first, *others]
    assert [m.extrapolated for m in found] == [False, *[True] * len(others)]
    assert [m.step_s for m in found] == sorted({m.step_s for m in found})
    assert [m.case_s for m in found] == sorted({m.case_s for m in found})
    monkeypatch.setattr(preflight, "free_memory_bytes", lambda: 0)
    monkeypatch.setattr(trials, "time_fitting_steps", lambda *given, whole, **named: None if whole else first / 128)
    alone = measure_steps(hasty, [configuration], budgeted=True, num_folds=2, precision="float32")
    assert [m.base_features for m in alone] == [first]


@pytest.mark.parametrize(("spare", "timed"), [(1e-6, ["2d"]), (-1e-6, [])])
def test_a_further_configuration_follows_from_one_that_was_timed_where_two_steps_do_not_fit(
    bench, monkeypatch, made_times, spare: float, timed: list[str]
) -> None:
    both = [bench.plan.configuration(name) for name in ("3d_fullres", "2d")]
    first, flat = (min(candidate_widths(configuration)) for configuration in both)
    known = [made_measurement(first / 128).model_copy(update={"base_features": first, "export_s": 2.0})]
    batch_size = short_batch_size(both[1], "cpu")
    expected = extrapolated(
        known[0],
        both[0],
        both[1],
        base_features=flat,
        batch_size=batch_size,
        windows=mean_windows(bench, both[1]) / mean_windows(bench, both[0]),
    )
    assert (expected.export_s, expected.batch_size, expected.extrapolated) == (2.0, batch_size, True)
    hasty = replace(bench, longest_s=2.4 * expected.step_s + spare)
    found = measure_steps(hasty, both[1:], budgeted=True, num_folds=2, precision="float32", known=known)
    assert [name for name, *_ in made_times] == timed
    assert found[0].extrapolated is not bool(timed)
    assert timed or found[0] == expected
    monkeypatch.setattr(preflight, "free_memory_bytes", lambda: 0)  # what does not fit is tried, and fails as it should
    monkeypatch.setattr(trials, "time_fitting_steps", lambda *given, **named: None)
    with pytest.raises(AutosegError):
        measure_steps(hasty, both[1:], budgeted=True, num_folds=2, precision="float32", known=known)


@pytest.mark.parametrize(("spare", "again"), [(1e-6, True), (-1e-6, False)])
def test_the_trial_of_the_precision_counts_where_two_more_steps_do_not_fit(
    bench, monkeypatch, made_times, spare: float, again: bool
) -> None:
    configuration = bench.plan.configuration("3d_fullres")
    narrow = min(candidate_widths(configuration))
    training = trial_training(configuration, base_features=narrow, batch_size=2, precision="float32")
    monkeypatch.setattr(trials, "measure_precision", lambda *given: ("float32", TriedStep(training, 0.5)))
    hasty = replace(bench, longest_s=1.2 + spare)
    found = measure_steps(hasty, [configuration], budgeted=True, num_folds=2)
    assert [made_times[0][1]] == [narrow] if again else made_times == []
    assert found[0].step_s == (narrow / 128 if again else 0.5)


def test_without_a_budget_only_the_plans_own_networks_are_timed(bench, monkeypatch, made_times) -> None:
    monkeypatch.setattr(trials, "measure_precision", lambda *given: pytest.fail("nothing to choose"))
    both = [bench.plan.configuration(name) for name in ("3d_fullres", "2d")]
    measure_each(bench, both, budgeted=False, num_folds=2, precision="float32")
    assert made_times == [(c.name, c.network.features[0], c.batch_size, False) for c in both]
    made_times.clear()
    fine_tuned = replace(bench.run, settings=bench.run.settings.model_copy(update={"pretrained": Path("model")}))
    measure_steps(replace(bench, run=fine_tuned), both[:1], budgeted=True, num_folds=2, precision="float32")
    assert [width for _, width, *_ in made_times] == [both[0].network.features[0]]


@pytest.mark.parametrize(
    ("most", "whole", "expected", "sizes"),
    [(2, True, 2.0, [2]), (1, False, 2.0, [2, 1]), (1, True, None, [2]), (0, False, None, [2, 1])],
)
def test_as_much_of_a_batch_is_timed_as_fits(
    bench, monkeypatch, most: int, whole: bool, expected: float | None, sizes: list[int]
) -> None:
    tried: list[int] = []

    def greedy(*given: object, micro_batch_size: int, **named: object) -> list[float]:
        tried.append(micro_batch_size)
        if micro_batch_size > most:
            raise torch.OutOfMemoryError
        return [5.0, 2.0]

    monkeypatch.setattr(trials, "time_steps", greedy)
    configuration, training = bench.plan.configuration("3d_fullres"), bench_training(bench, 8)
    assert time_fitting_steps(bench, configuration, training, longest_s=1.0, whole=whole) == expected
    assert tried == sizes


@pytest.mark.parametrize(("first", "others", "per_window"), [(0.45, (1.0, 5.0, 3.0), 3.0), (0.5, (), 0.5)])
def test_a_network_takes_the_median_time_of_its_windows(
    bench, monkeypatch, first: float, others: tuple[float, ...], per_window: float
) -> None:
    """Of three more, where they are done in less than a quarter of a trial (2 s)."""
    times = iter([first, *others])
    monkeypatch.setattr(trials, "seconds", lambda action: next(times))
    monkeypatch.setattr(trials, "count_windows", lambda shape, patch: 4)
    found = measure_network(bench, bench.plan.configuration("3d_fullres"), bench_training(bench, 8))
    assert found == per_window * 4
    assert not list(times)


@pytest.mark.parametrize(("scores", "expected"), [(10**12, 7.0), (1, 8.0)])
def test_export_is_timed_on_some_of_the_scores(bench, monkeypatch, scores: int, expected: float) -> None:
    """Two seconds for all three outputs, or for two of them, and five for the rest."""
    assert bench.plan.configuration("3d_fullres").network.num_outputs == 3
    times = iter([2.0, 5.0])
    monkeypatch.setattr(trials, "TIMED_SCORES", scores)
    monkeypatch.setattr(trials, "seconds", lambda action: next(times))
    assert measure_export(bench, bench.plan.configuration("3d_fullres")) == expected


def test_nothing_is_prepared_where_there_are_no_test_images(bench) -> None:
    untested = replace(bench, dataset=bench.dataset.model_copy(update={"test": ()}))
    assert measure_preparation(untested, bench.plan.configuration("3d_fullres")) == 0.0


@pytest.mark.parametrize(("number", "sampled"), [(4, 4), (25, 25), (26, 13), (51, 17)])
def test_at_most_25_cases_stand_for_all(bench, number: int, sampled: int) -> None:
    cases = (bench.dataset.training * 20)[:number]
    many = replace(bench, dataset=bench.dataset.model_copy(update={"training": cases}))
    assert len(sampled_cases(many)) == sampled


def test_the_median_case_is_that_of_median_size(bench, monkeypatch) -> None:
    shapes = [(3, 1, 3), (1, 1, 1), (1, 5, 1), (1, 1, 5)]
    monkeypatch.setattr(trials, "stored_shapes", lambda *given: shapes)
    assert median_case(bench, bench.plan.configuration("3d_fullres")) == bench.dataset.training[3]


def bench_training(bench: Bench, width: int) -> Training:
    return trial_training(
        bench.plan.configuration("3d_fullres"), base_features=width, batch_size=2, precision="float32"
    )


@pytest.mark.parametrize(("num_workers", "readers", "queued"), [(12, 10, 10), (3, 2, 8), (1, 1, 4)])
def test_steps_are_timed_once_the_queue_of_the_readers_is_empty(
    bench, monkeypatch, num_workers: int, readers: int, queued: int
) -> None:
    """A step takes 0.1 s; a batch that was read while the first one took 9 s comes at once, and each later one after 0.4 s."""
    clock, asked = [0.0], []

    def load(source, steps: range, *, num_workers: int, device):
        asked.append((num_workers, len(steps)))
        for step in steps:
            clock[0] += 0.0 if step <= 4 + queued - 1 else 0.4
            yield [step]

    def step(*given, **named) -> None:
        clock[0] += 0.1 if clock[0] else 9.0

    for name, fake in [("load_crops", load), ("train_step", step), ("finish", lambda *given: (None, None))]:
        monkeypatch.setattr(trials, name, fake)
    monkeypatch.setattr(trials, "num_readers", lambda *given, **named: num_workers)
    monkeypatch.setattr(trials, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    configuration = bench.plan.configuration("3d_fullres")
    durations = time_steps(bench, configuration, bench_training(bench, 8), longest_s=1e9)
    timed = -(-8 // readers) * readers
    assert asked == [(readers, 4 + queued + timed)]
    assert durations == pytest.approx([9.0, 0.1, 0.1, 0.1, *[0.5] * timed])
    assert settled_mean(durations) == pytest.approx(0.5)


def test_processes_read_beside_trial_steps_and_end_with_them(bench, monkeypatch) -> None:
    others, readers = set(active_children()), set()

    def step(*given, **named) -> int:
        readers.update(set(active_children()) - others)
        return len(readers)

    monkeypatch.setattr(trials, "num_readers", lambda *given, **named: 1)
    monkeypatch.setattr(trials, "train_step", step)
    configuration = bench.plan.configuration("3d_fullres")
    assert len(time_steps(bench, configuration, bench_training(bench, 8), longest_s=1e9, most=5)) == 5
    assert len(readers) == 1
    assert readers.isdisjoint(active_children())

"""Race: candidates train for the same short time on the first fold and are scored on whole cases; `planners` decides."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoseg.compute.executor import stop_requests
from autoseg.data.splits import Split, Splits
from autoseg.evaluation.scoring import score_cases
from autoseg.evaluation.selection import paired_gain
from autoseg.evaluation.table import case_ranks
from autoseg.inference.model import Member, Model, load_network
from autoseg.inference.predict import predict_stored
from autoseg.inference.predictions import prediction_path
from autoseg.inference.predictor import StoredImage
from autoseg.issues import AutosegError
from autoseg.networks.weights import Transfer, read_weights
from autoseg.preprocessing.store import open_case
from autoseg.settings import changes_of
from autoseg.stages.folds import units_of
from autoseg.stages.preprocess import preprocess_configurations
from autoseg.stages.train import readers
from autoseg.stages.trials import Bench, for_one_more, measure_beside
from autoseg.storage.atomic import temporary_folder
from autoseg.tracking.callbacks import Callback, StepRecord
from autoseg.tracking.progress import Tracker
from autoseg.training.fold import FINAL_FILE, train_fold
from autoseg.training.fold_spec import FoldSpec
from autoseg.training.preflight import kept_heap_for
from autoseg.wording import count_noun
from planners import (
    Conditions,
    Entry,
    Race,
    RacePlan,
    Result,
    Round,
    Schedule,
    Training,
    budgeted_training,
    challengers,
    describe_round,
    judge,
    mirroring_decision,
    plan_race,
    plan_schedule,
    race_limit_s,
    race_s,
    survivors,
    why_no_race,
)


class _LateError(Exception):
    """The race has taken all the time that it may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """Where and on what a race is held."""

    bench: Bench
    folder: Path
    """For weights and predictions; removed after the race."""
    split: Split
    case_ids: tuple[str, ...]
    """That are predicted."""
    units: tuple[str, ...]
    """The patient of each of them, or the case itself."""
    ends: float
    """By the monotonic clock."""
    tracker: Tracker


@dataclass(frozen=True, slots=True)
class _Watch(Callback):
    """Shows the steps of a race, and ends it when it takes too long."""

    course: _Course

    def on_step(self, step: StepRecord) -> None:
        """Raises `_LateError` after the race's end."""
        self.course.tracker.advance(note=f"loss {step.loss:.2f}")
        if time.monotonic() > self.course.ends:
            raise _LateError


def may_race(bench: Bench) -> bool:
    """Whether the user left the choice of networks to the rules: nothing of the schedule is given, and no pretrained network."""
    settings = bench.run.settings
    return settings.race and not (settings.configurations or settings.pretrained or changes_of(settings, "schedule"))


def hold_race(bench: Bench, conditions: Conditions, splits: Splits) -> Conditions:
    """``conditions`` with what was measured for a race and what it found, or why none was held.

    Weights and predictions are in a folder of the run that is removed at the end. An interrupted race starts again.
    """
    run, plan, split, started = bench.run, bench.plan, splits.folds[0], time.monotonic()
    schedule = plan_schedule(plan, conditions)
    if note := why_no_race(plan, conditions, schedule, num_cases=len(split.val)):
        return conditions.model_copy(update={"race": Race(note=note)})
    timed = measure_challengers(bench, conditions, schedule)
    left_s = race_s(conditions) - (time.monotonic() - started)
    planned = plan_race(plan, timed, schedule, num_cases=len(split.val), left_s=left_s)
    if isinstance(planned, str):
        return timed.model_copy(update={"race": Race(note=planned)})
    names = ", ".join(name_of(entry, planned) for entry in planned.entries)
    run.say(f"Race of {names} on {count_noun(planned.num_cases, 'case')} of the first fold")
    race = run_race(bench, split, planned, ends=started + race_limit_s(conditions))
    if (won := race.winner) is not None:
        run.say(f"Race: {won.configuration} takes the place of the rule's choice")
        timed = measure_beside(for_one_more(bench), timed, [won.configuration])
    return timed.model_copy(update={"race": race, "elapsed_s": run.elapsed_s})


def name_of(entry: Entry, planned: RacePlan) -> str:
    """Its configuration, with the width where that sets it apart."""
    width, usual = entry.measured.base_features, planned.entries[0].measured.base_features
    return entry.name if width == usual else f"{entry.name} with {width} features"


def measure_challengers(bench: Bench, conditions: Conditions, schedule: Schedule) -> Conditions:
    """``conditions`` with a measurement of each challenger that has none, its data preprocessed."""
    plan, known = bench.plan, {m.configuration for m in conditions.measurements}
    names = challengers(plan, conditions, schedule.trainings[0].configuration)
    missing = [name for name in names if name not in known]
    if missing:
        preprocess_configurations(bench.run, plan, [plan.configuration(name) for name in missing])
    for name in missing:
        conditions = measure_beside(for_one_more(bench), conditions, [name], modest=not bench.run.follows_method)
    return conditions


def run_race(bench: Bench, split: Split, planned: RacePlan, *, ends: float) -> Race:
    """The race, in a folder that is removed afterwards; over at the latest when the monotonic clock says ``ends``."""
    run, every = bench.run, -(-len(split.val) // planned.num_cases)
    with (
        temporary_folder(run.folder.root / "race") as folder,
        run.reporter.track("Race", planned.expected_steps) as tracker,
    ):
        case_ids = split.val[::every]
        course = _Course(
            bench=bench,
            folder=folder,
            split=split,
            case_ids=case_ids,
            units=units_of(run.settings, bench.dataset, case_ids),
            ends=ends,
            tracker=tracker,
        )
        return _rounds(course, planned)


def _rounds(course: _Course, planned: RacePlan) -> Race:
    """All rounds, each told when it ends; those before the race has taken too long."""
    rounds: list[Round] = []
    run, entries = course.bench.run, planned.entries
    before: dict[Entry, Result] = {}
    while entries:
        results: list[Result] = []
        for entry in entries:
            try:
                result = take_part(course, entry, planned.round_s(len(rounds)), before.get(entry), number=len(rounds))
            except _LateError:
                return Race(rounds=tuple(rounds), note="it took longer than it may, as the machine became slower")
            except AutosegError as error:
                if entry is entries[0]:
                    return Race(rounds=tuple(rounds), note=f"{entry.name} could not be trained")
                run.say(f"{entry.name} leaves the race: {error}")
                continue
            before[entry] = result
            results.append(result)
        compared = [compared_with(results[0], each, course.units) for each in results[1:]]
        rounds.append(judge(course.case_ids, [results[0], *compared]))
        for sentence in describe_round(rounds[-1]):
            run.say(f"Race: {sentence}")
        entries = survivors(entries, rounds[-1])
    return Race(rounds=tuple(rounds))


def compared_with(favourite: Result, result: Result, units: Sequence[str]) -> Result:
    """``result`` with what it gains over the favourite."""
    before, after = (np.array(each.dice, np.float64)[:, None] for each in (favourite, result))
    found = paired_gain(before, after, units)
    if found is None:
        return result
    interval = None if found.low is None or found.high is None else (found.low, found.high)
    return replace(result, difference=found.mean, interval=interval, wilcoxon_p=found.wilcoxon_p)


def take_part(course: _Course, entry: Entry, seconds: float, before: Result | None, *, number: int) -> Result:
    """Train a candidate for so many seconds at its measured pace, from its weights of the round ``before``, and score it."""
    run, plan = course.bench.run, course.bench.plan
    configuration = plan.configuration(entry.name)
    stored = run.folder.preprocessed(configuration.data)
    place = course.folder / f"{entry.name}-{entry.measured.base_features}"
    mirroring = mirroring_decision(plan, configuration).value and run.settings.mirroring
    training = budgeted_training(configuration, entry.measured, entry.steps(seconds), mirroring=mirroring)
    training = training.model_copy(update={"validation_batches": 0})
    start = None if before is None else Transfer(weights=read_weights(place / str(number - 1) / FINAL_FILE), notes=())
    num_workers, most_workers = readers(run, configuration, training)
    spec = FoldSpec(
        plan=plan,
        configuration=configuration,
        training=training,
        fold=0,
        seed=run.settings.seed + number,  # other patches than in the round before
        training_cases=[open_case(stored, case_id) for case_id in course.split.train],
        validation_cases=(),
        folder=place / str(number),
        key=f"race {number}",
        device=run.device,
        num_workers=num_workers,
        most_workers=most_workers,
        case_ids=course.split.train,
        start=start,
    )
    started = time.monotonic()
    with stop_requests(run.say) as should_stop, kept_heap_for(configuration, training, run.device):
        train_fold(spec, (_Watch(course),), should_stop=should_stop)
    took = time.monotonic() - started
    return Result(
        entry=entry,
        steps=training.num_steps + (0 if before is None else before.steps),
        seconds=took + (0.0 if before is None else before.seconds),
        dice=score(course, training, spec.folder),
    )


def score(course: _Course, training: Training, folder: Path) -> tuple[float | None, ...]:
    """Mean Dice over classes of each case of the race, by the weights in ``folder``; none where a case has no score."""
    run, plan, dataset = course.bench.run, course.bench.plan, course.bench.dataset
    configuration = plan.configuration(training.configuration)
    network = load_network(folder / FINAL_FILE, configuration, training, device=run.device)
    member = Member(configuration=configuration, training=training, networks=(network,))
    model = Model(dataset=dataset, plan=plan, members=(member,), device=run.device, key="race")
    stored, out = run.folder.preprocessed(configuration.data), folder / "validation"
    images = [StoredImage(folder=stored, case_id=case_id) for case_id in course.case_ids]
    with run.reporter.track(f"Scoring {configuration.name} in the race", len(images)) as tracker:
        predict_stored(model, images, out, keep_probabilities=False, tracker=tracker, say=run.say)
    paths = [(case_id, prediction_path(out, case_id, dataset)) for case_id in course.case_ids]
    dice = case_ranks(score_cases(dataset, paths, num_workers=run.num_workers)).dropna()
    return tuple(float(dice[case_id]) if case_id in dice.index else None for case_id in course.case_ids)

"""A race: candidates train for the same short time on one fold, and the best of them may replace the rule's favourite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planners.decision import Decision, DecisionRecord, counted
from planners.plan import Plan
from planners.schedule.candidates import little_time_configurations, mirrored_configurations, preferred_configurations
from planners.schedule.cost import (
    ENOUGH_STEPS,
    FEWEST_STEPS,
    affordable_steps,
    follows_method,
    measurement_of,
    measurements_of,
    modest_of,
    usable_s,
    with_mirroring,
)
from planners.schedule.documents import Conditions, Measurement, Raced, Round, Schedule

PLANNED_SHARE, MOST_SHARE = 0.12, 0.15
"""Of the time that is left: what a race is planned to take, and what ends it on a machine that got slower."""
METHOD_RACE_S = 1800.0
"""Before nnU-Net's own schedule, which takes hours or days."""
FEWEST_CASES, MOST_CASES = 5, 24
"""Validation cases of the first fold: an interval of fewer is so wide that no challenger could win; of more, some stand for all."""
PREDICTING_SHARE = 1 / 3
"""Of a race: fewer cases are predicted where more would take longer."""
LEAST_HORIZON = 0.1
"""Share of a fold's training that the last round must have reached. After less of it narrow and 2D networks look better than
they end (docs/decisions/0206)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A candidate."""

    measured: Measurement
    """Its width, and what a step of it takes."""
    reason: str

    @property
    def name(self) -> str:
        """Configuration."""
        return self.measured.configuration

    def steps(self, seconds: float) -> int:
        """Steps that it makes in so many seconds."""
        return max(1, math.floor(seconds / self.measured.step_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class RacePlan:
    """Who races for how long."""

    entries: tuple[Entry, ...]
    """The favourite first."""
    num_cases: int
    first_s: float
    """Training time of each in the first round. Every later round doubles what they have trained in all."""

    def round_s(self, number: int) -> float:
        """Training time of each in a round (0-based)."""
        return self.first_s * share_of_round(number)

    @property
    def expected_steps(self) -> int:
        """Of all rounds, if those survive that make the most."""
        sizes = round_sizes(len(self.entries))
        steps = [
            sorted((entry.steps(self.round_s(r)) for entry in self.entries), reverse=True) for r in range(len(sizes))
        ]
        return sum(sum(each[:size]) for each, size in zip(steps, sizes, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a candidate has reached by the end of a round."""

    entry: Entry
    steps: int
    seconds: float
    dice: tuple[float | None, ...]
    difference: float | None = None
    """Mean over cases of its Dice less the favourite's; none for the favourite, and where no case is scored."""
    interval: tuple[float, float] | None = None
    """Of the difference: 95 %, paired; none where too few cases are scored."""
    wilcoxon_p: float | None = None
    """Of the signed-rank test of the same differences; none where too few cases differ."""


def share_of_round(number: int) -> int:
    """Training time of a round (0-based) in units of the first: 1, 1, 2, 4 …, so that each doubles the whole."""
    return 1 << max(0, number - 1)


def round_sizes(candidates: int) -> list[int]:
    """Candidates in each round: the worse half is dropped until two are left."""
    sizes = [candidates]
    while sizes[-1] > 2:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def race_s(conditions: Conditions) -> float:
    """What a race may be planned to take."""
    return METHOD_RACE_S if follows_method(conditions) else PLANNED_SHARE * usable_s(conditions)


def race_limit_s(conditions: Conditions) -> float:
    """What a race may take at most."""
    return race_s(conditions) * MOST_SHARE / PLANNED_SHARE


def why_no_race(plan: Plan, conditions: Conditions, schedule: Schedule, *, num_cases: int) -> str | None:
    """Why a race would say nothing, before anything else is measured; None if it may say something."""
    favourite = schedule.trainings[0].configuration
    if num_cases < FEWEST_CASES:
        found = "no validation case" if not num_cases else counted(num_cases, "validation case")
        return f"the first fold has {found}, at least {FEWEST_CASES} are needed"
    if plan.configuration(favourite).previous_stage is not None:
        return f"{favourite} depends on the stage before it"
    if not challengers(plan, conditions, favourite) and len(_entries(plan, conditions, schedule)) < 2:
        return f"the plan has nothing beside {favourite}, and no other width comes close"
    own = _width_of_race(plan, conditions, favourite)
    if (steps := math.floor(race_s(conditions) / 2 / own.step_s)) < FEWEST_STEPS:
        return _too_short(favourite, steps)
    return None


def _too_short(name: str, steps: int) -> str:
    return f"the time is enough for {counted(steps, 'step')} of {name} in a round, at least {FEWEST_STEPS} are needed"


def challengers(plan: Plan, conditions: Conditions, favourite: str) -> dict[str, str]:
    """Configurations that may replace the favourite, each with its reason.

    Before nnU-Net's schedule only other networks for the same images: 2D and the low resolution are trained there anyway.
    """
    own = plan.configuration(favourite)
    reasons: dict[str, str] = {}
    low = [each for each in plan.configurations if each.next_stage is not None]
    little = [each for each in little_time_configurations(plan) if measurements_of(conditions, each.name)]
    for each in (*preferred_configurations(plan), *low, *little):
        if each.name == favourite or each.previous_stage is not None:
            continue
        if follows_method(conditions) and each.data != own.data:
            continue
        if each.dimensions != own.dimensions:
            reasons[each.name] = f"{each.dimensions}D slices or volumes: other steps in the same time"
        elif each.data != own.data:
            reasons[each.name] = "coarser voxels: a patch sees more of a case"
        elif each.network.family != own.network.family:
            reasons[each.name] = f"another network: {each.network.family}"
        else:
            reasons[each.name] = "another patch: other steps in the same time"
    return reasons


def _width_of_race(plan: Plan, conditions: Conditions, name: str) -> Measurement:
    """All race at a modest width, at their own before nnU-Net's schedule: narrow ones look better after a short time."""
    if follows_method(conditions):
        own = measurement_of(conditions, name, plan.configuration(name).network.features[0])
        if own is not None:
            return own
    return modest_of(conditions, name)


def plan_race(
    plan: Plan, conditions: Conditions, schedule: Schedule, *, num_cases: int, left_s: float
) -> RacePlan | str:
    """Who races for how long in ``left_s`` seconds, or why nobody does.

    Candidates that were not measured take no part. The slowest challengers are left out until each gets `FEWEST_STEPS` steps in
    the first round.
    """
    mirrored = with_mirroring(conditions, mirrored_configurations(plan))
    entries = _entries(plan, mirrored, schedule)
    while len(entries) > 1:
        race = _timed(entries, num_cases=num_cases, left_s=left_s)
        slow = [entry for entry in entries if entry.steps(race.first_s) < FEWEST_STEPS]
        if not slow and race.num_cases >= FEWEST_CASES:
            return _with_horizon(race, mirrored, schedule)
        slowest = max(entries[1:], key=lambda entry: entry.measured.step_s)
        entries = tuple(entry for entry in entries if entry is not slowest)
    return f"the time is not enough for {FEWEST_STEPS} steps each of two candidates and predictions of {FEWEST_CASES} cases"


def _entries(plan: Plan, conditions: Conditions, schedule: Schedule) -> tuple[Entry, ...]:
    """The favourite, measured challengers, and the favourite's next width where the rule could almost take it."""
    training = schedule.trainings[0]
    name = training.configuration
    own = _width_of_race(plan, conditions, name)
    entries = [Entry(measured=own, reason="the rule's choice")]
    for other, reason in challengers(plan, conditions, name).items():
        if measurements_of(conditions, other):
            entries.append(Entry(measured=_width_of_race(plan, conditions, other), reason=reason))
    if not follows_method(conditions) and training.base_features == own.base_features:
        wider = [m for m in measurements_of(conditions, name) if m.base_features > own.base_features]
        share_s = usable_s(conditions) / len(schedule.trainings)
        steps = affordable_steps(wider[-1], conditions, share_s, schedule.num_folds) if wider else 0
        if steps >= ENOUGH_STEPS / 2:
            reason = f"{wider[-1].base_features} features get {steps} steps a fold, less than {ENOUGH_STEPS}"
            entries.append(Entry(measured=wider[-1], reason=reason))
    return tuple(entries)


def _timed(entries: tuple[Entry, ...], *, num_cases: int, left_s: float) -> RacePlan:
    """The time of the first round, after predictions are paid for."""
    sizes = round_sizes(len(entries))
    case_s = max(entry.measured.case_s + entry.measured.export_s for entry in entries) * sum(sizes)
    cases = min(num_cases, MOST_CASES, math.floor(PREDICTING_SHARE * left_s / case_s))
    parts = sum(size * share_of_round(number) for number, size in enumerate(sizes))
    return RacePlan(entries=entries, num_cases=cases, first_s=max(0.0, left_s - cases * case_s) / parts)


def _with_horizon(race: RacePlan, conditions: Conditions, schedule: Schedule) -> RacePlan | str:
    """The race, unless it ends long before a training would."""
    if follows_method(conditions):
        return race
    reached = sum(race.round_s(number) for number in range(len(round_sizes(len(race.entries)))))
    whole = schedule.expected_training_s / len(schedule.trainings) / schedule.num_folds
    if reached < LEAST_HORIZON * whole:
        return (
            f"its last round would reach {reached / whole:.0%} of a training, at least {LEAST_HORIZON:.0%} are needed to "
            "compare candidates"
        )
    return race


# --- what the rounds say ---


def judge(cases: Sequence[str], results: Sequence[Result]) -> Round:
    """The round with its verdicts; the first of ``results`` is the favourite's.

    Of more than two candidates the worse half is dropped, and every challenger that lost for certain. Of two, or where no
    challenger would be left, the round is the last: a challenger wins only if the interval lies above zero.
    """
    favourite, *others = results
    kept = _kept(others)
    raced = [_raced(favourite, "favourite")]
    for each in others:
        if len(results) > 2:
            verdict = "goes on" if each.entry in kept else "dropped"
        else:
            verdict = "won" if each.interval is not None and each.interval[0] > 0 else "lost"
        raced.append(_raced(each, verdict))
    return Round(cases=tuple(cases), raced=tuple(raced))


def _kept(others: Sequence[Result]) -> list[Entry]:
    """Challengers of the better half, the favourite counted in, that may still win."""
    may_win = [
        (each.difference, each.entry)
        for each in others
        if each.difference is not None and not (each.interval and each.interval[1] < 0)
    ]
    ranked = sorted(may_win, key=lambda pair: -pair[0])
    return [entry for _, entry in ranked[: -(-(len(others) + 1) // 2) - 1]]


def _raced(result: Result, verdict: str) -> Raced:
    return Raced(
        configuration=result.entry.name,
        base_features=result.entry.measured.base_features,
        reason=result.entry.reason,
        steps=result.steps,
        seconds=result.seconds,
        dice=result.dice,
        difference=result.difference,
        interval=result.interval,
        wilcoxon_p=result.wilcoxon_p,
        verdict=verdict,  # type: ignore[arg-type]
    )


def survivors(entries: Sequence[Entry], held: Round) -> tuple[Entry, ...]:
    """Who trains in the next round: the favourite and those that go on; nobody after the last round."""
    going = {(r.configuration, r.base_features) for r in held.raced if r.verdict == "goes on"}
    left = [entry for entry in entries[1:] if (entry.name, entry.measured.base_features) in going]
    return (entries[0], *left) if left else ()


def describe_round(held: Round) -> list[str]:
    """A sentence for each challenger that does not go on: ``2d lost to 3d_fullres: -0.012 [-0.020, -0.004] over 12 cases after 300 steps``."""
    favourite, *others = held.raced
    return [_sentence(each, favourite) for each in others if each.verdict != "goes on"]


def _sentence(raced: Raced, favourite: Raced) -> str:
    name = raced.configuration
    if raced.base_features != favourite.base_features:
        name += f" with {counted(raced.base_features, 'feature')}"
    if raced.difference is None:
        return f"{name} has no case to compare with {favourite.configuration}"
    if raced.interval is None:
        return (
            f"{name} did not beat {favourite.configuration}: {raced.difference:+.3f} over too few cases for an interval"
        )
    low, high = raced.interval
    verb = "lost to" if high < 0 else "beat" if raced.verdict == "won" else "led" if low > 0 else "did not beat"
    cases = sum(a is not None or b is not None for a, b in zip(raced.dice, favourite.dice, strict=True))
    return (
        f"{name} {verb} {favourite.configuration}: {raced.difference:+.3f} [{low:.3f}, {high:.3f}] over "
        f"{counted(cases, 'case')} after {counted(raced.steps, 'step')}"
    )


def records_of_race(conditions: Conditions) -> list[DecisionRecord]:
    """What the race decided; empty where none was to be held."""
    race = conditions.race
    if race is None:
        return []
    favourite, won = race.favourite, race.winner
    said = [sentence for held in race.rounds for sentence in describe_round(held)]
    found = "; ".join([*said, *([f"ended early: {race.note}"] if said and race.note else [])])
    decision = Decision(
        rule="schedule.race",
        value=None if favourite is None else (won or favourite).configuration,
        reason=found or f"no race was held: {race.note}",
        source="docs/decisions/0206",
        change="a challenger replaces the rule's choice only where the interval lies above zero" if said else None,
    )
    return [decision.record()]

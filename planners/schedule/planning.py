"""Measured step times and a budget -> folds, configurations, width and steps, each with its reason; and what more would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from planners.decision import Decision, DecisionRecord, counted
from planners.plan import Configuration, Plan
from planners.schedule.candidates import (
    LITTLE_TIME,
    LONG_TRAINING,
    METHOD_EPOCHS,
    METHOD_STEPS_PER_EPOCH,
    budgeted_training,
    little_time_configurations,
    long_training,
    method_configurations,
    method_training,
    mirrored_configurations,
    mirroring_decision,
    preferred_configurations,
    records_of_left_out,
)
from planners.schedule.cost import (
    DEFAULT_CPU_BUDGET_S,
    ENOUGH_STEPS,
    FEWEST_STEPS,
    RESERVE_S,
    RESERVE_SHARE,
    SATURATED_STEPS,
    affordable_steps,
    budgeted_pace,
    fixed_pace,
    follows_method,
    measurement_of,
    measurements_of,
    modest_of,
    nearest_to_modest,
    passing_on_s,
    seconds_for_steps,
    share_s_of,
    test_s,
    usable_s,
    validation_s,
    with_mirroring,
)
from planners.schedule.documents import Conditions, Measurement, Schedule, Training, rounds
from planners.schedule.race import records_of_race


def plan_schedule(plan: Plan, conditions: Conditions) -> Schedule:
    """What to train for how long.

    Without a budget a GPU follows nnU-Net (method section 7.1) and a CPU takes an hour; with one, see `budgeted_schedule`.
    Configurations that were requested are trained, and no others. Raises `ValueError` when one of them was not measured.
    """
    return (method_schedule if follows_method(conditions) else budgeted_schedule)(plan, conditions)


def starves(plan: Plan, conditions: Conditions) -> bool:
    """Whether the preferred configuration gets so few steps that `little_time_configurations` are worth measuring."""
    if conditions.configurations or follows_method(conditions) or not little_time_configurations(plan):
        return False
    first = measured_configurations(plan, conditions)[0]
    modest = modest_of(with_mirroring(conditions, mirrored_configurations(plan)), first.name)
    return affordable_steps(modest, conditions, usable_s(conditions), conditions.num_folds) < FEWEST_STEPS


def wants_more_candidates(
    measured: Sequence[Measurement], *, budget_s: float | None, num_folds: int, num_devices: int = 1
) -> bool:
    """Whether the next configuration is worth measuring, after ``measured`` of those before it.

    It is if a modest network of the first gets fewer than `FEWEST_STEPS` steps a fold, or if the time saturates one more.
    """
    share = (budget_s or DEFAULT_CPU_BUDGET_S) / rounds(num_folds, num_devices)
    first = [m for m in measured if m.configuration == measured[0].configuration]
    is_short = share / nearest_to_modest(first).step_s < FEWEST_STEPS
    return is_short or saturates(measured, budget_s=budget_s, num_folds=num_folds, num_devices=num_devices)


def saturates(measured: Sequence[Measurement], *, budget_s: float | None, num_folds: int, num_devices: int = 1) -> bool:
    """Whether the time is enough to saturate one more configuration beside those that were ``measured``."""
    share = (budget_s or DEFAULT_CPU_BUDGET_S) / rounds(num_folds, num_devices)
    widest = max((m for m in measured if m.configuration == measured[0].configuration), key=lambda m: m.base_features)
    count = len({m.configuration for m in measured}) + 1
    return share / widest.step_s / count >= SATURATED_STEPS


def candidate_configurations(plan: Plan, conditions: Conditions) -> tuple[Configuration, ...]:
    """What a schedule may train: the requested configurations, each after its stages, or those that the rule chooses from."""
    if conditions.configurations:
        return tuple(dict.fromkeys(stage for name in conditions.configurations for stage in plan.chain(name)))
    in_time = (*preferred_configurations(plan), *little_time_configurations(plan))
    by_rule = method_configurations(plan) if follows_method(conditions) else in_time
    won = None if conditions.race is None else conditions.race.winner
    beaten = None if conditions.race is None else conditions.race.favourite
    if won is None or beaten is None:
        return by_rule
    first = plan.configuration(won.configuration)
    if follows_method(conditions):  # as many networks as the method has
        return tuple(dict.fromkeys(first if each.name == beaten.configuration else each for each in by_rule))
    return tuple(dict.fromkeys((first, *by_rule)))


def budgeted_schedule(plan: Plan, conditions: Conditions) -> Schedule:
    """The requested configurations, with the same time each; else the first preferred one, as wide as `ENOUGH_STEPS` allows,
    and further ones once it is saturated.
    """
    usable = usable_s(conditions)
    mirrored = with_mirroring(conditions, mirrored_configurations(plan))
    measured = measured_configurations(plan, conditions)
    chosen = _requested(conditions, measured) or decide_configurations(measured, mirrored, usable)
    folds = decide_folds(chosen.value, mirrored, usable / len(chosen.value))
    share = share_s_of(conditions, len(chosen.value), folds.value)
    trained = _train(plan, chosen.value, mirrored, folds.value, share)
    return Schedule(
        conditions=conditions,
        num_folds=folds.value,
        trainings=tuple(trained.trainings),
        expected_training_s=trained.training_s,
        expected_validation_s=trained.validation_s,
        expected_rest_s=trained.rest_s + RESERVE_S,
        decisions=(
            *([] if conditions.configurations else records_of_left_out(plan)),
            *records_of_race(conditions),
            chosen.record(shown=[c.name for c in chosen.value]),
            folds.record(),
            *trained.records,
        ),
    )


def measured_configurations(plan: Plan, conditions: Conditions) -> tuple[Configuration, ...]:
    """Candidates that were measured. Raises `ValueError` where none or not all requested ones were."""
    candidates = candidate_configurations(plan, conditions)
    measured = tuple(c for c in candidates if measurements_of(conditions, c.name))
    if not measured or (conditions.configurations and len(measured) < len(candidates)):
        raise ValueError(f"no step was measured of {', '.join(c.name for c in candidates if c not in measured)}")
    return measured


def _requested(
    conditions: Conditions, configurations: tuple[Configuration, ...]
) -> Decision[tuple[Configuration, ...]] | None:
    """Exactly what was requested, with the stages that it needs; None where nothing was."""
    if not conditions.configurations:
        return None
    stages = [c.name for c in configurations if c.name not in conditions.configurations]
    before = f", with {' and '.join(stages)} before the cascade" if stages else ""
    return Decision(
        rule="schedule.configurations",
        value=configurations,
        reason=f"{', '.join(conditions.configurations)} {'was' if len(conditions.configurations) == 1 else 'were'} requested{before}"
        + ("" if follows_method(conditions) or len(configurations) == 1 else "; each gets the same time"),
        source="user",
        change="without --configurations they are chosen by rule",
    )


def decide_configurations(
    candidates: Sequence[Configuration], conditions: Conditions, usable_s: float
) -> Decision[tuple[Configuration, ...]]:
    """As many configurations, in order of preference, as each can be trained to saturation.

    Where a modest network of the first would get too few steps to learn, coarser voxels take its place, else the one of the others
    that gets the most, else a smaller patch: the first of these that gets enough.
    """
    names, starving = ", ".join(c.name for c in candidates), ""
    folds, devices = conditions.num_folds, conditions.num_devices

    def modest_steps(configuration: Configuration) -> int:
        return affordable_steps(modest_of(conditions, configuration.name), conditions, usable_s, conditions.num_folds)

    first, raced = candidates[0], conditions.race is not None and conditions.race.winner is not None
    if modest_steps(first) < FEWEST_STEPS and not raced:
        most = max((c for c in candidates if c.name not in LITTLE_TIME), key=modest_steps)
        by_name = {each.name: each for each in candidates}
        coarse, small = (by_name.get(name, most) for name in LITTLE_TIME)
        starved, first = first, next((c for c in (coarse, most, small) if modest_steps(c) >= FEWEST_STEPS), most)
        if first is not starved:
            starving = f", as {starved.name} would get only {modest_steps(starved)} steps a fold"
    chosen = [first]
    for candidate in candidates:
        if candidate is first or candidate.name in LITTLE_TIME:
            continue
        trial = [*chosen, candidate]
        share = usable_s / (rounds(len(trial) * folds, devices) / rounds(folds, devices))
        steps = [
            affordable_steps(measurements_of(conditions, c.name)[0], conditions, share, conditions.num_folds)
            for c in trial
        ]
        if min(steps) >= SATURATED_STEPS:
            chosen = trial
    return Decision(
        rule="schedule.configurations",
        value=tuple(chosen),
        reason=f"of {names}, {first.name} is trained{', which won the race' if raced else starving} ({modest_steps(first)} steps a fold for a "
        f"network of modest width); others only if each then gets {SATURATED_STEPS} steps a fold at full width",
        source="docs/decisions/0041",
        change="with a larger --budget more configurations are trained",
    )


def decide_folds(chosen: Sequence[Configuration], conditions: Conditions, share_s: float) -> Decision[int]:
    """All folds, or as few as two where a modest network would get fewer than `FEWEST_STEPS` steps a fold; a hold-out where
    even the narrowest would in two. The number that was given, if one was.
    """
    folds, network = conditions.num_folds, "a network of modest width"
    steps = min(affordable_steps(modest_of(conditions, c.name), conditions, share_s, folds) for c in chosen)
    while steps < FEWEST_STEPS and folds > 2 and not conditions.folds_given:
        folds -= 1
        steps = min(affordable_steps(modest_of(conditions, c.name), conditions, share_s, folds) for c in chosen)
    needs_all = any(c.previous_stage is not None for c in chosen)  # a cascade learns from predictions of every case
    if steps < FEWEST_STEPS and folds == 2 and not (conditions.folds_given or needs_all):
        narrowest = [measurements_of(conditions, c.name)[-1] for c in chosen]
        if min(affordable_steps(m, conditions, share_s, 2) for m in narrowest) < FEWEST_STEPS:
            folds, network = 1, "the narrowest network"
            steps = min(affordable_steps(m, conditions, share_s, 1) for m in narrowest)
    if conditions.folds_given:
        return Decision(
            rule="schedule.folds",
            value=folds,
            reason=f"{counted(folds, 'fold')} {'was' if folds == 1 else 'were'} requested; {network} gets {steps} steps in each",
            source="user",
        )
    return Decision(
        rule="schedule.folds",
        value=folds,
        reason=f"with {folds} of {conditions.num_folds} folds {network} gets {steps} steps in each; at least "
        f"{FEWEST_STEPS} are needed",
        source="docs/decisions/0002",
        change="a larger --budget allows more folds" if folds < conditions.num_folds else None,
    )


def decide_width(
    configuration: Configuration, conditions: Conditions, share_s: float, folds: int
) -> Decision[Measurement]:
    """The widest network that still gets `ENOUGH_STEPS` steps, but at least a modest one; where even that gets fewer than
    `FEWEST_STEPS`, the narrowest that was measured.
    """
    options = measurements_of(conditions, configuration.name)
    table = ", ".join(
        f"{m.base_features} features {affordable_steps(m, conditions, share_s, folds)} steps"
        + (" (not timed)" if m.extrapolated else "")
        for m in options
    )
    modest = modest_of(conditions, configuration.name)
    won = None if conditions.race is None else conditions.race.winner
    if won is not None and won.configuration == configuration.name and won.base_features > modest.base_features:
        return Decision(
            rule="schedule.width",
            value=next(m for m in options if m.base_features == won.base_features),
            reason=f"the time allows {table}; {won.base_features} features won the race",
            source="docs/decisions/0206",
        )
    fallback = modest if affordable_steps(modest, conditions, share_s, folds) >= FEWEST_STEPS else options[-1]
    wider = [m for m in options if m.base_features > modest.base_features]
    value = next((m for m in wider if affordable_steps(m, conditions, share_s, folds) >= ENOUGH_STEPS), fallback)
    return Decision(
        rule="schedule.width",
        value=value,
        reason=f"the time allows {table}; the widest with at least {ENOUGH_STEPS} steps is taken, else a modest one "
        f"with at least {FEWEST_STEPS}, else the narrowest",
        source="docs/decisions/0041",
        change="a larger --budget allows a wider network" if value is not options[0] else None,
    )


def method_schedule(plan: Plan, conditions: Conditions) -> Schedule:
    """1000 epochs of 250 steps for every requested or measured configuration and every fold (method section 7.1)."""
    measured = measured_configurations(plan, conditions)
    trained = _train(plan, measured, with_mirroring(conditions, plan.configurations), conditions.num_folds, 0.0)
    length = Decision(
        rule="schedule.length",
        value=METHOD_EPOCHS,
        reason=f"on a GPU without a budget: nnU-Net's {METHOD_EPOCHS} epochs of {METHOD_STEPS_PER_EPOCH} steps",
        source="method section 7.1",
        change="with --budget the schedule fits the time given",
    )
    chosen = _requested(conditions, measured)
    reasons = records_of_left_out(plan) if chosen is None else [chosen.record(shown=[c.name for c in measured])]
    return Schedule(
        conditions=conditions,
        num_folds=conditions.num_folds,
        trainings=tuple(trained.trainings),
        expected_training_s=trained.training_s,
        expected_validation_s=trained.validation_s,
        expected_rest_s=trained.rest_s,
        decisions=(length.record(), *reasons, *records_of_race(conditions), *trained.records),
    )


def extend_schedule(
    plan: Plan, schedule: Schedule, name: str, measurements: Sequence[Measurement], *, elapsed_s: float
) -> Schedule:
    """``schedule`` with trainings of the configuration ``name`` and of the stages before it, as far as it lacks them.

    They get the same folds and, where there is a budget, its time once more: shared evenly, ``elapsed_s`` taken off. Other
    trainings keep every field, so what was trained stays up to date. ``measurements`` are of the new ones; raises `ValueError`
    where one is missing.
    """
    known = {training.configuration for training in schedule.trainings}
    missing = [configuration for configuration in plan.chain(name) if configuration.name not in known]
    if not missing:
        return schedule
    unmeasured = [c.name for c in missing if not any(m.configuration == c.name for m in measurements)]
    if unmeasured:
        raise ValueError(f"no step of {', '.join(unmeasured)} was measured")
    conditions = schedule.conditions.model_copy(
        update={"measurements": (*schedule.conditions.measurements, *measurements)}
    )
    now = conditions.model_copy(update={"elapsed_s": elapsed_s})
    mirrored = plan.configurations if follows_method(now) else mirrored_configurations(plan)
    share = share_s_of(now, len(missing), schedule.num_folds)
    trained = _train(plan, missing, with_mirroring(now, mirrored), schedule.num_folds, share)
    names = [configuration.name for configuration in missing]
    before = " and ".join(each for each in names if each != name)
    requested = Decision(
        rule="schedule.asked_for",
        value=names,
        reason=f"{name} was requested{f', after {before}, whose predictions are its input' if before else ''}; trainings that were "
        "scheduled before are unchanged",
        source="user",
    )
    return schedule.model_copy(
        update={
            "conditions": conditions,
            "trainings": (*schedule.trainings, *trained.trainings),
            "expected_training_s": schedule.expected_training_s + trained.training_s,
            "expected_validation_s": schedule.expected_validation_s + trained.validation_s,
            "expected_rest_s": schedule.expected_rest_s + trained.rest_s,
            "decisions": (*schedule.decisions, requested.record(), *trained.records),
        }
    )


@dataclass(slots=True)
class _Trained:
    """Trainings, why they are so, and what they are expected to take."""

    trainings: list[Training] = field(default_factory=list)
    records: list[DecisionRecord] = field(default_factory=list)
    training_s: float = 0.0
    validation_s: float = 0.0
    rest_s: float = 0.0


def _train(
    plan: Plan, configurations: Sequence[Configuration], conditions: Conditions, folds: int, share_s: float
) -> _Trained:
    """Trainings by nnU-Net's schedule, or of ``share_s`` seconds each; ``conditions`` count mirror images."""
    trained = _Trained()
    for configuration in configurations:
        name = configuration.name
        if follows_method(conditions):
            measured = measurement_of(conditions, name, configuration.network.features[0])
            if measured is None:
                raise ValueError(f"{name} was not measured at its own width")
            training = method_training(configuration, measured)
            pace = fixed_pace(measured, training.num_steps, folds)
            training = training.model_copy(update={"compiled": pace.compiled})
        else:
            width = decide_width(configuration, conditions, share_s, folds)
            own_s = share_s - passing_on_s(conditions, configuration, width.value)
            pace = budgeted_pace(width.value, conditions, own_s, folds)
            mirroring = mirroring_decision(plan, configuration)
            longer = (
                pace
                if mirroring.value
                else budgeted_pace(_mirrored(width.value, configuration), conditions, own_s, folds)
            )
            is_long = longer.steps >= LONG_TRAINING
            if is_long:
                pace, mirroring = longer, mirroring_decision(plan, configuration, long=True)
                training = long_training(configuration, pace.measured, pace.steps, compiled=pace.compiled)
            else:
                training = budgeted_training(
                    configuration, pace.measured, pace.steps, mirroring=mirroring.value, compiled=pace.compiled
                )
            shown, optimiser = width.value.base_features, decide_optimiser(pace.steps, is_long=is_long)
            trained.records += [width.record(name, shown=shown), optimiser.record(name), mirroring.record(name)]
        trained.trainings.append(training)
        trained.records += [] if pace.compiling is None else [pace.compiling.record(name)]
        trained.training_s += pace.training_s
        trained.validation_s += validation_s(conditions, pace.measured, folds)
        trained.validation_s += passing_on_s(conditions, configuration, pace.measured)
        trained.rest_s += test_s(conditions, pace.measured, folds) / conditions.num_devices
    return trained


def _mirrored(measured: Measurement, configuration: Configuration) -> Measurement:
    """What a network takes that predicts all mirror images of a case."""
    return measured.model_copy(update={"case_s": measured.case_s * 2 ** len(configuration.mirror_axes)})


def decide_optimiser(steps: int, *, is_long: bool) -> Decision[str]:
    """nnU-Net's SGD for long trainings, AdamW for short ones: about as good as the best SGD after 300 steps, better after 1000."""
    if is_long:
        return Decision(
            rule="schedule.optimiser",
            value="sgd",
            reason=f"{steps} steps are enough for nnU-Net's recipe with {steps // METHOD_STEPS_PER_EPOCH} instead of {METHOD_EPOCHS} epochs",
            source="method section 7.1",
        )
    return Decision(
        rule="schedule.optimiser",
        value="adamw",
        reason="nnU-Net's SGD with momentum 0.99 needs thousands of steps to converge; AdamW with warm-up and cosine decay "
        f"learns more in {steps}",
        source="docs/decisions/0041",
    )


FACTORS = (2, 4, 6, 12, 24, 48)
"""Multiples of the budget that are tried."""
ROUND_S = (60, 120, 300, 600, 900, 1200, 1800, 2700, 3600)
"""Round durations; longer ones are whole hours."""


def describe_outlook(plan: Plan, schedule: Schedule) -> str | None:
    """What the first larger budget that changes more than the number of steps would give.

    For example ``with 2 h: 32 features``. None if none that is tried changes anything, or without a budget.
    """
    conditions = schedule.conditions
    if follows_method(conditions):
        return None
    try:
        measured_configurations(plan, conditions)
    except (KeyError, ValueError):
        return None  # a schedule made by hand
    budget = conditions.budget_s or DEFAULT_CPU_BUDGET_S
    for factor in FACTORS:
        longer = rounded(budget * factor)
        gains = _gains(plan, schedule, conditions.model_copy(update={"budget_s": longer}))
        if gains:
            return f"with {spoken(longer)}: {' and '.join(gains)}"
    return None


def find_short_budget(plan: Plan, schedule: Schedule) -> tuple[str, str] | None:
    """What is wrong with a budget that cannot be kept or leaves too few steps to learn, and the least useful one.

    None where it is long enough. The least one is as ``--budget`` takes it, empty where nothing was measured.
    """
    conditions = schedule.conditions
    if follows_method(conditions):
        return None
    budget_s = conditions.budget_s or DEFAULT_CPU_BUDGET_S
    training = min(schedule.trainings, key=lambda each: each.num_steps)
    expected = conditions.elapsed_s + schedule.expected_s
    late = expected > budget_s * 1.1
    if training.num_steps >= FEWEST_STEPS and not late:
        return None
    steps = counted(training.num_steps, "training step")
    found = f"{spoken(budget_s)} {'is' if budget_s < 120 else 'are'} enough for {steps} a fold; at least {FEWEST_STEPS} are needed"
    if late:
        found = f"{spoken(budget_s)} cannot be kept: even the shortest run takes about {spoken(rounded(expected))}"
    measured = measurements_of(with_mirroring(conditions, mirrored_configurations(plan)), training.configuration)
    if not measured:  # a schedule made by hand
        return found, ""
    folds = conditions.num_folds if conditions.folds_given else 1
    each_s = seconds_for_steps(measured[-1], conditions, FEWEST_STEPS, folds)
    least = conditions.elapsed_s + each_s * len(schedule.trainings)
    return found, option(rounded((least + RESERVE_S) / (1 - RESERVE_SHARE)))


def rounded(seconds: float) -> float:
    """The next round duration."""
    return float(next((duration for duration in ROUND_S if seconds <= duration), 3600 * -(-seconds // 3600)))


def spoken(seconds: float) -> str:
    """``45 s``, ``20 min``, ``2 h``."""
    if seconds < 120 and seconds != 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 and seconds % 3600 else f"{seconds / 3600:.3g} h"


def option(seconds: float) -> str:
    """The same as the command line takes it: ``45s``, ``20m``, ``2h``."""
    return spoken(seconds).replace(" min", "m").replace(" ", "")


def _gains(plan: Plan, schedule: Schedule, longer: Conditions) -> list[str]:
    """What the rule would do with ``longer`` that ``schedule`` does not, the next configuration included if time is enough."""
    other = budgeted_schedule(plan, longer)
    before = {training.configuration: training for training in schedule.trainings}
    gains = []
    for training in other.trainings:
        known = before.get(training.configuration)
        if known is None:
            stay = before.keys() <= {each.configuration for each in other.trainings}
            gains.append(f"{training.configuration} {'too' if stay else 'instead'}")
        elif training.base_features > known.base_features:
            gains.append(f"{training.base_features} features")
    left = [c.name for c in preferred_configurations(plan) if not measurements_of(longer, c.name)]
    enough = saturates(
        longer.measurements,
        budget_s=longer.budget_s,
        num_folds=longer.num_folds,
        num_devices=longer.num_devices,
    )
    if left and enough and not longer.configurations:
        gains.append(f"{left[0]} too")
    if other.num_folds > schedule.num_folds:
        gains.append(f"{other.num_folds} folds")
    return gains

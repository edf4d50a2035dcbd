"""Measured step times and a budget -> folds, configurations, width and steps, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence

from planners.decision import Decision, DecisionRecord
from planners.plan import Configuration, Plan
from planners.schedule.candidates import (
    METHOD_EPOCHS,
    METHOD_STEPS_PER_EPOCH,
    budgeted_training,
    method_configurations,
    method_training,
    preferred_configurations,
    records_of_left_out,
    shows_slices,
)
from planners.schedule.cost import (
    Pace,
    affordable_steps,
    budgeted_pace,
    fixed_pace,
    measurement_of,
    measurements_of,
    modest_of,
    nearest_to_modest,
    passing_on_s,
    test_s,
    validation_s,
    with_mirroring,
)
from planners.schedule.documents import Conditions, Measurement, Schedule, Training

DEFAULT_CPU_BUDGET_S = 3600.0
"""What a run on a CPU takes when nobody says how long it may take."""
ENOUGH_STEPS = 1000
"""A wider network pays only if it still gets this many steps: 16 features reached a Dice of 0.87 after 622 steps
and 0.88 after 1134 on the hippocampus, 32 features only 0.71 after 210 (design, section 7.5)."""
FEWEST_STEPS = 150
"""Fewer steps than this teach nothing; rather train fewer folds."""
SATURATED_STEPS = 8000
"""Beyond this another configuration gains more than further steps of the first."""
RESERVE_SHARE = 0.03
"""Of the budget, kept for selection, postprocessing, report and the noise of the clock."""
RESERVE_S = 6.0


def plan_schedule(plan: Plan, conditions: Conditions) -> Schedule:
    """What to train for how long.

    Without a budget a GPU follows the method (section 7.1) and a CPU takes an hour. With one, see
    `budgeted_schedule`. Raises `ValueError` when a configuration to train was not measured.
    """
    if follows_method(conditions):
        return method_schedule(plan, conditions)
    return budgeted_schedule(plan, conditions)


def wants_more_candidates(measured: Sequence[Measurement], *, budget_s: float | None, num_folds: int) -> bool:
    """Whether the next configuration is worth measuring, after ``measured`` of those before it.

    It is where a modest network of the first would starve (fewer than `FEWEST_STEPS` steps a fold), and where the time is
    enough to saturate one more.
    """
    share = (budget_s or DEFAULT_CPU_BUDGET_S) / num_folds
    first = [m for m in measured if m.configuration == measured[0].configuration]
    starves = share / nearest_to_modest(first).step_s < FEWEST_STEPS
    return starves or saturates(measured, budget_s=budget_s, num_folds=num_folds)


def saturates(measured: Sequence[Measurement], *, budget_s: float | None, num_folds: int) -> bool:
    """Whether the time is enough to saturate one more configuration beside those that were ``measured``."""
    share = (budget_s or DEFAULT_CPU_BUDGET_S) / num_folds
    widest = max((m for m in measured if m.configuration == measured[0].configuration), key=lambda m: m.base_features)
    count = len({m.configuration for m in measured}) + 1
    return share / widest.step_s / count >= SATURATED_STEPS


def budgeted_schedule(plan: Plan, conditions: Conditions) -> Schedule:
    """The first preferred configuration, as wide as `ENOUGH_STEPS` allows, and further ones once it is saturated."""
    budget = conditions.budget_s or DEFAULT_CPU_BUDGET_S
    usable = budget - conditions.elapsed_s - RESERVE_S - RESERVE_SHARE * budget
    given, conditions = conditions, with_mirroring(conditions, mirrored_configurations(plan))
    measured = [c for c in preferred_configurations(plan) if measurements_of(conditions, c.name)]
    if not measured:
        raise ValueError("no configuration of the plan was measured")
    chosen = decide_configurations(measured, conditions, usable)
    share = usable / len(chosen.value)
    folds = decide_folds(chosen.value, conditions, share)
    records = [*records_of_left_out(plan), chosen.record([c.name for c in chosen.value]), folds.record(folds.value)]
    trainings, seconds, validation, rest = [], 0.0, 0.0, 0.0
    for configuration in chosen.value:
        width = decide_width(configuration, conditions, share, folds.value)
        pace = budgeted_pace(width.value, conditions, share, folds.value)
        mirroring = mirroring_decision(plan, configuration)
        trainings.append(
            budgeted_training(
                configuration, pace.measured, pace.steps, mirroring=mirroring.value, compiled=pace.compiled
            )
        )
        records.append(width.record(width.value.base_features, configuration=configuration.name))
        records.append(optimiser_decision(pace.steps).record("adamw", configuration=configuration.name))
        records += pace.records(configuration.name)
        records.append(mirroring.record(mirroring.value, configuration=configuration.name))
        seconds += pace.training_s
        validation += validation_s(conditions, width.value)
        rest += test_s(conditions, width.value, folds.value)
    return Schedule(
        conditions=given,
        num_folds=folds.value,
        trainings=tuple(trainings),
        expected_training_s=seconds,
        expected_validation_s=validation,
        expected_rest_s=rest + RESERVE_S,
        decisions=tuple(records),
    )


def decide_configurations(
    candidates: Sequence[Configuration], conditions: Conditions, usable_s: float
) -> Decision[tuple[Configuration, ...]]:
    """As many configurations, in order of preference, as each can be trained to saturation.

    Where a modest network of the first would starve, the configuration that gets the most steps takes its place.
    """
    names = ", ".join(c.name for c in candidates)

    def modest_steps(configuration: Configuration) -> int:
        return affordable_steps(modest_of(conditions, configuration.name), conditions, usable_s, conditions.num_folds)

    first = candidates[0]
    if modest_steps(first) < FEWEST_STEPS:
        first = max(candidates, key=modest_steps)
    chosen = [first]
    for candidate in candidates:
        if candidate is first:
            continue
        trial = [*chosen, candidate]
        share = usable_s / len(trial)
        steps = [
            affordable_steps(measurements_of(conditions, c.name)[0], conditions, share, conditions.num_folds)
            for c in trial
        ]
        if min(steps) >= SATURATED_STEPS:
            chosen = trial
    return Decision(
        rule="schedule.configurations",
        value=tuple(chosen),
        reason=f"of {names}: time is given to the first that does not starve (here {first.name}, {modest_steps(first)} steps a "
        f"fold), and to another only if each then gets {SATURATED_STEPS} steps a fold at full width",
        source="design, section 7.5",
        change="a larger --budget trains more configurations",
    )


def decide_folds(chosen: Sequence[Configuration], conditions: Conditions, share_s: float) -> Decision[int]:
    """All folds, or as few as two where a modest network would get fewer than `FEWEST_STEPS` steps a fold and nobody asked
    for the others.
    """
    folds = conditions.num_folds
    steps = 0
    while True:
        steps = min(affordable_steps(modest_of(conditions, c.name), conditions, share_s, folds) for c in chosen)
        if steps >= FEWEST_STEPS or folds <= 2 or conditions.folds_given:
            break
        folds -= 1
    if conditions.folds_given:
        return Decision(
            rule="schedule.folds",
            value=folds,
            reason=f"these {folds} folds were asked for; a modest network gets {steps} steps in each",
            source="a choice of the user",
        )
    return Decision(
        rule="schedule.folds",
        value=folds,
        reason=f"{folds} of {conditions.num_folds} folds leave {steps} steps for a modest network in each; fewer than "
        f"{FEWEST_STEPS} would teach little",
        source="design, section 7.7",
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
        f"{m.base_features} features {affordable_steps(m, conditions, share_s, folds)} steps" for m in options
    )
    modest = modest_of(conditions, configuration.name)
    fallback = modest if affordable_steps(modest, conditions, share_s, folds) >= FEWEST_STEPS else options[-1]
    wider = [m for m in options if m.base_features > modest.base_features]
    value = next((m for m in wider if affordable_steps(m, conditions, share_s, folds) >= ENOUGH_STEPS), fallback)
    return Decision(
        rule="schedule.width",
        value=value,
        reason=f"the time allows {table}; the widest with at least {ENOUGH_STEPS} steps is taken, else a modest one "
        f"with at least {FEWEST_STEPS}, else the narrowest",
        source="design, section 7.5",
        change="a larger --budget allows a wider network" if value is not options[0] else None,
    )


def optimiser_decision(num_steps: int) -> Decision[str]:
    """AdamW for every budgeted training: about as good as the best SGD after 300 steps, better after 1000."""
    return Decision(
        rule="schedule.optimiser",
        value="adamw",
        reason=f"the method's SGD with momentum 0.99 needs thousands of steps to settle; AdamW with a warm-up and a cosine "
        f"makes the most of {num_steps}",
        source="docs/decisions/0041",
    )


def mirroring_decision(plan: Plan, configuration: Configuration) -> Decision[bool]:
    """Short trainings mirror only images that have no common orientation (2D photographs, microscopy)."""
    value = shows_slices(plan) and bool(configuration.mirror_axes)
    reason = (
        "these are 2D images without a common orientation: every mirror image is as likely"
        if value
        else "all cases are turned to one orientation; mirroring would teach the network to ignore what tells front "
        "from back, and eight-fold prediction would cost training time"
    )
    return Decision(rule="schedule.mirroring", value=value, reason=reason, source="design, section 7.5")


def mirrored_configurations(plan: Plan) -> list[Configuration]:
    """Those that budgeted trainings, and then predictions, mirror."""
    return [configuration for configuration in plan.configurations if mirroring_decision(plan, configuration).value]


def method_schedule(plan: Plan, conditions: Conditions) -> Schedule:
    """1000 epochs of 250 steps for every measured configuration and every fold (method section 7.1)."""
    trainings, records, seconds, validation, rest = [], list[DecisionRecord](), 0.0, 0.0, 0.0
    mirrored = with_mirroring(conditions, plan.configurations)
    for configuration in method_configurations(plan):
        measured = measurement_of(mirrored, configuration.name, configuration.network.features[0])
        if measured is None:
            continue
        training = method_training(configuration, measured)
        pace = fixed_pace(measured, training.num_steps, conditions.num_folds)
        trainings.append(training.model_copy(update={"compiled": pace.compiled}))
        records += pace.records(configuration.name)
        seconds += pace.training_s
        validation += validation_s(conditions, measured) + passing_on_s(conditions, configuration, measured)
        rest += test_s(conditions, measured, conditions.num_folds)
    decision = Decision(
        rule="schedule.length",
        value=METHOD_EPOCHS,
        reason=f"no budget was given and a GPU is at hand: {METHOD_EPOCHS} epochs of {METHOD_STEPS_PER_EPOCH} steps",
        source="method section 7.1",
        change="with --budget the run is fitted into the time you have",
    )
    return Schedule(
        conditions=conditions,
        num_folds=conditions.num_folds,
        trainings=tuple(trainings),
        expected_training_s=seconds,
        expected_validation_s=validation,
        expected_rest_s=rest,
        decisions=(decision.record(METHOD_EPOCHS), *records_of_left_out(plan), *records),
    )


def extend_schedule(
    plan: Plan, schedule: Schedule, name: str, measurements: Sequence[Measurement], *, elapsed_s: float
) -> Schedule:
    """``schedule`` with trainings of the configuration ``name`` and of the stages before it, as far as it lacks them.

    They get the same folds and, where there is a budget, its time once more: shared evenly, ``elapsed_s`` taken off. Other
    trainings keep every field, so what was trained stays fresh. ``measurements`` are of the new ones; raises `ValueError`
    where one is missing.
    """
    known = {training.configuration for training in schedule.trainings}
    missing = [configuration for configuration in plan.chain(name) if configuration.name not in known]
    if not missing:
        return schedule
    conditions = schedule.conditions.model_copy(
        update={"measurements": (*schedule.conditions.measurements, *measurements), "elapsed_s": elapsed_s}
    )
    unmeasured = [c.name for c in missing if not any(m.configuration == c.name for m in measurements)]
    if unmeasured:
        raise ValueError(f"no step of {', '.join(unmeasured)} was measured")
    mirrored = plan.configurations if follows_method(conditions) else mirrored_configurations(plan)
    conditions = with_mirroring(conditions, mirrored)
    seconds, validation, rest = schedule.expected_training_s, schedule.expected_validation_s, schedule.expected_rest_s
    trainings, records = list(schedule.trainings), [_asked_for(name, missing)]
    for configuration in missing:
        training, pace, reasons = _train(plan, configuration, conditions, schedule.num_folds, len(missing))
        trainings.append(training)
        records += [*reasons, *pace.records(configuration.name)]
        seconds += pace.training_s
        measured = pace.measured
        validation += validation_s(conditions, measured) + passing_on_s(conditions, configuration, measured)
        rest += test_s(conditions, measured, schedule.num_folds)
    return schedule.model_copy(
        update={
            "conditions": schedule.conditions.model_copy(
                update={"measurements": (*schedule.conditions.measurements, *measurements)}
            ),
            "trainings": tuple(trainings),
            "expected_training_s": seconds,
            "expected_validation_s": validation,
            "expected_rest_s": rest,
            "decisions": (*schedule.decisions, *records),
        }
    )


def _train(
    plan: Plan, configuration: Configuration, conditions: Conditions, folds: int, num_shares: int
) -> tuple[Training, Pace, list[DecisionRecord]]:
    """The training of one configuration, what it was measured to cost, and why it is so."""
    name = configuration.name
    if follows_method(conditions):
        measured = measurement_of(conditions, name, configuration.network.features[0])
        if measured is None:
            raise ValueError(f"{name} was not measured at its own width")
        training = method_training(configuration, measured)
        pace = fixed_pace(measured, training.num_steps, folds)
        return training.model_copy(update={"compiled": pace.compiled}), pace, []
    budget = conditions.budget_s or DEFAULT_CPU_BUDGET_S
    share = (budget - conditions.elapsed_s - RESERVE_S - RESERVE_SHARE * budget) / num_shares
    width = decide_width(configuration, conditions, share, folds)
    left = share - passing_on_s(conditions, configuration, width.value)
    pace = budgeted_pace(width.value, conditions, left, folds)
    mirroring = mirroring_decision(plan, configuration)
    records = [
        width.record(width.value.base_features, configuration=name),
        optimiser_decision(pace.steps).record("adamw", configuration=name),
        mirroring.record(mirroring.value, configuration=name),
    ]
    training = budgeted_training(
        configuration, pace.measured, pace.steps, mirroring=mirroring.value, compiled=pace.compiled
    )
    return training, pace, records


def follows_method(conditions: Conditions) -> bool:
    """Whether nobody set a budget and a GPU is at hand."""
    return conditions.budget_s is None and conditions.device == "cuda"


def _asked_for(name: str, missing: Sequence[Configuration]) -> DecisionRecord:
    names = [configuration.name for configuration in missing]
    stages = [each for each in names if each != name]
    before = f", and {' and '.join(stages)} first, from whose predictions it starts" if stages else ""
    decision: Decision[list[str]] = Decision(
        rule="schedule.asked_for",
        value=names,
        reason=f"{name} was asked for{before}; what was scheduled before stays as it is",
        source="a choice of the user",
    )
    return decision.record(list(names))

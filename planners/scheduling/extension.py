"""Adds trainings that a person asks for to a schedule whose own trainings stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

from planners.decision import Decision, DecisionRecord
from planners.plan import Configuration, Plan
from planners.schedule import Conditions, Measurement, Schedule, Training
from planners.scheduling.budget import (
    DEFAULT_CPU_BUDGET_S,
    RESERVE_S,
    RESERVE_SHARE,
    decide_width,
    mirrored_configurations,
    mirroring_decision,
    optimiser_decision,
)
from planners.scheduling.compiling import Pace, budgeted_pace, fixed_pace
from planners.scheduling.cost import (
    measurement_of,
    passing_on_s,
    test_s,
    validation_s,
    with_mirroring,
)
from planners.scheduling.trainings import budgeted_training, method_training


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

"""The method's own schedule, for a GPU and nobody who waits: as long as the published results were trained."""

from __future__ import annotations

from planners.decision import Decision, DecisionRecord
from planners.plan import Plan
from planners.schedule import Conditions, Schedule
from planners.scheduling.candidates import method_configurations, records_of_left_out
from planners.scheduling.compiling import fixed_pace
from planners.scheduling.cost import measurement_of, passing_on_s, test_s, validation_s, with_mirroring
from planners.scheduling.trainings import METHOD_EPOCHS, METHOD_STEPS_PER_EPOCH, method_training


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

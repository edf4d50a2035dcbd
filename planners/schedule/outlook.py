"""What a larger budget would give, and a warning where it is too small."""

from __future__ import annotations

from collections.abc import Sequence

from planners.plan import Plan
from planners.schedule.candidates import preferred_configurations
from planners.schedule.cost import measurements_of, seconds_for_steps, with_mirroring
from planners.schedule.documents import Conditions, Schedule
from planners.schedule.planning import (
    DEFAULT_CPU_BUDGET_S,
    FEWEST_STEPS,
    RESERVE_S,
    RESERVE_SHARE,
    budgeted_schedule,
    follows_method,
    measured_configurations,
    mirrored_configurations,
    saturates,
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


def warn_of_short_budget(plan: Plan, schedule: Schedule) -> str | None:
    """A warning where the budget cannot be kept or leaves too few steps; else None."""
    conditions = schedule.conditions
    if conditions.budget_s is None:
        return None
    training = min(schedule.trainings, key=lambda each: each.num_steps)
    expected = conditions.elapsed_s + schedule.expected_s
    late = expected > conditions.budget_s * 1.1
    if training.num_steps >= FEWEST_STEPS and not late:
        return None
    found = f"a budget of {spoken(conditions.budget_s)} leaves {training.num_steps} steps a fold, fewer than the {FEWEST_STEPS} needed"
    if late:
        found = f"the budget of {spoken(conditions.budget_s)} cannot be kept; this run will take about {spoken(rounded(expected))}"
    measured = measurements_of(with_mirroring(conditions, mirrored_configurations(plan)), training.configuration)
    if not measured:  # a schedule made by hand
        return found
    folds = conditions.num_folds if conditions.folds_given else min(2, conditions.num_folds)
    each_s = seconds_for_steps(measured[-1], conditions, FEWEST_STEPS, folds)
    least = conditions.elapsed_s + each_s * len(schedule.trainings)
    needed = rounded((least + RESERVE_S) / (1 - RESERVE_SHARE))
    return f"{found}; give --budget {option(needed)} or more for a useful model"


def rounded(seconds: float) -> float:
    """The next round duration."""
    for duration in ROUND_S:
        if seconds <= duration:
            return float(duration)
    return 3600.0 * -(-seconds // 3600)


def spoken(seconds: float) -> str:
    """``45 s``, ``20 min``, ``2 h``."""
    if seconds < 120 and seconds != 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 and seconds % 3600 else f"{seconds / 3600:.3g} h"


def option(seconds: float) -> str:
    """The same as the command line takes it: ``45s``, ``20m``, ``2h``."""
    return spoken(seconds).replace(" min", "m").replace(" ", "")


def _gains(plan: Plan, schedule: Schedule, longer: Conditions) -> list[str]:
    """What the rule would do with ``longer`` that ``schedule`` does not."""
    other = budgeted_schedule(plan, longer)
    before = {training.configuration: training for training in schedule.trainings}
    gains = []
    for training in other.trainings:
        known = before.get(training.configuration)
        if known is None:
            gains.append(f"{training.configuration} too")
        elif training.base_features > known.base_features:
            gains.append(f"{training.base_features} features")
    gains += _unmeasured(plan, other)
    if other.num_folds > schedule.num_folds:
        gains.append(f"{other.num_folds} folds")
    return gains


def _unmeasured(plan: Plan, other: Schedule) -> Sequence[str]:
    """The next configuration, where the larger budget would be enough to train it too and it was not measured."""
    conditions = other.conditions
    if conditions.configurations:
        return []
    left = [c.name for c in preferred_configurations(plan) if not measurements_of(conditions, c.name)]
    wanted = saturates(conditions.measurements, budget_s=conditions.budget_s, num_folds=conditions.num_folds)
    return [f"{left[0]} too"] if left and wanted else []

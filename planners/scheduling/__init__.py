"""How long to train what: measured step times and a budget -> folds, configurations, steps, width, optimiser, curve."""

from __future__ import annotations

from planners.plan import Plan
from planners.schedule import Conditions, Schedule
from planners.scheduling.budget import budgeted_schedule
from planners.scheduling.method import method_schedule


def plan_schedule(plan: Plan, conditions: Conditions) -> Schedule:
    """What to train for how long.

    Without a budget a GPU follows the method (section 7.1) and a CPU takes an hour. With one, see
    `budgeted_schedule`. Raises `ValueError` when a configuration to train was not measured.
    """
    if conditions.budget_s is None and conditions.device == "cuda":
        return method_schedule(plan, conditions)
    return budgeted_schedule(plan, conditions)

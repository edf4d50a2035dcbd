"""What trial steps and predictions are made from, and how long each may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoseg.data.dataset import Case, DatasetDescription
from autoseg.pipeline.options import Options
from planners import DEFAULT_CPU_BUDGET_S, Plan

TRIAL_SHARE = 0.01
"""Of the time to plan, for each trial: trials must not eat the time that they plan."""
SHORTEST_TRIAL_S = 2.0
LONGEST_TRIAL_S = 10.0
"""Where steps are slow a few must do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What trials are made from."""

    options: Options
    dataset: DatasetDescription
    plan: Plan
    longest_s: float
    """Of one trial."""

    @property
    def cases(self) -> Sequence[Case]:
        """Training cases."""
        return self.dataset.training


def make_bench(options: Options, dataset: DatasetDescription, plan: Plan) -> Bench:
    """Trials that last as long as the budget allows."""
    share = TRIAL_SHARE * (options.budget_s or DEFAULT_CPU_BUDGET_S)
    return Bench(
        options=options, dataset=dataset, plan=plan, longest_s=min(LONGEST_TRIAL_S, max(SHORTEST_TRIAL_S, share))
    )

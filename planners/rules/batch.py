"""How many patches make a training batch."""

from __future__ import annotations

import math

from planners.decision import Decision
from planners.rules.memory import SMALLEST_BATCH, MemoryBudget
from planners.rules.patch import PatchFit


def decide_batch_size(fit: PatchFit, budget: MemoryBudget, *, dataset_voxels: float, share: float) -> Decision[int]:
    """Patches in one training batch (method section 3.9): what fits, at most a share of the dataset, at least 2."""
    fitting = budget.fitting_batch(fit.estimate)
    covering = round(dataset_voxels * share / math.prod(fit.pyramid.patch))
    return Decision(
        rule="batch.size",
        value=max(min(fitting, covering), SMALLEST_BATCH),
        reason=f"memory allows {fitting} and {share:.0%} of the dataset's voxels {covering}; the smaller number is taken, but at least "
        f"{SMALLEST_BATCH}",
        source="method 3.9",
        change=_change_of_batch(
            max(fitting, SMALLEST_BATCH), max(covering, SMALLEST_BATCH), is_shrunk=fit.num_steps > 0
        ),
    )


def _change_of_batch(fitting: int, covering: int, *, is_shrunk: bool) -> str:
    """What limits the batch; both numbers are at least the smallest batch."""
    if covering < fitting:
        return "more training cases would allow more patches"
    if covering == fitting:
        return "more memory and more training cases together would allow more patches"
    if is_shrunk:
        return "more memory would first allow larger patches, then more of them"
    return "more memory would allow more patches"

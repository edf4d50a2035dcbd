"""Why a dataset cannot be planned, with the place of every fault."""

from __future__ import annotations

from collections.abc import Sequence


class PlanningError(ValueError):
    """A dataset that cannot be planned; ``problems`` holds one line for each fault: place, found, how to mend."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.where = where
        self.problems = tuple(problems)
        super().__init__(f"{where} cannot be planned:\n" + "\n".join(f"  - {line}" for line in problems))

    def __reduce__(self) -> tuple[type[PlanningError], tuple[str, tuple[str, ...]]]:
        """Errors travel between processes; the default would lose the second argument."""
        return PlanningError, (self.where, self.problems)

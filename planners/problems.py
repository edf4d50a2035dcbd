"""Why something cannot be planned."""

from __future__ import annotations

from collections.abc import Sequence

from planners.document import Issue


class PlanningError(ValueError):
    """A dataset or an edit that cannot be planned; ``issues`` holds all that is wrong."""

    def __init__(self, headline: str, issues: Sequence[Issue]) -> None:
        self.headline = headline
        self.issues = tuple(issues)
        super().__init__(f"{headline}:\n" + "\n".join(f"  - {issue}" for issue in issues))

    def __reduce__(self) -> tuple[type[PlanningError], tuple[str, tuple[Issue, ...]]]:
        """Errors travel between processes; the default would lose the second argument."""
        return PlanningError, (self.headline, self.issues)

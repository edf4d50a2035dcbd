"""The errors a person sees: what was found, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class AutosegError(Exception):
    """Something the user can mend; the message says what was found, where, and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One fault of the input."""

    where: str
    """File, folder or case."""
    found: str
    """What is wrong, with the values found."""
    mend: str
    """What the user can do about it, starting with a verb."""

    def __str__(self) -> str:
        return f"{self.where}: {self.found}; {self.mend}"


class ProblemsError(AutosegError):
    """Several faults, reported together."""

    def __init__(self, headline: str, problems: Sequence[Problem]) -> None:
        self.headline = headline
        self.problems = tuple(problems)
        super().__init__(f"{headline}\n" + "\n".join(f"  - {problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[type[ProblemsError], tuple[str, tuple[Problem, ...]]]:
        """Errors travel between processes; the default would lose the second argument."""
        return ProblemsError, (self.headline, self.problems)

"""Errors, warnings and notes in one form everywhere: readers, reports, exceptions and JSON."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.wording import condensed
from planners import Issue, Severity

__all__ = ["AutosegError", "Issue", "Severity"]


class AutosegError(Exception):
    """One or more issues that end a command; the message gives them, many of one kind together, under ``headline`` if given."""

    def __init__(self, *issues: Issue, headline: str | None = None) -> None:
        self.issues = issues
        self.headline = headline
        mark = "" if headline is None else "  - "
        lines = [f"{mark}{issue}" for issue in condensed(self.issues)]
        super().__init__("\n".join([*([] if headline is None else [headline]), *lines]))

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of all issues, in order."""
        return tuple(issue.code for issue in self.issues)

    def __reduce__(self) -> tuple[object, ...]:
        """Errors travel between processes; the default would pass the message as an issue."""
        return _restore, (type(self), self.issues, self.headline)


def _restore(kind: type[AutosegError], issues: Sequence[Issue], headline: str | None) -> AutosegError:
    error = kind.__new__(kind)
    AutosegError.__init__(error, *issues, headline=headline)
    return error

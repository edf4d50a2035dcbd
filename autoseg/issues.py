"""What can be wrong, said in one form everywhere: from the reader of a file to the report, in errors and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from planners import Document

Severity = Literal["error", "warning", "note"]
UNNAMED = "unnamed.issue"


class Issue(Document):
    """Something that a person should know or mend. Code goes by ``code`` and fields, never by the words."""

    code: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*\.[a-z0-9_.]+$")]
    """Stable name, room first: ``labels.empty``. `docs/reference/issues.md` lists all."""
    severity: Severity = "error"
    where: str
    """File, folder, option or case."""
    message: str
    """What was found, with the values found."""
    fix: str = ""
    """What can be done about it, starting with a verb."""
    case: str | None = None
    """Id of the case that it concerns; none: no single one."""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}; {self.fix}" if self.fix else text


class AutosegError(Exception):
    """One or more issues that end a command; the message gives all of them, under ``headline`` where it is given."""

    def __init__(self, *issues: Issue | str, headline: str | None = None) -> None:
        self.issues = tuple(
            issue if isinstance(issue, Issue) else Issue(code=UNNAMED, where="", message=issue) for issue in issues
        )
        self.headline = headline
        lines = [f"  - {issue}" for issue in self.issues] if headline is not None else map(str, self.issues)
        super().__init__("\n".join([*([] if headline is None else [headline]), *lines]))

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of all issues, in order."""
        return tuple(issue.code for issue in self.issues)

    def __reduce__(self) -> tuple[object, ...]:
        """Errors travel between processes; the default would pass the message for an issue."""
        return _restore, (type(self), self.issues, self.headline)


def _restore(kind: type[AutosegError], issues: Sequence[Issue], headline: str | None) -> AutosegError:
    error = kind.__new__(kind)
    AutosegError.__init__(error, *issues, headline=headline)
    return error

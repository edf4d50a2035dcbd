"""What the checks look at together: a case, or an image or a label map without the other; and findings on it."""

from __future__ import annotations

from dataclasses import dataclass

from autoseg.data.dataset import Case
from autoseg.issues import UNNAMED, AutosegError, Issue


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckItem:
    """The files of one, by path; ``case`` only where they are those of a whole case."""

    case_id: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    """Files of label map or masks."""
    case: Case | None = None
    is_training: bool = False


def item_name(item: CheckItem) -> str:
    """What errors and progress call it."""
    return f"case {item.case_id}"


def item_finding(item: CheckItem, severity: str, where: str, found: str, mend: str) -> Issue:
    """A finding on the file or folder ``where`` of the item; ``severity`` is error, warning or note."""
    return Issue.model_validate(
        {"code": UNNAMED, "severity": severity, "case": item.case_id, "where": where, "message": found, "fix": mend}
    )


def unreadable(item: CheckItem, path: str, error: AutosegError) -> Issue:
    """What a reader said of the file ``path``, as an error, in its own words: after the last semicolon it says what to do, perhaps behind a cause and a colon."""
    text = str(error).removeprefix(path).removeprefix(":").strip()
    found, _, rest = text.rpartition("; ")
    cause, _, mend = rest.rpartition(": ")
    if not found:
        found, cause, mend = text, "", "replace the file, or remove the case"
    return item_finding(item, "error", path, f"{found}; {cause}" if cause else found, mend)
